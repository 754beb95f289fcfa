"""Draws faults from the rows of the fault table: which row is tried how, and which cannot be tried here and why."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

from torture.client_faults import ClientFaults
from torture.faults import freeze, kill_worker
from torture.scene import Scene
from torture.store_faults import StoreFaults

Fault = Callable[[], Awaitable[str]]

NOT_POSSIBLE = {
    11: "there is one stream server: failover comes with replication",
    16: "needs a file system of its own for PostgreSQL; a full stream (row 9) stops accepting in the same way",
    19: "there are no replicas yet",
    21: "InfluxDB's answers come with its store; here the series are in PostgreSQL",
    24: "needs a packet filter; a swallowed line (row 25) is the nearest to it",
    31: "the outbox's size cap is tested with the capture package, on a disk of any size",
    33: "restoring backups comes with the operations part",
}
CONSTANT = {
    17: "two workers had the same students all the time",
    32: "this program",
}


class ProcessFaults:
    """What can happen to our own processes, to PostgreSQL's and to boards: rows 4, 5, 12-14, 22 and 23."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    async def kill_api(self) -> str:
        place = self._scene.random.randrange(len(self._scene.system.api_urls))
        return f"kill -9 of API {place + 1}; back after {await self._scene.system.kill_part('api', place):.1f} s"

    async def freeze_api(self) -> str:
        place = self._scene.random.randrange(len(self._scene.system.api_urls))
        await freeze(self._scene.system.read_pids("api")[place], 3)
        return f"API {place + 1} stopped for 3 s, then went on"

    async def kill_worker(self) -> str:
        is_between = await kill_worker(
            self._scene.system, self._scene.random.randrange(2), self._scene.random, is_aimed=True
        )
        return f"kill -9 of a worker{' between commit and acknowledgement' if is_between else ''}"

    async def freeze_worker(self) -> str:
        await freeze(self._scene.random.choice(self._scene.system.read_pids("worker")), 7)
        return "a worker stopped for 7 s (claimed after 5 s), then went on"

    async def kill_postgresql(self) -> str:
        return f"kill -9 of the postmaster; back after {await self._scene.system.kill_part('postgresql'):.1f} s"

    async def kill_hub(self) -> str:
        await self._scene.system.kill_part("api", 0)
        started_s = time.monotonic()
        await asyncio.wait_for(asyncio.gather(*(viewer.is_connected.wait() for viewer in self._scene.viewers)), 10)
        took_s = time.monotonic() - started_s
        return f"kill -9 of the API with {len(self._scene.viewers)} boards; all back {took_s:.1f} s after it"

    async def stop_reading_board(self) -> str:
        host, port = "127.0.0.1", int(self._scene.system.url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection(host, port, limit=1024)
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        path = f"/api/v1/courses/{self._scene.system.facts['course_id']}/ws"
        head = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(f"{head}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        hello = json.dumps({"t": "hello", "token": self._scene.system.facts["teacher_token"]}).encode()
        await reader.readuntil(b"\r\n\r\n")
        writer.write(bytes([0x81, 0xFE]) + len(hello).to_bytes(2) + bytes(4) + hello)
        seen = [len(viewer.frames) for viewer in self._scene.viewers]
        await asyncio.sleep(4)
        writer.transport.abort()
        assert all(len(viewer.frames) > count for viewer, count in zip(self._scene.viewers, seen, strict=True))
        return "a board that reads nothing for 4 s; the others went on"


def list_faults(scene: Scene) -> dict[int, Fault]:
    """Row of the fault table -> what tries it; each gives back what it did, or raises AssertionError."""
    clients, processes, stores = ClientFaults(scene), ProcessFaults(scene), StoreFaults(scene)
    faults: dict[int, Fault] = {
        1: clients.kill_capture,
        2: clients.lose_answers,
        3: clients.wake_after_three_days,
        4: processes.kill_api,
        5: processes.freeze_api,
        6: stores.kill_valkey,
        7: stores.cut_power,
        8: stores.freeze_valkey,
        9: stores.fill_valkey,
        10: stores.empty_valkey,
        12: processes.kill_worker,
        13: processes.freeze_worker,
        14: processes.kill_postgresql,
        15: stores.lock_ledger,
        18: clients.send_to_no_partition,
        20: stores.lock_series,
        22: processes.kill_hub,
        23: processes.stop_reading_board,
        25: clients.spoil_line,
        26: clients.move_clocks,
        27: clients.repeat_threefold,
        28: clients.poison,
        29: clients.overfeed,
        30: stores.deploy_badly,
    }
    if scene.valkey.shim is None:
        del faults[7]
    return faults
