"""Points and their courses: what a course's staff is told of a student of two, and of points made before 0007."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest

from nbpulse.identity import asking_as
from nbpulse.migrations import runner
from nbpulse.pipeline import UNKNOWN_COURSE, measure
from nbpulse.records.derived import pay_marks
from nbpulse.records.upkeep import keep_partitions
from nbpulse.timeseries import ClassScope, Window
from nbpulse.timeseries.influx import open_influx
from nbpulse.timeseries.postgres import PostgresTimeSeries
from stage import Stage, make_run
from stores import connect, count_rows, create_database, make_class, make_error, make_event, open_stores


async def write_points(stage: Stage) -> None:
    """What the worker does after it has acknowledged."""
    pool = stage._ledger._pool
    series = PostgresTimeSeries(pool)
    for debt in await stage._ledger.find_debts(older_than_s=0, limit=1_000):
        assert await measure(debt, ledger=stage._ledger, series=series)
    await pay_marks(pool, series)


async def ask(stage: Stage, path: str, **query: Any) -> dict[str, Any]:
    answer = await stage.http.get(f"/api/v1/courses/{stage.course.id}/{path}", params=query, headers=stage.staff)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def last_day() -> Window:
    end = datetime.now(UTC) + timedelta(minutes=1)
    return Window(end - timedelta(days=1), end, timedelta(hours=1))


async def test_a_student_of_two_courses_is_told_to_each_with_that_courses_runs_alone(stage: Stage) -> None:
    async def count_seen() -> int:
        with asking_as(stage.teacher_id):
            return sum(one.total_executions for one in await stage.parts.series.query_error_rate(last_day()))

    # Other tests' courses are the same teacher's; what they still owe to the series is written first.
    await write_points(stage)
    before = await count_seen()
    joined = await stage.join()
    student = UUID(joined["user_id"])
    other = await stage.courses.ensure_course("Another", f"o{stage.course.short_name}")
    async with connect(stage.database_url) as owner:
        await owner.execute("INSERT INTO enrolments VALUES ($1, $2, 'student')", student, other.id)
    await stage.post(joined["token"], [make_run(0), make_run(1, "error"), make_run(2)])
    await stage.work()
    # In the other course a notebook of the same path, and failures only.
    await stage._ledger.record_events([make_error(student, other.id) for _ in range(5)])
    await write_points(stage)
    (rate,) = (await ask(stage, "error-rate"))["error_rate"]
    assert (rate["notebook_path"], rate["error_count"], rate["total_executions"]) == ("week1.ipynb", 1, 3)
    (activity,) = (await ask(stage, "activity", bucket="6h"))["activity"]
    assert (activity["students"], activity["execution_count"], activity["avg_duration_ms"]) == (1, 3, 12.5)
    (progress,) = (await ask(stage, "series", metric="learning_progress"))["buckets"]
    assert (progress["completed_cells"], progress["user_id"]) == (2, joined["user_id"])
    (performance,) = (await ask(stage, "series", metric="performance_metrics"))["buckets"]
    assert performance["error_rate"] == pytest.approx(1 / 3)
    # The database itself keeps it so, whatever a query forgets.
    for _ in range(2):
        assert await count_seen() == before + 3
        await PostgresTimeSeries(stage._ledger._pool).refresh_rollups(settle_s=-60)
    with asking_as(student):
        assert sum(one.total_executions for one in await stage.parts.series.query_error_rate(last_day())) == 8


async def test_percentiles_of_a_day_leave_out_what_the_course_s_staff_ran(stage: Stage) -> None:
    student = UUID((await stage.join())["user_id"])
    at = datetime.now(UTC) - timedelta(hours=3)
    times = {student: 10.0, stage.teacher_id: 9_000.0}
    for user_id, duration_ms in times.items():
        data = {"status": "ok", "execution_duration_ms": duration_ms}
        moments = [at + timedelta(minutes=number) for number in range(60)]
        await stage._ledger.record_events(
            [make_event(user_id, stage.course.id, data=data, occurred_at=one, received_at=one) for one in moments]
        )
    await write_points(stage)
    found = []
    for _ in range(2):  # from the raw points, then from the rollup
        rows = (await ask(stage, "activity", bucket="6h", limit=5))["activity"]
        assert sum(row["execution_count"] for row in rows) == 60
        assert {row["students"] for row in rows} == {1}
        found += [row["p95_duration_ms"] for row in rows] + [row["p50_duration_ms"] for row in rows]
        await PostgresTimeSeries(stage._ledger._pool).refresh_rollups()
    assert found == [pytest.approx(10, rel=0.01)] * len(found)
    async with connect(stage.database_url) as owner:
        people = await owner.fetchval(
            "SELECT count(DISTINCT one) FROM timeseries.durations_10m, unnest(user_ids) AS one WHERE course_id = $1",
            stage.course.id,
        )
    assert people == 2


async def test_what_is_marked_is_told_in_the_metrics(stage: Stage) -> None:
    student = UUID((await stage.join())["user_id"])
    await stage._ledger.record_events([make_event(student, stage.course.id)])
    told = (await stage.http.get("/metrics")).text
    figures = dict(line.rsplit(" ", 1) for line in told.splitlines() if line.startswith("nbpulse_series_marks"))
    assert float(figures["nbpulse_series_marks"]) >= 1
    assert 0 <= float(figures["nbpulse_series_marks_oldest_seconds"]) < 120


async def test_influxdb_tells_a_course_by_its_students_and_its_notebooks_paths(influxdb: str, stage: Stage) -> None:
    student = UUID((await stage.join())["user_id"])
    other = await stage.courses.ensure_course("Another", f"p{stage.course.short_name}")
    runs = [make_event(student, stage.course.id, notebook_path="it's.ipynb")]
    runs += [make_error(student, other.id, notebook_path="theirs.ipynb") for _ in range(3)]
    points = (await stage._ledger.record_events(runs)).points
    async with open_influx(f"{influxdb}/t{stage.course.id.hex[:12]}") as series:
        assert await series.write_points(points) == []
        with asking_as(stage.teacher_id):
            members = await stage.parts.classes.list_members(stage.course.id)
        (rate,) = await series.query_error_rate(last_day(), ClassScope(stage.course.id, *members))
    assert (rate.notebook_path, rate.total_executions, rate.error_count) == ("it's.ipynb", 1, 0)


async def test_where_a_notebook_has_exercises_progress_counts_these_in_the_answer_and_in_the_series(
    stage: Stage,
) -> None:
    token = (await stage.join())["token"]
    runs = [
        make_run(0, sequence=0),  # belongs to no exercise
        make_run(1, sequence=1, exercise_id="exercise 1"),
        make_run(2, "error", sequence=2, exercise_id="exercise 1"),
        make_run(3, sequence=3, exercise_id="exercise 2"),
    ]
    for number, run in enumerate(runs):
        run["occurred_at"] = (datetime.now(UTC) - timedelta(minutes=5) + timedelta(seconds=number)).isoformat()
    await stage.post(token, runs)
    await stage.work()
    await write_points(stage)
    (row,) = (await ask(stage, "progress"))["progress"]
    assert (row["completed_cells"], row["total_cells"], row["progress_percentage"]) == (1, 2, 50.0)
    summary = await ask(stage, f"notebooks/{row['notebook_id']}/summary")
    assert (summary["total_cells"], summary["avg_progress"]) == (2, 0.5)
    buckets = (await ask(stage, "series", metric="learning_progress"))["buckets"]
    last = max(buckets, key=lambda one: one["at"])
    assert [last[name] for name in ("completed_cells", "total_cells", "progress_percentage")] == [1, 2, 50.0]


class _OldPoint(msgspec.Struct):
    """A point as a debt held it before it knew its course."""

    user_id: UUID
    time_ns: int
    notebook_path: str
    cell_index: int | None
    event_type: str
    execution_duration_ms: float | None
    has_error: bool
    error_message: str | None
    execution_count: int | None


async def test_a_debt_of_the_version_before_is_paid_and_a_rebuilt_course_is_not_forgotten(
    embedded_postgres: str, embedded_valkey: str
) -> None:
    database_url = await create_database(embedded_postgres)
    course_id, (student,) = await make_class(database_url, 1)
    async with open_stores(database_url, embedded_valkey) as stores:
        (point,) = (await stores.ledger.record_events([make_event(student, course_id)])).points
        old = _OldPoint(*(getattr(point, name) for name in _OldPoint.__struct_fields__))
        async with connect(database_url) as owner:
            await owner.execute("UPDATE series_debt SET points = $1", msgspec.msgpack.encode((old,)))
            (debt,) = await stores.ledger.find_debts(older_than_s=0)
            assert debt.points == (msgspec.structs.replace(point, course_id=UNKNOWN_COURSE),)
            assert await measure(debt, ledger=stores.ledger, series=stores.series)
            read = "SELECT course_id FROM timeseries.cell_executions"
            assert await owner.fetchval(read) == UNKNOWN_COURSE
            await stores.series.write_points([point])
            await stores.series.write_points(debt.points)
            assert await owner.fetchval(read) == course_id


async def test_the_migration_gives_old_points_their_course_and_marks_everything_to_be_made(
    embedded_postgres: str, embedded_valkey: str
) -> None:
    database_url = await create_database(embedded_postgres, "0006")
    course_id, (student,) = await make_class(database_url, 1)
    # The moment lies between two ms, where PostgreSQL and Python round to different ones.
    moment = datetime(2026, 11, 23, 1, 2, 3, 122_500, tzinfo=UTC)
    point_ms = round(moment.timestamp() * 1_000)
    async with connect(database_url) as owner:
        await owner.execute(
            "INSERT INTO events (user_id, shard, event_id, occurred_at, received_at, ordinal, course_id, event_type,"
            " sequence, data) SELECT $1, (('x' || substr(md5($1::uuid::text), 1, 8))::bit(32)::bigint % 64)::smallint,"
            " gen_random_uuid(), $2, $2, 7, $3, 'cell_execution', 1, '{}'",
            *(student, moment, course_id),
        )
        for time_ns in (point_ms * 1_000_000 + 7, point_ms * 1_000_000 + 8):
            await owner.execute(
                "INSERT INTO timeseries.cell_executions (user_id, time_ns, notebook_path, event_type, has_error,"
                " execution_duration_ms) VALUES ($1, $2, 'x', 'cell_execution', FALSE, 5)",
                *(student, time_ns),
            )
        await runner.migrate(database_url, {})
        rows = await owner.fetch("SELECT course_id FROM timeseries.cell_executions ORDER BY time_ns")
        assert [row["course_id"] for row in rows] == [course_id, UNKNOWN_COURSE]
    assert await count_rows(database_url, "timeseries.stale_minutes") == [2]
    async with open_stores(database_url, embedded_valkey) as stores:
        assert await keep_partitions(stores.pool) == []
        assert await stores.series.refresh_rollups() == 2
        window = Window(moment - timedelta(hours=2), moment + timedelta(hours=2), timedelta(hours=1))
        (found,) = await stores.series.query_percentiles(window, ClassScope(course_id, [student], []))
    assert (found.execution_count, found.p95_ms) == (1, pytest.approx(5, rel=0.01))
