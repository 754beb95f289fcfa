"""When a class's view asks PostgreSQL for what it has not heard."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from nbpulse.classroom import CellState, Column, Learner, LearnerState
from nbpulse.hub.view import LiveMessage, View
from nbpulse.records.views import LoadedClass, Pulse

COURSE, NOTEBOOK, STUDENT = uuid4(), uuid4(), str(uuid4())


class Source:
    """PostgreSQL with one student at a revision."""

    def __init__(self) -> None:
        self.revision = 1

    async def load_class(self, course_id: UUID, notebook_id: UUID | None) -> LoadedClass:
        return LoadedClass(
            course={"id": str(course_id), "title": "Test"},
            notebook_id=notebook_id,
            pulse=await self.load_pulse(course_id, notebook_id),
            learners=[Learner(STUDENT, "Aoi", "B0001")],
            states=await self.load_states(course_id, notebook_id, [STUDENT]),
        )

    async def load_pulse(self, course_id: UUID, notebook_id: UUID | None) -> Pulse:
        columns = [Column("cell-1", 0)]
        return Pulse({STUDENT: self.revision}, columns, [], notebook_id, None, title="Test")

    async def load_roster(self, course_id: UUID) -> Sequence[Learner]:
        return []

    async def load_announcements(self, course_id: UUID) -> Sequence[dict[str, Any]]:
        return []

    async def load_states(
        self,
        course_id: UUID,
        notebook_id: UUID | None,
        user_ids: Iterable[str],
    ) -> list[LearnerState]:
        return [make_state(one, course_id, self.revision) for one in user_ids]


def make_state(user_id: str, course_id: UUID, revision: int, cells: tuple[CellState, ...] = ()) -> LearnerState:
    return LearnerState(user_id, str(course_id), revision=revision, cells=cells)


async def open_view(source: Source, delay_s: float) -> View:
    return View("e1", COURSE, await source.load_class(COURSE, NOTEBOOK), lambda: delay_s)


async def test_a_skipped_revision_is_asked_for_when_the_directory_shows_it_and_not_before() -> None:
    source = Source()
    view = await open_view(source, 0.75)
    assert not view.is_due(time.monotonic())
    view.receive(LiveMessage("states", states=[make_state(STUDENT, COURSE, 3)]))
    assert not view.is_due(time.monotonic())
    assert view.is_due(time.monotonic() + 0.75)
    # Looked at for something else meanwhile, it still comes back for the row.
    view.receive(LiveMessage("mail"))
    assert view.is_due(time.monotonic())
    await view.reconcile(source)
    assert not view.is_due(time.monotonic())
    assert view.is_due(time.monotonic() + 0.75)


@pytest.mark.parametrize("delay_s", [0.0, 0.75])
async def test_what_was_published_before_a_view_listened_is_read_once_it_is_there(delay_s: float) -> None:
    source = Source()
    view = await open_view(source, delay_s)
    view.want_rows()
    assert view.is_due(time.monotonic()) == (delay_s == 0)
    source.revision = 2
    await view.reconcile(source)
    assert view.classroom.get_revision(STUDENT) == 2
    assert view.is_due(time.monotonic() + delay_s) == (delay_s > 0)


async def test_a_cell_without_a_column_is_asked_for_once() -> None:
    source = Source()
    view = await open_view(source, 0.0)
    cell = CellState(str(NOTEBOOK), "cell-9", 9, 1, 1, 0, "ok", 1_700_000_000_000, None)
    view.receive(LiveMessage("states", states=[make_state(STUDENT, COURSE, 2, (cell,))]))
    assert view.is_due(time.monotonic())
    await view.reconcile(source)
    view.receive(LiveMessage("states", states=[make_state(STUDENT, COURSE, 3, (cell,))]))
    assert not view.is_due(time.monotonic())
