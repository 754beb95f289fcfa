"""The worker: reads deliveries, has them processed, acknowledges them last, and looks after what that leaves behind.

Promises: an entry is acknowledged only once it is stored or buried as a dead letter, so that kill -9 at any point costs
a redelivery and nothing else; one bad entry never stops its neighbours, and many bad ones stop the worker, not the
events; a store that is away is waited for with the batch in hand; helps have a lane of their own.

What becomes of a failure is decided in one place, `_Lane.finish`: Unavailable -> the same batch again; anything else ->
halve the batch until the one entry is found -> dead letter.
"""

from __future__ import annotations

import asyncio
import gc
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from nbpulse import events, metrics
from nbpulse.accounting import Auditor
from nbpulse.errors import PoisonEvent, Unavailable
from nbpulse.events import ReceivedEvent
from nbpulse.patience import Backoff, Breaker, sleep_until
from nbpulse.pipeline import Recorded, measure, process_events
from nbpulse.records import derived, interventions, meetings, upkeep
from nbpulse.records.accounting import Accounts, forget_spent
from nbpulse.records.audit import find_anchor
from nbpulse.records.dead_letters import DeadLetters
from nbpulse.records.retention import FOR_EVER, Retention, keep_retention
from nbpulse.resources import Resources
from nbpulse.stream import LANES, Delivery, EventStream, Lane

DRAIN_S: Final = 10.0
DEBT_AGE_S: Final = 5.0
SWEEP_S: Final = 15.0
MARKS_S: Final = 10.0
# From its third delivery on an entry is tried alone; alone it may fail to end twice (the worker died of it).
SUSPECT_DELIVERIES: Final = 3
SUSPECT_TRIES_MAX: Final = 2
_MEASURE_QUEUE_MAX: Final = 16
_HALVED_EVENTS: Final = 200
# Events a few at a time cost twice as much each; boards look four times a second, so nobody sees this wait.
_GATHER_S: Final = 0.025
_POSTPONED_MS: Final = 25
_POSTPONED_MAX: Final = 2_000

_Decoded = tuple[Delivery, ReceivedEvent]
_log = structlog.get_logger(__name__)


