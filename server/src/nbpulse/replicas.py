"""Read replicas: from which server an answer of history is read, how old what it shows is, and when none will do.

Promises: only what is read inside `HistoryPool.read`, through this pool, may come from a replica, and one answer comes
from one server; a replica that is away, further behind than allowed, or none of this database answers nothing; what
fails on a replica, or is not found there, is asked of the primary before anybody is told. Where no replica is set this
is the primary's pool and nothing else.

How far one is behind needs no two clocks: each second the primary is asked how far its log is written, and a replica
that has replayed it up to there shows all that was committed by that second. So an idle primary is no lag.
"""

from __future__ import annotations

import asyncio
import math
import time
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, TypeVar

import asyncpg
import structlog

from nbpulse import metrics
from nbpulse.errors import NbpulseError, Unavailable
from nbpulse.metrics import HistorySource, PostgresQuery, name_query, named_query, read_query_name

ONLY_PRIMARY: Final = 2**64
"""A place in the log that no replica ever reaches."""
LOOK_EVERY_S: Final = 1.0
_LOOK_LIMIT_S: Final = 2.0
# A look older than this tells nothing: the primary, or this process, is too busy to be asked.
_LOOK_LIFE_S: Final = 5.0
# How long an answer waits for its asker's own write: a replica that keeps up has it within some milliseconds.
_WAIT_LIMIT_S: Final = 0.5
_WAIT_STEP_S: Final = 0.02
_SAMPLES_KEPT: Final = 3_600
_FAILURES: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_FLUSHED: Final = """
SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint AS lsn,
    (SELECT system_identifier FROM pg_control_system()) AS system
"""
_REPLAYED: Final = """
SELECT pg_is_in_recovery() AS is_replica, (pg_last_wal_replay_lsn() - '0/0')::bigint AS lsn,
    (SELECT system_identifier FROM pg_control_system()) AS system,
    extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 AS age_s
"""
_REPLAYED_LSN: Final = "SELECT (pg_last_wal_replay_lsn() - '0/0')::bigint"

Opening = Callable[[], AbstractAsyncContextManager[asyncpg.Pool]]
_Answer = TypeVar("_Answer")
_log = structlog.get_logger(__name__)


class _Sample(NamedTuple):
    """The primary's log was written up to `lsn` when it was `at_s` by this process's clock, and `at` by the day's."""

    lsn: int
    at_s: float
    at: datetime


class _Replica:
    """One replica as it was seen last."""

    def __init__(self, name: str, opening: Opening) -> None:
        self.name = name
        self.opening = opening
        self.forget("NB-2034")

    def forget(self, error: str) -> None:
        """It does not answer, or is none of ours."""
        self.pool: asyncpg.Pool | None = None
        self.error: str | None = error
        self.lsn = 0
        self.lag_s = math.nan
        self.as_of = datetime.min.replace(tzinfo=UTC)
        self.looked_at_s = -math.inf
        metrics.replica_lag_seconds.labels(self.name).set(math.nan)


class _Reading:
    """The reads of one answer: all from one server, chosen at the first of them."""

    def __init__(self, need: int) -> None:
        self.need = need
        self.replica: _Replica | None = None
        self.pool: asyncpg.Pool | None = None
        self.as_of: datetime | None = None
        self.source: HistorySource | None = None
        self.choosing = asyncio.Lock()


_reading: ContextVar[_Reading | None] = ContextVar("nbpulse_reading", default=None)


