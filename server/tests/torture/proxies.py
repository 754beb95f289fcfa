"""A bad line: a TCP proxy that cuts, holds, delays, slows or swallows what passes through it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from random import Random
from typing import Literal

Direction = Literal["up", "down"]
"""`up`: from the client to the server; `down`: back."""
Mode = Literal["pass", "swallow_answers", "swallow", "reset", "jitter", "slow"]
Watch = Callable[[int, Direction, bytes], Awaitable[bool]]
"""Told of each piece (connection, direction, bytes) before it passes; False = cut the connection."""


class Proxy:
    """
    Listens on a free loopback port and passes to one address; `mode` may change while it runs.

    Opened again after it was closed it listens on the same port.
    """

    def __init__(self, host: str, port: int, *, watch: Watch | None = None, seed: int = 1) -> None:
        self.mode: Mode = "pass"
        self.port = 0
        self._target = (host, port)
        self._watch = watch
        self._random = Random(seed)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._count = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.sleep(0)

    def cut(self) -> None:
        """Cut every connection, as a reset."""
        for writer in [*self._writers]:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self._count += 1
        number = self._count
        outward: asyncio.StreamWriter | None = None
        with contextlib.suppress(OSError, asyncio.CancelledError):
            try:
                inward, outward = await asyncio.open_connection(*self._target)
                self._writers.add(outward)
                ways = [
                    asyncio.create_task(self._carry(number, "up", reader, outward)),
                    asyncio.create_task(self._carry(number, "down", inward, writer)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
            finally:
                for one in (writer, outward):
                    if one is not None:
                        self._writers.discard(one)
                        one.transport.abort()

    async def _carry(
        self, number: int, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while piece := await reader.read(65_536):
            if self._watch is not None and not await self._watch(number, direction, piece):
                return
            if self.mode == "reset" and self._random.random() < 0.1:
                return
            if self.mode == "jitter":
                await asyncio.sleep(self._random.random() * 0.3)
            if self.mode == "slow":  # about 1 Mbit/s
                await asyncio.sleep(len(piece) / 125_000)
            if self.mode == "swallow" or (self.mode == "swallow_answers" and direction == "down"):
                continue
            writer.write(piece)
            await writer.drain()
