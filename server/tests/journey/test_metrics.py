"""What the dashboard and the alert rules ask for is served by the real processes, and moves when the class does."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis
from websockets.asyncio.client import connect

from nbpulse.metrics import CloseReason, HistorySource, InfluxQuery, Limit, PostgresQuery, RedisQuery
from servers import ROOT
from stage import make_run
from torture.checker import await_debts_paid, await_drained
from torture.clients import Student, join_students
from torture.connections import Connection, get
from torture.systems import System
from working import until

DASHBOARD = ROOT / "ops/grafana/nbpulse.json"
RULES = ROOT / "ops/prometheus/alerts.yml"
NAME = re.compile(r"\b(?:nbpulse|database)_[a-z0-9_]*[a-z0-9]\b")
STUDENT_COUNT, BATCH_COUNT, BATCH_EVENTS = 4, 3, 25
EVENT_COUNT = STUDENT_COUNT * BATCH_COUNT * BATCH_EVENTS
NAMES = {
    "postgresql": get_args(PostgresQuery),
    "postgresql_replica": get_args(PostgresQuery),
    "influxdb": get_args(InfluxQuery),
    "redis": get_args(RedisQuery),
}
LABELS = {
    "result": {"accepted", "duplicate", "rejected", "refused"},
    "outcome": {"stored", "duplicate", "dead_letter"},
    "reason": {"refused", "series_limit", *get_args(CloseReason)},
    "limit": set(get_args(Limit)),
    "source": set(get_args(HistorySource)),
    "replica": {"1"},
    "database": set(NAMES),
}

Sample = tuple[str, dict[str, str], float]


def read_panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return panels


def read_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def list_asked() -> Iterator[str]:
    """Every metric's name in an expression."""
    expressions = [target["expr"] for panel in read_panels() for target in panel["targets"]]
    for expression in (*expressions, *(rule["expr"] for rule in read_rules())):
        found = NAME.findall(re.sub(r"\bby \([^)]*\)|\{[^}]*\}", "", expression))
        assert found, expression
        yield from found


def add(samples: list[Sample], name: str, **labels: str) -> float:
    """The sum over what bears these labels; NaN where one is not known."""
    return sum(value for one, has, value in samples if one == name and labels.items() <= has.items())


async def scrape(url: str) -> list[Sample]:
    answer = await get(url)
    assert answer.status == 200
    families = text_string_to_metric_families(answer.body.decode())
    return [(one.name, one.labels, one.value) for family in families for one in family.samples]


class Class:
    """The processes of one class and what they serve."""

    def __init__(self, system: System, students: list[Student]) -> None:
        self.system = system
        self.students = students

    async def scrape_api(self) -> list[Sample]:
        return await scrape(self.system.facts["metrics_urls"][0])

    async def scrape_both(self) -> tuple[list[Sample], list[Sample]]:
        """The API's samples, the worker's."""
        return await self.scrape_api(), await scrape(self.system.facts["metrics_urls"][1])

    async def has_workers(self, count: int) -> bool:
        return add(await self.scrape_api(), "nbpulse_workers") == count

    async def settle(self) -> None:
        """Until everything is processed and written."""
        await await_drained(self.system.facts["redis_url"], 30)
        await await_debts_paid(self.system.facts["database_url"])

    async def deliver(self) -> None:
        """A few hundred events, posted in batches; all are accepted."""
        line = Connection(self.system.url)
        for _ in range(BATCH_COUNT):
            for student in self.students:
                runs = [
                    make_run(cell=number, status="error" if number == 0 else "ok") for number in range(BATCH_EVENTS)
                ]
                answer = await line.post("/api/v1/events", runs, token=student.token)
                assert {one["status"] for one in answer.read()["results"]} == {"accepted"}, answer.body
        line.close()

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """A board that has got its first frame by the end."""
        course = f"/api/v1/courses/{self.system.facts['course_id']}"
        token = self.system.facts["teacher_token"]
        board = (await get(f"{self.system.url}{course}/live", token=token)).read()
        async with connect(f"{self.system.url.replace('http', 'ws')}{course}/ws") as socket:
            hello = {"t": "hello", "token": token, "epoch": board["epoch"], "after_seq": board["seq"]}
            await socket.send(json.dumps(hello))
            yield
            async with asyncio.timeout(20):
                while json.loads(await socket.recv())["t"] != "d":
                    pass


@asynccontextmanager
async def open_class(data_dir: Path, settings: dict[str, str]) -> AsyncIterator[Class]:
    async with System(data_dir, worker_count=1, settings=settings) as system:
        yield Class(system, await join_students(system.url, system.facts["join_code"], STUDENT_COUNT))


