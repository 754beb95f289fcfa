"""Whatever is thrown at a running nbpulse: its API's memory stays, everybody is told no, and the class goes on.

`make test` throws small ones; `make prove` a gigabyte, a million events, 10,000 sockets.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from attacks import FULL_SIZES, read_rss_mb
from stage import make_run
from torture.checker import await_drained
from torture.clients import Student, join_students
from torture.connections import Answer, Connection, UnansweredError
from torture.systems import System
from torture.viewers import Viewer

GROWTH_MAX_MB = 50.0
SMALL_SIZES = {
    "endless_body": 50_000_000,
    "gzip_bomb": 100_000_000,
    "batch": 1_000_000,
    "depth": 100_000,
    "slow_heads": 300,
    "slow_bodies": 200,
    "idle_sockets": 1_500,
    "idle_websockets": 300,
    "bad_tokens": 1_000,
}
REFUSALS = {
    "endless_body": {"413 NB-1004", "401 NB-1101", "closed"},
    "gzip_bomb": {"413 NB-1004"},
    "batch": {"413 NB-1004", "422 NB-1003", "closed"},
    "depth": {"400 NB-1001", "422 NB-1007", "422 NB-1010"},
    "slow_heads": {"408 NB-1176", "closed"},
    "slow_bodies": {"408 NB-1176", "closed"},
    "idle_sockets": {"closed"},
    "idle_websockets": {"closed"},
    "bad_tokens": {"401 NB-1101", "429 NB-1174"},
}
# Bad bodies count as events of the student whose token it is, and the attacks share one student's.
SPENT = "429 NB-1170"


class Lesson:
    """A class that goes on: one student's square turns, and the board shows it."""

    def __init__(self, system: System, student: Student, viewer: Viewer) -> None:
        self._system, self._student, self._viewer = system, student, viewer
        self.shown = 0
        self.task = asyncio.create_task(self._go_on())

    async def await_another(self) -> None:
        """Until one more of its runs was shown. Raises what ended the lesson."""
        shown = self.shown
        while self.shown == shown:
            await asyncio.wait([self.task], timeout=0.1)
            if self.task.done():
                self.task.result()

    async def _go_on(self) -> None:
        """Until cancelled. Raises AssertionError when a run does not reach the board."""
        connection = Connection(self._system.url)
        try:
            await self._run_cells(connection)
        finally:
            connection.close()

    async def _deliver(self, connection: Connection, run: dict[str, Any]) -> Answer:
        """As nbpulse-capture does: sent again where the connection was closed meanwhile, or the server says so."""
        for _ in range(10):
            try:
                answer = await connection.post("/api/v1/events", run, token=self._student.token, deadline_s=20)
            except UnansweredError:
                continue
            if answer.status != 503:
                return answer
            await asyncio.sleep(0.5)
        raise AssertionError("no answer, ten times")

    async def _run_cells(self, connection: Connection) -> None:
        while True:
            status = ("error", "ok")[self.shown % 2]
            since = len(self._viewer.frames)
            answer = await self._deliver(connection, make_run(0, status))
            assert answer.status == 202, answer
            wanted = {"error": 3, "ok": 1}[status]
            await self._viewer.find(lambda frame, wanted=wanted: shows(frame, wanted), within_s=20, since=since)
            self.shown += 1
            await asyncio.sleep(0.25)


def shows(frame: dict[str, Any], state: int) -> bool:
    """Whether some student's first square is in that state now."""
    return any(column == 0 and value == state for _, column, value in frame.get("c", ())) or any(
        one["s"].startswith(str(state)) for one in frame.get("students", ())
    )


@asynccontextmanager
async def open_lesson(directory: Path) -> AsyncIterator[tuple[System, Lesson, Student]]:
    """A class of five, whose first cell is on the board; one of them attacks."""
    async with System(directory / "data", worker_count=1) as system:
        students = await join_students(system.url, system.facts["join_code"], 5)
        connection = Connection(system.url)
        for student in students:
            answer = await connection.post("/api/v1/events", make_run(0), token=student.token, deadline_s=20)
            assert answer.status == 202, answer
        connection.close()
        await await_drained(system.facts["redis_url"], within_s=30)
        viewer = Viewer(lambda: system.url, system.facts["course_id"], system.facts["teacher_token"])
        async with viewer:
            await asyncio.wait_for(viewer.is_connected.wait(), 20)
            lesson = Lesson(system, students[0], viewer)
            try:
                yield system, lesson, students[1]
            finally:
                lesson.task.cancel()
                await asyncio.gather(lesson.task, return_exceptions=True)


async def run_attack(name: str, size: int, system: System, attacker: Student) -> dict[str, int]:
    """Its answers, by what they were."""
    port = system.url.rpartition(":")[2]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "attacks", name, port, attacker.token, system.facts["course_id"], str(size)),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    found: dict[str, int] = json.loads(said)
    return found


async def watch_rss(pid: int, seen: list[float]) -> None:
    while True:
        seen.append(read_rss_mb(pid))
        await asyncio.sleep(0.1)


def judge(name: str, found: dict[str, int]) -> None:
    """Whether everybody was told no, and nobody holds a place."""
    left = {answer: count for answer, count in found.items() if answer.startswith("open after")}
    assert not found.keys() - left.keys() - REFUSALS[name] - {SPENT}, (name, found)
    assert not any(left.values()), (name, found)


async def test_the_class_goes_on_and_memory_stays_whatever_is_thrown_at_it(data_dir: Path) -> None:
    """All of it at once, in small."""
    async with open_lesson(data_dir) as (system, lesson, attacker):
        (pid,) = system.read_pids("api")
        await asyncio.sleep(3)  # everything that is loaded once, is
        before_mb, seen = read_rss_mb(pid), [0.0]
        watching = asyncio.create_task(watch_rss(pid, seen))
        try:
            answers = await asyncio.gather(*(run_attack(*attack, system, attacker) for attack in SMALL_SIZES.items()))
            await lesson.await_another()
        finally:
            watching.cancel()
        for name, found in zip(SMALL_SIZES, answers, strict=True):
            judge(name, found)
        assert system.read_pids("api") == [pid]  # nobody had to start it again
        assert max(seen) - before_mb < GROWTH_MAX_MB


@pytest.mark.slow
@pytest.mark.timeout(1_500)
async def test_the_same_with_a_gigabyte_a_million_events_and_10000_sockets(data_dir: Path) -> None:
    """One after the other: what each costs."""
    async with open_lesson(data_dir) as (system, lesson, attacker):
        (pid,) = system.read_pids("api")
        await asyncio.sleep(3)
        before_mb, growth_mb = read_rss_mb(pid), {}
        for name, size in FULL_SIZES.items():
            seen = [0.0]
            watching = asyncio.create_task(watch_rss(pid, seen))
            try:
                judge(name, await run_attack(name, size, system, attacker))
                await lesson.await_another()
            finally:
                watching.cancel()
            growth_mb[name] = round(max(seen) - before_mb, 1)
        print(f"\nMB more at most: {growth_mb}; {lesson.shown} runs shown meanwhile")  # noqa: T201
        assert system.read_pids("api") == [pid]
        assert max(growth_mb.values()) < GROWTH_MAX_MB, growth_mb
