"""The class's charts: the funnel, times on cells, exercises, the progress curve, runs and errors."""

from __future__ import annotations

import random
from typing import Any
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from classes import START_MS, Class, fail, make
from nbpulse.classroom import Column, Learner
from nbpulse.classroom.figures import TREND_STEP_MS, Way, draw_funnel, find_difference


def find_entry(board: dict[str, Any], column: int) -> list[Any]:
    entry: list[Any] = board["funnel"][column]
    return entry


def test_the_funnel_counts_who_reached_a_cell_and_how_it_stands_with_them() -> None:
    group = Class(4, columns=3)
    for user in group.users[:3]:
        group.happen(make(user, 0, cell=0))
    group.happen(fail(group.users[0], 60, cell=1))
    group.happen(make(group.users[1], 60, cell=2))  # past cell 1 without running it
    group.happen(make(group.users[2], 60, "cell_execution_start", cell=1))
    board = group.look(61)
    assert [entry[:4] for entry in board["funnel"]] == [[0, 3, 3, 0], [1, 3, 0, 1], [2, 1, 1, 0]]


def test_the_time_on_a_cell_goes_from_the_end_of_the_one_before_to_its_own_end() -> None:
    group = Class(1, columns=3)
    (user,) = group.users
    group.happen(make(user, 0, cell=0))
    group.happen(fail(user, 100, cell=1))
    group.happen(make(user, 160, cell=1))
    group.happen(make(user, 200, cell=2))
    board = group.look(201)
    assert find_entry(board, 0)[4:] == [None] * 4, "nobody knows when the first was begun"
    assert find_entry(board, 1)[4:] == [160] * 4
    assert find_entry(board, 2)[4:] == [40] * 4
    group.happen(make(user, 900, cell=1))  # run again later: that is not the time it took
    assert find_entry(group.look(901), 1)[4:] == [200] * 4
    assert find_entry(group.look(902), 2)[4:] == [0] * 4


def test_a_break_is_no_time_on_a_cell() -> None:
    group = Class(1, columns=2)
    group.happen(make(group.users[0], 0, cell=0))
    group.happen(make(group.users[0], 1801, cell=1))
    assert find_entry(group.look(1802), 1)[4:] == [None] * 4


def test_percentiles_are_of_those_whose_time_is_known() -> None:
    group = Class(4, columns=2)
    for number, user in enumerate(group.users):
        group.happen(make(user, 0, cell=0))
        group.happen(make(user, 10 * (number + 1), cell=1))
    assert find_entry(group.look(50), 1)[4:] == [10, 20, 30, 40]


@given(st.integers(0, 10**6))
def test_times_of_one_learner_never_overlap_and_the_funnel_never_widens(seed: int) -> None:
    rng = random.Random(seed)
    group = Class(3, columns=6)
    at_s = 0
    for _ in range(rng.randrange(1, 40)):
        at_s += rng.randrange(1, 300)
        event = rng.choice([make, fail])(rng.choice(group.users), at_s, cell=rng.randrange(6))
        group.happen(event)
    board = group.look(at_s + 1)
    reached = [entry[1] for entry in board["funnel"]]
    assert reached == sorted(reached, reverse=True)
    assert all(ok + error <= count for _, count, ok, error, *_ in board["funnel"])
    for row in group.room._by_index:
        assert sum(one.spent_s or 0 for one in row.way.passages) <= at_s


def test_an_exercise_is_done_when_the_last_run_among_its_cells_went_well() -> None:
    group = Class(3, columns=3)
    group.room.set_columns([Column("cell-0", 0), Column("cell-1", 1, None, "Q1"), Column("cell-2", 2, None, "Q1")])
    assert group.look(0)["exercises"] == [["Q1", 0, 0]]
    for user in group.users[:2]:
        group.happen(make(user, 10, cell=1))
        group.happen(fail(user, 20, cell=2))
    assert group.look(21)["exercises"] == [["Q1", 2, 0]]
    group.happen(make(group.users[0], 30, cell=2))
    assert group.look(31)["exercises"] == [["Q1", 2, 1]]


