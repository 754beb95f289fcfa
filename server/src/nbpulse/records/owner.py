"""The owner's view of a database, beside migrations: is the schema the newest, are the logins' passwords set.

Kept free of Alembic, whose import costs more than everything else in a start: a database that is up to date pays
nothing for migrations.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg

from nbpulse.errors import StartupError
from nbpulse.records.databases import list_urls, refuse_if_spread
from nbpulse.shards import MAIN

_READ_HEAD = "SELECT to_regclass('public.alembic_version') IS NOT NULL"
_HAS_MONTHS = """
SELECT bool_and(to_regclass(parent || '_' || to_char(now() + interval '2 months', 'YYYY_MM')) IS NOT NULL)
FROM unnest(ARRAY['events', 'learning_sessions', 'timeseries.cell_executions', 'timeseries.learning_progress',
    'timeseries.performance_metrics']) AS parent
"""
_HAS_LOGINS = "SELECT count(*) = $2 FROM pg_roles WHERE rolname = ANY($1::text[])"


OwnerPool: TypeAlias = asyncpg.Pool


@asynccontextmanager
async def open_owner(database_url: str, *, alone: str = "") -> AsyncIterator[asyncpg.Pool]:
    """
    A small pool under the given login. `alone`: for a command that knows one database only.

    Raises StartupError: no answer (NB-3053), no right (NB-3018), students' rows are elsewhere too (`alone`, NB-3121).
    """
    try:
        pool = await asyncpg.create_pool(
            database_url, min_size=1, max_size=4, timeout=10, server_settings={"timezone": "UTC", "jit": "off"}
        )
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise StartupError("NB-3053", detail=f"{type(error).__name__}: {error}") from error
    try:
        if alone:
            await refuse_if_spread(pool, alone)
        yield pool
    except BaseException as error:
        pool.terminate()  # closing politely waits for a server that may be gone, without an end
        if isinstance(error, asyncpg.InsufficientPrivilegeError):
            raise StartupError("NB-3018", detail=str(error)) from error
        raise
    await pool.close()


@asynccontextmanager
async def open_owners(database_url: str) -> AsyncIterator[dict[str, OwnerPool]]:
    """
    Every database with students' rows by its name in the map, the directory first, each as `open_owner`; the further
    ones under the logins that `shard add` was given. Raises StartupError: as that; one of them is away (NB-3135).
    """
    async with AsyncExitStack() as stack:
        pools = {MAIN: await stack.enter_async_context(open_owner(database_url))}
        for name, url in (await list_urls(pools[MAIN])).items():
            try:
                pools[name] = await stack.enter_async_context(open_owner(url))
            except StartupError as error:
                raise StartupError("NB-3135", name=name, detail=str(error)) from error
        yield pools


async def read_revision(pool: asyncpg.Pool) -> str | None:
    """The schema's revision; None in a database without our tables."""
    if not await pool.fetchval(_READ_HEAD):
        return None
    revision: str | None = await pool.fetchval("SELECT version_num FROM public.alembic_version")
    return revision


async def is_current(pool: asyncpg.Pool, revision: str, logins: Mapping[str, str]) -> bool:
    """Whether a migration to `revision` would change nothing: schema, months ahead and logins are there."""
    if await read_revision(pool) != revision:
        return False
    has_months = await pool.fetchval(_HAS_MONTHS)
    has_logins = await pool.fetchval(_HAS_LOGINS, list(logins), len(logins))
    return bool(has_months and has_logins)


async def set_passwords(pool: asyncpg.Pool, passwords: Mapping[str, str]) -> None:
    """Give each login its password (login -> password)."""
    async with pool.acquire() as connection, connection.transaction():
        for login, password in passwords.items():
            literal = password.replace("'", "''")
            await connection.execute(f"ALTER ROLE {login} PASSWORD '{literal}'")


_EXAMINE = """
SELECT current_setting('server_version_num')::int / 10000 AS major, current_setting('fsync') AS fsync,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('full_page_writes') AS full_page_writes,
    extract(epoch FROM clock_timestamp())::float8 AS now_s,
    (SELECT bool_and(rolcanlogin) FROM pg_roles WHERE rolname = ANY($1::text[])) AS has_logins
"""
_CHECK_NODES = """
SELECT nodename || ':' || nodeport AS name, citus_check_connection_to_node(nodename, nodeport) AS answers
FROM pg_dist_node WHERE isactive AND noderole = 'primary' AND groupid > 0 ORDER BY 1
"""
_COUNT_WORK = """
SELECT (SELECT count(*) FROM dead_letters WHERE replayed_at IS NULL) AS dead_letters,
    (SELECT count(*) FROM series_debt) AS debts,
    (SELECT coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 FROM series_debt) AS oldest_debt_s,
    (SELECT count(*) FROM series_marks) AS marks,
    (SELECT coalesce(extract(epoch FROM now() - min(marked_at)), 0)::float8 FROM series_marks) AS oldest_mark_s
"""


async def examine(pool: asyncpg.Pool, logins: Iterable[str]) -> dict[str, Any]:
    """What `doctor` wants to know of the server: version, durability, its clock (seconds since 1970)."""
    return dict(await pool.fetchrow(_EXAMINE, list(logins)))


async def check_nodes(pool: asyncpg.Pool) -> list[tuple[str, bool]]:
    """Each node of the database's Citus cluster, as host:port, and whether the coordinator reaches it."""
    if not await pool.fetchval("SELECT to_regclass('pg_catalog.pg_dist_node') IS NOT NULL"):
        return []
    rows = await pool.fetch(_CHECK_NODES)
    return [(row["name"], row["answers"]) for row in rows]


async def has_months_ahead(pool: asyncpg.Pool) -> bool:
    """Whether the partitions of the coming two months are there."""
    return bool(await pool.fetchval(_HAS_MONTHS))


async def count_unfinished(pool: asyncpg.Pool) -> dict[str, Any]:
    """Dead letters not replayed; batches and derived points owed to the time series, and the age of the oldest."""
    return dict(await pool.fetchrow(_COUNT_WORK))


async def find_user_id(pool: asyncpg.Pool, username: str) -> UUID | None:
    """The user of that name."""
    user_id: UUID | None = await pool.fetchval("SELECT id FROM users WHERE username = $1", username)
    return user_id


async def find_course_id(pool: asyncpg.Pool, short_name: str) -> UUID | None:
    """The course of that short name."""
    course_id: UUID | None = await pool.fetchval("SELECT id FROM courses WHERE short_name = $1", short_name)
    return course_id


async def find_names(pool: asyncpg.Pool, ids: Iterable[UUID]) -> dict[UUID, str]:
    """Usernames and courses' short names by id, of those that are still there."""
    rows = await pool.fetch(
        "SELECT id, username FROM users WHERE id = ANY($1::uuid[])"
        " UNION ALL SELECT id, short_name FROM courses WHERE id = ANY($1::uuid[])",
        list(ids),
    )
    return dict(rows)
