"""History for the analyst: the specification's two queries and what else a course's staff ask of it.

Promises: every query is bounded by a course, a window and a limit, and answers with plain rows: columns and values in
one order for JSON and CSV alike; nothing sealed is opened; all is read as staff or analyst, so whoever is neither sees
none of it, and to an analyst `users` is empty: whom a row is about has no name for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta, tzinfo
from typing import Any, Final, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import asyncpg
import msgspec

from nbpulse.errors import NotFound
from nbpulse.metrics import PostgresQuery
from nbpulse.records.adding import add_up_durations, add_up_errors, add_up_recoveries
from nbpulse.records.gathering import connect_home, connect_parts
from nbpulse.records.people import People
from nbpulse.records.progress import DONE

ROWS_MAX: Final = 5_000

# A course's condition and its policy's say the same, which the planner takes for two: of a course among hundreds it
# expects one row, and would look up each row's notebook, and each row's student among all of the course's, one by one.
# So notebooks are read once beforehand or after grouping, students are an array, and names are asked of each student
# once, since the policy of `users` looks each of them up.
_SESSIONS = """
WITH known AS MATERIALIZED (SELECT id, path FROM notebooks WHERE course_id = $1), page AS MATERIALIZED (
    SELECT id, user_id, notebook_id, started_at, ended_at, total_duration_ms, cell_executions, error_count
    FROM learning_sessions WHERE course_id = $1 AND started_at >= $2 AND started_at < $3
        AND ($4::uuid IS NULL OR user_id = $4) AND ($5::uuid IS NULL OR notebook_id = $5)
        AND ($6::timestamptz IS NULL OR (started_at, id) < ($6, $7::uuid))
    ORDER BY started_at DESC, id DESC LIMIT $8
), named AS MATERIALIZED (SELECT id, username FROM users WHERE id = ANY(ARRAY(SELECT DISTINCT user_id FROM page)))
SELECT p.id, u.username, p.user_id, p.notebook_id, n.path AS notebook_path, p.started_at, p.ended_at,
    p.total_duration_ms, p.cell_executions, p.error_count
FROM page p LEFT JOIN named u ON u.id = p.user_id LEFT JOIN known n ON n.id = p.notebook_id
ORDER BY p.started_at DESC, p.id DESC
"""
_PROGRESS = f"""
WITH asked AS (SELECT id, course_id, path FROM notebooks WHERE course_id = $1 AND ($2::uuid IS NULL OR id = $2)), {DONE}
SELECT u.username, d.user_id, d.notebook_id, n.path AS notebook_path, d.completed AS completed_cells,
    t.total AS total_cells, round(100.0 * d.completed / t.total, 2)::float8 AS progress_percentage,
    d.last_at AS last_activity
FROM done d JOIN totals t USING (notebook_id) JOIN asked n ON n.id = d.notebook_id
    LEFT JOIN users u ON u.id = d.user_id
WHERE d.user_id = ANY(ARRAY(SELECT user_id FROM enrolments WHERE course_id = $1 AND role = 'student'))
ORDER BY n.path, u.username, d.user_id LIMIT $3 OFFSET $4
"""  # noqa: S608
_FAILING_CELLS = """
WITH asked AS (
    SELECT id, path FROM notebooks WHERE course_id = $1 AND ($2::uuid IS NULL OR id = $2)
), cell AS (
    SELECT notebook_id, cell_id, max(cell_index) AS cell_index, sum(attempt_count)::bigint AS attempts,
        sum(error_count)::bigint AS errors, count(*) AS students,
        count(*) FILTER (WHERE error_count > 0) AS failing_students,
        count(*) FILTER (WHERE error_count > 0 AND last_ok_at IS NULL) AS never_passed_students
    FROM learner_cells WHERE notebook_id = ANY(ARRAY(SELECT id FROM asked))
    GROUP BY notebook_id, cell_id HAVING sum(error_count) > 0
)
SELECT c.notebook_id, n.path AS notebook_path, c.cell_id, c.cell_index, c.attempts, c.errors, c.students,
    c.failing_students, c.never_passed_students
