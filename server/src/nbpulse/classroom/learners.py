"""What is known of one learner, folded from events in any order.

Times are milliseconds since 1970 (UTC), of the client's clock as clamped at acceptance.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from nbpulse.classroom.errorgroups import fingerprint_error, fingerprint_mistake, label_error
from nbpulse.events import ReceivedEvent

RECENT_RUNS: Final = 20
# An aborted run never started (it was queued behind a failing one): it is no attempt and no error.
FINISHED_STATUSES: Final = frozenset({"ok", "error", "interrupted", "kernel_died", "unknown"})
# What becomes of a kernel; `kernel_status` tells other things besides.
KERNEL_STATUSES: Final = frozenset({"started", "restarted", "interrupted", "stopped", "died"})


class Run(msgspec.Struct, frozen=True, array_like=True, order=True):
    """
    One finished execution in a learner's recent past; ordered by when it happened.

    `event_id`: the first 8 digits, which order the runs of one instant. `fingerprint`: the error's group on its cell.
    `mistake`: the same mistake on any cell; "" for none, and of runs stored before it was known. `duration_ms`: 0 where
    it is not collected.
    """

    at_ms: int
    sequence: int
    event_id: str
    notebook_id: str
    cell_id: str
    status: str
    label: str = ""
    fingerprint: str = ""
    mistake: str = ""
    duration_ms: int = 0


class KernelWord(msgspec.Struct, frozen=True, array_like=True, order=True):
    """The newest that was said of a learner's kernel: `status` as on the wire; "" for nothing yet."""

    at_ms: int = 0
    sequence: int = 0
    status: str = ""


class CellState(msgspec.Struct, frozen=True, array_like=True):
    """One learner's standing on one cell. `revision` counts the ledger rows folded in: the higher one is newer."""

    notebook_id: str
    cell_id: str
    cell_index: int | None
    revision: int
    attempt_count: int
    error_count: int
    last_status: str
    last_at_ms: int
    first_finished_ms: int | None


class HelpRequest(msgspec.Struct, frozen=True):
    """The learner's newest request for help, and the newest withdrawal; whichever is later holds."""

    opened_ms: int = 0
    opened_sequence: int = 0
    request_id: str = ""
    notebook_id: str | None = None
    cell_id: str | None = None
    text: str | None = None
    closed_ms: int = 0
    closed_sequence: int = 0
    closed_reason: str = ""

    @property
    def is_open(self) -> bool:
        """True while the hand is up."""
        return self.opened_ms > 0 and (self.opened_ms, self.opened_sequence) > (
            self.closed_ms,
            self.closed_sequence,
        )


class LearnerState(msgspec.Struct, frozen=True):
    """
    Everything the rules need to know of one learner in one course.

    `revision` rises by one with each transaction that changes it. `cells` holds the cells that transaction touched
    (from a snapshot: all cells of one notebook); each carries its own revision. `notebook_id`: where they worked last,
    at `notebook_at_ms`; some events name no notebook, so that is not always the last activity.
    """

    user_id: str
    course_id: str
    revision: int = 0
    last_ordinal: int = 0
    last_activity_ms: int = 0
    last_run_ms: int = 0
    notebook_id: str | None = None
    notebook_at_ms: int = 0
    recent: tuple[Run, ...] = ()
    help: HelpRequest = HelpRequest()
    kernel: KernelWord = KernelWord()
    cells: tuple[CellState, ...] = ()


def to_ms(event: ReceivedEvent) -> int:
    """When the event occurred, in ms since 1970."""
    return int(event.occurred_at.timestamp() * 1000 + 0.5)


def fold_events(state: LearnerState, events: Iterable[tuple[ReceivedEvent, UUID | None]]) -> LearnerState:
    """
    `state` after `events` (each with its course notebook's id), none of which it has seen before.

    Commutative and associative: any split and order of the same events ends in the same state (revision apart).
    Late events (over 15 min) count as history only: no run that could raise an alert, no raised hand.
    """
    recent, help_request, kernel = list(state.recent), state.help, state.kernel
    last_activity_ms, last_run_ms = state.last_activity_ms, state.last_run_ms
    place = (state.notebook_at_ms, state.notebook_id or "")
    for event, event_notebook_id in events:
        at_ms = to_ms(event)
        notebook = str(event_notebook_id) if event_notebook_id else None
        last_activity_ms = max(last_activity_ms, at_ms)
        if notebook:
            place = max(place, (at_ms, notebook))
        if event.is_late:
            continue
        if event.event_type == "cell_execution" and event.data.get("status") in FINISHED_STATUSES:
            last_run_ms = max(last_run_ms, at_ms)
            recent.append(_describe_run(event, notebook or "", at_ms))
        elif event.event_type in ("help_request", "help_cancel"):
            help_request = _merge_help(help_request, event, notebook, at_ms)
        elif event.event_type == "kernel_status" and event.data.get("status") in KERNEL_STATUSES:
            kernel = max(kernel, KernelWord(at_ms, event.sequence, event.data["status"]))
    return msgspec.structs.replace(
        state,
        recent=tuple(sorted(set(recent))[-RECENT_RUNS:]),
        help=help_request,
        kernel=kernel,
        last_activity_ms=last_activity_ms,
        last_run_ms=last_run_ms,
        notebook_id=place[1] or None,
        notebook_at_ms=place[0],
    )


