"""InfluxDB dies for a minute while a class of 200 works: do the boards notice, is the debt paid, is anything lost?

    PYTHONPATH=server/tests python bench/influx_outage.py [--seconds 60] [--rate 300] [--how kill|hang]

nbpulse as `nbpulse up` runs it, with Debian's InfluxDB 1.6.7 as the tests start it; 300 runs a second, each of which
changes the colour of a square, and 20 boards. The same load before, during and after; latency counts, for each board,
from when an event was due to the arrival of the frame that shows it. Then the debt is awaited, and every student's
points in InfluxDB are counted against the ledger. `kill`: SIGKILL, so that connections are refused; `hang`: SIGSTOP, so
that every write waits for its deadline. Writes bench/results/influx_outage.json (`hang`: influx_hang.json).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import time
import urllib.parse
import urllib.request
from typing import Any
from uuid import UUID

import uvloop
from documents import write_documents
from load import Load, make_visible_posts
from measures import VIEWERS, Figures, find_percentile
from report import RESULTS, ROOT, describe_machine, write_results
from systems import Nbpulse, Neighbours
from viewers import Audience

from servers import InfluxServer, make_influx

RATIO_MAX = 1.2
DEBT_LIMIT_S = 300
_DATABASE = "bench"
# What a neighbour on the machine does for some seconds spoils one slice, not their median.
_SLICES = 6
_LEDGER = """
SELECT user_id, count(*) FROM events WHERE course_id = $1 AND event_type = 'cell_execution' GROUP BY user_id
"""


class Outage:
    """One system under load, its InfluxDB, and what was seen of both."""

    def __init__(self, system: Nbpulse, influx: InfluxServer, *, rate: float, seconds: float, how: str) -> None:
        self._system, self._influx = system, influx
        self._rate, self._seconds, self._how = rate, seconds, how
        self._debt_max = 0

    async def run(self) -> Figures:
        """Before, during, after; then the debt and the counts."""
        await self._system.connect()
        async with Load(
            self._system.port, len(self._system.students), make_visible_posts(self._system.students)
        ) as load:
            # One event of each student's makes the notebook's columns known before the boards open.
            await load.run_open(1_000, len(self._system.students) / 1_000 * 30)
            await load.settle()
            await asyncio.sleep(3)
            async with Audience(self._system, VIEWERS) as audience:
                load.note = audience.note
                found: Figures = {"before": await self._measure(load, audience)}
                await self._stop_influx()
                found["during"] = await self._measure(load, audience)
                debt = await self._count_debt()
                await self._resume_influx()
                back_at = time.monotonic()
                found["after"] = await self._measure(load, audience)
                lost = audience.lost
            await load.settle()
            accepted, refused = load.tally.accepted, load.tally.refused
        paid_s = await self._await_paid(back_at)
        for name, key in (("p99_ratio", "p99_ms"), ("p99_median_slice_ratio", "p99_median_slice_ms")):
            found[name] = round(found["during"][key] / found["before"][key], 3)
        found |= {"ratio_max": RATIO_MAX, "debt_batches_at_end": debt}
        found |= {"debt_batches_max": self._debt_max, "debt_paid_after_s": paid_s, "accepted": accepted}
        return found | {"refused": refused, "lost_viewers": lost} | await self._compare()

    async def _measure(self, load: Load, audience: Audience) -> Figures:
        await load.run_open(self._rate, 2)
        await asyncio.sleep(1)
        audience.latencies_s.clear()
        neighbours = Neighbours([self._system])
        watching = asyncio.create_task(self._watch_debt())
        latencies_s: list[float] = []
        slices_ms: list[float] = []
        for _ in range(_SLICES):
            await load.run_open(self._rate, self._seconds / _SLICES)
            slices_ms.append(round(find_percentile(audience.latencies_s, 0.99) * 1000, 2))
            latencies_s += audience.latencies_s
            audience.latencies_s.clear()
        await load.settle()
        await asyncio.sleep(1)
        watching.cancel()
        latencies_s += audience.latencies_s
        shares = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
        found: Figures = {name: round(find_percentile(latencies_s, share) * 1000, 2) for name, share in shares.items()}
        found |= {"p99_slices_ms": slices_ms, "p99_median_slice_ms": statistics.median(slices_ms)}
        found |= {"samples": len(latencies_s), "unseen": audience.unseen}
        return found | {"cores_busy_elsewhere": neighbours.measure_cores()}

    async def _watch_debt(self) -> None:
        while True:
            self._debt_max = max(self._debt_max, await self._count_debt())
            await asyncio.sleep(1)

    async def _stop_influx(self) -> None:
        assert self._influx.process is not None
        self._influx.process.send_signal(signal.SIGKILL if self._how == "kill" else signal.SIGSTOP)
        if self._how == "kill":
            await asyncio.to_thread(self._influx.process.wait, 10)

    async def _resume_influx(self) -> None:
        if self._how == "kill":
            await asyncio.to_thread(self._influx.start)
        else:
            assert self._influx.process is not None
            self._influx.process.send_signal(signal.SIGCONT)

    async def _count_debt(self) -> int:
        return int(await self._system.pool.fetchval("SELECT count(*) FROM series_debt"))

    async def _await_paid(self, back_at: float) -> float:
        """Seconds from InfluxDB's return to no debt; the load went on for the first of them."""
        while await self._count_debt():
            if time.monotonic() - back_at > DEBT_LIMIT_S + self._seconds:
                raise RuntimeError(f"{await self._count_debt()} batches are still owed")
            await asyncio.sleep(0.2)
        return round(time.monotonic() - back_at, 1)

    async def _compare(self) -> Figures:
        """Every student's runs in the ledger and points in InfluxDB. Raises RuntimeError where they differ."""
        course_id = UUID(self._system.described["course_id"])
        ledger = {str(user_id): count for user_id, count in await self._system.pool.fetch(_LEDGER, course_id)}
        points = await asyncio.to_thread(self._count_points)
        if ledger != points:
            raise RuntimeError(f"{sum(ledger.values())} runs in the ledger, {sum(points.values())} points in InfluxDB")
        return {"ledger_runs": sum(ledger.values()), "influx_points": sum(points.values()), "students": len(points)}

    def _count_points(self) -> dict[str, int]:
        query = 'SELECT count("execution_duration_ms") FROM "cell_executions" GROUP BY "user_id"'
        body = urllib.parse.urlencode({"db": _DATABASE, "q": query}).encode()
        with urllib.request.urlopen(f"{self._influx.url}/query", body, timeout=120) as answer:
            series: list[dict[str, Any]] = json.load(answer)["results"][0]["series"]
        return {one["tags"]["user_id"]: int(one["values"][0][1]) for one in series}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of each of the three (default 60)")
    parser.add_argument("--rate", type=float, default=300, help="events a second (default 300)")
    parser.add_argument("--how", choices=("kill", "hang"), default="kill")
    arguments = parser.parse_args()
    with make_influx() as influx:
        influx.start()
        system = Nbpulse(NBPULSE_INFLUX_URL=f"{influx.url}/{_DATABASE}")
        try:
            system.start()
            outage = Outage(system, influx, rate=arguments.rate, seconds=arguments.seconds, how=arguments.how)
            found = uvloop.run(outage.run())
        finally:
            system.stop()
            system.remove()
    found |= {"rate_per_s": arguments.rate, "seconds": arguments.seconds, "how": arguments.how}
    found |= {"viewers": VIEWERS, "influxdb": "1.6.7 (Debian)", "load_average": os.getloadavg()}
    name = "influx_outage" if arguments.how == "kill" else "influx_hang"
    directory = RESULTS if arguments.seconds >= 60 else ROOT / ".cache" / "bench"
    write_results({name: found}, describe_machine(), directory, " ".join(["bench/influx_outage.py", *sys.argv[1:]]))
    if directory == RESULTS and arguments.how == "kill":
        write_documents()
    print(json.dumps(found, indent=1))
    if found["p99_ratio"] > RATIO_MAX:
        raise SystemExit(f"event to frame, p99: {found['p99_ratio']} times as long while InfluxDB was away")


if __name__ == "__main__":
    main()