class HistoryPool:
    """The connections for what is read of the past; `acquire` as the pool of the primary has it."""

    def __init__(self, primary: asyncpg.Pool, replicas: Sequence[Opening] = (), *, lag_max_s: float = 10.0) -> None:
        self._primary = primary
        self._replicas = [_Replica(str(number), opening) for number, opening in enumerate(replicas, 1)]
        self.lag_max_s = lag_max_s
        self._samples: deque[_Sample] = deque(maxlen=_SAMPLES_KEPT)
        self._system: int | None = None
        self._has_sample = asyncio.Condition()
        self._turn = 0
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def has_replicas(self) -> bool:
        """Whether any is set, near enough or not."""
        return bool(self._replicas)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[HistoryPool]:
        """Looks at the replicas while inside; opening it waits for none of them."""
        tasks = [asyncio.create_task(self._watch(one)) for one in self._replicas]
        if tasks:
            tasks.append(asyncio.create_task(self._look_at_primary()))
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def acquire(self, *, timeout: float | None = None) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """A connection to the server that the answer being made is read from; outside of one, to the primary."""
        reading = _reading.get()
        if reading is None:
            connecting: AbstractAsyncContextManager[asyncpg.Connection] = self._primary.acquire(timeout=timeout)
            return connecting
        return self._acquire_for(reading, timeout, read_query_name())

    async def read(self, make: Callable[[], Awaitable[_Answer]], need: int = 0) -> tuple[_Answer, datetime | None]:
        """
        What `make` makes, read from a replica that has replayed the log up to `need`, where one is near enough; and of
        when it is at the earliest, None: of now. Raises what `make` raises when all it read is the primary's.
        """
        if not self._replicas:
            return await make(), None
        reading = _Reading(need)
        token = _reading.set(reading)
        try:
            answer = await make()
        except (NbpulseError, *_FAILURES) as error:
            if reading.replica is None:
                raise
            if not isinstance(error, NbpulseError) or error.retryable:
                reading.replica.looked_at_s = -math.inf  # not asked again before the next look at it
            _log.info("replica.asked_primary", replica=reading.replica.name, error=type(error).__name__)
        else:
            if reading.source is not None:
                metrics.history_answers.labels(reading.source).inc()
            return answer, reading.as_of
        finally:
            _reading.reset(token)
        metrics.history_answers.labels("primary_after_failure").inc()
        return await make(), None

    async def read_written(self) -> int:
        """
        How far the primary's log is written by now: a commit that was confirmed has its place before it.

        Raises Unavailable (NB-2003).
        """
        try:
            return int((await self._ask(self._primary, _FLUSHED))["lsn"])
        except _FAILURES as error:
            raise Unavailable("NB-2003") from error

    def describe(self) -> list[dict[str, Any]]:
        """Each replica for `/health`: `lag_s` null where it is not known; an `error` where it is not read from."""
        return [self._describe(one) for one in self._replicas]

    def _describe(self, replica: _Replica) -> dict[str, Any]:
        lag_s = None if math.isnan(replica.lag_s) else round(replica.lag_s, 3)
        told = {"name": replica.name, "status": "healthy", "lag_s": lag_s}
        if self._is_near(replica):
            return told
        return told | {"status": "unhealthy", "error": replica.error or "NB-2034"}

    def _is_near(self, replica: _Replica) -> bool:
        is_fresh = time.monotonic() - replica.looked_at_s < _LOOK_LIFE_S
        return replica.pool is not None and is_fresh and replica.error is None and replica.lag_s <= self.lag_max_s

    @asynccontextmanager
    async def _acquire_for(
        self, reading: _Reading, limit_s: float | None, query_type: PostgresQuery
    ) -> AsyncIterator[asyncpg.Connection]:
        async with reading.choosing:
            if reading.source is None:
                await self._choose(reading)
        with name_query(query_type):
            acquiring = (reading.pool or self._primary).acquire(timeout=limit_s)
        async with acquiring as connection:
            yield connection

    async def _choose(self, reading: _Reading) -> None:
        """A replica for the answer, in turn; one that must show a write of the asker's may have to be waited for."""
        near = [one for one in self._replicas if self._is_near(one)]
        if not near:
            reading.source = "primary"
            return
        self._turn += 1
        first = self._turn % len(near)
        near = near[first:] + near[:first]
        found = next((one for one in near if one.lsn >= reading.need), None)
        if found is None and reading.need < ONLY_PRIMARY and await self._await_replay(near[0], reading.need):
            found = near[0]
        if found is None or found.pool is None:
            reading.source = "primary_own_write"
            return
        reading.replica, reading.pool, reading.as_of, reading.source = found, found.pool, found.as_of, "replica"

    async def _await_replay(self, replica: _Replica, need: int) -> bool:
        with suppress(*_FAILURES):
            async with asyncio.timeout(_WAIT_LIMIT_S), replica.pool.acquire() as connection:  # type: ignore[union-attr]
                while (lsn := await connection.fetchval(_REPLAYED_LSN)) < need:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(_WAIT_STEP_S)
            replica.lsn = max(replica.lsn, lsn)
            return True
        return False

    # --- watching ---------------------------------------------------------------------------------------------------

    async def _look_at_primary(self) -> None:
        while True:
            at_s, at = time.monotonic(), datetime.now(UTC)
            try:
                row = await self._ask(self._primary, _FLUSHED)
            except _FAILURES as error:
                _log.debug("replica.primary_unknown", error=type(error).__name__)
            else:
                if self._samples and row["lsn"] < self._samples[-1].lsn:
                    self._samples.clear()  # another server, or one that was restored: its log is another
                self._system = row["system"]
                async with self._has_sample:
                    self._samples.append(_Sample(row["lsn"], at_s, at))
                    self._has_sample.notify_all()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _watch(self, replica: _Replica) -> None:
        """Look at it after each look at the primary; one that does not answer loses all its connections at once."""
        while True:
            pool = None
            try:
                async with replica.opening() as pool:
                    while True:
                        async with self._has_sample:
                            await self._has_sample.wait()
                        await self._look_in_time(replica, pool)
            except (NbpulseError, *_FAILURES) as error:
                if replica.error is None:
                    _log.warning("replica.away", replica=replica.name, code="NB-2034", error=type(error).__name__)
                replica.forget("NB-2034")
            finally:
                if pool is not None:
                    pool.terminate()  # what still waits for it is told so, and asks the primary

    async def _look_in_time(self, replica: _Replica, pool: asyncpg.Pool) -> None:
        looking = asyncio.create_task(self._look(replica, pool))
        self._leaving.add(looking)
        looking.add_done_callback(self._let_go)
        # Not `timeout`: a driver that is cancelled may itself wait for seconds for a server that hangs.
        done, _ = await asyncio.wait({looking}, timeout=_LOOK_LIMIT_S)
        if not done:
            looking.cancel()
            pool.terminate()
            raise TimeoutError
        looking.result()

    def _let_go(self, looking: asyncio.Task[None]) -> None:
        self._leaving.discard(looking)
        if not looking.cancelled():
            looking.exception()  # looked at: the watcher has it, or has given up

    async def _look(self, replica: _Replica, pool: asyncpg.Pool) -> None:
        row = await self._ask(pool, _REPLAYED)
        if not row["is_replica"] or row["system"] != self._system:
            if replica.error != "NB-3113":
                error = NbpulseError("NB-3113", replica=replica.name)
                _log.error("replica.none", code=error.code, title=error.title("en"), todo=error.todo("en"))
            replica.forget("NB-3113")
            return
        lag_s, as_of = self._measure(row["lsn"], row["age_s"])
        was_near = self._is_near(replica)
        replica.pool, replica.lsn, replica.lag_s, replica.as_of = pool, row["lsn"], lag_s, as_of
        replica.error, replica.looked_at_s = None, time.monotonic()
        metrics.replica_lag_seconds.labels(replica.name).set(lag_s)
        if was_near != self._is_near(replica):
            _log.info("replica.lagging" if was_near else "replica.back", replica=replica.name, lag_s=round(lag_s, 1))

    def _measure(self, lsn: int, age_s: float | None) -> tuple[float, datetime]:
        """How old what it shows is in seconds, 0 for nothing missing; and of when it is at the earliest."""
        newest = self._samples[-1]
        count = bisect_right(self._samples, lsn, key=lambda sample: sample.lsn)
        if count:
            shown = self._samples[count - 1]
            return newest.at_s - shown.at_s, shown.at
        # Behind all that this process has seen: at least so old, and as the replica's own clock has it.
        lag_s = max(newest.at_s - self._samples[0].at_s + LOOK_EVERY_S, age_s or 0.0)
        return lag_s, newest.at - timedelta(seconds=lag_s)

    @staticmethod
    @named_query("look_at_replication")
    async def _ask(pool: asyncpg.Pool, query: str) -> asyncpg.Record:
        async with pool.acquire(timeout=_LOOK_LIMIT_S) as connection:
            return await connection.fetchrow(query, timeout=_LOOK_LIMIT_S)
