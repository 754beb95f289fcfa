"""The stores of one test, opened as the worker opens them: a database and a stream of its own on a shared server."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from nbpulse.crypto import make_key
from nbpulse.events import ReceivedEvent
from nbpulse.resources import Resources, open_resources
from nbpulse.settings import Settings

WORKER_PASSWORD = "worker-of-the-tests"
PASSWORDS = {"nbpulse_api": WORKER_PASSWORD, "nbpulse_worker": WORKER_PASSWORD}
CITUS_URL = os.environ.get("NBPULSE_TEST_CITUS_URL")
"""The superuser's, of a database on a Citus cluster's coordinator that knows its nodes."""
KEY = make_key().decode()
AUDIT_TEXT = (
    "jsonb_build_array(id, (extract(epoch FROM at) * 1000000)::bigint, actor_id, action, course_id, subject_id,"
    " facts)::text"
)
"""What of a row of the audit log is hashed into its link."""
_numbers = itertools.count()
_originals: dict[str, str] = {}
"""By server: the database that others are copies of. Twelve migrations for every test took minutes."""


async def create_database(server_url: str, revision: str = "head", ports: Mapping[int, int] | None = None) -> str:
    """
    The superuser's URL of a new, migrated database on `server_url`: a copy of the first one, which nobody uses. Of an
    older `revision` it is made by itself. `ports`: of a cluster, see `create_cluster_database`.
    """
    if server_url == CITUS_URL and revision == "head":  # older ones know no cluster
        from nbpulse.migrations import citus  # Alembic, as below

        url = await create_cluster_database(server_url, ports)
        await _migrate(url)
        async with citus.connect(url) as connection:
            await citus.distribute(connection, PASSWORDS, lambda _done, _total: None)
        return url
    if revision != "head":
        url = await _make_database(server_url, "template1")
        await _migrate(url, revision)
        return url
    if server_url not in _originals:
        original = await _make_database(server_url, "template1")
        await _migrate(original)
        _originals[server_url] = original.rpartition("/")[2]
    url = await _make_database(server_url, _originals[server_url])
    await _migrate(url)  # what belongs to the database itself is not copied: who may CREATE in it
    return url


async def create_cluster_database(server_url: str, ports: Mapping[int, int] | None = None) -> str:
    """
    The superuser's URL of a new database without our schema, on the Citus nodes of the one that is given.

    `ports`: the ports under which nodes are known to it instead of their own, where something stands before them.
    """
    name = f"t{uuid4().hex[:12]}"
    async with connect(server_url) as given:
        nodes = await given.fetch("SELECT nodename, nodeport, groupid FROM pg_dist_node ORDER BY groupid")
    scheme, _, address = server_url.partition("://")
    login, given_name = address.rpartition("@")[0], address.rpartition("/")[2]
    for node in nodes:
        node_url = f"{scheme}://{login}@{node['nodename']}:{node['nodeport']}"
        async with connect(f"{node_url}/{given_name}") as connection:
            await connection.execute("SET citus.enable_create_database_propagation = off")
            await connection.execute(f"CREATE DATABASE {name}")
        async with connect(f"{node_url}/{name}") as connection:
            await connection.execute("CREATE EXTENSION citus")
    url = f"{server_url.rsplit('/', 1)[0]}/{name}"
    async with connect(url) as coordinator:
        for node in nodes:
            add = "citus_add_node" if node["groupid"] else "citus_set_coordinator_host"
            port = (ports or {}).get(node["nodeport"], node["nodeport"])
            await coordinator.execute(f"SELECT {add}($1, $2)", node["nodename"], port)
        # What `migrate --citus` sets: without it the driver's look-up of types takes many seconds, distributed or not.
        await coordinator.execute(f"ALTER DATABASE {name} SET citus.override_table_visibility = off")
    return url


async def _make_database(server_url: str, original: str) -> str:
    name = f"t{uuid4().hex[:12]}"
    async with connect(server_url) as admin:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {original}")
    return f"{server_url.rsplit('/', 1)[0]}/{name}"


async def _migrate(url: str, revision: str = "head") -> None:
    from nbpulse.migrations import migrate  # Alembic: half of a worker process's start, were it imported above

    await migrate(url, PASSWORDS, revision)


def make_settings(
    database_url: str, redis_url: str, *, worker: str = "worker-1", influx_url: str | None = None, **more: Any
) -> Settings:
    """Of one worker, with the owner's URL beside its own."""
    return Settings(
        database_url=database_url,
        worker_database_url=f"postgresql://nbpulse_worker:{WORKER_PASSWORD}@{database_url.rpartition('@')[2]}",
        redis_url=redis_url,
        influx_url=influx_url,
        encryption_keys=KEY,
        worker_name=worker,
        promise="memory",
        **more,
    )


