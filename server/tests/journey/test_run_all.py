"""Two hundred students press "Run all" at once: each of 12,000 runs is stored once and the board keeps up."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest

from torture.checker import await_debts_paid, await_drained, check, read_journals
from torture.clients import Journal, LoadClient, Student, join_students
from torture.connections import Connection, UnansweredError
from torture.systems import System
from torture.viewers import Viewer

STUDENT_COUNT = 200
CELL_COUNT = 60
PRESSED_WITHIN_S = 5.0
# As capture sends a storm: the first run at once, then at most four batches a second.
BATCHES = ((1, 0.0), (14, 0.25), (15, 0.25), (15, 0.25), (15, 0.25))
PROBE_EVERY_S = 0.5


class Presses:
    """The class's runs on their way: what each student was told, and how long it took."""

    def __init__(self, url: str, client: LoadClient) -> None:
        self.longest_told_s = 0.0
        self.longest_took_s = 0.0
        self._url = url
        self._client = client

    async def run_all(self, student: Student, delay_s: float) -> None:
        """Every cell of the notebook, in batches, each sent until it is answered."""
        connection = Connection(self._url)
        await asyncio.sleep(delay_s)
        cell = 0
        started_s = time.monotonic()
        for count, pause_s in BATCHES:
            await asyncio.sleep(pause_s)
            events = [make_run(self._client, student, index) for index in range(cell, cell + count)]
            cell += count
            await self._deliver(connection, student, events)
        self.longest_took_s = max(self.longest_took_s, time.monotonic() - started_s)
        connection.close()

    async def _deliver(self, connection: Connection, student: Student, events: list[dict[str, Any]]) -> None:
        for event in events:
            self._client.journal.note_new(event, student.user_id)
        while True:
            try:
                answer = await connection.post("/api/v1/events", events, token=student.token, deadline_s=30)
            except UnansweredError:
                await asyncio.sleep(0.3)
                continue
            if answer.status == 202:
                said = [(one["event_id"], "ok", one["status"]) for one in answer.read()["results"]]
                await self._client.journal.note_answers(said)
                return
            assert answer.status in {429, 503}, answer
            told_s = float(answer.headers["retry-after"])
            self.longest_told_s = max(self.longest_told_s, told_s)
            await asyncio.sleep(told_s)


def make_run(client: LoadClient, student: Student, index: int) -> dict[str, Any]:
    place = {"cell_id": f"cell-{index:02}", "cell_index": index, "cell_type": "code"}
    return client.make_event(student, event_type="cell_execution") | place


async def probe(
    viewer: Viewer, url: str, student: Student, client: LoadClient, is_over: asyncio.Event
) -> list[list[float]]:
    """One student runs one cell of its own now and then: [when it was sent, seconds until the board showed it]."""
    connection = Connection(url)
    place = next(one["i"] for one in viewer.snapshot["students"] if one["id"] == student.user_id)
    found = []
    states = {"ok": 1, "error": 3}
    for number in range(1_000):
        if is_over.is_set():
            break
        sent_s = time.monotonic()
        status = ("error", "ok")[number % 2]
        data = {"status": status, "execution_duration_ms": 1.0}
        if status == "error":
            data["error_name"] = "ValueError"
        event = make_run(client, student, 0) | {"data": data}
        client.journal.note_new(event, student.user_id)
        since = len(viewer.frames)
        answer = await connection.post("/api/v1/events", event, token=student.token, deadline_s=30)
        assert answer.status == 202, answer
        await client.journal.note_answers([(event["event_id"], "ok", "received")])
        shown_s = await viewer.find(lambda f: shows(f, place, states[status]), within_s=30, since=since)  # noqa: B023
        found.append([sent_s, shown_s - sent_s])
        await asyncio.sleep(max(0.0, PROBE_EVERY_S - (time.monotonic() - sent_s)))
    connection.close()
    return found


def shows(frame: dict[str, Any], place: int, state: int) -> bool:
    """The frame changes this student's first square to this state."""
    return any(i == place and column == 0 and value == state for i, column, value in frame.get("c", ())) or any(
        one["i"] == place and one["s"].startswith(str(state)) for one in frame.get("students", ())
    )


