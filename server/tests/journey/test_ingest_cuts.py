"""The API is killed between every two steps of an ingest: no retry is told "duplicate" of an event that is not stored.

The API under test talks to the student, to PostgreSQL and to Valkey through proxies. One piece that crosses its border
is held and the API killed with it: the request, the append, its answer, the answer to the student. `make prove` holds
the n-th piece of any kind, with n growing until a request gets through, so that every step is tried that anybody
outside can tell from the next one, whatever steps there are.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from torture.checker import await_debts_paid, await_drained, check, read_journals
from torture.clients import Journal, LoadClient, Student, join_students
from torture.connections import Answer, Connection, UnansweredError, get
from torture.proxies import Direction, Proxy, Watch
from torture.systems import System, find_free_port, make_environment

STEPS_MAX = 40


@dataclass
class Border:
    """Everything that crosses the API's border from the request on; one piece does not: number `cut_at` of `kind`."""

    kind: str = ""
    cut_at: int = 0
    event_id: bytes = b""
    crossed: list[str] = field(default_factory=list)
    is_reached: asyncio.Event = field(default_factory=asyncio.Event)
    appending: int = 0

    def watch(self, line: str) -> Watch:
        async def note(connection: int, direction: Direction, piece: bytes) -> bool:
            kind = self._name(line, connection, direction, piece)
            if not self.event_id or not kind.startswith(self.kind):
                return True
            if self.is_reached.is_set():
                return False
            self.crossed.append(f"{kind}: {len(piece)} bytes {piece[:24]!r}")
            if len(self.crossed) > self.cut_at:
                self.is_reached.set()
                return False
            return True

        return note

    def _name(self, line: str, connection: int, direction: Direction, piece: bytes) -> str:
        """The four steps of the walk by their names, the rest by their line."""
        if line == "student":
            return "request" if direction == "up" else "answer"
        if line == "valkey" and direction == "up" and self.event_id and self.event_id in piece:
            self.appending = connection
            return "append"
        if line == "valkey" and direction == "down" and connection == self.appending:
            return "appended"
        return f"{line} {direction}"


class WatchedApi:
    """One `nbpulse api` whose every line goes through a proxy."""

    def __init__(self, system: System, border: Border) -> None:
        self.system, self.border = system, border
        self.port = find_free_port()
        self.url = ""
        self._proxies: list[Proxy] = []
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> WatchedApi:
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _start(self) -> None:
        facts = self.system.facts
        running = self.system.read_running()
        front = await self._open("student", f"http://127.0.0.1:{self.port}")
        settings = {
            "NBPULSE_DATABASE_URL": await self._open("postgresql", running["admin_database_url"]),
            "NBPULSE_REDIS_URL": await self._open("valkey", facts["redis_url"]),
            "NBPULSE_PORT": str(self.port),
        }
        self.url = front
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nbpulse", "api", "--data", str(self.system.data_dir)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=make_environment(settings),
        )
        for _ in range(600):
            try:
                if (await get(f"{self.url}/health/ready", deadline_s=2)).status == 200:
                    return
            except UnansweredError:
                await asyncio.sleep(0.05)
            assert self._process.returncode is None, "the API under test did not start"
        raise AssertionError("the API under test is not ready")

    async def _open(self, line: str, url: str) -> str:
        """A proxy in front of the address; the address through it."""
        parts = urlsplit(url)
        proxy = Proxy("127.0.0.1", parts.port or 0, watch=self.border.watch(line))
        await proxy.__aenter__()
        self._proxies.append(proxy)
        login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        return urlunsplit(parts._replace(netloc=f"{login}127.0.0.1:{proxy.port}"))

    async def kill(self) -> None:
        """kill -9."""
        if self._process is None:
            return
        if self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        for proxy in self._proxies:
            await proxy.__aexit__()


