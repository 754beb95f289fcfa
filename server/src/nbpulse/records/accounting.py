"""What became of each entry of the stream, counted once: stored, duplicate, quarantined or dropped.

Promises: a count is part of the transaction that did what it counts; an entry that comes again (its worker died between
commit and acknowledgement, or it was taken over from one that only slept) is recognised and not counted again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

import asyncpg

from nbpulse.errors import Unavailable
from nbpulse.events import ReceivedEvent
from nbpulse.metrics import named_query
from nbpulse.records.failures import UNAVAILABLE

EventKey = tuple[UUID, UUID]
"""(user_id, event_id)"""
# Counters in several rows: a row is locked until its transaction ends, and batches must not wait for each other.
_SLOTS = 16
_COUNT = """
WITH spent AS (
    INSERT INTO spent_entries (stream, entry_id, outcome)
    SELECT stream, entry_id, $4 FROM unnest($2::text[], $3::text[]) AS k(stream, entry_id)
    ON CONFLICT DO NOTHING RETURNING outcome
)
INSERT INTO event_counts AS c (slot, stored, duplicate, dropped)
SELECT $1, $5, count(*) FILTER (WHERE outcome = 'duplicate'), count(*) FILTER (WHERE outcome = 'dropped') FROM spent
ON CONFLICT (slot) DO UPDATE SET stored = c.stored + excluded.stored, duplicate = c.duplicate + excluded.duplicate,
    dropped = c.dropped + excluded.dropped
"""
_READ_TOTAL = "SELECT coalesce(sum(stored + duplicate + quarantined + dropped), 0)::bigint FROM event_counts"
_FIND_BASE = "SELECT base FROM stream_bases WHERE generation = $1"
_MAKE_BASE = "INSERT INTO stream_bases (generation, base) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING base"
# One statement, so one snapshot: what is committed meanwhile is in both or in neither.
_COUNT_MISSING = """
SELECT (SELECT coalesce(sum(stored - removed), 0)::bigint FROM event_counts) - (SELECT count(*) FROM events)
"""
_IS_MOVING = "SELECT EXISTS (SELECT FROM shard_moves)"
_FORGET = "DELETE FROM spent_entries WHERE at < now() - interval '7 days'"


async def count_batch(
    connection: asyncpg.Connection,
    events: Sequence[ReceivedEvent],
    *,
    stored_by: Mapping[EventKey, str | None],
    stored_count: int,
) -> None:
    """
    Count a batch inside its transaction: `stored_count` are new, and every other entry stored nothing, unless it is
    the very one that once stored its event (`stored_by`: event -> id of that entry).
    """
    spent = sorted(
        event.entry
        for event in events
        if event.entry and event.entry[1] != stored_by.get((event.user_id, event.event_id))
    )
    if spent or stored_count:
        await _count(connection, events[0].user_id, spent, "duplicate", stored_count)


async def count_dropped(pool: asyncpg.Pool, events: Iterable[ReceivedEvent]) -> None:
    """Count entries of people or courses that are no more. Raises what the driver raises."""
    await count_dropped_entries(pool, [event.entry for event in events if event.entry])


@named_query("count_dropped")
async def count_dropped_entries(pool: asyncpg.Pool, entries: Iterable[tuple[str, str]]) -> None:
    """The same, of entries (stream, id) that nobody need have decoded."""
    if dropped := sorted(entries):
        async with pool.acquire(timeout=5) as connection:
            await _count(connection, UUID(int=0), dropped, "dropped", 0)


async def _count(
    connection: asyncpg.Connection,
    user_id: UUID,
    spent: Sequence[tuple[str, str]],
    outcome: Literal["duplicate", "dropped"],
    stored_count: int,
) -> None:
    streams, ids = [one[0] for one in spent], [one[1] for one in spent]
    await connection.execute(_COUNT, user_id.int % _SLOTS, streams, ids, outcome, stored_count)


class Accounts:
    """
    The counters as a whole, of the directory and of `list_others` (further databases of students' rows). Every method
    raises Unavailable (NB-2003) when one of them is away.
    """

    def __init__(self, pool: asyncpg.Pool, list_others: Callable[[], Iterable[asyncpg.Pool]] = lambda: ()) -> None:
        self._pool = pool
        self._list_others = list_others

    async def read_total(self) -> int:
        """Entries counted so far, of every stream server there was."""
        return sum([int(await self._ask(_READ_TOTAL, pool=pool)) for pool in (self._pool, *self._list_others())])

    async def find_base(self, generation: str) -> int | None:
        """What the total stood at when this stream server had had nothing acknowledged; None: never seen before."""
        base: int | None = await self._ask(_FIND_BASE, generation)
        return base

    async def make_base(self, generation: str, base: int) -> None:
        """Take a stream server as it stands from now on; the first to say so holds."""
        await self._ask(_MAKE_BASE, generation, base)

    async def count_missing_rows(self) -> int | None:
        """
        Ledger rows that were stored, not removed on purpose, and are not there; None while a shard is being moved,
        whose rows are in two databases. Reads an index of every row.
        """
        others = list(self._list_others())
        if others and await self._ask(_IS_MOVING):
            return None
        return sum([int(await self._ask(_COUNT_MISSING, timeout_s=900, pool=pool)) for pool in (self._pool, *others)])

    @named_query("read_accounts")
    async def _ask(self, query: str, *values: object, timeout_s: float = 5, pool: asyncpg.Pool | None = None) -> Any:
        try:
            return await (pool or self._pool).fetchval(query, *values, timeout=timeout_s)
        except UNAVAILABLE as error:
            raise Unavailable("NB-2003") from error


async def forget_spent(pool: asyncpg.Pool) -> None:
    """Forget entries spent a week ago: nobody holds them in hand any more. Raises Unavailable (NB-2003)."""
    try:
        await pool.execute(_FORGET, timeout=60)
    except UNAVAILABLE as error:
        raise Unavailable("NB-2003") from error
