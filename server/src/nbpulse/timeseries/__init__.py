"""The time series, three measurements: one small contract, one file per store.

Promises of every store: the same point again overwrites itself; a window's figures equal the fold of its points,
however often and in whatever order they came; a store that does not answer is Unavailable (NB-2005), never a wrong
figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

import msgspec

from nbpulse.pipeline import RejectedPoint, SeriesPoint


class Window(msgspec.Struct, frozen=True):
    """`start` <= time < `end` (aware), cut into buckets that begin at whole multiples of `bucket` since 1970 UTC."""

    start: datetime
    end: datetime
    bucket: timedelta


class ClassScope(msgspec.Struct, frozen=True):
    """
    Whose points: these people's in this course, whose notebooks have these paths.

    InfluxDB knows no courses and goes by people and paths: where somebody is in two courses that have notebooks of one
    path, it cannot tell the two apart.
    """

    course_id: UUID
    user_ids: Sequence[UUID]
    notebook_paths: Sequence[str]
    is_whole: bool = True
    """All of the course's students; else whoever asks may see these alone, and no figure of the whole course."""


class Erasure(msgspec.Struct, frozen=True):
    """
    Whose points are to go: all of `user_ids`; and of a course those that `member_ids`, who are in others too, have in
    its notebooks at `paths`.
    """

    user_ids: Sequence[UUID]
    course_id: UUID | None = None
    member_ids: Sequence[UUID] = ()
    paths: Sequence[str] = ()


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
    Percentiles of the durations in one bucket.

    InfluxDB gives the duration of the nearest rank; PostgreSQL interpolates in windows of up to an hour, and gives the
    duration of the nearest rank to within 1 % in longer ones. All lie between the same two neighbouring durations or
    one further, to within that 1 %.
    """

    at: datetime
    p50_ms: float
    p95_ms: float
    execution_count: int


class Progress(msgspec.Struct, frozen=True):
    """One student's standing in one notebook, by the last point of one bucket."""

    at: datetime
    user_id: UUID
    notebook_path: str
    completed_cells: int
    total_cells: int
    progress_percentage: float
    session_duration_ms: int


class Performance(msgspec.Struct, frozen=True):
    """
    One notebook's cells of one type in one bucket: the plain mean over its points (one per student and minute) of the
    average times and error rates, and the longest time. Times in ms; None where no run was timed.
    """

    at: datetime
    notebook_path: str
    cell_type: str
    avg_execution_time: float | None
    max_execution_time: float | None
    error_rate: float


class TimeSeriesStore(Protocol):
    """What the worker writes and the board's charts read. `scope` narrows to a class; None = everything."""

    has_server: bool
    """Whether the store is a server of its own, apart from PostgreSQL."""

    async def check(self) -> None:
        """One round trip. Raises Unavailable (NB-2005)."""

    async def write_points(self, points: Sequence[SeriesPoint]) -> Sequence[RejectedPoint]:
        """
        Write points; the same time and tags again overwrite themselves. Raises Unavailable (NB-2005).

        Gives those that the store will never take as they stand; all others are written.
        """

    async def refresh_rollups(self, settle_s: float = 5) -> int:
        """
        Compute what the store keeps rolled up anew where points came; how many stale minutes there were, 0 where the
        store keeps nothing. Raises Unavailable (NB-2005).
        """

    async def erase_points(self, erasure: Erasure) -> bool:
        """
        Delete points for good, in every measurement; False where the server has no way to. Raises Unavailable
        (NB-2005). In PostgreSQL it needs a member of `app_maintenance`.
        """

    async def drop_before(self, raw: datetime | None, derived: datetime | None) -> bool:
        """Delete older raw points and older derived ones (None: keep them); False where the server has no way to.
        Where PostgreSQL holds them its own retention does it. Raises Unavailable (NB-2005)."""

    async def read_points(self, user_id: UUID) -> list[dict[str, Any]]:
        """Every point of a person as a server of its own holds it, empty in PostgreSQL, whose tables are read as such.
        Raises Unavailable (NB-2005)."""

    async def query_activity(self, window: Window, scope: ClassScope | None = None) -> list[Activity]:
        """Specification: mean and count of the duration per bucket and user (1 h by 10 min). By time, then user."""

    async def query_error_rate(self, window: Window, scope: ClassScope | None = None) -> list[ErrorRate]:
        """Specification: errors and executions per bucket and notebook (24 h by 1 h). By time, then path."""

    async def query_percentiles(self, window: Window, scope: ClassScope | None = None) -> list[Percentiles]:
        """p50 and p95 of the duration per bucket, over all. By time."""

    async def query_progress(self, window: Window, scope: ClassScope | None = None) -> list[Progress]:
        """The last `learning_progress` per bucket, student and notebook. By time, student, path."""

    async def query_performance(self, window: Window, scope: ClassScope | None = None) -> list[Performance]:
        """`performance_metrics` per bucket, notebook and cell type, over all students. By time, path, cell type."""
