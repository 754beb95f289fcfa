"""All three measurements as a real worker feeds them, wiped and rebuilt from the ledger, in both stores."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from derivation import derive_points, read_notebooks
from influx_shell import type_query
from nbpulse.administration import rebuild_timeseries
from nbpulse.events import ReceivedEvent
from stores import connect, count_rows, create_database, make_class, make_event, make_settings, open_stores
from working import is_drained, until, work

MEASUREMENTS = ("cell_executions", "learning_progress", "performance_metrics")


def teach(users: list[UUID], course_id: UUID) -> list[ReceivedEvent]:
    """300 runs over 4 hours in two notebooks, a third of them errors, some untimed or aborted."""
    chance, now = random.Random(7), datetime.now(UTC)
    runs = []
    for number in range(300):
        timed = {"execution_duration_ms": chance.uniform(0.1, 5_000)} if chance.random() < 0.9 else {}
        status = chance.choice(["ok", "ok", "ok", "error", "error", "aborted"])
        failed = {"error_name": "NameError", "error_message": f"name 'x{number}' is not defined"}
        runs.append(
            make_event(
                *(chance.choice(users), course_id),
                occurred_at=now - timedelta(minutes=chance.uniform(0, 240)),
                notebook_path=f"week{chance.randrange(2)}.ipynb",
                exercise_id=chance.choice((None, "exercise 1")),
                data={"status": status, "execution_count": number, **timed, **(failed if status == "error" else {})},
            )
        )
    return runs


def add_up(influxdb: str, database: str) -> dict[str, Any]:
    """Per measurement and hour: how many values each field has, and their sums; and every point as it is."""
    found: dict[str, Any] = {}
    for name in MEASUREMENTS:
        hours = f'SELECT count(*), sum(*) FROM "{name}" WHERE time > now() - 1d GROUP BY time(1h) fill(none)'
        found[name] = type_query(influxdb, database, hours), type_query(influxdb, database, f'SELECT * FROM "{name}"')
    return found


async def add_up_rows(database_url: str) -> dict[str, Any]:
    """The same of the PostgreSQL store."""
    found: dict[str, Any] = {}
    async with connect(database_url) as owner:
        for name in MEASUREMENTS:
            numbers = await owner.fetch(
                "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0"
                " AND atttypid::regtype::text IN ('integer', 'bigint', 'double precision') AND attname <> 'time_ns'",
                f"timeseries.{name}",
            )
            sums = ", ".join(f"count({row[0]}), sum({row[0]}::numeric)" for row in numbers)
            hours = await owner.fetch(
                f"SELECT time_ns / 3600000000000 AS hour, count(*), {sums} FROM timeseries.{name} GROUP BY 1 ORDER BY 1"
            )
            points = await owner.fetch(f"SELECT * FROM timeseries.{name} ORDER BY user_id, time_ns, notebook_path")
            found[name] = [tuple(one) for one in hours], [tuple(one) for one in points]
    return found


async def is_settled(database_url: str) -> bool:
    """Nothing is owed, and what counts in each notebook has been looked at."""
    owed = await count_rows(database_url, "series_debt", "series_marks")
    return owed == [0, 0] and await count_rows(database_url, "notebooks WHERE items_digest IS NULL") == [0]


@pytest.mark.parametrize("kind", ["influxdb", "postgresql"])
async def test_what_the_worker_wrote_and_was_wiped_is_rebuilt_from_the_ledger_to_the_letter(
    influxdb: str, embedded_postgres: str, embedded_valkey: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbpulse.worker.MARKS_S", 0.2)
    database_url = await create_database(embedded_postgres)
    course_id, users = await make_class(database_url, 5)
    database = f"t{uuid4().hex[:12]}"
    url = f"{influxdb}/{database}" if kind == "influxdb" else None
    trace = teach(users, course_id)
    async with open_stores(database_url, embedded_valkey, influx_url=url) as stores, work(stores):
        await stores.redis.flushall()
        await stores.stream.ensure_groups()
        await stores.stream.append(trace)
        await until(lambda: is_drained(stores.stream))
        await until(lambda: is_settled(database_url))

    async def look() -> dict[str, Any]:
        return add_up(influxdb, database) if url else await add_up_rows(database_url)

    before = await look()
    derived = derive_points(trace, await read_notebooks(database_url), {course_id: 5})
    counts = [len(trace), *map(len, derived)]
    rows = [before[name][1] for name in MEASUREMENTS]
    assert [len(one[0]["values"]) if url else len(one) for one in rows] == counts
    await wipe(influxdb, database, database_url)
    settings = make_settings(database_url, embedded_valkey, influx_url=url)
    start, end = datetime.now(UTC) - timedelta(hours=5), datetime.now(UTC) + timedelta(minutes=1)
    for _ in range(2):
        assert await asyncio.to_thread(rebuild_timeseries, settings, start, end) == (sum(counts), 0)
        assert await look() == before
    assert await count_rows(database_url, "series_rejects") == [0]


async def wipe(influxdb: str, database: str, database_url: str) -> None:
    """Both stores; and a point that was set aside once is on record, to be written now."""
    type_query(influxdb, database, f'DROP DATABASE "{database}"')
    async with connect(database_url) as owner:
        for name in MEASUREMENTS:
            await owner.execute(f"DELETE FROM timeseries.{name}")
        await owner.execute(
            "INSERT INTO series_rejects SELECT user_id, shard, extract(epoch FROM now())::bigint * 1000000000, 'limit'"
            " FROM event_ids LIMIT 1"
        )


async def test_the_worker_feeds_both_derived_measurements_with_the_specified_tags_and_field_types(
    influxdb: str, embedded_postgres: str, embedded_valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbpulse.worker.MARKS_S", 0.2)
    database_url = await create_database(embedded_postgres)
    course_id, users = await make_class(database_url, 5)
    database = f"t{uuid4().hex[:12]}"
    trace = teach(users, course_id)
    async with open_stores(database_url, embedded_valkey, influx_url=f"{influxdb}/{database}") as stores, work(stores):
        await stores.redis.flushall()
        await stores.stream.ensure_groups()
        await stores.stream.append(trace)
        await until(lambda: is_drained(stores.stream))
        await until(lambda: is_settled(database_url))
    progress, performance = derive_points(trace, await read_notebooks(database_url), {course_id: 5})
    (told,) = type_query(influxdb, database, 'SELECT * FROM "learning_progress"')
    names = ["user_id", "notebook_path", "completed_cells", "total_cells", "progress_percentage", "session_duration_ms"]
    found = {tuple(row[told["columns"].index(name)] for name in ("time", *names)) for row in told["values"]}
    assert found == {(one.time_ns, str(one.user_id), *(getattr(one, name) for name in names[1:])) for one in progress}
    (told,) = type_query(influxdb, database, 'SELECT sum("max_execution_time") FROM "performance_metrics"')
    assert told["values"][0][1] == pytest.approx(sum(one.max_execution_time or 0 for one in performance.values()))
    kinds = {
        series["name"]: {tuple(row) for row in series["values"]}
        for series in type_query(influxdb, database, "SHOW FIELD KEYS")
    }
    assert kinds["learning_progress"] == {
        *((name, "integer") for name in ("completed_cells", "total_cells", "session_duration_ms")),
        ("progress_percentage", "float"),
    }
    assert kinds["performance_metrics"] == {
        (name, "float") for name in ("avg_execution_time", "max_execution_time", "error_rate")
    }
    tags = {
        series["name"]: {row[0] for row in series["values"]}
        for series in type_query(influxdb, database, "SHOW TAG KEYS")
    }
    assert tags["learning_progress"] == {"user_id", "notebook_path"}
    assert tags["performance_metrics"] == {"user_id", "notebook_path", "cell_type"}
