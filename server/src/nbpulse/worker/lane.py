"""One lane of a worker: read, process, acknowledge; what cannot be processed is found and buried.

What becomes of a failure is decided in one place, `Reader.finish`: Unavailable -> the same batch again; anything else
-> halve the batch until the one entry is found -> dead letter.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from nbpulse import events, metrics
from nbpulse.errors import PoisonEvent, Unavailable
from nbpulse.events import ReceivedEvent
from nbpulse.patience import Backoff, sleep_until
from nbpulse.pipeline import process_events
from nbpulse.records.dead_letters import DeadLetters
from nbpulse.resources import Resources
from nbpulse.stream import Delivery, EventStream, Lane

if TYPE_CHECKING:
    from nbpulse.worker import Worker

# From its third delivery on an entry is tried alone; alone it may fail to end twice (the worker died of it).
SUSPECT_DELIVERIES: Final = 3
SUSPECT_TRIES_MAX: Final = 2
_HALVED_EVENTS: Final = 200
# Events a few at a time cost twice as much each; boards look four times a second, so nobody sees this wait.
_GATHER_S: Final = 0.025
_NO_SHARDS_S: Final = 0.1
_BLOCK_MS: Final = 500
_POSTPONED_MS: Final = 25
_POSTPONED_MAX: Final = 2_000
_PACKAGE: Final = Path(__file__).parents[1]

_Decoded = tuple[Delivery, ReceivedEvent]
_log = structlog.get_logger(__name__)


class Reader:
    """One family of streams, read and finished batch by batch, of the shards that are this worker's."""

    def __init__(
        self, worker: Worker, lane: Lane, resources: Resources, stop: asyncio.Event, claim_idle_s: float
    ) -> None:
        self._worker = worker
        self._lane = lane
        self._stream: EventStream = resources.stream
        self._resources = resources
        self._letters = DeadLetters(resources.pool, resources.seal, resources.databases.find_home)
        self._stop = stop
        self._claim_idle_s = claim_idle_s
        self._claim_at = 0.0
        self.shards: Mapping[int, int] = {}
        """Of which something may be in hand."""
        self._adopted: Mapping[int, int] = {}
        self._busy_since: float | None = None
        self._took_at = 0.0
        self._backoff = Backoff(f"{lane} lane")
        # Neither stored nor acknowledged: their shard is between two databases, or their database is away.
        self._postponed: list[Delivery] = []
        # Suspects this process has begun to try, with how often others died of them before.
        self._deaths: dict[tuple[bytes, bytes], int] = {}

    async def run(self) -> None:
        """Read and finish batches until stopped, or until the breaker says that the fault is ours."""
        deliveries: list[Delivery] = []
        while not self._stop.is_set() and not self._worker.breaker.is_open:
            try:
                if not deliveries:
                    deliveries = await self._take()
                    self._busy_since = time.monotonic() if deliveries else None
                await self.finish(deliveries)
                deliveries = []
                self._busy_since = None
                self._backoff.reset()
            except Unavailable as error:
                await self._backoff.wait(error, self._stop)

    @property
    def is_stuck(self) -> bool:
        """Whether nothing of what is in hand could be done for so long that another worker shall try."""
        return self._busy_since is not None and time.monotonic() - self._busy_since > self._claim_idle_s

    async def finish(self, deliveries: Sequence[Delivery]) -> None:
        """
        Store, bury and acknowledge these; afterwards they are done, whatever they were.

        Raises Unavailable: then do the same again, what was stored is stored once.
        """
        if not deliveries:
            return
        with metrics.worker_batch_duration.time():
            fresh, suspects, unreadable = _sort(deliveries)
            await self._store_in_halves(fresh)
            for delivery, event in suspects:
                if self._resources.ledger.is_resting(event.user_id):
                    self._postpone([delivery])  # no fault of its own
                elif not self._worker.breaker.is_open:
                    await self._try_alone(delivery, event)
            for delivery, poison in unreadable:
                if not self._worker.breaker.is_open:
                    await self._bury(delivery, None, poison.code, str(poison.facts["detail"]))

    async def _take(self) -> list[Delivery]:
        """What another worker left unfinished, else what is new; runs are gathered for a moment, helps never wait."""
        loop = asyncio.get_running_loop()
        if self._lane == "events" and (early_s := self._took_at + _GATHER_S - loop.time()) > 0:
            await asyncio.sleep(early_s)
        self.shards = shards = self._worker.leases.reading
        if not shards:
            await sleep_until(_NO_SHARDS_S, self._stop)
            return []
        if fresh := [shard for shard, taking in shards.items() if self._adopted.get(shard) != taking]:
            away = await self._stream.adopt(self._lane, fresh)
            shards = {shard: taking for shard, taking in shards.items() if shard not in away}
        self._adopted = shards
        now = loop.time()
        if now >= self._claim_at:
            claimed = await self._stream.reclaim(self._lane, round(self._claim_idle_s * 1000), shards)
            if claimed:
                return claimed
            self._claim_at = now + self._claim_idle_s / 5
        block_ms = _POSTPONED_MS if self._postponed else _BLOCK_MS
        deliveries = await self._stream.read(self._lane, shards, block_ms=block_ms)
        self._took_at = loop.time()
        postponed, self._postponed = self._postponed, []
        # An entry that comes again meanwhile, having been pending for so long, is the same one.
        return list({(one.stream, one.entry_id): one for one in (*postponed, *deliveries)}.values())

    def _postpone(self, deliveries: Sequence[Delivery]) -> None:
        """To be tried again with the next batch; what does not fit stays pending, and is taken over in time."""
        room = max(0, _POSTPONED_MAX - len(self._postponed))
        self._postponed += deliveries[:room]

    async def _store_in_halves(self, batch: Sequence[_Decoded]) -> None:
        """A large batch in halves without a common student: PostgreSQL works at one while we work at the other."""
        if len(batch) < _HALVED_EVENTS:
            await self._store(batch)
            return
        halves = ([one for one in batch if one[1].user_id.int % 2 == rest] for rest in (0, 1))
        ends = await asyncio.gather(*(self._store(half) for half in halves), return_exceptions=True)
        for end in ends:
            if end is not None:
                raise end

    async def _store(self, batch: Sequence[_Decoded]) -> None:
        """Process and acknowledge; a batch that cannot be is halved until the entry that spoils it stands alone."""
        if not batch or self._worker.breaker.is_open:
            return  # not acknowledged: it waits for the mended worker
        received = [event for _, event in batch]
        try:
            recorded = await process_events(
                received, ledger=self._resources.ledger, publisher=self._resources.publisher
            )
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever one entry can provoke must not stop its neighbours
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._store(batch[:middle])
                await self._store(batch[middle:])
                return
            delivery, event = batch[0]
            await self._bury(delivery, event, getattr(error, "code", "NB-4002"), _describe(error))
            return
        late = recorded.postponed
        if late:
            self._postpone([one for one, event in batch if (event.user_id, event.event_id) in late])
        done = [one for one, event in batch if not late or (event.user_id, event.event_id) not in late]
        await self._ack(done)
        self._worker.note_stored(recorded)
        self._worker.breaker.note(len(done), failed=False)
        metrics.worker_events.labels("stored").inc(recorded.stored_count)
        metrics.worker_events.labels("duplicate").inc(recorded.duplicate_count)
        newest = max(event.received_at for event in received)
        lag_s = max(0.0, (datetime.now(UTC) - newest).total_seconds())
        metrics.worker_lag_seconds.set(lag_s)
        self._worker.lag_ms = round(lag_s * 1000)

    async def _ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._stream.ack(deliveries)
        self._busy_since = time.monotonic()

    async def _try_alone(self, delivery: Delivery, event: ReceivedEvent) -> None:
        """
        Process an entry that came back again and again; one the worker twice died of is buried untried.

        One that another worker has meanwhile taken over is left to it. A try is counted once in this process: trying
        again because a store was away is no death. Where the answer to the count was lost, the entry has one try more,
        rather than one too few.
        """
        name = (delivery.stream, delivery.entry_id)
        if name not in self._deaths:
            self._deaths[name] = 0
            deaths = await self._stream.suspect(delivery)
            if deaths is None:
                del self._deaths[name]
                return
            self._deaths[name] = deaths
        if self._deaths[name] >= SUSPECT_TRIES_MAX:
            await self._bury(delivery, event, "NB-4002", "the worker died of it")
        else:
            await self._store([(delivery, event)])
        if delivery not in self._postponed:
            del self._deaths[name]

    async def _bury(self, delivery: Delivery, event: ReceivedEvent | None, code: str, reason: str) -> None:
        await self._letters.bury(
            stream=delivery.stream,
            entry_id=delivery.entry_id,
            payload=delivery.payload,
            user_id=event.user_id if event else None,
            event_id=event.event_id if event else None,
            code=code,
            reason=reason,
            deliveries=delivery.deliveries,
        )
        await self._ack([delivery])
        _log.warning("worker.dead_letter", code=code, reason=reason, entry_id=delivery.entry_id.decode())
        metrics.worker_events.labels("dead_letter").inc()
        self._worker.breaker.note(1, failed=True)


def _sort(
    deliveries: Sequence[Delivery],
) -> tuple[list[_Decoded], list[_Decoded], list[tuple[Delivery, PoisonEvent]]]:
    """Those to be stored together, those to be tried alone, and those nobody can decode."""
    fresh: list[_Decoded] = []
    suspects: list[_Decoded] = []
    unreadable = []
    for delivery in deliveries:
        try:
            decoded = (delivery, events.decode(delivery.payload, delivery.entry))
        except PoisonEvent as poison:
            unreadable.append((delivery, poison))
            continue
        (suspects if delivery.deliveries >= SUSPECT_DELIVERIES else fresh).append(decoded)
    return fresh, suspects, unreadable


def _describe(error: Exception) -> str:
    """Kind and place of a failure, without its message: drivers quote the very text that we seal."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _PACKAGE in Path(frame.filename).parents]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
