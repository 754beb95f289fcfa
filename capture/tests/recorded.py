"""What a student's outbox holds, read beside the Jupyter server that writes it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from nbpulse_capture.execution import make_event_id
from nbpulse_capture.outbox import Outbox
from student_jupyter import Notebook, Ran

Event = dict[str, Any]


class Recorded:
    """What the student's outbox holds, sent or not: the server it would be sent to does not answer."""

    def __init__(self, student: Path) -> None:
        self._file = student / "data" / "outbox.sqlite3"

    def read(self) -> list[Event]:
        if not self._file.exists():
            return []
        outbox = Outbox(self._file)
        try:
            return [event for _, event, _ in outbox.read_last_events(100_000)]
        finally:
            outbox.close()

    def of(self, *event_types: str) -> list[Event]:
        return [event for event in self.read() if event["event_type"] in event_types]

    def of_run(self, kernel_id: str, ran: Ran) -> dict[str, Event]:
        ids = {make_event_id(uuid.UUID(kernel_id), ran.msg_id, phase): phase for phase in ("start", "end")}
        found = [event for event in self.read() if event["event_id"] in ids]
        assert len({event["event_id"] for event in found}) == len(found), "told twice"
        return {ids[event["event_id"]]: event for event in found}

    async def wait_until(self, is_there: Callable[[], Any], within_s: float = 15.0) -> None:
        async with asyncio.timeout(within_s):
            while not is_there():  # noqa: ASYNC110 - another process's file
                await asyncio.sleep(0.05)

    async def wait_for_end(self, kernel_id: str, ran: Ran, within_s: float = 15.0) -> Event:
        await self.wait_until(lambda: "end" in self.of_run(kernel_id, ran), within_s)
        return self.of_run(kernel_id, ran)["end"]

    async def wait_for_start(self, kernel_id: str, ran: Ran, within_s: float = 15.0) -> Event:
        await self.wait_until(lambda: "start" in self.of_run(kernel_id, ran), within_s)
        return self.of_run(kernel_id, ran)["start"]


async def check_run(
    recorded: Recorded, notebook: Notebook, ran: Ran, status: str, *, path: str = "week1.ipynb"
) -> dict[str, Any]:
    """Exactly one start and one end (none of a run that never ran has a start), the right cell, path and status."""
    end = await recorded.wait_for_end(notebook.kernel_id, ran)
    told = recorded.of_run(notebook.kernel_id, ran)
    assert set(told) == ({"end"} if status == "aborted" else {"start", "end"})
    for event in told.values():
        assert (event["cell_id"], event["notebook_path"]) == (ran.cell_id, path)
    data: dict[str, Any] = end["data"]
    assert (data["status"], data["has_error"]) == (status, status == "error")
    return data


def measure_s(first: Event, second: Event) -> float:
    """Seconds from one event to another."""
    start, end = (datetime.fromisoformat(event["occurred_at"]) for event in (first, second))
    return (end - start).total_seconds()
