"""PostgreSQL's files written anew, so that deleted rows are in none of them."""

from __future__ import annotations

import asyncpg

_LIST = """
SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname IN ('public', 'timeseries') AND c.relkind = 'r' AND pg_relation_size(c.oid) > 0 ORDER BY 1
"""
# Of the catalogue, what holds samples of the tables' values.
_STATISTICS = "pg_catalog.pg_statistic"
# Files that wait to be written over, from before.
_COUNT_READY = """
SELECT count(*) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$' AND name > pg_walfile_name(pg_current_wal_lsn())
"""


async def list_tables(pool: asyncpg.Pool) -> list[str]:
    """Every table and partition that has a file with something in it."""
    return [row["name"] for row in await pool.fetch(_LIST)]


async def rewrite_table(pool: asyncpg.Pool, table: str) -> None:
    """A new file of the rows that are there; its statistics are taken anew, since they hold values of old rows."""
    await pool.execute(f"VACUUM (FULL, ANALYZE) {table}", timeout=None)


async def leave_log_behind(pool: asyncpg.Pool) -> bool:
    """
    Go on in new files of the server's log and remove the old ones; False where the login may not. Files that a replica
    or a running backup still needs stay until it has them.
    """
    try:
        await pool.execute(f"VACUUM (FULL) {_STATISTICS}")
        await pool.execute("ALTER SYSTEM SET wal_recycle = off")  # a recycled file keeps its content until written over
        try:
            await pool.execute("SELECT pg_reload_conf()")
            for _ in range(await pool.fetchval(_COUNT_READY) + 1):
                await _begin_file(pool)
            for _ in range(2):
                await pool.execute("CHECKPOINT")
                await _begin_file(pool)
            await pool.execute("CHECKPOINT")
        finally:
            await pool.execute("ALTER SYSTEM RESET wal_recycle")
            await pool.execute("SELECT pg_reload_conf()")
    except asyncpg.InsufficientPrivilegeError:
        return False
    return True


async def _begin_file(pool: asyncpg.Pool) -> None:
    await pool.execute("SELECT pg_logical_emit_message(true, 'nbpulse', 'compact')")  # an empty file is not left
    await pool.execute("SELECT pg_switch_wal()")
