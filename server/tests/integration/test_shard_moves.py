"""A shard moves while its students work: nothing lost, nothing double, whoever is killed at whatever step."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from statistics import median
from uuid import UUID

import pytest

from nbpulse.errors import StartupError, Unavailable
from nbpulse.placement import spread_shards
from nbpulse.resources import Resources
from nbpulse.shards import get_shard_number
from primaries import Primaries, keep_figures, run_primaries
from stores import connect, make_class, make_event

IS_FULL = os.environ.get("NBPULSE_TEST_SCALE") == "full"
RATE_PER_S = 300 if IS_FULL else 100
ALL_STEPS = (
    *("primaries.subscribe", "primaries.count_synced", "_hand_over", "_wait_applied", "_carry", "_clean_up", "_part"),
    *("primaries.unsubscribe", "primaries.drop_slot", "_delete_rows", "_note_end"),
)
STEPS = ALL_STEPS if IS_FULL else ("_carry",)
VICTIMS = ("main", "b") if IS_FULL else ("b",)
# The mover in a process of its own; the step it names kills somebody when it is reached.
_MOVER = """
import os, signal, sys
from nbpulse import cli
from nbpulse.records import moves, primaries
victim, step, *arguments = sys.argv[1:]
home = primaries if step.startswith("primaries.") else moves
name = step.removeprefix("primaries.")
original = getattr(home, name)
def die(*values, **named):
    os.kill(int(victim) or os.getpid(), signal.SIGKILL)
    return original(*values, **named)
setattr(home, name, die)
sys.argv = ["nbpulse", *arguments]
cli.main()
"""
pytestmark = pytest.mark.timeout(900 if IS_FULL else 180)


@pytest.fixture(scope="module")
def primaries() -> Iterator[Primaries]:
    with run_primaries(("b", "c")) as started:
        for name in ("b", "c"):
            started.run("add", name, "--url", started.urls[name])
        yield started


class Load:
    """A class at work: runs of its students through a worker's ledger, each until it is stored."""

    def __init__(self, worker: Resources, course_id: UUID, students: Sequence[UUID]) -> None:
        self._worker = worker
        self._course_id = course_id
        self._students = students
        self.sent = 0
        self.waits_s: dict[int, float] = {}
        self._is_over = False

    async def run(self) -> None:
        """Until `stop`, and what is left then; every 20 ms a batch."""
        left: list[tuple[float, object]] = []
        began_s, number = time.monotonic(), 0
        while left or not self._is_over:
            due = int((time.monotonic() - began_s) * RATE_PER_S) - number
            for _ in range(0 if self._is_over else due):
                event = make_event(self._students[number % len(self._students)], self._course_id)
                left.append((time.monotonic(), event))
                number += 1
            batch = [event for _, event in left][:500]
            try:
                recorded = await self._worker.ledger.record_events(batch) if batch else None
            except Unavailable:
                await asyncio.sleep(0.05)
                continue
            if recorded is not None:
                kept = []
                for since_s, event in left[:500]:
                    if (event.user_id, event.event_id) in recorded.postponed:  # type: ignore[attr-defined]
                        kept.append((since_s, event))
                        continue
                    shard = get_shard_number(event.user_id)  # type: ignore[attr-defined]
                    self.waits_s[shard] = max(self.waits_s.get(shard, 0.0), time.monotonic() - since_s)
                    self.sent += 1
                left = kept + left[500:]
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        self._is_over = True


@asynccontextmanager
async def working(
    primaries: Primaries, redis_url: str, students: int = 60
) -> AsyncIterator[tuple[Load, UUID, list[UUID]]]:
    """A class at work for the length of the block; its last events are stored at the end of it."""
    course_id, user_ids = await make_class(primaries.urls["main"], students)
    async with primaries.open_worker(redis_url) as worker:
        load = Load(worker, course_id, user_ids)
        task = asyncio.create_task(load.run())
        try:
            yield load, course_id, user_ids
        finally:
            load.stop()
            async with asyncio.timeout(120):
                await task


async def check(primaries: Primaries, load: Load, course_id: UUID) -> None:
    """All that was sent is there once, where the map says, and the directory shows it."""
    await asyncio.to_thread(primaries.run, "verify")
    assert sum((await primaries.count("events", f"course_id = '{course_id}'")).values()) == load.sent
    async with connect(primaries.urls["main"]) as directory:
        shown = "SELECT sum(attempt_count) FROM learner_cells WHERE course_id = $1"
        assert await directory.fetchval(shown, course_id) == load.sent


async def run_mover(primaries: Primaries, victim: int, step: str, *arguments: str) -> tuple[int, str]:
    """A mover by itself that kills `victim` (0: itself) at that step; its exit code and what it said."""
    command = [sys.executable, "-c", _MOVER, str(victim), step, "shard", "move", *arguments]
    environment = os.environ | primaries.make_environment() | {"NBPULSE_LANGUAGE": "en"}
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stderr


async def test_a_shard_moves_there_and_back_under_load(primaries: Primaries, embedded_valkey: str) -> None:
    pauses = []
    async with working(primaries, embedded_valkey) as (load, course_id, students):
        shard = get_shard_number(students[0])
        for target in ("b", "c", "main", "b", "main") if IS_FULL else ("b", "c", "main"):
            await asyncio.sleep(1.0)
            shown = await asyncio.to_thread(primaries.run, "move", f"shard_{shard}", "--to", target, "--json")
            pauses.append(json.loads(shown.splitlines()[-1])["pause_s"][f"shard_{shard}"])
            held = await primaries.count("events", f"shard = {shard}")
            assert held.pop(target) > 0
            assert set(held.values()) == {0}
    await check(primaries, load, course_id)
    if IS_FULL:
        figures = {
            "rate_per_s": RATE_PER_S,
            "pause_s": pauses,
            "pause_median_s": median(pauses),
            "longest_wait_s": load.waits_s[shard],
        }
        keep_figures("shard_move", figures)


