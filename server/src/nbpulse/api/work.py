"""One student's, one cell's, one error's work for the course's staff: the board's pages behind its rows and columns.

What is not collected is told as `collects`, so that a page can say why a text is missing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, NamedTuple
from uuid import UUID

import msgspec
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from nbpulse.api.bodies import NO_NUL
from nbpulse.api.context import get_context, parse_id
from nbpulse.api.joining import answer
from nbpulse.api.queries import Cursor, encode_cursor, read_place
from nbpulse.api.sharing import FollowingRoute
from nbpulse.classroom import Learner, is_current
from nbpulse.classroom.compare import compare_lines, group_sources
from nbpulse.classroom.errorgroups import FINGERPRINT_VERSION
from nbpulse.classroom.quantiles import find_quartiles
from nbpulse.collection import Policy
from nbpulse.errors import NotFound
from nbpulse.records.analysis import Place, Span
from nbpulse.records.work import Answer, CellWork, ErrorWork

router = APIRouter(prefix="/api/v1/courses/{course_id}", route_class=FollowingRoute)
GROUPS_MAX: Final = 20
TREND_BUCKETS: Final = 24
TREND_MINUTES: Final = 5
_CLASS_MAX: Final = timedelta(hours=12)
_WITHOUT_MEETING: Final = timedelta(hours=3)
_ERROR_WINDOW: Final = timedelta(days=30)
_TEXTS: Final = ("source", "output", "error_message", "traceback")

Since = Annotated[
    datetime | None, Query(description="With a UTC offset. Default: the newest class meeting's beginning")
]
CellId = Annotated[str, Query(min_length=1, max_length=256, description="The cell's id", pattern=NO_NUL)]
State = Literal["all", "ok", "error", "none"]
Order = Literal["time", "length", "runs"]


class Asked(NamedTuple):
    """Which answers to a cell, in which order, and from which place on how many."""

    text: str
    state: State
    order: Order
    skip: int
    limit: int


@router.get("/students/{user_id}")
async def show_student(request: Request, course_id: str, user_id: str, since: Since = None) -> Response:
    """
    Who a student is, what is collected of them, and what they did in a class: `runs` (the newest 500), `sittings`
    (stretches of work at a notebook) and their 20 newest raised hands. At most 12 hours from `since` on.

    404 (NB-1270): no student of the course, or not one of whoever asks.
    """
    context, course, student = get_context(request), parse_id(course_id), parse_id(user_id)
    learner = await _find_learner(request, course, student)
    span = await _find_class_span(request, course, since)
    policy, has_withdrawn = await context.work.find_policy(course, student)
    trace = await context.work.read_student(course, student, span)
    told = {"student": _describe_learner(learner), "span": span._asdict(), "has_withdrawn": has_withdrawn}
    return answer({**told, "collects": _describe_policy(policy), "trace": trace})


@router.get("/students/{user_id}/runs")
async def list_student_runs(
    request: Request,
    course_id: str,
    user_id: str,
    *,
    notebook: str | None = None,
    cell: CellId | None = None,
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """A student's runs with the texts that were collected, newest first; of one cell where it is named."""
    course, student = parse_id(course_id), parse_id(user_id)
    await _find_learner(request, course, student)
    rows = await get_context(request).work.list_runs(
        *(course, student),
        notebook_id=parse_id(notebook) if notebook else None,
        cell_id=cell,
        after=read_place(cursor),
        limit=limit + 1,
    )
    page = rows[:limit]
    following = encode_cursor(Place(page[-1].at, page[-1].event_id)) if len(rows) > limit else None
    return answer({"runs": page, "next": following})


