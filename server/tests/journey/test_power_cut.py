"""A power cut: what reached the disk's cache and no further is gone.

kill -9 alone proves nothing here, since the kernel keeps what a killed process wrote: see torture/powercuts.py.
PostgreSQL preallocates its log, so for it the settings are asserted instead.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from nbpulse.embedded.valkey import Promise
from nbpulse_capture.outbox import Outbox
from servers import give_up
from torture.checker import await_drained, check, read_journals
from torture.clients import Journal, LoadClient, join_students
from torture.powercuts import CutValkey, build_shim
from torture.systems import System

RATE_PER_S = 700.0
LOAD_S = 5.0


@dataclass
class Cut:
    """What one power cut cost."""

    accepted: int
    lost: int
    lost_bytes: int
    problems: list[str]


async def run_power_cut(directory: Path, promise: Promise, seed: int) -> Cut:
    """Load while no worker works, so that the stream alone has the events; cut; start again; drain; compare."""
    shim = build_shim(directory)
    if shim is None:
        give_up("the power-cut test builds a small shim in C, and there is no C compiler on the PATH: install gcc")
    valkey = CutValkey(directory / "own", shim, promise=promise)
    valkey.start()
    try:
        settings = {"NBPULSE_REDIS_URL": valkey.url, "NBPULSE_PROMISE": promise}
        settings["NBPULSE_LIMIT_STUDENT_EVENTS"] = "100000"  # 35 a second each: faster than any student
        async with System(directory / "data", worker_count=1, settings=settings) as system:
            await assert_database_syncs(system.facts["database_url"])
            students = await join_students(system.url, system.facts["join_code"], 20)
            (worker,) = system.read_pids("worker")
            os.kill(worker, signal.SIGSTOP)
            journal = Journal(directory / "client.journal")
            client = LoadClient(
                lambda: system.url, students, journal, rate_per_s=RATE_PER_S, seed=seed, connection_count=4
            )
            client.start()
            await asyncio.sleep(LOAD_S)
            if promise != "power":
                await valkey.await_unsynced(0.2)
            lost_bytes = valkey.cut_power()
            await client.stop()
            valkey.start()
            os.kill(worker, signal.SIGCONT)
            await await_drained(valkey.url, within_s=30)
            verdict = await check(
                system.facts["database_url"], system.facts["redis_url"], read_journals([journal.path])
            )
        problems = [problem for problem in verdict.problems if not problem.startswith(("lost", "time series"))]
        return Cut(verdict.acknowledged, len(verdict.lost), lost_bytes, problems)
    finally:
        valkey.stop()


async def assert_database_syncs(database_url: str) -> None:
    connection = await asyncpg.connect(database_url, timeout=10)
    try:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert await connection.fetchval("SELECT current_setting($1)", name) == "on"
    finally:
        await connection.close()


async def test_a_power_cut_loses_no_accepted_event(data_dir: Path) -> None:
    cut = await run_power_cut(data_dir, "power", seed=7)
    print(f"\nalways: {cut}")  # noqa: T201
    assert cut.accepted >= 2_000
    assert cut.lost == 0
    assert cut.problems == []


async def test_the_power_cut_is_harsh_enough_to_lose_events_where_less_is_promised(data_dir: Path) -> None:
    cut = await run_power_cut(data_dir, "process", seed=7)
    print(f"\neverysec: {cut}")  # noqa: T201
    assert cut.accepted >= 2_000
    assert cut.lost > 0, "a cut that costs nothing with everysec proves nothing with always"
    assert cut.problems == []


def test_an_outbox_cut_by_power_opens_again_with_its_older_events(data_dir: Path, tmp_path: Path) -> None:
    """
    The outbox promises no fsync per run, only that what was checkpointed stays and the file is never damaged.

    Its write-ahead log is cut at every length a disk might have kept.
    """
    path = data_dir / "outbox.sqlite3"
    outbox = Outbox(path)
    for number in range(40):
        outbox.put({"event_id": f"old-{number}", "data": {}}, "account")
    outbox.close()  # the last connection checkpoints, and syncs
    outbox = Outbox(path)
    for number in range(20):
        outbox.put({"event_id": f"new-{number}", "data": {}}, "account")
    log = path.with_name(path.name + "-wal")
    length = log.stat().st_size
    assert length > 20_000
    for kept_bytes in (0, 31, 4_000, length // 3, length // 2 + 7, length - 1, length):
        directory = tmp_path / str(kept_bytes)
        directory.mkdir()
        for source in (path, log):
            shutil.copy(source, directory / source.name)
        os.truncate(directory / log.name, kept_bytes)
        cut = Outbox(directory / path.name)
        found = [row.event["event_id"] for row in cut.take_batch("account", 100)]
        assert cut.read_notes() == {}, "it was not taken for damaged"
        cut.close()
        assert found[:40] == [f"old-{number}" for number in range(40)]
        assert found[40:] == [f"new-{number}" for number in range(len(found) - 40)]
    outbox.close()
