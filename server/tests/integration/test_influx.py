"""InfluxDB as the specification uses it: its own queries as typed, refused points, and a server that is away."""

import asyncio
import random
import signal
import time
from collections import defaultdict
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx2
import msgspec
import pytest

from influx_shell import type_query
from nbpulse.errors import StartupError, Unavailable
from nbpulse.pipeline import CellExecutionPoint
from nbpulse.timeseries import Window
from nbpulse.timeseries.influx import open_influx, read_address
from nbpulse.timeseries.lines import describe_point
from servers import InfluxServer, make_influx
from stores import connect, create_database, make_class, make_error, make_event, open_stores, spread
from working import is_drained, is_paid, until, work

# The specification's two, to the letter.
ACTIVITY = """SELECT mean("execution_duration_ms") as avg_duration,
       count("execution_duration_ms") as execution_count
FROM "cell_executions"
WHERE time >= now() - 1h
GROUP BY time(10m), "user_id"
"""
ERROR_RATE = """SELECT count("has_error") as error_count,
       count(*) as total_executions
FROM "cell_executions"
WHERE time >= now() - 24h
GROUP BY time(1h), "notebook_path"
"""


def make_point(**changes: Any) -> CellExecutionPoint:
    fields: dict[str, Any] = {
        "user_id": uuid4(),
        "time_ns": round((time.time() - 60) * 1_000) * 1_000_000 + 7,
        "notebook_path": "week1.ipynb",
        "cell_index": 3,
        "event_type": "cell_execution",
        "execution_duration_ms": 12.5,
        "has_error": False,
        "error_message": None,
        "execution_count": 4,
    }
    return CellExecutionPoint(**(fields | changes))


async def test_the_specifications_queries_count_executions_and_errors_as_typed(influxdb: str) -> None:
    database = f"t{uuid4().hex[:12]}"
    chance = random.Random(1)
    users = [uuid4() for _ in range(3)]
    points = [
        make_point(
            user_id=chance.choice(users),
            time_ns=time.time_ns() - chance.randrange(3_000) * 10**9 + number,
            notebook_path=chance.choice(["week1.ipynb", "課題 2, a=b.ipynb"]),
            cell_index=chance.choice([None, 0, 5]),
            execution_duration_ms=chance.uniform(1, 100),
            has_error=(failed := chance.random() < 0.4),
            error_message='NameError: name "x" is\nnot defined' if failed else None,
        )
        for number in range(400)
    ]
    async with open_influx(f"{influxdb}/{database}") as store:
        assert await store.write_points(points) == []
    counts: dict[str, int] = defaultdict(int)
    for series in type_query(influxdb, database, ACTIVITY):
        assert series["columns"] == ["time", "avg_duration", "execution_count"]
        counts[series["tags"]["user_id"]] += sum(row[2] for row in series["values"])
    assert counts == {str(user): sum(point.user_id == user for point in points) for user in users}
    errors: dict[str, int] = defaultdict(int)
    for series in type_query(influxdb, database, ERROR_RATE):
        place = series["columns"].index("error_count")
        errors[series["tags"]["notebook_path"]] += sum(row[place] for row in series["values"])
    paths = {point.notebook_path for point in points}
    assert errors == {path: sum(p.has_error for p in points if p.notebook_path == path) for path in paths}
    keys = {row[0] for row in type_query(influxdb, database, "SHOW TAG KEYS")[0]["values"]}
    assert keys == {"user_id", "notebook_path", "cell_index", "event_type"}
    fields = {tuple(row) for row in type_query(influxdb, database, "SHOW FIELD KEYS")[0]["values"]}
    assert fields == {
        ("execution_duration_ms", "float"),
        ("has_error", "boolean"),
        ("error_count", "integer"),
        ("error_message", "string"),
        ("execution_count", "integer"),
    }