FROM cell c JOIN asked n ON n.id = c.notebook_id
ORDER BY failing_students DESC, errors DESC, cell_id, n.id LIMIT $3 OFFSET $4
"""
_COMMON_ERRORS = """
WITH alike AS (
    SELECT error_fingerprint, min(data->>'error_name') AS error_name, notebook_id, min(cell_id) AS cell_id,
        count(*) AS errors, count(DISTINCT user_id) AS students, min(occurred_at) AS first_at,
        max(occurred_at) AS last_at
    FROM events
    WHERE course_id = $1 AND occurred_at >= $2 AND occurred_at < $3 AND error_fingerprint IS NOT NULL
        AND ($4::uuid IS NULL OR notebook_id = $4)
    GROUP BY error_fingerprint, notebook_id
)
SELECT e.error_fingerprint AS fingerprint, e.error_name, e.notebook_id, n.path AS notebook_path, e.cell_id, e.errors,
    e.students, e.first_at, e.last_at
FROM alike e LEFT JOIN notebooks n ON n.id = e.notebook_id
ORDER BY students DESC, errors DESC, fingerprint, notebook_id LIMIT $5 OFFSET $6
"""
# The few figures are joined to their notebooks, not the many runs; MATERIALIZED: what is sorted carries no jsonb.
_SLOW_RUNS = """
WITH run AS MATERIALIZED (
    SELECT user_id, notebook_id, cell_id, cell_index, (data->>'execution_duration_ms')::float8 AS duration_ms
    FROM events WHERE course_id = $1 AND occurred_at >= $2 AND occurred_at < $3 AND event_type = 'cell_execution'
        AND cell_id IS NOT NULL AND ($4::uuid IS NULL OR notebook_id = $4) AND data->>'status' <> 'aborted'
)"""
_SLOW_CELLS = f"""{_SLOW_RUNS}, cell AS (
    SELECT notebook_id, cell_id, max(cell_index) AS cell_index, count(*) AS executions,
        count(DISTINCT user_id) AS students, avg(duration_ms) AS avg_ms,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY duration_ms) AS median_ms,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY duration_ms) AS p95_ms, max(duration_ms) AS max_ms
    FROM run WHERE duration_ms IS NOT NULL GROUP BY notebook_id, cell_id
)
SELECT c.notebook_id, n.path AS notebook_path, c.cell_id, c.cell_index, c.executions, c.students, c.avg_ms, c.median_ms,
    c.p95_ms, c.max_ms
FROM cell c LEFT JOIN notebooks n ON n.id = c.notebook_id ORDER BY p95_ms DESC, n.path, c.cell_id LIMIT $5 OFFSET $6
"""  # noqa: S608
# Walked backwards in time, the next ok is the smallest time of an ok so far: one pass, however often a cell was run.
_RECOVERIES = """
WITH run AS MATERIALIZED (
    SELECT user_id, notebook_id, cell_id, cell_index, occurred_at, sequence, ordinal, data->>'status' AS status
    FROM events WHERE course_id = $1 AND occurred_at >= $2 AND occurred_at < $3 AND event_type = 'cell_execution'
        AND cell_id IS NOT NULL AND ($4::uuid IS NULL OR notebook_id = $4)
), walked AS (
    SELECT *, min(occurred_at) FILTER (WHERE status = 'ok') OVER (PARTITION BY user_id, notebook_id, cell_id
        ORDER BY occurred_at DESC, sequence DESC, ordinal DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
        AS next_ok_at
    FROM run
), error AS (
    SELECT *, (extract(epoch FROM next_ok_at - occurred_at) * 1000)::float8 AS recovery_ms FROM walked
    WHERE status = 'error'
)"""
_RECOVERY_TIMES = f"""{_RECOVERIES}, cell AS (
    SELECT notebook_id, cell_id, max(cell_index) AS cell_index, count(*) AS errors,
        count(next_ok_at) AS recovered_errors, count(DISTINCT user_id) AS students,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY recovery_ms) AS median_ms,
        percentile_cont(0.9) WITHIN GROUP (ORDER BY recovery_ms) AS p90_ms
    FROM error GROUP BY notebook_id, cell_id
)
SELECT c.notebook_id, n.path AS notebook_path, c.cell_id, c.cell_index, c.errors, c.recovered_errors, c.students,
    c.median_ms, c.p90_ms
