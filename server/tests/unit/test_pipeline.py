"""A batch's way: recorded before published, published before measured, and a debt that stays when measuring fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from nbpulse import pipeline
from nbpulse.errors import Unavailable
from nbpulse.pipeline import Recorded, RejectedPoint, measure, process_events


class Steps:
    """Every store at once: notes what was asked of it, fails where told."""

    def __init__(self, failing: str = "") -> None:
        self.done: list[str] = []
        self.failing = failing
        self.debt_id = uuid4()

    def _do(self, step: str) -> None:
        if step == self.failing:
            raise Unavailable("NB-2003")
        self.done.append(step)

    async def record_events(self, events: Sequence[Any]) -> Recorded:
        self._do("record")
        return Recorded((), (), len(events), 0, self.debt_id)

    async def publish(self, events: Sequence[Any], states: Sequence[Any]) -> None:
        self._do("publish")

    async def write_points(self, points: Sequence[Any]) -> Sequence[RejectedPoint]:
        if self.failing == "hang":
            await asyncio.sleep(60)
        self._do("write")
        return ()

    async def settle_debt(self, debt_id: UUID, rejected: Sequence[RejectedPoint]) -> None:
        assert debt_id == self.debt_id
        self._do("settle")


async def test_a_batch_is_recorded_then_published_and_its_debt_settled_after_the_points() -> None:
    steps = Steps()
    recorded = await process_events([], ledger=steps, publisher=steps)
    assert await measure(recorded, ledger=steps, series=steps)
    assert steps.done == ["record", "publish", "write", "settle"]


@pytest.mark.parametrize("failing", ["record", "publish"])
async def test_a_failing_step_stops_the_batch_so_that_it_comes_again(failing: str) -> None:
    steps = Steps(failing)
    with pytest.raises(Unavailable):
        await process_events([], ledger=steps, publisher=steps)
    assert failing not in steps.done


@pytest.mark.parametrize("failing", ["write", "settle", "hang"])
async def test_a_series_store_that_fails_or_hangs_leaves_the_debt(
    failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "SERIES_DEADLINE_S", 0.01)
    steps = Steps(failing)
    recorded = await process_events([], ledger=steps, publisher=steps)
    assert not await measure(recorded, ledger=steps, series=steps)
    assert "settle" not in steps.done
