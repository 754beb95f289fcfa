"""What somebody might do to a server to use it up: plain sockets that lie, dawdle or flood."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

CHUNK = bytes(65_536)


def make_head(path: str, *, token: str = "", length: int | None = None, **headers: str) -> bytes:
    """The head of a POST of JSON."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [f"Authorization: Bearer {token}"] if token else []
    lines += [f"Content-Length: {length}"] if length is not None else []
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


@asynccontextmanager
async def open_socket(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """One connection, closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def send_endless_body(port: int, head: bytes, size: int) -> tuple[bytes, int]:
    """Send a body of `size` bytes after the head until the server has had enough: its answer, and what it took."""
    async with open_socket(port) as (reader, writer):
        sent = 0
        try:
            writer.write(head)
            while sent < size:
                writer.write(CHUNK)
                await writer.drain()
                sent += len(CHUNK)
        except ConnectionError:
            pass  # it has hung up
        try:
            return await asyncio.wait_for(reader.read(65_536), 30), sent
        except ConnectionError:
            return b"", sent


async def trickle(port: int, begin: bytes, drop: bytes, every_s: float, limit_s: float) -> tuple[bytes, float]:
    """Send `begin`, then one `drop` after the other, until hung up on: the answer, and after how many seconds."""
    loop = asyncio.get_running_loop()
    async with open_socket(port) as (reader, writer):
        started_s = loop.time()
        writer.write(begin)
        answer = asyncio.create_task(reader.read())
        try:
            while loop.time() - started_s < limit_s:
                done, _ = await asyncio.wait([answer], timeout=every_s)
                if done:
                    break
                writer.write(drop)
            return await asyncio.wait_for(answer, 1), loop.time() - started_s
        except ConnectionError:
            return b"", loop.time() - started_s


class Idlers:
    """Sockets that are opened and never say a word."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []
        self._readers: list[asyncio.StreamReader] = []

    async def open(self, count: int, greeting: bytes = b"") -> None:
        """So many more; each sends `greeting` at most."""
        for start in range(0, count, 100):
            opened = await asyncio.gather(
                *(asyncio.open_connection("127.0.0.1", self._port) for _ in range(min(100, count - start)))
            )
            for reader, writer in opened:
                if greeting:
                    writer.write(greeting)
                self._readers.append(reader)
                self._writers.append(writer)

    def count_open(self) -> int:
        """Those that the server has not closed."""
        return sum(not reader.at_eof() and reader.exception() is None for reader in self._readers)

    def close(self) -> None:
        """Leave."""
        for writer in self._writers:
            writer.transport.abort()


def make_gzip_bomb(size: int) -> bytes:
    """So many spaces, about a thousandth of that on the wire."""
    packer, part = zlib.compressobj(6, zlib.DEFLATED, 31), b" " * 1_000_000
    return b"".join([*(packer.compress(part) for _ in range(size // len(part))), packer.flush()])


def make_batch(count: int) -> bytes:
    """As small as so many events can be."""
    return json.dumps([{}] * count, separators=(",", ":")).encode()


def make_deep(depth: int) -> bytes:
    """Arrays in arrays."""
    return b"[" * depth + b"]" * depth


def read_rss_mb(pid: int) -> float:
    """What of a process is in memory now."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1_000
