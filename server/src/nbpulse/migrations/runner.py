"""Brings a database to this version's schema and gives the logins their passwords.

Promises: idempotent, one migration at a time (an advisory lock), safe beside running processes of the same version;
killed at any point and run again it comes to the same end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from nbpulse.records.upkeep import MONTHS_AHEAD

_LOCK = 6_622_001

# Roles belong to the whole server, not to one database: made here, before the first migration, and found afterwards.
_MAKE_ROLES = """
DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY
            ARRAY['nbpulse_owner', 'app_reader', 'app_writer', 'app_user', 'app_staff', 'app_maintenance'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
    FOREACH name IN ARRAY ARRAY['nbpulse_migrator', 'nbpulse_api', 'nbpulse_worker', 'nbpulse_operator'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN NOSUPERUSER NOBYPASSRLS', name);
        END IF;
    END LOOP;
    EXECUTE format('GRANT CREATE ON DATABASE %I TO nbpulse_owner', current_database());
    -- Not inherited (where PostgreSQL can): its policies must not join those of app_user.
    EXECUTE 'GRANT app_staff TO nbpulse_api'
        || CASE WHEN current_setting('server_version_num')::int >= 160000 THEN ' WITH INHERIT FALSE' ELSE '' END;
END $$
"""
ENSURE_ROLES: Final = (
    _MAKE_ROLES,
    "GRANT nbpulse_owner, app_maintenance TO nbpulse_migrator, CURRENT_USER",
    "GRANT nbpulse_migrator TO CURRENT_USER",
    "GRANT app_user TO nbpulse_api",
    "GRANT app_writer TO nbpulse_worker",
    "GRANT CREATE, USAGE ON SCHEMA public TO nbpulse_owner, nbpulse_migrator, app_maintenance",
)
# A worker that stops within a transaction would keep its students' rows from whoever takes over its shards.
_GIVE_UP_IDLE = "ALTER ROLE nbpulse_worker SET idle_in_transaction_session_timeout = '4s'"
# Where Citus is, but nothing distributed yet, the schema is made on this node alone; afterwards Citus changes all.
_KEEP_TO_ONE_NODE = """
DO $$
DECLARE is_distributed boolean;
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        EXECUTE 'SELECT EXISTS (SELECT FROM pg_dist_partition)' INTO is_distributed;
        PERFORM set_config('citus.enable_ddl_propagation', is_distributed::text, false);
    END IF;
END $$
"""


def _as_sqlalchemy(url: str) -> str:
    return "postgresql+asyncpg://" + url.split("://", 1)[1]


async def migrate(database_url: str, passwords: Mapping[str, str], revision: str = "head") -> None:
    """
    Migrate as the owner of `database_url` and set the password of each login in `passwords` (login -> password).

    An older `revision` is for what was backed up under it; the months ahead are made with the newest.

    Raises what the driver raises when the database is away or its login may not do this. Each migration is one
    transaction, but for indexes made concurrently at its end.
    """
    engine = create_async_engine(_as_sqlalchemy(database_url), connect_args={"timeout": 10})
    try:
        async with engine.connect() as connection:
            await _take_lock(connection)
            for statement in (*ENSURE_ROLES, _GIVE_UP_IDLE, _KEEP_TO_ONE_NODE, "SET ROLE nbpulse_owner"):
                await connection.exec_driver_sql(statement)
            await connection.commit()
            await connection.run_sync(_upgrade, revision)
            if revision == "head":
                await connection.exec_driver_sql(f"SELECT ensure_months({MONTHS_AHEAD})")
            await connection.exec_driver_sql("RESET ROLE")
            for login, password in passwords.items():
                literal = password.replace("'", "''")
                await connection.exec_driver_sql(f"ALTER ROLE {login} PASSWORD '{literal}'")
            await connection.commit()
    finally:
        await engine.dispose()


async def _take_lock(connection: AsyncConnection) -> None:
    """
    Wait until no other migration runs; the lock goes with the connection.

    Asked for again and again: a query that waits for it would be one more that an index made concurrently, under this
    very lock, waits for.
    """
    while not await connection.scalar(text(f"SELECT pg_try_advisory_lock({_LOCK})")):
        await connection.rollback()
        await asyncio.sleep(0.1)
    await connection.commit()


def _upgrade(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def with_login(database_url: str, login: str, password: str) -> str:
    """`database_url` with another login."""
    scheme, _, rest = database_url.partition("://")
    address = rest.rpartition("@")[2]
    return f"{scheme}://{login}:{quote(password, safe='')}@{address}"
