"""A meeting's figures, worked out by hand and by properties: nothing depends on pieces, nothing of few is told."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpulse.classroom import Column
from nbpulse.classroom.quantiles import find_quantile
from nbpulse.classroom.report import (
    BREAK_MS,
    CellFigures,
    CommonError,
    Figures,
    MeetingFold,
    PastRun,
    Progress,
    Trouble,
    make_figures,
)
from nbpulse.classroom.withholding import withhold_cells, withhold_figures, withhold_progress

NOTEBOOK = UUID(int=1)
PLACES = [(NOTEBOOK, f"cell-{number}") for number in range(3)]
COLUMNS = [Column(f"cell-{number}", number) for number in range(3)]
ANNA, BEN, CHIE = (UUID(int=number) for number in (11, 12, 13))
NAME_ERROR = ("f1", "NameError")


def run(user: UUID, at_s: float, cell: int, status: str = "ok") -> PastRun:
    error = NAME_ERROR if status == "error" else None
    return PastRun(user, int(at_s * 1000), PLACES[cell], status, error)


def fold(*runs: PastRun) -> MeetingFold:
    made = MeetingFold()
    for one in runs:
        made.present.add(one.user_id)
        made.take(one)
    return made


def test_a_cell_counts_students_by_their_last_run_and_their_time_between_runs() -> None:
    made = fold(
        run(ANNA, 0, 0),
        run(BEN, 10, 0),
        run(ANNA, 60, 1, "error"),
        run(ANNA, 90, 1),
        run(BEN, 110, 1, "error"),
        run(CHIE, 120, 0, "aborted"),
    )
    first, second, third = made.describe_cells(NOTEBOOK, COLUMNS)
    assert (first.reached, first.ok, first.failed, first.runs, first.timed) == (2, 2, 0, 2, 0)
    assert (second.reached, second.ok, second.failed, second.runs, second.errors) == (2, 1, 2, 3, 2)
    assert (second.timed, second.median_ms) == (2, 95_000)
    assert second.p90_ms == pytest.approx(99_000)
    assert second.error == CommonError("f1", "NameError", 2)
    assert (third.reached, third.median_ms, third.error) == (0, None, None)
    progress = made.measure_progress(NOTEBOOK, COLUMNS)
    assert (progress.students, progress.quartiles) == (2, [2, 2, 2, 2, 2])


def test_a_break_is_no_time_on_a_cell() -> None:
    made = fold(run(ANNA, 0, 0), run(ANNA, BREAK_MS / 1000 + 1, 1), run(ANNA, BREAK_MS / 1000 + 31, 1))
    second = made.describe_cells(NOTEBOOK, COLUMNS)[1]
    assert (second.timed, second.median_ms) == (1, 30_000)


def test_stuck_is_what_the_board_showed_and_reached_whom_staff_turned_to_meanwhile() -> None:
    made = fold(
        *(run(ANNA, at, 1, "error") for at in (0, 10, 20)),  # shown at 90 s
        *(run(BEN, at, 1, "error") for at in (0, 10, 20)),  # over at 50 s: never shown
        run(BEN, 50, 1),
        *(run(CHIE, at, 1, "error") for at in (0, 40, 80)),  # shown after the third error
        run(CHIE, 200, 1),
        run(ANNA, 300, 1, "interrupted"),
    )
    hand = Trouble(BEN, "help", 100_000, 400_000, None)
    found = made.close(500_000, [hand], [(CHIE, 140_000), (BEN, 90_000), (ANNA, 600_000)])
    assert [(one.user_id, one.kind, one.since, one.until, one.passed, one.reached_at) for one in found] == [
        (ANNA, "stuck", 90_000, 500_000, False, None),
        (CHIE, "stuck", 90_000, 200_000, True, 140_000),
        (BEN, "help", 100_000, 400_000, None, None),
    ]
    figures = make_figures(made, [ANNA, BEN, CHIE, UUID(int=14)], found)
    assert (figures.students, figures.came, figures.runs, figures.errors) == (4, 3, 12, 9)
    assert (figures.stuck, figures.hands, figures.troubled, figures.unreached, figures.unpassed) == (2, 1, 3, 2, 1)
    assert (figures.waits, figures.wait_median_ms, figures.wait_worst_ms) == (1, 50_000, 50_000)


def test_quantiles_are_those_of_percentile_cont() -> None:
    assert find_quantile([], 0.5) is None
    assert find_quantile([1, 2, 3, 4], 0.5) == 2.5
    assert find_quantile([7], 0.9) == 7


counts = st.integers(0, 12)


@given(st.lists(counts, min_size=7, max_size=7))
def test_outside_the_staff_no_count_is_of_few_nor_is_its_rest(drawn: list[int]) -> None:
    came, away, stuck, hands, unreached, unpassed, waits = drawn
    stuck, hands = min(stuck, came), min(hands, came)
    troubled = min(stuck + hands, came)
    unreached = min(unreached, troubled)
    told = withhold_figures(
        Figures(came + away, came, 9, 3, stuck, hands, troubled, unreached, min(unpassed, unreached), waits, 1.0, 2.0)
    )
    shown = [told.students, told.came, told.stuck, told.hands, told.troubled, told.unreached, told.unpassed]
    assert not [one for one in shown if one is not None and 0 < one < 5]
    wholes = {"came": told.students, "stuck": told.came, "hands": told.came, "troubled": told.came}
    wholes |= {"unreached": told.troubled, "unpassed": told.unreached}
    for name, whole in wholes.items():
        count = getattr(told, name)
        assert count is None or whole is None or not 0 < whole - count < 5, name
    assert told.wait_worst_ms is None
    assert told.waits == 0 or told.waits >= 5
    assert (told.wait_median_ms is None) == (told.waits == 0)


@given(counts, counts, counts, counts, counts)
def test_outside_the_staff_a_cell_of_few_is_a_place_and_nothing_else(
    reached: int, ok: int, failed: int, timed: int, sharers: int
) -> None:
    ok, failed, timed = min(ok, reached), min(failed, reached), min(timed, reached)
    error = CommonError("f1", "NameError", min(sharers, failed), "NameError df") if failed else None
    cell = CellFigures(NOTEBOOK, "c", 0, "t", reached, ok, failed, 9, failed, timed, 1.0, 2.0, error)
    (told,) = withhold_cells([cell])
    for count in (told.reached, told.ok, told.failed, told.timed):
        assert count is None or count == 0 or count >= 5
    if told.reached is not None:
        assert all(one is None or not 0 < told.reached - one < 5 for one in (told.ok, told.failed))
    if 0 < reached < 5:
        place = CellFigures(NOTEBOOK, "c", 0, "t", None, None, None, None, None)
        assert told == place
    assert told.error is None or told.error.students >= 5
    assert (told.median_ms is None) == (told.timed == 0)


def test_outside_the_staff_nobody_is_the_first_or_the_last() -> None:
    progress = Progress(NOTEBOOK, 9, 6, [1, 2, 3, 4, 9])
    assert withhold_progress(progress) == msgspec.structs.replace(progress, quartiles=[None, 2, 3, 4, None])
    assert withhold_progress(msgspec.structs.replace(progress, students=4)) is None
    assert withhold_progress(None) is None
