"""When the board says that somebody needs help: pure rules over one learner's standing and the class's pace."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final, Protocol

import msgspec

from nbpulse.classroom.attempts import Repeat, Streak
from nbpulse.classroom.care import NO_CARE, Care
from nbpulse.classroom.learners import LearnerState
from nbpulse.errors import InvalidInput

URGENCY: Final = {
    "help": 4,
    "stuck": 2,
    "wrong_answer": 2,
    "same_error": 2,
    "long_run": 2,
    "no_progress": 1,
    "idle": 1,
    "not_started": 1,
    "behind": 1,
}
"""The kinds of alert, most urgent first; a minute of waiting counts so many times (docs/decisions/0036)."""
HEAD_START_MS: Final = 120_000
"""A raised hand counts as waiting longer by so much: other kinds are found only after minutes."""
STATUS_OF: Final = {
    "help": "help",
    "stuck": "stuck",
    "wrong_answer": "stuck",
    "same_error": "stuck",
    "long_run": "stuck",
    "no_progress": "stuck",
    "idle": "idle",
    "not_started": "behind",
    "behind": "behind",
}
"""What a learner with that alert is counted as."""
HERE: Final = (*dict.fromkeys(STATUS_OF.values()), "ok")
NOT_HERE: Final = ("paused", "offline")
STATUSES: Final = HERE + NOT_HERE
"""What a learner is counted as, the most urgent first; there is no other. Of HERE one says that they are here."""
_ERROR_KINDS: Final = frozenset({"stuck", "wrong_answer", "same_error"})
_MISSED_STEPS: Final = 2
"""The class has gone on by so many cells without somebody who makes no progress."""
_AT_WORK_MS: Final = 120_000
_BEGUN_POSITION: Final = 2
"""A class whose median is here has begun."""


class AlertRules(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """
    When the board says that somebody needs help. What a course leaves out is as here.

    `off`: kinds of alert that are not raised, and `cell_hot`; a raised hand always is. Ratios: behind of the class's
    median position, 0..1; `long_run_ratio` of the 95th percentile of the cell's running times in the class;
    hot of those who tried;
    `no_progress_ratio` of the learner's own median time on a cell.
    """

    off: tuple[str, ...] = ()
    stuck_error_count: int = 3
    stuck_after_ms: int = 90_000
    same_error_count: int = 3
    same_error_after_ms: int = 90_000
    wrong_answer_count: int = 3
    wrong_answer_after_ms: int = 90_000
    long_run_after_ms: int = 60_000
    long_run_ratio: float = 10
    no_progress_after_ms: int = 480_000
    no_progress_ratio: float = 2.5
    idle_after_ms: int = 300_000
    not_started_after_ms: int = 300_000
    behind_ratio: float = 0.4
    behind_clear_ratio: float = 0.5
    behind_median_min: float = 8
    behind_after_ms: int = 180_000
    hot_ratio: float = 0.2
    hot_clear_ratio: float = 0.1
    hot_tried_min: int = 8


DEFAULT_RULES: Final = AlertRules()
CONNECTED_MS: Final = 60_000
COOLDOWN_MS: Final = 60_000
"""Whose alert has just cleared is left alone for so long, whatever else holds; a raised hand is not."""
KINDS_OFF: Final = frozenset({*URGENCY, "cell_hot"} - {"help"})
"""What a course can switch off."""
LIMITS: Final[Mapping[str, tuple[float, float]]] = {
    "stuck_error_count": (2, 15),
    "stuck_after_ms": (0, 1_800_000),
    "same_error_count": (2, 15),
    "same_error_after_ms": (0, 1_800_000),
    "wrong_answer_count": (2, 15),
    "wrong_answer_after_ms": (0, 1_800_000),
    "long_run_after_ms": (5_000, 7_200_000),
    "long_run_ratio": (1, 1_000),
    "no_progress_after_ms": (60_000, 7_200_000),
    "no_progress_ratio": (1, 100),
    "idle_after_ms": (60_000, 7_200_000),
    "not_started_after_ms": (60_000, 7_200_000),
    "behind_ratio": (0.05, 0.95),
    "behind_clear_ratio": (0.05, 1),
    "behind_median_min": (1, 100),
    "behind_after_ms": (0, 7_200_000),
    "hot_ratio": (0.05, 1),
    "hot_clear_ratio": (0, 0.95),
    "hot_tried_min": (2, 1_000),
}
"""Of each number the least and the most. Counts end at 15: of a learner the last 20 runs are known."""


def check_rules(rules: AlertRules) -> AlertRules:
    """
    `rules` with `off` sorted and once each.

    Raises InvalidInput: a number beyond its limits (NB-1250), a kind that cannot be off (NB-1251), a rule that would be
    left before it is entered (NB-1252).
    """
    for name, (least, most) in LIMITS.items():
        value = getattr(rules, name)
        if not least <= value <= most:  # NaN is not either
            raise InvalidInput("NB-1250", field=name, value=value, least=least, most=most)
    if unknown := set(rules.off) - KINDS_OFF:
        raise InvalidInput("NB-1251", names=", ".join(sorted(unknown))[:200], known=", ".join(sorted(KINDS_OFF)))
    for low, high in (("behind_ratio", "behind_clear_ratio"), ("hot_clear_ratio", "hot_ratio")):
        if getattr(rules, low) >= getattr(rules, high):
            raise InvalidInput("NB-1252", field=low, other=high)
    return msgspec.structs.replace(rules, off=tuple(sorted(set(rules.off))))


class PassingTimes(Protocol):
    """By position: a list will do."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> int: ...


