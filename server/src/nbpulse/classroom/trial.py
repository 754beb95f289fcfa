"""A class of the past or of the simulator, looked at by the rules as the live board looks at a class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final
from uuid import UUID

import msgspec

from nbpulse.classroom.board import Classroom
from nbpulse.classroom.entries import Alert, Column, Learner
from nbpulse.classroom.errorgroups import NO_GROUPS, ErrorGroups
from nbpulse.classroom.learners import CellFold, CellState, LearnerState, fold_cells, fold_events, to_ms
from nbpulse.classroom.pace import HotCell
from nbpulse.classroom.rules import URGENCY, AlertRules
from nbpulse.events import ReceivedEvent

LOOK_EVERY_MS: Final = 15_000


class Fired(msgspec.Struct, frozen=True):
    """How often a rule would have fired, and for how many students; `cell_hot`: for how many cells."""

    kind: str
    fired: int
    students: int


class Trial:
    """
    One notebook's class from the beginning of a lesson, fed in the order of time.

    Whose Jupyter was heard of is for who feeds it to say (`room.hear`). Not safe for use from several threads.
    """

    def __init__(
        self,
        course_id: UUID,
        notebook_id: UUID,
        columns: Iterable[Column],
        user_ids: Iterable[UUID],
        rules: AlertRules,
        *,
        groups: ErrorGroups = NO_GROUPS,
    ) -> None:
        self._course_id, self._notebook_id = course_id, notebook_id
        self.room = Classroom(
            str(course_id),
            str(notebook_id),
            rules=rules,
            columns=columns,
            learners=[Learner(str(user_id), "", "") for user_id in user_ids],
        )
        self.room.set_groups(groups)
        self._states: dict[UUID, LearnerState] = {}
        self._cells: dict[tuple[UUID, str], CellState] = {}

    def happen(self, event: ReceivedEvent) -> None:
        """One event of the notebook that nobody has told yet."""
        user_id, notebook_id = event.user_id, self._notebook_id
        state = self._states.get(user_id) or LearnerState(str(user_id), str(self._course_id))
        state = fold_events(state, [(event, notebook_id)])
        cells: list[CellState] = []
        for (_, _, cell_id), fold in fold_cells([(event, notebook_id)]).items():
            cell = _add_fold(self._cells.get((user_id, cell_id)), str(notebook_id), cell_id, fold)
            self._cells[user_id, cell_id] = cell
            cells.append(cell)
        self._states[user_id] = state = msgspec.structs.replace(state, revision=state.revision + 1, cells=tuple(cells))
        self.room.apply(state)

    def look(self, now_ms: int) -> tuple[list[Alert], list[HotCell]]:
        """The alerts, most urgent first, and the hot cells as of now."""
        self.room.evaluate(now_ms)
        self.room.take_changes()
        return self.room.list_alerts(), self.room.hot


def _add_fold(known: CellState | None, notebook_id: str, cell_id: str, fold: CellFold) -> CellState:
    at_ms = round(fold.last_at.timestamp() * 1000)
    first_ms = round(fold.first_finished_at.timestamp() * 1000) if fold.first_finished_at else None
    if known is None:
        known = CellState(notebook_id, cell_id, fold.cell_index, 0, 0, 0, fold.last_status, at_ms, None)
    is_newer = (at_ms, fold.last_status != "running") >= (known.last_at_ms, known.last_status != "running")
    return CellState(
        notebook_id,
        cell_id,
        fold.cell_index,
        known.revision + fold.revision,
        known.attempt_count + fold.attempt_count,
        known.error_count + fold.error_count,
        fold.last_status if is_newer else known.last_status,
        max(at_ms, known.last_at_ms),
        first_ms if known.first_finished_ms is None else known.first_finished_ms,
    )


def try_rules(
    trial: Trial, events: Iterable[ReceivedEvent], until_ms: int, look_every_ms: int = LOOK_EVERY_MS
) -> Iterator[list[Fired]]:
    """
    What each rule would have fired so far, at each look from the first of `events` (in order of time) to `until_ms`.

    A student counts as connected from their first event to their last: presence is kept nowhere. So typing and
    scrolling are not known, and idle is found more often than live.
    """
    ordered = list(events)
    if not ordered:
        return
    spans: dict[UUID, tuple[int, int]] = {}
    for event in ordered:
        at_ms = to_ms(event)
        spans[event.user_id] = (spans.get(event.user_id, (at_ms, 0))[0], at_ms)
    fired: dict[str, set[str]] = {kind: set() for kind in (*URGENCY, "cell_hot")}
    students: dict[str, set[int]] = {kind: set() for kind in fired}
    place, now_ms = 0, to_ms(ordered[0])
    while now_ms < until_ms + look_every_ms:
        while place < len(ordered) and to_ms(ordered[place]) <= now_ms:
            trial.happen(ordered[place])
            place += 1
        for user_id, (first_ms, last_ms) in spans.items():
            if first_ms <= now_ms <= last_ms + look_every_ms:
                trial.room.hear(str(user_id), now_ms)
        alerts, hot = trial.look(now_ms)
        for alert in alerts:
            fired[alert.kind].add(alert.id)
            students[alert.kind].add(alert.i)
        fired["cell_hot"] |= {one.cell for one in hot}
        yield [Fired(kind, len(ids), len(students[kind])) for kind, ids in fired.items()]
        now_ms += look_every_ms
