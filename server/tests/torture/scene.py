"""Everything a fault can be done to, and what several faults need of it."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import asyncpg

from torture.clients import LoadClient, Student
from torture.connections import Connection
from torture.powercuts import CutValkey
from torture.proxies import Proxy
from torture.systems import System, make_environment
from torture.viewers import Viewer


@dataclass
class Scene:
    """One running system with its clients, boards and a line that may be bad."""

    system: System
    valkey: CutValkey
    proxy: Proxy
    clients: list[LoadClient]
    viewers: list[Viewer]
    capture: CaptureProcess
    random: Random
    dead_letters: int = 0
    late_events: dict[str, str] = field(default_factory=dict)

    async def ask(self, batch: list[dict[str, Any]], student: Student) -> list[dict[str, Any]]:
        connection = Connection(self.system.url)
        try:
            answer = await connection.post("/api/v1/events", batch, token=student.token)
            assert answer.status == 202, answer
            found: list[dict[str, Any]] = answer.read()["results"]
            return found
        finally:
            connection.close()

    async def count_letters(self) -> int:
        connection = await asyncpg.connect(self.system.facts["database_url"], timeout=5)
        try:
            return int(await connection.fetchval("SELECT count(*) FROM dead_letters WHERE replayed_at IS NULL"))
        finally:
            await connection.close()


def rebuild(event_id: str, event_type: str, cell_id: str, status: str) -> dict[str, Any]:
    """An event again as a careless client would: same id, other time."""
    event: dict[str, Any] = {"event_id": event_id, "event_type": event_type, "notebook_path": "torture.ipynb"}
    event |= {"occurred_at": datetime.now(UTC).isoformat(timespec="milliseconds"), "data": {}}
    if cell_id != "-":
        event |= {"cell_id": cell_id, "cell_index": int(cell_id.rpartition("-")[2])}
    if status != "-":
        event["data"] = {"status": status, "execution_duration_ms": 12.5}
    return event


def client_event(client: LoadClient) -> tuple[str, str, str, str]:
    """A new event of the client's first student, noted as sent; the caller sends it."""
    event = client.make_event(client.students[0], event_type="cell_execution")
    client.put(client.students[0], event)
    return event["event_id"], event["event_type"], event["cell_id"], event["data"]["status"]


class CaptureProcess:
    """capture_client.py as a child that may be killed."""

    def __init__(self, directory: Path, journal_path: Path, config_dir: Path) -> None:
        self.journal_path = journal_path
        self._directory, self._config_dir = directory, config_dir
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *more: str) -> None:
        """Go on where the last one died."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "torture.capture_client", str(self._directory), str(self.journal_path), *more),
            env=make_environment({}) | {"NBPULSE_CAPTURE_CONFIG": str(self._config_dir)},
            cwd=Path(__file__).parents[1],
        )

    async def kill(self) -> None:
        """kill -9."""
        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, 9)
        if self._process is not None:
            await self._process.wait()

    async def drain(self) -> None:
        """Have everything in the outbox sent."""
        await self.kill()
        await self.start("--drain")
        assert self._process is not None
        assert await asyncio.wait_for(self._process.wait(), 90) == 0
