"""The class's charts as its boards have been told of them: drawn once a second at most, sent as what changed."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from nbpulse.classroom.entries import Column
from nbpulse.classroom.figures import (
    CURVE_STEP_MS,
    TREND_STEP_MS,
    TREND_STEPS,
    Chart,
    Way,
    draw_curve,
    draw_exercises,
    draw_funnel,
    draw_trend,
    find_curve_start,
    find_difference,
)

DRAW_MS: Final = 1_000
AGO_MS: Final = 300_000
AGO_LEAST_MS: Final = 60_000
# The whole chart's name in a snapshot, and of its changed entries in a frame.
_DELTAS: Final = {"funnel": "f", "trend": "x", "curve": "q"}


class Charts:
    """Not safe for use from several threads."""

    def __init__(self) -> None:
        self._width = 0
        self._exercise_of: dict[int, str] = {}
        self._drawn_ms = 0
        self._is_worn = True
        self._shown: dict[str, Chart] = {name: [] for name in _DELTAS}
        self._told = dict(self._shown)
        self._exercises: list[list[object]] = []
        self._ago: dict[str, object] | None = None
        self._others_told: tuple[object, object] = ([], None)
        self._past: deque[tuple[int, Mapping[str, int]]] = deque()

    def wear(self) -> None:
        """Something the charts show is not as it was."""
        self._is_worn = True

    def set_columns(self, columns: Sequence[Column]) -> None:
        """The notebook's cells that make columns, in their order."""
        self._width = len(columns)
        self._exercise_of = {place: one.exercise for place, one in enumerate(columns) if one.exercise}
        self._drawn_ms, self._is_worn = 0, True

    def draw(self, ways: Sequence[Way], counts: Mapping[str, int], meeting_ms: int, now_ms: int) -> None:
        """The charts as of now, where a second has passed since they were drawn last."""
        if 0 <= now_ms - self._drawn_ms < DRAW_MS:
            return
        is_new_step = now_ms // TREND_STEP_MS != self._drawn_ms // TREND_STEP_MS
        is_new_minute = now_ms // CURVE_STEP_MS != self._drawn_ms // CURVE_STEP_MS
        if is_new_step:
            for way in ways:
                way.forget_runs(now_ms // TREND_STEP_MS - TREND_STEPS)
            self._remember(counts, now_ms)
        if self._is_worn or is_new_step:
            self._shown["trend"] = draw_trend(ways, now_ms)
        if self._is_worn:
            self._shown["funnel"] = draw_funnel(ways, self._width)
            self._exercises = draw_exercises(ways, self._exercise_of)
        if is_new_minute:  # what came late changes earlier minutes too: that is looked after once a minute
            self._shown["curve"] = draw_curve(ways, find_curve_start(ways, meeting_ms, now_ms), now_ms)
        elif self._is_worn:
            newest_ms = now_ms // CURVE_STEP_MS * CURVE_STEP_MS
            self._shown["curve"] = self._shown["curve"][:-1] + draw_curve(ways, newest_ms, now_ms)
        self._drawn_ms, self._is_worn = now_ms, False

    def draw_part(self, ways: Sequence[Way], since_ms: int, meeting_ms: int, now_ms: int) -> dict[str, object]:
        """Charts of some learners, of what was run since `since_ms` (0: for ever); the class's own stay as they are."""
        start_ms = max(find_curve_start(ways, meeting_ms, now_ms), since_ms // CURVE_STEP_MS * CURVE_STEP_MS)
        return {
            "funnel": draw_funnel(ways, self._width, since_ms),
            "trend": draw_trend(ways, now_ms),
            "curve": draw_curve(ways, start_ms, now_ms),
            "exercises": draw_exercises(ways, self._exercise_of, since_ms),
        }

    def snapshot(self) -> dict[str, object]:
        """
        The charts as last drawn, and `ago`: the counters as they were about 5 minutes ago ({"at", "counts"}), or as
        long ago as they have been looked at; None for less than a minute.
        """
        return {**self._shown, "exercises": self._exercises, "ago": self._ago}

    def take_changes(self) -> dict[str, object]:
        """What differs since the last call, as part of a frame's body."""
        body: dict[str, object] = {}
        for name, delta in _DELTAS.items():
            told, shown = self._told[name], self._shown[name]
            if told is shown or told == shown:
                continue
            difference = find_difference(told, shown)
            body[name if difference is None else delta] = shown if difference is None else difference
        self._told = dict(self._shown)
        exercises, ago = self._others_told
        if exercises != self._exercises:
            body["exercises"] = self._exercises
        if ago != self._ago:
            body["ago"] = self._ago
        self._others_told = (self._exercises, self._ago)
        return body

    def _remember(self, counts: Mapping[str, int], now_ms: int) -> None:
        while self._past and now_ms - self._past[0][0] > AGO_MS - TREND_STEP_MS:
            self._past.popleft()
        self._past.append((now_ms, counts))
        at_ms, before = self._past[0]
        self._ago = {"at": at_ms, "counts": before} if now_ms - at_ms >= AGO_LEAST_MS else None
