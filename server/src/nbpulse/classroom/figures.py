"""What the class's charts show: the cell funnel, times on cells, exercises, the progress curve, runs and errors.

Each chart is a list of entries whose first number is its key (a column, or a time in ms), in the order of the keys, so
that a board can be sent only the entries that changed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Final, NamedTuple

from nbpulse.classroom.learners import CellState

TREND_STEP_MS: Final = 30_000
TREND_STEPS: Final = 120
CURVE_STEP_MS: Final = 60_000
CURVE_STEPS: Final = 180
BREAK_MS: Final = 1_800_000
"""Who did nothing for longer was away: that is no time on a cell."""

_OUTCOMES: Final = {"running": 0, "ok": 1}

Entry = list[int | None]
Chart = list[Entry]


class Passage(NamedTuple):
    """One learner on one cell: how its last run went, and the time it took them, None where that is not known."""

    place: int
    outcome: int
    """0 running, 1 ok, 2 anything else."""
    last_at_ms: int
    spent_s: int | None


class Way:
    """One learner's way through the notebook, and how much they ran in each step of the trend."""

    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self._reached_ms: list[int] = []
        self._positions: list[int] = []
        self.runs: dict[int, tuple[int, int]] = {}
        """step -> (runs, those of them that ended in an error); a step's number is its start in ms / TREND_STEP_MS"""

    def lay(self, cells: Iterable[CellState], places: Mapping[str, int]) -> None:
        """
        Take the learner's cells in anew; those without a column are no part of the way.

        The time on a cell goes from the end of the one before (in time, not in place) to its own last run, or to the
        first run of the next where it was run again after that. So the times of one learner never overlap.
        """
        known = [
            (cell.first_finished_ms or cell.last_at_ms, places[cell.cell_id], cell)
            for cell in cells
            if cell.cell_id in places
        ]
        known.sort(key=lambda one: one[:2])
        following: list[int | None] = []
        next_ms: int | None = None
        for _, _, cell in reversed(known):
            following.append(next_ms)
            next_ms = cell.first_finished_ms or next_ms
        self.passages, self._reached_ms, self._positions = [], [], []
        left_ms, position = 0, 0
        for (_, place, cell), then_ms in zip(known, reversed(following), strict=True):
            first_ms, spent_s = cell.first_finished_ms, None
            if first_ms is not None:
                until_ms = max(first_ms, min(cell.last_at_ms, then_ms or cell.last_at_ms))
                if left_ms and until_ms - left_ms <= BREAK_MS:
                    spent_s = max(0, until_ms - left_ms) // 1000
                left_ms = until_ms
                if place + 1 > position:
                    position = place + 1
                    self._reached_ms.append(first_ms)
                    self._positions.append(position)
            self.passages.append(Passage(place, _OUTCOMES.get(cell.last_status, 2), cell.last_at_ms, spent_s))

    @property
    def position(self) -> int:
        """The furthest column (from 1) with a finished run; 0 for none."""
        return self._positions[-1] if self._positions else 0

    def find_reached_ms(self, position: int) -> int:
        """When they were at that position (1 to their own) or further for the first time."""
        return self._reached_ms[bisect_left(self._positions, position)]

    def note_runs(self, at_ms: int, runs: int, errors: int) -> None:
        """So many more runs ended about then."""
        step = at_ms // TREND_STEP_MS
        before = self.runs.get(step, (0, 0))
        self.runs[step] = before[0] + runs, before[1] + errors

    def forget_runs(self, before_step: int) -> None:
        """Older ones are no longer shown."""
        self.runs = {step: count for step, count in self.runs.items() if step >= before_step}

    def find_position(self, at_ms: int) -> int:
        """The furthest column (from 1) reached by then; 0 for none."""
        passed = bisect_right(self._reached_ms, at_ms)
        return self._positions[passed - 1] if passed else 0

    def find_progress_since(self, at_ms: int) -> int | None:
        """When they got further for the first time since then; None for not at all."""
        place = bisect_right(self._reached_ms, at_ms)
        return self._reached_ms[place] if place < len(self._reached_ms) else None


class PassingTimes:
    """For each position p (at p - 1) when half of the learners had reached it; 0 where they have not. Few are asked."""

    def __init__(self, ways: Iterable[Way], width: int) -> None:
        self._begun = [way for way in ways if way.position]
        self._width = width
        self._known: dict[int, int] = {}

    def __len__(self) -> int:
        return self._width

    def __getitem__(self, place: int) -> int:
        if place not in self._known:
            times = sorted(way.find_reached_ms(place + 1) for way in self._begun if way.position > place)
            half = (len(self._begun) + 1) // 2
            self._known[place] = times[half - 1] if half and len(times) >= half else 0
        return self._known[place]


