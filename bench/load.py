"""A load client that costs little: raw keep-alive connections, one request in flight on each, bodies made by hand.

Promises: an answer is counted by its status and body, never assumed; open-loop latency counts from the moment a request
was due, not from when a connection was free for it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

CELLS = 30
NOTEBOOK_PATH = "week3/lesson.ipynb"
_EVENT = (
    b'{"schema_version":1,"event_id":"%s","event_type":"%s","occurred_at":"%s","sequence":%d,"session_id":"%s",'
    b'"notebook_path":"%s","notebook_id":null,"cell_id":"%s","cell_index":%d,"cell_type":"code","exercise_id":null,'
    b'"user_id":"%s","data":%s}'
)
_START = b"{}"
_OK = b'{"status":"ok","execution_duration_ms":12.5,"has_error":false,"execution_count":%d,"output_bytes":120}'
_ERROR = (
    b'{"status":"error","execution_duration_ms":3.25,"has_error":true,"error_name":"NameError",'
    b'"error_message":"name \'total\' is not defined","traceback":"Traceback (most recent call last):\\n  Cell In[4],'
    b' line 3\\n    print(total / count)\\nNameError: name \'total\' is not defined","execution_count":%d}'
)


@dataclass
class Student:
    """One simulated student: who it is, and how far its own count of events is."""

    user_id: str
    token: str
    session_id: str
    sequence: int = 0


@dataclass(frozen=True)
class Post:
    """One request ready to be sent, and what a viewer will see of it."""

    body: bytes
    student: Student
    events: int = 1
    event_id: str = ""
    cell_id: str = ""
    failed: bool = False


class _Now:
    """The time as the wire writes it, made anew once a millisecond."""

    def __init__(self) -> None:
        self._at_ms, self._text = 0, b""

    def read(self) -> bytes:
        at_ms = time.time_ns() // 1_000_000
        if at_ms != self._at_ms:
            self._at_ms = at_ms
            text = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
            self._text = text.replace("+00:00", "Z").encode()
        return self._text


_now = _Now()


def _make_event(student: Student, kind: bytes, cell: int, data: bytes) -> tuple[bytes, str, str]:
    bits = f"{random.getrandbits(128):032x}"
    event_id = f"{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-8{bits[17:20]}-{bits[20:]}"
    cell_id = f"cell-{cell:02d}"
    values = (event_id.encode(), kind, _now.read(), student.sequence, student.session_id.encode())
    place = (NOTEBOOK_PATH.encode(), cell_id.encode(), cell, student.user_id.encode())
    return _EVENT % (*values, *place, data), event_id, cell_id


def make_run(student: Student) -> tuple[bytes, str, str]:
    """The student's next event: a cell starts, then it ends; each tenth end is an error with its traceback."""
    student.sequence += 1
    number = student.sequence // 2
    if student.sequence % 2:
        return _make_event(student, b"cell_execution_start", number % CELLS, _START)
    data = (_ERROR if number % 10 == 7 else _OK) % (number % 1000)
    return _make_event(student, b"cell_execution", (number - 1) % CELLS, data)


def make_posts(students: Sequence[Student], batch: int) -> Iterator[Post]:
    """Endless posts of the students in turn: one event each, or arrays of `batch`."""
    while True:
        for student in students:
            if batch == 1:
                body, event_id, cell_id = make_run(student)
                yield Post(body, student, 1, event_id, cell_id)
            else:
                bodies = [make_run(student)[0] for _ in range(batch)]
                yield Post(b"[" + b",".join(bodies) + b"]", student, batch)


def make_visible_posts(students: Sequence[Student]) -> Iterator[Post]:
    """Endless posts of one event each, every one of which changes the colour of a square: a cell fails, then works."""
    turn = 0
    while True:
        failed, cell = (turn // CELLS) % 2 == 1, turn % CELLS
        for student in students:
            student.sequence += 1
            data = (_ERROR if failed else _OK) % (turn % 1000)
            body, event_id, cell_id = _make_event(student, b"cell_execution", cell, data)
            yield Post(body, student, 1, event_id, cell_id, failed)
        turn += 1


class Connection(asyncio.Protocol):
    """One keep-alive connection; `done(connection, status, body)` is called with each whole answer."""

    def __init__(self, done: Callable[[Connection, int, bytes], None]) -> None:
        self._done = done
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self.post: Post | None = None
        self.due_at = 0.0
        self.is_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class

    def send(self, post: Post, head: bytes, due_at: float) -> None:
        """Send one request; the connection must be idle."""
        assert self._transport is not None
        self.post, self.due_at = post, due_at
        self._transport.write(head % (post.student.token.encode(), len(post.body)) + post.body)

    def data_received(self, data: bytes) -> None:
        self._buffer = buffer = self._buffer + data if self._buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = buffer[:end].lower()
        mark = head.find(b"content-length:")
        if mark < 0:
            raise ValueError(f"an answer without a length: {head[:200]!r}")
        length = int(head[mark + 15 :].split(b"\r\n", 1)[0])
        if len(buffer) < end + 4 + length:
            return
        self._buffer = b""
        self._done(self, int(head[9:12]), buffer[end + 4 :])

    def connection_lost(self, _exc: Exception | None) -> None:
        self.is_closed = True
        if self.post is not None:
            self._done(self, 0, b"")

    def close(self) -> None:
        """Close it; an answer still owed is dropped."""
        self.post = None
        if self._transport is not None:
            self._transport.close()


@dataclass
class Tally:
    """What a load found: events accepted and refused, and the latency of every accepted request in seconds."""

    accepted: int = 0
    refused: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)

    def take(self, status: int, body: bytes, post: Post, latency_s: float) -> None:
        """Count one answer."""
        accepted = 0
        if 200 <= status < 300:
            accepted = body.count(b'"accepted"') if post.events > 1 else 1
        self.accepted += accepted
        self.refused += post.events - accepted
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if accepted:
            self.latencies_s.append(latency_s)


