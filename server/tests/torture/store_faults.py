"""Faults of the stream's server and of the database: rows 6-10, 15, 20 and 30 of the fault table."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time

from redis.asyncio import Redis

from torture.checker import await_drained
from torture.connections import Connection, UnansweredError
from torture.faults import freeze, hold_lock, run_as_admin
from torture.scene import Scene, client_event, rebuild
from torture.systems import make_environment


class StoreFaults:
    """What the two stores can do."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    async def kill_valkey(self) -> str:
        self._scene.valkey.kill()
        told = await self._expect_refusal()
        await self._scene.valkey.start_again()
        return f"kill -9 of Valkey; {told}"

    async def cut_power(self) -> str:
        lost_bytes = self._scene.valkey.cut_power()
        told = await self._expect_refusal()
        await self._scene.valkey.start_again()
        return f"power cut of Valkey, {lost_bytes} bytes never synced; {told}"

    async def freeze_valkey(self) -> str:
        frozen = asyncio.create_task(freeze(self._scene.valkey.pid, 4))
        await asyncio.sleep(0.1)
        told = await self._expect_refusal()
        await frozen
        return f"Valkey stopped for 4 s; {told}"

    async def fill_valkey(self) -> str:
        async with Redis.from_url(self._scene.valkey.url) as redis:
            await redis.config_set("maxmemory", "1mb")
            try:
                told = await self._expect_refusal()
                await asyncio.sleep(2)
            finally:
                await redis.config_set("maxmemory", "0")
            evicted = (await redis.info("stats"))["evicted_keys"]
        assert evicted == 0
        return f"Valkey full for 2 s; {told}; nothing evicted"

    async def _expect_refusal(self) -> str:
        """A student's event is answered 503 with Retry-After, soon."""
        client = self._scene.clients[1]
        student = self._scene.random.choice(client.students)
        event = client.make_event(student, event_type="cell_execution")
        connection = Connection(self._scene.system.url)
        asked_s = time.monotonic()
        try:
            answer = await connection.post("/api/v1/events", event, token=student.token, deadline_s=5)
        finally:
            connection.close()
        took_s = time.monotonic() - asked_s
        client.put(student, event)
        assert answer.status == 503, answer
        assert int(answer.headers["retry-after"]) >= 1
        assert took_s < 2, f"the 503 took {took_s:.2f} s"
        return f"503 after {took_s:.2f} s"

    async def empty_valkey(self) -> str:
        """The wrong volume: with nothing in flight, since what only the right one holds cannot be on the wrong one."""
        await self._scene.capture.kill()
        for client in self._scene.clients:
            client.is_paused = True
        deadline_s = time.monotonic() + 30
        while any(client.waiting_count for client in self._scene.clients):
            assert time.monotonic() < deadline_s, "the clients have no rest"
            await asyncio.sleep(0.05)
        await await_drained(self._scene.valkey.url, 30)
        self._scene.valkey.kill()
        shutil.rmtree(self._scene.valkey.directory / "data")
        await self._scene.valkey.start_again()
        for client in self._scene.clients:
            client.is_paused = False
        await self._scene.capture.start()
        deadline_s = time.monotonic() + 15
        while not await self._scene.system.read_metric("nbpulse_stream_generation_changes_total"):
            assert time.monotonic() < deadline_s, "nobody noticed that Valkey is another one"
            await asyncio.sleep(0.2)
        return "Valkey came back empty (nothing in flight); noticed, groups made again"

    async def lock_ledger(self) -> str:
        held = asyncio.create_task(hold_lock(self._scene.system, "events", 5))
        await asyncio.sleep(0.5)
        client = self._scene.clients[1]
        asked_s = time.monotonic()
        await self._scene.ask([rebuild(*found) for found in [client_event(client)]], client.students[0])
        took_s = time.monotonic() - asked_s
        await held
        assert took_s < 2, f"accepting took {took_s:.2f} s while the ledger was locked"
        return f"ledger locked for 5 s; accepting took {took_s:.2f} s meanwhile"

    async def lock_series(self) -> str:
        await hold_lock(self._scene.system, "timeseries.cell_executions", 6)
        return "time series locked for 6 s; its debts are paid later"

    async def deploy_badly(self) -> str:
        """No event can be stored: the workers must stop by themselves, and everything must be there in the end."""
        await run_as_admin(self._scene.system, "REVOKE INSERT ON events FROM app_writer")
        try:
            await self._await_health(503, 25)
        finally:
            await run_as_admin(self._scene.system, "GRANT INSERT ON events TO app_writer")
        for place in range(2):
            await self._scene.system.kill_part("worker", place)
        buried = await self._scene.count_letters()
        done = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "nbpulse",
                "dead-letters",
                "replay",
                "all",
                "--data",
                str(self._scene.system.data_dir),
            ),
            stderr=asyncio.subprocess.PIPE,
            env=make_environment({}),
        )
        _, said = await asyncio.wait_for(done.communicate(), 60)
        assert done.returncode == 0, said.decode()
        return f"nothing could be stored: both workers stopped; {buried} dead letters replayed after the mend"

    async def _await_health(self, status: int, within_s: float) -> None:
        urls = [url.replace("/metrics", "/health") for url in self._scene.system.facts["metrics_urls"][-2:]]
        deadline_s = time.monotonic() + within_s
        for url in urls:
            while True:
                connection = Connection(url)
                try:
                    if (await connection.request("GET", "/health", deadline_s=2)).status == status:
                        break
                except UnansweredError:
                    pass
                finally:
                    connection.close()
                assert time.monotonic() < deadline_s, f"{url} is not {status} after {within_s} s"
                await asyncio.sleep(0.1)