def draw_funnel(ways: Iterable[Way], width: int, since_ms: int = 0) -> Chart:
    """
    Of each column: [column, reached, ok, error, and of the seconds on it the 25th, 50th, 75th and 90th percentile].

    `reached`: learners who ran it or a later one; `ok`, `error`: whose last run of it ended so. Only what was run since
    `since_ms` counts. Percentiles are of those who have run it, None where nobody's time is known.
    """
    counts = [[0, 0, 0] for _ in range(width)]
    spent: list[list[int]] = [[] for _ in range(width)]
    for way in ways:
        furthest = -1
        for place, outcome, last_at_ms, spent_s in way.passages:
            if last_at_ms < since_ms:
                continue
            furthest = max(furthest, place)
            if outcome:
                counts[place][outcome] += 1
            if spent_s is not None:
                spent[place].append(spent_s)
        if furthest >= 0:
            counts[furthest][0] += 1
    for place in range(width - 2, -1, -1):
        counts[place][0] += counts[place + 1][0]
    return [[place, *counts[place], *_find_quantiles(sorted(spent[place]))] for place in range(width)]


def _find_quantiles(ordered: Sequence[int]) -> Entry:
    if not ordered:
        return [None] * 4
    return [ordered[ceil(part * len(ordered)) - 1] for part in (0.25, 0.5, 0.75, 0.9)]


def draw_exercises(ways: Iterable[Way], exercises: Mapping[int, str], since_ms: int = 0) -> list[list[object]]:
    """
    Of each exercise in the notebook's order: [its id, learners who began it, learners who have done it].

    `exercises`: of each column that belongs to one. Done is whose last run among its cells went well.
    """
    found: dict[str, list[int]] = {name: [0, 0] for _, name in sorted(exercises.items())}
    for way in ways if found else ():
        newest: dict[str, Passage] = {}
        for one in way.passages:
            name = exercises.get(one.place)
            if name is None or one.last_at_ms < since_ms:
                continue
            if name not in newest or newest[name].last_at_ms <= one.last_at_ms:
                newest[name] = one
        for name, last in newest.items():
            found[name][0] += 1
            found[name][1] += last.outcome == 1
    return [[name, *counts] for name, counts in found.items()]


def find_curve_start(ways: Iterable[Way], meeting_ms: int, now_ms: int) -> int:
    """The minute the progress curve begins with: the meeting's, or that of the first new cell in the last 3 hours."""
    horizon_ms = now_ms - CURVE_STEPS * CURVE_STEP_MS
    if meeting_ms > horizon_ms:
        start_ms = min(meeting_ms, now_ms)
    else:
        start_ms = min((ms for way in ways if (ms := way.find_progress_since(horizon_ms)) is not None), default=now_ms)
    return start_ms // CURVE_STEP_MS * CURVE_STEP_MS


def draw_curve(ways: Sequence[Way], start_ms: int, now_ms: int) -> Chart:
    """For the end of each minute from `start_ms` to the present one: [its start, quartiles of the positions], begun."""
    return [
        [at_ms, *_find_quartiles(way.find_position(min(at_ms + CURVE_STEP_MS, now_ms)) for way in ways)]
        for at_ms in range(start_ms, now_ms + 1, CURVE_STEP_MS)
    ]


def _find_quartiles(positions: Iterable[int]) -> Entry:
    ordered = sorted(one for one in positions if one)
    return _find_quantiles(ordered)[:3] if ordered else [0, 0, 0]


def draw_trend(ways: Iterable[Way], now_ms: int) -> Chart:
    """For each half minute of the last hour, the present one included: [its start, runs, errors among them]."""
    newest = now_ms // TREND_STEP_MS
    counts = [[0, 0] for _ in range(TREND_STEPS)]
    for way in ways:
        for step, (runs, errors) in way.runs.items():
            if 0 <= (age := newest - step) < TREND_STEPS:
                counts[-1 - age][0] += runs
                counts[-1 - age][1] += errors
    first = newest - TREND_STEPS + 1
    return [[(first + place) * TREND_STEP_MS, *count] for place, count in enumerate(counts)]


def find_difference(before: Chart, after: Chart) -> Chart | None:
    """The entries of `after` that a board which shows `before` must hear of; None where it needs the whole chart."""
    if len(after) < len(before) or any(old[0] != new[0] for old, new in zip(before, after, strict=False)):
        return None
    changed = [new for old, new in zip(before, after, strict=False) if old != new]
    return changed + after[len(before) :]
