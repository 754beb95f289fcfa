"""What a site of a given size needs: lines fitted to the points of bench/capacity.py, and what follows from them.

Promises: nothing here is measured; every coefficient is fitted to points in bench/results, and a size that lies beyond
the largest of these says so. Assumptions about people stand as constants below.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Result = Mapping[str, Any]
PARTS = ("api", "worker", "postgresql", "valkey")
# From so many events a second on the worker, which gathers for 25 ms, has always something to do.
WORKING_PER_S = 100

# Assumed, not measured. Students and how many of them work at once: the more there are, the less at the same time.
ACTIVE = {200: 200, 2_000: 1_000, 20_000: 6_000, 100_000: 20_000, 1_000_000: 150_000}
EVENTS_PER_ACTIVE_S = 0.1
EVENTS_PER_STUDENT_YEAR = 54_000  # 150 hours of work
NOTEBOOKS_A_YEAR = 30
PEAK_OVER_MEAN = 5
RUN_ALL_PER_S = 500  # one class that runs a whole notebook at once
CLASS_STUDENTS = 200
STUDENTS_PER_BOARD = 50
KEPT_DAYS = 180  # NBPULSE_RETENTION_DAYS
BACKLOG_MINUTES = 30
# How far one process or server is filled on purpose.
BUSY_MAX = 0.6
PRIMARY_EVENTS_PER_S = 3_000
PRIMARY_DISK_GB = 2_000
WORKERS_MAX = 64  # one for each shard


class Line(NamedTuple):
    """y = base + slope * x, by least squares; `residual_max` in y, `x_max` the largest x that was measured."""

    base: float
    slope: float
    residual_max: float
    x_max: float

    def at(self, x: float) -> float:
        """y there."""
        return self.base + self.slope * x


def fit_line(points: Iterable[tuple[float, float]]) -> Line:
    """Through (x, y). Raises statistics.StatisticsError unless there are two different x."""
    pairs = list(points)
    slope, base = statistics.linear_regression(*zip(*pairs, strict=True))
    return Line(base, slope, max(abs(y - base - slope * x) for x, y in pairs), max(x for x, _ in pairs))


def sum_part(figures: Mapping[str, float], part: str) -> float:
    """Of all processes of one kind: `worker`, `worker-2` ..."""
    return sum(figure for name, figure in figures.items() if name.split("-")[0] == part)


class Several(NamedTuple):
    """With several primaries beside a directory: processor time per event in multiples of what it is with one."""

    worker_factor: float
    postgresql_factor: float
    directory_share: float
    """Of the databases' processor time, the directory's."""
    directory_wal_bytes: float
    """Of an event."""
    shard_wal_bytes: float
    """Of an event, in the one database that stores it."""


@dataclass(frozen=True)
class Model:
    """What bench/results say, as lines."""

    cores: dict[str, Line]
    """By part: cores busy over events a second, one process each, single posts."""
    watched_class_cores: float
    """Of an API: what the first board of a class costs."""
    board_cores: Line
    """Of an API: over the boards of one class, from the first on."""
    board_mb: Line
    backlog_bytes: Line
    """Valkey's memory over waiting events."""
    ledger_bytes: Line
    """On disk, over ledger rows."""
    series_bytes: Line
    """On disk, over runs."""
    wal_bytes: float
    """Of an event in one database that does everything."""
    process_mb: dict[str, float]
    """Of one process or server, a class being taught."""
    several: Several
    student_mb: float
    """Memory of all parts for one more student that is known and does nothing."""
    notebook_bytes: float
    """On disk, beside events and series, for one student's one notebook: cells, sessions, states."""


def fit_model(capacity: Result, series: Result, known: Result) -> Model:
    """Of bench/results/capacity.json, timeseries.json and known_students.json."""
    rates, boards, grid = capacity["rates"], capacity["boards"], capacity["grid"]
    watched = [one for one in boards if one["boards"]]
    alone, beside = known["schools"].values()
    more = beside["known_students"] - alone["known_students"]
    return Model(
        cores={part: fit_line(_list_working(rates, part)) for part in PARTS},
        watched_class_cores=statistics.median(one["cores"]["api"] for one in boards if one["boards"] == 1)
        - statistics.median(one["cores"]["api"] for one in boards if not one["boards"]),
        board_cores=fit_line((one["boards"], one["cores"]["api"]) for one in watched),
        board_mb=fit_line((one["boards"], one["pss_mb"]["api"]) for one in watched),
        backlog_bytes=fit_line((one["events"], one["memory_bytes"]) for one in capacity["backlog"]),
        ledger_bytes=fit_line(list_disk_points(grid)),
        series_bytes=fit_line(
            (size["points"], size["stores"]["PostgreSQL"]["disk_mb"] * 1e6) for size in series["sizes"]
        ),
        wal_bytes=statistics.median(find_wal(one)["main"] for one in grid if one["primaries"] == 1),
        process_mb={part: statistics.median(one["pss_mb"][part] for one in rates) for part in PARTS},
        several=_compare_several(grid),
        student_mb=(sum(beside["pss_mb"].values()) - sum(alone["pss_mb"].values())) / more,
        notebook_bytes=(beside["other_bytes"] - alone["other_bytes"]) / more,
    )


def _list_working(rates: Sequence[Result], part: str) -> list[tuple[float, float]]:
    """Cores over events/s, where it works all the time: below that a part costs less than the line says."""
    working = (one for one in rates if one["events_per_s"] >= WORKING_PER_S)
    return [(one["events_per_s"], sum_part(one["cores"], part)) for one in working]