def test_the_curve_follows_the_quartiles_of_the_class_minute_by_minute() -> None:
    group = Class(4)
    group.room.set_meeting(START_MS, is_over=False)
    group.look(0)
    for number, user in enumerate(group.users[:3]):
        for cell in range(number + 1):
            group.happen(make(user, 70 + cell, cell=cell))
    board = group.look(130)
    assert [point[0] for point in board["curve"]] == [START_MS + minute * 60_000 for minute in range(3)]
    assert [point[1:] for point in board["curve"]] == [[0, 0, 0], [1, 2, 3], [1, 2, 3]], "of those who have begun"


def test_the_trend_counts_each_run_once_from_where_the_history_ends() -> None:
    group = Class(2)
    user, other = group.users
    group.happen(make(user, 0))  # in the history that is read after it
    group.room.set_runs([(str(user), START_MS // TREND_STEP_MS, 7, 2), (str(uuid4()), 0, 9, 9)])
    for at_s in (31, 32):
        group.happen(fail(user, at_s, cell=1))
    group.happen(make(other, 33, cell=1))
    group.room.apply(group.room._by_index[0].state)  # type: ignore[arg-type]  # told twice
    board = group.look(60)
    assert len(board["trend"]) == 120
    assert board["trend"][-3:] == [[START_MS, 7, 2], [START_MS + 30_000, 3, 2], [START_MS + 60_000, 0, 0]]
    assert [point[1:] for point in group.look(3600)["trend"]].count([0, 0]) == 119, "older than an hour is gone"


def test_a_team_and_a_time_have_charts_of_their_own() -> None:
    group = Class(3, columns=2)
    group.room.set_roster(
        [Learner(str(user), "n", "n", team=team) for user, team in zip(group.users, "AAB", strict=True)]
    )
    group.happen(make(group.users[0], 0, cell=0))
    for at_s in (100, 110):
        group.happen(fail(group.users[1], at_s, cell=1))
    group.happen(fail(group.users[2], 120, cell=1))
    whole = group.look(130)
    now_ms = START_MS + 130_000
    part: Any = group.room.describe_team("A", 0, now_ms)
    assert [entry[:4] for entry in part["funnel"]] == [[0, 2, 1, 0], [1, 1, 0, 1]]
    assert part["errors"] == [], "one student is no group"
    assert [entry[:4] for entry in whole["funnel"]] == [[0, 3, 1, 0], [1, 2, 0, 2]]
    late: Any = group.room.describe_team(None, START_MS + 100_000, now_ms)
    assert [entry[:4] for entry in late["funnel"]] == [[0, 2, 0, 0], [1, 2, 0, 2]]
    assert sum(point[1] for point in late["trend"]) == sum(point[1] for point in whole["trend"])
    nobody: Any = group.room.describe_team("Z", 0, now_ms)
    assert [entry[:4] for entry in nobody["funnel"]] == [[0, 0, 0, 0], [1, 0, 0, 0]]


def test_the_counters_of_five_minutes_ago_are_remembered_and_none_where_nobody_looked() -> None:
    group = Class(2)
    assert group.look(0)["ago"] is None
    group.happen(make(group.users[0], 10, "help_request"))
    ago = group.look(90)["ago"]
    assert (ago["at"], ago["counts"]["help"]) == (START_MS, 0)
    for at_s in range(90, 500, 10):
        ago = group.look(at_s)["ago"]
    assert 240_000 <= START_MS + 490_000 - ago["at"] <= 300_000
    assert ago["counts"]["help"] == 1


def test_only_changed_entries_are_sent_and_the_whole_chart_where_it_moved() -> None:
    before = [[0, 1], [1, 1]]
    assert find_difference(before, [[0, 1], [1, 2], [2, 0]]) == [[1, 2], [2, 0]]  # type: ignore[arg-type]
    assert find_difference(before, [[1, 1], [2, 1]]) is None  # type: ignore[arg-type]
    assert find_difference(before, [[0, 1]]) is None  # type: ignore[arg-type]
    assert draw_funnel([Way()], 1) == [[0, 0, 0, 0, None, None, None, None]]
