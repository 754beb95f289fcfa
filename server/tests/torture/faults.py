"""Single faults, aimed: a worker between commit and acknowledgement, a backend in mid-transaction, and others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any
from uuid import UUID

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from torture.checker import STREAMS
from torture.systems import System

_CONSUMERS = ("worker", "worker-2", "worker-3", "worker-4")


@asynccontextmanager
async def open_stores(system: System, within_s: float = 20) -> AsyncIterator[tuple[Redis, asyncpg.Connection]]:
    """Both stores under the operator's logins, waited for when they are on their way up."""
    deadline_s = time.monotonic() + within_s
    while True:
        redis = Redis.from_url(system.facts["redis_url"], socket_timeout=5, socket_connect_timeout=2)
        try:
            await redis.ping()
            database = await asyncpg.connect(system.facts["database_url"], timeout=5)
            break
        except (RedisError, OSError, TimeoutError, asyncpg.PostgresError):
            await redis.aclose()
            if time.monotonic() > deadline_s:
                raise
            await asyncio.sleep(0.1)
    try:
        yield redis, database
    finally:
        await redis.aclose()
        database.terminate()


async def find_pending_stored(redis: Redis, database: asyncpg.Connection, consumer: str) -> int:
    """How many entries this worker has stored (committed) and not acknowledged."""
    pipe = redis.pipeline(transaction=False)
    for stream in STREAMS:
        pipe.xpending_range(stream, "nbpulse-workers", "-", "+", 100, consumer)
    pipe_answers = await pipe.execute(raise_on_error=False)
    pipe = redis.pipeline(transaction=False)
    for stream, entries in zip(STREAMS, pipe_answers, strict=True):
        for entry in entries if isinstance(entries, list) else ():
            pipe.xrange(stream, entry["message_id"], entry["message_id"])
    events = [json.loads(found[0][1][b"e"]) for found in await pipe.execute() if found]
    if not events:
        return 0
    stored: int = await database.fetchval(
        "SELECT count(*) FROM event_ids JOIN unnest($1::uuid[], $2::uuid[]) AS k(user_id, event_id)"
        " USING (user_id, event_id)",
        [UUID(event["user_id"]) for event in events],
        [UUID(event["event_id"]) for event in events],
        timeout=5,
    )
    return stored


async def kill_worker(system: System, place: int, random: Random, *, is_aimed: bool) -> bool:
    """
    kill -9 a worker and await its successor; whether it fell between a commit and its acknowledgement.

    An aimed kill stops the worker at random moments (SIGSTOP), looks, and kills it in the first one of that kind; an
    unaimed one falls where it falls, and looks afterwards.
    """
    pid = await system.await_age("worker", place)
    async with open_stores(system) as (redis, database):
        if not is_aimed:
            os.kill(pid, signal.SIGKILL)
            is_between = await find_pending_stored(redis, database, _CONSUMERS[place]) > 0
        else:
            is_between = False
            for _ in range(300):
                os.kill(pid, signal.SIGSTOP)
                try:
                    is_between = await find_pending_stored(redis, database, _CONSUMERS[place]) > 0
                finally:
                    os.kill(pid, signal.SIGKILL if is_between else signal.SIGCONT)
                if is_between:
                    break
                await asyncio.sleep(random.random() * 0.015)
            else:
                os.kill(pid, signal.SIGKILL)
    await system.await_successor("worker", place, pid)
    return is_between


async def kill_backend(system: System, within_s: float = 10) -> bool:
    """kill -9 a PostgreSQL process in the middle of a worker's transaction; whether one was found there."""
    query = (
        "SELECT pid FROM pg_stat_activity WHERE usename = 'nbpulse_worker' AND backend_xid IS NOT NULL"
        " ORDER BY random() LIMIT 1"
    )
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            admin = await asyncpg.connect(system.read_running()["admin_database_url"], timeout=2)
            try:
                while time.monotonic() < deadline_s:
                    pid = await admin.fetchval(query, timeout=2)
                    if pid is not None and await _kill_stopped(admin, pid):
                        return True
            finally:
                admin.terminate()
        await asyncio.sleep(0.1)
    return False


async def _kill_stopped(admin: asyncpg.Connection, pid: int) -> bool:
    """Stop it, see that it is still in its transaction, kill it."""
    os.kill(pid, signal.SIGSTOP)
    is_inside = False
    try:
        is_inside = bool(
            await admin.fetchval("SELECT backend_xid IS NOT NULL FROM pg_stat_activity WHERE pid = $1", pid, timeout=1)
        )
    finally:
        os.kill(pid, signal.SIGKILL if is_inside else signal.SIGCONT)
    return is_inside


async def freeze(pid: int, seconds: float) -> None:
    """SIGSTOP a process for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def hold_lock(system: System, table: str, seconds: float) -> None:
    """Hold a table locked against everybody for a while."""
    admin = await asyncpg.connect(system.read_running()["admin_database_url"], timeout=5)
    try:
        async with admin.transaction():
            await admin.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE", timeout=10)
            await asyncio.sleep(seconds)
    finally:
        await admin.close()


async def run_as_admin(system: System, statement: str, *arguments: Any) -> None:
    """One statement as the database's superuser."""
    admin = await asyncpg.connect(system.read_running()["admin_database_url"], timeout=5)
    try:
        await admin.execute(statement, *arguments, timeout=10)
    finally:
        await admin.close()