FROM cell c LEFT JOIN notebooks n ON n.id = c.notebook_id
ORDER BY median_ms DESC NULLS LAST, n.path, c.cell_id LIMIT $5 OFFSET $6
"""  # noqa: S608
# Percentiles of several databases are made of the values themselves: there is no figure that adds up to them.
_DURATIONS = f"""{_SLOW_RUNS}
SELECT r.notebook_id, n.path AS notebook_path, r.cell_id, max(r.cell_index) AS cell_index, count(*) AS executions,
    count(DISTINCT r.user_id) AS students, array_agg(r.duration_ms) AS values
FROM run r LEFT JOIN notebooks n ON n.id = r.notebook_id WHERE r.duration_ms IS NOT NULL
GROUP BY r.notebook_id, n.path, r.cell_id
"""  # noqa: S608
_RECOVERY_VALUES = f"""{_RECOVERIES}
SELECT e.notebook_id, n.path AS notebook_path, e.cell_id, max(e.cell_index) AS cell_index, count(*) AS errors,
    count(e.next_ok_at) AS recovered_errors, count(DISTINCT e.user_id) AS students,
    coalesce(array_agg(e.recovery_ms) FILTER (WHERE e.recovery_ms IS NOT NULL), '{{}}') AS values
FROM error e LEFT JOIN notebooks n ON n.id = e.notebook_id GROUP BY e.notebook_id, n.path, e.cell_id
"""  # noqa: S608
_TYPES: Final = {
    "uuid": "uuid",
    "int4": "integer",
    "int8": "integer",
    "float8": "number",
    "bool": "boolean",
    "timestamptz": "time",
}


class Table(msgspec.Struct, frozen=True):
    """Rows with their columns' names and types (text, uuid, integer, number, boolean, time), in one order."""

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: list[tuple[Any, ...]]


class Course(NamedTuple):
    """What an answer says of the course it is about."""

    short_name: str
    time_zone: str

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.time_zone)


class Span(NamedTuple):
    """`start` <= time < `end`, aware."""

    start: datetime
    end: datetime

    def first_day(self, zone: tzinfo) -> date:
        """The day there on which the window begins."""
        return self.start.astimezone(zone).date()

    def last_day(self, zone: tzinfo) -> date:
        """The last day there that the window has a part of: one that ends at midnight ends with the day before."""
        return (self.end - timedelta(microseconds=1)).astimezone(zone).date()


class Place(NamedTuple):
    """Where a page of sessions ended: its last row."""

    started_at: datetime
    session_id: UUID


