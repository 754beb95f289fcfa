"""The time series on PostgreSQL: raw points by month, and minutes rolled up from them.

A minute that got a point is stale until `refresh_rollups` has computed it anew from the raw points; queries take clean
minutes from the rollup and stale ones raw, in one snapshot, so they never differ from the fold of the points.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from nbpulse.errors import Unavailable
from nbpulse.identity import identify
from nbpulse.metrics import SeriesQuery, name_query, named_query
from nbpulse.pipeline import CellExecutionPoint, RejectedPoint
from nbpulse.timeseries import Activity, ErrorRate, Percentiles, Window

_MINUTE_NS: Final = 60_000_000_000
_REFRESH_LIMIT: Final = 5_000

# As JSON: for a thousand points half the price of nine arrays, on this side.
_WRITE = """
INSERT INTO timeseries.cell_executions AS c (user_id, time_ns, notebook_path, cell_index, event_type,
    execution_duration_ms, has_error, error_message, execution_count)
SELECT * FROM json_to_recordset($1::json) AS k(user_id uuid, time_ns bigint, notebook_path text, cell_index int,
    event_type text, execution_duration_ms float8, has_error boolean, error_message text, execution_count int)
ON CONFLICT (user_id, time_ns) DO UPDATE SET notebook_path = excluded.notebook_path, cell_index = excluded.cell_index,
    event_type = excluded.event_type, execution_duration_ms = excluded.execution_duration_ms,
    has_error = excluded.has_error, error_message = excluded.error_message, execution_count = excluded.execution_count
"""
# DO UPDATE, not DO NOTHING: it takes the row's lock, so that a refresh that is about to clear the mark waits for these
# points, or these points wait for it and mark the minute again.
_MARK = """
INSERT INTO timeseries.stale_minutes (minute_ns, user_id) SELECT * FROM unnest($1::bigint[], $2::uuid[])
ON CONFLICT (minute_ns, user_id) DO UPDATE SET minute_ns = excluded.minute_ns
"""
_LOCK_STALE = """
SELECT minute_ns, user_id FROM timeseries.stale_minutes
WHERE minute_ns < extract(epoch FROM now() - $1 * interval '1 second')::bigint * 1000000000 - 60000000000
ORDER BY minute_ns, user_id LIMIT $2 FOR UPDATE SKIP LOCKED
"""
_CLEAR_ROLLUP = """
DELETE FROM timeseries.cell_executions_1m r USING unnest($1::bigint[], $2::uuid[]) AS k(minute_ns, user_id)
WHERE (r.minute_ns, r.user_id) = (k.minute_ns, k.user_id)
"""
_FILL_ROLLUP = """
INSERT INTO timeseries.cell_executions_1m (minute_ns, user_id, notebook_path, execution_count, timed_count,
    duration_sum_ms, error_count)
SELECT k.minute_ns, k.user_id, e.notebook_path, count(*), count(e.execution_duration_ms),
    coalesce(sum(e.execution_duration_ms), 0), count(*) FILTER (WHERE e.has_error)
FROM unnest($1::bigint[], $2::uuid[]) AS k(minute_ns, user_id) JOIN timeseries.cell_executions e
    ON e.user_id = k.user_id AND e.time_ns >= k.minute_ns AND e.time_ns < k.minute_ns + 60000000000
