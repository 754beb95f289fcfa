"""Faults of students' machines and lines, and bad input: rows 1-3, 18 and 25-29 of the fault table."""

from __future__ import annotations

import asyncio
import gzip
import time
from datetime import UTC, datetime, timedelta

import psutil
from redis.asyncio import Redis

from torture.checker import STREAMS
from torture.connections import Connection, UnansweredError
from torture.proxies import Mode
from torture.scene import Scene, rebuild


class ClientFaults:
    """What students' machines and the line to them can do."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    async def kill_capture(self) -> str:
        await self._scene.capture.kill()
        await asyncio.sleep(self._scene.random.random())
        await self._scene.capture.start()
        return "kill -9 of a capture process; its outbox goes on"

    async def lose_answers(self) -> str:
        before = self._scene.clients[0].unanswered_count
        await self._spoil("swallow_answers", 2.5)
        await asyncio.sleep(0.5)
        count = self._scene.clients[0].unanswered_count - before
        assert count > 0
        return f"answers swallowed for 2.5 s: {count} requests stayed unanswered"

    async def spoil_line(self) -> str:
        mode: Mode = self._scene.random.choice(["reset", "jitter", "slow", "swallow"])
        await self._spoil(mode, 4)
        return f"line of one client: {mode} for 4 s"

    async def _spoil(self, mode: Mode, seconds: float) -> None:
        self._scene.proxy.mode = mode
        try:
            await asyncio.sleep(seconds)
        finally:
            self._scene.proxy.mode = "pass"
            self._scene.proxy.cut()

    async def wake_after_three_days(self) -> str:
        return self._put_late(timedelta(days=3), 400)

    async def send_to_no_partition(self) -> str:
        return self._put_late(timedelta(days=75), 50)

    def _put_late(self, age: timedelta, count: int) -> str:
        """What a laptop that was shut has kept: the right day is checked at the end."""
        client = self._scene.random.choice(self._scene.clients)
        student = self._scene.random.choice(client.students)
        for number in range(count):
            at = datetime.now(UTC) - age + timedelta(milliseconds=number)
            event = client.make_event(student, occurred_at=at.isoformat(timespec="milliseconds"))
            self._scene.late_events[event["event_id"]] = event["occurred_at"]
            client.put(student, event)
        return f"{count} events of {age.days} days ago"

    async def move_clocks(self) -> str:
        client = self._scene.random.choice(self._scene.clients)
        for days in (2, -2):
            client.clock_offset = timedelta(days=days)
            await asyncio.sleep(1.5)
        client.clock_offset = timedelta(0)
        return "one client's clock 2 days ahead, then 2 days behind, 1.5 s each (ahead is refused, aloud)"

    async def repeat_threefold(self) -> str:
        client = self._scene.random.choice(self._scene.clients)
        lines = client.journal.path.read_text(encoding="utf-8").split("\n")[:-1]
        acknowledged = {line.split(" ")[1] for line in lines if line.startswith("ok ")}
        events = [line.split(" ")[1:] for line in lines if line.startswith("new ")]
        told, tokens = 0, {student.user_id: student for student in client.students}
        for student in self._scene.random.sample(client.students, 3):
            known = [found for found in events if found[1] == student.user_id and found[0] in acknowledged][-60:]
            batch = [rebuild(event_id, kind, cell, status) for event_id, _, kind, cell, status in known * 3]
            self._scene.random.shuffle(batch)
            results = (await self._scene.ask(batch, tokens[student.user_id])) if batch else []
            assert all(result["status"] in {"accepted", "duplicate"} for result in results), results
            told += len(results)
        return f"{told} answers to accepted events sent again three times, shuffled"

    async def poison(self) -> str:
        before = await self._scene.count_letters()
        garbage = [b"\xff\xfe{not json", b'{"event_id":1e400}', b"[" * 5_000]
        async with Redis.from_url(self._scene.valkey.url) as redis:
            for payload in garbage:
                await redis.xadd(self._scene.random.choice(STREAMS[:64]), {"e": payload})
        deadline_s = time.monotonic() + 30
        while (found := await self._scene.count_letters()) < before + len(garbage):
            assert time.monotonic() < deadline_s, f"{found - before} of {len(garbage)} bad entries are dead letters"
            await asyncio.sleep(0.2)
        self._scene.dead_letters += len(garbage)
        return f"{len(garbage)} entries of garbage in the stream; all are dead letters"

    async def overfeed(self) -> str:
        (pid, *_) = self._scene.system.read_pids("api")
        before = psutil.Process(pid).memory_info().rss
        token = self._scene.clients[0].students[0].token
        bomb = gzip.compress(b"[" + b" " * 200_000_000)
        told = []
        for body, headers in ((b"[" + b"1," * 1_000_000 + b"1]", ""), (bomb, "Content-Encoding: gzip\r\n")):
            connection = Connection(self._scene.system.url)
            try:
                answer = await connection.request(
                    "POST", "/api/v1/events", body=body, token=token, headers=headers, deadline_s=20
                )
                told.append(answer.status)
            except UnansweredError:
                told.append(0)  # refused before the body was read to its end
            finally:
                connection.close()
        port = int(self._scene.system.url.rsplit(":", 1)[1])
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
        for _, writer in slow:
            writer.write(b"POST /api/v1/events HTTP/1.1\r\nHost: x\r\nContent-Le")
        await asyncio.sleep(1)
        for _, writer in slow:
            writer.transport.abort()
        grown_mb = (psutil.Process(pid).memory_info().rss - before) / 1e6
        assert set(told) <= {0, 400, 413, 422}, told
        assert grown_mb < 80, f"the API grew by {grown_mb:.0f} MB"
        return f"3 MB of junk, a 200 MB gzip bomb, 50 slow connections: {told}, API grew by {grown_mb:.0f} MB"
