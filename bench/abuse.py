"""What attacks cost: the API's memory, and how long a class's events take to the boards meanwhile.

    PYTHONPATH=server/tests .venv/bin/python bench/abuse.py

nbpulse as `nbpulse up` runs it, with the limits as they come; each attack is a process of its own (server/tests/
attacks.py), on the same machine. Writes bench/results/abuse.json and its table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from typing import Any

import uvloop
from documents import write_documents
from load import Load, make_visible_posts
from measures import VIEWERS, Figures, find_percentile
from report import RESULTS, ROOT, describe_machine, write_results
from systems import Nbpulse, Neighbours
from viewers import Audience

from attacks import FULL_SIZES, read_rss_mb
from nbpulse.allowances import DEFAULT

RATE = 50.0
QUIET_S = 10.0
GROWTH_MAX_MB, FRAME_MAX_MS = 50.0, 1_000.0
_LIMITS = ("student_events", "course_events", "token_requests", "address_requests")


class Abuse:
    """One running system, its class, and what is done to it."""

    def __init__(self, system: Nbpulse, load: Load, audience: Audience) -> None:
        self._system, self._load, self._audience = system, load, audience
        self._pid = system.list_pids()["api"]
        self._rss_mb: list[float] = []

    async def measure(self, name: str | None, size: int) -> Figures:
        """One attack from its beginning to its end; None: nobody attacks, for 10 s."""
        before_mb = read_rss_mb(self._pid)
        self._rss_mb, self._audience.latencies_s[:] = [], []
        neighbours = Neighbours([self._system])
        attack = asyncio.create_task(self._attack(name, size) if name else asyncio.sleep(QUIET_S, {}))
        watching = asyncio.create_task(self._watch_rss())
        while not attack.done():
            await self._load.run_open(RATE, 1.0)
        await self._load.settle()
        await asyncio.sleep(0.5)
        watching.cancel()
        latencies_s = self._audience.latencies_s
        shares = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
        found: Figures = {key: round(find_percentile(latencies_s, share) * 1000, 1) for key, share in shares.items()}
        found |= {"rss_before_mb": round(before_mb, 1), "growth_mb": round(max(self._rss_mb) - before_mb, 1)}
        found |= {"samples": len(latencies_s), "unseen": self._audience.unseen, "answers": await attack}
        return found | {"size": size, "cores_busy_elsewhere_and_attacking": neighbours.measure_cores()}

    async def _attack(self, name: str, size: int) -> dict[str, int]:
        attacker = self._system.students[-1]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "attacks", name, str(self._system.port), attacker.token),
            *(self._system.described["course_id"], str(size)),
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT / "server" / "tests")},
        )
        said, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"the attack {name} failed")
        found: dict[str, int] = json.loads(said)
        return found

    async def _watch_rss(self) -> None:
        while True:
            self._rss_mb.append(read_rss_mb(self._pid))
            await asyncio.sleep(0.05)


async def run(system: Nbpulse, sizes: dict[str, int]) -> dict[str, Any]:
    """All attacks, one after the other, beside one class."""
    await system.connect()
    students = system.students[:-1]
    async with Load(system.port, 50, make_visible_posts(students)) as load:
        await load.run_open(500, len(students) / 500 * 30)  # every student's every cell is on the board
        await load.settle()
        await asyncio.sleep(3)
        async with Audience(system, VIEWERS) as audience:
            load.note, load.may_reopen = audience.note, True
            abuse = Abuse(system, load, audience)
            found: dict[str, Any] = {"none": await abuse.measure(None, 0)}
            for name, size in sizes.items():
                found[name] = await abuse.measure(name, size)
                print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
            return {"attacks": found, "lost_viewers": audience.lost, "refused": load.tally.refused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FULL_SIZES, help="these attacks alone; nothing is written")
    arguments = parser.parse_args()
    sizes = {name: size for name, size in FULL_SIZES.items() if arguments.only is None or name in arguments.only}
    system = Nbpulse(**{f"NBPULSE_LIMIT_{name.upper()}": str(getattr(DEFAULT, name)) for name in _LIMITS})
    try:
        system.start()
        found = uvloop.run(run(system, sizes))
    finally:
        system.stop()
        system.remove()
    found |= {"rate_per_s": RATE, "viewers": VIEWERS, "growth_max_mb": GROWTH_MAX_MB, "frame_max_ms": FRAME_MAX_MS}
    found |= {"load_average": os.getloadavg()}
    print(json.dumps(found, indent=1))
    if arguments.only is None:
        write_results({"abuse": found}, describe_machine(), RESULTS, "bench/abuse.py")
        write_documents()


if __name__ == "__main__":
    main()
