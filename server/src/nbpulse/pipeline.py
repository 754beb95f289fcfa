"""The way of a batch through the worker: record -> publish, then acknowledge (`worker/`), then measure.

Promises: what was recorded is recorded once, however often the batch comes; publishing and measuring are absolute and
idempotent, so a repeat changes nothing. The debt row written with the ledger is what makes it safe to acknowledge
before the points are written: a slow or absent time-series store delays neither the board nor the next batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar, Final, Protocol
from uuid import UUID

import msgspec

from nbpulse.classroom import LearnerState
from nbpulse.errors import Unavailable
from nbpulse.events import ReceivedEvent

SERIES_DEADLINE_S = 2.0
UNKNOWN_COURSE: Final = UUID(int=0)
"""The course of a point that an earlier version made, which kept none."""


class CellExecutionPoint(msgspec.Struct, frozen=True):
    """
    One point of the specification's measurement `cell_executions`.

    `time_ns` = occurred_at in ms * 1e6 + the student's event number % 1e6: unique per student, the same at every retry.
    `notebook_path` is the course notebook's, never the student's copy's. `error_message` is normalised
    (classroom.py), or full where the operator wants that.
    """

    measurement: ClassVar[str] = "cell_executions"
    user_id: UUID
    time_ns: int
    notebook_path: str
    cell_index: int | None
    event_type: str
    execution_duration_ms: float | None
    has_error: bool
    error_message: str | None
    execution_count: int | None
    course_id: UUID = UNKNOWN_COURSE


class LearningProgressPoint(msgspec.Struct, frozen=True):
    """
    One point of `learning_progress`: a student's standing in a notebook after the last run of a 10-second slot.

    `completed_cells` of `total_cells` are exercises where the course notebook has some; percentage 0..100.
    `time_ns` of this and the next = start of the slot (the minute) + the notebook's id % 1e6: the same at every retry.
    """

    measurement: ClassVar[str] = "learning_progress"
    user_id: UUID
    course_id: UUID
    time_ns: int
    notebook_path: str
    completed_cells: int
    total_cells: int
    progress_percentage: float
    session_duration_ms: int


class PerformancePoint(msgspec.Struct, frozen=True):
    """One point of `performance_metrics`: a student's runs in a notebook in a minute; times in ms, error rate 0..1."""

    measurement: ClassVar[str] = "performance_metrics"
    user_id: UUID
    course_id: UUID
    time_ns: int
    notebook_path: str
    cell_type: str
    avg_execution_time: float | None
    max_execution_time: float | None
    error_rate: float


SeriesPoint = CellExecutionPoint | LearningProgressPoint | PerformancePoint


class RejectedPoint(msgspec.Struct, frozen=True):
    """A point that the time-series store will never take as it stands, and why, in the store's words."""

    user_id: UUID
    time_ns: int
    reason: str
    measurement: str = CellExecutionPoint.measurement


EventKey = tuple[UUID, UUID]
"""(user_id, event_id)"""


class Recorded(msgspec.Struct, frozen=True):
    """What one transaction of the ledger did, and what the next steps need of it."""

    states: tuple[LearnerState, ...]
    points: tuple[CellExecutionPoint, ...]
    stored_count: int
    duplicate_count: int
    debt_id: UUID | None
    postponed: frozenset[EventKey] = frozenset()
    """Not stored yet: their shard is being moved, or their database away. They are to come again, the others not."""


class Ledger(Protocol):
    """The people and the ledger (records/)."""

    async def record_events(self, events: Sequence[ReceivedEvent]) -> Recorded:
        """Store a batch in one transaction. Raises Unavailable (nothing stored) or PoisonEvent (one event's fault)."""

    async def settle_debt(self, debt_id: UUID, rejected: Sequence[RejectedPoint]) -> None:
        """The batch's points are in the time series, but for the rejected, which are set aside: forget the debt."""


class Publisher(Protocol):
    """The way to the boards and to the specification's channels (live.py)."""

    async def publish(self, events: Sequence[ReceivedEvent], states: Sequence[LearnerState]) -> None:
        """Tell everybody; safe to repeat. Raises Unavailable."""


class TimeSeries(Protocol):
    """The time-series store (timeseries/)."""

    async def write_points(self, points: Sequence[SeriesPoint]) -> Sequence[RejectedPoint]:
        """Write points; the same point again overwrites itself. Gives those refused for good. Raises Unavailable."""


async def process_events(events: Sequence[ReceivedEvent], *, ledger: Ledger, publisher: Publisher) -> Recorded:
    """
    Store one batch and tell everybody; afterwards all but what was postponed may be acknowledged, and `measure` owes
    its points.

    Raises Unavailable when the ledger or the publisher does not answer: then the batch comes again.
    Raises PoisonEvent when one event can never be stored: then nothing of the batch was.
    """
    recorded = await ledger.record_events(events)
    late = recorded.postponed
    stored = [event for event in events if not late or (event.user_id, event.event_id) not in late]
    await publisher.publish(stored, recorded.states)
    return recorded


async def measure(recorded: Recorded, *, ledger: Ledger, series: TimeSeries) -> bool:
    """Write the batch's points within the deadline and settle its debt; False when the debt stays."""
    if recorded.debt_id is None:
        return True
    try:
        async with asyncio.timeout(SERIES_DEADLINE_S):
            rejected = await series.write_points(recorded.points)
            await ledger.settle_debt(recorded.debt_id, rejected)
    except (Unavailable, TimeoutError):
        return False
    return True
