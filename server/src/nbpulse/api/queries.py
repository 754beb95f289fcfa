"""A course's history for its staff: the specification's queries and more, in the forms of downloads.py."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from nbpulse.api.context import get_context, parse_id
from nbpulse.api.downloads import AskedForm, Form, Subject, answer_table
from nbpulse.api.sharing import SharedRoute
from nbpulse.errors import InvalidInput
from nbpulse.records.analysis import Course, Place, Span, Table
from nbpulse.records.integrity import list_signs
from nbpulse.timeseries import Activity, Percentiles, Window

router = APIRouter(prefix="/api/v1/courses/{course_id}", route_class=SharedRoute)
SPAN_MAX: Final = timedelta(days=400)
BUCKETS_MAX: Final = 1_000
# What nanoseconds since 1970 hold in 64 bits, whole years.
_FIRST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(2262, 1, 1, tzinfo=UTC)
_BUCKETS: Final = {
    "1m": timedelta(minutes=1),
    "10m": timedelta(minutes=10),
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
}

Moment = Annotated[
    datetime | None, Query(description="With a UTC offset, else in the course's time zone. Default: the last day")
]
Limit = Annotated[int, Query(ge=1, le=5_000)]
Cursor = Annotated[str | None, Query(description="`next` of the page before this one")]
Bucket = Annotated[
    Literal["1m", "10m", "1h", "6h"],
    Query(description="Buckets begin at whole multiples since 1970 UTC; a window holds at most 1,000"),
]


class Scope(msgspec.Struct, frozen=True):
    """What of which course is asked for."""

    course_id: UUID
    course: Course
    span: Span
    notebook_id: UUID | None

    def name(self, name: str) -> Subject:
        """What rows of that name are."""
        return Subject(name, self.course, self.span)


async def _read_scope(
    request: Request, course_id: str, start: Moment = None, end: Moment = None, notebook: str | None = None
) -> Scope:
    """Raises InvalidInput (NB-1204): the window is empty, longer than 400 days, or not within 1970 to 2261."""
    return await _find_scope(request, course_id, start=start, end=end, notebook=notebook, default=timedelta(days=1))


async def _read_long_scope(
    request: Request, course_id: str, start: Moment = None, end: Moment = None, notebook: str | None = None
) -> Scope:
    """As `_read_scope`, by default the last 400 days."""
    return await _find_scope(request, course_id, start=start, end=end, notebook=notebook, default=SPAN_MAX)


AskedScope = Annotated[Scope, Depends(_read_scope)]
AskedLongScope = Annotated[Scope, Depends(_read_long_scope)]


@router.get("/sessions")
async def list_sessions(
    request: Request, scope: AskedScope, form: AskedForm, cursor: Cursor = None, limit: Limit = 500
) -> Response:
    """
    The class's learning sessions, newest first (specification, query 1), by default of the last day. `next` is the
    cursor of the next page, null on the last; sessions that begin meanwhile do not shift it.
    """
    return await _answer_sessions(request, scope, form, user_id=None, cursor=cursor, limit=limit)


@router.get("/students/{user_id}/sessions")
async def list_student_sessions(
    request: Request,
    scope: AskedLongScope,
    form: AskedForm,
    user_id: str,
    *,
    cursor: Cursor = None,
    limit: Limit = 10,
) -> Response:
    """One student's learning sessions, newest first (specification, query 2), by default of the last 400 days."""
    return await _answer_sessions(request, scope, form, user_id=parse_id(user_id), cursor=cursor, limit=limit)


@router.get("/activity")
async def list_activity(request: Request, scope: AskedScope, form: AskedForm, bucket: Bucket = "10m") -> Response:
    """
    The class's runs per bucket: students at work, runs, and the mean, median and p95 of their durations.

    Of the course's students and notebooks; only runs with a duration.
    """
    context, window = get_context(request), _make_window(scope.span, bucket)
    of_class = await context.find_class(scope.course_id)
    activity = await context.series.query_activity(window, of_class)
    percentiles = await context.series.query_percentiles(window, of_class)
    table = _fold_activity(activity, percentiles)
    return await answer_table(request, table, scope.name("activity"), form)


