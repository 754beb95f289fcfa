"""Errors that several students have now."""

from __future__ import annotations

import random
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from classes import START_MS, Class, fail, make
from nbpulse import classroom
from nbpulse.classroom import LearnerState, Run
from nbpulse.classroom.shared import CURRENT_MS, SHOWN_MAX

USER, NOTEBOOK = UUID(int=7), UUID(int=1)


def fold(*events: Any) -> tuple[Run, ...]:
    blank = LearnerState(str(USER), "c")
    return classroom.fold_events(blank, [(event, NOTEBOOK) for event in events]).recent


def test_whoever_has_run_the_cell_since_has_the_error_no_more() -> None:
    failed = [fail(USER, 0), fail(USER, 10, cell=1)]
    first, second = (run.fingerprint for run in fold(*failed))
    assert classroom.list_errors(fold(*failed)).keys() == {first, second}
    assert classroom.list_errors(fold(*failed, make(USER, 20, cell=1))).keys() == {first}
    assert classroom.list_errors(fold(*failed, make(USER, 20, status="interrupted"))).keys() == {first, second}
    other = fold(*failed, fail(USER, 20, error_message="name 'pd' is not defined"))
    assert first not in classroom.list_errors(other), "the cell fails another way now"


@given(st.integers(0, 2**32))
def test_every_group_counts_its_students_once_and_only_those_who_are_at_it_still(seed: int) -> None:
    chance = random.Random(seed)
    now_ms = 10 * CURRENT_MS
    learners = [
        {
            fp: Run(now_ms - chance.randrange(2 * CURRENT_MS), 0, f"{i}", "n", f"cell-{fp}", "error", fp, fp)
            for fp in chance.sample("abcdefghijklmnop", chance.randrange(16))
        }
        for i in range(chance.randrange(30))
    ]
    groups = classroom.group_errors(learners, now_ms)
    for group in groups:
        runs = [errors[group.fp] for errors in learners if group.fp in errors]
        current = [run for run in runs if now_ms - run.at_ms < CURRENT_MS]
        assert (group.n, group.since) == (len(current), min(run.at_ms for run in current))
        assert group.n >= 2
    assert len(groups) <= SHOWN_MAX
    assert [group.n for group in groups] == sorted((group.n for group in groups), reverse=True)


def test_the_board_shows_a_shared_error_until_it_is_none() -> None:
    room = Class(3)
    for i, user in enumerate(room.users[:2]):
        room.happen(fail(user, i, cell=2))
    (shared,) = room.look(5)["errors"]
    assert (shared.label, shared.cell, shared.n, shared.since) == ("NameError df", "cell-2", 2, START_MS)
    assert room.room.take_changes()["errors"] == [shared]
    room.look(6)
    assert "errors" not in room.room.take_changes()
    room.happen(make(room.users[0], 7, cell=2))
    assert room.look(8)["errors"] == []
    assert room.room.take_changes()["errors"] == []
    assert room.look(5 + CURRENT_MS / 1000)["errors"] == []
