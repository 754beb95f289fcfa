"""A course's people for its staff: who they are, who is let in, how students come in, the roster.

A change is told to every process at once; one that did not hear of it finds out within 60 s.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
import structlog
from fastapi import APIRouter, Query, Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from nbpulse.api.bodies import decode_body, read_request_body
from nbpulse.api.context import describe_body, get_context, get_person, parse_id
from nbpulse.api.joining import answer, clean_line
from nbpulse.api.problems import choose_language, read_language
from nbpulse.errors import InvalidInput, Unavailable
from nbpulse.records.invitations import list_invitations
from nbpulse.records.members import CODE_LIFE, Change, EntryChange, GivenRole, Members
from nbpulse.records.rosters import Import, import_roster
from nbpulse.roster import FILE_BYTES_MAX, Problem, Roster, read_roster

router = APIRouter(prefix="/api/v1/courses/{course_id}")
_log = structlog.get_logger(__name__)
_APPROVAL_BYTES_MAX: Final = 262_144  # the ids of a large class

Label = Annotated[str, msgspec.Meta(max_length=40)]


class MemberChange(msgspec.Struct, omit_defaults=True):
    """What of a member shall be another; what is left out stays. `teams` are an assistant's, `team` is a student's."""

    role: GivenRole | UnsetType = UNSET
    team: Label | UnsetType | None = UNSET
    teams: Annotated[list[Label], msgspec.Meta(max_length=100)] | UnsetType = UNSET
    seat: Label | UnsetType | None = UNSET


class Approval(msgspec.Struct):
    """Who of those that wait is let in."""

    user_ids: Annotated[list[UUID], msgspec.Meta(min_length=1, max_length=5_000)]


class CodeRequest(msgspec.Struct):
    """For how many days the new join code is good."""

    days: Annotated[int, msgspec.Meta(ge=1, le=400)] = CODE_LIFE.days


@router.get("/people")
async def show_people(request: Request, course_id: str) -> Response:
    """
    The course's members whom the asker may see (role, team or teams, seat), how students come in, and, for instructors,
    the invitations that can still be accepted. `joined_at` null: on the roster and not come yet.
    """
    course, person, people = parse_id(course_id), get_person(request), get_context(request).people
    members = Members(people)
    may_change = person.roles[course] == "instructor"
    return answer(
        {
            "members": await members.list_members(course),
            "entry": await members.find_entry(course),
            "invitations": await list_invitations(people, course) if may_change else [],
            "may_change": may_change,
            "user_id": person.user_id,
        }
    )


@router.patch("/people/{user_id}", openapi_extra=describe_body(MemberChange))
async def change_member(request: Request, course_id: str, user_id: str) -> Response:
    """
    Change a member's role, team or seat; how they stand then. Role `former`: they have left, their work stays; a course
    keeps an instructor (409, NB-1145).
    """
    course, member = parse_id(course_id), parse_id(user_id)
    wanted = decode_body(await read_request_body(request), MemberChange)
    change = Change(
        role=wanted.role,
        team=_clean(wanted.team, "team"),
        seat=_clean(wanted.seat, "seat"),
        teams=UNSET if wanted.teams is UNSET else [one for team in wanted.teams if (one := clean_line(team, "teams"))],
    )
    changed = await Members(get_context(request).people).change(course, member, change)
    await _tell(request, course, [member])
    return answer(changed)


@router.post("/people/approvals", openapi_extra=describe_body(Approval))
async def approve(request: Request, course_id: str) -> Response:
    """Let those of them in who wait: who they are. What they have done meanwhile comes from their own computers."""
    course = parse_id(course_id)
    body = await read_request_body(request, limit=_APPROVAL_BYTES_MAX)
    approved = await Members(get_context(request).people).approve(course, decode_body(body, Approval).user_ids)
    await _tell(request, course, approved)
    return answer({"approved": approved})


@router.patch("/entry", openapi_extra=describe_body(EntryChange))
async def change_entry(request: Request, course_id: str) -> Response:
    """Close or open the join code, have newcomers wait, show assistants all teams; what is left out stays."""
    course = parse_id(course_id)
    change = decode_body(await read_request_body(request), EntryChange)
    entry = await Members(get_context(request).people).change_entry(course, change)
    await _tell(request, course)
    return answer(entry)


@router.post("/join-code", openapi_extra=describe_body(CodeRequest))
async def renew_code(request: Request, course_id: str) -> Response:
    """A new join code, open at once; nobody can join by the old one from then on."""
    wanted = decode_body(await read_request_body(request), CodeRequest)
    course = parse_id(course_id)
    return answer(await Members(get_context(request).people).renew_code(course, timedelta(days=wanted.days)))


@router.post(
    "/roster",
    openapi_extra={"requestBody": {"required": True, "content": {"text/csv": {"schema": {"type": "string"}}}}},
)
async def take_roster(
    request: Request,
    course_id: str,
    *,
    dry_run: Annotated[bool, Query(description="Say what would be done, and do nothing")] = True,
    mark_left: Annotated[bool, Query(description="Who is on the roster but not in this file has left")] = True,
) -> Response:
    """
    A roster as CSV (`student_number,name,kana,team,seat`): who is new, changed, back, gone, and which rows were not
    taken. Nothing is done unless `dry_run=false`.
    """
    course = parse_id(course_id)
    roster = read_roster(await read_request_body(request, limit=FILE_BYTES_MAX, expected_type="text/csv"))
    done = await import_roster(
        get_context(request).people, course, roster.rows, marks_left=mark_left, is_dry_run=dry_run
    )
    if not dry_run:
        _log.info("roster.imported", course_id=course_id, **done.counts, problems=len(roster.problems))
        await _tell(request, course)
    return answer(
        {"is_dry_run": dry_run, **describe_import(roster, done, choose_language(read_language(request.scope)))}
    )


def describe_import(roster: Roster, done: Import, language: str) -> dict[str, Any]:
    """What an import did or would do, its problems in words."""
    problems = sorted([*roster.problems, *done.problems], key=lambda one: one.line)
    return {
        **{name: getattr(roster, name) for name in ("encoding", "delimiter", "ignored")},
        **{name: getattr(done, name) for name in ("added", "changed", "returned", "left", "doubtful", "unchanged")},
        "problems": [_describe_problem(one, language) for one in problems],
    }


def _describe_problem(problem: Problem, language: str) -> dict[str, Any]:
    wording = InvalidInput(problem.code, **problem.facts)
    return {
        "line": problem.line,
        "code": problem.code,
        "title": wording.title(language),
        "todo": wording.todo(language),
    }


def _clean(text: str | UnsetType | None, field: str) -> str | UnsetType | None:
    return text if text is UNSET else clean_line(text, field)


async def _tell(request: Request, course_id: UUID, changed: Iterable[UUID] = ()) -> None:
    """
    Tell every process of those who may do something else now, and the boards to look at the roster. What an assistant
    sees may have changed with anybody.
    """
    context = get_context(request)
    context.gate.forget_students(course_id)
    for user_id in {*changed, *await Members(context.people).list_assistants(course_id)}:
        await context.announce_access(user_id)
    try:
        await context.cache.announce_roster(course_id)
    except Unavailable as error:
        _log.warning("members.not_announced", code=error.code)  # boards look every 2 s anyway
