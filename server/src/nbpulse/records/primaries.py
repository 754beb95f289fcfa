"""Further databases for students' rows, set up by PostgreSQL's own logical replication.

Each has the same schema by the same migrations. What its row-level security, foreign keys and joins need of the
directory comes by the publication `nbpulse_directory`, one subscription in each database; its apply bypasses row-level
security, as tables are FORCEd to keep it.

Promises: everything here can be done again after being killed at any point; no password is stored in a table of ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from nbpulse.errors import StartupError

_PART_S: Final = 30.0
DIRECTORY: Final = "nbpulse_directory"
REPLICATOR: Final = "nbpulse_replicator"
PUBLISHED: Final = (
    *("users", "courses", "enrolments", "notebooks", "notebook_cells", "class_meetings", "collection_versions"),
)
# The join code lets people in, and is the directory's alone; each database's own look at its notebooks (derived.py).
_KEPT_BACK: Final = {"courses": {"join_code"}, "notebooks": {"items_digest", "items_marked_at"}}
_LIST_COLUMNS: Final = """
SELECT c.relname::text AS name, array_agg(a.attname::text ORDER BY a.attnum) AS columns
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY($1::text[]) GROUP BY c.relname ORDER BY c.relname
"""
_EXAMINE: Final = """
SELECT current_setting('server_version_num')::int AS version, current_setting('wal_level') AS wal_level,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser,
    to_regclass('public.alembic_version') IS NOT NULL AS has_tables,
    EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p')) AS has_any
"""
_MAKE_REPLICATOR: Final = f"""
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{REPLICATOR}') THEN
        CREATE ROLE {REPLICATOR} LOGIN NOSUPERUSER;
    END IF;
END $$;
ALTER ROLE {REPLICATOR} REPLICATION BYPASSRLS;
GRANT pg_read_all_data TO {REPLICATOR}
"""
_COUNT_SYNCED: Final = """
SELECT count(*) FILTER (WHERE r.srsubstate = 'r') AS done, count(*) AS total
FROM pg_subscription s JOIN pg_subscription_rel r ON r.srsubid = s.oid JOIN pg_database d ON d.oid = s.subdbid
WHERE s.subname = $1 AND d.datname = current_database()
"""
_HAS_SUBSCRIPTION: Final = """
SELECT EXISTS (SELECT FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
    WHERE s.subname = $1 AND d.datname = current_database())
"""


async def check_server(pool: asyncpg.Pool, name: str) -> bool:
    """
    Whether the database has our tables; it can take part. Raises StartupError: PostgreSQL or the login does not do
    (NB-3124), its write-ahead log does not tell enough (NB-3123), there is something else in it (NB-3125).
    """
    found = await pool.fetchrow(_EXAMINE)
    if found["version"] < 150_000 or not found["is_superuser"]:
        raise StartupError("NB-3124", database=name, version=found["version"] // 10_000)
    if found["wal_level"] != "logical":
        raise StartupError("NB-3123", database=name, found=found["wal_level"])
    if found["has_any"] and not found["has_tables"]:
        raise StartupError("NB-3125", database=name)
    return bool(found["has_tables"])


async def check_new(pool: asyncpg.Pool, name: str) -> None:
    """Raises StartupError (NB-3125): the database is a directory itself, with people in it that came from nowhere."""
    if await pool.fetchval(_HAS_SUBSCRIPTION, DIRECTORY):
        return
    if await pool.fetchval("SELECT EXISTS (SELECT FROM users) OR EXISTS (SELECT FROM events)"):
        raise StartupError("NB-3125", database=name)


async def empty_hands(pool: asyncpg.Pool) -> None:
    """A new database holds no shard, and is nobody's directory: its own map is empty, so a start on it is refused."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("UPDATE shard_owners SET is_here = FALSE")
        await connection.execute("DELETE FROM shard_map")


async def make_replicator(pool: asyncpg.Pool, password: str) -> None:
    """The login by which other servers read this one."""
    await pool.execute(_MAKE_REPLICATOR)
    literal = password.replace("'", "''")
    await pool.execute(f"ALTER ROLE {REPLICATOR} PASSWORD '{literal}'")