WHERE e.time_ns >= $3 AND e.time_ns < $4
GROUP BY k.minute_ns, k.user_id, e.notebook_path
"""
_CLEAR_STALE = """
DELETE FROM timeseries.stale_minutes s USING unnest($1::bigint[], $2::uuid[]) AS k(minute_ns, user_id)
WHERE (s.minute_ns, s.user_id) = (k.minute_ns, k.user_id)
"""
# $1..$2 the window, $3..$4 its whole minutes, $5 the people (null = all), $6 the bucket; the parts never overlap.
_PARTS = """
WITH part AS (
    SELECT r.minute_ns AS time_ns, r.user_id, r.notebook_path, r.execution_count, r.timed_count, r.duration_sum_ms,
        r.error_count
    FROM timeseries.cell_executions_1m r
    WHERE r.minute_ns >= $3 AND r.minute_ns < $4 AND ($5::uuid[] IS NULL OR r.user_id = ANY($5))
        AND NOT EXISTS (SELECT FROM timeseries.stale_minutes s
                        WHERE s.minute_ns = r.minute_ns AND s.user_id = r.user_id)
    UNION ALL
    SELECT e.time_ns, e.user_id, e.notebook_path, 1, (e.execution_duration_ms IS NOT NULL)::int,
        coalesce(e.execution_duration_ms, 0), e.has_error::int
    FROM timeseries.stale_minutes s JOIN timeseries.cell_executions e
        ON e.user_id = s.user_id AND e.time_ns >= s.minute_ns AND e.time_ns < s.minute_ns + 60000000000
    WHERE s.minute_ns >= $3 AND s.minute_ns < $4 AND e.time_ns >= $3 AND e.time_ns < $4
        AND ($5::uuid[] IS NULL OR s.user_id = ANY($5))
    UNION ALL
    SELECT e.time_ns, e.user_id, e.notebook_path, 1, (e.execution_duration_ms IS NOT NULL)::int,
        coalesce(e.execution_duration_ms, 0), e.has_error::int
    FROM timeseries.cell_executions e
    WHERE e.time_ns >= $1 AND e.time_ns < $2 AND (e.time_ns < $3 OR e.time_ns >= $4)
        AND ($5::uuid[] IS NULL OR e.user_id = ANY($5))
)
"""
_ACTIVITY = f"""
{_PARTS} SELECT time_ns / $6 * $6 AS at_ns, user_id, sum(duration_sum_ms) / sum(timed_count) AS avg_duration_ms,
    sum(timed_count)::bigint AS execution_count
FROM part GROUP BY at_ns, user_id HAVING sum(timed_count) > 0 ORDER BY at_ns, user_id
"""  # noqa: S608
_ERROR_RATE = f"""
{_PARTS} SELECT time_ns / $6 * $6 AS at_ns, notebook_path, sum(error_count)::bigint AS error_count,
    sum(execution_count)::bigint AS total_executions
FROM part GROUP BY at_ns, notebook_path ORDER BY at_ns, notebook_path
"""  # noqa: S608
_PERCENTILES = """
SELECT time_ns / $4 * $4 AS at_ns, percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY execution_duration_ms) AS p,
    count(*) AS execution_count
FROM timeseries.cell_executions
WHERE time_ns >= $1 AND time_ns < $2 AND execution_duration_ms IS NOT NULL
    AND ($3::uuid[] IS NULL OR user_id = ANY($3))