class ClassPace(msgspec.Struct, frozen=True):
    """
    Where the class stands at one instant; the rules are relative to it.

    `median` is the median position of those who have begun, None for nobody. `median_run_ms`: half of the class has run
    something since. `passing_times[p - 1]`: when half of the class had reached position p, 0 where it has not.
    `step_ms[p]`: three quarters of the class came from the cell before to that at position p in so long or less;
    `run_ms[cell_id]`: 95 of 100 runs of it took so long or less. Both lack what too few have done.
    """

    now_ms: int
    median: float | None
    median_run_ms: int
    passing_times: PassingTimes
    step_ms: Mapping[int, float] = {}
    run_ms: Mapping[str, float] = {}


class Standing(msgspec.Struct, frozen=True):
    """
    What the rules look at in one learner. `behind_since` comes from `find_behind`; `care`: what staff did.

    `running`: the cell that runs and since when. `frontier`: the furthest position that runs well, and since when; 0, 0
    for none; `is_done`: there is none further. `own_step_ms`: their own time on a cell, 0 where too few are known.
    `connected_ms`: since when they are connected, where that was seen. `held`: kind, begin and cell of what was found
    last time, which goes less easily than it came. `calm_until_ms`: the end of their cooldown.
    """

    state: LearnerState | None
    streak: Streak | None
    is_connected: bool
    active_ms: int
    behind_since: int
    care: Care = NO_CARE
    repeats: tuple[Repeat, ...] = ()
    running: tuple[str, int] | None = None
    position: int = 0
    is_done: bool = False
    own_step_ms: float = 0
    frontier: tuple[int, int] = (0, 0)
    connected_ms: int = 0
    held: frozenset[tuple[str, int, str | None]] = frozenset()
    calm_until_ms: int = 0


class Finding(msgspec.Struct, frozen=True):
    """One rule that holds for one learner, and why. `typical_ms`: what the class takes for it, where that is known."""

    kind: str
    since_ms: int
    cell_id: str | None = None
    label: str | None = None
    count: int | None = None
    text: str | None = None
    typical_ms: int | None = None


def find_alerts(standing: Standing, pace: ClassPace, rules: AlertRules) -> Iterator[Finding]:
    """
    What holds now and is not quiet by what staff did; when the quiet ends and it still holds, it is there again. Beside
    a raised hand that is the one rule that says most: who is stuck makes no progress and falls behind too.

    A raised hand counts whether or not its student is connected; the others do not.
    """
    hand_id = standing.state.help.request_id if standing.state is not None else ""
    for finding in _find_all(standing, pace, rules):
        if not standing.care.is_quiet(finding.kind, hand_id, pace.now_ms):
            yield finding


def _find_all(standing: Standing, pace: ClassPace, rules: AlertRules) -> Iterator[Finding]:
    state = standing.state
    if state is not None and state.help.is_open:
        yield Finding("help", state.help.opened_ms, cell_id=state.help.cell_id, text=state.help.text)
    if not standing.is_connected or pace.now_ms < standing.calm_until_ms:
        return
    kinds = (_find_long_run, _find_errors, _find_idle, _find_no_progress, _find_behind)
    found = (finding for find in kinds for finding in find(standing, pace, rules))
    yield from islice((finding for finding in found if finding.kind not in rules.off), 1)


