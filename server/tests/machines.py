"""Machines to back up: a database, a stream's server, a directory of keys, and a lesson that was taught there."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec

from nbpulse.connections import open_redis
from nbpulse.migrations import migrate
from nbpulse.records.courses import Courses
from nbpulse.records.dead_letters import DeadLetters
from nbpulse.resources import Resources, open_resources
from nbpulse.settings import Settings
from nbpulse.stream import GROUP, get_stream_key
from stores import CITUS_URL, connect, create_cluster_database, create_database, make_class, make_event
from working import is_drained, until, work

ODD = '週\t1\\N\n"it\'s" é \\. ノート.ipynb'
GARBAGE = b"\x00\xff\n \r{"
LIST_TABLES = (
    "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
    " WHERE nspname IN ('public', 'timeseries') AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1"
)
FULL_FROM_THE_START = {"alembic_version", "shard_databases", "shard_map", "shard_owners"}
"""Tables in which the migrations themselves have written."""
# What protects each table and partition, and where each partition lies.
DESCRIBE = """
SELECT c.oid::regclass::text, relrowsecurity, relforcerowsecurity, relowner::regrole::text,
    pg_get_expr(relpartbound, c.oid),
    (SELECT string_agg(role || ' ' || may, ',' ORDER BY role, may)
        FROM unnest(ARRAY['app_reader', 'app_writer', 'app_user', 'app_maintenance', 'nbpulse_operator']) role,
            unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) may WHERE has_table_privilege(role, c.oid, may)),
    (SELECT string_agg(polname::text || polcmd::text, ',' ORDER BY polname::text) FROM pg_policy WHERE polrelid = c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE nspname IN ('public', 'timeseries') AND relkind IN ('r', 'p') ORDER BY 1
"""


@dataclass
class Machine:
    """A database, a stream's server and the directory with the keys."""

    database_url: str
    redis_url: str
    data_dir: Path

    @property
    def settings(self) -> Settings:
        return Settings(
            data_dir=self.data_dir, database_url=self.database_url, redis_url=self.redis_url, promise="memory"
        )

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        return start_nbpulse(
            *arguments,
            data_dir=self.data_dir,
            **{"NBPULSE_DATABASE_URL": self.database_url, "NBPULSE_REDIS_URL": self.redis_url} | options,
        )

    def run(self, *arguments: str | Path, **options: Any) -> tuple[int, str]:
        """Exit code; what was said."""
        process = self.start(*arguments, **options)
        _, said = process.communicate(timeout=120)
        return process.returncode, said

    @asynccontextmanager
    async def open_worker(self, name: str = "worker-1") -> AsyncIterator[Resources]:
        settings = msgspec.structs.replace(self.settings, worker_name=name)
        async with open_resources(settings, login="nbpulse_worker", pool_size=4) as resources:
            yield resources


def start_nbpulse(
    *arguments: str | Path, data_dir: Path, file_limit_bytes: int | None = None, **settings: str
) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NBPULSE_")}
    limit = (file_limit_bytes, file_limit_bytes)
    return subprocess.Popen(
        [sys.executable, "-m", "nbpulse", *map(str, arguments), "--data", str(data_dir)],
        env=inherited | {"NBPULSE_LANGUAGE": "en"} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)) if file_limit_bytes else None,  # noqa: PLW1509
    )


def run_nbpulse(*arguments: str | Path, data_dir: Path, **settings: str) -> tuple[int, str, str]:
    process = start_nbpulse(*arguments, data_dir=data_dir, **settings)
    answered, said = process.communicate(timeout=120)
    return process.returncode, answered, said


async def make_empty_database(server_url: str) -> str:
    if server_url == CITUS_URL:
        return await create_cluster_database(server_url)
    name = f"t{uuid4().hex[:12]}"
    async with connect(server_url) as admin:
        await admin.execute(f"CREATE DATABASE {name}")
    return f"{server_url.rsplit('/', 1)[0]}/{name}"


async def make_machine(server_url: str, redis_url: str, data_dir: Path) -> Machine:
    """With our tables; its logins' passwords are those of its own directory."""
    machine = Machine(await create_database(server_url), redis_url, data_dir)
    passwords = {name: machine.settings.make_password(name) for name in ("nbpulse_api", "nbpulse_worker")}
    await migrate(machine.database_url, passwords)
    return machine


async def make_successor(server_url: str, redis_url: str, machine: Machine, data_dir: Path) -> Machine:
    """Empty, with the keys of the machine it succeeds."""
    copy_keys(machine.data_dir, data_dir)
    return Machine(await make_empty_database(server_url), redis_url, data_dir)


