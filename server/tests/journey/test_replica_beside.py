"""`nbpulse up --replica`: a real replica beside the primary, kept whatever becomes of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from nbpulse.records.replication import SLOT
from stage import make_run
from stores import connect
from torture.clients import join_students
from torture.connections import Connection, get
from torture.systems import System
from working import until


async def ask(system: System, which: str, statement: str, *values: object) -> Any:
    """One value at the primary (`admin_database_url`) or the replica (`replica_url`); None where it does not answer."""
    try:
        async with connect(system.read_running()[which]) as connection:
            return await connection.fetchval(statement, *values)
    except (OSError, asyncpg.PostgresError, TimeoutError):
        return None


async def follows(system: System) -> bool:
    """The replica streams, and shows what the primary has flushed."""
    lsn = await ask(system, "admin_database_url", "SELECT pg_current_wal_flush_lsn()::text")
    is_active = await ask(
        system, "admin_database_url", "SELECT active FROM pg_replication_slots WHERE slot_name = $1", SLOT
    )
    shown = await ask(system, "replica_url", "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", lsn)
    return bool(is_active and shown)


async def read_history(system: System, course_id: str) -> tuple[bool, int]:
    """Whether the replica answered, and how many sessions it knows."""
    answer = await get(f"{system.url}/api/v1/courses/{course_id}/sessions", token=system.facts["teacher_token"])
    assert answer.status == 200, answer.body
    told = answer.read()
    return "as_of" in told, len(told["sessions"])


async def test_a_replica_is_copied_followed_started_again_made_anew_and_stopped(data_dir: Path) -> None:
    async with System(data_dir, worker_count=1, options=["--replica"]) as system:
        facts, course_id = system.facts, system.facts["course_id"]
        assert facts["replica_url"] != facts["database_url"]
        assert system.read_running()["replica_url"] == facts["replica_url"]
        await until(lambda: follows(system), 90)
        assert await ask(system, "replica_url", "SELECT pg_is_in_recovery()") is True

        (student,) = await join_students(system.url, facts["join_code"], 1)
        line = Connection(system.url)
        assert (await line.post("/api/v1/events", [make_run()], token=student.token)).status == 202
        line.close()

        async def is_read_from_it() -> bool:
            return await read_history(system, course_id) == (True, 1)

        await until(is_read_from_it, 60)

        # The server dies, then the process that keeps it.
        for is_keeper in (False, True):
            (keeper,) = system.read_pids("replica")
            (server,) = find_servers(keeper)
            os.kill(keeper if is_keeper else server, signal.SIGKILL)

            async def is_another(old: int = server) -> bool:
                servers = [one for pid in system.read_pids("replica") for one in find_servers(pid)]
                return old not in servers and await follows(system)

            await until(is_another, 90)
        assert system.log_path.read_text().count("being copied from the primary") == 1

        # What it has not got yet is kept for it no longer.
        async def lose_slot() -> bool:
            await ask(
                *(system, "admin_database_url"),
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1",
                SLOT,
            )
            dropped = "SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots WHERE slot_name = $1"
            return bool(await ask(system, "admin_database_url", f"{dropped} AND NOT active", SLOT))

        await until(lose_slot)

        async def is_made_anew() -> bool:
            return system.log_path.read_text().count("being copied from the primary") == 2 and await follows(system)

        await until(is_made_anew, 120)
        assert (await read_history(system, course_id))[1] == 1
        keeper_family = [psutil.Process(pid) for pid in (system.read_pids("replica")[0], system.read_pids("api")[0])]
    assert not any(one.is_running() for one in keeper_family)
    assert not list_servers_in(data_dir / "postgresql-replica")

    async with System(data_dir, worker_count=1) as system:  # without it: nothing is kept for it any more
        assert "replica_url" not in system.facts
        assert await ask(system, "admin_database_url", "SELECT count(*) FROM pg_replication_slots") == 0
        assert await read_history(system, course_id) == (False, 1)


def find_servers(keeper: int) -> list[int]:
    """The PostgreSQL that this process keeps."""
    try:
        return [one.pid for one in psutil.Process(keeper).children() if one.name() == "postgres"]
    except psutil.NoSuchProcess:
        return []


def list_servers_in(directory: Path) -> list[int]:
    """What still works in it."""
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if process.name() == "postgres" and Path(process.cwd()).is_relative_to(directory):
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
