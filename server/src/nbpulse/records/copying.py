"""Every table of ours, out of one snapshot and into an empty database, as COPY's text.

Promises: which tables there are is asked of the database, so that a new one is copied without being named; what is read
is one moment; what is loaded is one transaction, in which nobody else sees a table without its protection.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from graphlib import TopologicalSorter
from typing import Any, Final

import asyncpg

from nbpulse.archive import Partition, Table
from nbpulse.errors import StartupError, Unavailable
from nbpulse.records.failures import UNAVAILABLE

LEFT_OUT: Final = {
    **{f"public.shard_{one}": "what is restored is one database" for one in ("databases", "map", "owners", "moves")},
    **dict.fromkeys(("public.rollup_debts", "public.recent_runs"), "empty where there is one database"),
    "public.alembic_version": "the archive names its schema itself, and a restore migrates to it",
    "public.series_standings": "worked out anew from the ledger",
    "public.spent_entries": "entries are counted anew where they are read anew",
    "public.stream_bases": "a restored stream is taken as it stands, like a new one",
}
SEALING_KEYS: Final = "public.sealing_keys"
# What a process noted at its start: of keys that have sealed nothing yet, of the stream's server.
_CLEARED: Final = (SEALING_KEYS, "public.spent_entries", "public.stream_bases")
# An entry that is read again after a restore is another one to the counters, though it bears its old id.
_LEFT_OUT_COLUMNS: Final = {"public.event_ids": {"entry_id"}}
_LOCK_TIMEOUT_S: Final = 10
_OURS: Final = "n.nspname IN ('public', 'timeseries') AND c.relkind IN ('r', 'p')"
_LIST_TABLES: Final = f"""
SELECT n.nspname || '.' || c.relname AS name,
    array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attgenerated = '') AS columns
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE {_OURS} AND NOT c.relispartition GROUP BY 1 ORDER BY 1
"""  # noqa: S608 - constants
_LIST_REFERENCES: Final = f"""
SELECT n.nspname || '.' || c.relname AS name, rn.nspname || '.' || r.relname AS needs
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class r ON r.oid = k.confrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace
WHERE k.contype = 'f' AND k.conrelid <> k.confrelid AND {_OURS} AND NOT c.relispartition
"""  # noqa: S608 - constants
_LIST_PARTITIONS: Final = f"""
SELECT pn.nspname || '.' || p.relname AS parent, n.nspname || '.' || c.relname AS name,
    pg_get_expr(c.relpartbound, c.oid) AS bounds
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_inherits i ON i.inhrelid = c.oid
JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace
WHERE {_OURS} AND c.relispartition AND pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT' ORDER BY 2
"""  # noqa: S608 - constants
# By one connection to each node, which from then on sees that moment. Of the rows none is read.
_REACH_NODES: Final = (
    "SET LOCAL citus.max_adaptive_executor_pool_size = 1",
    "SELECT FROM event_ids WHERE now() < '-infinity'",
)
# What comes from a file becomes part of a statement only in this form.
_NAME: Final = re.compile(r"(public|timeseries)\.[a-z_0-9]+")
_BOUNDS: Final = re.compile(r"FOR VALUES FROM \('?[-+:.0-9 ]+'?\) TO \('?[-+:.0-9 ]+'?\)")


@dataclass
class Snapshot:
    """The database at one moment."""

    connection: asyncpg.Connection
    revision: str
    tables: dict[str, list[str]]
    partitions: list[Partition]
    canaries: dict[str, str]
    places: list[tuple[int, str]]
    """Each shard's database, where this is the directory."""

    async def count_rows(self) -> int:
        """Of all tables."""
        return sum([await self.connection.fetchval(f"SELECT count(*) FROM {one}") for one in self.tables])  # noqa: S608

    async def copy_table(self, name: str, write: Callable[[bytes], Any]) -> None:
        """Its rows as COPY writes them."""

        async def take(data: bytes) -> None:
            write(data)

        query = f"SELECT {_quote(self.tables[name])} FROM {name}"  # noqa: S608 - the database's own names
        await self.connection.copy_from_query(query, output=take)


