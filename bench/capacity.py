"""What a site's size costs: the points that bench/sizing.py fits its model to.

    PYTHONPATH=server/tests .venv/bin/python bench/capacity.py [--rounds 2] [--seconds 12] [--only rates boards ...]

Two cores are shared by everything here, so events a second cannot grow with the number of processes; measured is what
does not depend on that: processor seconds, bytes, rows. Four parts, each on systems of its own:

- `rates`: one of each part, single posts at several rates: cores busy by each part;
- `boards`: boards that watch one class of 100 events/s: the API's cores and memory;
- `backlog`: events that wait while the worker stands still: Valkey's memory and log;
- `grid`: 1, 2 and 4 primaries and workers, 1 and 2 APIs: with 300 single posts a second the processor time of each part
  per event, WAL and rows of each database; then posts of 50, as fast as they are stored: events a second, and the bytes
  that are on disk in the end. Several primaries stand beside a directory that keeps no shards.

With several rounds, each is its own point. Writes bench/results/capacity.json.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import uvloop
from documents import write_documents
from load import Load, make_posts, make_visible_posts
from measures import BATCH_EVENTS, Figures, measure_throughput
from redis import Redis
from report import RESULTS, ROOT, describe_machine, write_results
from school import BYTES_BY_PART
from systems import Nbpulse, Neighbours, go_first, measure_cpu_s, measure_pss
from viewers import Audience

from nbpulse.shards import SHARD_COUNT
from primaries import Primaries, run_primaries

RATES_PER_S = (0, 20, 100, 300, 600, 1_000)
BOARDS = (0, 1, 20, 100, 200)
BOARDS_RATE_PER_S = 100
GRID_RATE_PER_S = 300
BACKLOG_EVENTS = (0, 10_000, 20_000, 40_000)
_BACKLOG_POSTS_PER_S = 40
NAMES = ("a", "b", "c", "d")


class Shape(NamedTuple):
    """How many of each part."""

    primaries: int
    workers: int
    apis: int


GRID = (
    *(Shape(1, workers, 1) for workers in (1, 2, 4)),
    Shape(1, 1, 2),
    *(Shape(2, workers, 1) for workers in (1, 2)),
    *(Shape(4, workers, 1) for workers in (1, 4)),
)


class Site(Nbpulse):
    """nbpulse of a shape. One primary is the embedded one; several are servers of their own beside a directory."""

    def __init__(self, shape: Shape) -> None:
        counts = {"NBPULSE_API_COUNT": str(shape.apis), "NBPULSE_WORKER_COUNT": str(shape.workers)}
        super().__init__(**counts)
        self._shape, self._stack, self._primaries = shape, ExitStack(), None

    _primaries: Primaries | None

    def start(self) -> float:
        if self._shape.primaries > 1:
            names = NAMES[: self._shape.primaries]
            self._primaries = found = self._stack.enter_context(run_primaries(names))
            for name in names:
                found.run("add", name, "--url", found.urls[name])
            places = {shard: names[shard * len(names) // SHARD_COUNT] for shard in range(SHARD_COUNT)}
            asyncio.run(found.assign(places))
            shutil.rmtree(self.directory)
            self.directory = found.directory
            self._environment |= found.make_environment()
            del self._environment["NBPULSE_REDIS_URL"]
        ready_s = super().start()
        self.other_ports = [int(url.rsplit(":", 1)[1]) for url in self.described["api_urls"][1:]]
        return ready_s

    def remove(self) -> None:
        if self._primaries is None:
            super().remove()
        self._stack.close()

    def list_pids(self) -> dict[str, int]:
        servers = self._primaries.servers if self._primaries else {}
        return super().list_pids() | {f"postgresql-{name}": server.pid for name, server in servers.items()}

    @property
    def urls(self) -> dict[str, str]:
        """The owner's address of each database; `main` is the directory."""
        return self._primaries.urls if self._primaries else {"main": self.owner_url}

    async def connect(self) -> None:
        await super().connect()
        # The directory shows what is stored half a second later: those that keep the rows are asked.
        keepers = [url for name, url in self.urls.items() if self._primaries is None or name in NAMES]
        self._keepers = [await asyncpg.create_pool(url, min_size=1, max_size=1) for url in keepers]

    async def disconnect(self) -> None:
        for pool in (self.pool, *self._keepers):
            await pool.close()

    async def count_quickly(self) -> int:
        counts = await asyncio.gather(*(pool.fetchval(self.STORED, self._course_id) for pool in self._keepers))
        return int(sum(counts))

    async def count_between(self, start: datetime | None, end: datetime | None) -> int:
        counts = [
            await ask(
                url,
                "SELECT count(*) AS rows FROM events WHERE recorded_at >= coalesce($1::timestamptz, '-infinity')"
                " AND recorded_at < coalesce($2::timestamptz, 'infinity')",
                start,
                end,
            )
            for url in self.urls.values()
        ]
        return sum(int(rows[0]["rows"]) for rows in counts)


