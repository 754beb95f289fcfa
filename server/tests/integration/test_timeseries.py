"""The time series on real PostgreSQL and InfluxDB: their figures are those of a plain fold over the points."""

import asyncio
import random
import statistics
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from nbpulse.pipeline import CellExecutionPoint, LearningProgressPoint, PerformancePoint
from nbpulse.timeseries import (
    Activity,
    ClassScope,
    ErrorRate,
    Percentiles,
    Performance,
    Progress,
    TimeSeriesStore,
    Window,
    statements,
)
from nbpulse.timeseries.influx import InfluxTimeSeries, open_influx
from stores import connect, create_database, open_stores

HOUR_BY_TEN_MINUTES = (timedelta(hours=1), timedelta(minutes=10))
DAY_BY_HOUR = (timedelta(hours=24), timedelta(hours=1))
# Percentiles of these come from rollups by ten minutes and by minutes.
MORNING_BY_TEN_MINUTES = (timedelta(hours=5), timedelta(minutes=10))
MORNING_BY_MINUTE = (timedelta(hours=5), timedelta(minutes=1))
SPANS = (HOUR_BY_TEN_MINUTES, DAY_BY_HOUR, MORNING_BY_TEN_MINUTES, MORNING_BY_MINUTE)
BIN_ERROR = 0.01
PATHS = [f"week{number}.ipynb" for number in range(3)]
COURSE = uuid4()


@pytest.fixture(params=["embedded_postgres", "postgres_15", "influxdb", "influxdb lean"])
async def series(request: pytest.FixtureRequest, embedded_valkey: str) -> AsyncIterator[TimeSeriesStore]:
    """Every store that there is, empty."""
    name, _, tags = request.param.partition(" ")
    server_url = request.getfixturevalue(name)
    if name == "influxdb":
        async with open_influx(f"{server_url}/t{uuid4().hex[:12]}", tags="lean" if tags else "specified") as store:
            yield store
        return
    async with open_stores(await create_database(server_url), embedded_valkey) as resources:
        yield resources.series


def make_points(count: int, seed: int, end: datetime) -> list[CellExecutionPoint]:
    """Points of 7 students in 3 notebooks over the last 26 hours, half of them in the last hour."""
    chance = random.Random(seed)
    users = [UUID(int=chance.getrandbits(128)) for _ in range(7)]
    points = []
    for number in range(count):
        age_s = chance.uniform(-60, 3_700) if number % 2 else chance.uniform(0, 26 * 3_600)
        time_ms = round((end.timestamp() - age_s) * 1_000)
        points.append(
            CellExecutionPoint(
                user_id=chance.choice(users),
                time_ns=time_ms * 1_000_000 + number,
                notebook_path=f"week{chance.randrange(3)}.ipynb",
                cell_index=chance.randrange(20),
                event_type="cell_execution",
                execution_duration_ms=chance.choice((None, 0.0, *(chance.lognormvariate(4, 3) for _ in range(18)))),
                has_error=chance.random() < 0.3,
                error_message=None,
                execution_count=number,
                course_id=COURSE,
            )
        )
    return points


