"""What the derived measurements cost, and what duration bins save: the ledger, the worker's job, percentiles of a day.

    python bench/derived_series.py [--points 1000000]

One PostgreSQL of its own. With and without take turns on the same database; both ways of percentiles must agree.
Writes bench/results/derived_series.json.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psutil
from report import describe_machine

from nbpulse.crypto import EncryptedField, make_key
from nbpulse.embedded import EmbeddedPostgres
from nbpulse.events import ReceivedEvent
from nbpulse.migrations import migrate
from nbpulse.records import derived, marks
from nbpulse.records.ledger import PostgresLedger
from nbpulse.records.notebooks import NotebookDirectory
from nbpulse.timeseries import ClassScope, Window
from nbpulse.timeseries.postgres import PostgresTimeSeries

RESULT = Path(__file__).parent / "results" / "derived_series.json"
STUDENTS, COURSE, ROUNDS = 200, uuid4(), 31
KINDS = ["cell_execution"] * 2 + ["cell_execution_start"]
_numbers = itertools.count()
# A day of a class at work in three notebooks, durations from 1 ms to minutes.
FILL = """
INSERT INTO timeseries.cell_executions (user_id, time_ns, notebook_path, event_type, execution_duration_ms, has_error,
    course_id)
SELECT ($2::uuid[])[1 + n % 200], $3::bigint - n::bigint * (86400000000000 / $1) + n % 1000,
    'week' || n / 7 % 3 || '.ipynb', 'cell_execution', exp(random() * 12), n % 5 = 0, $4::uuid
FROM generate_series(1, $1::int) n
"""

EXACT = """
SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY execution_duration_ms), count(*) FROM timeseries.cell_executions
WHERE time_ns >= $1 AND time_ns < $2 AND execution_duration_ms IS NOT NULL AND course_id = $4 AND user_id = ANY($5)
GROUP BY time_ns / $3 ORDER BY time_ns / $3
"""


def make_event(student: UUID, at: datetime, number: int) -> ReceivedEvent:
    kind = KINDS[number % len(KINDS)]
    data = {"status": random.choice(["ok", "ok", "error"]), "execution_duration_ms": 12.5}
    return ReceivedEvent(
        *(uuid4(), kind, at, at, student, COURSE),
        notebook_path="week1.ipynb",
        session_id=student,
        cell_id=f"cell-{number % 40}",
        cell_index=number % 40,
        sequence=next(_numbers),
        data=data if kind == "cell_execution" else {},
    )


async def time_ms(work: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
    began = time.perf_counter()
    answer = await work()
    return (time.perf_counter() - began) * 1000, answer


async def find_backends(pool: asyncpg.Pool) -> list[psutil.Process]:
    """PostgreSQL's processes behind the pool."""
    held = [await pool.acquire() for _ in range(pool.get_max_size())]
    pids = [await one.fetchval("SELECT pg_backend_pid()") for one in held]
    for one in held:
        await pool.release(one)
    return [psutil.Process(pid) for pid in pids]


def read_cpu_ms(backends: list[psutil.Process]) -> float:
    """Processor time so far, ours and theirs: unlike wall time it hardly depends on who else is at work."""
    return 1000 * (time.process_time() + sum(sum(one.cpu_times()[:2]) for one in backends))


async def measure_ledger(pool: asyncpg.Pool, ledger: PostgresLedger, people: list[UUID], size: int) -> dict[str, Any]:
    """Storing a batch with its marks and without, in turn."""
    mark, times = marks.mark, {True: list[float](), False: list[float]()}
    cpu_ms = {True: 0.0, False: 0.0}
    backends = await find_backends(pool)

    async def skip(*_: object) -> None:
        """No marks."""

    for number in range(2 * ROUNDS):
        is_marking = number % 2 == 0
        marks.mark = mark if is_marking else skip
        chosen, now = random.choices(people, k=size), datetime.now(UTC)
        batch = [make_event(one, now, place) for place, one in enumerate(chosen)]
        before_ms = read_cpu_ms(backends)
        took_ms, _ = await time_ms(lambda batch=batch: ledger.record_events(batch))
        times[is_marking].append(took_ms)
        cpu_ms[is_marking] += read_cpu_ms(backends) - before_ms
    marks.mark = mark
    medians = {name: statistics.median(times[name]) for name in times}
    return {
        "events": size,
        "median_ms": round(medians[True], 2),
        "without_marks_median_ms": round(medians[False], 2),
        "cpu_ms": round(cpu_ms[True] / ROUNDS, 2),
        "without_marks_cpu_ms": round(cpu_ms[False] / ROUNDS, 2),
        "ratio": round(cpu_ms[True] / cpu_ms[False], 3),
    }