def list_disk_points(grid: Sequence[Result]) -> list[tuple[float, float]]:
    """(rows, bytes of the ledger with its indexes) of one database that does everything."""
    found = [one["databases"]["main"]["disk"] for one in grid if one["primaries"] == 1]
    return [(one["rows"], one["ledger_bytes"]) for one in found]


def find_wal(point: Result) -> dict[str, float]:
    """WAL bytes per event: the directory's of every event (`main`), a shard database's (`shard`) of its own."""
    databases = point["databases"]
    rows = sum(one["rows"] for one in databases.values())
    found = {"main": databases["main"]["wal_bytes"] / rows}
    shards = [one for name, one in databases.items() if name != "main"]
    if shards:
        found["shard"] = sum(one["wal_bytes"] for one in shards) / rows
    return found


def split_postgresql(point: Result) -> tuple[float, float]:
    """Processor µs per event of the directory and of all shard databases; with one primary all is the directory's."""
    figures = point["cpu_us_per_event"]
    directory = figures.get("postgresql", 0) + figures.get("postgresql-main", 0)
    return directory, sum_part(figures, "postgresql") - directory


def _compare_several(grid: Sequence[Result]) -> Several:
    """One worker and API in both; the most primaries that were measured."""
    alike = [one for one in grid if one["workers"] == one["apis"] == 1]
    most = max(one["primaries"] for one in alike)
    single, several = ([one for one in alike if one["primaries"] == count] for count in (1, most))

    def weigh(points: Sequence[Result], part: str) -> float:
        return statistics.median(sum_part(one["cpu_us_per_event"], part) for one in points)

    beside = [one for one in grid if one["primaries"] > 1]
    shares = [directory / (directory + shards) for directory, shards in map(split_postgresql, beside)]
    return Several(
        worker_factor=weigh(several, "worker") / weigh(single, "worker"),
        postgresql_factor=weigh(several, "postgresql") / weigh(single, "postgresql"),
        directory_share=statistics.median(shares),
        directory_wal_bytes=statistics.median(find_wal(one)["main"] for one in beside),
        shard_wal_bytes=statistics.median(find_wal(one)["shard"] for one in beside),
    )


@dataclass(frozen=True)
class Plan:
    """An estimate for a number of students."""

    students: int
    active: int
    mean_per_s: float
    peak_per_s: float
    primaries: int
    apis: int
    workers: int
    cores: dict[str, float]
    """At the peak, by part; each machine filled to BUSY_MAX."""
    memory_gb: float
    disk_gb: float
    directory_wal_mb_per_s: float
    directory_cores: float
    beyond: float
    """The peak in multiples of the largest rate that was measured; at most 1 within what was measured."""


def plan_site(model: Model, students: int, active: int) -> Plan:
    """
    What the model says. Cores of a part: (base * processes + slope * peak) / BUSY_MAX; the API's also: a class's first
    board for each class, a board's slope for each board.
    """
    mean = active * EVENTS_PER_ACTIVE_S
    peak = PEAK_OVER_MEAN * mean + RUN_ALL_PER_S
    classes, boards = math.ceil(active / CLASS_STUDENTS), math.ceil(active / STUDENTS_PER_BOARD)
    events = students * EVENTS_PER_STUDENT_YEAR * KEPT_DAYS / 365
    disk_gb = (
        events * model.ledger_bytes.slope
        + events / 2 * model.series_bytes.slope
        + students * NOTEBOOKS_A_YEAR * model.notebook_bytes
    ) / 1e9
    primaries = max(math.ceil(peak / PRIMARY_EVENTS_PER_S), math.ceil(disk_gb / PRIMARY_DISK_GB))
    is_one = primaries == 1
    worker_slope = model.cores["worker"].slope * (1 if is_one else model.several.worker_factor)
    database_slope = model.cores["postgresql"].slope * (1 if is_one else model.several.postgresql_factor)
    watching = classes * model.watched_class_cores + boards * model.board_cores.slope
    api_busy = model.cores["api"].slope * peak + watching
    apis, workers = (max(1, math.ceil(busy / BUSY_MAX)) for busy in (api_busy, worker_slope * peak))
    cores = {
        "api": apis * model.cores["api"].base + api_busy,
        "worker": workers * model.cores["worker"].base + worker_slope * peak,
        "postgresql": (primaries + (not is_one)) * model.cores["postgresql"].base + database_slope * peak,
        "valkey": model.cores["valkey"].at(peak),
    }
    sizes = model.process_mb
    memory_mb = apis * sizes["api"] + workers * sizes["worker"] + (primaries + (not is_one)) * sizes["postgresql"]
    memory_mb += sizes["valkey"] + model.board_mb.slope * boards + model.student_mb * students
    memory_mb += model.backlog_bytes.slope * mean * 60 * BACKLOG_MINUTES / 1e6
    several = model.several
    return Plan(
        students=students,
        active=active,
        mean_per_s=mean,
        peak_per_s=peak,
        primaries=primaries,
        apis=apis,
        workers=workers,
        cores={part: busy / BUSY_MAX for part, busy in cores.items()},
        memory_gb=memory_mb / 1e3,
        disk_gb=disk_gb,
        directory_wal_mb_per_s=peak * (model.wal_bytes if is_one else several.directory_wal_bytes) / 1e6,
        directory_cores=database_slope * peak * (1 if is_one else several.directory_share),
        beyond=peak / model.cores["api"].x_max,
    )
