"""The time series of cell executions: one small contract, one file per store.

Promises of every store: the same point again overwrites itself; a window's figures equal the fold of its points,
however often and in whatever order they came; a store that does not answer is Unavailable (NB-2005), never a wrong
figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

import msgspec

from nbpulse.pipeline import CellExecutionPoint, RejectedPoint


class Window(msgspec.Struct, frozen=True):
    """`start` <= time < `end` (aware), cut into buckets that begin at whole multiples of `bucket` since 1970 UTC."""

    start: datetime
    end: datetime
    bucket: timedelta


class Activity(msgspec.Struct, frozen=True):
    """One student's executions in one bucket; `execution_count` counts those with a duration, as specified."""

    at: datetime
    user_id: UUID
    avg_duration_ms: float
    execution_count: int


class ErrorRate(msgspec.Struct, frozen=True):
    """One notebook's executions in one bucket, and how many of them ended in an error."""

    at: datetime
    notebook_path: str
    error_count: int
    total_executions: int


class Percentiles(msgspec.Struct, frozen=True):
    """
    Percentiles of the durations in one bucket: interpolated on PostgreSQL, the nearest rank's on InfluxDB.

    The two lie between the same two neighbouring durations or one further.
    """

    at: datetime
    p50_ms: float
    p95_ms: float
    execution_count: int


class TimeSeriesStore(Protocol):
    """What the worker writes and the board's charts read. `user_ids` narrows to those people; None = everybody."""

    has_server: bool
    """Whether the store is a server of its own, apart from PostgreSQL."""

    async def check(self) -> None:
        """One round trip. Raises Unavailable (NB-2005)."""

    async def write_points(self, points: Sequence[CellExecutionPoint]) -> Sequence[RejectedPoint]:
        """
        Write points; the same (user_id, time_ns) again overwrites itself. Raises Unavailable (NB-2005).

        Gives those that the store will never take as they stand; all others are written.
        """

    async def refresh_rollups(self, settle_s: float = 5) -> int:
        """
        Compute what the store keeps rolled up anew where points came; how many stale minutes there were, 0 where the
        store keeps nothing. Raises Unavailable (NB-2005).
        """

    async def query_activity(self, window: Window, user_ids: Sequence[UUID] | None = None) -> list[Activity]:
        """Specification: mean and count of the duration per bucket and user (1 h by 10 min). By time, then user."""

    async def query_error_rate(self, window: Window, user_ids: Sequence[UUID] | None = None) -> list[ErrorRate]:
        """Specification: errors and executions per bucket and notebook (24 h by 1 h). By time, then path."""

    async def query_percentiles(self, window: Window, user_ids: Sequence[UUID] | None = None) -> list[Percentiles]:
        """p50 and p95 of the duration per bucket, over all. By time."""