@pytest.mark.parametrize("step", STEPS)
async def test_a_mover_killed_at_a_step_goes_on_where_it_was(
    primaries: Primaries, embedded_valkey: str, step: str
) -> None:
    async with working(primaries, embedded_valkey) as (load, course_id, students):
        shard = get_shard_number(students[0])
        for target in ("b", "main"):
            code, said = await run_mover(primaries, 0, step, f"shard_{shard}", "--to", target)
            assert code == -signal.SIGKILL, said
            await asyncio.sleep(0.3)
            await asyncio.to_thread(primaries.run, "move")
    await check(primaries, load, course_id)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("victim", VICTIMS)
async def test_a_server_killed_at_a_step_comes_back_and_the_move_goes_on(
    primaries: Primaries, embedded_valkey: str, victim: str, step: str
) -> None:
    async with working(primaries, embedded_valkey) as (load, course_id, students):
        shard = get_shard_number(students[0])
        for target in ("b", "main"):
            server = primaries.servers[victim]
            try:
                code, said = await run_mover(primaries, server.pid, step, f"shard_{shard}", "--to", target)
            finally:
                server.revive()  # from this thread: it would end with another
            # The last step needs the directory alone: nobody misses a database that dies by then.
            assert code == (0 if (victim, step) == ("b", "_note_end") else 1)
            assert ("NB-3130" in said) == bool(code)
            async with asyncio.timeout(60):
                while True:
                    try:
                        await asyncio.to_thread(primaries.run, "move")
                        break
                    except StartupError:
                        await asyncio.sleep(0.5)
    await check(primaries, load, course_id)


async def test_a_target_that_dies_behind_the_fence_costs_the_shard_no_pause(
    primaries: Primaries, embedded_valkey: str
) -> None:
    async with working(primaries, embedded_valkey) as (load, course_id, students):
        shard, victim = get_shard_number(students[0]), primaries.servers["b"]
        try:
            code, said = await run_mover(primaries, victim.pid, "_wait_applied", f"shard_{shard}", "--to", "b")
            assert (code, "NB-3130" in said) == (1, True), said
            query = "SELECT count(*) FROM events WHERE shard = $1"
            async with connect(primaries.urls["main"]) as source, asyncio.timeout(20):
                before = await source.fetchval(query, shard)
                while await source.fetchval(query, shard) == before:  # noqa: ASYNC110 - a database changes
                    await asyncio.sleep(0.1)
        finally:
            victim.revive()
        for arguments in ((), (f"shard_{shard}", "--to", "main")):
            await asyncio.to_thread(primaries.run, "move", *arguments)
    await check(primaries, load, course_id)


async def test_a_move_is_taken_back_until_the_map_has_changed(primaries: Primaries, embedded_valkey: str) -> None:
    async with working(primaries, embedded_valkey) as (load, course_id, students):
        shard = get_shard_number(students[0])
        for step in ("_carry", "_part"):
            code, said = await run_mover(primaries, 0, step, f"shard_{shard}", "--to", "b")
            assert code == -signal.SIGKILL, said
            if step == "_carry":
                await asyncio.to_thread(primaries.run, "move", "--abort")
                assert (await primaries.count("events", f"shard = {shard}"))["b"] == 0
        with pytest.raises(StartupError) as refused:
            await asyncio.to_thread(primaries.run, "move", "--abort")
        assert refused.value.code == "NB-3131"
        await asyncio.to_thread(primaries.run, "move")
        await asyncio.to_thread(primaries.run, "move", f"shard_{shard}", "--to", "main")
    await check(primaries, load, course_id)


def test_shards_are_spread_evenly_with_as_few_moves_as_that_takes() -> None:
    places = dict.fromkeys(range(64), "main")
    goals = spread_shards(places, ["main", "b", "c"])
    assert sorted(list(goals.values()).count(name) for name in ("main", "b", "c")) == [21, 21, 22]
    again = spread_shards(goals, ["main", "b", "c", "d"])
    assert sum(goals[shard] != again[shard] for shard in goals) == 16
    assert set(spread_shards(goals, ["main"]).values()) == {"main"}


async def test_verify_says_what_is_not_where_the_map_says(primaries: Primaries, embedded_valkey: str) -> None:
    async with working(primaries, embedded_valkey, students=3) as (_, _, students):
        await asyncio.sleep(0.5)
    async with connect(primaries.urls["main"]) as source, connect(primaries.urls["b"]) as other:
        row = await source.fetchrow("SELECT to_json(e) AS row, shard FROM event_ids e WHERE user_id = $1", students[0])
        insert = "INSERT INTO event_ids SELECT * FROM json_populate_record(NULL::event_ids, $1::json)"
        await other.execute(insert, row["row"])
        with pytest.raises(StartupError) as found:
            await asyncio.to_thread(primaries.run, "verify")
        await other.execute("DELETE FROM event_ids")
    assert found.value.code == "NB-3132"
    assert f"shard_{row['shard']}: 1 rows of event_ids at b" in found.value.title("en")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["move", "shard_64", "--to", "b"], "NB-3128"),
        (["move", "--to", "b"], "NB-3128"),
        (["move", "shard_1", "--to", "z"], "NB-3134"),
        (["move", "shard_1"], "NB-3134"),
        (["add", "main", "--url", "postgresql://postgres@127.0.0.1:1/x"], "NB-3122"),
    ],
)
def test_what_names_nothing_is_refused(primaries: Primaries, arguments: list[str], code: str) -> None:
    with pytest.raises(StartupError) as refused:
        primaries.run(*arguments)
    assert refused.value.code == code