def _find_errors(standing: Standing, pace: ClassPace, rules: AlertRules) -> Iterator[Finding]:
    for one in standing.repeats:
        lasts = pace.now_ms - one.since_ms >= rules.wrong_answer_after_ms
        if one.is_wrong_answer and lasts and one.count >= rules.wrong_answer_count:
            yield _keep_begin("wrong_answer", one, one.count, standing)
    streak = standing.streak
    is_streak = streak is not None and streak.error_count >= rules.stuck_error_count
    if streak is not None and is_streak and pace.now_ms - streak.since_ms >= rules.stuck_after_ms:
        yield _keep_begin("stuck", streak, streak.error_count, standing)
    for one in standing.repeats:
        lasts = pace.now_ms - one.since_ms >= rules.same_error_after_ms
        if not one.is_wrong_answer and lasts and one.count >= rules.same_error_count:
            yield _keep_begin("same_error", one, one.count, standing)


def _keep_begin(kind: str, found: Repeat | Streak, count: int, standing: Standing) -> Finding:
    """Of a learner only the last runs are known: what was found before on that cell began when it did then."""
    begins = [since_ms for held, since_ms, cell in standing.held if held in _ERROR_KINDS and cell == found.cell_id]
    return Finding(kind, min([found.since_ms, *begins]), found.cell_id, found.label, count)


def _find_long_run(standing: Standing, pace: ClassPace, rules: AlertRules) -> Iterator[Finding]:
    if standing.running is None:
        return
    cell_id, since_ms = standing.running
    typical_ms = pace.run_ms.get(cell_id, 0)
    ran_ms = pace.now_ms - since_ms
    is_held = ("long_run", since_ms, cell_id) in standing.held  # it runs still, so it cannot have become shorter
    if is_held or ran_ms >= max(rules.long_run_after_ms, rules.long_run_ratio * typical_ms):
        yield Finding("long_run", since_ms, cell_id, typical_ms=round(typical_ms) or None)


def _find_idle(standing: Standing, pace: ClassPace, rules: AlertRules) -> Iterator[Finding]:
    since_ms = standing.active_ms
    if standing.is_done or standing.state is None or not standing.state.last_run_ms:
        return  # who has run nothing has not started
    if since_ms and pace.now_ms - since_ms >= rules.idle_after_ms and pace.median_run_ms > since_ms:
        yield Finding("idle", since_ms)


def _find_no_progress(standing: Standing, pace: ClassPace, rules: AlertRules) -> Iterator[Finding]:
    """Time counts from the class's first step without them: when all listen to the teacher, nobody is late."""
    position, since_ms = standing.frontier
    is_held = ("no_progress", since_ms, None) in standing.held
    usual_ms = max(rules.no_progress_after_ms, rules.no_progress_ratio * standing.own_step_ms)
    limit_ms = 0 if is_held else usual_ms if _count_errors(standing.state, since_ms) >= 2 else 2 * usual_ms
    if not position or pace.now_ms - since_ms < limit_ms:
        return
    times = pace.passing_times
    reached = bisect_left(range(len(times)), 1, key=lambda place: int(times[place] == 0))
    missed = bisect_right(range(reached), since_ms, lo=min(position, reached), key=times.__getitem__)
    if reached - missed < _MISSED_STEPS:
        return
    typical_ms = pace.step_ms.get(position + 1, 0)
    if pace.now_ms - max(since_ms, times[missed]) >= limit_ms:
        yield Finding("no_progress", since_ms, typical_ms=round(typical_ms) or None)


def _count_errors(state: LearnerState | None, since_ms: int) -> int:
    return sum(run.status == "error" and run.at_ms > since_ms for run in state.recent) if state else 0


def _find_behind(standing: Standing, pace: ClassPace, rules: AlertRules) -> Iterator[Finding]:
    """Who comes late has twice as much time to catch up as they are late."""
    begun_ms = pace.passing_times[0] if len(pace.passing_times) else 0
    late_ms = max(0, standing.connected_ms - begun_ms) if begun_ms else 0
    since_ms = standing.behind_since
    if since_ms and pace.now_ms - max(since_ms, standing.connected_ms + 2 * late_ms) >= rules.behind_after_ms:
        yield Finding("behind", since_ms)
    is_at_work = pace.now_ms - standing.active_ms < _AT_WORK_MS
    if standing.position or is_at_work or not begun_ms or (pace.median or 0) < _BEGUN_POSITION:
        return
    if pace.now_ms - max(begun_ms, standing.connected_ms) >= rules.not_started_after_ms:
        yield Finding("not_started", begun_ms)


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