GROUP BY at_ns ORDER BY at_ns
"""


_encode = msgspec.json.Encoder().encode


class PostgresTimeSeries:
    """`timeseries.TimeSeriesStore` on the schema `timeseries`."""

    has_server = False

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def check(self) -> None:
        """One round trip. Raises Unavailable (NB-2005)."""
        await self._fetch("check", "SELECT 1")

    async def write_points(self, points: Sequence[CellExecutionPoint]) -> Sequence[RejectedPoint]:
        """Write points and mark their minutes stale, in one transaction; refuses none. Raises Unavailable (NB-2005)."""
        # In key order: two workers that write the same students' points never wait for each other in a circle.
        # (By the id's number: comparing UUIDs costs ten times as much.)
        unique = {(point.user_id.int, point.time_ns): point for point in points}
        rows = [unique[key] for key in sorted(unique)]
        if not rows:
            return ()
        marks = {(point.time_ns // _MINUTE_NS * _MINUTE_NS, point.user_id.int): point.user_id for point in rows}
        minutes = [(minute_ns, marks[minute_ns, number]) for minute_ns, number in sorted(marks)]
        try:
            with name_query("write_points"):
                async with self._pool.acquire(timeout=5) as connection, connection.transaction():
                    await connection.execute(_WRITE, _encode(rows).decode())
                    await connection.execute(_MARK, [one[0] for one in minutes], [one[1] for one in minutes])
        except _UNAVAILABLE as error:
            raise Unavailable("NB-2005") from error
        return ()

    @named_query("refresh_rollups")
    async def refresh_rollups(self, settle_s: float = 5) -> int:
        """
        Compute stale minutes that ended at least `settle_s` ago anew from their points; how many there were.

        Several workers may do so at once: each takes what no other has in hand. Raises Unavailable (NB-2005).
        """
        try:
            async with self._pool.acquire(timeout=5) as connection, connection.transaction():
                stale = await connection.fetch(_LOCK_STALE, settle_s, _REFRESH_LIMIT)
                if not stale:
                    return 0
                # A statement of its own: its snapshot is taken after the locks and sees all that was marked.
                keys = [row["minute_ns"] for row in stale], [row["user_id"] for row in stale]
                await connection.execute(_CLEAR_ROLLUP, *keys)
                await connection.execute(_FILL_ROLLUP, *keys, min(keys[0]), max(keys[0]) + _MINUTE_NS)
                await connection.execute(_CLEAR_STALE, *keys)
                return len(stale)
        except _UNAVAILABLE as error:
            raise Unavailable("NB-2005") from error

    async def query_activity(self, window: Window, user_ids: Sequence[UUID] | None = None) -> list[Activity]:
        """Mean and count of the duration per bucket and user. Raises Unavailable (NB-2005)."""
        rows = await self._fetch("query_activity", _ACTIVITY, *_bound(window), user_ids, _to_ns(window.bucket))
        return [
            Activity(_to_time(row["at_ns"]), row["user_id"], row["avg_duration_ms"], row["execution_count"])
            for row in rows
        ]

    async def query_error_rate(self, window: Window, user_ids: Sequence[UUID] | None = None) -> list[ErrorRate]:
        """Errors and executions per bucket and notebook. Raises Unavailable (NB-2005)."""
        rows = await self._fetch("query_error_rate", _ERROR_RATE, *_bound(window), user_ids, _to_ns(window.bucket))
        return [
            ErrorRate(_to_time(row["at_ns"]), row["notebook_path"], row["error_count"], row["total_executions"])
            for row in rows
        ]

    async def query_percentiles(self, window: Window, user_ids: Sequence[UUID] | None = None) -> list[Percentiles]:
        """p50 and p95 of the duration per bucket. Raises Unavailable (NB-2005)."""
        start_ns, end_ns = _bound(window)[:2]
        rows = await self._fetch("query_percentiles", _PERCENTILES, start_ns, end_ns, user_ids, _to_ns(window.bucket))
        return [Percentiles(_to_time(row["at_ns"]), row["p"][0], row["p"][1], row["execution_count"]) for row in rows]

    async def _fetch(self, name: SeriesQuery, query: str, *values: object) -> list[Any]:
        try:
            with name_query(name):
                acquiring = self._pool.acquire(timeout=5)
            async with acquiring as connection, connection.transaction():
                await connection.execute(identify())
                rows: list[Any] = await connection.fetch(query, *values, timeout=10)
        except _UNAVAILABLE as error:
            raise Unavailable("NB-2005") from error
        return rows


def _bound(window: Window) -> tuple[int, int, int, int]:
    """The window in ns, and the whole minutes inside it; (end, end) where it holds no whole minute."""
    start_ns, end_ns = _to_ns(window.start - _EPOCH), _to_ns(window.end - _EPOCH)
    first_ns, last_ns = -(-start_ns // _MINUTE_NS) * _MINUTE_NS, end_ns // _MINUTE_NS * _MINUTE_NS
    return (start_ns, end_ns, first_ns, last_ns) if first_ns < last_ns else (start_ns, end_ns, end_ns, end_ns)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _to_ns(span: timedelta) -> int:
    return span // timedelta(microseconds=1) * 1000


def _to_time(time_ns: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time_ns // 1000)


_UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection died between a question and its answer
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
)
