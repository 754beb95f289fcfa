"""What staff have settled about error groups, applied: on the board, in alerts, in a report."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classes import NOTEBOOK, START_MS, Class, fail, make
from nbpulse.classroom import ErrorGroup, ErrorGroups, fingerprint_cell
from nbpulse.classroom.entries import Column
from nbpulse.classroom.report import MeetingFold, PastRun, name_errors

FINGERPRINTS = [f"{number:016x}" for number in range(8)]


@given(st.dictionaries(st.sampled_from(FINGERPRINTS), st.sampled_from(FINGERPRINTS)))
def test_every_group_is_part_of_one_that_is_merged_into_none_and_rings_end(merged: dict[str, str]) -> None:
    groups = ErrorGroups(ErrorGroup(one, merged_into=into) for one, into in merged.items() if one != into)
    for one in FINGERPRINTS:
        root = groups.find(one)
        assert one in groups.list_members(root) or groups.find(root) != root, "a ring, which nobody can make"
        if groups.get(root).merged_into is None:
            assert groups.find(root) == root
            assert groups.list_members(root)[0] == root
            assert len(set(groups.list_members(root))) == len(groups.list_members(root))


def share_two_errors() -> tuple[Class, str, str]:
    """Six who fail on cell 2: three one way, two another, and one both in turn on two cells."""
    room = Class(6)
    for i, user in enumerate(room.users[:3]):
        room.happen(fail(user, i, cell=2))
    for i, user in enumerate(room.users[3:5]):
        room.happen(fail(user, i, cell=2, error_message="name 'pd' is not defined"))
    room.happen(fail(room.users[5], 6, cell=2))
    room.happen(fail(room.users[5], 7, cell=3, error_message="name 'pd' is not defined"))
    shared = room.look(10)["errors"]
    assert [(one.label, one.n) for one in shared] == [("NameError df", 4), ("NameError pd", 2)]
    return room, shared[0].fp, shared[1].fp


def test_a_merged_group_is_one_with_the_other_and_goes_by_its_name() -> None:
    room, df, pd = share_two_errors()
    room.room.set_groups(ErrorGroups([ErrorGroup(pd, "ignored", df), ErrorGroup(df, "読み込み忘れ")]))
    (one,) = room.look(11)["errors"]
    assert (one.fp, one.label, one.title, one.n, one.merged) == (df, "NameError df", "読み込み忘れ", 6, 1)
    room.room.set_groups(ErrorGroups())
    assert [one.n for one in room.look(12)["errors"]] == [4, 2]


def test_who_has_two_errors_of_one_group_is_one_student() -> None:
    room, df, _ = share_two_errors()
    elsewhere = next(fp for row in room.room._by_index for fp, run in row.errors.items() if run.cell_id == "cell-3")
    room.room.set_groups(ErrorGroups([ErrorGroup(elsewhere, None, df)]))
    assert room.look(11)["errors"][0].n == 4


def test_what_is_muted_is_listed_as_that_and_in_no_list_banner_or_alert() -> None:
    room = Class(12)
    for user in room.users[:9]:
        for at_s in (0, 40, 100):
            room.happen(fail(user, at_s, cell=2))
    for user in room.users[9:]:
        room.happen(make(user, 5, cell=2))
    before = room.look(110)
    (shared,) = before["errors"]
    (hot,) = before["hot"]
    assert [alert.kind for alert in before["alerts"]] == ["stuck"] * 9
    assert (hot.cell, hot.fp) == ("cell-2", fingerprint_cell(str(NOTEBOOK), "cell-2"))

    room.room.set_groups(ErrorGroups([ErrorGroup(shared.fp, "わざと", is_muted=True)]))
    quiet = room.look(111)
    assert (quiet["errors"], quiet["hot"], quiet["alerts"]) == ([], [], [])
    (muted,) = quiet["muted"]
    assert (muted.fp, muted.n, muted.label, muted.cell, muted.title) == (
        *(shared.fp, 9, "NameError df"),
        *("cell-2", "わざと"),
    )
    # Who fails another way beside it is stuck as ever.
    for at_s in (112, 150, 210):
        room.happen(fail(room.users[0], at_s, cell=2, error_message="name 'pd' is not defined"))
    assert [(alert.kind, alert.n) for alert in room.look(215)["alerts"]] == [("stuck", 3)]
    room.room.set_groups(ErrorGroups())
    again = room.look(216)
    assert (again["muted"], len(again["errors"]), len(again["hot"]), len(again["alerts"])) == ([], 1, 1, 9)


def test_a_muted_cell_is_in_no_banner_and_who_is_stuck_on_it_still_is() -> None:
    room = Class(10)
    for user in room.users:
        for at_s in (0, 40, 100):
            room.happen(fail(user, at_s, cell=2))
    (hot,) = room.look(110)["hot"]
    room.room.set_groups(ErrorGroups([ErrorGroup(hot.fp, is_muted=True)]))
    quiet = room.look(111)
    assert (quiet["hot"], len(quiet["alerts"]), len(quiet["errors"])) == ([], 10, 1)
    assert [(one.fp, one.cell, one.label) for one in quiet["muted"]] == [(hot.fp, "cell-2", None)]


def test_a_muted_group_that_nobody_has_is_listed_too() -> None:
    room = Class(2)
    room.room.set_groups(ErrorGroups([ErrorGroup("ab" * 8, "昔の誤り", is_muted=True), ErrorGroup("cd" * 8, "他")]))
    assert [(one.fp, one.n, one.title) for one in room.look(0)["muted"]] == [("ab" * 8, 0, "昔の誤り")]


@pytest.mark.parametrize("is_muted", [False, True])
def test_a_report_tells_of_the_groups_as_they_are_settled(*, is_muted: bool) -> None:
    fold, notebook = MeetingFold(), UUID(int=1)
    for _ in range(4):
        user = uuid4()
        for number in range(3):
            at_ms = START_MS + 60_000 * number
            fold.take(PastRun(user, at_ms, (notebook, "c"), "error", ("ab" * 8, "NameError"), is_muted))
    groups = ErrorGroups([ErrorGroup("ab" * 8, "読み込み忘れ", is_muted=is_muted)])
    (cell,) = name_errors(fold.describe_cells(notebook, [Column("c", 0)]), {"ab" * 8: "NameError df"}, groups)
    assert (cell.failed, cell.errors) == (4, 12), "what happened stays counted"
    assert len(fold.close(START_MS + 600_000, [], [])) == (0 if is_muted else 4)
    told = None if is_muted else ("NameError df", "読み込み忘れ", 4)
    assert (cell.error and (cell.error.label, cell.error.title, cell.error.students)) == told
