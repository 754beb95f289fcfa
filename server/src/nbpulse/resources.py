"""The composition root: opens what a process needs, in order, and closes it in reverse.

Nothing connects before it is asked for here, and nobody else builds a store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg
from redis.asyncio import Redis

from nbpulse.cache import Cache
from nbpulse.cluster import Cluster
from nbpulse.connections import open_pool, open_redis
from nbpulse.crypto import EncryptedField
from nbpulse.errors import StartupError, Unavailable
from nbpulse.guesses import Guesses
from nbpulse.hub import LiveHub
from nbpulse.live import LivePublisher
from nbpulse.passwords import Hasher
from nbpulse.providers import Provider
from nbpulse.records.databases import POOL_SIZE, Databases, Greet, find_shard_url, open_databases
from nbpulse.records.people import People
from nbpulse.records.routing import RoutedLedger
from nbpulse.records.sealing import check_keys
from nbpulse.records.views import ClassReader
from nbpulse.replicas import HistoryPool, Opening
from nbpulse.settings import Settings
from nbpulse.stream import EventStream
from nbpulse.stream.copying import StreamCopy
from nbpulse.stream.erasing import StreamErasure
from nbpulse.stream.promises import RANKS
from nbpulse.timeseries import TimeSeriesStore
from nbpulse.timeseries.postgres import PostgresTimeSeries
from nbpulse.tombstones import Marker

if TYPE_CHECKING:
    from nbpulse.jupyterhub import JupyterHub


@dataclass(frozen=True)
class Resources:
    """What the parts of one process share."""

    pool: asyncpg.Pool
    history: HistoryPool
    databases: Databases
    redis: Redis | Cluster
    seal: EncryptedField
    stream: EventStream
    cache: Cache
    guesses: Guesses
    publisher: LivePublisher
    hub: LiveHub
    people: People
    hasher: Hasher
    classes: ClassReader
    series: TimeSeriesStore
    ledger: RoutedLedger
    jupyterhub: JupyterHub | None
    providers: Mapping[str, Provider]
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


def list_replica_urls(settings: Settings) -> list[str]:
    """
    The replicas' URLs with the API's login where they bear none of their own.

    Raises StartupError (NB-3110): one is no address of a PostgreSQL.
    """
    urls = []
    for number, given in enumerate((settings.replica_urls or "").replace(",", " ").split(), 1):
        parts = urlsplit(given)
        try:
            is_address = parts.scheme in ("postgresql", "postgres") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is none
            is_address = False
        if not is_address:
            raise StartupError("NB-3110", number=number)
        login = ""
        if "@" not in parts.netloc:
            login = find_login_url(settings, "nbpulse_api").partition("://")[2].rpartition("@")[0] + "@"
        urls.append(given.replace("://", f"://{login}", 1))
    return urls


@asynccontextmanager
async def open_resources(settings: Settings, *, login: str, pool_size: int) -> AsyncIterator[Resources]:
    """
    Everything for one process under one database login (`nbpulse_api`, `nbpulse_worker`, `nbpulse_operator`).

    Raises StartupError: a store does not answer (NB-3053, NB-3054), the stream keeps less than promised (NB-3055), the
    keys do not open what is sealed in the database (NB-3060), it was made for another number of shards (NB-3120), a
    further database has another schema (NB-3136), or a replica's address is none (NB-3110). A replica or a further
    database that does not answer is no obstacle.
    """
    if not settings.redis_url:
        raise StartupError("NB-3052", setting="NBPULSE_REDIS_URL")
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(find_login_url(settings, login), pool_size))
        databases = await stack.enter_async_context(
            open_databases(pool, lambda url, greet: _open_shard_database(settings, login, url, greet))
        )
        client = await stack.enter_async_context(open_redis(settings.redis_url))
        seal = EncryptedField(settings.read_encryption_keys(), key_file=settings.key_file)
        await _check_keys(pool, seal)
        stream = EventStream(
            client,
            consumer=settings.worker_name,
            backlog_limit=settings.backlog_limit_events,
            confirms=settings.promise == "failover",
        )
        stack.push_async_callback(stream.close)
        cache, classes, hasher = Cache(client), ClassReader(pool, seal), Hasher()
        stack.callback(hasher.close)
        hub, providers, replicas = None, dict[str, Provider](), list[Opening]()
        if login == "nbpulse_api":  # nobody else is shown people's tokens, signs anybody in, or is asked for history
            replicas = [
                partial(open_pool, url, pool_size, database="postgresql_replica", is_lazy=True)
                for url in list_replica_urls(settings)
            ]
            hub = await stack.enter_async_context(_open_hub(settings))
            providers = await stack.enter_async_context(_open_providers(settings, hub))
        ledger = RoutedLedger(databases, seal, full_texts=settings.has_full_texts)
        stack.push_async_callback(ledger.finish)
        history = HistoryPool(pool, replicas, lag_max_s=settings.replica_lag_max_s)
        yield Resources(
            pool=pool,
            history=await stack.enter_async_context(history.watching()),
            databases=databases,
            redis=client,
            seal=seal,
            stream=stream,
            cache=cache,
            guesses=Guesses(
                client, of_address=settings.limit_address_guesses, of_account=settings.limit_account_guesses
            ),
            publisher=LivePublisher(client),
            hub=LiveHub(client, classes, cache.read_presence, stream.measure_backlog, ledger.get_show_delay_s),
            people=People(pool, seal, Marker(settings.make_tombstone_key), databases),
            hasher=hasher,
            classes=classes,
            series=await stack.enter_async_context(_open_series(settings, history)),
            ledger=ledger,
            jupyterhub=hub,
            providers=providers,
            promise=await _check_promise(settings, stream),
        )


def _open_shard_database(
    settings: Settings, login: str, url: str, greet: Greet
) -> AbstractAsyncContextManager[asyncpg.Pool]:
    """A further database, with the login's password that `shard add` has set there."""
    place = find_shard_url(url, login, settings.make_password(login))
    return open_pool(place, POOL_SIZE, is_lazy=True, greet=greet)


