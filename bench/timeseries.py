"""The two series stores side by side in one run: write rate, disk, and the specification's two queries.

    PYTHONPATH=server/tests python bench/timeseries.py [--points 1000000 10000000]

The same points go through both stores' own `write_points`: batches of 5,000, the last 100,000 points in batches of 500
as the worker writes them, which is the rate told. Then each query is asked through the store (PostgreSQL: from rollups)
and raw as the specification types it; all answers to a query must be equal. Writes bench/results/timeseries.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
from documents import write_documents
from measures import Figures
from report import RESULTS, ROOT, describe_machine, write_results
from school import make_months

from nbpulse.connections import open_pool
from nbpulse.embedded import EmbeddedPostgres
from nbpulse.errors import Unavailable
from nbpulse.migrations import migrate
from nbpulse.migrations.runner import with_login
from nbpulse.pipeline import CellExecutionPoint
from nbpulse.timeseries import TimeSeriesStore, Window
from nbpulse.timeseries.influx import open_influx
from nbpulse.timeseries.postgres import PostgresTimeSeries
from servers import make_influx

STUDENTS, CELLS, WEEKS = 200, 30, 16
LAST_DAY_SHARE = 0.1
DISTRIBUTION = (
    f"{STUDENTS} students over {WEEKS} weeks, a notebook of {CELLS} cells each week, in the order of time;"
    f" {LAST_DAY_SHARE:.0%} of the points lie in the last day; every eighth is an error."
)
ROUNDS = 5
_BATCH, _WORKERS_BATCH, _TIMED = 5_000, 500, 100_000
_SERIES_MAX = 1_000_000
_SIZE = """
SELECT sum(pg_total_relation_size(oid))::float8 FROM pg_class
WHERE relnamespace = 'timeseries'::regnamespace AND relkind = 'r'
"""
_RAW = {
    "query_1": """
        SELECT time_ns / $3::bigint * $3 AS at_ns, user_id::text AS name, avg(execution_duration_ms)::float8 AS mean,
            count(execution_duration_ms) AS count
        FROM timeseries.cell_executions WHERE time_ns >= $1 AND time_ns < $2 GROUP BY at_ns, user_id
    """,
    "query_2": """
        SELECT time_ns / $3::bigint * $3 AS at_ns, notebook_path AS name,
            count(*) FILTER (WHERE has_error)::float8 AS errors, count(*) AS count
        FROM timeseries.cell_executions WHERE time_ns >= $1 AND time_ns < $2 GROUP BY at_ns, notebook_path
    """,
}
_TYPED = {
    "query_1": (
        'SELECT mean("execution_duration_ms") AS avg_duration, count("execution_duration_ms") AS execution_count FROM'
        ' "cell_executions" WHERE time >= {start} AND time < {end} GROUP BY time(10m), "user_id" fill(none)'
    ),
    "query_2": (
        'SELECT count("has_error") AS error_count, count(*) AS total_executions FROM "cell_executions"'
        ' WHERE time >= {start} AND time < {end} GROUP BY time(1h), "notebook_path" fill(none)'
    ),
}

# (start of the bucket in ns, user or notebook) -> (mean or errors, count)
Answer = dict[tuple[int, str], tuple[float, int]]


def to_ns(moment: datetime) -> int:
    return round(moment.timestamp()) * 1_000_000_000


def list_windows(end: datetime) -> dict[str, Window]:
    return {
        "query_1": Window(end - timedelta(hours=1), end, timedelta(minutes=10)),
        "query_2": Window(end - timedelta(hours=24), end, timedelta(hours=1)),
    }


def make_points(count: int, end: datetime) -> Iterator[CellExecutionPoint]:
    """`count` points up to `end`, as DISTRIBUTION says."""
    students = [UUID(int=number + 1) for number in range(STUDENTS)]
    early, term, day = round(count * (1 - LAST_DAY_SHARE)), timedelta(weeks=WEEKS), timedelta(days=1)
    first_ms, last_ms = ((round((end - span).timestamp() * 1000)) for span in (term, day))
    term_ms, day_ms = ((span // timedelta(milliseconds=1)) for span in (term - day, day))
    for number in range(count):
        if number < early:
            at_ms = first_ms + number * term_ms // early
        else:
            at_ms = last_ms + (number - early) * day_ms // (count - early)
        turn, week = number // STUDENTS, min(WEEKS - 1, (at_ms - first_ms) * WEEKS // (term_ms + day_ms))
        has_error = number % 8 == 5
        yield CellExecutionPoint(
            user_id=students[number % STUDENTS],
            time_ns=at_ms * 1_000_000 + turn % 1_000_000,
            notebook_path=f"week{week + 1}/lesson.ipynb",
            cell_index=turn % CELLS,
            event_type="cell_execution",
            execution_duration_ms=5.0 + (number * 7919) % 5000 / 10,
            has_error=has_error,
            error_message="NameError: name <name> is not defined" if has_error else None,
            execution_count=turn % 1000,
            course_id=UUID(int=1),
        )


async def write(store: TimeSeriesStore, count: int, end: datetime) -> float:
    """Write all points; how many a second when the worker's batches are written. Raises RuntimeError: some refused."""
    batch: list[CellExecutionPoint] = []
    began = 0.0
    for number, point in enumerate(make_points(count, end), start=1):
        batch.append(point)
        is_timed = number > count - _TIMED
        if is_timed and not began:
            began = time.perf_counter()
        if len(batch) == (_WORKERS_BATCH if is_timed else _BATCH) or number == count:
            if rejected := await store.write_points(batch):
                raise RuntimeError(f"{len(rejected)} points were refused: {rejected[0].reason}")
            batch = []
    return round(min(_TIMED, count) / (time.perf_counter() - began))


