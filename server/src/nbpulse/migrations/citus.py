"""Distributes the schema over a Citus cluster: what grows by student and time, everything else on the coordinator.

Promises: rows that are there move with their tables; each table is distributed in a transaction of its own, so what was
killed goes on where it stopped; done again it changes nothing. Why so and not otherwise: docs/decisions/0034.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from nbpulse.errors import StartupError
from nbpulse.migrations.runner import ENSURE_ROLES

# The first is what the others stand beside: a student's rows of all of them are on one node.
TABLES: Final = ("events", "event_ids", "event_contents", "learning_sessions", "learner_cells")
_SETTINGS: Final = {
    # The identity reaches the nodes.
    "citus.propagate_set_commands": "local",
    # Students' rows are brought to the tables that only the coordinator has: the other way round PostgreSQL cannot plan
    # a join under row-level security ("failed to postpone qual containing lateral reference").
    "citus.local_table_join_policy": "prefer-distributed",
    # Hiding shards from the catalogue made the driver's one look-up of types take seconds, past the API's 5 s.
    "citus.override_table_visibility": "off",
    # How long a worker's transaction may be idle is asked on the coordinator: a node has its part of one, and waits.
    "citus.enable_alter_role_set_propagation": "off",
}
# Citus connects to the other nodes as whoever runs the statement. They get no password: pg_hba.conf lets nodes in.
_ACTING_ROLES: Final = ("nbpulse_owner", "app_maintenance", "app_staff")
_HAS_CITUS = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"
_HAS_NODES = "SELECT EXISTS (SELECT FROM pg_dist_node WHERE isactive AND noderole = 'primary' AND shouldhaveshards)"
# None: not distributed yet.
_IS_AS_WANTED = """
SELECT p.partmethod = 'h' AND column_to_column_name(p.logicalrelid, p.partkey) = 'user_id'
    AND p.colocationid IS NOT DISTINCT FROM
        (SELECT colocationid FROM pg_dist_partition WHERE logicalrelid = to_regclass($2))
FROM pg_dist_partition p WHERE p.logicalrelid = to_regclass($1)
"""
# Foreign keys lead to tables that stay on the coordinator; the ledger's transaction checks people and courses itself.
_LIST_KEYS = """
SELECT conname FROM pg_constraint WHERE conrelid = $1::text::regclass AND contype = 'f' AND conparentid = 0
"""
# A table without rows may have a page.
_HAS_LOCAL_ROWS = "SELECT sum(pg_relation_size(relid)) > 0 FROM pg_partition_tree($1::text::regclass)"
# SET LOCAL reaches the nodes, set_config() does not; and there no table of people could answer a policy.
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


@asynccontextmanager
async def connect(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """
    The owner's connection. Raises StartupError: it does not answer (NB-3053); what Citus or PostgreSQL refuses
    (NB-3118).
    """
    try:
        connection = await asyncpg.connect(database_url, timeout=10)
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise StartupError("NB-3053", detail=f"{type(error).__name__}: {error}") from error
    try:
        yield connection
    except asyncpg.PostgresError as error:
        raise StartupError("NB-3118", detail=str(error)) from error
    finally:
        await connection.close()


async def check(connection: asyncpg.Connection) -> None:
    """
    Raises StartupError: no Citus in the database (NB-3115), no node that takes rows (NB-3116), a table is distributed
    otherwise (NB-3117). Changes nothing.
    """
    if not await connection.fetchval(_HAS_CITUS):
        raise StartupError("NB-3115")
    if not await connection.fetchval(_HAS_NODES):
        raise StartupError("NB-3116")
    for table in TABLES:
        if await connection.fetchval(_IS_AS_WANTED, table, TABLES[0]) is False:
            raise StartupError("NB-3117", table=table)


async def distribute(
    connection: asyncpg.Connection, passwords: Mapping[str, str], report: Callable[[int, int], None]
) -> None:
    """
    Distribute the newest schema; `report` is told (done, total) after each table, whose writers wait while it is
    copied. `passwords` (login -> password) are set on every node.
    """
    await _prepare(connection, passwords)
    for number, table in enumerate(TABLES, 1):
        if await connection.fetchval(_IS_AS_WANTED, table, TABLES[0]) is None:
            await _distribute(connection, table)
        # The rows as they were before, which nobody sees and erasure would not reach.
        if await connection.fetchval(_HAS_LOCAL_ROWS, table):
            await connection.execute("SELECT truncate_local_data_after_distributing_table($1::text::regclass)", table)
        report(number, len(TABLES))


async def _prepare(connection: asyncpg.Connection, passwords: Mapping[str, str]) -> None:
    """Settings, roles and logins on every node."""
    name = await connection.fetchval("SELECT quote_ident(current_database())")
    for setting, value in _SETTINGS.items():
        await connection.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")
    literals = {login: password.replace("'", "''") for login, password in passwords.items()}
    for statement in (
        *ENSURE_ROLES,
        *(f"ALTER ROLE {role} LOGIN" for role in _ACTING_ROLES),
        *(f"ALTER ROLE {login} PASSWORD '{literal}'" for login, literal in literals.items()),
    ):
        await _run_everywhere(connection, statement)
    async with connection.transaction():
        await connection.execute("SET LOCAL citus.enable_ddl_propagation = off")  # the coordinator's alone
        await connection.execute("SET LOCAL ROLE nbpulse_owner")
        await connection.execute(_ASK_AS)


async def _run_everywhere(connection: asyncpg.Connection, statement: str) -> None:
    """Node by node: what was made before there was a cluster is not known to it as something to be passed on."""
    alone = f"SET citus.enable_ddl_propagation = off; {statement}"
    await connection.execute(f"{alone}; RESET citus.enable_ddl_propagation")
    for row in await connection.fetch("SELECT * FROM run_command_on_workers($1, parallel := false)", alone):
        if not row["success"]:
            raise StartupError("NB-3118", detail=f"{row['nodename']}:{row['nodeport']}: {row['result']}")


async def _distribute(connection: asyncpg.Connection, table: str) -> None:
    async with connection.transaction():
        for key in await connection.fetch(_LIST_KEYS, table):
            await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {key['conname']}")
        await connection.execute(
            "SELECT create_distributed_table($1::text::regclass, 'user_id', colocate_with => $2)",
            table,
            "none" if table == TABLES[0] else TABLES[0],
        )
