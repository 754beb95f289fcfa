"""The worker: reads deliveries, has them processed, acknowledges them last, and looks after what that leaves behind.

Promises: an entry is acknowledged only once it is stored or buried as a dead letter, so that kill -9 at any point costs
a redelivery and nothing else; one bad entry never stops its neighbours, and many bad ones stop the worker, not the
events; a store that is away is waited for with the batch in hand; helps have a lane of their own; the shards are
shared with whoever else is at work (stream/leases.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from nbpulse import metrics
from nbpulse.accounting import Auditor
from nbpulse.errors import StartupError, Unavailable
from nbpulse.patience import Backoff, Breaker, sleep_until
from nbpulse.pipeline import Recorded, measure
from nbpulse.records import derived, interventions, meetings, upkeep
from nbpulse.records.accounting import Accounts, forget_spent
from nbpulse.records.audit import find_anchor
from nbpulse.records.courses import clear_removed
from nbpulse.records.retention import FOR_EVER, Retention, keep_retention
from nbpulse.resources import Resources
from nbpulse.stream import LANES
from nbpulse.stream.leases import BEAT_S, Leases
from nbpulse.worker.lane import Reader

DRAIN_S: Final = 10.0
DEBT_AGE_S: Final = 5.0
SWEEP_S: Final = 15.0
MARKS_S: Final = 10.0
_MEASURE_QUEUE_MAX: Final = 16

_log = structlog.get_logger(__name__)


class Worker:
    """One worker process at work: two lanes, the measuring behind them and the periodic jobs."""

    def __init__(self, resources: Resources, stop: asyncio.Event, claim_idle_s: float, kept: Retention) -> None:
        self._resources = resources
        self._stop = stop
        self._kept = kept
        self._to_measure: asyncio.Queue[Recorded] = asyncio.Queue(_MEASURE_QUEUE_MAX)
        self._accounts = Accounts(resources.pool, resources.databases.list_others)
        self.auditor = Auditor(resources.stream, self._accounts)
        self.breaker = Breaker()
        self.lag_ms = 0
        self.leases = Leases(resources.redis, resources.stream.consumer)
        self.failure: StartupError | None = None
        """What ended it, if not `stop`."""
        self._backlog = 0
        self._lanes = [Reader(self, lane, resources, stop, claim_idle_s) for lane in LANES]
        self._anchor_due_at = 0.0
        self._stored_at: dict[str, float] = {}
        """When something of a course was stored last, by the monotonic clock."""

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
            asyncio.create_task(self._repeat("recent_runs", 3600.0, ledger.forget_runs)),
            asyncio.create_task(self._repeat("removed_courses", 30.0, self._clear_removed)),
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
        keeping = asyncio.create_task(self._keep_leases())
        background.append(keeping)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(lane.run()) for lane in self._lanes]
                group.create_task(self._limit_drain(tasks))
            keeping.cancel()  # it would take again what is given back
            await asyncio.gather(keeping, return_exceptions=True)
            await self._leave()
            async with asyncio.timeout(2.0):
                await self._to_measure.join()
        except TimeoutError:
            _log.info("worker.left_debts")  # their rows stay; the next worker pays them
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self.leases.close()

    async def begin(self) -> None:
        """
        See to the streams before anything is taken in hand. What one of several servers or databases that is away keeps
        from being counted is counted from the first quiet moment with all of them. Raises Unavailable.
        """
        if not await self._resources.stream.ensure_groups():
            return
        try:
            await self.auditor.begin()
        except Unavailable:
            if not self._resources.databases.list_others():
                raise

    async def renew_leases(self) -> None:
        """Beat, and know which shards are ours. Raises Unavailable; StartupError: see `Leases.renew`."""
        in_hand = {shard for lane in self._lanes for shard in lane.shards}
        is_stuck = any(lane.is_stuck for lane in self._lanes)
        await self.leases.renew(in_hand, is_stuck=is_stuck, lag_ms=self.lag_ms if self._backlog else 0)

    async def _keep_leases(self) -> None:
        while not self.breaker.is_open:
            await asyncio.sleep(BEAT_S)
            try:
                await self.renew_leases()
            except Unavailable:
                pass  # the lanes read the same server and say so; without its answers our shards lapse by themselves
            except StartupError as error:
                self.failure = error
                self._stop.set()
                return
        await self._leave()  # the events wait for a mended worker

    async def _leave(self) -> None:
        try:
            await self.leases.leave()
        except Unavailable as error:
            _log.info("worker.shards_not_given_back", code=error.code)  # they lapse

    def note_stored(self, recorded: Recorded) -> None:
        """Have the batch measured; when too many wait already, its debt row is paid later. Its courses are moving."""
        self._stored_at |= dict.fromkeys((state.course_id for state in recorded.states), time.monotonic())
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
        since = time.monotonic() - 60 * meetings.ACTIVE_MINUTES
        self._stored_at = {course_id: at for course_id, at in self._stored_at.items() if at > since}
        changed = await meetings.keep_meetings(self._resources.pool, list(self._stored_at))
        for course_id in changed.course_ids:
            await self._resources.cache.announce_roster(course_id)
        answered = await interventions.find_helped_hands(self._resources.pool)
        if withdrawals := [*changed.withdrawals, *answered]:
            await self._resources.stream.append(withdrawals)

    async def _clear_removed(self) -> None:
        pool = self._resources.pool
        with contextlib.suppress(StartupError):  # shards move: the next time
            await self._resources.ledger.in_each(lambda one: clear_removed(one, pool))

    async def _watch_stream(self) -> None:
        self._backlog = await self._resources.stream.measure_backlog()
        metrics.stream_backlog_events.set(self._backlog)

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

    Raises whatever neither waiting nor burying can mend; the supervisor starts the next worker then. StartupError
    (NB-3105): another worker has this one's name.
    """
    worker = Worker(resources, stop, claim_idle_s, retention)
    server = await asyncio.start_server(lambda r, w: _answer(worker, r, w), "127.0.0.1", metrics_port)
    async with server:
        if announce is not None:
            announce(server.sockets[0].getsockname()[1])
        backoff = Backoff("stream")
        while not stop.is_set():
            try:
                await worker.begin()
                await worker.renew_leases()
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
    if worker.failure is not None:
        raise worker.failure


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
