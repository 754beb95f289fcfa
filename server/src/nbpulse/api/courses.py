"""Courses as their staff see them: which there are, made, copied, archived; and what a class needs before it begins."""

from __future__ import annotations

import asyncio
import io
import unicodedata
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
import segno
import structlog
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from nbpulse.api.bodies import NO_NUL, decode_body, read_request_body
from nbpulse.api.context import Context, describe_body, get_context, get_person, parse_id
from nbpulse.api.joining import answer, clean_line
from nbpulse.errors import InvalidInput, NotFound, Unavailable
from nbpulse.network import is_loopback
from nbpulse.notebook import count_cells, format_notebook, mark_notebook, parse_notebook
from nbpulse.records.members import Entry, Members
from nbpulse.records.originals import register_original
from nbpulse.records.own_courses import (
    SHORT_NAME,
    OwnCourse,
    archive_course,
    check_creator,
    create_course,
    list_courses,
    rename_course,
)
from nbpulse.records.readiness import read_readiness

router = APIRouter(prefix="/api/v1/courses")
_log = structlog.get_logger(__name__)
NOTEBOOK_BYTES_MAX: Final = 10_000_000
NOTEBOOK_TYPE: Final = "application/x-ipynb+json"

Title = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=NO_NUL)]
ShortName = Annotated[str, msgspec.Meta(min_length=1, max_length=40, pattern=SHORT_NAME)]


class CourseRequest(msgspec.Struct):
    """A new course. Without a short name it gets one from its title."""

    title: Title
    short_name: ShortName | None = None
    time_zone: Annotated[str, msgspec.Meta(max_length=64)] = "Asia/Tokyo"


class CopyRequest(msgspec.Struct):
    """What the copy of a course is called."""

    title: Title
    short_name: ShortName | None = None


class CourseChange(msgspec.Struct):
    """At least one: what the course is called, whether it is over."""

    title: Title | msgspec.UnsetType = msgspec.UNSET
    is_archived: bool | msgspec.UnsetType = msgspec.UNSET


@router.get("")
async def show_courses(request: Request) -> Response:
    """
    The courses of which the asker is staff or an analyst, those with a class meeting first; `may_create`: whether they
    may make one. `student_count` and `connected_count` (null: no meeting, or not known now) are of the students whom
    they may see.
    `address`: where students reach this server; `is_local`: only this machine can.
    """
    person, context = get_person(request), get_context(request)
    staffed = [course for course in person.roles if person.is_staff(course) or person.is_analyst(course)]
    courses, may_create = await list_courses(context.people, person.user_id, staffed)
    described = [await _describe(context, one) for one in courses]
    return answer(
        {
            "courses": described,
            "may_create": may_create and person.may_create,
            "address": find_address(request),
            "is_local": is_loopback(request.url.hostname or "") and not context.options.public_url,
        }
    )


@router.post("", status_code=201, openapi_extra=describe_body(CourseRequest))
async def make_course(request: Request) -> Response:
    """A new course whose instructor is who asks. For those who teach a course, and whom the operator lets (NB-1210)."""
    await check_creator(get_context(request).people)
    wanted = decode_body(await read_request_body(request), CourseRequest)
    return await _create(request, wanted.title, wanted.short_name, wanted.time_zone)


@router.post("/{course_id}/copies", status_code=201, openapi_extra=describe_body(CopyRequest))
async def copy_course(request: Request, course_id: str) -> Response:
    """A new course with this one's settings and prepared notebooks, without its people and their work."""
    await check_creator(get_context(request).people)
    wanted = decode_body(await read_request_body(request), CopyRequest)
    return await _create(request, wanted.title, wanted.short_name, "", source=parse_id(course_id))


@router.patch("/{course_id}", openapi_extra=describe_body(CourseChange))
async def change_course(request: Request, course_id: str) -> Response:
    """
    Rename the course, archive it, or bring it back. Archived, it takes no events and lets nobody in (403, NB-1211);
    what it has stays readable. Not while a class meeting is on (409, NB-1213).
    """
    context, course = get_context(request), parse_id(course_id)
    wanted = decode_body(await read_request_body(request), CourseChange)
    if wanted.title is msgspec.UNSET and wanted.is_archived is msgspec.UNSET:
        raise InvalidInput("NB-1007", detail="title or is_archived: at least one")
    has_changed = False
    if wanted.title is not msgspec.UNSET:
        has_changed = await rename_course(context.people, course, _clean_title(wanted.title))
    if wanted.is_archived is not msgspec.UNSET:
        has_changed |= await archive_course(context.people, course, is_archived=wanted.is_archived)
    if has_changed:
        _log.info("course.changed", course_id=course_id)
        context.gate.forget_students(course)
        try:
            await context.cache.announce_roster(course)
        except Unavailable as error:
            _log.warning("courses.not_announced", code=error.code)  # boards look every 2 s anyway
    return answer(await _show_one(request, course))


