"""Reading a request's body: bounded, also after inflation, and only as JSON."""

from __future__ import annotations

import re
import zlib
from typing import Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from nbpulse.errors import InvalidInput
from nbpulse.events import BODY_BYTES_MAX

# PostgreSQL holds no NUL.
NO_NUL: Final = r"^[^\x00]*$"
# As JSON writes it: after an even number of backslashes.
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_JSON: Final = "application/json"
SMALL_BODY_BYTES_MAX: Final = 16_384
_GZIP_WINDOW: Final = 31

T = TypeVar("T")


async def read_body(
    receive: Receive,
    *,
    content_type: str,
    content_encoding: str,
    limit: int = BODY_BYTES_MAX,
    expected_type: str = _JSON,
) -> bytes:
    """
    The body as sent, inflated where it is gzip, at most `limit` bytes either way.

    Raises InvalidInput: another content type (NB-1005), too large (NB-1004), not readable as gzip (NB-1006).
    Raises ClientDisconnect when the client is gone.
    """
    if content_type.partition(";")[0].strip().lower() != expected_type:
        raise InvalidInput("NB-1005", expected=expected_type)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    body: bytes = message.get("body", b"")
    if len(body) > limit:
        raise InvalidInput("NB-1004", limit=limit)
    if message.get("more_body"):
        body = await _read_rest(receive, body, limit)
    encoding = content_encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise InvalidInput("NB-1006")
    return _inflate(body, limit)


async def _read_rest(receive: Receive, first: bytes, limit: int) -> bytes:
    chunks, size, more = [first], len(first), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise InvalidInput("NB-1004", limit=limit)
        more = message.get("more_body", False)
    return b"".join(chunks)


def _inflate(body: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj(_GZIP_WINDOW)
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidInput("NB-1006") from error
    if len(plain) > limit:
        raise InvalidInput("NB-1004", limit=limit)
    if not inflater.eof or inflater.unused_data:
        raise InvalidInput("NB-1006")
    return plain


def decode_body(body: bytes, kind: type[T]) -> T:
    """The body as `kind`. Raises InvalidInput: not JSON (NB-1001), a wrong field or a NUL in a text (NB-1007)."""
    try:
        decoded = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidInput("NB-1007", detail=str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput("NB-1001") from error
    if _NUL.search(body):
        raise InvalidInput("NB-1007", detail="a text holds a NUL character")
    return decoded


async def read_request_body(
    request: Request, *, limit: int = SMALL_BODY_BYTES_MAX, expected_type: str = _JSON
) -> bytes:
    """`read_body` of at most 16 KB unless more is said, for everything but deliveries. Raises as that."""
    return await read_body(
        request.receive,
        content_type=request.headers.get("content-type", ""),
        content_encoding=request.headers.get("content-encoding", ""),
        limit=limit,
        expected_type=expected_type,
    )
