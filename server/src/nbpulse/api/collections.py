"""What a course collects: set by its staff, shown to who wants to join, answered by its students.

A change holds in this process at once and in every other within the 30 s that a token's look-up is good for.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import structlog
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from nbpulse.api.bodies import decode_body, read_request_body
from nbpulse.api.context import describe_body, get_context, get_person, parse_id
from nbpulse.api.joining import answer
from nbpulse.api.limits import find_address
from nbpulse.collection import Level, Notice, Words, list_recorded, load_texts
from nbpulse.errors import AccessDenied
from nbpulse.records.consents import OwnConsent
from nbpulse.records.people import Person
from nbpulse.records.tokens import clean_code

router = APIRouter(prefix="/api/v1")
_log = structlog.get_logger(__name__)


class CollectionRequest(msgspec.Struct):
    """What shall be another; the rest stays. `without` is the whole list, `added` the course's own paragraph."""

    level: Level | None = None
    without: Annotated[list[Annotated[str, msgspec.Meta(max_length=60)]], msgspec.Meta(max_length=50)] | None = None
    added: Words | None = None


class ConsentRequest(msgspec.Struct):
    """A student's word on a version of the notice."""

    version: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    action: Literal["accept", "withdraw"]


@router.get("/join/notice")
async def show_notice(request: Request, code: Annotated[str, Query(min_length=1, max_length=40)]) -> Response:
    """What the course of this join code records, for who has not joined yet."""
    context = get_context(request)
    async with context.guesses.guarding(find_address(request.scope)):
        title, notice = await context.consents.find_notice(clean_code(code))
    return answer({"course_title": title, **_describe(notice)})


@router.get("/me/collection")
async def show_own(request: Request) -> Response:
    """What holds in the course of the student who asks, the version they were shown, and what they said to it."""
    person, course_id = get_person(request), _course_of(get_person(request))
    return answer(_describe_own(await get_context(request).consents.describe_own(person.user_id, course_id)))


@router.post("/me/consent", openapi_extra=describe_body(ConsentRequest))
async def answer_notice(request: Request) -> Response:
    """Accept a version that was shown, or withdraw: then no token of this student's works in the course any more."""
    context, person = get_context(request), get_person(request)
    course_id = _course_of(person)
    wanted = decode_body(await read_request_body(request), ConsentRequest)
    own = await context.consents.answer(person.user_id, course_id, wanted.version, wanted.action)
    context.gate.forget_students(course_id, person.user_id)
    told = _describe_own(own)
    if wanted.action == "withdraw":
        _log.info("consent.withdrawn", course_id=str(course_id))
        told["text"] = {k: text.format(course=own.course_title) for k, text in load_texts()["withdrawn"].items()}
    return answer(told)


@router.get("/courses/{course_id}/collection")
async def show_collection(request: Request, course_id: str) -> Response:
    """What the course collects, every version of it, how many students were shown which, and how long it is kept."""
    notice, versions, students = await get_context(request).consents.show(parse_id(course_id))
    kept = get_context(request).options.retention
    return answer({**_describe(notice), "versions": versions, "students": students, "kept": kept})


@router.put("/courses/{course_id}/collection", openapi_extra=describe_body(CollectionRequest))
async def change_collection(request: Request, course_id: str) -> Response:
    """Make a new version where something differs. What is collected more waits for each student to be shown it."""
    context, course = get_context(request), parse_id(course_id)
    wanted = decode_body(await read_request_body(request), CollectionRequest)
    notice, is_new = await context.consents.change(
        course,
        get_person(request).user_id,
        level=wanted.level,
        without=wanted.without,
        ja=wanted.added.ja if wanted.added else None,
        en=wanted.added.en if wanted.added else None,
    )
    if is_new:
        context.gate.forget_students(course)
        _log.info("collection.changed", course_id=course_id, version=notice.version, level=notice.level)
    return answer(_describe(notice))


def _describe(notice: Notice) -> dict[str, Any]:
    return {**msgspec.structs.asdict(notice), "recorded": list_recorded(notice.policy)}


def _describe_own(own: OwnConsent) -> dict[str, Any]:
    shown = own.shown.policy if own.shown else None
    return {"course_title": own.course_title, "current": _describe(own.current), "shown": shown, "history": own.history}


def _course_of(person: Person) -> UUID:
    if person.course_id is None:
        raise AccessDenied("NB-1103")
    return person.course_id
