"""Everything in the database that is sealed: under which keys, and its sealing anew under the newest.

Promises: keys that do not open what is sealed are found at the start of a process, not at the first read; sealing anew
goes on where a killed run stopped, and never overwrites what changed meanwhile; what it counts is read, not remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import asyncpg

from nbpulse.crypto import EncryptedField, SealBroken
from nbpulse.errors import StartupError
from nbpulse.metrics import named_query

BATCH_ROWS: Final = 500
_LOCK: Final = 6_622_002
_CANARY: Final = {"table": "sealing_keys", "column": "canary", "user_id": UUID(int=0)}
_EVENT: Final = {"user_id": "uuid", "shard": "smallint", "event_id": "uuid"}
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class SealedColumn:
    """A column of sealed texts and its table's primary key (column -> type)."""

    table: str
    column: str
    key: Mapping[str, str]

    def compose_read(self, *, is_first: bool) -> str:
        """The next $1 texts in the key's order, after the key given as text in $2 and on."""
        names = ", ".join(self.key)
        after = ", ".join(f"${number}::text::{kind}" for number, kind in enumerate(self.key.values(), 2))
        place = "" if is_first else f"AND ({names}) > ({after})"
        texts = ", ".join(f"{name}::text" for name in self.key)
        return (
            f"SELECT {self.column} AS sealed, ARRAY[{texts}] AS key FROM {self.table}"  # noqa: S608 - our own names
            f" WHERE {self.column} IS NOT NULL {place} ORDER BY {names} LIMIT $1"
        )

    def compose_write(self) -> str:
        """$1 the texts as they were, $2 as they shall be, $3 and on the columns of the key as text."""
        # Whole arrays are cast: Citus takes no cast of one row's value that depends on a setting, as to a time.
        arrays = ", ".join(f"${number}::text[]::{kind}[]" for number, kind in enumerate(self.key.values(), 3))
        aliases = ", ".join(f"k{number}" for number in range(len(self.key)))
        same = " AND ".join(f"t.{name} = k.k{number}" for number, name in enumerate(self.key))
        return (
            f"UPDATE {self.table} t SET {self.column} = k.fresh"  # noqa: S608 - our own names
            f" FROM unnest($1::text[], $2::text[], {arrays}) AS k(old, fresh, {aliases})"
            f" WHERE {same} AND t.{self.column} = k.old"
        )


# A test looks through every text column of a full database for sealed values outside this list.
SEALED_COLUMNS: Final = (
    SealedColumn("users", "display_name", {"id": "uuid"}),
    SealedColumn("enrolments", "roster_name", {"user_id": "uuid", "course_id": "uuid"}),
    SealedColumn("enrolments", "roster_kana", {"user_id": "uuid", "course_id": "uuid"}),
    SealedColumn("events", "error_message", {**_EVENT, "occurred_at": "timestamptz"}),
    SealedColumn("events", "traceback", {**_EVENT, "occurred_at": "timestamptz"}),
    SealedColumn("event_contents", "source", _EVENT),
    SealedColumn("event_contents", "output", _EVENT),
    SealedColumn("learner_states", "help_text", {"user_id": "uuid", "shard": "smallint", "course_id": "uuid"}),
    SealedColumn("help_requests", "message", {"user_id": "uuid", "shard": "smallint", "id": "uuid"}),
    SealedColumn("messages", "body", {"user_id": "uuid", "shard": "smallint", "id": "uuid"}),
    SealedColumn("messages", "source", {"user_id": "uuid", "shard": "smallint", "id": "uuid"}),
    SealedColumn("interventions", "note", {"user_id": "uuid", "shard": "smallint", "id": "uuid"}),
    SealedColumn("dead_letters", "payload", {"id": "uuid"}),
    SealedColumn("series_debt", "sealed_points", {"id": "uuid"}),
)


@named_query("check_keys")
async def check_keys(pool: asyncpg.Pool, seal: EncryptedField) -> None:
    """
    Whether `seal` opens what this database holds; a key that is new in front of known ones becomes known.

    In a database that knows no key yet one text of each column is tried. Raises StartupError (NB-3060).
    """
    rows = await pool.fetch("SELECT key_id, canary FROM sealing_keys")
    check_canaries(seal, (row["canary"] for row in rows))
    try:
        for found in () if rows else await pool.fetch("SELECT find_sealed_samples() AS sealed"):
            seal.decrypt(found["sealed"])
    except SealBroken as broken:
        raise StartupError("NB-3060") from broken
    if seal.key_ids[0] not in {row["key_id"] for row in rows}:
        await pool.execute(
            "INSERT INTO sealing_keys (key_id, canary) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            seal.key_ids[0],
            make_canary(seal),
        )


def make_canary(seal: EncryptedField) -> str:
    """A text that only the newest key opens."""
    return seal.seal("opens", **_CANARY)  # type: ignore[arg-type]


