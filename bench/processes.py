"""Workers and APIs that come and go: how long a shard is without its worker, how long a board is away.

    PYTHONPATH=server/tests .venv/bin/python bench/processes.py [--rounds 5] [--quick]

Workers: three under load, and as often each of kill -9, SIGSTOP, SIGTERM and one more, in random order; measured is
the longest that an event waited from its acceptance to its storing. Restarts: two APIs and two workers behind each
example proxy, every one restarted in turn; measured is each board's longest time from losing its line to its next
snapshot. Both end with the checks of the tests: each event once, each student's in order, every board equal to a
snapshot. Writes bench/results/processes.json.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from typing import Any, get_args

from documents import write_documents
from redis.asyncio import Redis
from report import RESULTS, ROOT, describe_machine, write_results
from systems import Neighbours

from changing_workers import change_workers, make_students
from nbpulse.embedded import EmbeddedPostgres, EmbeddedValkey
from proxies import Kind, run_proxy
from rolling import restart_all
from servers import make_data_dir
from stores import check_conservation, create_database, make_class, open_stores
from torture.systems import System

_AIM_UNREAD_S = 5.0
_AIM_AWAY_S = 2.0


async def measure_changes(rounds: int) -> dict[str, Any]:
    """By change, the longest that an event of any shard waited, in s."""
    with make_data_dir() as directory:
        stores = [EmbeddedValkey(directory), EmbeddedPostgres(directory)]
        try:
            for store in stores:
                store.start()
            redis_url, server_url = (store.url for store in stores)
            async with Redis.from_url(redis_url) as client:
                await client.flushall()
            database_url = await create_database(server_url)
            course = await make_class(database_url, make_students())
            async with open_stores(database_url, redis_url, worker="watcher") as opened:
                outcome = await change_workers(opened, database_url, redis_url, course, rounds=rounds, seed=1)
            assert outcome.disordered == []
            await check_conservation(database_url, outcome.accepted)
        finally:
            for store in reversed(stores):
                store.stop()
    return {
        "rounds": rounds,
        "events": len(outcome.accepted),
        "unread_max_s": {name: round(waited_s, 2) for name, waited_s in sorted(outcome.unread_s.items())},
        "unread_aim_s": _AIM_UNREAD_S,
    }


async def measure_restarts(kind: Kind, rounds: int) -> dict[str, Any]:
    """Every board's longest absence in each round, in s."""
    absences_s: list[float] = []
    with make_data_dir() as directory:
        for number in range(rounds):
            async with System(directory / f"{kind}-{number}", api_count=2, worker_count=2) as system:
                with run_proxy(kind, directory / "proxy", system.api_urls) as (url, _):
                    seen = await restart_all(system, url, directory / f"{number}.journal", viewer_count=8, seed=number)
            assert seen.verdict.problems == []
            assert seen.answered
            assert seen.gaps == []
            absences_s += seen.absences_s
    return {
        "rounds": rounds,
        "boards": len(absences_s),
        "away_median_s": statistics.median(absences_s),
        "away_max_s": max(absences_s),
        "away_aim_s": _AIM_AWAY_S,
    }


async def measure(rounds: int) -> dict[str, Any]:
    """Both, with how busy the machine was; the processes measured are counted into it."""
    neighbours = Neighbours([])
    found: dict[str, Any] = {"workers": await measure_changes(rounds)}
    found["workers"]["cores_busy"] = neighbours.measure_cores()
    for kind in get_args(Kind):
        neighbours = Neighbours([])
        found[kind] = await measure_restarts(kind, rounds)
        found[kind]["cores_busy"] = neighbours.measure_cores()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how long shards and boards are alone when processes change.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each change, and each rolling restart")
    parser.add_argument("--quick", action="store_true", help="once each, nothing but .cache/bench/ written")
    arguments = parser.parse_args()
    found = asyncio.run(measure(1 if arguments.quick else arguments.rounds))
    directory = ROOT / ".cache" / "bench" if arguments.quick else RESULTS
    write_results({"processes": found}, describe_machine(), directory, " ".join(["bench/processes.py", *sys.argv[1:]]))
    if not arguments.quick:
        write_documents()
    print(found)


if __name__ == "__main__":
    main()