@asynccontextmanager
async def open_stores(
    database_url: str, redis_url: str, *, worker: str = "worker-1", influx_url: str | None = None, **more: Any
) -> AsyncIterator[Resources]:
    """What a worker process shares, under the worker's own login: what it may not do fails here too."""
    settings = make_settings(database_url, redis_url, worker=worker, influx_url=influx_url, **more)
    async with open_resources(settings, login="nbpulse_worker", pool_size=8) as resources:
        yield resources


@asynccontextmanager
async def connect(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """One connection under the URL's own login."""
    connection = await asyncpg.connect(database_url)
    try:
        yield connection
    finally:
        await connection.close()


async def make_class(database_url: str, students: int | Sequence[UUID]) -> tuple[UUID, list[UUID]]:
    """A course and its students, enrolled; so many, or these."""
    ids = [uuid4() for _ in range(students)] if isinstance(students, int) else students
    course_id, user_ids = uuid4(), sorted(ids)
    async with connect(database_url) as connection:
        await connection.execute(
            "INSERT INTO courses (id, title, short_name) VALUES ($1, 'Test', $2)", course_id, course_id.hex
        )
        await connection.executemany(
            "INSERT INTO users (id, username) VALUES ($1, $2)", [(one, one.hex) for one in user_ids]
        )
        await connection.executemany(
            "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, 'student')",
            [(one, course_id) for one in user_ids],
        )
    return course_id, user_ids


def make_event(user_id: UUID, course_id: UUID, event_type: str = "cell_execution", **changes: Any) -> ReceivedEvent:
    """An event as the API hands it on; a run that went well unless told otherwise."""
    number = next(_numbers)
    now = datetime.now(UTC)
    fields: dict[str, Any] = {
        "event_id": uuid4(),
        "event_type": event_type,
        "occurred_at": now,
        "received_at": now,
        "user_id": user_id,
        "course_id": course_id,
        "notebook_path": None if event_type.startswith("help") else "week1.ipynb",
        "cell_id": f"cell-{number % 12}",
        "cell_index": number % 12,
        "sequence": number,
        "data": {},
    }
    if event_type == "cell_execution":
        fields["data"] = {"status": "ok", "has_error": False, "execution_duration_ms": 12.5, "execution_count": 1}
    return ReceivedEvent(**(fields | changes))


def make_error(user_id: UUID, course_id: UUID, **changes: Any) -> ReceivedEvent:
    """A run that ended in a NameError."""
    data = {
        "status": "error",
        "has_error": True,
        "execution_duration_ms": 8.0,
        "error_name": "NameError",
        "error_message": "name 'df' is not defined",
    }
    return make_event(user_id, course_id, data=data, **changes)


async def count_rows(database_url: str, *tables: str) -> list[int]:
    """How many rows each table holds."""
    async with connect(database_url) as connection:
        return [await connection.fetchval(f"SELECT count(*) FROM {table}") for table in tables]


async def list_holders(database_url: str, sought: UUID) -> list[str]:
    """Tables in which this id stands anywhere, in whatever column."""
    async with connect(database_url) as connection:
        tables = await connection.fetch(
            "SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE nspname IN ('public', 'timeseries') AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1"
        )
        return [
            row["name"]
            for row in tables
            if await connection.fetchval(
                f"SELECT EXISTS (SELECT 1 FROM {row['name']} t WHERE t::text LIKE '%' || $1 || '%')",
                str(sought),
            )
        ]


def spread(user_ids: Sequence[UUID], course_id: UUID, count: int) -> list[ReceivedEvent]:
    """`count` runs, one student after the other."""
    return [make_event(user_ids[number % len(user_ids)], course_id) for number in range(count)]


async def check_conservation(database_url: str, accepted: Sequence[ReceivedEvent]) -> None:
    """Every accepted event once in the ledger, by id, and once in every counter."""
    async with connect(database_url) as connection:
        stored = [row[0] for row in await connection.fetch("SELECT event_id FROM events")]
        assert len(stored) == len(set(stored))
        assert set(stored) == {event.event_id for event in accepted}
        assert await connection.fetchval("SELECT count(*) FROM event_ids") == len(stored)
        runs = [event for event in accepted if event.event_type == "cell_execution"]
        errors = [event for event in runs if event.data["status"] == "error"]
        for table, counter in (("learning_sessions", "cell_executions"), ("learner_cells", "attempt_count")):
            assert await connection.fetchval(f"SELECT sum({counter}) FROM {table}") == len(runs)
            assert await connection.fetchval(f"SELECT sum(error_count) FROM {table}") == len(errors)
        assert await connection.fetchval("SELECT count(*) FROM timeseries.cell_executions") == len(runs)
