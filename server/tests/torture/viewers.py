"""A teacher's board without a browser: snapshot, frames, numbers without a gap; comes back by itself when cut off."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from random import Random
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from torture.connections import TRUSTING, UnansweredError, get


class Viewer:
    """One board. `frames` keeps each frame with the moment it came; `gaps` must stay empty."""

    def __init__(self, pick_url: Callable[[], str], course_id: str, token: str) -> None:
        self.snapshot: dict[str, Any] = {}
        self.frames: list[tuple[float, dict[str, Any]]] = []
        self.gaps: list[str] = []
        self.connect_count = 0
        self.longest_absence_s = 0.0
        self.is_connected = asyncio.Event()
        self._pick_url = pick_url
        self._course_id = course_id
        self._token = token
        self._seq: int | None = None
        self._gone_s: float | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Viewer:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def assert_running(self) -> None:
        """Raises what ended the board, if anything did."""
        assert self._task is not None
        if self._task.done():
            self._task.result()

    async def find(self, is_it: Callable[[dict[str, Any]], bool], within_s: float, since: int = 0) -> float:
        """The moment (monotonic) when the first frame came that `is_it`, among those from number `since` on."""
        deadline_s = time.monotonic() + within_s
        place = since
        while True:
            while place < len(self.frames):
                at_s, frame = self.frames[place]
                if is_it(frame):
                    return at_s
                place += 1
            self.assert_running()
            assert time.monotonic() < deadline_s, (
                f"no such frame within {within_s} s; last of {len(self.frames)}: {str(self.frames[-3:])[-2000:]}"
            )
            await asyncio.sleep(0.01)

    async def _run(self) -> None:
        random = Random()
        while True:
            try:
                await self._watch()
            except (OSError, TimeoutError, WebSocketException, UnansweredError):
                if self._gone_s is None:
                    self._gone_s = time.monotonic()
                self.is_connected.clear()
            await asyncio.sleep(0.2 + random.random() * 0.5)

    async def _watch(self) -> None:
        url = self._pick_url().replace("http", "ws", 1)
        async with connect(
            f"{url}/api/v1/courses/{self._course_id}/ws",
            open_timeout=5,
            close_timeout=1,
            max_size=1 << 24,
            proxy=None,
            ssl=TRUSTING if url.startswith("wss") else None,
        ) as socket:
            # Of no epoch that any API knows, as a browser's when it comes to another: no frame before "resume". The
            # snapshot may be another API's, whose numbers are others.
            await socket.send(json.dumps({"t": "hello", "token": self._token, "epoch": ""}))
            async for text in socket:
                message = json.loads(text)
                if message["t"] in {"hello", "resync"}:
                    await self._take_snapshot(socket)
                elif message["t"] == "snapshot":
                    self._accept(message["snapshot"])
                elif message["t"] == "ping":
                    await socket.send(json.dumps({"t": "pong"}))
                elif message["t"] == "d":
                    self._take_frame(message)

    async def _take_snapshot(self, socket: ClientConnection) -> None:
        answer = await get(f"{self._pick_url()}/api/v1/courses/{self._course_id}/live", token=self._token)
        if answer.status != 200:
            raise UnansweredError(f"snapshot: {answer.status} {answer.body[:200]!r}")
        self._accept(answer.read())
        await socket.send(json.dumps({"t": "resume", "epoch": self.snapshot["epoch"], "after_seq": self._seq}))
        self.connect_count += 1
        if self._gone_s is not None:
            self.longest_absence_s = max(self.longest_absence_s, time.monotonic() - self._gone_s)
            self._gone_s = None
        self.is_connected.set()

    def _accept(self, snapshot: dict[str, Any]) -> None:
        """Go on from this one."""
        self.snapshot = snapshot
        self._seq = snapshot["seq"]

    def _take_frame(self, frame: dict[str, Any]) -> None:
        if self._seq is not None and frame["seq"] <= self._seq:
            return  # on its way before the snapshot that holds it already
        if self._seq is not None and frame["seq"] > self._seq + 1:
            self.gaps.append(f"frame {frame['seq']} after {self._seq} of {self.snapshot['epoch']}: {str(frame)[:300]}")
        self._seq = frame["seq"]
        self.frames.append((time.monotonic(), frame))
