"""The ledger in plain Python: read as the operator, folded without nbpulse's own code. Aborted runs are no runs."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from typing import Any

import asyncpg

IDLE_LIMIT_MS = 30 * 60 * 1000
EVENTS = """
SELECT e.*, n.path AS course_path FROM events e LEFT JOIN notebooks n ON n.id = e.notebook_id
ORDER BY e.occurred_at, e.sequence
"""
REGISTERED = """
SELECT notebook_id, cell_id, exercise_id FROM notebook_cells
WHERE is_registered AND cell_type IS DISTINCT FROM 'markdown'
"""


@dataclass
class Event:
    """One row of the ledger."""

    row: asyncpg.Record
    data: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.row[name]

    @property
    def at_ms(self) -> int:
        return round(self.row["occurred_at"].timestamp() * 1000)

    @property
    def time_ns(self) -> int:
        """Its point's time: milliseconds, then the student's event number."""
        return self.at_ms * 1_000_000 + self.row["ordinal"] % 1_000_000

    @property
    def is_run(self) -> bool:
        return self.row["event_type"] == "cell_execution" and self.data["status"] != "aborted"

    @property
    def is_error(self) -> bool:
        return self.is_run and self.data["status"] == "error"

    @property
    def duration_ms(self) -> float | None:
        return self.data.get("execution_duration_ms")


@dataclass
class Ledger:
    """All events in the order they happened, and who is who."""

    events: list[Event]
    usernames: dict[Any, str]
    roles: dict[str, str]
    taught: dict[tuple[Any, str], str | None]
    """The cells of notebooks that staff have registered, by (notebook, cell): of which exercise each is."""

    @property
    def runs(self) -> list[Event]:
        return [event for event in self.events if event.is_run]

    @property
    def students(self) -> list[str]:
        return [user_id for user_id, role in self.roles.items() if role == "student"]

    def list_items(self, notebook_id: Any) -> dict[str, str]:
        """
        What each cell counts for: itself or, in a notebook with exercises, its exercise (a cell of none for nothing).
        A cell counts when staff have registered it or 3 students ran it (of a small class a tenth, at least one).
        """
        enough = max(1, min(3, math.ceil(0.1 * len(self.students))))
        ran, exercises = defaultdict(set), {}
        for run in self.runs:
            if run.notebook_id == notebook_id and run.cell_type != "markdown":
                ran[run.cell_id].add(run.user_id)
                if run.exercise_id is not None:
                    exercises[run.cell_id] = run.exercise_id
        taught = {cell: exercise for (notebook, cell), exercise in self.taught.items() if notebook == notebook_id}
        exercises |= {cell: exercise for cell, exercise in taught.items() if exercise is not None}
        counted = {cell for cell, students in ran.items() if len(students) >= enough} | taught.keys()
        if exercises.keys() & counted:
            return {cell: exercise for cell, exercise in exercises.items() if cell in counted}
        return {cell: cell for cell in counted}

    def count_completed(self, runs: Iterable[Event], items: dict[str, str]) -> int:
        """Of these runs, in their order: items whose last one was ok."""
        last = {items[run.cell_id]: run.data.get("status", "running") for run in runs if run.cell_id in items}
        return sum(status == "ok" for status in last.values())


async def read_ledger() -> Ledger:
    """As the operator, who sees every row."""
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    try:
        rows = await connection.fetch(EVENTS)
        users = await connection.fetch("SELECT id, username FROM users")
        roles = await connection.fetch("SELECT user_id, role FROM enrolments")
        cells = await connection.fetch(REGISTERED)
    finally:
        await connection.close()
    events = [Event(row, json.loads(row["data"])) for row in rows]
    return Ledger(
        events,
        {row["id"]: row["username"] for row in users},
        {str(row["user_id"]): row["role"] for row in roles},
        {(row["notebook_id"], row["cell_id"]): row["exercise_id"] for row in cells},
    )


def group(events: Iterable[Event], key: Callable[[Event], Any]) -> dict[Any, list[Event]]:
    found = defaultdict(list)
    for event in events:
        found[key(event)].append(event)
    return dict(found)


def find_percentage(part: int, whole: int) -> float:
    """0 to 100, to two digits."""
    exact = Decimal(100 * part) / whole if whole else Decimal(0)
    return float(exact.quantize(Decimal("0.01"), ROUND_HALF_UP))


def sum_active_ms(events: list[Event]) -> int:
    """The time between the first and the last, gaps over the idle limit left out."""
    gaps = (later.at_ms - earlier.at_ms for earlier, later in pairwise(events))
    return sum(gap for gap in gaps if gap <= IDLE_LIMIT_MS)


def fold_sessions(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Every learning session: what its columns should hold."""
    folded = {}
    for session_id, events in group(ledger.events, lambda event: event.learning_session_id).items():
        if session_id is None:
            continue
        has_end = any(event.event_type == "session_end" for event in events)
        folded[str(session_id)] = {
            "username": ledger.usernames[events[0].user_id],
            "user_id": str(events[0].user_id),
            "notebook_id": str(events[0].notebook_id),
            "started_at": events[0].occurred_at,
            "ended_at": events[-1].occurred_at if has_end else None,
            "cell_executions": sum(event.is_run for event in events),
            "error_count": sum(event.is_error for event in events),
            "total_duration_ms": sum_active_ms(events) if has_end else None,
        }
    return folded