async def ask_for_help(viewer: Viewer, url: str, student: Student, client: LoadClient) -> float:
    """Raise a hand; the seconds until it is on the board."""
    place = next(one["i"] for one in viewer.snapshot["students"] if one["id"] == student.user_id)
    event: dict[str, Any] = {
        "event_id": str(UUID(int=Random(9).getrandbits(128), version=4)),
        "event_type": "help_request",
        "occurred_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "notebook_path": "torture.ipynb",
        "data": {"message": "ここが分かりません"},
    }
    client.journal.note_new(event, student.user_id)
    connection = Connection(url)
    since, asked_s = len(viewer.frames), time.monotonic()
    answer = await connection.request(
        "POST", "/api/v1/events", body=json.dumps(event).encode(), token=student.token, deadline_s=10
    )
    assert answer.status == 202, answer
    await client.journal.note_answers([(event["event_id"], "ok", "received")])
    connection.close()
    shown_s = await viewer.find(
        lambda f: any(a["kind"] == "help" and a["i"] == place for a in f.get("a+", ())), within_s=20, since=since
    )
    return shown_s - asked_s


@pytest.mark.timeout(170)
async def test_run_all_of_a_whole_class_is_stored_once_and_the_board_keeps_up(data_dir: Path) -> None:
    async with System(data_dir / "data", worker_count=1) as system:
        students = await join_students(system.url, system.facts["join_code"], STUDENT_COUNT + 2, name="Student")
        *pressing, prober, helped = students
        client = LoadClient(lambda: system.url, students, Journal(data_dir / "class.journal"), rate_per_s=0, seed=3)
        viewer = Viewer(lambda: system.url, system.facts["course_id"], system.facts["teacher_token"])
        await warm_up(client, system.url, students)
        async with viewer:
            await asyncio.wait_for(viewer.is_connected.wait(), 10)
            assert len(viewer.snapshot["students"]) == len(students)
            presses = Presses(system.url, client)
            random = Random(3)
            started_s = time.monotonic()
            is_over = asyncio.Event()
            probing = asyncio.create_task(probe(viewer, system.url, prober, client, is_over))
            pressed = [
                asyncio.create_task(presses.run_all(student, random.random() * PRESSED_WITHIN_S))
                for student in pressing
            ]
            await asyncio.sleep(PRESSED_WITHIN_S / 2)
            help_took_s = await ask_for_help(viewer, system.url, helped, client)
            await asyncio.gather(*pressed)
            pressed_s = time.monotonic() - started_s
            await await_drained(system.facts["redis_url"], within_s=30)
            drained_s = time.monotonic() - started_s
            await asyncio.sleep(4)
            is_over.set()
            probes = [(at_s - started_s, took_s) for at_s, took_s in await probing]
        await await_debts_paid(system.facts["database_url"])
        client.journal.close()
        history = read_journals([data_dir / "class.journal"])
        verdict = await check(system.facts["database_url"], system.facts["redis_url"], history)
    late = [at_s + took_s for at_s, took_s in probes if took_s >= 1]
    within_s = max(late, default=0.0)
    print(  # noqa: T201
        f"\n{len(history.sent)} events sent in {pressed_s:.1f} s, drained after {drained_s:.1f} s; stored"
        f" {verdict.stored}, lost {len(verdict.lost)}, doubled {len(verdict.doubled)}; longest wait told"
        f" {presses.longest_told_s:.0f} s, longest run {presses.longest_took_s:.1f} s; help on the board after"
        f" {help_took_s:.2f} s; run to board at worst {max(took for _, took in probes):.2f} s, for good under 1 s from"
        f" {within_s:.1f} s on ({len(probes)} probes); {len(viewer.frames)} frames"
    )
    assert verdict.problems == []
    assert verdict.stored == verdict.acknowledged == len(history.sent) >= STUDENT_COUNT * CELL_COUNT
    assert viewer.gaps == []
    assert presses.longest_told_s <= 30
    assert presses.longest_took_s <= 30
    assert help_took_s < 1
    assert within_s < pressed_s + 15
    assert probes[-1][1] < 1


async def warm_up(client: LoadClient, url: str, students: list[Student]) -> None:
    """Everybody opens the notebook, so that the class and its first column are on the board."""
    connection = Connection(url)
    for student in students:
        event = make_run(client, student, 0)
        client.journal.note_new(event, student.user_id)
        answer = await connection.post("/api/v1/events", event, token=student.token)
        assert answer.status == 202, answer
        await client.journal.note_answers([(event["event_id"], "ok", "received")])
    connection.close()
