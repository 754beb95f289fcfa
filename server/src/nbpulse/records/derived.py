"""`learning_progress` and `performance_metrics`: points worked out from the ledger, never added up.

Promises: they are a pure function of the ledger and of what is known of the notebooks now, so that order, repeats and
lateness never show, and making them again gives the same; what is marked (marks.py) is made anew from there on; no row
is locked while the time-series store is written, so the ledger never waits for it. Runs are `cell_execution` events;
aborted ones are none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from nbpulse.errors import Unavailable
from nbpulse.metrics import named_query
from nbpulse.pipeline import SERIES_DEADLINE_S, LearningProgressPoint, PerformancePoint, SeriesPoint, TimeSeries
from nbpulse.records.failures import UNAVAILABLE
from nbpulse.records.marks import UPSERT
from nbpulse.records.points import set_aside
from nbpulse.records.progress import ITEMS
from nbpulse.records.sessions import IDLE_LIMIT_S

_JOB_LOCK: Final = 6_622_004
MARKS_MAX: Final = 50
ANEW_MAX: Final = 5
_ANEW_REST: Final = 9  # times as long as it took: a tenth of one core
_ROUNDS_MAX: Final = 100
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_WRITE_POINTS_MAX: Final = 2_000

# $1 to $3 the marks: students, notebooks, since when; $4 the end (null: none).
_MARK = """
mark AS (
    SELECT k.place, k.user_id, k.notebook_id, k.since, n.course_id, n.path
    FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) WITH ORDINALITY AS k(user_id, notebook_id, since, place)
    JOIN notebooks n ON n.id = k.notebook_id
)"""
# By the student's sessions in the notebook: they lead to their events by index, and to the months to look in.
# OFFSET 0: as bounds of one relation they are conditions of the index, of two they would be a filter behind it.
_EVENTS = """
FROM (
    SELECT k.*, s.id AS session_id, greatest(s.started_at, {start}) AS first_at, s.last_activity_at AS last_at
    FROM {mark} k JOIN learning_sessions s ON s.user_id = k.user_id AND s.notebook_id = k.notebook_id
        AND s.last_activity_at >= {start}
    OFFSET 0
) k JOIN events e ON e.user_id = k.user_id AND e.learning_session_id = k.session_id
    AND e.occurred_at >= k.first_at AND e.occurred_at <= k.last_at"""
_IS_RUN = "event_type = 'cell_execution' AND data->>'status' IS DISTINCT FROM 'aborted'"
# What lies before a mark's slot is only added up: who has completed what (of two runs at one moment sequence, then the
# status' name decides, as in learners.py; 1 is ok), and each session's active time (as in sessions.py). From there on a
# run changes how many items are complete by 1, 0 or -1 against the run before it on the same item.
# These sums are kept as the standing at that moment ($5: whether to use and keep them), so that the next mark reads no
# event older than this one's. Whatever a standing does not know of has left a mark from before it: it is not used then,
# and made anew.
# The planner knows nothing of how many rows these steps have: items are looked up in one JSON object per notebook and
# sums are kept, or it might compare every run with every cell, or add up anew for each.
_PROGRESS = f"""
WITH {_MARK}, asked AS (SELECT DISTINCT notebook_id AS id, course_id FROM mark), {ITEMS},
held AS MATERIALIZED (
    SELECT k.*, coalesce(h.until, '-infinity') AS until, coalesce(h.oks, '{{}}') AS oks,
        coalesce(h.sessions, '{{}}') AS sessions
    FROM mark k LEFT JOIN series_standings h ON $5::bool AND h.user_id = k.user_id AND h.notebook_id = k.notebook_id
        AND h.until <= k.since
), map AS MATERIALIZED (SELECT notebook_id, jsonb_object_agg(cell_id, item) AS items FROM items GROUP BY notebook_id),
event AS MATERIALIZED (
    SELECT *, date_part('epoch', occurred_at - coalesce(lag(occurred_at)
        OVER (PARTITION BY place, session_id ORDER BY occurred_at), held_at)) AS gap_s
    FROM (
        SELECT k.place, (k.sessions -> k.session_id::text ->> 1)::timestamptz AS held_at,
            k.session_id, e.event_id, e.occurred_at, e.sequence,
            m.items ->> e.cell_id::text AS item, {_IS_RUN} AS is_run,
            CASE data->>'status' WHEN 'ok' THEN 1 WHEN 'unknown' THEN 2 ELSE 0 END AS status,
            e.occurred_at >= date_bin('10 seconds', k.since, TIMESTAMPTZ 'epoch') AS is_new
        {_EVENTS.format(mark="held", start="k.until")} LEFT JOIN map m ON m.notebook_id = k.notebook_id
        OFFSET 0 -- else whole JSON objects would be sorted
    ) narrow
), before AS MATERIALIZED (
    SELECT place, oks, (SELECT count(*) FROM jsonb_each(oks) WHERE value = '1') AS completed FROM (
        SELECT k.place, k.oks || coalesce(jsonb_object_agg(item, ok) FILTER (WHERE item IS NOT NULL), '{{}}') AS oks
        FROM held k LEFT JOIN (
            SELECT place, item,
                ((max(ARRAY[(date_part('epoch', occurred_at) * 1e6)::bigint, sequence, status]))[3] = 1)::int AS ok
            FROM event WHERE is_run AND NOT is_new AND item IS NOT NULL GROUP BY place, item
        ) last USING (place) GROUP BY k.place, k.oks
    ) all_of_them
), active AS MATERIALIZED (
    SELECT place, session_id, sum(us)::bigint AS us, max(last_at) AS last_at FROM (
        SELECT place, session_id, CASE WHEN gap_s <= {IDLE_LIMIT_S} THEN (gap_s * 1e6)::bigint ELSE 0 END AS us,
            occurred_at AS last_at
        FROM event WHERE NOT is_new
        UNION ALL
        SELECT place, key::uuid, (value ->> 0)::bigint, (value ->> 1)::timestamptz FROM held, jsonb_each(sessions)
    ) parts GROUP BY place, session_id
), kept AS (
    INSERT INTO series_standings AS h (user_id, shard, notebook_id, until, oks, sessions)
    SELECT m.user_id, m.shard, m.notebook_id, date_bin('10 seconds', k.since, TIMESTAMPTZ 'epoch'), b.oks,
        coalesce((SELECT jsonb_object_agg(session_id, jsonb_build_array(us, last_at)) FROM active a
                  WHERE a.place = k.place), '{{}}')
    FROM mark k JOIN before b USING (place)
        JOIN series_marks m ON m.user_id = k.user_id AND m.notebook_id = k.notebook_id
    WHERE $5::bool ORDER BY m.user_id, m.notebook_id
    ON CONFLICT (user_id, shard, notebook_id) DO UPDATE
        SET until = excluded.until, oks = excluded.oks, sessions = excluded.sessions
), timed AS (
    SELECT e.*, coalesce(a.us, 0) + coalesce(sum((gap_s * 1e6)::bigint) FILTER (WHERE gap_s <= {IDLE_LIMIT_S})
        OVER (PARTITION BY e.place, e.session_id ORDER BY e.occurred_at), 0) AS active_us
    FROM event e LEFT JOIN active a USING (place, session_id) WHERE e.is_new
), step AS (
    SELECT t.*, coalesce(b.completed, 0) AS completed_before, CASE WHEN t.item IS NULL THEN 0 ELSE
        (t.status = 1)::int - coalesce(
            lag((t.status = 1)::int) OVER (PARTITION BY t.place, t.item ORDER BY t.occurred_at, t.sequence, t.status),
            (b.oks ->> t.item)::int, 0) END AS change
    FROM timed t LEFT JOIN before b USING (place) WHERE t.is_run
), standing AS MATERIALIZED (
    SELECT *, date_bin('10 seconds', occurred_at, TIMESTAMPTZ 'epoch') AS slot,
        completed_before + sum(change) OVER (PARTITION BY place ORDER BY occurred_at, sequence, status) AS completed
    FROM step
)
SELECT DISTINCT ON (k.user_id, k.notebook_id, s.slot) k.user_id, k.course_id, k.notebook_id, k.path,
    extract(epoch FROM s.slot)::bigint AS at_s, s.completed::int, coalesce(t.total, 0) AS total,
    coalesce(round(100.0 * s.completed / nullif(t.total, 0), 2), 0)::float8 AS percentage,
    round(s.active_us / 1000)::bigint AS active_ms
