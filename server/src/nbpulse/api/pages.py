"""The board's files."""

from __future__ import annotations

import hashlib
import mimetypes
from functools import lru_cache
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from nbpulse.errors import NotFound

WEB_DIR: Final = Path(__file__).resolve().parent.parent / "web"
_TYPES: Final = {".js": "text/javascript", ".mjs": "text/javascript", ".webmanifest": "application/manifest+json"}

router = APIRouter(include_in_schema=False)


@router.get("/")
@router.get("/me")
@router.get("/courses")
@router.get("/join")
@router.get("/join/{code}")
@router.get("/courses/{course_id}")
@router.get("/courses/{course_id}/{page:path}")
@router.get("/shared/report")
async def show_board(request: Request) -> Response:
    """The board; which course and which of its pages it shows, it reads from its own address (main.js)."""
    return _send_file(request, "index.html")


@router.get("/web/{path:path}")
async def show_file(request: Request, path: str) -> Response:
    """One of the board's files."""
    return _send_file(request, path)


def _send_file(request: Request, path: str) -> Response:
    file = (WEB_DIR / path).resolve() if "\x00" not in path else WEB_DIR
    if not file.is_relative_to(WEB_DIR) or not file.is_file():
        raise NotFound("NB-1201")
    body, tag = _read_file(file, file.stat().st_mtime_ns)
    # no-cache: kept, but asked about each time; a new version of nbpulse shows at the next load.
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    known = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
    if tag in known:
        return Response(status_code=304, headers=headers)
    media_type = _TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return Response(body, headers=headers, media_type=media_type)


@lru_cache(maxsize=200)
def _read_file(file: Path, _mtime_ns: int) -> tuple[bytes, str]:
    body = file.read_bytes()
    return body, f'"{hashlib.sha256(body).hexdigest()[:20]}"'
