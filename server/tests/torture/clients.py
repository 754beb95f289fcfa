"""Load that never stops: students' Jupyters that send, keep what is unanswered, and send it again.

Each client writes into a file of its own, before the sending, what it is about to send, and, fsync'd, what the server
has accepted: the file alone is what the checker believes.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

from torture.connections import Answer, Connection, UnansweredError

BATCH_EVENTS = 100
CELL_COUNT = 20
_TICK_S = 0.05


class Student(NamedTuple):
    """Somebody who has joined."""

    user_id: str
    token: str
    session_id: str


async def join_students(url: str, join_code: str, count: int, *, name: str = "Torture") -> list[Student]:
    """`count` new students of the class, four at a time; patient with a server that is just being killed."""
    shares = [range(first, count, 4) for first in range(4)]
    joined = await asyncio.gather(*(_join(url, join_code, [f"{name} {one + 1}" for one in share]) for share in shares))
    return [student for share in joined for student in share]


async def _join(url: str, join_code: str, names: list[str]) -> list[Student]:
    connection = Connection(url)
    students: list[Student] = []
    deadline_s = time.monotonic() + 60
    while len(students) < len(names):
        asked = {"join_code": join_code, "display_name": names[len(students)]}
        try:
            answer = await connection.post("/api/v1/join", asked)
        except UnansweredError:
            answer = Answer(503, {}, b"")
        if answer.status == 201:
            found = answer.read()
            students.append(Student(found["user_id"], found["token"], str(UUID(int=Random().getrandbits(128)))))
        elif answer.status not in {429, 503} or time.monotonic() > deadline_s:
            raise AssertionError(f"join was answered {answer.status}: {answer.body!r}")
        else:
            await asyncio.sleep(0.2)
    connection.close()
    return students


class Refusal(NamedTuple):
    """A request that was answered 503: when it was (monotonic), after how long, and what the answer said."""

    at_s: float
    after_s: float
    code: str


class Journal:
    """One client's file. Lines: `new <id> <user> <type> <cell> <status>`, `ok <id> <word>`, `no <id> <code>`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def note_new(self, event: dict[str, Any], user_id: str) -> None:
        """About to be sent for the first time."""
        status = event["data"].get("status", "-")
        fields = (event["event_id"], user_id, event["event_type"], event.get("cell_id", "-"), status)
        os.write(self._file, f"new {' '.join(fields)}\n".encode())

    async def note_answers(self, answers: list[tuple[str, str, str]]) -> None:
        """What was said: (event id, "ok" or "no", word or code), on the disk when this returns."""
        os.write(self._file, "".join(f"{kind} {event_id} {word}\n" for event_id, kind, word in answers).encode())
        await asyncio.to_thread(os.fdatasync, self._file)

    def close(self) -> None:
        """No more."""
        os.close(self._file)


