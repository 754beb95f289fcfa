"""Retention: what is older than the operator keeps it goes, month by month, and it is said what went.

Promises: one at a time (a lock); nothing that is kept is touched; nobody waits for it longer than 3 s; the ledger's
account stays right. A month goes when the whole of it is older, so a row is kept for up to a month longer than said.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import asyncpg
import msgspec
import structlog

from nbpulse.errors import Unavailable
from nbpulse.metrics import named_query
from nbpulse.records.audit import note_audit
from nbpulse.records.failures import UNAVAILABLE

_BATCH_ROWS: Final = 10_000
_BATCHES_MAX: Final = 500
_log = structlog.get_logger(__name__)


class Retention(msgspec.Struct, frozen=True):
    """Days to keep: events, their contents, messages and raw points; sessions and derived points. 0: for ever."""

    raw_days: int
    session_days: int

    def find_limits(self, now: datetime) -> tuple[datetime | None, datetime | None]:
        """Before which moments each kind goes: the beginnings of months."""
        return _find_month(now, self.raw_days), _find_month(now, self.session_days)


FOR_EVER: Final = Retention(0, 0)


class OuterSeries(Protocol):
    """Time series that are not in PostgreSQL."""

    async def drop_before(self, raw: datetime | None, derived: datetime | None) -> bool:
        """Delete older points."""


async def keep_retention(pool: asyncpg.Pool, series: OuterSeries, retention: Retention) -> None:
    """The worker's job: what is due goes, and the log says what. Raises Unavailable."""
    if dropped := await drop_expired(pool, retention):
        _log.info("worker.retention", **{name.replace(".", "_"): count for name, count in dropped.items()})
    await series.drop_before(*retention.find_limits(datetime.now(UTC)))


def _find_month(now: datetime, days: int) -> datetime | None:
    if not days:
        return None
    return (now - timedelta(days=days)).astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


@named_query("drop_expired")
async def drop_expired(pool: asyncpg.Pool, retention: Retention, *, is_real: bool = True) -> dict[str, int]:
    """
    Rows by table or month that went, or with `is_real` False would go. Raises Unavailable (NB-2003), also while
    somebody holds a table: what went has gone, the rest goes the next time.
    """
    limits = retention.find_limits(datetime.now(UTC))
    total: dict[str, int] = {}
    try:
        async with pool.acquire(timeout=5) as connection:
            async with connection.transaction():
                months = await connection.fetch("SELECT * FROM drop_expired_months($1, $2, $3)", *limits, is_real)
                found = {row["name"]: row["count"] for row in months}
                await _note(connection, found, is_real=is_real)
            _add(total, found)
            for _ in range(_BATCHES_MAX if is_real else 1):
                async with connection.transaction():
                    query = "SELECT * FROM delete_expired_rows($1, $2, $3, $4)"
                    rows = await connection.fetch(query, *limits, _BATCH_ROWS, is_real)
                    found = {row["name"]: row["count"] for row in rows}
                    await _note(connection, found, is_real=is_real)
                if not found:
                    break
                _add(total, found)
    except (*UNAVAILABLE, asyncpg.LockNotAvailableError) as error:
        raise Unavailable("NB-2003") from error
    return total


async def _note(connection: asyncpg.Connection, found: Mapping[str, int], *, is_real: bool) -> None:
    if found and is_real:
        facts = {"tables_or_months": len(found), "rows": sum(found.values())}
        await note_audit(connection, "retention_applied", facts=facts)


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        total[name] = total.get(name, 0) + count
