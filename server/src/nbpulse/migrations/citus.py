"""Distributes the schema over a Citus cluster: what grows with time by student, everything else on the coordinator.

Promises: rows that are there move with their tables; each table is distributed in a transaction of its own, so whatever
was killed goes on where it stopped; done again it changes nothing. Why so and not otherwise: docs/decisions/0034.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Final

import asyncpg

from nbpulse.errors import StartupError

# The first is what the others stand beside: a student's rows of all of them are on one node.
TABLES: Final = ("events", "event_ids", "event_contents", "learning_sessions", "learner_cells")
# Citus connects to the other nodes as whoever runs the statement. No password: a node lets them in by its pg_hba.conf.
_ACTING_ROLES: Final = ("nbpulse_owner", "app_maintenance", "app_staff")
_FIND_NODES = "SELECT count(*) FROM pg_dist_node WHERE isactive AND noderole = 'primary' AND shouldhaveshards"
_FIND_STATE = """
SELECT p.partmethod::text AS method, column_to_column_name(p.logicalrelid, p.partkey) AS key,
    p.colocationid = (SELECT colocationid FROM pg_dist_partition WHERE logicalrelid = $2::text::regclass) AS is_beside
FROM pg_dist_partition p WHERE p.logicalrelid = $1::text::regclass
"""
# Foreign keys to tables that stay on the coordinator.
_FIND_KEYS = """
SELECT conname FROM pg_constraint WHERE conrelid = $1::text::regclass AND contype = 'f' AND conparentid = 0
"""
_HAS_LOCAL_ROWS = "SELECT bool_or(pg_relation_size(relid) > 0) FROM pg_partition_tree($1::text::regclass)"
# SET LOCAL goes to the other nodes, set_config() does not; there no table of people could answer a policy.
_ASK_AS = """
CREATE OR REPLACE FUNCTION ask_as(person text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('SET LOCAL app.current_user_id = %L', person);
    IF person <> '' THEN
        EXECUTE format('SET LOCAL app.my_whole_courses = %L', person || public.find_my_whole_courses()::text);
        EXECUTE format('SET LOCAL app.my_read_courses = %L', person || public.find_my_read_courses()::text);
        EXECUTE format('SET LOCAL app.my_team_students = %L', person || ' ' || public.find_my_team_students());
    END IF;
    RETURN person;
END $$
"""


async def distribute(database_url: str, passwords: Mapping[str, str]) -> AsyncIterator[tuple[int, int, str]]:
    """
    Distribute the newest schema; after each table its number, how many there are, and its name.

    Writers of a table wait while it is copied. Raises StartupError: no Citus in the database (NB-3115), no node to put
    rows on (NB-3116), a table is distributed otherwise (NB-3117), Citus refuses (NB-3118).
    """
    connection = await asyncpg.connect(database_url, timeout=10)
    try:
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"):
            raise StartupError("NB-3115")
        if not await connection.fetchval(_FIND_NODES):
            raise StartupError("NB-3116")
        for table in TABLES:
            state = await connection.fetchrow(_FIND_STATE, table, TABLES[0])
            if state and (state["method"], state["key"], state["is_beside"]) != ("h", "user_id", True):
                raise StartupError("NB-3117", table=table)
        await _prepare(connection, passwords)
        for number, table in enumerate(TABLES, 1):
            await _distribute(connection, table)
            yield number, len(TABLES), table
    except asyncpg.PostgresError as error:
        raise StartupError("NB-3118", detail=str(error)) from error
    finally:
        await connection.close()


async def _prepare(connection: asyncpg.Connection, passwords: Mapping[str, str]) -> None:
    """What holds for the whole database, on every node."""
    name = await connection.fetchval("SELECT quote_ident(current_database())")
    await connection.execute(f"ALTER DATABASE {name} SET citus.propagate_set_commands = 'local'")
    for role in _ACTING_ROLES:
        await connection.execute(f"ALTER ROLE {role} LOGIN")
    async with connection.transaction():
        await connection.execute("SET LOCAL citus.enable_ddl_propagation = off")  # for the coordinator alone
        await connection.execute("SET LOCAL ROLE nbpulse_owner")
        await connection.execute(_ASK_AS)


async def _distribute(connection: asyncpg.Connection, table: str) -> None:
    if not await connection.fetchrow(_FIND_STATE, table, TABLES[0]):
        async with connection.transaction():
            for key in await connection.fetch(_FIND_KEYS, table):
                await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {key['conname']}")
            beside = "none" if table == TABLES[0] else TABLES[0]
            await connection.execute("SELECT create_distributed_table($1::text::regclass, 'user_id', colocate_with => $2)", table, beside)
    if await connection.fetchval(_HAS_LOCAL_ROWS, table):  # what has been copied: nobody sees it, erasure would not either
        await connection.execute("SELECT truncate_local_data_after_distributing_table($1::text::regclass)", table)
