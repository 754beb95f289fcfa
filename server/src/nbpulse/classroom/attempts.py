"""What a learner's last runs say: errors in a row, and one mistake made again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from nbpulse.classroom.learners import RECENT_RUNS, Run

_WRONG_ANSWER: Final = "AssertionError"
_LEFT_AFTER_CELLS: Final = 3
"""Who has run so many other cells well since has left the mistake behind. Fewer are the way of an exercise: the cell
with the function runs well, the one that checks it fails."""


class Streak(msgspec.Struct, frozen=True):
    """Consecutive errors on one cell, up to now."""

    notebook_id: str
    cell_id: str
    error_count: int
    since_ms: int
    label: str
    fingerprint: str


class Repeat(msgspec.Struct, frozen=True):
    """One mistake made `count` times, not got past since; `cell_id`: where it was made last."""

    cell_id: str
    count: int
    since_ms: int
    label: str
    is_wrong_answer: bool
    """An exercise's check failed: the same check each time."""


def find_streak(recent: Sequence[Run]) -> Streak | None:
    """The errors in a row at the end of `recent`, all on one cell; an interrupt neither breaks nor adds."""
    errors: list[Run] = []
    for run in reversed(recent):
        if run.status == "interrupted":
            continue
        if run.status != "error" or (errors and _place(run) != _place(errors[0])):
            break
        errors.append(run)
    if not errors:
        return None
    newest, oldest = errors[0], errors[-1]
    return Streak(newest.notebook_id, newest.cell_id, len(errors), oldest.at_ms, newest.label, newest.fingerprint)


def find_repeats(recent: Sequence[Run]) -> tuple[Repeat, ...]:
    """
    The mistakes that were not got past since, that made most often first.

    A mistake is got past when a cell that failed by it runs well, or fails another way (a wrong answer: at another
    check), or is left for three others. Runs of other cells between do not matter.
    """
    made: dict[str, list[Run]] = {}
    left: dict[str, set[tuple[str, str]]] = {}
    for run in recent:
        is_error = run.status == "error" and bool(run.mistake)
        if not is_error and run.status != "ok":
            continue
        for mistake, runs in list(made.items()):
            if mistake == run.mistake:
                continue
            if _place(run) in map(_place, runs):
                is_past = not (is_error and _is_wrong_answer(runs[0]) and not _is_wrong_answer(run))
            else:
                left[mistake] |= set() if is_error else {_place(run)}
                is_past = len(left[mistake]) >= _LEFT_AFTER_CELLS
            if is_past:
                del made[mistake]
        if is_error:
            made.setdefault(run.mistake, []).append(run)
            left[run.mistake] = set()
    ordered = sorted(made.values(), key=lambda runs: (-len(runs), runs[0]))
    return tuple(
        Repeat(runs[-1].cell_id, len(runs), runs[0].at_ms, runs[-1].label, _is_wrong_answer(runs[0]))
        for runs in ordered
    )


def may_reach_back(recent: Sequence[Run], since_ms: int) -> bool:
    """
    Whether what `recent` shows from `since_ms` on may have begun earlier: older runs are no longer known, and those
    before it say nothing of its having been left.
    """
    before = {_place(run) for run in recent if run.at_ms < since_ms and run.status == "ok"}
    return len(recent) >= RECENT_RUNS and len(before) < _LEFT_AFTER_CELLS


def _is_wrong_answer(run: Run) -> bool:
    return run.label.split(" ", 1)[0] == _WRONG_ANSWER


def _place(run: Run) -> tuple[str, str]:
    return run.notebook_id, run.cell_id