FROM standing s JOIN mark k USING (place) LEFT JOIN totals t USING (notebook_id)
WHERE $4::timestamptz IS NULL OR s.slot < $4
ORDER BY k.user_id, k.notebook_id, s.slot, s.occurred_at DESC, s.sequence DESC, s.status DESC, s.event_id DESC
"""  # noqa: S608 - constants
# Durations in their own order: else the last digit of a mean would depend on how the rows lie.
_PERFORMANCE = f"""
WITH {_MARK}, run AS (
    SELECT k.*, coalesce(e.cell_type, 'code') AS cell_type, data->>'status' = 'error' AS has_error,
        (data->>'execution_duration_ms')::float8 AS duration_ms,
        date_bin('1 minute', e.occurred_at, TIMESTAMPTZ 'epoch') AS minute
    {_EVENTS.format(mark="mark", start="date_bin('1 minute', k.since, TIMESTAMPTZ 'epoch')")}
    WHERE {_IS_RUN}
)
SELECT user_id, course_id, notebook_id, path, extract(epoch FROM minute)::bigint AS at_s, cell_type,
    avg(duration_ms ORDER BY duration_ms) AS avg_ms, max(duration_ms) AS max_ms,
    count(*) FILTER (WHERE has_error)::float8 / count(*) AS error_rate
