"""A cluster's primary dies while its replica lags: at `failover` nothing accepted is lost, below it something is."""

import asyncio
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from clusters import ValkeyCluster, run_cluster
from servers import ROOT
from torture.failovers import PAUSE_S, PAYLOAD_BYTES, Failover, run_failover

IS_FULL = os.environ.get("NBPULSE_TEST_SCALE") == "full"
RUNS = 20 if IS_FULL else 1
RESULT = ROOT / "bench" / "results" / "failover.json"


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with run_cluster() as running:
        yield running


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
