"""What a class's runs say of its cells: how long each takes, and which of them fails too many (the banner)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Final

import msgspec

from nbpulse.classroom.errorgroups import ErrorGroups, fingerprint_cell
from nbpulse.classroom.figures import Way
from nbpulse.classroom.learners import CellState, LearnerState, Run
from nbpulse.classroom.rules import AlertRules

KNOWN_MIN: Final = 5
"""Of fewer values no percentile is made."""
_DEAD: Final = frozenset({"died", "stopped", "restarted", "started"})


class HotCell(msgspec.Struct, frozen=True):
    """
    A cell that fails too many: `failed` of the `tried` students stand in error on it, the first of these `since`. `fp`:
    what it is muted by.
    """

    cell: str
    failed: int
    tried: int
    since: int
    fp: str


class Times(msgspec.Struct, frozen=True):
    """`step_ms` and `run_ms` of a ClassPace."""

    step_ms: Mapping[int, float] = {}
    run_ms: Mapping[str, float] = {}


def pick_quantile(values: list[int], share: float) -> float:
    """The value that `share` (0..1) of them do not exceed; one of them, never a mean. Sorts `values`, at least one."""
    values.sort()
    return values[min(len(values) - 1, int(share * len(values)))]


def find_running(state: LearnerState, cells: Iterable[CellState]) -> tuple[str, int] | None:
    """The cell that runs and since when; a kernel runs one at a time, so what ended or died later has ended it."""
    running = max(((cell.last_at_ms, cell.cell_id) for cell in cells if cell.last_status == "running"), default=None)
    if running is None or running[0] < state.last_run_ms:
        return None
    if state.kernel.status in _DEAD and state.kernel.at_ms > running[0]:
        return None
    return running[1], running[0]


def is_kernel_dead(state: LearnerState) -> bool:
    """Whether the last that was heard of the kernel is that it died."""
    if state.kernel.status != "died":
        return False
    return not any(run.at_ms > state.kernel.at_ms and run.status != "kernel_died" for run in state.recent)


def find_frontier(cells: Iterable[CellState], places: Mapping[str, int]) -> tuple[int, int]:
    """The furthest position (1-based) whose cell runs well, and since when in ms; 0, 0 for none."""
    best = (0, 0)
    for cell in cells:
        place = places.get(cell.cell_id)
        if place is not None and cell.last_status == "ok" and place + 1 > best[0]:
            first = cell.first_finished_ms or cell.last_at_ms
            best = (place + 1, cell.last_at_ms if cell.error_count else first)
    return best


def measure_times(ways: Iterable[Way], recent: Iterable[Sequence[Run]], running: Mapping[str, list[int]]) -> Times:
    """
    Of each learner the way and the last runs. `running`: for how long each cell runs now, in ms, which counts where
    too few have ended: what all wait for is no one's endless loop.
    """
    by_place: dict[int, list[int]] = {}
    for way in ways:
        for place, _, _, spent_s in way.passages:
            if spent_s is not None:
                by_place.setdefault(place + 1, []).append(spent_s * 1000)
    by_cell: dict[str, list[int]] = {}
    for runs in recent:
        for run in runs:
            if run.duration_ms:
                by_cell.setdefault(run.cell_id, []).append(run.duration_ms)
    for cell_id, ages in running.items():
        if len(by_cell.get(cell_id, ())) < KNOWN_MIN:
            by_cell.setdefault(cell_id, []).extend(ages)
    return Times(
        {position: pick_quantile(values, 0.75) for position, values in by_place.items() if len(values) >= KNOWN_MIN},
        {cell_id: pick_quantile(values, 0.95) for cell_id, values in by_cell.items() if len(values) >= KNOWN_MIN},
    )


def find_hot(
    learners: Iterable[tuple[Mapping[str, CellState], Set[str]]],
    places: Mapping[str, int],
    since_ms: int,
    rules: AlertRules,
    before: Iterable[HotCell],
    *,
    notebook_id: str,
    groups: ErrorGroups,
) -> list[HotCell]:
    """
    The columns that fail too many of those who ran them since `since_ms` and are not muted, in the grid's order.

    Of each learner the cells, and the ids of those that stand in an error that is muted: it counts as none. `before`:
    the answer of last time; a cell leaves it at a smaller share than it came.
    """
    if "cell_hot" in rules.off:
        return []
    tried: dict[str, int] = {}
    failed: dict[str, list[int]] = {}
    for cells, excused in learners:
        for cell in cells.values():
            if cell.last_at_ms >= since_ms and cell.attempt_count and cell.cell_id in places:
                tried[cell.cell_id] = tried.get(cell.cell_id, 0) + 1
                if cell.last_status == "error" and cell.cell_id not in excused:
                    failed.setdefault(cell.cell_id, []).append(cell.last_at_ms)
    was_hot = {one.cell for one in before}
    hot: list[HotCell] = []
    for cell_id, times in failed.items():
        share = len(times) / tried[cell_id]
        least = rules.hot_clear_ratio if cell_id in was_hot else rules.hot_ratio
        if tried[cell_id] >= rules.hot_tried_min and share >= least:
            fingerprint = fingerprint_cell(notebook_id, cell_id)
            hot.append(HotCell(cell_id, len(times), tried[cell_id], min(times), fingerprint))
    return sorted((one for one in hot if not groups.is_muted(one.fp)), key=lambda one: places[one.cell])