async def test_every_metric_asked_for_is_served_and_counts_what_happened(data_dir: Path, influxdb: str) -> None:
    away = {"NBPULSE_REPLICA_URLS": "postgresql://127.0.0.1:9/nbpulse"}
    async with open_class(data_dir, {"NBPULSE_INFLUX_URL": f"{influxdb}/metrics", **away}) as room:
        await room.deliver()
        await room.settle()
        async with room.watch():
            await room.deliver()
            assert add(await room.scrape_api(), "nbpulse_live_viewers") == 1
        await room.settle()
        await until(lambda: room.has_workers(1), 30)
        api, worker = await room.scrape_both()
        both = api + worker

    served = {name for name, _, _ in both}
    assert set(list_asked()) <= served
    assert add(worker, "nbpulse_unaccounted_events") == 0
    assert add(api, "nbpulse_ingest_events_total", result="accepted") == 2 * EVENT_COUNT
    assert add(api, "nbpulse_ingest_ack_seconds_count") == 2 * EVENT_COUNT / BATCH_EVENTS
    assert add(worker, "nbpulse_worker_events_total", outcome="stored") == 2 * EVENT_COUNT
    for name in ("nbpulse_stream_backlog_events", "nbpulse_series_debt_batches", "nbpulse_dead_letters"):
        assert add(api, name) == 0, name
    for name in ("nbpulse_ingest_append_seconds_count", "nbpulse_live_frames_total"):
        assert add(api, name) > 0, name
    for name in ("nbpulse_worker_batch_seconds_count", "nbpulse_worker_lag_seconds"):
        assert add(worker, name) > 0, name
    assert math.isnan(add(api, "nbpulse_replica_lag_seconds"))
    for database in NAMES.keys() - {"postgresql_replica"}:
        assert add(both, "database_query_duration_seconds_count", database=database) > 0, database
        assert add(worker, "database_connection_pool_size", database=database) > 0, database
        for process in (api, worker):
            size, limit = (
                add(process, f"database_connection_pool_{one}", database=database) for one in ("size", "limit")
            )
            assert size <= limit, database
    assert add(worker, "database_query_duration_seconds_count", database="influxdb", query_type="write_points") > 0
    assert add(both, "database_query_duration_seconds_count", database="postgresql", query_type="write_points") == 0
    assert_bounded(both)


def assert_bounded(samples: list[Sample]) -> None:
    """Each label has only values that are known beforehand."""
    for name, labels, _ in samples:
        if name.startswith(("nbpulse_", "database_")):
            for label in labels.keys() - {"le", "query_type"}:
                assert labels[label] in LABELS[label], name
            if "query_type" in labels:
                assert labels["query_type"] in NAMES[labels["database"]], labels


async def test_dead_letters_are_seen_and_postgresql_tells_of_no_third_store(data_dir: Path) -> None:
    async with open_class(data_dir, {}) as room:
        async with Redis.from_url(room.system.facts["redis_url"]) as redis:
            await redis.xadd("nbpulse:events:{shard_3}", {"e": b"no event"})
        await room.deliver()
        await room.settle()
        api, worker = await room.scrape_both()
        assert add(api, "nbpulse_dead_letters") == 1
        assert add(worker, "nbpulse_worker_events_total", outcome="dead_letter") == 1
        # Without InfluxDB the series are PostgreSQL's, and no third store is told of.
        assert (
            add(worker, "database_query_duration_seconds_count", database="postgresql", query_type="write_points") > 0
        )
        assert not [one for one in api + worker if one[1].get("database") == "influxdb"]


async def test_a_worker_that_hangs_is_missed_and_what_waits_is_told_as_it_is(data_dir: Path) -> None:
    async with open_class(data_dir, {}) as room:
        (worker_pid,) = room.system.read_pids("worker")
        os.kill(worker_pid, signal.SIGSTOP)
        try:
            await room.deliver()
            await until(lambda: room.has_workers(0), 30)
            assert add(await room.scrape_api(), "nbpulse_stream_backlog_events") == EVENT_COUNT
        finally:
            os.kill(worker_pid, signal.SIGCONT)
        await room.settle()
        await until(lambda: room.has_workers(1), 30)
        # Nothing was appended since: the figure is looked up, not left over.
        assert add(await room.scrape_api(), "nbpulse_stream_backlog_events") == 0


def test_the_dashboard_is_whole() -> None:
    panels = read_panels()
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"], panel["id"]
        assert panel["description"], panel["title"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, f"{panel['title']} lies on another"
        taken |= cells


@pytest.mark.parametrize("rule", read_rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule["annotations"]) == {"summary", "action"}
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert len(rule["annotations"]["action"]) > 40
