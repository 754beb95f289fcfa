"""Errors as people and programs get them: RFC 9457 problem+json, in Japanese or English.

The one table from error to HTTP status is here. No error of ours has a status above 499 but "not now" (503), which
always says when to come again.
"""

from __future__ import annotations

import math
import random
from typing import Any, Final

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from nbpulse.errors import (
    AccessDenied,
    Conflict,
    InvalidInput,
    NbpulseError,
    NotFound,
    NotYet,
    TooMuch,
    Unavailable,
)

_STATUS_BY_TYPE: Final[tuple[tuple[type[NbpulseError], int], ...]] = (
    (Unavailable, 503),
    (TooMuch, 429),
    (NotFound, 404),
    (Conflict, 409),
    (NotYet, 409),
    (AccessDenied, 403),
    (InvalidInput, 422),
)
_STATUS_BY_CODE: Final = {
    "NB-1001": 400,  # the body is not JSON
    "NB-1004": 413,  # the body is too large
    "NB-1005": 415,  # another content type
    "NB-1006": 400,  # gzip that is none
    "NB-1010": 413,  # one event, too large
    "NB-1012": 400,  # one event, not JSON
    "NB-1101": 401,
    "NB-1161": 401,
    "NB-1102": 403,  # another's user_id
    "NB-1104": 401,  # a used link
    "NB-1126": 404,  # no such provider is set up
    "NB-1120": 401,  # a wrong name or password
    "NB-1301": 413,  # a picture, too large
    "NB-1110": 401,  # the hub does not know the token
    "NB-1105": 404,  # no class has this code
    "NB-1175": 431,
    "NB-1176": 408,
    "NB-1201": 404,
    "NB-1202": 404,
    "NB-1203": 405,
}
_STATUS_OF_FRAMEWORK: Final = {404: "NB-1201", 405: "NB-1203", 413: "NB-1004"}
MEDIA_TYPE: Final = "application/problem+json"

_encode = msgspec.json.Encoder().encode


def find_status(error: NbpulseError) -> int:
    """The HTTP status of an error. Raises LookupError for one that must never reach HTTP."""
    if (status := _STATUS_BY_CODE.get(error.code)) is not None:
        return status
    return next(status for kind, status in _STATUS_BY_TYPE if isinstance(error, kind))


def make_problem(error: NbpulseError, accept_language: str | None) -> Response:
    """The answer to a request that failed with `error`."""
    status, language = find_status(error), choose_language(accept_language)
    headers = {"Content-Language": language, "Cache-Control": "no-store", "Vary": "Accept-Language"}
    body: dict[str, Any] = {
        "type": f"/api/v1/errors#{error.code}",
        "title": error.title(language),
        "status": status,
        "detail": error.title(language),
        "code": error.code,
        "todo": error.todo(language),
        "hint": error.todo(language),
    }
    # Jitter, so that a class that was turned away together does not come back together.
    if isinstance(error, TooMuch):
        wait_s = math.ceil(error.retry_after_s) + random.randint(0, 2)  # noqa: S311
        body |= {"retry_after_s": wait_s, "limit": error.limit, "policy": error.policy}
        headers["Retry-After"] = str(wait_s)
        # The fields of the IETF's draft "RateLimit header fields for HTTP".
        headers["RateLimit-Policy"] = f'"{error.policy}";q={error.limit};w={error.window_s}'
        headers["RateLimit"] = f'"{error.policy}";r=0;t={math.ceil(error.retry_after_s)}'
    elif isinstance(error, Unavailable | NotYet):
        body["retry_after_s"] = random.randint(1, 5) + (10 if isinstance(error, NotYet) else 0)  # noqa: S311
        headers["Retry-After"] = str(body["retry_after_s"])
    if isinstance(error, Conflict):
        body |= error.members
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(_encode(body), status, headers, MEDIA_TYPE)


def find_framework_error(status: int) -> NbpulseError:
    """The framework's own refusals (no such route, method not allowed) as errors of ours."""
    code = _STATUS_OF_FRAMEWORK.get(status)
    return NotFound(code) if code else InvalidInput("NB-1007", detail=f"HTTP {status}")


def choose_language(accept_language: str | None) -> str:
    """ "ja" or "en", whichever the header likes better; "en" when it names neither."""
    best, best_quality = "en", 0.0
    for part in (accept_language or "").split(","):
        name, _, parameters = part.strip().partition(";")
        language = name.strip().lower().partition("-")[0]
        quality = _read_quality(parameters)
        if language in ("ja", "en") and quality > best_quality:
            best, best_quality = language, quality
    return best


def read_language(scope: Scope) -> str | None:
    """What a connection's Accept-Language says."""
    return Headers(scope=scope).get("accept-language")


def _read_quality(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