@asynccontextmanager
async def open_stream(settings: Settings) -> AsyncIterator[EventStream]:
    """The event stream alone, for a look at it. Raises StartupError (NB-3052) when no server is set."""
    if not settings.redis_url:
        raise StartupError("NB-3052", setting="NBPULSE_REDIS_URL")
    async with open_redis(settings.redis_url) as client:
        stream = EventStream(client)
        try:
            yield stream
        finally:
            await stream.close()


@asynccontextmanager
async def open_stream_copy(redis_url: str) -> AsyncIterator[StreamCopy]:
    """The streams as a whole, for a backup and its return."""
    async with open_redis(redis_url) as client:
        copy = StreamCopy(client)
        try:
            yield copy
        finally:
            await copy.close()


@dataclass(frozen=True)
class OuterStores:
    """What holds something of people beside the tables, for an erasure."""

    stream: StreamErasure
    cache: Cache
    series: list[TimeSeriesStore]


@asynccontextmanager
async def open_outer_stores(settings: Settings, owner: asyncpg.Pool, redis_url: str) -> AsyncIterator[OuterStores]:
    """With `owner`'s rights in PostgreSQL, whose series are there also where InfluxDB has taken over."""
    async with open_redis(redis_url) as client, _open_series(settings, owner) as series:
        stream = StreamErasure(client)
        held = PostgresTimeSeries(owner)
        try:
            yield OuterStores(stream, Cache(client), [held, series] if series.has_server else [held])
        finally:
            await stream.close()


@asynccontextmanager
async def _open_series(settings: Settings, pool: asyncpg.Pool | HistoryPool) -> AsyncIterator[TimeSeriesStore]:
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


@asynccontextmanager
async def _open_hub(settings: Settings) -> AsyncIterator[JupyterHub | None]:
    """None where no JupyterHub is set. Raises StartupError (NB-3082): that is no address."""
    if not settings.hub_api_url:
        yield None
        return
    from nbpulse.jupyterhub import open_jupyterhub  # as above

    async with open_jupyterhub(settings.hub_api_url) as hub:
        yield hub


@asynccontextmanager
async def _open_providers(settings: Settings, hub: JupyterHub | None) -> AsyncIterator[dict[str, Provider]]:
    """Where people can sign in beside here, by the names of their routes. Raises StartupError (NB-3084)."""
    providers: dict[str, Provider] = {}
    if settings.hub_public_url or settings.hub_client_secret:
        if hub is None or not (settings.hub_public_url and settings.hub_client_secret):
            raise StartupError("NB-3084", setting="NBPULSE_HUB_API_URL, _HUB_PUBLIC_URL, _HUB_CLIENT_SECRET")
        from nbpulse.jupyterhub import HubSignIn

        providers["jupyterhub"] = HubSignIn(hub, settings.hub_public_url, settings.hub_client_secret)
    if not settings.oidc_issuer:
        yield providers
        return
    from nbpulse.oidc import open_provider  # its libraries are for those who have one

    async with open_provider(
        issuer=settings.oidc_issuer,
        client_id=settings.oidc_client_id,
        client_secret=settings.oidc_client_secret,
        label=settings.oidc_name,
    ) as provider:
        yield providers | {"oidc": provider}


async def _check_keys(pool: asyncpg.Pool, seal: EncryptedField) -> None:
    try:
        await check_keys(pool, seal)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StartupError("NB-3053", detail=f"{type(error).__name__}: {error}") from error


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
    if RANKS[kept] < RANKS[settings.promise]:
        raise StartupError("NB-3055", promise=settings.promise, kept=kept)
    # Servers that could keep `failover` do so only where appends wait for it.
    return "power" if kept == "failover" != settings.promise else kept