class Load:
    """
    Sends posts over a fixed set of connections to one server, or to several in turn. Use it as a context manager.
    """

    def __init__(self, port: int, connections: int, posts: Iterator[Post], *, other_ports: Sequence[int] = ()) -> None:
        self._ports = (port, *other_ports)
        self._count = connections
        self._posts = posts
        self._connections: list[Connection] = []
        self._idle: deque[Connection] = deque()
        self._late: deque[tuple[Post, float]] = deque()
        self._is_closed_loop = False
        self._reopening: set[asyncio.Task[None]] = set()
        self.may_reopen = False
        self.in_flight = 0
        self.tally = Tally()
        self.may_send: Callable[[], bool] = lambda: True
        self.note: Callable[[Post, float], None] | None = None
        self._head = (
            f"POST /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n".encode()
            + b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n"
        )

    async def __aenter__(self) -> Load:
        loop = asyncio.get_running_loop()
        for number in range(self._count):
            port = self._ports[number % len(self._ports)]
            _, connection = await loop.create_connection(lambda: Connection(self._finish), "127.0.0.1", port)
            self._connections.append(connection)
        self._idle.extend(self._connections)
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()

    async def run_closed(self, seconds: float, refresh: Callable[[], Awaitable[None]]) -> None:
        """Every connection sends as soon as it has its answer and `may_send` agrees; `refresh` runs ten times a s."""
        self._is_closed_loop = True
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            await refresh()
            self._send_idle()
            await asyncio.sleep(min(0.1, max(0.0, end - time.perf_counter())))
        self._is_closed_loop = False

    async def run_open(self, rate: float, seconds: float) -> None:
        """`rate` requests a second, evenly, whether or not earlier ones were answered."""
        loop = asyncio.get_running_loop()
        # On the loop's own millisecond grid, where its timers fire.
        start = round(loop.time(), 3) + 0.01
        finished: asyncio.Future[None] = loop.create_future()
        offset = time.perf_counter() - loop.time()
        total = int(rate * seconds)
        sent = 0

        def tick() -> None:
            nonlocal sent
            now = time.perf_counter() - offset
            while sent < total and (due := start + sent / rate) <= now + 0.0002:
                self._offer(next(self._posts), max(due, start) + offset)
                sent += 1
            if sent >= total:
                finished.set_result(None)
            else:
                loop.call_at(start + sent / rate, tick)

        loop.call_at(start, tick)
        await finished

    async def settle(self, timeout_s: float = 30) -> None:
        """Wait until every request is answered. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while self.in_flight or self._late:  # noqa: ASYNC110 - an event would cost something on every answer
                await asyncio.sleep(0.01)

    def _offer(self, post: Post, due_at: float) -> None:
        if self.note is not None:
            self.note(post, due_at)
        if self._idle:
            self._send(self._idle.popleft(), post, due_at)
        else:
            self._late.append((post, due_at))

    def _send_idle(self) -> None:
        while self._idle and self.may_send():
            self._send(self._idle.popleft(), next(self._posts), time.perf_counter())

    def _send(self, connection: Connection, post: Post, due_at: float) -> None:
        self.in_flight += post.events
        if connection.is_closed and self.may_reopen:
            self._reopening.add(task := asyncio.create_task(self._send_anew(post, due_at)))
            task.add_done_callback(self._reopening.discard)
        else:
            connection.send(post, self._head, due_at)

    async def _send_anew(self, post: Post, due_at: float) -> None:
        """As every client does where the server has closed a connection that it kept for nothing."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self._finish), "127.0.0.1", self._ports[0])
        self._connections.append(connection)
        connection.send(post, self._head, due_at)

    def _finish(self, connection: Connection, status: int, body: bytes) -> None:
        post = connection.post
        assert post is not None
        connection.post = None
        self.in_flight -= post.events
        if status == 0 and self.may_reopen:
            self._send(connection, post, connection.due_at)  # its id makes it the same event
            return
        self.tally.take(status, body, post, time.perf_counter() - connection.due_at)
        if status == 0:
            raise ConnectionError("the server closed a connection")
        if self._late:
            self._send(connection, *self._late.popleft())
        elif self._is_closed_loop and self.may_send():
            self._send(connection, next(self._posts), time.perf_counter())
        else:
            self._idle.append(connection)