def copy_keys(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    (target / "encryption.key").write_bytes((source / "encryption.key").read_bytes())


@dataclass
class Lesson:
    """What was done on a machine: events in the ledger, and events that wait in the stream."""

    course_id: UUID
    stored: list[UUID]
    waiting: list[UUID]


async def teach(machine: Machine) -> Lesson:
    """A row in every table we can fill, texts with all that could trip, and streams in every state."""
    course_id, (first, second, *_) = await make_class(machine.database_url, 3)
    async with machine.open_worker() as worker:
        data = {"status": "ok", "traceback": "line 1", "source": "print('\\N')", "output": "é\ttab\nline"}
        secret = {"status": "error", "error_name": "ValueError", "error_message": "could not convert 'ひみつ'"}
        old = datetime(2024, 2, 29, 23, 59, 59, 999_000, UTC)
        events = [
            make_event(first, course_id, data=secret),
            make_event(second, course_id, data=data, notebook_path=ODD),
            make_event(second, course_id, "help_request", data={"message": "わかりません \\."}),
            make_event(first, course_id, occurred_at=old, received_at=old),
            *(make_event(first, course_id) for _ in range(5)),
        ]
        await make_old_month(machine)
        recorded = await worker.ledger.record_events(events)
        assert not await worker.series.write_points(recorded.points)  # and killed before it settled the debt
        await DeadLetters(worker.pool, worker.seal).bury(
            stream=b"s", entry_id=b"1-0", payload=GARBAGE, user_id=None, code="NB-4001", reason="?", deliveries=6
        )
        await Courses(worker.pool, worker.seal).ensure_teacher(course_id, display_name="佐藤 樹")
        waiting = [make_event(second, course_id) for _ in range(40)]
        async with open_redis(machine.redis_url) as redis:
            await worker.stream.ensure_groups()
            await worker.stream.append(
                [events[0], *waiting[:20]]
            )  # one has been stored: its worker died before the ack
            read = await worker.stream.read("events")
            await worker.stream.append(waiting[20:])
            await redis.xack(read[0].stream, GROUP, read[0].entry_id)
            await redis.xadd(get_stream_key(waiting[0]), {b"a": GARBAGE, b"b": b""})
    return Lesson(course_id, [one.event_id for one in events], [one.event_id for one in waiting])


async def make_old_month(machine: Machine) -> None:
    """As it was made when that month was near."""
    async with connect(machine.database_url) as connection, connection.transaction():
        await connection.execute("SET LOCAL ROLE nbpulse_owner")
        month = "FROM ('2024-02-01 00:00Z') TO ('2024-03-01 00:00Z')"
        for statement in (
            f"CREATE TABLE events_2024_02 PARTITION OF events FOR VALUES {month}",
            "ALTER TABLE events_2024_02 ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
            "REVOKE ALL ON events_2024_02 FROM app_reader, app_writer, app_user, nbpulse_operator",
        ):
            await connection.execute(statement)


async def fingerprint(database_url: str) -> dict[str, tuple[int, str]]:
    """Of every table: rows, and a hash over what they hold (a later schema's empty column changes nothing)."""
    async with connect(database_url) as connection:
        await connection.execute("SET timezone = 'UTC'")
        found = {}
        for (table,) in await connection.fetch(LIST_TABLES):
            if table == "shard_databases":  # a database's own: an archive is of one of them
                continue
            found[table] = tuple(
                await connection.fetchrow(
                    f"SELECT count(*), md5(string_agg(h, '' ORDER BY h)) FROM {table} t,"
                    " md5(jsonb_strip_nulls(to_jsonb(t))::text) h"
                )
            )
    return found


async def describe(database_url: str) -> list[tuple[Any, ...]]:
    async with connect(database_url) as connection:
        await connection.execute("SET timezone = 'UTC'")
        return [tuple(row) for row in await connection.fetch(DESCRIBE)]


async def read_streams(redis_url: str) -> dict[bytes, Any]:
    """Every stream that holds something, as it stands."""
    async with open_redis(redis_url) as redis:
        keys = [key async for key in redis.scan_iter(match="nbpulse:*", _type="stream")]
        return {key: found for key in sorted(keys) if (found := await redis.xrange(key))}


async def drain(machine: Machine) -> None:
    """A worker does what waits there."""
    async with machine.open_worker() as resources, work(resources):
        await until(lambda: is_drained(resources.stream), 20)