class Worker:
    """One worker process at work: two lanes, the measuring behind them and the periodic jobs."""

    def __init__(self, resources: Resources, stop: asyncio.Event, claim_idle_s: float, kept: Retention) -> None:
        self._resources = resources
        self._stop = stop
        self._claim_idle_s = claim_idle_s
        self._kept = kept
        self._to_measure: asyncio.Queue[Recorded] = asyncio.Queue(_MEASURE_QUEUE_MAX)
        self._accounts = Accounts(resources.pool, resources.databases.list_others)
        self.auditor = Auditor(resources.stream, self._accounts)
        self.breaker = Breaker()
        self.lag_ms = 0
        self._anchor_due_at = 0.0

    async def run(self) -> None:
        """Work until `stop`; then finish the batches in hand, within 10 s, and measure what is stored."""
        pool, series, ledger = self._resources.pool, self._resources.series, self._resources.ledger
        in_each = ledger.in_each
        background = [
            asyncio.create_task(self._measure_stored()),
            asyncio.create_task(self._repeat("trim", 1.0, self._resources.stream.trim)),
            asyncio.create_task(self._repeat("backlog", 1.0, self._watch_stream)),
            asyncio.create_task(self._repeat("audit", 1.0, self.auditor.audit)),
            asyncio.create_task(self._repeat("spent_entries", 3600.0, lambda: in_each(forget_spent))),
            asyncio.create_task(self._repeat("shard_map", 10.0, self._resources.databases.refresh)),
            asyncio.create_task(self._repeat("rollups_owed", 5.0, ledger.keep_rollups)),
            asyncio.create_task(self._repeat("debts", 5.0, self._pay_debts)),
            asyncio.create_task(self._repeat("connections", SWEEP_S, self._resources.cache.sweep_connections)),
            asyncio.create_task(self._repeat("rollups", 5.0, self._resources.series.refresh_rollups)),
            asyncio.create_task(
                self._repeat("marks", MARKS_S, lambda: in_each(lambda one: derived.pay_marks(one, series)))
            ),
            asyncio.create_task(self._repeat("audit_anchor", 30.0, self._tell_anchor)),
            asyncio.create_task(self._repeat("partitions", 3600.0, lambda: in_each(upkeep.keep_partitions))),
            asyncio.create_task(
                self._repeat("retention", 3600.0, lambda: in_each(lambda one: keep_retention(one, series, self._kept)))
            ),
            asyncio.create_task(self._repeat("cell_counts", 10.0, lambda: upkeep.count_cells(pool))),
            asyncio.create_task(
                self._repeat("changed_notebooks", 10.0, lambda: in_each(derived.mark_changed_notebooks))
            ),
            asyncio.create_task(self._repeat("meetings", 5.0, self._keep_meetings)),
            asyncio.create_task(self._repeat("idle_sessions", 30.0, ledger.close_idle_sessions)),
        ]
        lanes = [_Lane(self, lane, self._resources, self._stop, self._claim_idle_s) for lane in LANES]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(lane.run()) for lane in lanes]
                group.create_task(self._limit_drain(tasks))
            async with asyncio.timeout(2.0):
                await self._to_measure.join()
        except TimeoutError:
            _log.info("worker.left_debts")  # their rows stay; the next worker pays them
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)

    def owe(self, recorded: Recorded) -> None:
        """Have the batch measured; when too many wait already, its debt row is paid later."""
        if recorded.debt_id is not None and not self._to_measure.full():
            self._to_measure.put_nowait(recorded)

    async def _limit_drain(self, lanes: Sequence[asyncio.Task[None]]) -> None:
        await self._stop.wait()
        _, unfinished = await asyncio.wait(lanes, timeout=DRAIN_S)
        for task in unfinished:
            task.cancel()  # what it had in hand stays pending

    async def _measure_stored(self) -> None:
        while True:
            recorded = await self._to_measure.get()
            try:
                await measure(recorded, ledger=self._resources.ledger, series=self._resources.series)
            except Exception:  # noqa: BLE001 - the debt row stays and is tried again; seen here, by its own fault
                _log.exception("worker.measure_failed", debt_id=str(recorded.debt_id))
            finally:
                self._to_measure.task_done()

    async def _pay_debts(self) -> None:
        while owed := await self._resources.ledger.find_debts(DEBT_AGE_S):
            metrics.series_debt_batches.set(len(owed))
            for recorded in owed:
                if not await measure(recorded, ledger=self._resources.ledger, series=self._resources.series):
                    return
        metrics.series_debt_batches.set(0)

    async def _tell_anchor(self) -> None:
        """Once a day the audit log's end, into a log that is kept elsewhere than the database."""
        if time.monotonic() < self._anchor_due_at:
            return
        if anchor := await find_anchor(self._resources.pool):
            _log.info("worker.audit_anchor", anchor=str(anchor))
            self._anchor_due_at = time.monotonic() + 86_400

    async def _keep_meetings(self) -> None:
        changed = await meetings.keep_meetings(self._resources.pool)
        for course_id in changed.course_ids:
            await self._resources.cache.announce_roster(course_id)
        answered = await interventions.find_helped_hands(self._resources.pool)
        if withdrawals := [*changed.withdrawals, *answered]:
            await self._resources.stream.append(withdrawals)

    async def _watch_stream(self) -> None:
        backlog = await self._resources.stream.measure_backlog()
        metrics.stream_backlog_events.set(backlog)
        if not self.breaker.is_open:
            await self._resources.cache.note_worker(self._resources.stream.consumer, self.lag_ms if backlog else 0)

    async def _repeat(self, name: str, every_s: float, job: Callable[[], Awaitable[object]]) -> None:
        backoff = Backoff(name)
        while not await sleep_until(every_s, self._stop):
            try:
                await job()
                backoff.reset()
            except Unavailable as error:
                await backoff.wait(error, self._stop)
            except Exception:  # noqa: BLE001 - a job's own fault must not take the lanes with it; tried again
                _log.exception("worker.job_failed", job=name)