def merge_states(state: LearnerState, other: LearnerState) -> LearnerState:
    """`state` of one person who was two users, as if every event of `other` had been folded into it."""
    ours, theirs = state.help, other.help
    opened = max(ours, theirs, key=lambda one: (one.opened_ms, one.opened_sequence, one.request_id))
    closed = max(ours, theirs, key=lambda one: (one.closed_ms, one.closed_sequence))
    place = max(state, other, key=lambda one: (one.notebook_at_ms, one.notebook_id or ""))
    return msgspec.structs.replace(
        state,
        recent=tuple(sorted({*state.recent, *other.recent})[-RECENT_RUNS:]),
        help=msgspec.structs.replace(
            opened,
            closed_ms=closed.closed_ms,
            closed_sequence=closed.closed_sequence,
            closed_reason=closed.closed_reason,
        ),
        kernel=max(state.kernel, other.kernel),
        last_activity_ms=max(state.last_activity_ms, other.last_activity_ms),
        last_run_ms=max(state.last_run_ms, other.last_run_ms),
        notebook_id=place.notebook_id,
        notebook_at_ms=place.notebook_at_ms,
    )


def _describe_run(event: ReceivedEvent, notebook_id: str, at_ms: int) -> Run:
    status = event.data["status"]
    failed = status == "error"
    return Run(
        at_ms=at_ms,
        sequence=event.sequence,
        event_id=event.event_id.hex[:8],
        notebook_id=notebook_id,
        cell_id=event.cell_id or "",
        status=status,
        label=label_error(event.data) if failed else "",
        fingerprint=fingerprint_error(notebook_id, event.cell_id or "", event.data) if failed else "",
        mistake=fingerprint_mistake(event.data) if failed else "",
        duration_ms=round(event.data.get("execution_duration_ms") or 0),
    )


def _merge_help(help_request: HelpRequest, event: ReceivedEvent, notebook_id: str | None, at_ms: int) -> HelpRequest:
    key = (at_ms, event.sequence)
    if event.event_type == "help_cancel":
        if key > (help_request.closed_ms, help_request.closed_sequence):
            return msgspec.structs.replace(
                help_request,
                closed_ms=at_ms,
                closed_sequence=event.sequence,
                closed_reason=event.data.get("reason", ""),
            )
        return help_request
    if (*key, event.event_id.hex) <= (
        help_request.opened_ms,
        help_request.opened_sequence,
        help_request.request_id,
    ):
        return help_request
    return msgspec.structs.replace(
        help_request,
        opened_ms=at_ms,
        opened_sequence=event.sequence,
        request_id=event.event_id.hex,
        notebook_id=notebook_id,
        cell_id=event.cell_id,
        text=event.data.get("message"),
    )


# Which events say something of a cell's standing.
RUN_EVENT_TYPES: Final = frozenset({"cell_execution", "cell_execution_start"})


class CellFold(msgspec.Struct):
    """What new events add to one learner's cell; the store adds it to what it holds, in any order."""

    course_id: UUID
    cell_index: int | None
    revision: int
    attempt_count: int
    error_count: int
    last_status: str
    last_at: datetime
    last_sequence: int
    last_ok_at: datetime | None = None
    first_finished_at: datetime | None = None
    exercise_id: str | None = None
    """Of several the last by name, so that order never decides."""


def fold_cells(news: Iterable[tuple[ReceivedEvent, UUID]]) -> dict[tuple[UUID, UUID, str], CellFold]:
    """New events (each with its notebook's id) added up per (user_id, notebook_id, cell_id); aborted runs left out."""
    folds: dict[tuple[UUID, UUID, str], CellFold] = {}
    for event, notebook_id in news:
        if event.event_type not in RUN_EVENT_TYPES or not event.cell_id:
            continue
        is_finished = event.event_type == "cell_execution"
        status = event.data.get("status", "unknown") if is_finished else "running"
        if status == "aborted":
            continue
        key = (event.user_id, notebook_id, event.cell_id)
        fold = folds.get(key)
        if fold is None:
            fold = folds[key] = CellFold(
                event.course_id, event.cell_index, 0, 0, 0, status, event.occurred_at, event.sequence
            )
        elif (event.occurred_at, event.sequence, is_finished, status) >= (
            fold.last_at,
            fold.last_sequence,
            fold.last_status != "running",
            fold.last_status,
        ):
            fold.last_status, fold.last_at, fold.last_sequence = status, event.occurred_at, event.sequence
            fold.cell_index = event.cell_index
        fold.revision += 1
        fold.exercise_id = max(fold.exercise_id or "", event.exercise_id or "") or None
        if is_finished:
            fold.attempt_count += 1
            fold.error_count += status == "error"
            fold.first_finished_at = min(fold.first_finished_at or event.occurred_at, event.occurred_at)
            if status == "ok":
                fold.last_ok_at = max(fold.last_ok_at or event.occurred_at, event.occurred_at)
    return folds
