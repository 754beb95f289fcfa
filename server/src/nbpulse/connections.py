"""The clients of PostgreSQL and Redis as every process opens them: each call timed, each connection counted.

Promises: whoever asks these clients anything is timed (metrics.py), whether they thought of it or not. Not timed: what
waits for others rather than for the server, that is Pub/Sub here and blocking reads of the stream (stream/link.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final
from weakref import WeakSet

import asyncpg
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError

from nbpulse.cluster import Cluster, is_cluster, tell_of_loss
from nbpulse.errors import StartupError
from nbpulse.metrics import (
    Database,
    PoolFigures,
    PostgresQuery,
    database_query_duration,
    pools,
    read_query_name,
    redis_query_durations,
)

REDIS_POOL_SIZE: Final = 20


@asynccontextmanager
async def open_pool(
    url: str,
    size: int,
    *,
    database: Database = "postgresql",
    is_lazy: bool = False,
    greet: Callable[[asyncpg.Connection], Awaitable[None]] | None = None,
) -> AsyncIterator[asyncpg.Pool]:
    """
    At most `size` connections to PostgreSQL, counted as `database`'s; `is_lazy`: none before one is asked for. `greet`
    is given each new one; what it raises leaves `acquire`.

    Raises StartupError (NB-3053): it does not answer.
    """
    try:
        pool = _TimedPool(
            url,
            connection_class=asyncpg.Connection,
            record_class=asyncpg.Record,
            min_size=0 if is_lazy else min(2, size),
            max_size=size,
            max_queries=50_000,
            max_inactive_connection_lifetime=300.0,
            loop=None,
            init=greet,
            timeout=10,
            command_timeout=60,
            # jit: our statements are short, and compiling one costs more than running it.
            server_settings={"application_name": "nbpulse", "jit": "off", "timezone": "UTC"},
        )
        pool.database = database
        await pool
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise StartupError("NB-3053", detail=f"{type(error).__name__}: {error}") from error
    try:
        with pools.watch(database, pool.measure):
            yield pool
    finally:
        await _close_pool(pool)


@asynccontextmanager
async def open_redis(url: str) -> AsyncIterator[Redis | Cluster]:
    """
    A client of Redis or Valkey, of one server or of a cluster; nothing is asked of it yet.

    Raises StartupError (NB-3100): the cluster's URL is none.
    """
    if is_cluster(url):
        cluster = Cluster(url, REDIS_POOL_SIZE)
        try:
            with pools.watch("redis", cluster.measure):
                yield cluster
        finally:
            await cluster.aclose()
        return
    pool = _CountedPool.from_url(
        url,
        max_connections=REDIS_POOL_SIZE,
        socket_connect_timeout=1,
        socket_timeout=30,
        retry=Retry(NoBackoff(), 1),
        health_check_interval=0,
    )
    client = _TimedRedis.from_pool(pool)
    try:
        with pools.watch("redis", pool.measure):
            yield client
    finally:
        await client.aclose()


class _TimedPool(asyncpg.Pool):  # type: ignore[misc]
    """A pool whose connections are timed from being asked for to being given back; taken with `async with` only."""

    database: Database

    def acquire(self, *, timeout: float | None = None) -> AbstractAsyncContextManager[asyncpg.Connection]:
        return _time_use(super().acquire(timeout=timeout), self.database, read_query_name())

    def measure(self) -> PoolFigures:
        """Its connections now."""
        return PoolFigures(self.get_size(), self.get_idle_size(), self.get_max_size())


@asynccontextmanager
async def _time_use(
    acquiring: AbstractAsyncContextManager[asyncpg.Connection], database: Database, query_type: PostgresQuery
) -> AsyncIterator[asyncpg.Connection]:
    with database_query_duration.labels(database, query_type).time():
        try:
            async with acquiring as connection:
                yield connection
        except asyncpg.InternalServerError as error:
            if _is_of_lost_node(error):
                raise ConnectionResetError(str(error)) from error
            raise


def _is_of_lost_node(error: asyncpg.InternalServerError) -> bool:
    """Whether Citus lost one of its nodes in the middle of a statement, which it calls an internal error."""
    return "failure on connection" in str(error) or "while executing command on" in (error.context or "")


async def _close_pool(pool: asyncpg.Pool) -> None:
    """Close politely, but never wait for a database that is gone."""
    try:
        await pool.close()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        pool.terminate()


class _TimedRedis(Redis):
    """A client whose commands and pipelines are timed."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        with redis_query_durations.get(str(args[0]).lower(), redis_query_durations["other"]).time():
            try:
                return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
            except ReadOnlyError:
                # It was the primary once; whoever is it now is found by connecting anew.
                await self.connection_pool.disconnect(inuse_connections=False)
                raise

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return _TimedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _TimedPipeline(Pipeline):
    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        with redis_query_durations["pipeline"].time():
            return await super().execute(raise_on_error)


class _CountedPool(ConnectionPool):
    """A pool that knows all connections made of it, the stream's own (stream/link.py) too."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._made: WeakSet[AbstractConnection] = WeakSet()
        super().__init__(*args, **options)
        self.connection_class = tell_of_loss(self.connection_class)

    def make_connection(self) -> AbstractConnection:
        connection: AbstractConnection = super().make_connection()  # type: ignore[no-untyped-call]
        self._made.add(connection)
        return connection

    def measure(self) -> PoolFigures:
        """The connections now; those that never go back to the pool raise its limit by their number."""
        connected = {connection for connection in self._made if connection.is_connected}
        idle = connected.intersection(self._available_connections)
        reserved = connected.difference(idle, self._in_use_connections)
        return PoolFigures(len(connected), len(idle), self.max_connections + len(reserved))
