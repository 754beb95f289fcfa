"""A run of the ledger as a point of the time series: when it is stored, and when the series is rebuilt."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from nbpulse import classroom
from nbpulse.crypto import EncryptedField
from nbpulse.pipeline import CellExecutionPoint, RejectedPoint
from nbpulse.shards import get_shard_number

_READ_BATCH: Final = 5_000
_WINDOW = "event_type = 'cell_execution' AND occurred_at >= $1 AND occurred_at < $2"
_READ = f"""
SELECT e.user_id, e.occurred_at, e.ordinal, e.course_id, n.path, e.cell_index, e.data, e.error_message FROM events e
LEFT JOIN notebooks n ON n.id = e.notebook_id WHERE {_WINDOW} ORDER BY e.occurred_at, e.user_id, e.ordinal
"""  # noqa: S608 - constants
_READ_CHOSEN_BATCH: Final = 500
_READ_CHOSEN = """
SELECT e.user_id, e.occurred_at, e.ordinal, e.course_id, n.path, e.cell_index, e.data, e.error_message
FROM {chosen} c JOIN events e USING (event_id) LEFT JOIN notebooks n ON n.id = e.notebook_id
WHERE e.user_id = $1 AND e.event_type = 'cell_execution' ORDER BY e.ordinal
"""
_SET_ASIDE = """
INSERT INTO series_rejects (user_id, shard, time_ns, reason, measurement) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (user_id, shard, time_ns, measurement) DO UPDATE SET reason = excluded.reason, at = now()
"""


def make_point(
    user_id: UUID,
    course_id: UUID,
    occurred_at: datetime,
    ordinal: int,
    *,
    path: str,
    cell_index: int | None,
    data: Mapping[str, Any],
    full_text: bool,
) -> CellExecutionPoint:
    """
    The point of one `cell_execution`; `data` as on the wire, `path` the course notebook's. Of an error's text it bears
    the masked one, or with `full_text` the student's own, up to 2,000 characters.
    """
    has_error = data.get("status") == "error"
    message = None
    if has_error:
        name = str(data.get("error_name") or "Error")
        said = str(data.get("error_message") or "")
        message = f"{name}: {said}"[:2_000] if full_text else f"{name}: {classroom.normalise_message(name, said)}"[:200]
    duration_ms = data.get("execution_duration_ms")
    return CellExecutionPoint(
        user_id=user_id,
        time_ns=round(occurred_at.timestamp() * 1000) * 1_000_000 + ordinal % 1_000_000,
        notebook_path=path,
        cell_index=cell_index,
        event_type="cell_execution",
        execution_duration_ms=None if duration_ms is None else float(duration_ms),
        has_error=has_error,
        error_message=message,
        execution_count=data.get("execution_count"),
        course_id=course_id,
    )


async def set_aside(connection: asyncpg.Connection, rejected: Sequence[RejectedPoint]) -> None:
    """Note what the time-series store refused for good, with its reason."""
    rows = [(one.user_id, get_shard_number(one.user_id), one.time_ns, one.reason, one.measurement) for one in rejected]
    await connection.executemany(_SET_ASIDE, rows)


async def count_runs(pool: asyncpg.Pool, start: datetime, end: datetime) -> int:
    """How many points the ledger holds of `start` <= occurred_at < `end`. Owner's login."""
    count: int = await pool.fetchval(f"SELECT count(*) FROM events WHERE {_WINDOW}", start, end)  # noqa: S608
    return count


async def read_points(
    pool: asyncpg.Pool, seal: EncryptedField, start: datetime, end: datetime, *, full_text: bool
) -> AsyncIterator[list[CellExecutionPoint]]:
    """The points of the window as they were made when their events were stored, in batches. Owner's login."""
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        cursor = await connection.cursor(_READ, start, end)
        while rows := await cursor.fetch(_READ_BATCH):
            yield [_read_point(row, seal, full_text) for row in rows]


async def read_chosen(
    connection: asyncpg.Connection, seal: EncryptedField, user_id: UUID, chosen: str, *, full_text: bool
) -> AsyncIterator[list[CellExecutionPoint]]:
    """The same of one user's events that the table `chosen` names, inside the caller's transaction."""
    cursor = await connection.cursor(_READ_CHOSEN.format(chosen=chosen), user_id)
    while rows := await cursor.fetch(_READ_CHOSEN_BATCH):
        yield [_read_point(row, seal, full_text) for row in rows]


def _read_point(row: asyncpg.Record, seal: EncryptedField, full_text: bool) -> CellExecutionPoint:
    data = json.loads(row["data"])
    if row["error_message"] is not None:
        sealed = row["error_message"]
        data["error_message"] = seal.unseal(sealed, table="events", column="error_message", user_id=row["user_id"])
    return make_point(
        row["user_id"],
        row["course_id"],
        row["occurred_at"],
        row["ordinal"],
        path=row["path"] or "",
        cell_index=row["cell_index"],
        data=data,
        full_text=full_text,
    )


async def replace_rejects(
    pool: asyncpg.Pool, start: datetime, end: datetime, rejected: Sequence[RejectedPoint]
) -> None:
    """What was set aside of the window is written now, but for `rejected`. Owner's login."""
    bounds = [round(moment.timestamp() * 1000) * 1_000_000 for moment in (start, end)]
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("DELETE FROM series_rejects WHERE time_ns >= $1 AND time_ns < $2", *bounds)
        await set_aside(connection, rejected)