async def time_ms(ask: Callable[[], Awaitable[Answer]]) -> tuple[float, Answer]:
    """The median of some rounds after a first, and the answer."""
    answer, times = await ask(), []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        answer = await ask()
        times.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(times), 2), answer


async def ask_store(store: TimeSeriesStore, name: str, window: Window) -> Answer:
    if name == "query_1":
        return {
            (to_ns(one.at), str(one.user_id)): (one.avg_duration_ms, one.execution_count)
            for one in await store.query_activity(window)
        }
    return {
        (to_ns(one.at), one.notebook_path): (one.error_count, one.total_executions)
        for one in await store.query_error_rate(window)
    }


async def ask_postgres(pool: asyncpg.Pool, name: str, window: Window) -> Answer:
    values = to_ns(window.start), to_ns(window.end), window.bucket // timedelta(microseconds=1) * 1000
    rows = await pool.fetch(_RAW[name], *values)
    return {(at_ns, key): (value, count) for at_ns, key, value, count in rows}


async def ask_influx(url: str, name: str, window: Window) -> Answer:
    """As the specification types it, with the times that `now()` would have given."""
    statement = _TYPED[name].format(start=to_ns(window.start), end=to_ns(window.end))
    body = urllib.parse.urlencode({"db": "bench", "epoch": "ns", "q": statement}).encode()

    def post() -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{url}/query", body, timeout=900) as answer:
            found: list[dict[str, Any]] = json.load(answer)["results"][0].get("series", [])
        return found

    answer: Answer = {}
    for series in await asyncio.to_thread(post):
        (key,) = series["tags"].values()
        # Of count(*) the column of a field that every point has.
        place = series["columns"].index("execution_count" if name == "query_1" else "total_executions_error_count")
        answer |= {(row[0], key): (row[1] or 0, row[place]) for row in series["values"] if row[place]}
    return answer


def check_equal(name: str, answers: dict[str, Answer]) -> None:
    """Raises RuntimeError where two answers differ by more than floating point's rounding."""
    (first, wanted), *others = answers.items()
    for other, found in others:
        if found.keys() != wanted.keys() or any(
            found[key][1] != count or abs(found[key][0] - value) > 1e-6 * max(1.0, abs(value))
            for key, (value, count) in wanted.items()
        ):
            raise RuntimeError(f"{name}: {other} and {first} differ ({len(found)} and {len(wanted)} rows)")