async def ask(url: str, question: str, *values: object) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(question, *values))
    finally:
        await connection.close()


async def _read_databases(site: Site) -> dict[str, dict[str, int]]:
    """Of each database the bytes of WAL written since it was made, its ledger rows and its bytes on disk by part."""
    found: dict[str, dict[str, int]] = {}
    for name, url in site.urls.items():
        (one,) = await ask(
            url, "SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint AS wal, (SELECT count(*) FROM events) AS rows"
        )
        sizes = {f"{row['part']}_bytes": int(row["bytes"]) for row in await ask(url, BYTES_BY_PART)}
        found[name] = {"wal_bytes": int(one["wal"]), "rows": int(one["rows"])} | sizes
    return found


async def measure_grid_point(site: Site, seconds: float) -> Figures:
    """At one rate, whose cost does not depend on how fast the machine is; then as fast as it is."""
    async with Load(site.port, 100, make_posts(site.students, 1), other_ports=site.other_ports) as load:
        await load.run_open(GRID_RATE_PER_S, 4)  # everybody is known, pages and plans are there
        await load.settle()
        await drain(site, load)
        before, cpu_before = await _read_databases(site), measure_cpu_s(site.list_pids())
        steady = await _watch(site, load, GRID_RATE_PER_S, seconds)
        await drain(site, load)
    after, cpu_after = await _read_databases(site), measure_cpu_s(site.list_pids())
    stored = sum(one["rows"] - before[name]["rows"] for name, one in after.items())
    fast = await measure_throughput(site, BATCH_EVENTS, seconds / 2)
    at_end = await _read_databases(site)
    sizes = ("rows", "ledger_bytes", "series_bytes", "other_bytes")
    return {
        "events_per_s": GRID_RATE_PER_S,
        "cpu_us_per_event": {
            name: round(1e6 * (cpu_s - cpu_before[name]) / stored, 1) for name, cpu_s in cpu_after.items()
        },
        "databases": {
            name: {key: one[key] - before[name][key] for key in ("wal_bytes", "rows")}
            | {"disk": {key: at_end[name][key] for key in sizes}}
            for name, one in after.items()
        },
        "stored_per_s": fast["stored_per_s"],
        "unstored": fast["unstored"],
        "refused": steady["refused"] + fast["refused"],
        "cores_busy_elsewhere": steady["cores_busy_elsewhere"],
        "pss_mb": steady["pss_mb"],
    }


async def drain(site: Site, load: Load) -> None:
    """Wait until all that was accepted is stored. Raises TimeoutError."""
    async with asyncio.timeout(60):
        while await site.count_between(None, None) < load.tally.accepted:  # noqa: ASYNC110 - another process stores
            await asyncio.sleep(0.25)


async def _watch(site: Site, load: Load, rate: float, seconds: float) -> Figures:
    """Cores busy by each part while posts come at a rate."""
    neighbours, started, before = Neighbours([site]), time.perf_counter(), measure_cpu_s(site.list_pids())
    if rate:
        await load.run_open(rate, seconds)
    else:
        await asyncio.sleep(seconds)
    after, took_s = measure_cpu_s(site.list_pids()), time.perf_counter() - started
    await load.settle()
    return {
        "cores": {name: round((after[name] - before[name]) / took_s, 4) for name in after},
        "pss_mb": measure_pss(site.list_pids()),
        "refused": load.tally.refused,
        "cores_busy_elsewhere": neighbours.measure_cores(),
    }


async def measure_rates(site: Site, seconds: float) -> list[Figures]:
    """Single posts; no board watches."""
    found = []
    async with Load(site.port, 100, make_posts(site.students, 1)) as load:
        load.may_reopen = True
        await load.run_open(100, 4)  # everybody is known, pages and plans are there
        for rate in RATES_PER_S:
            await asyncio.sleep(2)
            found.append({"events_per_s": rate, **await _watch(site, load, rate, seconds)})
            _say(f"rates: {found[-1]}")
    return found


async def measure_boards(site: Site, seconds: float) -> list[Figures]:
    """The same class, watched by more and more boards."""
    found = []
    async with Load(site.port, 100, make_visible_posts(site.students)) as load:
        load.may_reopen = True
        await load.run_open(500, 12)
        await load.settle()
        await asyncio.sleep(3)
        for count in BOARDS:
            audience = Audience(site, count)
            # Entering it reads the class, so that even without a board it is one that is watched.
            async with audience if count else nullcontext():
                await load.run_open(BOARDS_RATE_PER_S, 2)
                audience.frames = 0
                one = await _watch(site, load, BOARDS_RATE_PER_S, seconds)
                if audience.lost:
                    raise RuntimeError(f"{audience.lost} of {count} boards were lost")
            found.append(
                {
                    "boards": count,
                    "events_per_s": BOARDS_RATE_PER_S,
                    **one,
                    "frames_per_s": round(audience.frames / seconds, 1),
                }
            )
            _say(f"boards: {found[-1]}")
            await asyncio.sleep(2)
    return found


