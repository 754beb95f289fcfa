"""The primary is lost under load and its replica promoted (failovers.py); in figures: bench/replica_promotion.py."""

from __future__ import annotations

import os

import pytest

from failovers import BATCH_EVENTS, WRITERS, run_failover
from servers import make_data_dir

IS_FULL = os.environ.get("NBPULSE_TEST_SCALE") == "full"
# The control shows that a loss would be seen.
ROUNDS = [*((True, 2 + number * 0.13) for number in range(10 if IS_FULL else 1)), *([(False, 2.0)] if IS_FULL else [])]


@pytest.mark.parametrize(("is_synchronous", "load_s"), ROUNDS)
def test_what_a_synchronous_primary_acknowledged_is_at_its_promoted_replica(
    is_synchronous: bool, load_s: float
) -> None:
    """Also what came while the replica's receiver stood still: then nothing is acknowledged."""
    with make_data_dir() as directory:
        found = run_failover(directory, is_synchronous=is_synchronous, load_s=load_s)
    assert found.acknowledged > WRITERS * BATCH_EVENTS
    assert (found.lost == 0) == is_synchronous
    assert found.wrong == 0  # delivered again, everything is there once
