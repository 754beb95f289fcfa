"""The databases of the students' rows: the directory and whatever others its map names (docs/decisions/0030).

Promises: a site of one database opens nothing more than that; a shard's rows are stored only where that database itself
says that it holds the shard (`hold_shards`), so that a stale map costs a second try and never a row; a database that is
away holds up its own students alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final
from uuid import UUID

import asyncpg
import structlog

from nbpulse.errors import StartupError, Unavailable
from nbpulse.metrics import name_query
from nbpulse.records.failures import UNAVAILABLE
from nbpulse.shards import MAIN, SHARD_COUNT, Place, ShardMap, get_shard_key, get_shard_number

POOL_SIZE: Final = 4
HOLD_LOCK: Final = 6_622_035
"""The first key of the advisory locks of `hold_shards`; the second is the shard."""
_READ_MAP: Final = "SELECT shard, database, epoch FROM shard_map ORDER BY shard"
_READ_URLS: Final = "SELECT name, url FROM shard_databases WHERE url IS NOT NULL ORDER BY added_at, name"
_HOLD: Final = "SELECT hold_shards($1::smallint[], $2::bigint[])"
_IS_SPREAD: Final = "SELECT EXISTS (SELECT FROM shard_map WHERE database <> 'main' OR state = 'moving')"
_FIND_SCHEMA: Final = "SELECT find_schema()"
_FOLLOWS: Final = """
SELECT latest_end_lsn - '0/0'::pg_lsn AS confirmed FROM pg_stat_subscription
WHERE subname = 'nbpulse_directory' AND pid IS NOT NULL AND relid IS NULL
"""
_LIFE_S: Final = 2.0
_LOOK_LIMIT_S: Final = 3.0
_log = structlog.get_logger(__name__)

Greet = Callable[[asyncpg.Connection], Awaitable[None]]
OpenPool = Callable[[str, Greet], AbstractAsyncContextManager[asyncpg.Pool]]
"""A pool for a database's URL without login; it connects when it is first asked, and each connection is greeted."""


class OtherSchema(asyncpg.InterfaceError):  # type: ignore[misc]
    """A further database is not of the directory's schema: as good as away until it is migrated."""

    def __init__(self, error: StartupError) -> None:
        super().__init__(str(error))
        self.error = error


class NotHere(Exception):
    """The database does not hold these shards (any more): the map is to be read again. Nothing was stored."""

    def __init__(self, shards: Iterable[int]) -> None:
        super().__init__("the shards have moved")
        self.shards = frozenset(shards)


async def read_map(pool: asyncpg.Pool | asyncpg.Connection) -> ShardMap:
    """Every shard's place. Raises StartupError (NB-3120): the database was made for another number of shards."""
    rows = await pool.fetch(_READ_MAP, timeout=5)
    if [row["shard"] for row in rows] != list(range(SHARD_COUNT)):
        raise StartupError("NB-3120", found=len(rows), expected=SHARD_COUNT)
    return [Place(row["database"], row["epoch"]) for row in rows]


async def list_databases(pool: asyncpg.Pool) -> list[dict[str, Any]]:
    """`name` and `url` (None: the directory itself) of every database, the directory first."""
    rows = await pool.fetch("SELECT name, url FROM shard_databases ORDER BY name <> 'main', added_at, name")
    return [dict(row) for row in rows]


async def list_urls(pool: asyncpg.Pool) -> dict[str, str]:
    """The owners' URLs, without passwords, of the databases beside the directory by name; also where no map is yet."""
    if await pool.fetchval("SELECT to_regclass('public.shard_databases') IS NULL"):
        return {}
    return dict(await pool.fetch(_READ_URLS))


async def list_places(pool: asyncpg.Pool) -> list[dict[str, Any]]:
    """`shard`, `database`, `state` (serving or moving) and `epoch` of every shard."""
    return [dict(row) for row in await pool.fetch("SELECT shard, database, state, epoch FROM shard_map ORDER BY shard")]


async def is_map_spread(connection: asyncpg.Connection) -> bool:
    """Whether students' rows are, or are about to be, elsewhere than in the directory too."""
    return bool(await connection.fetchval(_IS_SPREAD))


async def hold_shards(connection: asyncpg.Connection, shards: Iterable[int], places: ShardMap) -> None:
    """
    Keep these shards here until the transaction ends: a move waits for it. Raises NotHere.

    First in the transaction, before any row is locked.
    """
    wanted = sorted(shards)
    refused = await connection.fetch(_HOLD, wanted, [places[one].epoch for one in wanted])
    if refused:
        raise NotHere(row[0] for row in refused)


