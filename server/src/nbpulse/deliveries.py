"""One delivery of a client's: the events of a request's body, each in its own bytes.

Promise: one event that is no JSON never takes its neighbours with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from nbpulse.errors import InvalidInput

BATCH_EVENTS_MAX: Final = 500
_decode_parts = msgspec.json.Decoder(list[msgspec.Raw]).decode


def split_batch(body: bytes) -> tuple[list[bytes], bool]:
    """
    The events of a request's body as bytes each, and whether it was a batch (a JSON array).

    Raises InvalidInput: not JSON (NB-1001), an empty batch (NB-1002), more than 500 events (NB-1003).
    """
    text = body.strip()
    if not text.startswith(b"["):
        if not text.startswith(b"{"):
            raise InvalidInput("NB-1001")
        return [text], False
    try:
        parts = [bytes(part) for part in _decode_parts(text)]
    except (msgspec.DecodeError, RecursionError):
        # One element is no JSON: find the elements' borders, so that only that one is refused.
        parts = list(_split_elements(text))
    if not parts:
        raise InvalidInput("NB-1002")
    if len(parts) > BATCH_EVENTS_MAX:
        raise InvalidInput("NB-1003", events=len(parts), limit=BATCH_EVENTS_MAX)
    return parts, True


_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)


def _split_elements(text: bytes) -> Iterator[bytes]:
    """The top-level elements of an array whose inside may be anything with balanced brackets."""
    depth, start = 0, 1
    for match in _STRUCTURE.finditer(text):
        token = match.group()
        if token in b"[{":
            depth += 1
        elif token in b"]}":
            depth -= 1
            if depth == 0:
                if text[match.end() :].strip():
                    raise InvalidInput("NB-1001")
                if text[start : match.start()].strip():
                    yield text[start : match.start()].strip()
                return
        elif token == b"," and depth == 1:
            yield text[start : match.start()].strip()
            start = match.end()
    raise InvalidInput("NB-1001")