class _Lane:
    """One family of streams, read and finished batch by batch."""

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
                await self.finish(deliveries)
                deliveries = []
                self._backoff.reset()
            except Unavailable as error:
                await self._backoff.wait(error, self._stop)

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
        now = loop.time()
        if now >= self._claim_at:
            claimed = await self._stream.reclaim(self._lane, round(self._claim_idle_s * 1000))
            if claimed:
                return claimed
            self._claim_at = now + self._claim_idle_s / 5
        postponed, self._postponed = self._postponed, []
        deliveries = await self._stream.read(self._lane, *([_POSTPONED_MS] if postponed else []))
        self._took_at = loop.time()
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
        done = [one for one, event in batch if (event.user_id, event.event_id) not in recorded.postponed]
        if len(done) < len(batch):
            self._postpone([one for one, event in batch if (event.user_id, event.event_id) in recorded.postponed])
        await self._stream.ack(done)
        self._worker.owe(recorded)
        self._worker.breaker.note(len(done), failed=False)
        metrics.worker_events.labels("stored").inc(recorded.stored_count)
        metrics.worker_events.labels("duplicate").inc(recorded.duplicate_count)
        newest = max(event.received_at for event in received)
        lag_s = max(0.0, (datetime.now(UTC) - newest).total_seconds())
        metrics.worker_lag_seconds.set(lag_s)
        self._worker.lag_ms = round(lag_s * 1000)

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
        await self._stream.ack([delivery])
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
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "nbpulse" in Path(frame.filename).parts]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


async def run(
    resources: Resources,
    stop: asyncio.Event,
    *,
    claim_idle_s: float,
    retention: Retention = FOR_EVER,
    metrics_port: int = 0,
    announce: Callable[[int], None] | None = None,
) -> None:
    """
    Be a worker until `stop` is set: /metrics and /health on a loopback port (told to `announce`), groups, lanes, jobs.

    Raises whatever neither waiting nor burying can mend; the supervisor starts the next worker then.
    """
    worker = Worker(resources, stop, claim_idle_s, retention)
    server = await asyncio.start_server(lambda r, w: _answer(worker, r, w), "127.0.0.1", metrics_port)
    async with server:
        if announce is not None:
            announce(server.sockets[0].getsockname()[1])
        backoff = Backoff("stream")
        while not stop.is_set():
            try:
                await resources.stream.ensure_groups()
                await worker.auditor.begin()
                break
            except Unavailable as error:
                await backoff.wait(error, stop)
        # What is imported stays: the collector need not walk it again and again while batches come.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        _log.info("worker.ready")
        await worker.run()
    _log.info("worker.stopped")


async def _answer(worker: Worker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request to the loopback port."""
    try:
        async with asyncio.timeout(5):
            request = await reader.readuntil(b"\r\n\r\n")
            status, kind, body = _compose_answer(worker, request.split(b" ", 2)[1])
            head = (
                f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await writer.drain()
    except (OSError, TimeoutError, IndexError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # no request, or nobody waits for the answer any more
    finally:
        writer.close()


def _compose_answer(worker: Worker, path: bytes) -> tuple[str, str, bytes]:
    if path == b"/metrics":
        return "200 OK", CONTENT_TYPE_LATEST, generate_latest()
    if not path.startswith(b"/health"):
        return "404 Not Found", "application/json", b"{}"
    if worker.breaker.is_open:
        return "503 Service Unavailable", "application/json", b'{"status":"unhealthy","code":"NB-4003"}'
    return "200 OK", "application/json", msgspec.json.encode({"status": "healthy"})