@pytest.mark.parametrize("text", ['a,b =c"', "ends with \\", "two\nlines", "日本語 = 1", "\\", "", "a\\,b"])
async def test_whatever_a_path_or_a_text_holds_is_kept(influxdb: str, text: str) -> None:
    database = f"t{uuid4().hex[:12]}"
    point = make_point(notebook_path=text, has_error=True, error_message=text)
    async with open_influx(f"{influxdb}/{database}") as store:
        assert await store.write_points([point, make_point()]) == []
        window = Window(datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC), timedelta(hours=1))
        rates = await store.query_error_rate(window)
    assert sum(rate.total_executions for rate in rates) == 2
    (shown,) = {rate.notebook_path for rate in rates if rate.error_count}
    assert shown.replace("_", "").strip() == (text.replace("\n", " ").strip() or "unknown")


async def test_a_point_the_server_refuses_is_named_and_its_neighbours_are_written(influxdb: str) -> None:
    good = [make_point() for _ in range(40)]
    bad = make_point(time_ns=2**63 - 1)  # beyond what InfluxDB can date
    async with open_influx(f"{influxdb}/t{uuid4().hex[:12]}") as store:
        (rejected,) = await store.write_points([*good[:13], bad, *good[13:]])
        assert (rejected.user_id, rejected.time_ns) == (bad.user_id, bad.time_ns)
        assert "time" in rejected.reason
        window = Window(datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC), timedelta(hours=1))
        assert sum(one.total_executions for one in await store.query_error_rate(window)) == 40


async def test_at_the_series_limit_known_series_go_on_and_the_rest_is_set_aside(influxdb: str) -> None:
    user_id = uuid4()
    many = [make_point(user_id=user_id, cell_index=number) for number in range(20_050)]
    async with open_influx(f"{influxdb}/t{uuid4().hex[:12]}") as store:
        rejected = await store.write_points(many)
        assert rejected
        assert "max-series-per-database" in rejected[0].reason
        assert await store.write_points([msgspec.structs.replace(many[0], execution_duration_ms=1.0)]) == []


async def test_an_absent_server_and_a_wrong_password_are_unavailable(influxdb: str) -> None:
    async with open_influx("http://127.0.0.1:9/x") as store:
        with pytest.raises(Unavailable, match="NB-2005"):
            await store.write_points([make_point()])
        with pytest.raises(Unavailable, match="NB-2005"):
            await store.check()
    async with open_influx(influxdb) as store:
        await store.check()


@pytest.mark.parametrize("url", ["localhost:8086", "ftp://x/y", "http://"])
def test_what_is_no_address_is_said_at_the_start(url: str) -> None:
    with pytest.raises(StartupError, match="NB-3080"):
        read_address(url)


def test_an_address_names_user_and_database() -> None:
    assert read_address("https://me:p%40ss@host:8086/class") == ("https://host:8086", "class", "me", "p@ss")
    assert read_address("http://host:8086").database == "nbpulse"


def test_without_error_texts_none_is_written() -> None:
    point = make_point(has_error=True, error_message="NameError: name '…' is not defined")
    assert "error_message" not in describe_point(point, error_text="none")
    assert "error_message" in describe_point(point, error_text="normalised")


@pytest.mark.parametrize("trouble", ["stopped", "hanging"])
async def test_while_influx_is_away_the_worker_goes_on_and_pays_afterwards(
    embedded_postgres: str, embedded_valkey: str, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbpulse.worker.DEBT_AGE_S", 0.1)
    database_url = await create_database(embedded_postgres)
    course_id, users = await make_class(database_url, 20)
    with make_influx() as server:
        server.start()
        async with open_stores(database_url, embedded_valkey, influx_url=f"{server.url}/class") as stores, work(stores):
            await stores.redis.flushall()
            await stores.stream.ensure_groups()
            accepted = spread(users, course_id, 100)
            await stores.stream.append(accepted)
            await until(lambda: is_drained(stores.stream))
            await until(lambda: is_paid(database_url))
            with Trouble(server, trouble):
                for _ in range(10):
                    accepted += (more := [*spread(users, course_id, 19), make_error(users[0], course_id)])
                    await stores.stream.append(more)
                    await asyncio.sleep(0.05)
                started_s = time.monotonic()
                await until(lambda: is_drained(stores.stream), 5)
                assert time.monotonic() - started_s < 5, "the ledger and the board do not wait for it"
                assert not await is_paid(database_url)
            await until(lambda: is_paid(database_url))
            window = Window(datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC), timedelta(hours=1))
            rates = await stores.series.query_error_rate(window)
    assert sum(rate.total_executions for rate in rates) == len(accepted)
    assert sum(rate.error_count for rate in rates) == 10


