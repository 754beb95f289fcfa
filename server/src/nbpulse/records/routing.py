"""The ledger over all databases of the map: each event to the one that holds its student's shard.

Promises: at one database it adds nothing; a batch is one transaction in each of its databases; a shard that is being
moved, and a database that is away, hold up their own students alone: their events are postponed, the others go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final
from uuid import UUID, uuid4

import asyncpg
import msgspec

from nbpulse.crypto import EncryptedField
from nbpulse.errors import Unavailable
from nbpulse.events import ReceivedEvent
from nbpulse.pipeline import Recorded, RejectedPoint
from nbpulse.records import rollups
from nbpulse.records.databases import Databases, NotHere
from nbpulse.records.failures import UNAVAILABLE
from nbpulse.records.learners import UsersMerged
from nbpulse.records.ledger import PostgresLedger
from nbpulse.records.notebooks import NotebookDirectory
from nbpulse.shards import MAIN, get_shard_number

# A shard that is between two databases is there within a second; one whose move was killed waits for the next.
_SHARD_REST_S: Final = 0.02
_DATABASE_REST_S: Final = 0.2
ROLLUP_AGE_S: Final = 5.0
_NOTHING: Final = Recorded((), (), 0, 0, None)


class RoutedLedger:
    """`pipeline.Ledger` on every database of the map."""

    def __init__(self, databases: Databases, seal: EncryptedField, *, full_texts: bool = False) -> None:
        self._databases = databases
        self._seal = seal
        self._full_texts = full_texts
        self._notebooks = NotebookDirectory()
        self._ledgers: dict[str, PostgresLedger] = {}
        self._rests: dict[int | str, float] = {}

    def is_resting(self, user_id: UUID) -> bool:
        """Whether events of this student would be postponed, untried."""
        number = get_shard_number(user_id)
        now = time.monotonic()
        return any(self._rests.get(key, 0.0) > now for key in (number, self._databases.places[number].database))

    async def record_events(self, events: Sequence[ReceivedEvent]) -> Recorded:
        """
        Store `events` (1..1000) where they belong, but for those that are to wait (`postponed`).

        Raises Unavailable (NB-2003) when the directory is away; what leaves `PostgresLedger.record_events` else.
        """
        debt_id = uuid4()
        parts: dict[str, list[ReceivedEvent]] = {}
        waiting = []
        for event in events:
            if self._rests and self.is_resting(event.user_id):
                waiting.append(event)
            else:
                place = self._databases.places[get_shard_number(event.user_id)]
                parts.setdefault(place.database, []).append(event)
        if len(parts) == 1 and not waiting:
            ((name, part),) = parts.items()
            return await self._record_part(name, part, debt_id)
        ends = await asyncio.gather(
            *(self._record_part(name, part, debt_id) for name, part in parts.items()), return_exceptions=True
        )
        done = [_postpone(waiting)] if waiting else []
        for end in ends:
            if isinstance(end, BaseException):
                raise end
            done.append(end)
        return done[0] if len(done) == 1 else _add_up(done)

    async def _record_part(self, name: str, part: list[ReceivedEvent], debt_id: UUID) -> Recorded:
        began_s = time.monotonic()
        try:
            return await self._find_ledger(name).record_events(part, debt_id=debt_id)
        except NotHere as moved:
            self._rest(moved.shards, _SHARD_REST_S)
            await self._databases.refresh()
            kept = [event for event in part if get_shard_number(event.user_id) not in moved.shards]
            left = [event for event in part if get_shard_number(event.user_id) in moved.shards]
            stored = await self._record_part(name, kept, debt_id) if kept else _NOTHING
            return _add_up([stored, _postpone(left)])
        except UsersMerged as merged:
            return await self._record_merged(part, merged.into)
        except Unavailable as error:
            if name == MAIN:
                raise
            if error.code != "NB-2003":
                rest_s = _SHARD_REST_S
            elif isinstance(error.__cause__, TimeoutError):
                # Four times as long as it took to find out: one that hangs must not hold up the others' batches.
                rest_s = 4 * (time.monotonic() - began_s)
            else:
                rest_s = _DATABASE_REST_S
            self._rest([name], rest_s)
            return _postpone(part)

    async def _record_merged(self, part: list[ReceivedEvent], into: Mapping[UUID, UUID]) -> Recorded:
        """
        As the users they have become, wherever these are; what is to wait is named as it came.

        A batch of its own, with a debt of its own: in one of these databases the first batch may have left its own.
        """
        renamed = [msgspec.structs.replace(one, user_id=into.get(one.user_id, one.user_id)) for one in part]
        recorded = await self.record_events(renamed)
        waiting = [
            one for one, new in zip(part, renamed, strict=True) if (new.user_id, new.event_id) in recorded.postponed
        ]
        return msgspec.structs.replace(recorded, postponed=_postpone(waiting).postponed)

    def _rest(self, keys: Iterable[int | str], rest_s: float) -> None:
        now = time.monotonic()
        self._rests = {key: until for key, until in self._rests.items() if until > now}
        self._rests.update(dict.fromkeys(keys, now + rest_s))

    def _find_ledger(self, name: str) -> PostgresLedger:
        found = self._ledgers.get(name)
        if found is None:
            found = self._ledgers[name] = PostgresLedger(
                self._databases.get_pool(name),
                self._seal,
                self._notebooks,
                full_texts=self._full_texts,
                directory=None if name == MAIN else self._databases.main,
                get_places=lambda: self._databases.places,
            )
        return found

    async def settle_debt(self, debt_id: UUID, rejected: Sequence[RejectedPoint] = ()) -> None:
        """The batch's points are written, or set aside: delete its debt everywhere. Raises Unavailable (NB-2003)."""
        places = self._databases.places
        for name in self._databases.pools:
            theirs = [one for one in rejected if places[get_shard_number(one.user_id)].database == name]
            await self._find_ledger(name).settle_debt(debt_id, theirs)

    async def find_debts(self, older_than_s: float, limit: int = 20) -> list[Recorded]:
        """Batches whose points are still owed, the oldest of each database first. Raises Unavailable (NB-2003)."""
        found: list[Recorded] = []

        async def find(name: str) -> None:
            found.extend(await self._find_ledger(name).find_debts(older_than_s, limit))

        await self._in_each(find, has_answer=lambda: bool(found))
        return found

    async def close_idle_sessions(self) -> None:
        """Close sessions without an event for 30 minutes. Raises Unavailable (NB-2003)."""
        await self._in_each(lambda name: self._find_ledger(name).close_idle_sessions())

    async def keep_rollups(self) -> None:
        """Make up for what killed workers did not bring to the directory. Raises Unavailable (NB-2003)."""
        if len(self._databases.pools) == 1:
            return
        await self._in_each(lambda name: self._find_ledger(name).pay_rollups(ROLLUP_AGE_S))

    async def forget_runs(self) -> None:
        """What the directory knows of runs of more than a day ago. Raises Unavailable (NB-2003)."""
        if len(self._databases.pools) == 1:
            return
        try:
            await rollups.forget_runs(self._databases.main)
        except UNAVAILABLE as error:
            raise Unavailable("NB-2003") from error

    def get_show_delay_s(self) -> float:
        """How long after an event was stored the directory may not show it yet, in s; 0 where it stores all."""
        return rollups.SHOWN_S if len(self._databases.pools) > 1 else 0.0

    async def finish(self) -> None:
        """Bring to the directory what this process still owes it, within 2 s."""
        await asyncio.gather(*(ledger.finish() for ledger in self._ledgers.values()))

    async def in_each(self, job: Callable[[asyncpg.Pool], Awaitable[object]]) -> None:
        """
        Do a job in every database, one after the other. Raises Unavailable where one was away, when the others are
        done.
        """
        await self._in_each(lambda name: job(self._databases.get_pool(name)))

    async def _in_each(
        self, job: Callable[[str], Awaitable[object]], has_answer: Callable[[], bool] = lambda: False
    ) -> None:
        failure: Unavailable | None = None
        for name in list(self._databases.pools):
            try:
                await job(name)
            except Unavailable as error:
                failure = error
        if failure is not None and not has_answer():
            raise failure


def _postpone(events: Iterable[ReceivedEvent]) -> Recorded:
    return msgspec.structs.replace(_NOTHING, postponed=frozenset((one.user_id, one.event_id) for one in events))


def _add_up(parts: Sequence[Recorded]) -> Recorded:
    return Recorded(
        states=tuple(state for part in parts for state in part.states),
        points=tuple(point for part in parts for point in part.points),
        stored_count=sum(part.stored_count for part in parts),
        duplicate_count=sum(part.duplicate_count for part in parts),
        debt_id=next((part.debt_id for part in parts if part.debt_id is not None), None),
        postponed=frozenset().union(*(part.postponed for part in parts)),
    )
