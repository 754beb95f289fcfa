"""The composition root: opens what a process needs, in order, and closes it in reverse.

Nothing connects before it is asked for here, and nobody else builds a store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import asyncpg
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from nbpulse.cache import Cache
from nbpulse.crypto import EncryptedField
from nbpulse.errors import StartupError, Unavailable
from nbpulse.hub import LiveHub
from nbpulse.live import LivePublisher
from nbpulse.metrics import database_connection_pool
from nbpulse.records.ledger import PostgresLedger
from nbpulse.records.notebooks import NotebookDirectory
from nbpulse.records.people import People
from nbpulse.records.sealing import check_keys
from nbpulse.records.views import ClassReader
from nbpulse.settings import Settings
from nbpulse.stream import EventStream
from nbpulse.timeseries import TimeSeriesStore
from nbpulse.timeseries.postgres import PostgresTimeSeries

REDIS_POOL_SIZE = 20
_PROMISE_RANKS = {"memory": 0, "process": 1, "power": 2}


@dataclass(frozen=True)
class Resources:
    """What the parts of one process share."""

    pool: asyncpg.Pool
    redis: redis.asyncio.Redis
    seal: EncryptedField
    stream: EventStream
    cache: Cache
    publisher: LivePublisher
    hub: LiveHub
    people: People
    classes: ClassReader
    series: TimeSeriesStore
    ledger: PostgresLedger
    promise: str


def find_login_url(settings: Settings, login: str) -> str:
    """
    The database URL of one of our logins: as set, else the owner's with the login that `migrate` made.

    Raises StartupError (NB-3052) when no database is set.
    """
    override = {"nbpulse_api": settings.api_database_url, "nbpulse_worker": settings.worker_database_url}.get(login)
    if override:
        return override
    if not settings.database_url:
        raise StartupError("NB-3052", setting="NBPULSE_DATABASE_URL")
    scheme, _, rest = settings.database_url.partition("://")
    return f"{scheme}://{login}:{settings.make_password(login)}@{rest.rpartition('@')[2]}"


@asynccontextmanager
async def open_resources(settings: Settings, *, login: str, pool_size: int) -> AsyncIterator[Resources]:
    """
    Everything for one process under one database login (`nbpulse_api`, `nbpulse_worker`, `nbpulse_operator`).

    Raises StartupError: a store does not answer (NB-3053, NB-3054), the stream keeps less than promised (NB-3055), or
    the keys do not open what is sealed in the database (NB-3060).
    """
    if not settings.redis_url:
        raise StartupError("NB-3052", setting="NBPULSE_REDIS_URL")
    async with AsyncExitStack() as stack:
        pool = await _open_pool(find_login_url(settings, login), pool_size)
        stack.push_async_callback(_close_pool, pool)
        client = _make_redis(settings.redis_url)
        stack.push_async_callback(client.aclose)
        database_connection_pool.labels("redis").set(REDIS_POOL_SIZE)
        seal = EncryptedField(settings.read_encryption_keys(), key_file=settings.key_file)
        await _check_keys(pool, seal)
        stream = EventStream(client, consumer=settings.worker_name, backlog_limit=settings.backlog_limit_events)
        stack.push_async_callback(stream.close)
        cache, classes = Cache(client), ClassReader(pool, seal)
        yield Resources(
            pool=pool,
            redis=client,
            seal=seal,
            stream=stream,
            cache=cache,
            publisher=LivePublisher(client),
            hub=LiveHub(client, classes, cache.read_presence, stream.measure_backlog),
            people=People(pool, seal),
            classes=classes,
            series=await stack.enter_async_context(_open_series(settings, pool)),
            ledger=PostgresLedger(pool, seal, NotebookDirectory()),
            promise=await _check_promise(settings, stream),
        )


@asynccontextmanager
async def open_stream(settings: Settings) -> AsyncIterator[EventStream]:
    """The event stream alone, for a look at it. Raises StartupError (NB-3052) when no server is set."""
    if not settings.redis_url:
        raise StartupError("NB-3052", setting="NBPULSE_REDIS_URL")
    client = _make_redis(settings.redis_url)
    stream = EventStream(client)
    try:
        yield stream
    finally:
        await stream.close()
        await client.aclose()


@asynccontextmanager
async def _open_series(settings: Settings, pool: asyncpg.Pool) -> AsyncIterator[TimeSeriesStore]:
    """InfluxDB where its address is set, else PostgreSQL. Raises StartupError (NB-3080): that is no address."""
    if not settings.influx_url:
        yield PostgresTimeSeries(pool)
        return
    from nbpulse.timeseries.influx import open_influx  # its client is 0.2 s of imports

    async with open_influx(
        settings.influx_url,
        token=settings.influx_token,
        tags=settings.influx_tags,
        error_text=settings.influx_error_text,
    ) as series:
        yield series


def _make_redis(url: str) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(
        url,
        max_connections=REDIS_POOL_SIZE,
        socket_connect_timeout=1,
        socket_timeout=30,
        retry=Retry(NoBackoff(), 1),
        health_check_interval=0,
    )


async def _open_pool(url: str, size: int) -> asyncpg.Pool:
    try:
        pool = await asyncpg.create_pool(
            url,
            min_size=min(2, size),
            max_size=size,
            timeout=10,
            command_timeout=60,
            # jit: our statements are short, and compiling one costs more than running it.
            server_settings={"application_name": "nbpulse", "jit": "off", "timezone": "UTC"},
        )
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise StartupError("NB-3053", detail=f"{type(error).__name__}: {error}") from error
    database_connection_pool.labels("postgresql").set(size)
    return pool


async def _check_keys(pool: asyncpg.Pool, seal: EncryptedField) -> None:
    try:
        await check_keys(pool, seal)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StartupError("NB-3053", detail=f"{type(error).__name__}: {error}") from error


async def _close_pool(pool: asyncpg.Pool) -> None:
    """Close politely, but never wait for a database that is gone."""
    try:
        await pool.close()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        pool.terminate()


async def _check_promise(settings: Settings, stream: EventStream) -> str:
    """Refuse to start on a stream that keeps less than the operator was promised."""
    try:
        kept = await stream.read_promise()
    except Unavailable as error:
        raise StartupError("NB-3054", detail=str(error.__cause__ or error)) from error
    if kept is None:
        if not settings.promise_stated:
            raise StartupError("NB-3056", promise=settings.promise)
        return f"{settings.promise} (stated, not checked)"
    if _PROMISE_RANKS[kept] < _PROMISE_RANKS[settings.promise]:
        raise StartupError("NB-3055", promise=settings.promise, kept=kept)
    return kept
