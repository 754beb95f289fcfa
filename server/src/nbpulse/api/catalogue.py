"""The error catalogue, and how problems look in the API's description."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response

from nbpulse.api.joining import answer
from nbpulse.api.problems import MEDIA_TYPE
from nbpulse.errors import load_catalogue

_PROBLEM: Final = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "todo"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "pattern": "^NB-[0-9]{4}$"},
        "todo": {"type": "string"},
        "hint": {"type": "string"},
        "retry_after_s": {"type": "integer"},
        "policy": {"type": "string"},
        "limit": {"type": "integer"},
    },
}
_MEANINGS: Final = {
    400: "Not JSON",
    401: "No or unknown token",
    403: "No right",
    404: "No such thing",
    413: "Too large",
    415: "Another content type",
    422: "Not valid",
    429: "Too much; Retry-After says when",
    503: "Not now; Retry-After says when",
}


async def show_errors() -> Response:
    """Every error's code, what it means and what to do, in both languages."""
    return answer([{"code": code, **entry} for code, entry in sorted(load_catalogue().items())])


def describe_problems() -> dict[int | str, dict[str, Any]]:
    """The answers every route may give."""
    content = {MEDIA_TYPE: {"schema": _PROBLEM}}
    return {status: {"description": meaning, "content": content} for status, meaning in _MEANINGS.items()}