@asynccontextmanager
async def open_snapshot(pool: asyncpg.Pool, only: Collection[str] | None = None) -> AsyncIterator[Snapshot]:
    """
    What was committed before now, of all tables or of these; needs a member of `app_maintenance`, which sees every row.

    Raises Unavailable (NB-2003) whenever the database goes away.
    """
    with _translate():
        async with _begin_snapshot(pool) as snapshot:
            if only is not None:
                snapshot.tables = {name: columns for name, columns in snapshot.tables.items() if name in only}
            yield snapshot


@asynccontextmanager
async def _begin_snapshot(pool: asyncpg.Pool) -> AsyncIterator[Snapshot]:
    async with (
        pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        async with _hold_batches(pool) as is_on_citus:
            revision = await connection.fetchval("SELECT version_num FROM public.alembic_version")
            await connection.execute("SET LOCAL ROLE app_maintenance")
            if is_on_citus:
                for statement in _REACH_NODES:
                    await connection.execute(statement)
        tables = await _list_tables(connection)
        rows = await connection.fetch(_LIST_PARTITIONS)
        partitions = [Partition(row["parent"], row["name"], row["bounds"]) for row in rows]
        canaries = dict(await connection.fetch("SELECT key_id, canary FROM sealing_keys"))
        has_map = await connection.fetchval("SELECT to_regclass('public.shard_map') IS NOT NULL")
        places = await connection.fetch("SELECT shard, database FROM shard_map ORDER BY 1") if has_map else []
        yield Snapshot(connection, revision, tables, partitions, canaries, [tuple(row) for row in places])


@asynccontextmanager
async def _hold_batches(pool: asyncpg.Pool) -> AsyncIterator[bool]:
    """On Citus, and it says whether: its nodes' moments would not be one if a batch were stored between them."""
    if not await pool.fetchval("SELECT to_regclass('pg_catalog.pg_dist_node') IS NOT NULL"):
        yield False
        return
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE learner_states IN SHARE MODE")  # which every batch writes to
        yield True


async def read_clock(pool: asyncpg.Pool) -> datetime:
    """The database's time."""
    now: datetime = await pool.fetchval("SELECT clock_timestamp()")
    return now


class Load:
    """The loading of an empty database, until its transaction ends."""

    def __init__(self, connection: asyncpg.Connection, tables: dict[str, list[str]]) -> None:
        self.connection, self._tables = connection, tables

    async def make_partitions(self, partitions: Iterable[Partition]) -> None:
        """Those that are not there, protected like the ones the worker makes."""
        for one in partitions:
            if not (_NAME.fullmatch(one.name) and one.parent in self._tables and _BOUNDS.fullmatch(one.bounds)):
                raise StartupError("NB-3072", path="partitions", detail=one.name)
            if await self.connection.fetchval("SELECT to_regclass($1) IS NOT NULL", one.name):
                continue
            for statement in (
                f"CREATE TABLE {one.name} PARTITION OF {one.parent} {one.bounds}",
                f"ALTER TABLE {one.name} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
                f"REVOKE ALL ON {one.name} FROM app_reader, app_writer, app_user, nbpulse_operator",
            ):
                await self.connection.execute(statement)

    def order(self, tables: Iterable[Table]) -> list[Table]:
        """Each after those it refers to here: where the archive was made (on Citus) there may be fewer references."""
        places = {name: place for place, name in enumerate(self._tables)}
        return sorted(tables, key=lambda table: places[table.name])

    async def load_table(self, table: Table, chunks: Iterator[bytes], *, into: str | None = None) -> None:
        """
        Its rows; `into` a temporary table like it. Raises StartupError (NB-3072) when they do not fit; the whole load
        is then undone.
        """
        if not set(table.columns) <= set(self._tables.get(table.name, ())):
            raise StartupError("NB-3072", path=table.name, detail=", ".join(table.columns))
        schema, _, name = table.name.partition(".")
        if into is not None:
            schema, name = "pg_temp", into
        try:
            copying = self.connection.copy_to_table(
                name, schema_name=schema, columns=table.columns, source=_follow(chunks)
            )
            await _await_or_lose(self.connection, copying)
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
            raise StartupError("NB-3072", path=table.name, detail=type(error).__name__) from error

    async def finish(self, began_at: datetime) -> tuple[datetime, datetime] | None:
        """
        Statistics for the planner; the span of the ledger, None when it is empty.

        A letter sent on its way again while the stream was being read may be in neither: it is due again.
        """
        await self.connection.execute("UPDATE dead_letters SET replayed_at = NULL WHERE replayed_at >= $1", began_at)
        await self.connection.execute(f"ANALYZE {', '.join(self._tables)}")
        first, last = await self.connection.fetchrow("SELECT min(occurred_at), max(occurred_at) FROM events")
        return None if first is None else (first, last)


@asynccontextmanager
async def open_load(pool: asyncpg.Pool, tables: Sequence[Table]) -> AsyncIterator[Load]:
    """
    The tables of an empty database, ours alone until everything or nothing is there.

    Raises StartupError: rows are there (NB-3074), its tables are not the archive's (NB-3072); Unavailable (NB-2003)
    whenever the database goes away. COPY refuses tables with row-level security, so the owner is let in for the length
    of the transaction, which no other sees.
    """
    with _translate():
        async with _begin_load(pool, tables) as load:
            yield load


@asynccontextmanager
async def _begin_load(pool: asyncpg.Pool, tables: Sequence[Table]) -> AsyncIterator[Load]:
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL ROLE nbpulse_owner")
        await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_S}s'")
        found = await _list_tables(connection)
        if set(found) != {table.name for table in tables}:
            names = ", ".join(sorted(set(found) ^ {table.name for table in tables}))
            raise StartupError("NB-3072", path="tables", detail=names)
        forced = await connection.fetch(
            f"SELECT n.nspname || '.' || c.relname AS name FROM pg_class c"  # noqa: S608 - constants
            f" JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_OURS} AND relforcerowsecurity"
        )
        opened = [row["name"] for row in forced if row["name"] in {*found, *_CLEARED}]
        try:
            for name in opened:
                await connection.execute(f"ALTER TABLE {name} NO FORCE ROW LEVEL SECURITY")
        except asyncpg.LockNotAvailableError as error:
            raise StartupError("NB-3074", place=name) from error
        for name in _CLEARED:
            if name in opened:  # a table that an older schema has
                await connection.execute(f"DELETE FROM {name}")  # noqa: S608 - a constant
        for name in found:
            if await connection.fetchval(f"SELECT EXISTS (SELECT 1 FROM {name})"):  # noqa: S608
                raise StartupError("NB-3074", place=name)
        yield Load(connection, found)
        for name in opened:
            await connection.execute(f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY")


async def _list_tables(connection: asyncpg.Connection) -> dict[str, list[str]]:
    """Every table that is copied with its columns, each after those it refers to."""
    columns = {
        name: [column for column in columns if column not in _LEFT_OUT_COLUMNS.get(name, ())]
        for name, columns in await connection.fetch(_LIST_TABLES)
    }
    order: TopologicalSorter[str] = TopologicalSorter({name: set() for name in columns})
    for row in await connection.fetch(_LIST_REFERENCES):
        order.add(row["name"], row["needs"])
    return {name: columns[name] for name in order.static_order() if name not in LEFT_OUT}


def _quote(columns: Iterable[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


async def _follow(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def _await_or_lose(connection: asyncpg.Connection, copying: Coroutine[Any, Any, str]) -> None:
    """The driver waits without an end for leave to write on when the server dies while its buffer is full."""
    lost = asyncio.get_running_loop().create_future()

    def note(_: object) -> None:
        if not lost.done():
            lost.set_result(None)

    connection.add_termination_listener(note)
    task = asyncio.ensure_future(copying)
    try:
        await asyncio.wait({task, lost}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=1)
            raise ConnectionResetError("the database has gone in the middle of COPY")
        await task
    finally:
        connection.remove_termination_listener(note)


@contextmanager
def _translate() -> Iterator[None]:
    try:
        yield
    except UNAVAILABLE as error:
        raise Unavailable("NB-2003") from error
