"""A class on a board, without any store: events folded into states, and looks at it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec

from nbpulse import classroom
from nbpulse.classroom import Classroom, Column, Learner, LearnerState
from nbpulse.events import ReceivedEvent

COURSE, NOTEBOOK, OTHER_NOTEBOOK = uuid4(), uuid4(), uuid4()
START = datetime(2026, 11, 23, 1, 0, tzinfo=UTC)
START_MS = int(START.timestamp() * 1000)
MINUTE = 60_000


def make(user: UUID, at_s: float, event_type: str = "cell_execution", cell: int = 0, **data: Any) -> ReceivedEvent:
    at = START + timedelta(seconds=at_s)
    if event_type == "cell_execution":
        data.setdefault("status", "ok")
    return ReceivedEvent(
        event_id=uuid4(),
        event_type=event_type,
        occurred_at=at,
        received_at=at,
        user_id=user,
        course_id=COURSE,
        notebook_path="week1.ipynb",
        cell_id=f"cell-{cell}",
        cell_index=cell,
        sequence=int(at_s * 10),
        data=data,
    )


def fold(user: UUID, news: list[ReceivedEvent]) -> LearnerState:
    """The state a ledger would publish after these events."""
    blank = LearnerState(user_id=str(user), course_id=str(COURSE))
    state = classroom.fold_events(blank, [(event, NOTEBOOK) for event in news])
    cells = [
        classroom.CellState(
            notebook_id=str(NOTEBOOK),
            cell_id=cell_id,
            cell_index=one.cell_index,
            revision=one.revision,
            attempt_count=one.attempt_count,
            error_count=one.error_count,
            last_status=one.last_status,
            last_at_ms=int(one.last_at.timestamp() * 1000),
            first_finished_ms=int(one.first_finished_at.timestamp() * 1000) if one.first_finished_at else None,
        )
        for (_, _, cell_id), one in classroom.fold_cells((event, NOTEBOOK) for event in news).items()
    ]
    return msgspec.structs.replace(state, revision=len(news), cells=tuple(cells))


class Class:
    """A board with n learners, heard of at every look."""

    def __init__(self, learners: int, columns: int = 10) -> None:
        self.users = [uuid4() for _ in range(learners)]
        self.news: dict[UUID, list[ReceivedEvent]] = {user: [] for user in self.users}
        self.room = Classroom(
            str(COURSE),
            str(NOTEBOOK),
            columns=[Column(f"cell-{i}", i) for i in range(columns)],
            learners=[Learner(str(user), f"name {i}", f"n{i}") for i, user in enumerate(self.users)],
        )

    def happen(self, event: ReceivedEvent) -> None:
        self.news[event.user_id].append(event)
        self.room.apply(fold(event.user_id, self.news[event.user_id]))

    def look(self, at_s: float, *, away: set[int] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment]
        now_ms = START_MS + int(at_s * 1000)
        for i, user in enumerate(self.users):
            if i not in away:
                self.room.hear(str(user), now_ms)
        self.room.evaluate(now_ms)
        return self.room.snapshot()

    def find_alerts(self, at_s: float) -> set[tuple[int, str]]:
        return {(alert.i, alert.kind) for alert in self.look(at_s)["alerts"]}


def fail(user: UUID, at_s: float, cell: int = 0, **data: Any) -> ReceivedEvent:
    data = {"error_name": "NameError", "error_message": "name 'df' is not defined"} | data
    return make(user, at_s, cell=cell, status="error", **data)