async def measure_job(
    pool: asyncpg.Pool, ledger: PostgresLedger, people: list[UUID], per_student: int
) -> dict[str, Any]:
    """A round of the worker's job: everybody has done 3 more things in a notebook with so many events of theirs."""
    series, now = PostgresTimeSeries(pool), datetime.now(UTC) - timedelta(minutes=90)
    done = 0
    while done < per_student:
        part = min(5, per_student - done)
        await ledger.record_events(
            [make_event(one, now + timedelta(seconds=9 * (done + n)), done + n) for one in people for n in range(part)]
        )
        done += part
    await derived.mark_changed_notebooks(pool, rest_s=0)
    whole_ms, _ = await time_ms(lambda: derived.pay_marks(pool, series))
    await pool.execute("ANALYZE")
    times, cpu_ms, backends = [], 0.0, await find_backends(pool)
    for turn in range(9):
        at = datetime.now(UTC)
        await ledger.record_events([make_event(one, at, turn * 3 + n) for one in people for n in range(3)])
        before_ms = read_cpu_ms(backends)
        took_ms, paid = await time_ms(lambda: derived.pay_marks(pool, series))
        cpu_ms += read_cpu_ms(backends) - before_ms
        assert paid == len(people), paid
        times.append(took_ms)
    points = await pool.fetchval("SELECT count(*) FROM timeseries.learning_progress")
    return {
        "students": len(people),
        "events_per_student": per_student,
        "round_cpu_ms": round(cpu_ms / len(times), 1),
        "round_median_ms": round(statistics.median(times), 1),
        "round_max_ms": round(max(times), 1),
        "from_the_beginning_ms": round(whole_ms, 1),
        "progress_points": points,
    }


async def measure_percentiles(pool: asyncpg.Pool, people: list[UUID], points: int) -> dict[str, Any]:
    """p50 and p95 of a day by the hour: from the bins, and interpolated from the raw points."""
    series, end = PostgresTimeSeries(pool), datetime.now(UTC).replace(second=0, microsecond=0)
    await pool.execute("TRUNCATE timeseries.cell_executions, timeseries.stale_minutes")
    await pool.execute(FILL, points, people, round(end.timestamp()) * 10**9, COURSE, timeout=900)
    await pool.execute(
        "INSERT INTO timeseries.stale_minutes SELECT DISTINCT time_ns / 60000000000 * 60000000000, user_id, course_id"
        " FROM timeseries.cell_executions",
        timeout=900,
    )
    began = time.perf_counter()
    minutes = 0
    while count := await series.refresh_rollups(settle_s=-120):
        minutes += count
    refresh_s = time.perf_counter() - began
    await pool.execute("VACUUM ANALYZE timeseries.cell_executions, timeseries.cell_executions_1m", timeout=900)
    window = Window(end - timedelta(days=1), end, timedelta(hours=1))
    scope = ClassScope(COURSE, people, [f"week{number}.ipynb" for number in range(3)])
    found: dict[str, Any] = {"points": points, "minutes_rolled_up": minutes, "refresh_s": round(refresh_s, 1)}
    span_ns = [round(at.timestamp()) * 10**9 for at in (window.start, window.end)]
    asked: dict[str, Callable[[], Awaitable[list[Any]]]] = {
        "bins": lambda: series.query_percentiles(window, scope),
        "raw": lambda: pool.fetch(EXACT, *span_ns, 3600 * 10**9, COURSE, people),
    }
    answers = {}
    for name, ask in asked.items():
        times = []
        for _ in range(7):
            took_ms, answers[name] = await time_ms(ask)
            times.append(took_ms)
        found[f"{name}_median_ms"] = round(statistics.median(times), 1)
    for one, (p95_ms, count) in zip(answers["bins"], answers["raw"], strict=True):
        assert one.execution_count == count
        # The bound, and the steps of the durations (e^0 to e^12) between two ranks, over which the other interpolates.
        assert abs(one.p95_ms / p95_ms - 1) < 0.01 + 2 * 12 / count, (one, p95_ms)
    times = [(await time_ms(lambda: series.query_error_rate(window, scope)))[0] for _ in range(7)]
    found["error_rate_median_ms"] = round(statistics.median(times), 1)
    return found


async def measure_all(database_url: str, points: int) -> dict[str, Any]:
    await migrate(database_url, {})
    people = sorted(uuid4() for _ in range(STUDENTS))
    async with asyncpg.create_pool(database_url, min_size=4, max_size=4, command_timeout=900) as pool:
        await pool.execute("INSERT INTO courses (id, title, short_name) VALUES ($1, 'x', 'x')", COURSE)
        await pool.executemany("INSERT INTO users (id, username) VALUES ($1, $2)", [(one, one.hex) for one in people])
        await pool.executemany(
            "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, 'student')",
            [(one, COURSE) for one in people],
        )
        ledger = PostgresLedger(pool, EncryptedField(make_key()), NotebookDirectory())
        await ledger.record_events([make_event(one, datetime.now(UTC), 0) for one in people])
        return {
            "record_50": await measure_ledger(pool, ledger, people, 50),
            "record_500": await measure_ledger(pool, ledger, people, 500),
            "job": await measure_job(pool, ledger, people, 500),
            "percentiles_of_a_day": await measure_percentiles(pool, people, points),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000, help="points of a day (default 1,000,000)")
    points = parser.parse_args().points
    with tempfile.TemporaryDirectory(prefix="nbpulse-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)
        server = EmbeddedPostgres(directory)
        server.start()
        try:
            found = asyncio.run(measure_all(server.url, points))
        finally:
            server.stop()
    head = {"command": f"bench/derived_series.py --points {points}", "machine": describe_machine()}
    measured_at = datetime.now(UTC).isoformat(timespec="seconds")
    RESULT.write_text(json.dumps({"measured_at": measured_at, **head, **found}, indent=1) + "\n", encoding="utf-8")
    for title, one in found.items():
        print(f"{title}: {json.dumps(one)}")


if __name__ == "__main__":
    main()