async def measure_backlog(site: Site) -> list[Figures]:
    """Events that nobody reads."""
    found, worker = [], site.list_pids()["worker"]
    posts = make_posts(site.students, BATCH_EVENTS)
    with Redis.from_url(site.described["redis_url"]) as client:
        async with Load(site.port, 8, posts) as load:
            await load.run_open(_BACKLOG_POSTS_PER_S, 2)
            await load.settle()
            await asyncio.sleep(3)
            os.kill(worker, signal.SIGSTOP)
            try:
                waiting_from = load.tally.accepted
                for wanted in BACKLOG_EVENTS:
                    missing = wanted - (load.tally.accepted - waiting_from)
                    if missing > 0:
                        await load.run_open(_BACKLOG_POSTS_PER_S, missing / BATCH_EVENTS / _BACKLOG_POSTS_PER_S)
                        await load.settle()
                    found.append(
                        {
                            "events": load.tally.accepted - waiting_from,
                            "memory_bytes": client.info("memory")["used_memory"],
                            "log_bytes": client.info("persistence")["aof_current_size"],
                            "pss_mb": measure_pss({"valkey": site.list_pids()["valkey"]})["valkey"],
                        }
                    )
                    _say(f"backlog: {found[-1]}")
            finally:
                os.kill(worker, signal.SIGCONT)
    return found


async def _measure_alone(site: Site, parts: list[str], seconds: float) -> Figures:
    """What is asked of one of each part."""
    await site.connect()
    found: Figures = {}
    if "rates" in parts:
        found["rates"] = await measure_rates(site, seconds)
    if "boards" in parts:
        found["boards"] = await measure_boards(site, seconds)
    if "backlog" in parts:
        found["backlog"] = await measure_backlog(site)
    await site.disconnect()
    return found


async def _measure_shape(site: Site, seconds: float) -> Figures:
    await site.connect()
    found = await measure_grid_point(site, seconds)
    await site.disconnect()
    return found


def _run(shape: Shape, measure: Callable[[Site], Any]) -> Figures:
    """Start a site, measure, stop it and remove what it wrote."""
    site = Site(shape)
    try:
        _say(f"{shape}: ready in {site.start():.1f} s")
        gc.collect()
        found: Figures = uvloop.run(measure(site))
        return found
    finally:
        site.stop()
        site.remove()


def measure(parts: list[str], rounds: int, seconds: float) -> Figures:
    """Every point of every round; the sites follow each other."""
    found: dict[str, list[Figures]] = {part: [] for part in parts}
    for number in range(rounds):
        if set(parts) - {"grid"}:
            alone = _run(Shape(1, 1, 1), lambda site: _measure_alone(site, parts, seconds))
            for part, points in alone.items():
                found[part] += points
        for shape in (GRID[:: -1 if number % 2 else 1]) if "grid" in parts else ():
            found["grid"].append(shape._asdict() | _run(shape, lambda site: _measure_shape(site, seconds)))
            _say(f"grid: {found['grid'][-1]}")
    return found


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


PARTS = ("rates", "boards", "backlog", "grid")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="how often each point is measured (2)")
    parser.add_argument("--seconds", type=float, default=12, help="of each point (12)")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts alone, the others stay"
    )
    parser.add_argument("--quick", action="store_true", help="2 s once, nothing but .cache/bench/ written")
    parser.add_argument("--first", action="store_true", help="with the processor before all others (root, Linux)")
    arguments = parser.parse_args()
    if arguments.first:
        go_first()
    rounds, seconds = (1, 2.0) if arguments.quick else (arguments.rounds, arguments.seconds)
    directory = ROOT / ".cache" / "bench" if arguments.quick else RESULTS
    earlier = _read_earlier(directory, set(PARTS) - set(arguments.only))
    command = " ".join([f"{earlier.pop('command')}, then" if earlier else "bench/capacity.py", *sys.argv[1:]])
    found = earlier | measure(arguments.only, rounds, seconds)
    found["load_average"] = os.getloadavg()
    write_results({"capacity": found}, describe_machine(), directory, command)
    if not arguments.quick:
        write_documents()


def _read_earlier(directory: Path, parts: set[str]) -> Figures:
    """These parts of an earlier run and its `command`; nothing where there are none of them."""
    path = directory / "capacity.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = parts & set(found)
    return {name: found[name] for name in (*sorted(kept), "command")} if kept else {}


if __name__ == "__main__":
    main()
