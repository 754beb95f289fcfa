"""APIs and workers restarted one after the other, behind a proxy, while students work and teachers watch."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from boards import Board
from torture.checker import Verdict, await_debts_paid, await_drained, check, read_journals
from torture.clients import Journal, LoadClient, join_students
from torture.connections import get
from torture.systems import System
from torture.viewers import Viewer


class Served(Protocol):
    """APIs of one class: `facts` has its course_id and teacher_token."""

    @property
    def api_urls(self) -> list[str]: ...
    @property
    def facts(self) -> dict[str, Any]: ...


class Watching(Viewer):
    """A viewer that keeps its board as a browser does."""

    board: Board

    def _accept(self, snapshot: dict[str, Any]) -> None:
        super()._accept(snapshot)
        self.board = Board(snapshot)

    def _take_frame(self, frame: dict[str, Any]) -> None:
        before = len(self.frames)
        super()._take_frame(frame)
        if len(self.frames) > before:
            self.board.apply(frame)


@dataclass(frozen=True)
class Restarts:
    """What came of it."""

    verdict: Verdict
    answered: bool
    """Whether every event was taken in the end."""
    gaps: list[str]
    absences_s: list[float]
    """Of each viewer the longest time from losing its line to its next snapshot."""
    connects: int


async def read_board(url: str, served: Served) -> dict[str, Any]:
    """The board as that API tells it now."""
    answer = await get(
        f"{url}/api/v1/courses/{served.facts['course_id']}/live", token=served.facts["teacher_token"], deadline_s=20
    )
    assert answer.status == 200, answer.body
    return Board(answer.read()).show()


async def restart_all(
    system: System, front_url: str, journal_path: Path, *, viewer_count: int = 4, rate_per_s: float = 40, seed: int = 1
) -> Restarts:
    """
    SIGTERM every API, then every worker, each after the one before is back; the load and the boards come through
    `front_url`. Ends when every board shows what every API's snapshot does.
    """
    students = await join_students(front_url, system.facts["join_code"], 12, name=f"Student {seed}")
    journal = Journal(journal_path)
    client = LoadClient(lambda: front_url, students, journal, rate_per_s=rate_per_s, seed=seed)
    facts = system.facts
    async with AsyncExitStack() as stack:
        viewers = [Watching(lambda: front_url, facts["course_id"], facts["teacher_token"]) for _ in range(viewer_count)]
        for viewer in viewers:
            await stack.enter_async_context(viewer)
            async with asyncio.timeout(30):
                await viewer.is_connected.wait()
        client.start()
        for part in ("api", "worker"):
            for place, pid in enumerate(system.read_pids(part)):
                await system.await_age(part, place)
                os.kill(pid, signal.SIGTERM)
                await system.await_successor(part, place, pid, within_s=60)
                for viewer in viewers:
                    async with asyncio.timeout(30):
                        await viewer.is_connected.wait()
        await client.finish(within_s=60)
        await await_drained(facts["redis_url"], within_s=60)
        await await_debts_paid(facts["database_url"])
        deadline_s = time.monotonic() + 60
        while differences := await find_differences(system, viewers):
            for viewer in viewers:
                viewer.assert_running()
            assert time.monotonic() < deadline_s, "\n".join(differences)
            await asyncio.sleep(0.2)
    history = read_journals([journal.path])
    return Restarts(
        await check(facts["database_url"], facts["redis_url"], history),
        history.acknowledged == set(history.sent),
        [gap for viewer in viewers for gap in viewer.gaps],
        [round(viewer.longest_absence_s, 2) for viewer in viewers],
        sum(viewer.connect_count for viewer in viewers),
    )


# What a process knows by having been there: a cell's banner stays until it is under half of what put it there, and runs
# that were counted along are some per cent more or fewer than those read later (docs/operations.md).
_OWN_TO_A_PROCESS = {"hot", "trend"}


async def find_differences(served: Served, viewers: Sequence[Watching]) -> list[str]:
    """What a board shows otherwise than some API would show it to a new one now."""
    snapshots = [await read_board(url, served) for url in served.api_urls]
    return [
        f"board {number}, API {place}, {name}: {_tell_apart(shown[name], snapshot[name])}"
        for number, shown in enumerate(viewer.board.show() for viewer in viewers)
        for place, snapshot in enumerate(snapshots)
        for name in snapshot
        if shown[name] != snapshot[name] and name not in _OWN_TO_A_PROCESS
    ]


def _tell_apart(shown: Any, snapshot: Any) -> str:
    if isinstance(shown, list) and isinstance(snapshot, list):
        shown, snapshot = ([x for x in a if x not in b] for a, b in ((shown, snapshot), (snapshot, shown)))
    return f"{str(shown)[:500]} / {str(snapshot)[:500]}"
