"""When the board says that somebody needs help: pure rules over one learner's standing and the class's pace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import msgspec

from nbpulse.classroom.care import NO_CARE, Care
from nbpulse.classroom.learners import LearnerState, Run

RANKS: Final = {"help": 0, "stuck": 1, "idle": 2, "behind": 3}
"""The kinds of alert, most urgent first."""


class AlertRules(msgspec.Struct, frozen=True):
    """When the board says that somebody needs help. Defaults are board.md's; a course may set its own."""

    connected_ms: int = 60_000
    stuck_error_count: int = 3
    stuck_after_ms: int = 60_000
    idle_after_ms: int = 300_000
    behind_ratio: float = 0.5
    behind_clear_ratio: float = 0.6
    behind_median_min: float = 4
    behind_after_ms: int = 180_000


DEFAULT_RULES = AlertRules()


class Streak(msgspec.Struct, frozen=True):
    """Consecutive errors on one cell, up to now."""

    notebook_id: str
    cell_id: str
    error_count: int
    since_ms: int
    label: str
    fingerprint: str


def find_streak(recent: tuple[Run, ...]) -> Streak | None:
    """The errors in a row at the end of `recent`, all on one cell; an interrupt neither breaks nor adds."""
    errors: list[Run] = []
    for run in reversed(recent):
        if run.status == "interrupted":
            continue
        if run.status != "error" or _is_other_cell(run, errors):
            break
        errors.append(run)
    if not errors:
        return None
    newest, oldest = errors[0], errors[-1]
    return Streak(newest.notebook_id, newest.cell_id, len(errors), oldest.at_ms, newest.label, newest.fingerprint)


def _is_other_cell(run: Run, errors: list[Run]) -> bool:
    return bool(errors) and (run.notebook_id, run.cell_id) != (errors[0].notebook_id, errors[0].cell_id)


class PassingTimes(Protocol):
    """By position: a list will do."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> int: ...


class ClassPace(msgspec.Struct, frozen=True):
    """
    Where the class stands at one instant; the rules are relative to it.

    `median` is the median position of those who have begun, None for nobody. `median_run_ms`: half of the class has run
    something since. `passing_times[p - 1]`: when half of the class had reached position p, 0 where it has not.
    """

    now_ms: int
    median: float | None
    median_run_ms: int
    passing_times: PassingTimes


class Standing(msgspec.Struct, frozen=True):
    """What the rules look at in one learner. `behind_since` comes from `find_behind`; `care`: what staff did."""

    state: LearnerState | None
    streak: Streak | None
    is_connected: bool
    active_ms: int
    behind_since: int
    care: Care = NO_CARE


class Finding(msgspec.Struct, frozen=True):
    """One rule that holds for one learner, and why."""

    kind: str
    since_ms: int
    cell_id: str | None = None
    label: str | None = None
    count: int | None = None
    text: str | None = None


def find_alerts(standing: Standing, pace: ClassPace, rules: AlertRules) -> Iterator[Finding]:
    """
    Every rule that holds now and is not quiet by what staff did; when the quiet ends and it still holds, it is there
    again. A raised hand counts whether or not its student is connected; the others do not.
    """
    hand_id = standing.state.help.request_id if standing.state is not None else ""
    for finding in _find_all(standing, pace, rules):
        if not standing.care.is_quiet(finding.kind, hand_id, pace.now_ms):
            yield finding


def _find_all(standing: Standing, pace: ClassPace, rules: AlertRules) -> Iterator[Finding]:
    state, streak, now_ms = standing.state, standing.streak, pace.now_ms
    if state is not None and state.help.is_open:
        yield Finding("help", state.help.opened_ms, cell_id=state.help.cell_id, text=state.help.text)
    if not standing.is_connected:
        return
    is_streak = streak is not None and streak.error_count >= rules.stuck_error_count
    if streak is not None and is_streak and now_ms - streak.since_ms >= rules.stuck_after_ms:
        yield Finding("stuck", streak.since_ms, streak.cell_id, streak.label, streak.error_count)
    idle_since = standing.active_ms
    if idle_since and now_ms - idle_since >= rules.idle_after_ms and pace.median_run_ms > idle_since:
        yield Finding("idle", idle_since)
    if standing.behind_since and now_ms - standing.behind_since >= rules.behind_after_ms:
        yield Finding("behind", standing.behind_since)


def find_behind(behind_since: int, position: int, pace: ClassPace, rules: AlertRules) -> int:
    """
    Since when a learner at `position` is behind: when the class's median passed twice that; 0 for not behind.

    `behind_since` is the answer of last time: leaving takes a better position than entering, so that nobody flickers.
    """
    ratio = rules.behind_clear_ratio if behind_since else rules.behind_ratio
    if pace.median is None or pace.median < rules.behind_median_min or not 0 < position < ratio * pace.median:
        return 0
    if behind_since:
        return behind_since
    passed = min(int(position / rules.behind_ratio) + 1, len(pace.passing_times))
    return pace.passing_times[passed - 1]