class CourseHistory:
    """
    Reads one course's history: `limit` rows after the first `skip`.

    Every method raises Unavailable (NB-2003) when PostgreSQL is away.
    """

    def __init__(self, people: People) -> None:
        self._people = people

    async def find_course(self, course_id: UUID) -> Course:
        """The course's short name and time zone. Raises NotFound (NB-1202)."""
        async with self._people.connect("find_course", is_staff=True) as connection:
            row = await connection.fetchrow("SELECT short_name, time_zone FROM courses WHERE id = $1", course_id)
        if row is None:
            raise NotFound("NB-1202")
        return Course(**dict(row))

    async def list_sessions(
        self,
        course_id: UUID,
        span: Span,
        *,
        user_id: UUID | None,
        notebook_id: UUID | None,
        after: Place | None,
        limit: int,
    ) -> Table:
        """Learning sessions begun in the window, newest first: the specification's queries 1 and (one student) 2."""
        place = after or (None, None)
        values = (course_id, *span, user_id, notebook_id, *place, limit)
        if user_id is not None:
            async with connect_home(self._people, user_id, "sessions", is_staff=True) as connection:
                return await _read_table(connection, _SESSIONS, values)
        async with connect_parts(self._people, "sessions", is_staff=True) as parts:
            if parts.is_one:
                return await _read_table(parts.directory, _SESSIONS, values)
            rows = await parts.fetch(_SESSIONS, *values)
            newest = sorted(rows, key=lambda row: (row["started_at"], row["id"]), reverse=True)[:limit]
            return await _make_table(parts.directory, _SESSIONS, [dict(row) for row in newest])

    async def list_progress(self, course_id: UUID, notebook_id: UUID | None, limit: int, skip: int) -> Table:
        """Per student and notebook: cells (exercises where it has some) whose last run was ok; percentage 0..100."""
        return await self._read("progress", _PROGRESS, course_id, notebook_id, limit, skip)

    async def list_failing_cells(self, course_id: UUID, notebook_id: UUID | None, limit: int, skip: int) -> Table:
        """Cells by how many students failed on them."""
        return await self._read("failing_cells", _FAILING_CELLS, course_id, notebook_id, limit, skip)

    async def list_common_errors(
        self, course_id: UUID, span: Span, notebook_id: UUID | None, limit: int, skip: int
    ) -> Table:
        """Error groups by how many students met them; the messages themselves stay sealed."""
        values, page = (course_id, *span, notebook_id), (limit, skip)
        return await self._gather(
            "common_errors", _COMMON_ERRORS, values, page, of_part=(_COMMON_ERRORS, None, 0), add_up=add_up_errors
        )

    async def list_slow_cells(
        self, course_id: UUID, span: Span, notebook_id: UUID | None, limit: int, skip: int
    ) -> Table:
        """Cells by how long their runs took; aborted runs and those without a duration are no runs here."""
        values, page = (course_id, *span, notebook_id), (limit, skip)
        return await self._gather(
            "slow_cells", _SLOW_CELLS, values, page, of_part=(_DURATIONS,), add_up=add_up_durations
        )

    async def list_recovery_times(
        self, course_id: UUID, span: Span, notebook_id: UUID | None, limit: int, skip: int
    ) -> Table:
        """Cells by the time from each error in the window to the same student's next ok on it, still in the window."""
        values, page = (course_id, *span, notebook_id), (limit, skip)
        return await self._gather(
            "recovery_times", _RECOVERY_TIMES, values, page, of_part=(_RECOVERY_VALUES,), add_up=add_up_recoveries
        )

    async def _gather(
        self,
        name: PostgresQuery,
        query: str,
        values: tuple[object, ...],
        page: tuple[int, int],
        *,
        of_part: tuple[str, *tuple[object, ...]],
        add_up: Callable[[Iterable[Mapping[str, Any]]], list[dict[str, Any]]],
    ) -> Table:
        """
        A `page` (at most how many rows, after how many) of `query` at one database; of what `add_up` makes of several.

        `of_part`: what each of several is asked, and what its parameters are behind `values`.
        """
        limit, skip = page
        async with connect_parts(self._people, name, is_staff=True) as parts:
            if parts.is_one:
                return await _read_table(parts.directory, query, (*values, limit, skip))
            question, *more = of_part
            rows = add_up(await parts.fetch(question, *values, *more))
            return await _make_table(parts.directory, query, rows[skip : skip + limit])

    async def _read(self, name: PostgresQuery, query: str, *values: object) -> Table:
        async with self._people.connect(name, is_staff=True) as connection:
            return await _read_table(connection, query, values)


async def _read_table(connection: asyncpg.Connection, query: str, values: Sequence[object]) -> Table:
    columns = await _find_columns(connection, query)
    return Table(*columns, [tuple(row) for row in await connection.fetch(query, *values)])


async def _make_table(connection: asyncpg.Connection, query: str, rows: Iterable[Mapping[str, Any]]) -> Table:
    """Rows that were put together from several databases, as the table that `query` makes of one."""
    names, types = await _find_columns(connection, query)
    return Table(names, types, [tuple(row[name] for name in names) for row in rows])


_columns: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {}


async def _find_columns(connection: asyncpg.Connection, query: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and types of a query's columns, asked once: a statement made for them is planned anew each time it runs."""
    if query not in _columns:
        attributes = (await connection.prepare(query)).get_attributes()
        _columns[query] = (
            tuple(column.name for column in attributes),
            tuple(_TYPES.get(column.type.name, "text") for column in attributes),
        )
    return _columns[query]
