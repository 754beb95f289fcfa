"""`python -m torture --minutes 10 --seed 1`: load, faults drawn by chance, and what became of every event.

Each row of the fault table that can be tried here is tried once, in random order, and then at random until the time is
over; the same seed draws the same faults. Ends with 1 when anything was lost, doubled or not as promised.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import asyncpg

from nbpulse_capture.membership import Membership, write_membership
from torture.checker import Verdict, await_debts_paid, await_drained, check, read_journals
from torture.clients import Journal, LoadClient, join_students
from torture.nemesis import CONSTANT, NOT_POSSIBLE, list_faults
from torture.powercuts import CutValkey, build_shim
from torture.proxies import Proxy
from torture.scene import CaptureProcess, Scene
from torture.systems import System
from torture.viewers import Viewer

CLIENT_COUNT = 4
STUDENTS_EACH = 10
VIEWER_COUNT = 4
RATE_PER_S = 300.0
RESULT = Path(__file__).parents[3] / "bench" / "results" / "torture.json"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Torture:
    """One run from start to verdict."""

    def __init__(self, directory: Path, minutes: float, seed: int, rows: list[int]) -> None:
        self.directory, self.minutes, self.seed, self.rows = directory, minutes, seed, rows
        self.counts: Counter[int] = Counter()
        self.failures: list[str] = []
        self._random = Random(seed)

    async def run(self) -> dict[str, Any]:
        """Everything; the summary."""
        async with AsyncExitStack() as stack:
            valkey = CutValkey(self.directory / "own", build_shim(self.directory))
            valkey.start()
            stack.callback(valkey.stop)
            system = System(
                self.directory / "data", api_count=2, worker_count=2, settings={"NBPULSE_REDIS_URL": valkey.url}
            )
            await stack.enter_async_context(system)
            proxy = await stack.enter_async_context(Proxy("127.0.0.1", int(system.url.rsplit(":", 1)[1])))
            clients = await self._open_clients(system, proxy)
            capture = await self._open_capture(system)
            stack.push_async_callback(capture.kill)
            viewers = [
                Viewer(lambda: system.url, system.facts["course_id"], system.facts["teacher_token"])
                for _ in range(VIEWER_COUNT)
            ]
            for viewer in viewers:
                await stack.enter_async_context(viewer)
            for client in clients:
                client.start()
            await capture.start()
            scene = Scene(system, valkey, proxy, clients, viewers, capture, self._random)
            await self._do_harm(scene)
            return await self._judge(scene)

    async def _open_clients(self, system: System, proxy: Proxy) -> list[LoadClient]:
        clients = []
        for number in range(CLIENT_COUNT):
            students = await join_students(
                system.url, system.facts["join_code"], STUDENTS_EACH, name=f"Client {number}"
            )
            # The first one's line is bad at times; the others share the APIs.
            url = f"http://127.0.0.1:{proxy.port}" if number == 0 else system.api_urls[number % 2]
            clients.append(
                LoadClient(
                    lambda url=url: url,  # type: ignore[misc]
                    students,
                    Journal(self.directory / f"client-{number}.journal"),
                    rate_per_s=RATE_PER_S / CLIENT_COUNT,
                    seed=self.seed + number,
                )
            )
        return clients

    async def _open_capture(self, system: System) -> CaptureProcess:
        (student,) = await join_students(system.url, system.facts["join_code"], 1, name="Capture")
        config_dir = self.directory / "capture"
        os.environ["NBPULSE_CAPTURE_CONFIG"] = str(config_dir)
        course_id = system.facts["course_id"]
        write_membership(Membership(system.url, student.token, user_id=student.user_id, course_id=course_id))
        return CaptureProcess(config_dir, self.directory / "capture.journal", config_dir)

    async def _do_harm(self, scene: Scene) -> None:
        faults = {row: fault for row, fault in list_faults(scene).items() if not self.rows or row in self.rows}
        order = sorted(faults)
        self._random.shuffle(order)
        end_s = time.monotonic() + self.minutes * 60
        while order or time.monotonic() < end_s:
            # Every row is tried, also where the time is short for all of them.
            pause_s = self._random.uniform(5, 15) if time.monotonic() < end_s else 2.0
            row = order.pop() if order else self._random.choice(sorted(faults))
            started_s = time.monotonic()
            try:
                told = await asyncio.wait_for(faults[row](), 90)
            except Exception as error:  # noqa: BLE001 - noted, and the run goes on: the verdict says it
                told = f"NOT AS PROMISED: {type(error).__name__}: {error}"
                self.failures.append(f"row {row}: {told}")
            self.counts[row] += 1
            say(f"{datetime.now():%H:%M:%S} row {row:2}: {told}")  # noqa: DTZ005 - for a person at this machine
            for client in scene.clients:
                client.assert_running()
            for viewer in scene.viewers:
                viewer.assert_running()
            await asyncio.sleep(max(1.0, min(pause_s, end_s - time.monotonic()) - (time.monotonic() - started_s)))

    async def _judge(self, scene: Scene) -> dict[str, Any]:
        clients, capture, viewers = scene.clients, scene.capture, scene.viewers
        database_url = scene.system.facts["database_url"]
        started_s = time.monotonic()
        await asyncio.gather(*(client.finish(30) for client in clients))
        await capture.drain()
        await await_drained(scene.valkey.url, 30)
        recovery_s = time.monotonic() - started_s
        await await_debts_paid(database_url)
        history = read_journals([*(client.journal.path for client in clients), capture.journal_path])
        verdict = await check(database_url, scene.valkey.url, history, dead_letters=scene.dead_letters)
        problems = verdict.problems + self.failures + [gap for viewer in viewers for gap in viewer.gaps]
        problems += await self._check_late(database_url, scene.late_events)
        problems += [f"refused: {event_id} {code}" for event_id, code in history.rejected.items() if code != "NB-1017"]
        made = read_journals(client.journal.path for client in clients)
        problems += [f"never answered: {one}" for one in set(made.sent) - made.acknowledged - set(made.rejected)]
        statuses: Counter[int] = sum((client.statuses for client in clients), Counter())
        return self._summarise(verdict, problems) | {
            "answers": {str(status): count for status, count in sorted(statuses.items())},
            "unanswered_requests": sum(client.unanswered_count for client in clients),
            "clock_ahead_refused": len(history.rejected),
            "drained_after_last_fault_s": round(recovery_s, 1),
            "boards_reconnected": sum(viewer.connect_count for viewer in viewers) - len(viewers),
        }

    async def _check_late(self, database_url: str, late_events: dict[str, str]) -> list[str]:
        """Late events lie where they happened, not where they came."""
        connection = await asyncpg.connect(database_url, timeout=10)
        try:
            rows = await connection.fetch(
                "SELECT event_id, occurred_at FROM events WHERE event_id = ANY($1)", [UUID(one) for one in late_events]
            )
        finally:
            await connection.close()
        return [
            f"late event {row['event_id']} lies at {row['occurred_at']}"
            for row in rows
            if row["occurred_at"] != datetime.fromisoformat(late_events[str(row["event_id"])])
        ]

    def _summarise(self, verdict: Verdict, problems: list[str]) -> dict[str, Any]:
        return {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": self.seed,
            "minutes": self.minutes,
            "faults": sum(self.counts.values()),
            "faults_by_row": {str(row): count for row, count in sorted(self.counts.items())},
            "constant_rows": {str(row): told for row, told in CONSTANT.items()},
            "not_possible": {str(row): why for row, why in NOT_POSSIBLE.items()},
            "acknowledged": verdict.acknowledged,
            "stored": verdict.stored,
            "lost": len(verdict.lost),
            "doubled": len(verdict.doubled),
            "loss_rate_upper_bound_95": verdict.loss_bound,
            "problems": problems[:50],
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, nargs="*", default=[], help="only these rows of the fault table")
    parser.add_argument("--result", type=Path, default=None, help=f"where the summary goes, e.g. {RESULT.name}")
    arguments = parser.parse_args()
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    directory = Path(tempfile.mkdtemp(prefix="nbpulse-torture-"))
    directory.chmod(0o711)
    say(f"seed {arguments.seed}, {arguments.minutes:g} minutes, {RATE_PER_S:g} events/s from {CLIENT_COUNT} clients")
    try:
        summary = asyncio.run(Torture(directory, arguments.minutes, arguments.seed, arguments.rows).run())
    finally:
        shutil.rmtree(directory)
    for row, why in NOT_POSSIBLE.items():
        say(f"row {row:2}: not possible: {why}")
    for row, told in CONSTANT.items():
        say(f"row {row:2}: {told}")
    say(
        f"seed {arguments.seed}: {summary['faults']} faults, {summary['acknowledged']} acknowledged,"
        f" {summary['stored']} stored, {summary['lost']} lost, {summary['doubled']} doubled;"
        f" 95 % upper bound of the loss rate {summary['loss_rate_upper_bound_95']:.1e}"
    )
    for problem in summary["problems"]:
        say(f"PROBLEM {problem}")
    if arguments.result:
        arguments.result.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return 1 if summary["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