async def cut_one(
    system: System, student: Student, client: LoadClient, border: Border, *, is_fresh: bool = True
) -> tuple[str, str]:
    """
    Send one event to an API that dies where `border` says, then again to another; where it died and what was said.

    Where it died is "" when the whole request got through before.
    """
    async with WatchedApi(system, border) as api:
        connection = Connection(api.url)
        if not is_fresh:  # the token is known to the API and its connections are open, as in the middle of a class
            await deliver(connection, student, client.make_event(student, event_type="cell_execution"), client)
        event = client.make_event(student, event_type="cell_execution")
        client.journal.note_new(event, student.user_id)
        border.event_id = str(event["event_id"]).encode()
        asking = asyncio.create_task(connection.post("/api/v1/events", [event], token=student.token, deadline_s=10))
        reaching = asyncio.create_task(border.is_reached.wait())
        await asyncio.wait([asking, reaching], return_when=asyncio.FIRST_COMPLETED)
        died_at = border.crossed[-1] if border.is_reached.is_set() else ""
        await api.kill()
        reaching.cancel()
        try:
            answer: Answer | None = await asking
        except UnansweredError:
            answer = None
        connection.close()
    if answer is not None and answer.status == 202:
        await note(client, event["event_id"], answer)
    retry = Connection(system.url)
    word = await deliver(retry, student, event, client, is_new=False)
    retry.close()
    return died_at, word


async def deliver(
    connection: Connection, student: Student, event: dict[str, object], client: LoadClient, *, is_new: bool = True
) -> str:
    if is_new:
        client.journal.note_new(event, student.user_id)
    answer = await connection.post("/api/v1/events", [event], token=student.token, deadline_s=10)
    assert answer.status == 202, answer
    return await note(client, str(event["event_id"]), answer)


async def note(client: LoadClient, event_id: str, answer: Answer) -> str:
    word = str(answer.read()["results"][0]["status"])
    assert word in {"accepted", "duplicate"}, answer
    await client.journal.note_answers([(event_id, "ok", word)])
    return word


@asynccontextmanager
async def open_class(directory: Path) -> AsyncIterator[tuple[System, Student, LoadClient]]:
    """A system with one student; at the end every event must be stored once, and every answer have been true."""
    async with System(directory / "data", worker_count=1) as system:
        students = await join_students(system.url, system.facts["join_code"], 1)
        journal = Journal(directory / "student.journal")
        client = LoadClient(lambda: system.url, students, journal, rate_per_s=0, seed=5)
        yield system, students[0], client
        await await_drained(system.facts["redis_url"], within_s=20)
        await await_debts_paid(system.facts["database_url"])
        journal.close()
        history = read_journals([journal.path])
        verdict = await check(system.facts["database_url"], system.facts["redis_url"], history)
    print(f"\nanswers {dict(history.words)}; {verdict}")  # noqa: T201
    assert verdict.problems == []
    assert verdict.stored == len(history.sent), "every event was sent again until it was accepted"


@pytest.mark.timeout(170)
async def test_no_retry_is_told_duplicate_of_an_event_that_is_not_stored(data_dir: Path) -> None:
    steps = ("request", "append", "appended", "answer")
    async with open_class(data_dir) as (system, student, client):
        # Two at a time: the time goes into starting APIs.
        for pair in (steps[:2], steps[2:]):
            tried = await asyncio.gather(*(cut_one(system, student, client, Border(step)) for step in pair))
            for step, (died_at, word) in zip(pair, tried, strict=True):
                print(f"\n{word} after death at {died_at}")  # noqa: T201
                assert died_at.startswith(f"{step}:")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_fresh", [True, False], ids=["first request of a student", "student known to the API"])
async def test_no_step_of_ingest_at_all_makes_a_retry_a_false_duplicate(data_dir: Path, is_fresh: bool) -> None:
    async with open_class(data_dir) as (system, student, client):
        step, died_at = 0, "-"
        while died_at:
            assert step < STEPS_MAX
            borders = [Border(cut_at=step + more) for more in range(2)]
            tried = await asyncio.gather(
                *(cut_one(system, student, client, border, is_fresh=is_fresh) for border in borders)
            )
            print("".join(f"\n{word} after death at {place}" for place, word in tried))  # noqa: T201
            died_at = tried[-1][0]
            step += len(tried)
