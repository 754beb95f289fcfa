"""The life of each run of one kernel, as a Jupyter server sees it: KernelRuns. Pure: no clock, no disk, no Jupyter.

    submitted -> running -> ok | error | interrupted | kernel_died | unknown
              -> aborted

A run is known by its request's msg_id. It is submitted where the request was seen (the websocket; not with
server-side execution), runs from the kernel's `execute_input` on, and ends at the kernel's `idle`. What never began
to run and ends is `aborted`: the kernel had it in its queue when another run failed, or when the kernel went.

Promises: whatever is observed in whatever order, a run starts at most once, ends at most once, and never starts
after it has ended; what only repeats or comes too late changes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

REMEMBERED_COUNT = 512
OPEN_LIMIT = 10_000

Ending = Literal["interrupted", "kernel_died", "unknown"]


@dataclass(slots=True)
class SeenRun:
    """One run as far as it has been seen."""

    msg_id: str
    cell: dict[str, Any] = field(default_factory=dict)
    marks: dict[str, Any] = field(default_factory=dict)
    started_at: datetime | None = None
    execution_count: int | None = None
    error: dict[str, Any] = field(default_factory=dict)
    told_by_kernel: dict[str, Any] = field(default_factory=dict)
    output_bytes: int = 0
    source: str = ""
    output: str = ""
    was_interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """The run has begun; its start is told now."""

    run: SeenRun


@dataclass(frozen=True, slots=True)
class Ended:
    """The run has ended; `duration_ms` is None where it never ran or nobody saw it end."""

    run: SeenRun
    at: datetime
    status: str
    duration_ms: float | None


class KernelRuns:
    """The open runs of one kernel."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, SeenRun] = OrderedDict()
        self._done: OrderedDict[str, None] = OrderedDict()  # ended, or never to be counted

    @property
    def open_count(self) -> int:
        """How many runs have been submitted or have begun, and have not ended."""
        return len(self._open)

    @property
    def is_running(self) -> bool:
        """Whether one of them has begun."""
        return any(run.started_at is not None for run in self._open.values())

    @property
    def first_id(self) -> str | None:
        """The open run that was submitted first."""
        return next(iter(self._open), None)

    def ignore(self, msg_id: str) -> None:
        """This request is no student's run: nothing of it is told."""
        self._open.pop(msg_id, None)
        self._remember(msg_id)

    def submit(self, msg_id: str, cell: dict[str, Any], marks: dict[str, Any]) -> None:
        """A request on its way to the kernel: the cell's part of the envelope, and what else is written in the cell."""
        if msg_id in self._done:
            return
        if (run := self._open.get(msg_id)) is not None:  # the kernel was quicker than we
            run.cell, run.marks = run.cell or cell, run.marks or marks
        elif len(self._open) < OPEN_LIMIT:
            self._open[msg_id] = SeenRun(msg_id, cell, marks)

    def begin(self, msg_id: str, at: datetime, execution_count: int | None) -> list[Started]:
        """The kernel begins with it (`execute_input`)."""
        if msg_id in self._done:
            return []
        run = self._open.setdefault(msg_id, SeenRun(msg_id))
        if run.started_at is not None:
            return []
        run.started_at, run.execution_count = at, execution_count
        return [Started(run)]

    def begin_late(self, msg_id: str, ended_at: datetime) -> list[Started]:
        """
        It has ended, and its beginning was not heard: what a kernel publishes before it is listened to is lost.

        Only a run has an outcome, an error or output of its own; a request that never ran is left as it is.
        """
        run = self._open.get(msg_id)
        if run is None or run.started_at is not None or not (run.told_by_kernel or run.error or run.output_bytes):
            return []
        count = run.told_by_kernel.get("execution_count")
        began_at = ended_at - timedelta(milliseconds=_measure_ms(run, ended_at))
        return self.begin(msg_id, began_at, count if isinstance(count, int) else None)

    def note_error(self, msg_id: str, error: Mapping[str, Any]) -> None:
        """The kernel shows an error."""
        if (run := self._open.get(msg_id)) is not None:
            run.error = dict(error)

    def note_output(self, msg_id: str, size_bytes: int, shown: str = "") -> None:
        """The kernel shows something."""
        if (run := self._open.get(msg_id)) is not None:
            run.output_bytes += size_bytes
            run.output = shown

    def note_told(self, msg_id: str, told: Mapping[str, Any]) -> None:
        """What the extension inside the kernel says of the run."""
        if (run := self._open.get(msg_id)) is not None:
            run.told_by_kernel = dict(told)

    def note_interrupt(self) -> None:
        """The student asked to stop what is running."""
        for run in self._open.values():
            run.was_interrupted = run.started_at is not None

    def has(self, msg_id: str) -> bool:
        """Whether this run is open."""
        return msg_id in self._open

    def finish(self, msg_id: str, at: datetime) -> list[Ended]:
        """The kernel has done with the request (`idle`)."""
        run = self._open.pop(msg_id, None)
        if run is None:
            return []
        self._remember(msg_id)
        if run.started_at is None:
            return [Ended(run, at, "aborted", None)]
        return [Ended(run, at, judge(run), _measure_ms(run, at))]

    def close(self, ending: Ending, at: datetime) -> list[Ended]:
        """The kernel is gone, restarted or out of sight: every open run ends, the queued ones as `aborted`."""
        ended = []
        for msg_id, run in list(self._open.items()):
            del self._open[msg_id]
            self._remember(msg_id)
            status = ending if run.started_at is not None else "aborted"
            duration_ms = _measure_ms(run, at) if run.started_at is not None and ending == "interrupted" else None
            ended.append(Ended(run, at, status, duration_ms))
        return ended

    def _remember(self, msg_id: str) -> None:
        self._done[msg_id] = None
        while len(self._done) > REMEMBERED_COUNT:
            self._done.popitem(last=False)


def judge(run: SeenRun) -> str:
    """
    ok, error or interrupted.

    The kernel's own word comes first. An interrupt may end a run without any `error` message (seen on Python 3.11), so
    an interrupted run that shows no other error counts as interrupted.
    """
    told = run.told_by_kernel.get("status")
    if told in {"ok", "error", "interrupted"}:
        return str(told)
    if run.error.get("error_name") in {"KeyboardInterrupt", "CancelledError"}:
        return "interrupted"
    if run.error:
        return "error"
    return "interrupted" if run.was_interrupted else "ok"


def _measure_ms(run: SeenRun, at: datetime) -> float:
    told = run.told_by_kernel.get("execution_duration_ms")
    if isinstance(told, int | float) and not isinstance(told, bool) and told >= 0:
        return float(told)
    return max(0.0, round((at - (run.started_at or at)).total_seconds() * 1000, 3))
