"""The time series on PostgreSQL: raw points by month, minutes rolled up from them, and slots of ten from those.

A minute that got a point is stale until `refresh_rollups` has computed it anew from the raw points, and its slot with
it; queries take clean minutes or slots from the rollup and stale ones raw, in one snapshot, so they never differ from
the fold of the points. Raw points over more than an hour are never read for a percentile: rollups keep durations in
bins 2 % wide, per student and minute, and per course and ten minutes for windows that are asked for in such steps (by
who sees the whole course).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from nbpulse.errors import Unavailable
from nbpulse.identity import identify
from nbpulse.metrics import SeriesQuery, name_query, named_query
from nbpulse.pipeline import CellExecutionPoint, LearningProgressPoint, PerformancePoint, RejectedPoint, SeriesPoint
from nbpulse.timeseries import (
    Activity,
    ClassScope,
    Erasure,
    ErrorRate,
    Percentiles,
    Performance,
    Progress,
    Window,
    statements,
)
from nbpulse.timeseries.statements import MINUTE_NS

_REFRESH_LIMIT: Final = 5_000
_WRITES: Final = {LearningProgressPoint: statements.WRITE_PROGRESS, PerformancePoint: statements.WRITE_PERFORMANCE}

_encode = msgspec.json.Encoder().encode


class PostgresTimeSeries:
    """`timeseries.TimeSeriesStore` on the schema `timeseries`."""

    has_server = False

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def check(self) -> None:
        """One round trip. Raises Unavailable (NB-2005)."""
        await self._fetch("check", "SELECT 1")

    async def write_points(self, points: Sequence[SeriesPoint]) -> Sequence[RejectedPoint]:
        """Write points and mark their minutes stale, in one transaction; refuses none. Raises Unavailable (NB-2005)."""
        executions = _sort_points(point for point in points if isinstance(point, CellExecutionPoint))
        derived = {kind: _sort_points(point for point in points if isinstance(point, kind)) for kind in _WRITES}
        try:
            with name_query("write_points"):
                async with self._pool.acquire(timeout=5) as connection, connection.transaction():
                    if executions:
                        await connection.execute(statements.WRITE_EXECUTIONS, _encode(executions).decode())
                        await connection.execute(statements.MARK, *_list_minutes(executions))
                    for kind, rows in derived.items():
                        if rows:
                            await connection.execute(_WRITES[kind], _encode(rows).decode())
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
                stale = await connection.fetch(statements.LOCK_STALE, settle_s, _REFRESH_LIMIT)
                if not stale:
                    return 0
                # A statement of its own: its snapshot is taken after the locks and sees all that was marked.
                keys = [[row[name] for row in stale] for name in ("minute_ns", "user_id", "course_id")]
                await connection.execute(statements.CLEAR_ROLLUP, *keys)
                await connection.execute(statements.FILL_ROLLUP, *keys, min(keys[0]), max(keys[0]) + MINUTE_NS)
                await connection.execute(statements.CLEAR_STALE, *keys)
                await _refresh_slots(connection, stale)
                return len(stale)
        except _UNAVAILABLE as error:
            raise Unavailable("NB-2005") from error

    @named_query("erase_points")
    async def erase_points(self, erasure: Erasure) -> bool:
        """
        Delete points and what was rolled up of them. Durations that were counted together with others' are counted anew
        where the others' minutes are still there; where they are not, numbers stay that are nobody's any more.
        """
        values = list(erasure.user_ids), erasure.course_id
        try:
            async with self._pool.acquire(timeout=5) as connection, connection.transaction():
                for statement in statements.ERASE:
                    await connection.execute(statement, *values)
                slots = await connection.fetch(statements.FIND_SHARED_SLOTS, values[0])
                await _refresh_durations(connection, [(row["slot_ns"], row["course_id"]) for row in slots])
                await connection.execute(statements.FORGET_SLOT_PEOPLE, values[0])
                await connection.execute(statements.CLEAR_EMPTY_SLOTS)
        except _UNAVAILABLE as error:
            raise Unavailable("NB-2005") from error
        return True

    async def drop_before(self, raw: datetime | None, derived: datetime | None) -> bool:  # noqa: ARG002 - the contract's
        """Nothing: its tables go with the others (records/retention.py)."""
        return True

    async def read_points(self, user_id: UUID) -> list[dict[str, Any]]:  # noqa: ARG002 - the contract's
        """Nothing: its tables are read with the others (records/exporting.py)."""
        return []

    async def query_activity(self, window: Window, scope: ClassScope | None = None) -> list[Activity]:
        """Mean and count of the duration per bucket and user. Raises Unavailable (NB-2005)."""
        rows = await self._add_up("query_activity", statements.SLOT_ACTIVITY, statements.MINUTE_ACTIVITY, window, scope)
        return [
            Activity(_to_time(row["at_ns"]), row["user_id"], row["avg_duration_ms"], row["execution_count"])
            for row in rows
        ]

    async def query_error_rate(self, window: Window, scope: ClassScope | None = None) -> list[ErrorRate]:
        """Errors and executions per bucket and notebook. Raises Unavailable (NB-2005)."""
        by_slot, by_minute = statements.SLOT_ERROR_RATE, statements.MINUTE_ERROR_RATE
        rows = await self._add_up("query_error_rate", by_slot, by_minute, window, scope)
        return [
            ErrorRate(_to_time(row["at_ns"]), row["notebook_path"], row["error_count"], row["total_executions"])
            for row in rows
        ]

    async def query_percentiles(self, window: Window, scope: ClassScope | None = None) -> list[Percentiles]:
        """p50 and p95 of the duration per bucket, to 1 % of the nearest rank's. Raises Unavailable (NB-2005)."""
        by_minute = statements.MINUTE_PERCENTILES
        by_slot = statements.SLOT_PERCENTILES if scope is None or scope.is_whole else None
        rows = await self._add_up("query_percentiles", by_slot, by_minute, window, scope)
        return [
            Percentiles(_to_time(at_ns), _estimate_duration(p50), _estimate_duration(p95), count)
            for at_ns, (p50, p95), count in rows
        ]

    async def query_progress(self, window: Window, scope: ClassScope | None = None) -> list[Progress]:
        """The last standing per bucket, student and notebook. Raises Unavailable (NB-2005)."""
        rows = await self._fetch("query_progress", statements.PROGRESS, *_bind(window, scope))
        return [Progress(_to_time(at_ns), *values) for at_ns, *values in rows]

    async def query_performance(self, window: Window, scope: ClassScope | None = None) -> list[Performance]:
        """Times and error rates per bucket, notebook and cell type. Raises Unavailable (NB-2005)."""
        rows = await self._fetch("query_performance", statements.PERFORMANCE, *_bind(window, scope))
        return [Performance(_to_time(at_ns), *values) for at_ns, *values in rows]

    async def _add_up(
        self, name: SeriesQuery, by_slot: str | None, by_minute: str, window: Window, scope: ClassScope | None
    ) -> list[Any]:
        """A window from the coarsest rollup whose units its buckets consist of."""
        if by_slot is None or _to_ns(window.bucket) % statements.SLOT_NS:
            return await self._fetch(name, by_minute, *_bind(window, scope), *_find_whole(window))
        return await self._fetch(name, by_slot, *_bind(window, scope), *_find_whole(window, statements.SLOT_NS))

    async def _fetch(self, name: SeriesQuery, query: str, *values: object) -> list[Any]:
        """`values`: none, or those of `_bind` first."""
        if values and values[3] is None:
            query = statements.ask_of_all(query)
        try:
            with name_query(name):
                acquiring = self._pool.acquire(timeout=5)
            async with acquiring as connection, connection.transaction():
                await connection.execute(identify())
                rows: list[Any] = await connection.fetch(query, *values, timeout=10)
        except _UNAVAILABLE as error:
            raise Unavailable("NB-2005") from error
        return rows


