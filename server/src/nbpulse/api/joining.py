"""Joining a class, and who one is."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from nbpulse.api.bodies import decode_body, read_request_body
from nbpulse.api.context import describe_body, get_context, get_person
from nbpulse.api.limits import find_address
from nbpulse.errors import InvalidInput, Unavailable
from nbpulse.records.tokens import clean_code
from nbpulse.roster import clean_number

router = APIRouter(prefix="/api/v1")
_log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode


class JoinRequest(msgspec.Struct):
    """What a student sends to join."""

    join_code: Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
    display_name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    student_number: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    resume_code: Annotated[str, msgspec.Meta(max_length=40)] | None = None
    notice_version: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None


@router.post("/join", status_code=201, openapi_extra=describe_body(JoinRequest))
async def join(request: Request) -> Response:
    """Enrol a student by the class's join code; the token is shown once."""
    wanted = decode_body(await read_request_body(request), JoinRequest)
    context = get_context(request)
    number = clean_number(clean_line(wanted.student_number, "student_number") or "") or None
    resume_code = clean_line(wanted.resume_code, "resume_code")
    account = f"resume {clean_code(wanted.join_code)} {number}" if resume_code else None
    async with context.guesses.guarding(find_address(request.scope), account):
        joined = await context.people.join(
            wanted.join_code,
            clean_line(wanted.display_name, "display_name") or "",
            number,
            resume_code,
            wanted.notice_version,
        )
    try:
        await context.cache.announce_roster(joined.course_id)
    except Unavailable as error:
        _log.warning("joining.not_announced", code=error.code)  # boards look at the roster every 2 s anyway
    return answer({**msgspec.structs.asdict(joined), "server_time": datetime.now(UTC)}, 201)


@router.get("/me")
async def show_me(request: Request) -> Response:
    """Who the token or cookie stands for, and in which courses."""
    person = get_person(request)
    name, courses = await get_context(request).people.describe_person(person)
    return answer({"user_id": person.user_id, "display_name": name, "courses": courses})


def answer(body: Any, status: int = 200) -> Response:
    """A JSON answer nobody may keep."""
    return Response(_encode(body), status, {"Cache-Control": "no-store"}, "application/json")


def clean_line(text: str | None, field: str) -> str | None:
    """One line in one spelling (NFC), None where nothing is left. Raises InvalidInput (NB-1007)."""
    if text is None:
        return None
    text = unicodedata.normalize("NFC", text).strip()
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        raise InvalidInput("NB-1007", detail=f"{field}: no control characters")
    if not text and field == "display_name":
        raise InvalidInput("NB-1007", detail=f"{field}: at least 1 character")
    return text or None