@router.post(
    "/{course_id}/notebooks",
    openapi_extra={"requestBody": {"required": True, "content": {NOTEBOOK_TYPE: {"schema": {"type": "object"}}}}},
)
async def prepare_notebook(
    request: Request, course_id: str, name: Annotated[str, Query(min_length=1, max_length=200)]
) -> Response:
    """
    Make a notebook file (at most 10 MB) the course's original, as `nbpulse prepare` does: `text` is the file to hand
    out, `has_changed` whether it is another than was sent.
    """
    context, course = get_context(request), parse_id(course_id)
    file_name = _clean_name(name)
    body = await read_request_body(request, limit=NOTEBOOK_BYTES_MAX, expected_type=NOTEBOOK_TYPE)
    content = await asyncio.to_thread(parse_notebook, body, file_name)
    entry, described = await Members(context.people).find_entry(course), await _show_one(request, course)
    notebook_id, cells = await register_original(context.people, course, [file_name], content)
    handout = {"notebook_id": str(notebook_id), "course_id": str(course), "join_code": entry.join_code or ""}
    mark_notebook(content, handout | {"course": described["title"], "url": find_address(request)})
    text = await asyncio.to_thread(format_notebook, content)
    has_changed = await asyncio.to_thread(lambda: parse_notebook(body, file_name) != content)
    told = {"notebook_id": notebook_id, "file_name": file_name, "has_changed": has_changed, **count_cells(cells)}
    return answer({**told, "text": text})


@router.get("/{course_id}/join-code.svg", response_class=Response)
async def draw_join_code(request: Request, course_id: str) -> Response:
    """The address at which students join, as a QR code."""
    entry = await Members(get_context(request).people).find_entry(parse_id(course_id))
    drawing = io.BytesIO()
    code = segno.make(find_join_url(request, entry), micro=False, error="m")
    code.save(drawing, kind="svg", border=4, dark="#000", light="#fff", xmldecl=False, omitsize=True)
    return Response(drawing.getvalue(), 200, {"Cache-Control": "no-store"}, "image/svg+xml")


@router.get("/{course_id}/readiness")
async def show_readiness(request: Request, course_id: str) -> Response:
    """
    What one looks at before class: each student's state (`connected away silent absent waiting withdrawn`), which
    notebooks are prepared, what is collected. `is_presence_known` false: who is connected is not known now.
    """
    context, course = get_context(request), parse_id(course_id)
    presence = await _read_presence(context, course)
    students, notebooks = await read_readiness(context.people, course, presence or {})
    notice, _, _ = await context.consents.show(course)
    told = {"students": students, "is_presence_known": presence is not None, "notebooks": notebooks}
    return answer({**told, "collection": notice})


def find_address(request: Request) -> str:
    """The address at which people reach this server: the public one, else that of the request."""
    public_url = get_context(request).options.public_url
    return (public_url or str(request.base_url)).rstrip("/")


def find_join_url(request: Request, entry: Entry) -> str:
    """The page that says how to join."""
    return f"{find_address(request)}/join/{entry.join_code}"


async def _create(
    request: Request, title: str, short_name: str | None, time_zone: str, *, source: UUID | None = None
) -> Response:
    context, person = get_context(request), get_person(request)
    made = await create_course(context.people, _clean_title(title), short_name, time_zone, source=source)
    _log.info("course.created", course_id=str(made), source_id=str(source) if source else None)
    await context.announce_access(person.user_id)  # what is remembered of them does not know the new course
    return answer(await _show_one(request, made), 201)


async def _show_one(request: Request, course_id: UUID) -> dict[str, Any]:
    context = get_context(request)
    courses, _ = await list_courses(context.people, get_person(request).user_id, [course_id])
    if not courses:
        raise NotFound("NB-1202")
    return await _describe(context, courses[0])


async def _describe(context: Context, course: OwnCourse) -> dict[str, Any]:
    presence = await _read_presence(context, course.id) if course.meeting_since else None
    told = msgspec.structs.asdict(course)
    mine = {str(one) for one in told.pop("student_ids")}
    connected = None if presence is None else len(mine & presence.keys())
    return told | {"student_count": len(mine), "connected_count": connected}


async def _read_presence(context: Context, course_id: UUID) -> dict[str, int] | None:
    """Who was heard of within 60 s; None where that is not known now."""
    try:
        return await context.cache.read_presence(course_id)
    except Unavailable as error:
        _log.warning("courses.presence_unknown", code=error.code)
        return None


def _clean_title(title: str) -> str:
    """One line. Raises InvalidInput (NB-1007)."""
    line = clean_line(title, "title")
    if line is None:
        raise InvalidInput("NB-1007", detail="title: at least 1 character")
    return line


def _clean_name(name: str) -> str:
    """A file's own name, without folders, in one spelling. Raises InvalidInput (NB-1007)."""
    last = unicodedata.normalize("NFC", name).replace("\\", "/").rpartition("/")[2]
    cleaned = clean_line(last, "name")
    if cleaned is None or cleaned.startswith("."):
        raise InvalidInput("NB-1007", detail="name: the file's name, such as week1.ipynb")
    return cleaned if cleaned.endswith(".ipynb") else f"{cleaned}.ipynb"
