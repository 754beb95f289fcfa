"""A node of the Citus cluster named by NBPULSE_TEST_CITUS_URL goes away while a class works, and comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from callers import Callers, open_callers, read_table
from machines import run_nbpulse
from nbpulse.resources import Resources, open_resources
from stage import KEY, Stage, make_run
from stores import CITUS_URL, connect, count_rows, create_database, make_settings
from torture.proxies import Proxy
from working import is_drained, until, work

pytestmark = pytest.mark.skipif(
    CITUS_URL is None, reason="NBPULSE_TEST_CITUS_URL names no Citus cluster: nothing is said of one"
)
HISTORY = ("sessions", "progress", "failing-cells", "common-errors", "slow-cells", "recovery-times")
ASKERS = ("instructor", "assistant", "analyst", "student", "operator")


@asynccontextmanager
async def open_class(redis_url: str) -> AsyncIterator[tuple[Callers, Proxy]]:
    """Everybody who asks, on a cluster one node of which is reached through a line that can be cut."""
    assert CITUS_URL is not None
    async with connect(CITUS_URL) as given:
        host, port = await given.fetchrow(
            "SELECT nodename, nodeport FROM pg_dist_node WHERE shouldhaveshards ORDER BY groupid LIMIT 1"
        )
    async with Redis.from_url(redis_url) as redis:
        await redis.flushall()
    async with Proxy(host, port) as proxy:
        url = await create_database(CITUS_URL, ports={port: proxy.port})
        async with open_callers(url, redis_url) as callers:
            yield callers, proxy


async def is_behind_line(url: str, user_id: str, port: int) -> bool:
    """Whether the student's rows are on the node that is known by this port."""
    async with connect(url) as owner:
        shard = await owner.fetchval("SELECT get_shard_id_for_distribution_column('events', $1::uuid)", user_id)
        place = "SELECT nodeport FROM pg_dist_shard_placement WHERE shardid = $1"
        return bool(await owner.fetchval(place, shard) == port)


async def post(callers: Callers, student: dict[str, Any], number: int) -> str:
    run = make_run(number % 5, status="error" if number % 4 == 0 else "ok", sequence=number)
    answer = await callers.stage.post(student["token"], run)
    assert answer.status_code == 202, answer.text
    return str(run["event_id"])


async def is_answered(callers: Callers, status: int, code: str) -> bool:
    """Whether every question about the course's history is answered so."""
    stage, found = callers.stage, set()
    for name in HISTORY:
        answer = await stage.http.get(f"/api/v1/courses/{stage.course.id}/{name}", headers=stage.staff)
        found.add((answer.status_code, answer.json().get("code", "")))
    return found == {(status, code)}


async def find_faults(callers: Callers) -> list[tuple[str, str, int, str]]:
    """Every route asked by everybody: who got 500 or more, other than that the database does not answer."""
    found = []
    for route in read_table():
        method, path = route.split(" ", 1)
        if method == "WS" or path.endswith("/sign-out"):
            continue
        for caller in ASKERS:
            query = "?wait_s=0" if path.endswith("/inbox") else ""
            answer = await callers.ask(caller, method, callers.fill(path) + query)
            is_problem = answer.headers.get("content-type") == "application/problem+json"
            if answer.status_code >= 500 and not (is_problem and answer.json()["code"] == "NB-2003"):
                found.append((caller, route, answer.status_code, answer.text))
    return found


@asynccontextmanager
async def open_worker(callers: Callers) -> AsyncIterator[Resources]:
    settings = make_settings(callers.stage.database_url, callers.stage.redis_url)
    settings = msgspec.structs.replace(settings, encryption_keys=KEY.decode())
    async with open_resources(settings, login="nbpulse_worker", pool_size=8) as resources, work(resources):
        yield resources


async def join_both_nodes(callers: Callers, proxy: Proxy) -> list[dict[str, Any]]:
    """Twelve students, some on each node."""
    students = [await callers.stage.join(f"Student {number}") for number in range(12)]
    url = callers.stage.database_url
    assert len({await is_behind_line(url, one["user_id"], proxy.port) for one in students}) == 2
    return students


async def examine_nodes(stage: Stage, data_dir: Path) -> list[str]:
    """What `nbpulse doctor` says of the nodes, sorted."""
    urls = {"NBPULSE_DATABASE_URL": stage.database_url, "NBPULSE_REDIS_URL": stage.redis_url}
    _, answered, _ = await asyncio.to_thread(run_nbpulse, "doctor", "--json", data_dir=data_dir, **urls)
    return sorted(one["result"] for one in json.loads(answered)["checks"] if one["name"] == "node")


async def check_all_is_there(callers: Callers, accepted: list[str]) -> None:
    async with connect(callers.stage.database_url) as owner:
        stored = [str(row[0]) for row in await owner.fetch("SELECT event_id FROM events")]
        runs = await owner.fetchval("SELECT sum(cell_executions) FROM learning_sessions")
    assert sorted(stored) == sorted(accepted)
    assert runs == len(accepted)
    assert await count_rows(callers.stage.database_url, "dead_letters") == [0]


async def test_while_a_node_is_away_nothing_accepted_is_lost_and_nobody_gets_a_bare_error(
    embedded_valkey: str, tmp_path: Path
) -> None:
    async with open_class(embedded_valkey) as (callers, proxy):
        stage = callers.stage
        students = await join_both_nodes(callers, proxy)
        accepted = [await post(callers, one, 0) for one in students]
        async with open_worker(callers) as worker:
            await until(lambda: is_drained(worker.stream))
            await until(lambda: is_answered(callers, 200, ""))
            assert (await stage.http.get("/health")).json()["status"] == "healthy"
            board = await stage.snapshot()

            await proxy.__aexit__()
            for number in range(1, 6):
                accepted += [await post(callers, one, number) for one in students]
            await until(lambda: is_answered(callers, 503, "NB-2003"))
            health = (await stage.http.get("/health")).json()
            assert (health["status"], health["postgresql"]["error"]) == ("degraded", "NB-2003")
            assert (await stage.http.get("/health/ready")).status_code == 200, "events are still taken"
            assert (await stage.snapshot())["students"] == board["students"], "an open board stays as it was"
            assert await find_faults(callers) == []
            assert await examine_nodes(stage, tmp_path) == ["failure", "ok"]
            assert not await is_drained(worker.stream)

            await proxy.__aenter__()
            await until(lambda: is_drained(worker.stream), 120)
            await until(lambda: is_answered(callers, 200, ""))
        await check_all_is_there(callers, accepted)


async def test_while_a_node_hangs_events_are_taken_and_stored_once_it_answers_again(embedded_valkey: str) -> None:
    async with open_class(embedded_valkey) as (callers, proxy):
        students = await join_both_nodes(callers, proxy)
        accepted = [await post(callers, one, 0) for one in students]
        async with open_worker(callers) as worker:
            await until(lambda: is_drained(worker.stream))
            proxy.mode = "swallow"
            for number in range(1, 6):
                accepted += [await post(callers, one, number) for one in students]
            health = (await callers.stage.http.get("/health")).json()
            assert (health["status"], health["postgresql"]["error"]) == ("degraded", "NB-2003")
            assert not await is_drained(worker.stream)
            proxy.mode = "pass"
            proxy.cut()
            await until(lambda: is_drained(worker.stream), 120)
        await check_all_is_there(callers, accepted)