FROM run WHERE $4::timestamptz IS NULL OR minute < $4
GROUP BY user_id, course_id, notebook_id, path, minute, cell_type ORDER BY user_id, notebook_id, minute, cell_type
"""  # noqa: S608 - constants
# What is to be made from the beginning is as much work as many small additions, hence behind these, and fewer at once.
_READ_MARKS = f"""
SELECT user_id, shard, notebook_id, since, revision FROM (
    SELECT *, sum(CASE WHEN since = 'epoch' THEN {MARKS_MAX // ANEW_MAX} ELSE 1 END)
        OVER (ORDER BY since = 'epoch', marked_at, user_id, notebook_id) AS work
    FROM (SELECT * FROM series_marks ORDER BY since = 'epoch', marked_at, user_id, notebook_id LIMIT $1) first
) weighed WHERE work <= $1 ORDER BY work
"""  # noqa: S608 - constants
# One that the ledger has in hand has news coming: it is left, not waited for.
_DELETE_MARKS = """
WITH paid AS (
    SELECT m.user_id, m.shard, m.notebook_id FROM series_marks m
    JOIN unnest($1::uuid[], $2::smallint[], $3::uuid[], $4::bigint[]) AS k(user_id, shard, notebook_id, revision)
        USING (user_id, shard, notebook_id, revision)
    ORDER BY m.user_id, m.shard, m.notebook_id FOR UPDATE OF m SKIP LOCKED
)
DELETE FROM series_marks m USING paid p
WHERE (m.user_id, m.shard, m.notebook_id) = (p.user_id, p.shard, p.notebook_id)
"""
# What counts in a notebook, as one digest: where it is another than at the last look, everybody's points are.
_MARK_CHANGED = f"""
WITH asked AS (
    SELECT id, course_id FROM notebooks
    WHERE items_marked_at IS NULL OR items_marked_at < now() - $1 * interval '1 second'
), {ITEMS}, looked AS (
    SELECT a.id, md5(coalesce(string_agg(i.cell_id || E'\\x1f' || i.item, E'\\x1e' ORDER BY i.cell_id COLLATE "C"), ''))
        AS digest FROM asked a LEFT JOIN items i ON i.notebook_id = a.id GROUP BY a.id
), changed AS (
    UPDATE notebooks n SET items_digest = looked.digest, items_marked_at = now() FROM looked
    WHERE n.id = looked.id AND n.items_digest IS DISTINCT FROM looked.digest RETURNING n.id, n.course_id
)
INSERT INTO series_marks AS m (user_id, shard, notebook_id, since)
SELECT DISTINCT s.user_id, s.shard, s.notebook_id, TIMESTAMPTZ 'epoch'
FROM learning_sessions s JOIN changed c ON s.course_id = c.course_id AND s.notebook_id = c.id
WHERE s.shard IN (SELECT shard FROM shard_owners WHERE is_here)
ORDER BY s.user_id, s.shard, s.notebook_id
{UPSERT}"""  # noqa: S608 - constants
_FIND_WORK = """
SELECT DISTINCT user_id, notebook_id FROM learning_sessions
WHERE started_at < $2 AND last_activity_at >= $1 AND notebook_id IS NOT NULL ORDER BY user_id, notebook_id
"""

Work = tuple[UUID, UUID]
"""A student and a notebook."""


@named_query("mark_changed_notebooks")
async def mark_changed_notebooks(pool: asyncpg.Pool, rest_s: float = 60) -> None:
    """
    Mark all work in notebooks whose countable cells or exercises have changed; each at most once in `rest_s`.

    Raises Unavailable (NB-2003).
    """
    try:
        async with pool.acquire(timeout=5) as connection, connection.transaction():
            if await _take_turn(connection):
                await connection.execute(_MARK_CHANGED, rest_s, timeout=30)
    except UNAVAILABLE as error:
        raise Unavailable("NB-2003") from error


@named_query("pay_marks")
async def pay_marks(pool: asyncpg.Pool, series: TimeSeries) -> int:
    """
    Make the points of what is marked and write them; how many marks were read. One worker at a time.

    Raises Unavailable: the database (NB-2003) or the store (NB-2005) is away; what was not written stays marked.
    """
    paid = 0
    try:
        for _ in range(_ROUNDS_MAX):
            started = time.monotonic()
            async with pool.acquire(timeout=5) as connection, connection.transaction():
                if not await _take_turn(connection):
                    break
                read = await connection.fetch(_READ_MARKS, MARKS_MAX)
                await _pay(connection, read, series)
            paid += len(read)
            is_anew = any(row["since"] == _EPOCH for row in read)
            if len(read) < (ANEW_MAX if is_anew else MARKS_MAX):
                break
            # Nobody waits for these points: most of the time is left to those who wait for theirs.
            await asyncio.sleep((time.monotonic() - started) * (_ANEW_REST if is_anew else 1))
    except UNAVAILABLE as error:
        raise Unavailable("NB-2003") from error
    return paid


async def _take_turn(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", _JOB_LOCK))


async def _pay(connection: asyncpg.Connection, marks: Sequence[asyncpg.Record], series: TimeSeries) -> None:
    """Between its statements this transaction holds neither a row's lock nor a snapshot."""
    if not marks:
        return
    columns = [[row[name] for row in marks] for name in ("user_id", "shard", "notebook_id", "since", "revision")]
    user_ids, shards, notebook_ids, since, revisions = columns
    # Else a class's runs are sorted on disk; and InfluxDB may take longer than a worker's transaction may pause.
    await connection.execute("SET LOCAL work_mem = '32MB'; SET LOCAL idle_in_transaction_session_timeout = 0")
    points = await _make_points(connection, user_ids, notebook_ids, since, from_standings=True)
    for start in range(0, len(points), _WRITE_POINTS_MAX):
        try:
            async with asyncio.timeout(SERIES_DEADLINE_S):
                rejected = await series.write_points(points[start : start + _WRITE_POINTS_MAX])
        except TimeoutError as error:
            raise Unavailable("NB-2005") from error
        await set_aside(connection, rejected)
    await connection.execute(_DELETE_MARKS, user_ids, shards, notebook_ids, revisions)


async def _make_points(
    connection: asyncpg.Connection | asyncpg.Pool,
    user_ids: Sequence[UUID],
    notebook_ids: Sequence[UUID],
    since: Sequence[datetime],
    until: datetime | None = None,
    *,
    from_standings: bool,
) -> list[SeriesPoint]:
    """
    Both measurements' points of each student in a notebook, from the slot and minute of `since` on; worked out from
    the standings, which are brought up to `since`, or from the beginning.
    """
    points: list[SeriesPoint] = [
        LearningProgressPoint(
            **_place(row),
            completed_cells=row["completed"],
            total_cells=row["total"],
            progress_percentage=row["percentage"],
            session_duration_ms=row["active_ms"],
        )
        for row in await connection.fetch(_PROGRESS, user_ids, notebook_ids, since, until, from_standings)
    ]
    points += [
        PerformancePoint(
            **_place(row),
            cell_type=row["cell_type"],
            avg_execution_time=row["avg_ms"],
            max_execution_time=row["max_ms"],
            error_rate=row["error_rate"],
        )
        for row in await connection.fetch(_PERFORMANCE, user_ids, notebook_ids, since, until)
    ]
    return points


def _place(row: asyncpg.Record) -> dict[str, Any]:
    # The notebook's own nanoseconds: one path in two courses must not make one point of two.
    time_ns = row["at_s"] * 1_000_000_000 + row["notebook_id"].int % 1_000_000
    return {
        "user_id": row["user_id"],
        "course_id": row["course_id"],
        "time_ns": time_ns,
        "notebook_path": row["path"],
    }


async def find_work(pool: asyncpg.Pool, start: datetime, end: datetime) -> list[Work]:
    """Who was at which notebook in the window. Owner's login."""
    return [(row["user_id"], row["notebook_id"]) for row in await pool.fetch(_FIND_WORK, start, end)]


async def read_derived_points(
    pool: asyncpg.Pool, work: Sequence[Work], start: datetime, end: datetime
) -> AsyncIterator[tuple[int, list[SeriesPoint]]]:
    """How many of `work` each time, and their points of slots and minutes in the window. Owner's login."""
    for first in range(0, len(work), MARKS_MAX):
        part = work[first : first + MARKS_MAX]
        user_ids, notebook_ids = [one[0] for one in part], [one[1] for one in part]
        points = await _make_points(pool, user_ids, notebook_ids, [start] * len(part), end, from_standings=False)
        yield len(part), points