@router.get("/error-rate")
async def list_error_rate(request: Request, scope: AskedScope, form: AskedForm, bucket: Bucket = "1h") -> Response:
    """Runs and errors per bucket and notebook (the specification's error rate), of the course's students."""
    context, window = get_context(request), _make_window(scope.span, bucket)
    rates = await context.series.query_error_rate(window, await context.find_class(scope.course_id))
    table = Table(
        ("at", "notebook_path", "error_count", "total_executions", "error_rate"),
        ("time", "text", "integer", "integer", "number"),
        [
            (one.at, one.notebook_path, one.error_count, one.total_executions, one.error_count / one.total_executions)
            for one in rates
        ],
    )
    return await answer_table(request, table, scope.name("error-rate"), form)


@router.get("/integrity")
async def list_integrity(request: Request, scope: AskedScope, form: AskedForm, student: str | None = None) -> Response:
    """
    Students whose data has gaps (or this one), by default of the last day: what is missing, repeated or off, never why.
    All data is self-reported; whoever is not named here may still have hidden something.
    """
    table = await list_signs(get_context(request).past, scope.course_id, scope.span, _parse_optional(student))
    return await answer_table(request, table, scope.name("integrity"), form)


@router.get("/progress")
async def list_progress(
    request: Request,
    course_id: str,
    form: AskedForm,
    *,
    notebook: str | None = None,
    cursor: Cursor = None,
    limit: Limit = 1_000,
) -> Response:
    """
    Per student and notebook: cells whose last run was ok, of the course notebook's, and `progress_percentage`; where
    the course notebook has exercises, these in place of cells.
    """
    history, course = get_context(request).history, parse_id(course_id)
    skip, subject = _read_skip(cursor), Subject("progress", await history.find_course(course))
    table = await history.list_progress(course, _parse_optional(notebook), limit + 1, skip)
    return await _answer_page(request, table, subject, form, limit=limit, skip=skip)