def check_canaries(seal: EncryptedField, canaries: Iterable[str]) -> None:
    """Whether `seal` opens every one. Raises StartupError (NB-3060)."""
    try:
        for canary in canaries:
            seal.unseal(canary, **_CANARY)  # type: ignore[arg-type]
    except SealBroken as broken:
        raise StartupError("NB-3060") from broken


@asynccontextmanager
async def hold_rotation(pool: asyncpg.Pool) -> AsyncIterator[None]:
    """One rotation at a time, under a login that sees every row. Raises StartupError (NB-3062, NB-3063)."""
    if not await pool.fetchval("SELECT pg_has_role('app_maintenance', 'USAGE')"):
        raise StartupError("NB-3063")
    async with pool.acquire() as connection:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
            raise StartupError("NB-3062")
        try:
            yield
        finally:
            await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)


async def reseal_all(pool: asyncpg.Pool, seal: EncryptedField, report: Report, *, but: Collection[str] = ()) -> int:
    """
    Seal every text anew that is not under the newest key; how many that were, a killed run before included. `but`:
    tables that are left alone, as another database's come to replace them.

    `report(done, total)` is told of texts looked at. Raises StartupError (NB-3060): a text opens under no key.
    """
    key_id, total, done = seal.key_ids[0], await _count_texts(pool), 0
    resealed = 0
    for column in SEALED_COLUMNS:
        if column.table in but:
            continue
        async with pool.acquire() as connection:
            place = await connection.fetchrow(
                "SELECT last_key, resealed FROM sealing_progress"
                " WHERE key_id = $1 AND table_name = $2 AND column_name = $3",
                key_id,
                column.table,
                column.column,
            )
            here: int = place["resealed"] if place else 0
            async for rows in _read_batches(connection, column, place["last_key"] if place else None):
                async with connection.transaction():
                    here += await _reseal_batch(connection, column, seal, rows)
                    await connection.execute(
                        "INSERT INTO sealing_progress VALUES ($1, $2, $3, $4, $5) ON CONFLICT"
                        " (key_id, table_name, column_name) DO UPDATE SET last_key = $4, resealed = $5",
                        key_id,
                        column.table,
                        column.column,
                        rows[-1]["key"],
                        here,
                    )
                done += len(rows)
                report(done, total)
            resealed += here
    # The next run looks at everything again: what was written meanwhile under an older key is found then.
    await pool.execute("DELETE FROM sealing_progress")
    report(total, total)
    return resealed


async def count_older(pool: asyncpg.Pool, seal: EncryptedField, report: Report) -> int:
    """How many texts are not under the newest key, once every transaction begun before now has ended."""
    total, done, older = await _count_texts(pool), 0, 0
    await _await_earlier_transactions(pool)
    async with pool.acquire() as connection:
        for column in SEALED_COLUMNS:
            async for rows in _read_batches(connection, column, None):
                older += sum(not seal.is_newest(row["sealed"]) for row in rows)
                done += len(rows)
                report(done, total)
    return older


async def forget_older_keys(pool: asyncpg.Pool, seal: EncryptedField) -> None:
    """From now on a process starts without them."""
    await pool.execute("DELETE FROM sealing_keys WHERE key_id <> $1", seal.key_ids[0])


async def _read_batches(
    connection: asyncpg.Connection, column: SealedColumn, after: list[str] | None
) -> AsyncIterator[list[Any]]:
    while rows := await connection.fetch(column.compose_read(is_first=after is None), BATCH_ROWS, *(after or ())):
        yield rows
        after = rows[-1]["key"]


async def _reseal_batch(
    connection: asyncpg.Connection, column: SealedColumn, seal: EncryptedField, rows: list[Any]
) -> int:
    older = [row for row in rows if not seal.is_newest(row["sealed"])]
    if not older:
        return 0
    try:
        fresh = [seal.reseal(row["sealed"]) for row in older]
    except SealBroken as broken:
        raise StartupError("NB-3060") from broken
    keys = [list(values) for values in zip(*(row["key"] for row in older), strict=True)]
    await connection.execute(column.compose_write(), [row["sealed"] for row in older], fresh, *keys)
    return len(older)


async def _count_texts(pool: asyncpg.Pool) -> int:
    counts = [
        await pool.fetchval(f"SELECT count({column.column}) FROM {column.table}")  # noqa: S608 - our own names
        for column in SEALED_COLUMNS
    ]
    return sum(counts)


async def _await_earlier_transactions(pool: asyncpg.Pool) -> None:
    """A text sealed before the newest key was known may still wait for its commit."""
    now = await pool.fetchval("SELECT clock_timestamp()")
    while await pool.fetchval(  # noqa: ASYNC110 - the database tells nobody when a transaction ends
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start < $1"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid()",
        now,
    ):
        await asyncio.sleep(0.05)