class Databases:
    """The pools of one process, by the names in the map."""

    def __init__(self, main: asyncpg.Pool, open_one: OpenPool | None = None, stack: AsyncExitStack | None = None):
        self.main = main
        self.places: ShardMap = [Place()] * SHARD_COUNT
        self._pools: dict[str, asyncpg.Pool] = {MAIN: main}
        self._open_one = open_one
        self._stack = stack
        self._read_at_s = 0.0
        self._refreshing = asyncio.Lock()

    @property
    def database_connections(self) -> Mapping[str, asyncpg.Pool]:
        """The pool of each shard, by its key (`shard_0` .. `shard_63`), as the specification has it."""
        return {f"shard_{number}": self._pools[place.database] for number, place in enumerate(self.places)}

    async def get_user_database(self, user_id: str) -> asyncpg.Pool:
        """Where a student's rows are, as of at most 2 s ago. Raises Unavailable (NB-2003): the map cannot be read."""
        if time.monotonic() - self._read_at_s > _LIFE_S:
            await self.refresh()
        shard_key = get_shard_key(user_id)
        return self.database_connections[shard_key]

    def get_pool(self, name: str) -> asyncpg.Pool:
        """The pool of a database of the map."""
        return self._pools[name]

    @property
    def pools(self) -> Mapping[str, asyncpg.Pool]:
        """Every database's, the directory's first."""
        return self._pools

    def list_others(self) -> list[asyncpg.Pool]:
        """The pools of all databases but the directory's."""
        return [pool for name, pool in self._pools.items() if name != MAIN]

    def find_home(self, user_id: UUID) -> asyncpg.Pool:
        """Where a student's rows are, by the map as last read."""
        return self._pools[self.places[get_shard_number(user_id)].database]

    async def refresh(self) -> None:
        """
        Read the map again, and open what it names. Raises Unavailable (NB-2003); StartupError (NB-3120): the database
        was made for another number of shards.
        """
        async with self._refreshing:  # two at once would open a pool twice
            try:
                with name_query("read_shard_map"):
                    places = await read_map(self.main)
                    if self._open_one is not None and self._stack is not None:
                        for name, url in await self.main.fetch(_READ_URLS, timeout=5):
                            if name not in self._pools:
                                opening = self._open_one(url, self._make_greeting(name))
                                self._pools[name] = await self._stack.enter_async_context(opening)
            except UNAVAILABLE as error:
                raise Unavailable("NB-2003") from error
            self.places = places
            self._read_at_s = time.monotonic()

    async def measure_lag(self, name: str) -> int | None:
        """`measure_lag` of a further database. Raises Unavailable (NB-2003): one of the two is away."""
        try:
            with name_query("read_shard_map"):
                return await measure_lag(self.main, self._pools[name])
        except UNAVAILABLE as error:
            raise Unavailable("NB-2003") from error

    def _make_greeting(self, name: str) -> Greet:
        """
        Raises OtherSchema, for each new connection until the schema was once the directory's: a later migration of all
        may be under way while this process still runs.
        """
        is_known = False

        async def greet(connection: asyncpg.Connection) -> None:
            nonlocal is_known
            if is_known:
                return
            expected, found = await find_schema(self.main), await find_schema(connection)
            if found != expected:
                error = StartupError("NB-3136", name=name, found=found, expected=expected)
                _log.error("databases.other_schema", database=name, code=error.code, todo=error.todo("en"))
                raise OtherSchema(error)
            is_known = True

        return greet

    async def check_schemas(self) -> None:
        """
        Whether those that answer have the directory's schema; one that is away is greeted when it comes back.

        Raises StartupError (NB-3136).
        """

        async def check(name: str) -> None:
            try:
                async with self._pools[name].acquire(timeout=_LOOK_LIMIT_S):
                    pass
            except OtherSchema as other:
                raise other.error from other
            except (*UNAVAILABLE, asyncpg.InvalidAuthorizationSpecificationError) as error:
                _log.warning("databases.away", database=name, error=type(error).__name__)

        await asyncio.gather(*(check(name) for name in self._pools if name != MAIN))


@asynccontextmanager
async def open_databases(main: asyncpg.Pool, open_one: OpenPool) -> AsyncIterator[Databases]:
    """
    The databases of the directory `main`. Raises StartupError: the directory was made for another number of shards
    (NB-3120), or does not answer (NB-3053); a further database has another schema (NB-3136).
    """
    async with AsyncExitStack() as stack:
        databases = Databases(main, open_one, stack)
        try:
            await databases.refresh()
        except (Unavailable, asyncpg.PostgresError) as error:
            raise StartupError("NB-3053", detail=f"{type(error).__name__}: {error.__cause__ or error}") from error
        await databases.check_schemas()
        yield databases


async def find_schema(database: asyncpg.Pool | asyncpg.Connection) -> str:
    """The schema's revision, as any login may ask it since there is something to ask."""
    try:
        return str(await database.fetchval(_FIND_SCHEMA, timeout=_LOOK_LIMIT_S))
    except asyncpg.UndefinedFunctionError:
        return "< 0043"


async def measure_lag(directory: asyncpg.Pool, other: asyncpg.Pool) -> int | None:
    """
    Bytes of the directory's log that a further database has not confirmed yet, some of which may be of nothing that it
    is sent; None where it does not follow. Raises what the driver raises.
    """
    written = await directory.fetchval("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn", timeout=_LOOK_LIMIT_S)
    row = await other.fetchrow(_FOLLOWS, timeout=_LOOK_LIMIT_S)
    return None if row is None or row["confirmed"] is None else max(0, int(written - row["confirmed"]))


def find_shard_url(url: str, login: str, password: str) -> str:
    """A database's URL without login, with one."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{login}:{password}@{rest.rpartition('@')[2]}"


async def is_spread(connection: asyncpg.Pool | asyncpg.Connection) -> bool:
    """Whether students' rows are, or are about to be, elsewhere than in the directory too; also where no map is yet."""
    if await connection.fetchval("SELECT to_regclass('public.shard_map') IS NULL"):
        return False
    return bool(await connection.fetchval(_IS_SPREAD))


async def refuse_if_spread(pool: asyncpg.Pool, command: str) -> None:
    """Raises StartupError (NB-3121) where a command would do its work in the directory alone."""
    if await is_spread(pool):
        raise StartupError("NB-3121", command=command)
