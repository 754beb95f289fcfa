"""API and worker processes on a cluster, each started by its own command: a primary dies under them, and slots move."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from clusters import ValkeyCluster
from nbpulse.connections import open_redis
from nbpulse.crypto import EncryptedField
from nbpulse.records.courses import Courses
from nbpulse.records.people import People
from nbpulse.shards import get_shard_number
from nbpulse.stream import STREAM_KEYS, EventStream
from nbpulse.stream.appender import APPEND_DEADLINE_S
from nbpulse.stream.link import CONFIRMATION_SHARE
from rolling import Watching, find_differences
from stores import KEY, WORKER_PASSWORD
from torture.checker import await_debts_paid, check_ledger, read_journals
from torture.clients import Journal, LoadClient, Student, join_students
from torture.connections import UnansweredError, get
from torture.systems import find_free_port, make_environment
from working import is_drained, until

_PATIENCE_S = 120  # a busy machine is no finding
_RATE_PER_S = 30


@dataclass
class Survived:
    """
    One death and one resharding. `own`: students whose shard the dead server had; `beside`: all others. Waits are from
    an event's receipt to its storing, the longest of each kind. The others' refusals, in words: `beside_refused` came
    at once, `beside_late` when the time for an append had passed.
    """

    accepted: int = 0
    lost: int = 0
    problems: list[str] = field(default_factory=list)
    takeover_s: float = 0.0
    own_statuses: dict[int, int] = field(default_factory=dict)
    beside_statuses: dict[int, int] = field(default_factory=dict)
    beside_refused: list[str] = field(default_factory=list)
    beside_late: list[str] = field(default_factory=list)
    beside_unanswered: int = 0
    own_wait_s: float = 0.0
    beside_wait_s: float = 0.0
    gaps: list[str] = field(default_factory=list)


class Processes:
    """`nbpulse api` twice and `nbpulse worker` twice on these stores; entered they answer, left they have ended."""

    def __init__(self, directory: Path, database_url: str, redis_url: str, facts: dict[str, Any] | None = None) -> None:
        """`facts`: of the class there is already; None: make one."""
        self.directory = directory
        self.database_url = database_url
        self.redis_url = redis_url
        self.api_urls: list[str] = []
        self.facts = facts or {}
        self._running: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Processes:
        if not self.facts:
            await self._make_class()
        for number in (1, 2):
            port = find_free_port()
            self.api_urls.append(f"http://127.0.0.1:{port}")
            self._start("api", number, {"NBPULSE_PORT": str(port)})
            self._start("worker", number, {"NBPULSE_WORKER_NAME": f"worker-{number}"})
        for url in self.api_urls:
            await until(lambda: self._has_workers(url), _PATIENCE_S)  # noqa: B023 - awaited at once
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        for process in self._running:
            process.terminate()
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, 30)
            process.kill()
            process.wait()
        if kind is not None:
            for log in sorted(self.directory.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-6_000:]}")  # noqa: T201 - before it is gone

    def stop_workers(self) -> None:
        """What is accepted from now on stays in the stream."""
        for process in self._running[1::2]:
            process.terminate()
            process.wait(30)

    def assert_running(self) -> None:
        """None of them has ended."""
        assert [process.poll() for process in self._running] == [None] * len(self._running)

    def _start(self, part: str, number: int, settings: dict[str, str]) -> None:
        place = self.database_url.rpartition("@")[2]
        environment = make_environment(
            {
                "NBPULSE_DATA_DIR": str(self.directory),
                "NBPULSE_DATABASE_URL": self.database_url,
                "NBPULSE_API_DATABASE_URL": f"postgresql://nbpulse_api:{WORKER_PASSWORD}@{place}",
                "NBPULSE_WORKER_DATABASE_URL": f"postgresql://nbpulse_worker:{WORKER_PASSWORD}@{place}",
                "NBPULSE_REDIS_URL": self.redis_url,
                "NBPULSE_ENCRYPTION_KEYS": KEY,
                "NBPULSE_PROMISE": "failover",
                **settings,
            }
        )
        with (self.directory / f"{part}-{number}.log").open("ab") as log:
            self._running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "nbpulse", part],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                )
            )

    async def _has_workers(self, url: str) -> bool:
        self.assert_running()
        try:
            answer = await get(f"{url}/health")
        except UnansweredError:
            return False
        return answer.status == 200 and answer.read()["worker"].get("count") == 2

    async def _make_class(self) -> None:
        async with asyncpg.create_pool(self.database_url, min_size=1, max_size=2) as owner:
            seal = EncryptedField([KEY.encode()])
            courses = Courses(owner, seal)
            course = await courses.ensure_course("情報 I", f"c{uuid4().hex[:8]}")
            teacher_id = await courses.ensure_teacher(course.id)
            token = await People(owner, seal).create_staff_token(teacher_id)
        self.facts = {"course_id": str(course.id), "teacher_token": token, "join_code": course.join_code}


async def lose_a_primary_and_move_slots(
    cluster: ValkeyCluster, processes: Processes, journals: Path, *, name: str, seed: int
) -> Survived:
    """
    Under load: kill -9 of the primary that notes which workers live, its replica takes over, it comes back as a
    replica; then three shards' slots, the class's live channel's and the beats' move to other servers. Ends when all
    is stored and every board shows what every API would show to a new one.
    """
    found = Survived()
    primary = await cluster.find_owner(b"nbpulse:workers")
    replica = await cluster.find_replica(primary)
    own_shards = {shard for shard, key in enumerate(STREAM_KEYS["events"]) if await cluster.find_owner(key) is primary}
    students = await join_students(processes.api_urls[0], processes.facts["join_code"], 18, name=name)
    own = [student for student in students if get_shard_number(UUID(student.user_id)) in own_shards]
    beside = [student for student in students if student not in own]
    assert own, "with 18 students of whom a third is expected"
    clients = [
        _make_client(processes.api_urls[place], some, journals / f"{name}-{place}", seed + place)
        for place, some in enumerate((own, beside))
    ]
    began_at = time.time()
    async with AsyncExitStack() as stack:
        viewers = [
            Watching(lambda url=url: url, processes.facts["course_id"], processes.facts["teacher_token"])  # type: ignore[misc]
            for url in processes.api_urls
        ]
        for viewer in viewers:
            await stack.enter_async_context(viewer)
            async with asyncio.timeout(30):
                await viewer.is_connected.wait()
        for client in clients:
            client.start()
        await asyncio.sleep(1)
        os.kill(primary.pid, signal.SIGKILL)
        killed_s = time.monotonic()
        primary.stop()
        await cluster.await_successor(replica)
        found.takeover_s = time.monotonic() - killed_s
        await asyncio.sleep(1)
        await cluster.bring_back(primary)
        whole_s = time.monotonic()
        await asyncio.sleep(0.5)
        live = f"nbpulse:live:{processes.facts['course_id']}".encode()
        for key in (*STREAM_KEYS["events"][seed % 8 :: 24], live, b"nbpulse:workers"):
            owner = await cluster.find_owner(key)
            target = next(one for one in await cluster.find_primaries() if one is not owner)
            await cluster.move_slot(key, target, pause_s=0.02)
        await asyncio.sleep(0.5)
        for client in clients:
            await client.finish(_PATIENCE_S)
        async with open_redis(cluster.url) as redis:
            stream = EventStream(redis)
            await until(lambda: is_drained(stream), _PATIENCE_S)
            await stream.close()
        await await_debts_paid(processes.database_url, _PATIENCE_S)

        async def are_current() -> bool:
            return not await find_differences(processes, viewers)

        await until(are_current, _PATIENCE_S)
        for viewer in viewers:
            viewer.assert_running()
        found.gaps = [gap for viewer in viewers for gap in viewer.gaps]
    processes.assert_running()
    history = read_journals([client.journal.path for client in clients])
    connection = await asyncpg.connect(processes.database_url)
    try:
        verdict = await check_ledger(connection, history)
        found.own_wait_s = await _measure_wait(connection, own, began_at)
        found.beside_wait_s = await _measure_wait(connection, beside, began_at)
    finally:
        await connection.close()
    found.accepted, found.lost, found.problems = verdict.acknowledged, len(verdict.lost), verdict.problems
    found.own_statuses, found.beside_statuses = (dict(client.statuses) for client in clients)
    late_until_s = 0.0
    for refusal, is_own in sorted((one, client is clients[0]) for client in clients for one in client.refusals):
        if refusal.after_s >= APPEND_DEADLINE_S * CONFIRMATION_SHARE and not (is_own and refusal.at_s < whole_s):
            late_until_s = refusal.at_s + 1.0  # who waited behind it is refused too, as for a moment whoever comes
        if not is_own:
            told = f"{refusal.code} {refusal.at_s - killed_s:+.2f} s after the death, within {refusal.after_s:.2f} s"
            (found.beside_late if refusal.at_s < late_until_s else found.beside_refused).append(told)
    found.beside_unanswered = clients[1].unanswered_count
    return found


def _make_client(url: str, students: list[Student], journal: Path, seed: int) -> LoadClient:
    return LoadClient(lambda: url, students, Journal(journal), rate_per_s=_RATE_PER_S, seed=seed)


async def _measure_wait(connection: Any, students: Sequence[Student], began_at: float) -> float:
    query = (
        "SELECT max(extract(epoch FROM recorded_at - received_at)) FROM events"
        " WHERE user_id = ANY($1) AND received_at >= to_timestamp($2)"
    )
    return round(float(await connection.fetchval(query, [UUID(one.user_id) for one in students], began_at)), 2)
