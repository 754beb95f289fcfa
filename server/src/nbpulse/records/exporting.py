"""Everything the database holds of a person, table by table, with what is sealed opened.

Promises: which tables and columns there are is asked of the database, so that a new one is not forgotten; what the
login may not see is left out, and no secret is given to anybody.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from nbpulse.crypto import EncryptedField
from nbpulse.portable import ExportWriter
from nbpulse.records.moves import MADE_ANEW, MOVED, ROLLED_UP
from nbpulse.records.sealing import SEALED_COLUMNS

BATCH_ROWS: Final = 2_000
_LIST: Final = """
SELECT c.oid::regclass::text AS name,
    array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE has_column_privilege(c.oid, a.attnum, 'SELECT')
        AND a.attname !~ '(^|_)hash$') AS columns
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname IN ('public', 'timeseries') AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND EXISTS (SELECT FROM pg_attribute u WHERE u.attrelid = c.oid AND u.attname = 'user_id')
GROUP BY c.oid ORDER BY 1
"""
# Beside the tables that have a `user_id`: who they are, what their rows refer to, what they were told, who looked.
_MORE: Final = {
    "users": "SELECT id, username, display_name, role, created_at, updated_at FROM users WHERE id = ANY($1::uuid[])",
    "courses": "SELECT c.id, c.title, c.short_name FROM courses c WHERE c.id IN"
    " (SELECT course_id FROM enrolments WHERE user_id = ANY($1::uuid[]))",
    "notebooks": "SELECT id, course_id, path, title FROM notebooks WHERE id IN"
    " (SELECT notebook_id FROM learning_sessions WHERE user_id = ANY($1::uuid[]))",
    "collection_versions": "SELECT v.course_id, v.version, v.level, v.without, v.notice_ja, v.notice_en, v.created_at"
    " FROM collection_versions v WHERE v.course_id IN"
    " (SELECT course_id FROM enrolments WHERE user_id = ANY($1::uuid[])) ORDER BY v.course_id, v.version",
    "audit_log": "SELECT id, at, actor_id, action, course_id, subject_id, facts FROM audit_log"
    " WHERE subject_id = ANY($1::uuid[]) OR actor_id = ANY($1::uuid[]) ORDER BY id",
}
# Where a student's rows are in another database; what the directory has of the other tables is as new.
_AT_HOME: Final = frozenset((*MOVED, *MADE_ANEW, "notebooks")).difference(ROLLED_UP)
_SEALED: Final = {(one.table, one.column) for one in SEALED_COLUMNS}


class Batch(NamedTuple):
    """Some rows of one table; a table comes in one run of batches."""

    table: str
    columns: Sequence[str]
    rows: list[list[Any]]


@asynccontextmanager
async def read_all(pools: Iterable[asyncpg.Pool]) -> AsyncIterator[list[asyncpg.Connection]]:
    """A connection of each database, in a snapshot of its own, in their order."""
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(pool.acquire()) for pool in pools]
        for connection in connections:
            await stack.enter_async_context(connection.transaction(isolation="repeatable_read"))
        yield connections


async def read_person(
    connection: asyncpg.Connection,
    seal: EncryptedField,
    user_ids: Sequence[UUID],
    homes: Sequence[asyncpg.Connection] = (),
) -> AsyncIterator[Batch]:
    """
    Every row of these users that the connection's login sees. In the caller's transaction. `homes`: the databases of
    their rows, where these are elsewhere than in the directory.
    """
    tables = await connection.fetch(_LIST)
    queries = {
        row["name"]: f"SELECT {', '.join(row['columns'])} FROM {row['name']} WHERE user_id = ANY($1::uuid[])"  # noqa: S608
        for row in tables
        if row["columns"]
    }
    for table, query in ({**_MORE, **queries}).items():
        for place in (homes or (connection,)) if table in _AT_HOME else (connection,):
            cursor = await place.cursor(query, user_ids)
            while found := await cursor.fetch(BATCH_ROWS):
                columns = list(found[0].keys())
                yield Batch(table, columns, [_open(seal, table, row) for row in found])


def _open(seal: EncryptedField, table: str, row: asyncpg.Record) -> list[Any]:
    owner = row["id"] if table == "users" else row.get("user_id")
    return [_open_value(seal, table, name, value, owner) for name, value in row.items()]


def _open_value(seal: EncryptedField, table: str, column: str, value: Any, owner: UUID | None) -> Any:
    if value is None:
        return None
    if (table, column) in _SEALED and owner is not None:
        return seal.unseal(value, table=table, column=column, user_id=owner)
    if isinstance(value, bytes):  # the learner state as it is kept
        return msgspec.msgpack.decode(value)
    if column in ("data", "facts") and isinstance(value, str):
        return json.loads(value)
    return value


async def write_tables(
    connection: asyncpg.Connection,
    seal: EncryptedField,
    user_ids: Sequence[UUID],
    writer: ExportWriter,
    homes: Sequence[asyncpg.Connection] = (),
) -> None:
    """All of `read_person` into `writer`, a table at a time."""
    held: list[Batch] = []
    async for batch in read_person(connection, seal, user_ids, homes):
        if held and held[0].table != batch.table:
            _write(writer, held)
            held = []
        held.append(batch)
    if held:
        _write(writer, held)


def _write(writer: ExportWriter, batches: list[Batch]) -> None:
    writer.write_table(batches[0].table, batches[0].columns, (row for batch in batches for row in batch.rows))