async def test_full_error_texts_reach_influx_also_late_and_wait_sealed(
    embedded_postgres: str, embedded_valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbpulse.worker.DEBT_AGE_S", 0.1)
    database_url = await create_database(embedded_postgres)
    course_id, users = await make_class(database_url, 2)
    told = "name 'ひみつの変数' is not defined"
    texts = {"error_name": "NameError", "error_message": told}
    error = make_error(users[0], course_id)
    events = [make_event(users[0], course_id, data=error.data | texts) for _ in range(2)]
    full: dict[str, Any] = {"influx_error_text": "full"}
    with make_influx() as server:
        server.start()
        address = f"{server.url}/class"
        async with open_stores(database_url, embedded_valkey, influx_url=address, **full) as stores, work(stores):
            await stores.redis.flushall()
            await stores.stream.ensure_groups()
            await stores.stream.append(events[:1])
            await until(lambda: is_drained(stores.stream))
            await until(lambda: is_paid(database_url))
            with Trouble(server, "stopped"):
                await stores.stream.append(events[1:])
                await until(lambda: is_drained(stores.stream))
                async with connect(database_url) as connection:
                    (debt,) = await connection.fetch("SELECT points, sealed_points FROM series_debt")
                assert (debt["points"], "ひみつ" in debt["sealed_points"]) == (b"", False)
                assert stores.seal.decrypt(debt["sealed_points"])
            await until(lambda: is_paid(database_url))
        (series,) = type_query(server.url, "class", 'SELECT "error_message" FROM "cell_executions"')
    assert [message for _, message in series["values"]] == [f"NameError: {told}"] * 2


class Trouble(AbstractContextManager[None]):
    def __init__(self, server: InfluxServer, kind: str) -> None:
        self.server, self.kind = server, kind

    def __enter__(self) -> None:
        assert self.server.process is not None
        if self.kind == "stopped":
            self.server.process.kill()
            self.server.process.wait(10)
        else:
            self.server.process.send_signal(signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        assert self.server.process is not None
        if self.kind == "stopped":
            self.server.start()
        else:
            self.server.process.send_signal(signal.SIGCONT)


async def test_a_refused_point_of_the_ledger_is_set_aside_with_its_reason(
    influxdb: str, embedded_postgres: str, embedded_valkey: str
) -> None:
    database_url = await create_database(embedded_postgres)
    course_id, users = await make_class(database_url, 2)
    database = f"t{uuid4().hex[:12]}"
    async with httpx2.AsyncClient(base_url=influxdb, trust_env=False) as client:
        await client.post("/query", data={"q": f'CREATE DATABASE "{database}"'})
        # Somebody's earlier program has written the field with another type: every point of ours conflicts.
        line = f'cell_executions,user_id=x execution_duration_ms="slow" {time.time_ns()}'
        assert (await client.post("/write", params={"db": database}, content=line)).status_code == 204
    async with open_stores(database_url, embedded_valkey, influx_url=f"{influxdb}/{database}") as stores, work(stores):
        await stores.redis.flushall()
        await stores.stream.ensure_groups()
        await stores.stream.append(spread(users, course_id, 5))
        await until(lambda: is_drained(stores.stream))
        await until(lambda: is_paid(database_url))
    async with connect(database_url) as connection:
        rows = await connection.fetch(
            "SELECT user_id, reason FROM series_rejects WHERE measurement = 'cell_executions'"
        )
    assert len(rows) == 5
    assert all("field type conflict" in row["reason"] and isinstance(row["user_id"], UUID) for row in rows)