@router.get("/cells/{notebook_id}")
async def show_cell(
    request: Request,
    course_id: str,
    notebook_id: str,
    cell: CellId,
    *,
    since: Since = None,
    q: Annotated[str, Query(max_length=200, description="Only answers that hold this text")] = "",
    state: Annotated[State, Query(description="By the last run; none: not run")] = "all",
    sort: Order = "time",
    skip: Annotated[int, Query(ge=0, le=100_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 25,
) -> Response:
    """
    One cell over the class: figures, everybody's newest answer (a page of `limit` from `skip` on; `count` in all), and
    equal answers in `groups` (the largest 20), each with its `diff` to the teacher's cell where that was prepared.

    `sort`: the newest first, the longest code first, the most runs first. `time_ms` and `tries` until the first ok are
    of the class from `since` on, runs and errors of all time. 404 (NB-1271): no such cell.
    """
    context, course, notebook = get_context(request), parse_id(course_id), parse_id(notebook_id)
    span = await _find_class_span(request, course, since)
    work = await context.work.read_cell(course, notebook, cell, span)
    if work is None:
        raise NotFound("NB-1271")
    policy, _ = await context.work.find_policy(course)
    learners = {one.user_id: one for one in await context.classes.load_roster(course)}
    # In a thread: texts of a large class are megabytes to compare.
    body = await asyncio.to_thread(_compose_cell, work, learners, Asked(q.casefold(), state, sort, skip, limit))
    told = {"notebook_id": notebook, "cell_id": cell, **work.cell, "original": work.source}
    return answer({"cell": told, "span": span._asdict(), "collects": _describe_policy(policy), **body})


@router.get("/errors/{fingerprint}")
async def show_error(
    request: Request, course_id: str, fingerprint: Annotated[str, Path(pattern="^[0-9a-f]{16}$")], since: Since = None
) -> Response:
    """
    One error group: who has it now, since when and on which cells it was met (by default in the last 30 days), how
    often in each 5 minutes of the last 2 hours, and how it was worded where that is collected. `title`, `is_muted` and
    `merged` are what staff have settled; one that is merged into another is answered for by that.

    404 (NB-1272): nobody met it in that time.
    """
    context, course = get_context(request), parse_id(course_id)
    now = datetime.now(UTC)
    span = Span(max(since.astimezone(UTC), now - 13 * _ERROR_WINDOW) if since else now - _ERROR_WINDOW, now)
    found = await context.work.read_error(course, fingerprint, span)
    if not found.runs and not found.now:
        raise NotFound("NB-1272")
    learners = {one.user_id: one for one in await context.classes.load_roster(course)}
    policy, _ = await context.work.find_policy(course)
    told = {**msgspec.structs.asdict(found.group), "merged": found.merged, "version": FINGERPRINT_VERSION}
    collects = _describe_policy(policy)
    return answer({**told, "span": span._asdict(), "collects": collects, **_compose_error(found, learners, now)})


async def _find_learner(request: Request, course_id: UUID, user_id: UUID) -> Learner:
    roster = await get_context(request).classes.load_roster(course_id)
    learner = next((one for one in roster if one.user_id == str(user_id)), None)
    if learner is None:
        raise NotFound("NB-1270")
    return learner


async def _find_class_span(request: Request, course_id: UUID, since: datetime | None) -> Span:
    """The class from `since` on; by default the newest meeting, and where there was none the last 3 hours."""
    now = datetime.now(UTC)
    if since is not None:
        start = since.astimezone(UTC)
        return Span(start, start + _CLASS_MAX)
    meetings = await get_context(request).meetings.list_meetings(course_id, 1)
    if not meetings:
        return Span(now - _WITHOUT_MEETING, now)
    start, end = meetings[0].started_at, meetings[0].ended_at or now
    return Span(max(start, end - _CLASS_MAX), max(end, start + timedelta(seconds=1)))


def _describe_learner(learner: Learner) -> dict[str, Any]:
    """As the board's rows name a student."""
    return {
        "user_id": learner.user_id,
        "name": learner.name,
        "num": learner.number,
        "seat": learner.seat,
        "team": learner.team,
    }


def _describe_policy(policy: Policy) -> dict[str, Any]:
    """What of a run's texts is collected."""
    keeps = {name: policy.collects("cell_execution") and policy.keeps(name) for name in _TEXTS}
    return {"level": policy.level, **keeps}


def _name_state(given: Answer | None) -> str:
    if given is None:
        return "none"
    return given.status if given.status in ("ok", "running") else "error"


def _compose_cell(work: CellWork, learners: Mapping[str, Learner], asked: Asked) -> dict[str, Any]:
    """Figures and groups over everybody, and the page of those who were asked for."""
    answers = {user_id: given for user_id, given in work.answers.items() if user_id in learners}
    grouped = group_sources({user_id: given.source for user_id, given in answers.items() if given.source})
    places = {user_id: place for place, group in enumerate(grouped) for user_id in group.user_ids}
    wanted = [one for one in learners.values() if _is_wanted(one, answers.get(one.user_id), asked)]
    wanted.sort(key=lambda one: _rank(answers.get(one.user_id), asked.order))
    groups = [
        {
            "source": group.source,
            "count": len(group.user_ids),
            "ok": sum(_name_state(answers[one]) == "ok" for one in group.user_ids),
            "students": [_describe_learner(learners[one]) for one in group.user_ids[:GROUPS_MAX]],
            "diff": compare_lines(work.source, group.source) if work.source is not None else None,
        }
        for group in grouped[:GROUPS_MAX]
    ]
    states = Counter(_name_state(answers.get(user_id)) for user_id in learners)
    figures = {
        "students": len(learners),
        "states": {name: states[name] for name in ("ok", "error", "running", "none")},
        "time_ms": find_quartiles([one.time_ms for one in answers.values() if one.time_ms is not None]),
        "tries": find_quartiles([one.tries for one in answers.values() if one.tries is not None]),
    }
    rows = [_describe_answer(one, answers.get(one.user_id), places) for one in wanted[asked.skip :][: asked.limit]]
    return {"figures": figures, "groups": groups, "group_count": len(grouped), "students": rows, "count": len(wanted)}


def _is_wanted(learner: Learner, given: Answer | None, asked: Asked) -> bool:
    if asked.state not in ("all", _name_state(given)):
        return False
    texts = [learner.name, learner.number, *((given.source, given.output) if given else ())]
    return not asked.text or any(asked.text in (text or "").casefold() for text in texts)


def _rank(given: Answer | None, order: Order) -> tuple[float, ...]:
    """Who has not run the cell comes last; the roster's order decides between equals."""
    if given is None:
        return (1.0,)
    figure = {"time": given.last_at.timestamp(), "length": len(given.source or ""), "runs": given.runs}[order]
    return (0.0, -float(figure))


def _describe_answer(learner: Learner, given: Answer | None, places: Mapping[str, int]) -> dict[str, Any]:
    told: dict[str, Any] = {**_describe_learner(learner), "state": _name_state(given)}
    if given is not None:
        told |= given._asdict() | {"group": places.get(learner.user_id)}
    return told


def _compose_error(found: ErrorWork, learners: Mapping[str, Learner], now: datetime) -> dict[str, Any]:
    now_ms = round(now.timestamp() * 1000)
    trend = [0] * TREND_BUCKETS
    for at_ms in found.times_ms:
        back = (now_ms - at_ms) // (TREND_MINUTES * 60_000)
        if 0 <= back < TREND_BUCKETS:
            trend[TREND_BUCKETS - 1 - back] += 1
    people = [
        _describe_learner(learners[user_id])
        | {"at": run.at_ms, "cell_id": run.cell_id, "notebook_id": run.notebook_id or None}
        for user_id, run in found.now.items()
        if user_id in learners and is_current(run, now_ms)
    ]
    examples = [
        {**one, "student": _describe_learner(learners[str(one["user_id"])])}
        for one in found.examples
        if str(one["user_id"]) in learners
    ]
    return {
        "label": found.label,
        "students": found.students,
        "runs": found.runs,
        "is_cut": found.is_cut,
        "first_at": found.first_at,
        "last_at": found.last_at,
        "cells": found.cells,
        "now": sorted(people, key=lambda one: str(one["num"])),
        "trend": {"minutes": TREND_MINUTES, "counts": trend},
        "examples": examples,
    }
