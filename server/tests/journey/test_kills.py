"""Whatever is killed while students work: what was accepted is stored once and counted once.

`make test` runs a short round; `make prove` (NBPULSE_TEST_SCALE=full) the whole one of the promise.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from torture.checker import await_debts_paid, await_drained, check, read_journals
from torture.clients import Journal, LoadClient, join_students
from torture.faults import kill_backend, kill_worker
from torture.systems import System

CLIENT_COUNT = 4
RATE_PER_S = 300.0
SHORT = {"worker": 4, "api": 2, "redis": 1, "postgresql": 1, "backend": 1, "supervisor": 1}
FULL = {"worker": 20, "api": 10, "redis": 5, "postgresql": 5, "backend": 5, "supervisor": 3}


@dataclass
class Round:
    """Kills done, and what was seen of them."""

    kills: Counter[str] = field(default_factory=Counter)
    between_commit_and_ack: int = 0
    in_transaction: int = 0
    redeliveries: float = 0
    slowest_s: dict[str, float] = field(default_factory=dict)


async def run_kills(system: System, plan: dict[str, int], random: Random) -> Round:
    """Every kill of the plan in random order; half of the workers' and a bit more are aimed."""
    seen = Round()
    order = [part for part, count in plan.items() for _ in range(count)]
    random.shuffle(order)
    for part in order:
        started_s = time.monotonic()
        if part == "worker":
            is_aimed = seen.kills["worker"] * 3 < plan["worker"] * 2
            place = random.randrange(2)
            seen.between_commit_and_ack += await kill_worker(system, place, random, is_aimed=is_aimed)
            await asyncio.sleep(0.3)
            seen.redeliveries += await system.read_metric("nbpulse_worker_redeliveries_total", worker=place)
        elif part == "backend":
            seen.in_transaction += await kill_backend(system)
        elif part == "supervisor":
            await system.kill_supervisor()
        else:
            await system.kill_part(part)
        seen.kills[part] += 1
        took_s = round(time.monotonic() - started_s, 1)
        seen.slowest_s[part] = max(seen.slowest_s.get(part, 0.0), took_s)
        await asyncio.sleep(random.random() * 0.5)
    return seen


async def run_round(directory: Path, plan: dict[str, int], seed: int) -> None:
    random = Random(seed)
    async with System(directory / "data", worker_count=2) as system:
        clients = []
        for number in range(CLIENT_COUNT):
            students = await join_students(system.url, system.facts["join_code"], 10, name=f"Client {number}")
            journal = Journal(directory / f"client-{number}.journal")
            clients.append(
                LoadClient(
                    lambda: system.url, students, journal, rate_per_s=RATE_PER_S / CLIENT_COUNT, seed=seed + number
                )
            )
        for client in clients:
            client.start()
        await asyncio.sleep(2)
        seen = await run_kills(system, plan, random)
        last_kill_s = time.monotonic()
        # Load goes on after the last kill, as in a class; then everything made so far is answered and drained.
        await asyncio.gather(*(client.finish(within_s=10) for client in clients))
        await await_drained(system.facts["redis_url"], within_s=10 - (time.monotonic() - last_kill_s))
        await await_debts_paid(system.facts["database_url"])
        history = read_journals(client.journal.path for client in clients)
        verdict = await check(system.facts["database_url"], system.facts["redis_url"], history)
        print(  # noqa: T201 - what a person running it wants to see
            f"\nseed {seed}: kills {dict(seen.kills)}, {seen.between_commit_and_ack} between commit and ack,"
            f" {seen.redeliveries:.0f} redeliveries,"
            f" {seen.in_transaction} backends in mid-transaction; sent {len(history.sent)}, answers"
            f" {dict(history.words)}, accepted {verdict.acknowledged}, stored {verdict.stored}, lost"
            f" {len(verdict.lost)}, doubled {len(verdict.doubled)}; slowest recovery {seen.slowest_s}"
        )
        assert verdict.problems == []
        assert seen.kills == plan
        assert not history.rejected
        assert history.acknowledged == set(history.sent), "the clients were answered for everything they made"
        assert verdict.acknowledged == verdict.stored
        assert seen.in_transaction == plan["backend"]
        assert seen.between_commit_and_ack >= plan["worker"] // 2
        assert seen.redeliveries > 0


@pytest.mark.timeout(170)
async def test_nothing_accepted_is_lost_or_counted_twice_whatever_is_killed(data_dir: Path) -> None:
    await run_round(data_dir, SHORT, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_nothing_is_lost_or_counted_twice_in_the_full_round_of_kills(data_dir: Path) -> None:
    seed = int(os.environ.get("NBPULSE_TEST_SEED", "1"))
    await run_round(data_dir, FULL, seed=seed)
