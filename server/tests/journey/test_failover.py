"""A cluster's primary dies while its replica lags: at `failover` nothing accepted is lost, below it something is."""

import asyncio
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from clusters import ValkeyCluster, ask, kill, run_cluster, run_pair
from servers import ROOT, make_data_dir
from stage import make_run
from stores import connect, create_database
from torture.clients import join_students
from torture.connections import Answer, Connection, get
from torture.failovers import PAUSE_S, PAYLOAD_BYTES, Failover, run_failover
from torture.processes import Processes
from working import until

IS_FULL = os.environ.get("NBPULSE_TEST_SCALE") == "full"
RUNS = 20 if IS_FULL else 1
RESULT = ROOT / "bench" / "results" / "failover.json"


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with run_cluster() as running:
        yield running


@pytest.mark.timeout(3_600 if IS_FULL else 300)
async def test_a_primary_that_dies_before_its_replica_has_everything_costs_nothing_that_was_accepted(
    cluster: ValkeyCluster,
) -> None:
    runs = [await run_failover(cluster, confirms=True) for _ in range(RUNS)]
    control = [await run_failover(cluster, confirms=False) for _ in range(RUNS)]
    if IS_FULL:
        await asyncio.to_thread(_write, runs, control)
    print(f"\nfailover: {runs}\ncontrol: {control}")  # noqa: T201
    for run in runs:
        assert run.lost == 0
        assert run.accepted > 100
        assert run.codes <= {"NB-2001", "NB-2030"}
        # (A busy machine keeps one of them waiting for over a second now and then.)
        assert run.beside_refused < run.beside_accepted / 10, "the students of other servers were made to feel it"
    assert sum(run.lost for run in control) > 0, (
        "a death that costs nothing without confirmation proves nothing with it"
    )


@pytest.mark.timeout(300)
async def test_one_primary_and_its_replica_keep_the_same_promise_without_a_cluster(embedded_postgres: str) -> None:
    database_url = await create_database(embedded_postgres)
    accepted: set[str] = set()
    with make_data_dir() as directory, run_pair() as (primary, replica):
        async with Processes(directory, database_url, primary.url) as processes:
            url = processes.api_urls[0]
            student = (await join_students(url, processes.facts["join_code"], 1))[0]

            async def is_accepted(at: str) -> bool:
                run = make_run()
                answer = await post(at, run, student.token)
                if answer.status == 202:
                    accepted.add(run["event_id"])
                else:
                    assert answer.status == 503, answer.body
                    assert answer.read()["code"] in {"NB-2001", "NB-2030"}
                    assert int(answer.headers["retry-after"]) > 0
                return answer.status == 202

            await until(lambda: is_accepted(url))
            kill(replica)

            async def is_missed() -> bool:
                answer = await post(url, make_run(), student.token)
                health = (await get(f"{url}/health", deadline_s=20)).read()
                return answer.status == 503 and health["redis"].get("error") == "NB-2030"

            await until(is_missed)
            replica.start()
            await until(lambda: is_accepted(url))
            processes.stop_workers()
            for _ in range(20):
                await until(lambda: is_accepted(url))
            kill(primary)
            assert not await is_accepted(url)
        await ask(replica, "REPLICAOF", "NO", "ONE")
        primary.follows = replica.port  # the dead one's machine is back, as the other's replica
        primary.start()
        async with Processes(directory, database_url, replica.url, processes.facts) as processes:
            await until(lambda: is_accepted(processes.api_urls[0]))

            async def are_stored() -> bool:
                async with connect(database_url) as connection:
                    query = "SELECT count(*) FROM events WHERE event_id = ANY($1::uuid[])"
                    return bool(await connection.fetchval(query, list(accepted)) == len(accepted))

            await until(are_stored)
    assert len(accepted) > 20


async def post(url: str, run: dict[str, Any], token: str) -> Answer:
    connection = Connection(url)
    try:
        return await connection.post("/api/v1/events", run, token=token, deadline_s=20)
    finally:
        connection.close()


def _write(runs: list[Failover], control: list[Failover]) -> None:
    told = {
        name: {
            "runs": len(some),
            "accepted": sum(run.accepted for run in some),
            "refused": sum(run.refused for run in some),
            "lost": sum(run.lost for run in some),
            "lost_per_run": [run.lost for run in some],
            "takeover_s": sorted(round(run.takeover_s, 2) for run in some),
            "outage_s": sorted(round(run.outage_s, 2) for run in some),
            "beside_accepted": sum(run.beside_accepted for run in some),
            "beside_refused": sum(run.beside_refused for run in some),
        }
        for name, some in (("failover", runs), ("power", control))
    }
    facts = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "pause_s": PAUSE_S, "entry_bytes": PAYLOAD_BYTES}
    RESULT.write_text(json.dumps(facts | told, indent=1) + "\n", encoding="utf-8")