async def _refresh_slots(connection: asyncpg.Connection, stale: Sequence[asyncpg.Record]) -> None:
    """Make the slots of these minutes anew; of two who do so the second sees what the first rolled up."""
    found = {(row["minute_ns"] // statements.SLOT_NS * statements.SLOT_NS, row["course_id"]) for row in stale}
    slots = sorted(found, key=lambda slot: (slot[0], slot[1].int))
    for slot in slots:
        await connection.execute(statements.LOCK_SLOT, *slot)
    keys = [slot[0] for slot in slots], [slot[1] for slot in slots]
    for statement in (statements.CLEAR_SLOTS, statements.FILL_SLOTS):
        await connection.execute(statement, *keys)
    await _refresh_durations(connection, slots)


async def _refresh_durations(connection: asyncpg.Connection, slots: Sequence[tuple[int, UUID]]) -> None:
    keys = [slot[0] for slot in slots], [slot[1] for slot in slots]
    for statement in (statements.CLEAR_DURATIONS, statements.FILL_DURATIONS):
        await connection.execute(statement, *keys)


def _sort_points(points: Iterable[SeriesPoint]) -> list[SeriesPoint]:
    """
    Each point once, the last of equals, in one order: two workers that write the same students' points never wait for
    each other in a circle.
    """
    unique = {_get_key(point): point for point in points}
    return [unique[key] for key in sorted(unique)]


def _get_key(point: SeriesPoint) -> tuple[int | str, ...]:
    # By the id's number: comparing UUIDs costs ten times as much.
    match point:
        case CellExecutionPoint():
            return point.user_id.int, point.time_ns
        case LearningProgressPoint():
            return point.user_id.int, point.time_ns, point.course_id.int, point.notebook_path
        case PerformancePoint():
            return point.user_id.int, point.time_ns, point.course_id.int, point.notebook_path, point.cell_type


def _list_minutes(points: Sequence[SeriesPoint]) -> tuple[list[int], list[UUID], list[UUID]]:
    """The minutes, students and courses of the points, each once, in the key's order."""
    marks = {
        (point.time_ns // MINUTE_NS * MINUTE_NS, point.user_id.int, point.course_id.int): point for point in points
    }
    keys = sorted(marks)
    return [key[0] for key in keys], [marks[key].user_id for key in keys], [marks[key].course_id for key in keys]


def _bind(window: Window, scope: ClassScope | None) -> tuple[object, ...]:
    """Start and end of the window and the bucket, in ns; the course and the people, or None for all."""
    bounds = _to_ns(window.start - _EPOCH), _to_ns(window.end - _EPOCH), _to_ns(window.bucket)
    return (*bounds, scope.course_id, list(scope.user_ids)) if scope else (*bounds, None, None)


def _find_whole(window: Window, unit_ns: int = MINUTE_NS) -> tuple[int, int]:
    """From and to which ns the window consists of whole minutes (or `unit_ns`); (end, end) where it holds none."""
    start_ns, end_ns = _to_ns(window.start - _EPOCH), _to_ns(window.end - _EPOCH)
    first_ns, last_ns = -(-start_ns // unit_ns) * unit_ns, end_ns // unit_ns * unit_ns
    return (first_ns, last_ns) if first_ns < last_ns else (end_ns, end_ns)


def _estimate_duration(bin_number: int) -> float:
    """The duration in ms that stands for a bin, within 1 % of each in it."""
    if bin_number == statements.ZERO_BIN:
        return 0.0
    return 2 * statements.GAMMA**bin_number / (statements.GAMMA + 1)


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