class LoadClient:
    """Sends for its students at an even rate, however the server fares; what is unanswered waits and goes again."""

    def __init__(
        self,
        pick_url: Callable[[], str],
        students: list[Student],
        journal: Journal,
        *,
        rate_per_s: float,
        seed: int,
        connection_count: int = 2,
        notebook_path: str = "torture.ipynb",
    ) -> None:
        self.journal = journal
        self.students = students
        self.statuses: Counter[int] = Counter()
        self.refusals: list[Refusal] = []
        self.unanswered_count = 0
        self.slowest_answer_s = 0.0
        self.longest_told_wait_s = 0.0
        self.made_count = 0
        self.clock_offset = timedelta(0)
        self.is_paused = False
        self._pick_url = pick_url
        self._rate_per_s = rate_per_s
        self._random = Random(seed)
        self._connection_count = connection_count
        self._notebook_path = notebook_path
        self._waiting: dict[Student, dict[str, bytes]] = {student: {} for student in students}
        self._in_flight: set[Student] = set()
        self._sequence = 0
        self._is_ending = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def waiting_count(self) -> int:
        """Events the server has not yet answered for."""
        return sum(len(events) for events in self._waiting.values())

    def start(self) -> None:
        """Begin; `finish` must follow."""
        jobs = [self._make(), *(self._send() for _ in range(self._connection_count))]
        self._tasks = [asyncio.create_task(job) for job in jobs]

    async def finish(self, within_s: float = 60) -> None:
        """Make no more, and get everything made answered. Raises AssertionError when that takes too long."""
        self._is_ending, self.is_paused = True, False
        deadline_s = time.monotonic() + within_s
        while self.waiting_count and time.monotonic() < deadline_s:
            self.assert_running()
            await asyncio.sleep(0.05)
        await self.stop()
        assert not self.waiting_count, f"{self.waiting_count} events had no answer within {within_s} s"

    def assert_running(self) -> None:
        """Raises what ended one of our tasks, if anything did."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and task.exception():
                task.result()

    async def stop(self) -> None:
        """End at once; what waits is not sent. Raises what a task of ours has failed with."""
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        self.journal.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    def make_event(self, student: Student, **fields: Any) -> dict[str, Any]:
        """The next event of this student; `fields` replace what chance would choose."""
        random = self._random
        self._sequence += 1
        kinds = ("cell_execution", "cell_execution_start", "notebook_save", "help_request", "help_cancel")
        event_type = fields.get("event_type") or random.choices(kinds, (90, 5, 3, 1, 1))[0]
        cell = random.randrange(CELL_COUNT)
        event: dict[str, Any] = {
            "schema_version": 1,
            "event_id": str(UUID(int=random.getrandbits(128), version=4)),
            "event_type": event_type,
            "occurred_at": (datetime.now(UTC) + self.clock_offset).isoformat(timespec="milliseconds"),
            "sequence": self._sequence,
            "session_id": student.session_id,
            "notebook_path": self._notebook_path,
            "data": {},
        }
        if event_type.startswith("cell_execution"):
            event |= {"cell_id": f"cell-{cell}", "cell_index": cell, "cell_type": "code"}
        if event_type == "cell_execution":
            status = random.choices(("ok", "error", "interrupted"), (88, 10, 2))[0]
            event["data"] = {"status": status, "execution_duration_ms": 12.5, "execution_count": self._sequence}
            if status == "error":
                event["data"] |= {"error_name": "NameError", "error_message": "name 'df' is not defined"}
        return event | fields

    def put(self, student: Student, event: dict[str, Any]) -> None:
        """Have this event sent, and sent again until it is answered."""
        self.journal.note_new(event, student.user_id)
        self._waiting[student][event["event_id"]] = json.dumps(event, separators=(",", ":")).encode()
        self.made_count += 1

    async def _make(self) -> None:
        """At an even rate by the clock: what a slow moment has missed is made up for."""
        started_s, due = time.monotonic(), 0.0
        while not self._is_ending:
            await asyncio.sleep(_TICK_S)
            now_s = time.monotonic()
            due += 0.0 if self.is_paused else (now_s - started_s) * self._rate_per_s
            started_s = now_s
            while due >= 1:
                student = self._random.choice(self.students)
                self.put(student, self.make_event(student))
                due -= 1

    async def _send(self) -> None:
        connection: Connection | None = None
        url = ""
        try:
            while True:
                student = self._choose()
                if student is None:
                    await asyncio.sleep(_TICK_S)
                    continue
                if connection is None or url != self._pick_url():
                    url = self._pick_url()
                    if connection:
                        connection.close()
                    connection = Connection(url)
                self._in_flight.add(student)
                try:
                    pause_s = await self._send_batch(connection, student)
                finally:
                    self._in_flight.discard(student)
                await asyncio.sleep(pause_s)
        finally:
            if connection:
                connection.close()

    def _choose(self) -> Student | None:
        """Whoever has most waiting and is not being served."""
        free = [student for student in self.students if self._waiting[student] and student not in self._in_flight]
        return max(free, key=lambda student: len(self._waiting[student]), default=None)

    async def _send_batch(self, connection: Connection, student: Student) -> float:
        """One request; the seconds to wait before the next."""
        waiting = self._waiting[student]
        batch = dict(list(waiting.items())[:BATCH_EVENTS])
        # One event alone has an answer of another form, so now and then one goes alone.
        if self._random.random() < 0.3:
            batch = dict([next(iter(batch.items()))])
            body = next(iter(batch.values()))
        else:
            body = b"[" + b",".join(batch.values()) + b"]"
        asked_s = time.monotonic()
        try:
            answer = await connection.request("POST", "/api/v1/events", body=body, token=student.token, deadline_s=5)
        except UnansweredError:
            self.unanswered_count += 1
            return 0.05 + self._random.random() * 0.2
        answered_s = time.monotonic()
        self.slowest_answer_s = max(self.slowest_answer_s, answered_s - asked_s)
        self.statuses[answer.status] += 1
        if answer.status == 503:
            self.refusals.append(Refusal(answered_s, answered_s - asked_s, answer.read()["code"]))
        if answer.status in {202, 422}:
            await self._take_answer(student, batch, answer)
            return 0.0
        if answer.status in {502, 504}:  # of a proxy in front; the capture keeps such a batch too
            return 0.2 + self._random.random() * 0.3
        if answer.status not in {429, 503}:
            raise AssertionError(f"{len(batch)} events were answered {answer.status}: {answer.body[:300]!r}")
        told_s = float(answer.headers["retry-after"])
        self.longest_told_wait_s = max(self.longest_told_wait_s, told_s)
        return min(told_s, 0.3 + self._random.random() * 0.5)

    async def _take_answer(self, student: Student, batch: dict[str, bytes], answer: Answer) -> None:
        content = answer.read()
        if "results" in content:
            said = [
                (result["event_id"], result["status"], result.get("code") or result["status"])
                for result in content["results"]
            ]
        elif answer.status == 202:
            said = [(content["event_id"], "received", "received")]
        else:
            said = [(event_id, "rejected", content["code"]) for event_id in batch]
        assert [event_id for event_id, _, _ in said] == list(batch), "answers are not those of the events sent"
        await self.journal.note_answers(
            [(event_id, "no" if word == "rejected" else "ok", code) for event_id, word, code in said]
        )
        for event_id, word, _ in said:
            del self._waiting[student][event_id]
            # A client whose answer was lost sends again, much later perhaps.
            if word != "rejected" and self._random.random() < 0.03:
                self._waiting[student][event_id] = batch[event_id]