class Side:
    """One store with what was measured of it."""

    def __init__(self, store: TimeSeriesStore, ask_raw: Callable[[str, Window], Awaitable[Answer]]) -> None:
        self.store, self._ask_raw = store, ask_raw
        self.figures: Figures = {}
        self.answers: dict[str, dict[str, Answer]] = {"query_1": {}, "query_2": {}}

    async def measure(self, windows: dict[str, Window]) -> None:
        for name, window in windows.items():
            figure, answer = await time_ms(lambda name=name, window=window: self._ask_raw(name, window))
            self.figures[f"{name}_raw_ms"], self.answers[name]["raw"] = figure, answer
            try:
                figure, answer = await time_ms(lambda name=name, window=window: ask_store(self.store, name, window))
            except Unavailable:
                self.figures[f"{name}_ms"] = None  # over the store's own deadline
                continue
            self.figures[f"{name}_ms"], self.answers[name]["store"] = figure, answer


async def measure_postgres(database_url: str, count: int, end: datetime) -> Side:
    await migrate(database_url, {"nbpulse_worker": "bench"})
    async with (
        asyncpg.create_pool(database_url, min_size=1, max_size=1, command_timeout=3_600) as owner,
        open_pool(with_login(database_url, "nbpulse_worker", "bench"), 2) as pool,
    ):
        await make_months(owner, WEEKS)
        store = PostgresTimeSeries(pool)
        side = Side(store, lambda name, window: ask_postgres(pool, name, window))
        side.figures["writes_per_s"] = await write(store, count, end)
        began = time.perf_counter()
        while await store.refresh_rollups(settle_s=-120):
            pass
        side.figures["rollups_s"] = round(time.perf_counter() - began, 1)
        await owner.execute("VACUUM ANALYZE")
        side.figures["disk_mb"] = round(await owner.fetchval(_SIZE) / 1e6)
        await side.measure(list_windows(end))
    return side


async def measure_influx(url: str, count: int, end: datetime) -> Side:
    async with open_influx(f"{url}/bench") as store:
        side = Side(store, lambda name, window: ask_influx(url, name, window))
        side.figures["writes_per_s"] = await write(store, count, end)
        await side.measure(list_windows(end))
    return side


def measure(count: int) -> Figures:
    """Both stores with `count` points, on fresh data; the same answers asserted."""
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    with tempfile.TemporaryDirectory(prefix="nbpulse-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)
        server = EmbeddedPostgres(directory)
        server.start()
        try:
            postgres = asyncio.run(measure_postgres(server.url, count, end))
        finally:
            server.stop()
    print(f"{count:,} points, PostgreSQL: {postgres.figures}", file=sys.stderr, flush=True)
    with make_influx(series_max=_SERIES_MAX) as influx:
        influx.start()
        influxdb = asyncio.run(measure_influx(influx.url, count, end))
        files = [path for path in influx.directory.rglob("*") if path.is_file()]
        influxdb.figures["disk_mb"] = round(sum(path.stat().st_size for path in files) / 1e6)
    print(f"{count:,} points, InfluxDB: {influxdb.figures}", file=sys.stderr, flush=True)
    for query in ("query_1", "query_2"):
        sides = {"PostgreSQL": postgres, "InfluxDB": influxdb}
        answers = {f"{side} {way}": one for side, of in sides.items() for way, one in of.answers[query].items()}
        check_equal(query, answers)
        if not next(iter(answers.values())):
            raise RuntimeError(f"{query}: no rows")
    return {"points": count, "stores": {"PostgreSQL": postgres.figures, "InfluxDB 1.6.7": influxdb.figures}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[1_000_000, 10_000_000])
    sizes = [measure(count) for count in parser.parse_args().points]
    found = {"distribution": DISTRIBUTION, "sizes": sizes, "load_average": os.getloadavg()}
    directory = RESULTS if max(size["points"] for size in sizes) >= 1_000_000 else ROOT / ".cache" / "bench"
    write_results(
        {"timeseries": found}, describe_machine(), directory, " ".join(["bench/timeseries.py", *sys.argv[1:]])
    )
    if directory == RESULTS:
        write_documents()


if __name__ == "__main__":
    main()
