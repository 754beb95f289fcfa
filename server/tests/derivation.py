"""What `learning_progress` and `performance_metrics` must hold of a trace of events, worked out the long way."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any
from uuid import UUID

from nbpulse.events import ReceivedEvent
from nbpulse.pipeline import LearningProgressPoint, PerformancePoint
from stores import connect

IDLE_LIMIT_S = 1_800
SLOT_S, MINUTE_S = 10, 60
RANKS = {"ok": 1, "unknown": 2}  # in the order of their names, as far as that decides whether an item is complete
Place = tuple[UUID, str]
"""A course and a path: a notebook."""


def is_run(event: ReceivedEvent) -> bool:
    return event.event_type == "cell_execution" and event.data["status"] != "aborted"


def place_of(event: ReceivedEvent) -> Place:
    return event.course_id, event.notebook_path or ""


def find_items(events: Iterable[ReceivedEvent], sizes: Mapping[UUID, int]) -> dict[Place, dict[str, str]]:
    """Per notebook: cell -> what it counts for. `sizes`: how many students each course has."""
    students: dict[tuple[Place, str], set[UUID]] = defaultdict(set)
    exercises: dict[tuple[Place, str], str] = {}
    for event in events:
        if event.cell_id and (is_run(event) or event.event_type == "cell_execution_start"):
            key = place_of(event), event.cell_id
            students[key].add(event.user_id)
            if event.exercise_id:
                exercises[key] = max(exercises.get(key, ""), event.exercise_id)
    cells: dict[Place, list[str]] = defaultdict(list)
    for (place, cell_id), users in students.items():
        if len(users) >= max(1, min(3, math.ceil(0.1 * sizes[place[0]]))):
            cells[place].append(cell_id)
    items = {}
    for place, ids in cells.items():
        named = {one: exercises[place, one] for one in ids if (place, one) in exercises}
        items[place] = named or {one: one for one in ids}
    return items


def measure_active_ms(events: list[ReceivedEvent], run: ReceivedEvent) -> int:
    """Active time of the run's learning session up to it."""
    key = run.session_id or run.occurred_at.date()
    times = sorted(
        event.occurred_at
        for event in events
        if (event.session_id or event.occurred_at.date()) == key and event.occurred_at <= run.occurred_at
    )
    gaps = [(after - before).total_seconds() for before, after in pairwise(times)]
    return round(sum(gap for gap in gaps if gap <= IDLE_LIMIT_S) * 1_000)


async def read_notebooks(database_url: str) -> dict[Place, UUID]:
    """The notebooks of all courses."""
    async with connect(database_url) as owner:
        rows = await owner.fetch("SELECT id, course_id, path FROM notebooks")
    return {(row["course_id"], row["path"]): row["id"] for row in rows}


def derive_points(
    events: Iterable[ReceivedEvent], notebook_ids: Mapping[Place, UUID], sizes: Mapping[UUID, int]
) -> tuple[set[LearningProgressPoint], dict[tuple[Any, ...], PerformancePoint]]:
    """Progress points; performance points by (user, time, path, cell type)."""
    unique = list({(event.user_id, event.event_id): event for event in events}.values())
    items = find_items(unique, sizes)
    progress, performance = set(), {}
    works: dict[tuple[UUID, Place], list[ReceivedEvent]] = defaultdict(list)
    for event in unique:
        if event.notebook_path:
            works[event.user_id, place_of(event)].append(event)
    for (user_id, place), work in works.items():
        runs = sorted(
            filter(is_run, work),
            key=lambda one: (one.occurred_at, one.sequence, RANKS.get(one.data["status"], 0), one.event_id),
        )
        mine, own_ns = items.get(place, {}), notebook_ids[place].int % 1_000_000
        total = len(set(mine.values()))
        slots = {run.occurred_at.timestamp() // SLOT_S * SLOT_S: run for run in runs}
        for slot_s, last in slots.items():
            state = {}
            for run in runs[: runs.index(last) + 1]:
                if run.cell_id in mine:
                    state[mine[run.cell_id]] = run.data["status"]
            done = list(state.values()).count("ok")
            progress.add(
                LearningProgressPoint(
                    user_id=user_id,
                    course_id=place[0],
                    time_ns=int(slot_s) * 10**9 + own_ns,
                    notebook_path=place[1],
                    completed_cells=done,
                    total_cells=total,
                    progress_percentage=round(100 * done / total, 2) if total else 0.0,
                    session_duration_ms=measure_active_ms(work, last),
                )
            )
        minutes: dict[tuple[int, str], list[ReceivedEvent]] = defaultdict(list)
        for run in runs:
            minutes[int(run.occurred_at.timestamp()) // MINUTE_S * MINUTE_S, run.cell_type or "code"].append(run)
        for (minute_s, cell_type), those in minutes.items():
            times = [ms for run in those if (ms := run.data.get("execution_duration_ms")) is not None]
            time_ns = minute_s * 10**9 + own_ns
            performance[user_id, time_ns, place[1], cell_type] = PerformancePoint(
                user_id=user_id,
                course_id=place[0],
                time_ns=time_ns,
                notebook_path=place[1],
                cell_type=cell_type,
                avg_execution_time=statistics.fmean(times) if times else None,
                max_execution_time=max(times, default=None),
                error_rate=sum(run.data["status"] == "error" for run in those) / len(those),
            )
    return progress, performance