class Fold:
    """What the queries must say, worked out the long way."""

    def __init__(self, points: list[CellExecutionPoint], window: Window) -> None:
        self.bucket_ns = window.bucket // timedelta(microseconds=1) * 1_000
        bounds = [round(one.timestamp() * 1_000_000) * 1_000 for one in (window.start, window.end)]
        self.points = [point for point in points if bounds[0] <= point.time_ns < bounds[1]]

    def at(self, point: CellExecutionPoint) -> datetime:
        return datetime.fromtimestamp(point.time_ns // self.bucket_ns * self.bucket_ns // 1_000_000_000, UTC)

    def fold_activity(self) -> list[Activity]:
        groups = defaultdict(list)
        for point in self.points:
            if point.execution_duration_ms is not None:
                groups[self.at(point), point.user_id].append(point.execution_duration_ms)
        return [Activity(*key, statistics.fmean(values), len(values)) for key, values in sorted(groups.items())]

    def fold_errors(self) -> list[ErrorRate]:
        groups = defaultdict(list)
        for point in self.points:
            groups[self.at(point), point.notebook_path].append(point.has_error)
        return [ErrorRate(*key, sum(values), len(values)) for key, values in sorted(groups.items())]

    def check_percentiles(self, found: Sequence[Percentiles], error: float) -> None:
        """By nearest rank not more than one duration away, to within `error` of it."""
        groups = defaultdict(list)
        for point in self.points:
            if point.execution_duration_ms is not None:
                groups[self.at(point)].append(point.execution_duration_ms)
        assert [(one.at, one.execution_count) for one in found] == [(at, len(groups[at])) for at in sorted(groups)]
        for one in found:
            values = sorted(groups[one.at])
            for percentile, ratio in ((one.p50_ms, 0.5), (one.p95_ms, 0.95)):
                near = [value for value in values if abs(percentile - value) <= error * value * (1 + 1e-9)]
                places = range(bisect_left(values, near[0]), bisect_right(values, near[-1]))
                assert any(abs(place - ratio * (len(values) - 1)) <= 1 for place in places), (percentile, ratio)


async def check(series: TimeSeriesStore, points: list[CellExecutionPoint], end: datetime) -> None:
    for span, bucket in SPANS:
        window = Window(end - span, end, bucket)
        fold = Fold(points, window)
        for found, wanted in (
            (await series.query_activity(window), fold.fold_activity()),
            (await series.query_error_rate(window), fold.fold_errors()),
        ):
            assert wanted
            assert [round_floats(one) for one in found] == [round_floats(one) for one in wanted]
        fold.check_percentiles(await series.query_percentiles(window), get_error(series))


def get_error(series: TimeSeriesStore) -> float:
    """How far from a percentile a store may be."""
    return 0 if isinstance(series, InfluxTimeSeries) else BIN_ERROR


def round_floats(row: msgspec.Struct) -> list[object]:
    return [round(value, 6) if isinstance(value, float) else value for value in msgspec.structs.astuple(row)]


@pytest.mark.parametrize("seed", [1, 2])
async def test_queries_equal_the_fold_before_while_and_after_minutes_are_rolled_up(
    series: TimeSeriesStore, seed: int
) -> None:
    end = datetime.now(UTC) - timedelta(minutes=2)  # so that no minute settles meanwhile
    points = make_points(2_000, seed, end)
    await series.write_points(points[:1_500])
    await check(series, points[:1_500], end)
    assert isinstance(series, InfluxTimeSeries) or await series.refresh_rollups() > 500
    await check(series, points[:1_500], end)
    await series.write_points(points[1_200:])  # 300 of them again
    await check(series, points, end)
    await series.refresh_rollups()
    await check(series, points, end)
    assert await series.refresh_rollups() == 0


async def test_a_point_written_again_overwrites_itself_also_in_its_rollup(series: TimeSeriesStore) -> None:
    end = datetime.now(UTC)
    (point,) = make_points(1, 3, end - timedelta(minutes=10))
    window = Window(end - timedelta(hours=30), end, timedelta(hours=30))
    for duration_ms in (10.0, 20.0, 30.0):
        await series.write_points([msgspec.structs.replace(point, execution_duration_ms=duration_ms)] * 2)
        await series.refresh_rollups()
    (activity,) = await series.query_activity(window)
    assert (activity.avg_duration_ms, activity.execution_count) == (30.0, 1)


async def test_a_query_is_narrowed_to_the_people_and_notebooks_of_a_class(series: TimeSeriesStore) -> None:
    end = datetime.now(UTC)
    points = make_points(600, 4, end)
    other = [
        # The same people at the same moments in another course, whose notebooks have other paths.
        msgspec.structs.replace(point, course_id=uuid4(), time_ns=point.time_ns + 5_000, notebook_path="o'ther.ipynb")
        for point in points
    ]
    await series.write_points(points + other)
    await series.refresh_rollups()
    user_id = points[0].user_id
    mine = ClassScope(COURSE, [user_id], PATHS)
    for span, bucket in SPANS:
        window = Window(end - span, end, bucket)
        fold = Fold([point for point in points if point.user_id == user_id], window)
        assert await series.query_error_rate(window, mine) == fold.fold_errors()
        found = await series.query_activity(window, mine)
        assert [round_floats(one) for one in found] == [round_floats(one) for one in fold.fold_activity()]
        fold.check_percentiles(await series.query_percentiles(window, mine), get_error(series))
        assert await series.query_activity(window, ClassScope(COURSE, [uuid4()], PATHS)) == []
        assert await series.query_activity(window, ClassScope(COURSE, [], PATHS)) == []
        theirs = ClassScope(other[0].course_id, [other[0].user_id], ["o'ther.ipynb"])
        rates = await series.query_error_rate(window, theirs)
        assert {one.notebook_path for one in rates} <= {"o'ther.ipynb"}


def make_derived(count: int, seed: int, end: datetime) -> list[LearningProgressPoint | PerformancePoint]:
    """Points of 5 students in 3 notebooks over the last 26 hours, both measurements, half of them in the last hour."""
    chance = random.Random(seed)
    users = [UUID(int=chance.getrandbits(128)) for _ in range(5)]
    points: list[LearningProgressPoint | PerformancePoint] = []
    for number in range(count):
        age_s = chance.uniform(0, 3_600 if number % 2 else 26 * 3_600)
        who: dict[str, Any] = {
            "user_id": chance.choice(users),
            "course_id": COURSE,
            "notebook_path": chance.choice(PATHS),
        }
        time_ns = round(end.timestamp() - age_s) * 10**9 + number
        done = chance.randrange(11)
        points.append(
            LearningProgressPoint(
                **who,
                time_ns=time_ns,
                completed_cells=done,
                total_cells=10,
                progress_percentage=chance.choice((done * 10.0, 33.33)),
                session_duration_ms=chance.randrange(10**7),
            )
        )
        timed = chance.random() < 0.8
        points.append(
            PerformancePoint(
                **who,
                time_ns=time_ns,
                cell_type=chance.choice(("code", "r, raw = 1")),
                avg_execution_time=chance.uniform(0, 100) if timed else None,
                max_execution_time=chance.choice((100.0, chance.uniform(100, 1e9))) if timed else None,
                error_rate=chance.choice((0.0, 1.0, 1 / 3)),
            )
        )
    return points


def fold_progress(points: Sequence[Any], window: Window) -> list[Progress]:
    fold = Fold([point for point in points if isinstance(point, LearningProgressPoint)], window)  # type: ignore[misc]
    last: dict[tuple[Any, ...], Any] = {}
    for point in sorted(fold.points, key=lambda one: one.time_ns):
        last[fold.at(point), point.user_id, point.notebook_path] = point
    return [
        Progress(*key, one.completed_cells, one.total_cells, one.progress_percentage, one.session_duration_ms)
        for key, one in sorted(last.items())
    ]


def fold_performance(points: Sequence[Any], window: Window) -> list[Performance]:
    fold = Fold([point for point in points if isinstance(point, PerformancePoint)], window)  # type: ignore[misc]
    groups: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for point in fold.points:
        groups[fold.at(point), point.notebook_path, point.cell_type].append(point)
    rows = []
    for key, group in sorted(groups.items()):
        means = [one.avg_execution_time for one in group if one.avg_execution_time is not None]
        longest = [one.max_execution_time for one in group if one.max_execution_time is not None]
        mean = statistics.fmean(means) if means else None
        rate = statistics.fmean(one.error_rate for one in group)
        rows.append(Performance(*key, mean, max(longest, default=None), rate))
    return rows


async def test_progress_and_performance_are_those_of_their_points_however_often_written(
    series: TimeSeriesStore,
) -> None:
    end = datetime.now(UTC)
    points = make_derived(400, 6, end)
    old = [
        msgspec.structs.replace(one, completed_cells=0, session_duration_ms=1)
        if isinstance(one, LearningProgressPoint)
        else msgspec.structs.replace(one, error_rate=0.5)
        for one in points[:300]
    ]
    for part in (old, points[150:], points[:200], points[::-1]):
        assert list(await series.write_points(part)) == []
    user_id = points[0].user_id
    for span, bucket in (HOUR_BY_TEN_MINUTES, DAY_BY_HOUR):
        window = Window(end - span, end, bucket)
        for scope, those in (
            (None, points),
            (ClassScope(COURSE, [user_id], PATHS), [one for one in points if one.user_id == user_id]),
        ):
            assert await series.query_progress(window, scope) == fold_progress(those, window) != []
            found = [round_floats(one) for one in await series.query_performance(window, scope)]
            assert found == [round_floats(one) for one in fold_performance(those, window)] != []
        assert await series.query_progress(window, ClassScope(uuid4(), [uuid4()], PATHS)) == []


async def test_writers_and_refreshes_side_by_side_lose_no_point(series: TimeSeriesStore) -> None:
    end = datetime.now(UTC) - timedelta(minutes=2)
    points = make_points(1_600, 5, end)
    is_done = False

    async def refresh_again_and_again() -> None:
        while not is_done:
            await series.refresh_rollups()
            await asyncio.sleep(0)  # a store without rollups does not even wait

    refreshing = [asyncio.create_task(refresh_again_and_again()) for _ in range(2)]
    cuts = range(0, len(points) + 1, 200)
    await asyncio.gather(
        *(series.write_points(points[start:stop]) for start, stop in pairwise(cuts)),
        *(series.write_points(points[start:stop][::-1]) for start, stop in pairwise(cuts)),
    )
    is_done = True
    await asyncio.gather(*refreshing)
    await series.refresh_rollups()
    await check(series, points, end)


async def test_a_slot_is_made_by_index_however_many_minutes_its_course_has(embedded_postgres: str) -> None:
    """Also in a table nobody has analysed yet: after an upgrade or a restore all slots are made at once."""
    course_id = uuid4()
    async with connect(await create_database(embedded_postgres)) as owner:
        await owner.execute(
            "INSERT INTO timeseries.cell_executions_1m SELECT n * 60000000000, gen_random_uuid(), 'week1.ipynb', 1, 1,"
            " 1.0, 0, $1, '{1}' FROM generate_series(1, 50000) n",
            course_id,
        )
        for statement in (statements.FILL_SLOTS, statements.FILL_DURATIONS):
            slots = [number * statements.SLOT_NS for number in range(1, 200)]
            rows = await owner.fetch(f"EXPLAIN (ANALYZE, TIMING OFF) {statement}", slots, [course_id] * len(slots))
            plan = "\n".join(row[0] for row in rows)
            assert "Index Cond: ((course_id = k.course_id) AND (minute_ns >= k.slot_ns)" in plan, plan
            assert "Seq Scan on cell_executions_1m" not in plan, plan
        assert await owner.fetchval("SELECT count(*) FROM timeseries.cell_executions_10m") == 199 * 10
