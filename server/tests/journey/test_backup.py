"""A backup under load, the machine's loss, and another machine from that file: nothing lost, nothing counted twice."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from nbpulse.archive import read_archive
from stores import connect
from torture.checker import await_debts_paid, await_drained, check, read_journals
from torture.clients import Journal, LoadClient, Student, join_students
from torture.systems import System, make_environment

RATE_PER_S = 300.0
STUDENT_COUNT = 20


class Spooling(LoadClient):
    """Forgets nothing it ever sent."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.made: dict[Student, dict[str, bytes]] = {student: {} for student in self.students}

    def put(self, student: Student, event: dict[str, Any]) -> None:
        super().put(student, event)
        self.made[student][event["event_id"]] = self._waiting[student][event["event_id"]]

    def send_all_again(self) -> int:
        for student, events in self.made.items():
            self._waiting[student] |= events
        return self.waiting_count


async def run_nbpulse(*arguments: str | Path) -> str:
    """What it said; it must have gone well."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nbpulse", *map(str, arguments)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=make_environment({"NBPULSE_LANGUAGE": "en"}),
    )
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, said.decode()
    return said.decode()


async def read_stored(database_url: str) -> set[str]:
    async with connect(database_url) as connection:
        return {str(row[0]) for row in await connection.fetch("SELECT event_id FROM events")}


async def back_up_with_a_backlog(old: System, journal: Journal, file: Path) -> set[str]:
    """The ids accepted before it began; its worker is held until the backup is at work, then catches up beside it."""
    (worker,) = old.read_pids("worker")
    os.kill(worker, signal.SIGSTOP)
    await asyncio.sleep(1.5)
    accepted = set(read_journals([journal.path]).acknowledged)
    backup = asyncio.create_task(run_nbpulse("backup", file, "--data", old.data_dir, "--with-keys"))
    while not file.with_name(f"{file.name}.unfinished").exists():
        assert not backup.done(), backup.result()
        await asyncio.sleep(0.001)
    os.kill(worker, signal.SIGCONT)
    await backup
    return accepted


@pytest.mark.timeout(170)
async def test_what_was_accepted_before_the_backup_is_there_and_what_is_sent_again_counts_once(data_dir: Path) -> None:
    file, url = data_dir / "b.zip", ""
    async with System(data_dir / "old", worker_count=1) as old:
        url = old.url
        students = await join_students(url, old.facts["join_code"], STUDENT_COUNT)
        journal = Journal(data_dir / "client.journal")
        client = Spooling(lambda: url, students, journal, rate_per_s=RATE_PER_S, seed=5)
        client.start()
        await asyncio.sleep(3)
        accepted = await back_up_with_a_backlog(old, journal, file)
        await asyncio.sleep(1.5)
        await old.kill_supervisor_for_good()
    said = await run_nbpulse("restore", file, "--data", data_dir / "new")
    with read_archive(file) as archive:
        waiting = archive.manifest.stream.rows
    assert waiting > 0, "no backlog: the stream's part was not tried"

    async with System(data_dir / "new", worker_count=1) as new:
        assert new.facts["join_code"] == old.facts["join_code"]
        await await_drained(new.facts["redis_url"], 30)
        stored = await read_stored(new.facts["database_url"])
        history = read_journals([journal.path])
        assert len(accepted) > 1_000
        assert accepted <= stored, f"{len(accepted - stored)} of {len(accepted)} accepted events are lost"
        lost_since = len(history.acknowledged - stored)

        # The students' Jupyters send what they still hold, and everything they ever sent besides.
        again = client.send_all_again()
        url = new.url
        await client.finish(within_s=60)
        await await_drained(new.facts["redis_url"], 30)
        await await_debts_paid(new.facts["database_url"])
        history = read_journals([journal.path])
        verdict = await check(new.facts["database_url"], new.facts["redis_url"], history)
        print(  # noqa: T201 - what a person running it wants to see
            f"\n{said.splitlines()[-1]}\naccepted before {len(accepted)}, in the archive's stream {waiting}, stored"
            f" before anything was sent again {len(stored)}, accepted later and lost until sent again {lost_since},"
            f" sent again {again}, stored at last {verdict.stored}"
        )
        assert verdict.problems == []
        assert history.acknowledged == set(history.sent)
        assert verdict.stored == len(history.sent)