async def publish_directory(pool: asyncpg.Pool) -> None:
    """What every database needs of the directory, with the columns that the tables have now."""
    rows = await pool.fetch(_LIST_COLUMNS, list(PUBLISHED))
    tables = ", ".join(
        f"{row['name']} ({', '.join(one for one in row['columns'] if one not in _KEPT_BACK.get(row['name'], ()))})"
        for row in rows
    )
    is_there = await pool.fetchval("SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)", DIRECTORY)
    await pool.execute(
        f"ALTER PUBLICATION {DIRECTORY} SET TABLE {tables}"
        if is_there
        else f"CREATE PUBLICATION {DIRECTORY} FOR TABLE {tables}"
    )


def make_slot_name(publication: str, source_url: str, target_url: str) -> str:
    """Of one server's slots, which may serve several sites: told apart by who reads what."""
    of = hashlib.sha256(f"{strip_password(source_url)} {strip_password(target_url)}".encode()).hexdigest()[:12]
    return f"{publication}_{of}"


def strip_password(url: str) -> str:
    """A URL as it may be stored and shown."""
    parts = urlsplit(url)
    user, _, address = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}@{address}" if user else address))


async def subscribe(
    source: asyncpg.Pool,
    target: asyncpg.Pool,
    publication: str,
    *,
    slot: str,
    conninfo: str,
    clear: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """
    Have `target` follow a publication of `source` from now on, what is there already copied first (after `clear`, which
    removes what an earlier copy left).

    The slot is made apart from the subscription, so that a server may follow itself and a crash between the two leaves
    nothing that the next try does not find. Raises StartupError (NB-3126): the one cannot read the other.
    """
    has_slot = await source.fetchval("SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)", slot)
    if await target.fetchval(_HAS_SUBSCRIPTION, publication):
        if has_slot:
            await target.execute(f"ALTER SUBSCRIPTION {publication} ENABLE")
            return
        await unsubscribe(target, publication)
    if clear is not None:
        await clear()
    if not has_slot:
        await source.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot)
    # From 16 on it would else apply as each table's owner, whom row-level security refuses.
    version = await target.fetchval("SELECT current_setting('server_version_num')::int")
    as_owner = ", run_as_owner = true" if version >= 160_000 else ""
    literal = conninfo.replace("'", "''")
    try:
        await target.execute(
            f"CREATE SUBSCRIPTION {publication} CONNECTION '{literal}' PUBLICATION {publication}"
            f" WITH (create_slot = false, slot_name = '{slot}', synchronous_commit = 'on'{as_owner})"
        )
    except asyncpg.PostgresError as error:
        raise StartupError("NB-3126", detail=str(error)) from error


async def unsubscribe(target: asyncpg.Pool, publication: str) -> None:
    """End a subscription, whatever has become of its source; the slot there is dropped by `drop_slot`."""
    if await target.fetchval(_HAS_SUBSCRIPTION, publication):
        await target.execute(f"ALTER SUBSCRIPTION {publication} DISABLE")
        await target.execute(f"ALTER SUBSCRIPTION {publication} SET (slot_name = NONE)")
        await target.execute(f"DROP SUBSCRIPTION {publication}")


async def drop_slot(source: asyncpg.Pool, slot: str) -> None:
    """Drop a slot, as soon as its reader has gone. Raises what the driver raises when it does not go within 30 s."""
    deadline_s = time.monotonic() + _PART_S
    while await source.fetchval("SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)", slot):
        try:
            await source.execute("SELECT pg_drop_replication_slot($1)", slot)
        except asyncpg.ObjectInUseError:
            if time.monotonic() > deadline_s:
                raise
            await asyncio.sleep(0.05)


async def count_synced(target: asyncpg.Pool, publication: str) -> tuple[int, int]:
    """Tables of a subscription whose first copy is done and which follow since, and all of them."""
    row = await target.fetchrow(_COUNT_SYNCED, publication)
    return row["done"], row["total"]


async def add_database(directory: asyncpg.Pool, name: str, url: str) -> None:
    """Register it; from now on shards may be moved there. Raises StartupError (NB-3122): another has that name."""
    stored = strip_password(url)
    await directory.execute(
        "INSERT INTO shard_databases (name, url) VALUES ($1, $2) ON CONFLICT DO NOTHING", name, stored
    )
    if await directory.fetchval("SELECT url FROM shard_databases WHERE name = $1", name) != stored:
        raise StartupError("NB-3122", name=name)
