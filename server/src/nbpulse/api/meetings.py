"""A course's class meetings: begun, ended and listed by its staff."""

from __future__ import annotations

from typing import Annotated

import msgspec
import structlog
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from nbpulse.api.bodies import NO_NUL, decode_body, read_request_body
from nbpulse.api.context import Context, describe_body, get_context, get_person, parse_id
from nbpulse.api.joining import answer
from nbpulse.errors import Unavailable

router = APIRouter(prefix="/api/v1/courses/{course_id}/meetings")
_log = structlog.get_logger(__name__)


class MeetingRequest(msgspec.Struct):
    """What the meeting is called; by default its day says enough."""

    title: Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=NO_NUL)] | None = None


@router.get("")
async def list_meetings(request: Request, course_id: str, limit: Annotated[int, Query(ge=1, le=500)] = 50) -> Response:
    """The course's meetings, newest first; `ended_at` null: it goes on. `started_by` null: it began by itself."""
    return answer({"meetings": await get_context(request).meetings.list_meetings(parse_id(course_id), limit)})


@router.post("", status_code=201, openapi_extra=describe_body(MeetingRequest))
async def start_meeting(request: Request, course_id: str) -> Response:
    """Begin a meeting (201); where one is open already, that one (200)."""
    context = get_context(request)
    wanted = decode_body(await read_request_body(request), MeetingRequest)
    meeting, is_new = await context.meetings.start(parse_id(course_id), get_person(request).user_id, wanted.title)
    await _tell_boards(context, course_id)
    return answer(meeting, 201 if is_new else 200)


@router.post("/end")
async def end_meeting(request: Request, course_id: str) -> Response:
    """End the open meeting: no alert fires any more, and hands that are still up are told that the class has ended."""
    context = get_context(request)
    meeting = await context.meetings.end(parse_id(course_id), get_person(request).user_id)
    await _tell_boards(context, course_id)
    return answer(meeting)


@router.post("/{meeting_id}/reopen")
async def reopen_meeting(request: Request, course_id: str, meeting_id: str) -> Response:
    """Take its end back, for some seconds after it (409 later): the meeting goes on, and so do its alerts and hands."""
    context = get_context(request)
    meeting = await context.meetings.reopen(parse_id(course_id), parse_id(meeting_id))
    await _tell_boards(context, course_id)
    return answer(meeting)


async def _tell_boards(context: Context, course_id: str) -> None:
    try:
        await context.cache.announce_roster(parse_id(course_id))
    except Unavailable as error:
        _log.warning("meetings.not_announced", code=error.code)  # boards look every 2 s anyway
