"""A past class on the board: the live board's own code, fed from the ledger in the order in which things occurred.

Pure. What the ledger does not hold, the board of the past does not know either: who was looking at a notebook between
two events, pauses of recording, unanswered messages, and the words written with a raised hand. Somebody counts as
connected from their first to their last event of the meeting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from uuid import UUID

import msgspec

from nbpulse.classroom.board import Classroom
from nbpulse.classroom.care import Action
from nbpulse.classroom.figures import TREND_STEP_MS
from nbpulse.classroom.learners import CellFold, CellState, LearnerState, fold_cells, fold_events, to_ms
from nbpulse.events import ReceivedEvent

CellPlace = tuple[UUID, str]
"""(user_id, cell_id), of the notebook that is shown"""
Stays = Mapping[UUID, tuple[int, int]]
"""When each student's first and last event of the meeting occurred, ms since 1970"""


class PastClass:
    """One notebook of a course in a past meeting. `take` what occurred, then `look` at a time not before it."""

    def __init__(self, room: Classroom, course_id: UUID, notebook_id: UUID, stays: Stays) -> None:
        self.room = room
        self._course_id, self._notebook_id, self._stays = course_id, notebook_id, stays
        self._states: dict[UUID, LearnerState] = {}
        self._folds: dict[CellPlace, CellFold] = {}
        self._actions: list[Action] = []
        self._runs: dict[tuple[str, int], tuple[int, int]] = {}

    def begin(self, folds: Mapping[CellPlace, CellFold], actions: Iterable[Action]) -> None:
        """How the cells stood before what is going to be taken in, and everything that staff did until the end."""
        self._actions = sorted(actions, key=lambda one: one.at_ms, reverse=True)
        self._folds = dict(folds)
        users = {user_id for user_id, _ in folds}
        for user_id in users:
            self._apply(user_id, [cell_id for user, cell_id in folds if user == user_id])

    def take(self, events: Iterable[tuple[ReceivedEvent, UUID | None]]) -> None:
        """What occurred next, each event with its course notebook."""
        by_user: dict[UUID, list[tuple[ReceivedEvent, UUID | None]]] = {}
        for event, notebook_id in events:
            by_user.setdefault(event.user_id, []).append((event, notebook_id))
        for user_id, news in by_user.items():
            known = self._states.get(user_id) or LearnerState(str(user_id), str(self._course_id))
            self._states[user_id] = fold_events(known, news)
            touched = []
            here = [(event, self._notebook_id) for event, notebook_id in news if notebook_id == self._notebook_id]
            for (_, _, cell_id), fold in fold_cells(here).items():
                place = user_id, cell_id
                self._folds[place] = merge_folds(self._folds[place], fold) if place in self._folds else fold
                touched.append(cell_id)
            self._apply(user_id, touched)
            self._count_runs(user_id, (event for event, _ in here))

    def look(self, now_ms: int) -> None:
        """Apply the rules as of `now_ms`; the room then has its snapshot and changes."""
        while self._actions and self._actions[-1].at_ms <= now_ms:
            self.room.apply_actions([self._actions.pop()])
        for user_id, (first_ms, last_ms) in self._stays.items():
            if first_ms <= now_ms:
                self.room.hear(str(user_id), min(now_ms, last_ms))
        self.room.evaluate(now_ms)

    def _count_runs(self, user_id: UUID, news: Iterable[ReceivedEvent]) -> None:
        """Each at its own time: many may be taken in at once."""
        touched: dict[tuple[str, int], tuple[int, int]] = {}
        for event in news:
            status = event.data.get("status")
            if event.event_type == "cell_execution" and event.cell_id and status != "aborted":
                step = str(user_id), to_ms(event) // TREND_STEP_MS
                runs, errors = self._runs.get(step, (0, 0))
                touched[step] = self._runs[step] = runs + 1, errors + (status == "error")
        self.room.set_runs([(*step, *count) for step, count in touched.items()], counts_on=False)

    def _apply(self, user_id: UUID, cell_ids: Iterable[str]) -> None:
        state = self._states.get(user_id) or LearnerState(str(user_id), str(self._course_id))
        self._states[user_id] = state = msgspec.structs.replace(state, revision=state.revision + 1)
        cells = tuple(self._describe_cell(cell_id, self._folds[user_id, cell_id]) for cell_id in cell_ids)
        self.room.apply(msgspec.structs.replace(state, cells=cells))

    def _describe_cell(self, cell_id: str, fold: CellFold) -> CellState:
        finished = fold.first_finished_at
        return CellState(
            notebook_id=str(self._notebook_id),
            cell_id=cell_id,
            cell_index=fold.cell_index,
            revision=fold.revision,
            attempt_count=fold.attempt_count,
            error_count=fold.error_count,
            last_status=fold.last_status,
            last_at_ms=_to_ms(fold.last_at),
            first_finished_ms=None if finished is None else _to_ms(finished),
        )


def merge_folds(one: CellFold, other: CellFold) -> CellFold:
    """Both added up, in any order, by the rule by which the ledger adds them (records/learners.py)."""
    last = max(one, other, key=lambda f: (f.last_at, f.last_sequence, f.last_status != "running", f.last_status))
    oks = [fold.last_ok_at for fold in (one, other) if fold.last_ok_at is not None]
    finished = [fold.first_finished_at for fold in (one, other) if fold.first_finished_at is not None]
    return CellFold(
        course_id=one.course_id,
        cell_index=last.cell_index,
        revision=one.revision + other.revision,
        attempt_count=one.attempt_count + other.attempt_count,
        error_count=one.error_count + other.error_count,
        last_status=last.last_status,
        last_at=last.last_at,
        last_sequence=last.last_sequence,
        last_ok_at=max(oks, default=None),
        first_finished_at=min(finished, default=None),
    )


def _to_ms(when: datetime) -> int:
    return round(when.timestamp() * 1000)