@router.get("/failing-cells")
async def list_failing_cells(
    request: Request,
    course_id: str,
    form: AskedForm,
    *,
    notebook: str | None = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Response:
    """Cells by how many students failed on them, and how many of those never passed."""
    history, course = get_context(request).history, parse_id(course_id)
    skip, subject = _read_skip(cursor), Subject("failing-cells", await history.find_course(course))
    table = await history.list_failing_cells(course, _parse_optional(notebook), limit + 1, skip)
    return await _answer_page(request, table, subject, form, limit=limit, skip=skip)


@router.get("/common-errors")
async def list_common_errors(
    request: Request, scope: AskedScope, form: AskedForm, cursor: Cursor = None, limit: Limit = 100
) -> Response:
    """Error groups by how many students met them in the window, by default the last day."""
    history, skip = get_context(request).history, _read_skip(cursor)
    table = await history.list_common_errors(scope.course_id, scope.span, scope.notebook_id, limit + 1, skip)
    return await _answer_page(request, table, scope.name("common-errors"), form, limit=limit, skip=skip)


@router.get("/slow-cells")
async def list_slow_cells(
    request: Request, scope: AskedScope, form: AskedForm, cursor: Cursor = None, limit: Limit = 100
) -> Response:
    """Cells by the p95 of how long their runs took in the window, slowest first."""
    history, skip = get_context(request).history, _read_skip(cursor)
    table = await history.list_slow_cells(scope.course_id, scope.span, scope.notebook_id, limit + 1, skip)
    return await _answer_page(request, table, scope.name("slow-cells"), form, limit=limit, skip=skip)


@router.get("/recovery-times")
async def list_recovery_times(
    request: Request, scope: AskedScope, form: AskedForm, cursor: Cursor = None, limit: Limit = 100
) -> Response:
    """
    Per cell: the time from each error to the same student's next ok on it, median and p90, longest first.

    An error without an ok in the window counts in `errors`, not in `recovered_errors` nor in the times.
    """
    history, skip = get_context(request).history, _read_skip(cursor)
    table = await history.list_recovery_times(scope.course_id, scope.span, scope.notebook_id, limit + 1, skip)
    return await _answer_page(request, table, scope.name("recovery-times"), form, limit=limit, skip=skip)


async def _answer_sessions(
    request: Request, scope: Scope, form: AskedForm, *, user_id: UUID | None, cursor: str | None, limit: int
) -> Response:
    # One row more than asked for: whether there is a next page.
    table = await get_context(request).history.list_sessions(
        scope.course_id,
        scope.span,
        user_id=user_id,
        notebook_id=scope.notebook_id,
        after=read_place(cursor),
        limit=limit + 1,
    )
    page = msgspec.structs.replace(table, rows=table.rows[:limit])
    following = _make_cursor(page) if len(table.rows) > limit else None
    return await answer_table(request, page, scope.name("sessions"), form, following=following)


async def _answer_page(
    request: Request, table: Table, subject: Subject, form: Form, *, limit: int, skip: int
) -> Response:
    """Of `table`, read with one row more than asked for. What changes between two pages may shift their rows."""
    page = msgspec.structs.replace(table, rows=table.rows[:limit])
    following = encode_cursor(skip + limit) if len(table.rows) > limit else None
    return await answer_table(request, page, subject, form, following=following)


def _fold_activity(activity: list[Activity], percentiles: list[Percentiles]) -> Table:
    """One row per bucket of the class: the mean is weighted by each student's number of runs."""
    counts: dict[datetime, tuple[int, int, float]] = {}
    for one in activity:
        students, runs, sum_ms = counts.get(one.at, (0, 0, 0.0))
        sum_ms += one.avg_duration_ms * one.execution_count
        counts[one.at] = students + 1, runs + one.execution_count, sum_ms
    by_time = {one.at: one for one in percentiles}
    rows = []
    for at, (students, runs, sum_ms) in sorted(counts.items()):
        # A run between the two reads may make a bucket that only one of them knows.
        found = by_time.get(at)
        rows.append((at, students, runs, sum_ms / runs, found and found.p50_ms, found and found.p95_ms))
    return Table(
        ("at", "students", "execution_count", "avg_duration_ms", "p50_duration_ms", "p95_duration_ms"),
        ("time", "integer", "integer", "number", "number", "number"),
        rows,
    )


def _make_window(span: Span, bucket: str) -> Window:
    """Raises InvalidInput (NB-1206): more buckets than an answer holds."""
    if (span.end - span.start) / _BUCKETS[bucket] > BUCKETS_MAX:
        raise InvalidInput("NB-1206", limit=BUCKETS_MAX)
    return Window(span.start, span.end, _BUCKETS[bucket])


async def _find_scope(
    request: Request,
    course_id: str,
    *,
    start: datetime | None,
    end: datetime | None,
    notebook: str | None,
    default: timedelta,
) -> Scope:
    course = await get_context(request).history.find_course(parse_id(course_id))
    try:
        last = _place(end, course.zone) if end else datetime.now(UTC)
        first = _place(start, course.zone) if start else last - default
    except (OverflowError, ValueError) as error:  # a year that no zone knows
        raise InvalidInput("NB-1204") from error
    if not _FIRST <= first < last <= _LAST or last - first > SPAN_MAX:
        raise InvalidInput("NB-1204")
    return Scope(parse_id(course_id), course, Span(first, last), _parse_optional(notebook))


def _place(moment: datetime, zone: ZoneInfo) -> datetime:
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)


def _parse_optional(text: str | None) -> UUID | None:
    return parse_id(text) if text else None


def _make_cursor(table: Table) -> str:
    """The cursor of the page of sessions after this one."""
    last = dict(zip(table.columns, table.rows[-1], strict=True))
    return encode_cursor(Place(last["started_at"], last["id"]))


def read_place(cursor: str | None) -> Place | None:
    """Where the page before ended, in time. Raises InvalidInput (NB-1205): no cursor of ours."""
    if not cursor:
        return None
    place = decode_cursor(cursor, Place)
    try:
        return Place(place.started_at.astimezone(UTC), place.session_id)
    except (ValueError, OverflowError) as error:
        raise InvalidInput("NB-1205") from error


def _read_skip(cursor: str | None) -> int:
    """How many rows the pages before had. Raises InvalidInput (NB-1205): no cursor of ours."""
    return decode_cursor(cursor, _Skip) if cursor else 0


_Skip = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
_Where = TypeVar("_Where")


def encode_cursor(where: object) -> str:
    """Where a page ended, to be given back as it stands."""
    return base64.urlsafe_b64encode(msgspec.json.encode(where)).decode().rstrip("=")


def decode_cursor(cursor: str, kind: type[_Where]) -> _Where:
    """What `encode_cursor` made. Raises InvalidInput (NB-1205): no cursor of ours."""
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=kind)
    except (ValueError, OverflowError) as error:
        raise InvalidInput("NB-1205") from error
