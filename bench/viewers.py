"""Boards that watch: raw WebSocket clients, and the log that finds when each event was seen by each of them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
import time
from collections.abc import Callable
from typing import Any, cast

from load import Post
from systems import Nbpulse, System


class Viewer(asyncio.Protocol):
    """One WebSocket; `on_text(viewer, text, at)` is called for each message, `at` as time.perf_counter()."""

    def __init__(self, port: int, path: str, on_text: Callable[[Viewer, bytes, float], None]) -> None:
        self._port, self._path = port, path
        self._on_text = on_text
        self._buffer = b""
        self.is_open = asyncio.Event()
        self.is_lost = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class
        key = base64.b64encode(os.urandom(16)).decode()
        self._transport.write(
            f"GET {self._path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        at = time.perf_counter()
        self._buffer += data
        if not self.is_open.is_set():
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                raise ConnectionError(f"no WebSocket: {head[:200]!r}")
            self._buffer = rest
            self.is_open.set()
        while (frame := self._take_frame()) is not None:
            opcode, payload = frame
            if opcode == 1:
                self._on_text(self, payload, at)
            elif opcode == 9:
                self._write(10, payload)
            elif opcode == 8:
                self.is_lost = True

    def _take_frame(self) -> tuple[int, bytes] | None:
        """The next whole frame; a server's frames are never masked, and ours send none in pieces."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        length, start = buffer[1] & 127, 2
        if length >= 126:
            start = 4 if length == 126 else 10
            if len(buffer) < start:
                return None
            length = struct.unpack(">H" if start == 4 else ">Q", buffer[2:start])[0]
        if len(buffer) < start + length:
            return None
        self._buffer = buffer[start + length :]
        return buffer[0] & 15, buffer[start : start + length]

    def send(self, message: dict[str, Any]) -> None:
        """Send one JSON message."""
        self._write(1, json.dumps(message).encode())

    def _write(self, opcode: int, payload: bytes) -> None:
        assert self._transport is not None
        size = len(payload)
        head = bytes([0x80 | opcode, 0x80 | size]) if size < 126 else struct.pack(">BBH", 0x80 | opcode, 254, size)
        self._transport.write(head + bytes(4) + payload)  # a mask of zeros changes nothing

    def connection_lost(self, _exc: Exception | None) -> None:
        self.is_lost = True

    def close(self) -> None:
        """Leave."""
        if self._transport is not None:
            self._transport.close()


class Audience:
    """`count` viewers of one system and what they saw: seconds from when an event was due to each viewer's frame."""

    def __init__(self, system: System, count: int) -> None:
        self._system = system
        self._count = count
        self._pending: dict[tuple[Any, ...], float] = {}
        # What the newest frames showed, by the frame: each viewer gets the same bytes.
        self._shown: dict[bytes, list[float]] = {}
        self._students: dict[int, str] = {}
        self._columns: list[str] = []
        self._place: dict[str, Any] = {}
        self.viewers: list[Viewer] = []
        self.latencies_s: list[float] = []
        self.frames = 0
        self.resyncs = 0

    @property
    def unseen(self) -> int:
        """Events noted that no frame has shown yet."""
        return len(self._pending)

    @property
    def lost(self) -> int:
        """Viewers whose connection ended."""
        return sum(viewer.is_lost for viewer in self.viewers)

    async def __aenter__(self) -> Audience:
        path = "/ws"
        if isinstance(self._system, Nbpulse):
            self._read_class(self._system)
            path = f"/api/v1/courses/{self._system.described['course_id']}/ws"
        loop = asyncio.get_running_loop()
        for _ in range(self._count):
            _, viewer = await loop.create_connection(
                lambda: Viewer(self._system.port, path, self._take), "127.0.0.1", self._system.port
            )
            self.viewers.append(viewer)
            async with asyncio.timeout(10):
                await viewer.is_open.wait()
            if isinstance(self._system, Nbpulse):
                viewer.send({"t": "hello", "token": self._system.described["teacher_token"], **self._place})
        return self

    async def __aexit__(self, *_: object) -> None:
        for viewer in self.viewers:
            viewer.close()

    def note(self, post: Post, due_at: float) -> None:
        """An event is due now; frames will show it."""
        if isinstance(self._system, Nbpulse):
            self._pending[post.student.user_id, post.cell_id, 3 if post.failed else 1] = due_at
        else:
            self._pending[(post.event_id,)] = due_at

    def _read_class(self, system: Nbpulse) -> None:
        board = system.read_class()
        self._students = {student["i"]: student["id"] for student in board["students"]}
        self._columns = [cell["id"] for cell in board["cells"]]
        self._place = {"epoch": board["epoch"], "after_seq": board["seq"]}

    def _take(self, viewer: Viewer, text: bytes, at: float) -> None:
        shown = self._shown.get(text)
        if shown is None:
            shown = self._read(viewer, text)
            if not shown:
                return  # hello, ping, resync: for this viewer alone
            self._shown[text] = shown
            if len(self._shown) > 1000:
                del self._shown[next(iter(self._shown))]
        self.latencies_s.extend(at - due_at for due_at in shown)

    def _read(self, viewer: Viewer, text: bytes) -> list[float]:
        """When the events were due that this frame shows first."""
        frame = json.loads(text)
        if not isinstance(self._system, Nbpulse):
            self.frames += 1
            return self._settle([(frame["event_id"],)])
        if frame["t"] == "resync":
            self.resyncs += 1
            self._read_class(self._system)
            viewer.send({"t": "resume", **self._place})
        elif frame["t"] == "ping":
            viewer.send({"t": "pong"})
        if frame["t"] != "d":
            return []
        self.frames += 1
        if "cells" in frame:
            self._columns = [cell["id"] for cell in frame["cells"]]
        for student in frame.get("students", ()):
            self._students[student["i"]] = student["id"]
        squares = ((self._students[i], self._columns[column], state) for i, column, state in frame.get("c", ()))
        return self._settle(squares)

    def _settle(self, keys: Any) -> list[float]:
        return [self._pending.pop(key) for key in keys if key in self._pending]
