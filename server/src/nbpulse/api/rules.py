"""A course's alert rules: shown to its staff, changed by its instructors, tried on a class of the past.

A change is told to every process at once; a board that did not hear of it finds it at its look every 2 s.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from nbpulse.api.bodies import decode_body, read_request_body
from nbpulse.api.context import describe_body, get_context, get_person, parse_id
from nbpulse.api.joining import answer
from nbpulse.classroom import DEFAULT_RULES, LIMITS, AlertRules, Fired, Trial, check_rules, try_rules
from nbpulse.classroom.rules import KINDS_OFF
from nbpulse.errors import TooMuch, Unavailable

router = APIRouter(prefix="/api/v1/courses/{course_id}/rules")
_log = structlog.get_logger(__name__)
# Playing a lesson again is work for this process: one at a time, and between two looks everybody else's turn.
_trying = asyncio.Lock()
_BUSY_S: Final = 5.0


class RulesRequest(msgspec.Struct):
    """All rules of the course: what is left out is as by default."""

    rules: AlertRules


class TrialRequest(msgspec.Struct):
    """Rules to try, and on which meeting; without: the newest."""

    rules: AlertRules
    meeting_id: UUID | None = None


@router.get("")
async def show_rules(request: Request, course_id: str) -> Response:
    """What holds, the defaults, each number's limits, and what may be switched off."""
    course = parse_id(course_id)
    rules = await get_context(request).rules.find(course)
    may_change = get_person(request).roles.get(course) == "instructor"
    return answer({**_describe(rules), "may_change": may_change})


@router.put("", openapi_extra=describe_body(RulesRequest))
async def change_rules(request: Request, course_id: str) -> Response:
    """Set the course's rules; boards take them up at once."""
    context, course = get_context(request), parse_id(course_id)
    rules = check_rules(decode_body(await read_request_body(request), RulesRequest).rules)
    await context.rules.change(course, rules)
    _log.info("rules.changed", course_id=course_id)
    try:
        await context.cache.announce_roster(course)
    except Unavailable as error:
        _log.warning("rules.not_announced", code=error.code)  # boards look every 2 s anyway
    return answer({**_describe(rules), "may_change": True})


@router.post("/preview", openapi_extra=describe_body(TrialRequest))
async def try_out(request: Request, course_id: str) -> Response:
    """How often each rule would have fired in a meeting of the past, in its notebook with most runs."""
    wanted = decode_body(await read_request_body(request), TrialRequest)
    rules = check_rules(wanted.rules)
    if _trying.locked():
        raise TooMuch("NB-1254", policy="rules-preview", limit=1, retry_after_s=_BUSY_S)
    async with _trying:
        started_s = time.perf_counter()
        course = parse_id(course_id)
        lesson = await get_context(request).rules.read_lesson(course, wanted.meeting_id)
        fired: list[Fired] = []
        if lesson.notebook_id is not None:
            place = course, lesson.notebook_id
            trial = Trial(*place, lesson.columns, lesson.user_ids, rules, groups=lesson.groups)
            until_ms = round(lesson.ended_at.timestamp() * 1000)
            for fired in try_rules(trial, lesson.events, until_ms):  # noqa: B007 - the last one counts
                await asyncio.sleep(0)
    meeting = {"id": lesson.meeting_id, "title": lesson.title, "started_at": lesson.started_at}
    return answer(
        {
            "meeting": {**meeting, "until": lesson.ended_at, "is_whole": lesson.is_whole},
            "events": len(lesson.events),
            "students": len({event.user_id for event in lesson.events}),
            "took_ms": round((time.perf_counter() - started_s) * 1000),
            "rules": fired,
        }
    )


def _describe(rules: AlertRules) -> dict[str, Any]:
    return {
        "rules": _show(rules),
        "defaults": _show(DEFAULT_RULES),
        "limits": {name: {"least": least, "most": most} for name, (least, most) in LIMITS.items()},
        "switches": sorted(KINDS_OFF),
    }


def _show(rules: AlertRules) -> dict[str, Any]:
    return {name: getattr(rules, name) for name in AlertRules.__struct_fields__}
