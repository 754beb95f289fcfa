"""What the projector says of a class: nothing of anybody, whatever the class is like."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classes import COURSE, NOTEBOOK, Class, fail, make
from nbpulse.classroom import Classroom, ErrorGroup, ErrorGroups, Learner, SharedError, project
from nbpulse.classroom.projection import CLASS_MIN, ERROR_NAMES, GROUP_MIN, OTHER_ERROR
from nbpulse.classroom.rules import HERE, NOT_HERE, STATUS_OF, STATUSES
from nbpulse.hub.projection import Projection

ALLOWED_KEYS = {"present", "shares", "progress", "errors", "ratio", "low", "high", "cell", "cells", "name", "n"}
ALLOWED_TEXTS = ERROR_NAMES | {OTHER_ERROR}
WEB = Path(str(files("nbpulse") / "web"))


def make_board(counts: dict[str, int], **more: Any) -> dict[str, Any]:
    return {"counts": dict.fromkeys(STATUSES, 0) | counts, "cells": [], "students": [], "errors": [], **more}


def list_leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for key, one in value.items() for leaf in (key, *list_leaves(one))]
    return [leaf for one in value for leaf in list_leaves(one)] if isinstance(value, list) else [value]


# What the students' side can put into a class: names, numbers, seats, teams, error classes, messages.
texts = st.text(min_size=1, max_size=12)
learners = st.lists(st.tuples(texts, texts, texts, texts, texts), min_size=0, max_size=14)


@given(learners, st.lists(st.tuples(st.integers(0, 13), st.integers(0, 3), st.booleans(), texts), max_size=60))
def test_no_frame_holds_a_roster_string_or_an_id(
    people: list[tuple[str, str, str, str, str]], runs: list[tuple[int, int, bool, str]]
) -> None:
    group = Class(len(people), columns=4)
    group.room = Classroom(
        str(COURSE),
        str(NOTEBOOK),
        columns=[],
        learners=[
            Learner(str(user), name, number, seat, team)
            for user, (name, number, seat, team, _) in zip(group.users, people, strict=True)
        ],
    )
    for at_s, (i, cell, is_error, words) in enumerate(runs):
        if i < len(people):
            # An error may be named, and say, what is on the roster: a class's name is a student's own text.
            event = fail(group.users[i], at_s, cell=cell) if is_error else make(group.users[i], at_s, cell=cell)
            if is_error:
                named = {"error_name": people[i][0], "error_message": f"{people[0][0]} {words}"}
                event = msgspec.structs.replace(event, data=event.data | named)
            group.happen(event)
    # Staff may call a group as somebody of the class is called, and merge others into it.
    fingerprints = sorted({fp for row in group.room._by_index for fp in row.errors})
    settled = [
        ErrorGroup(fp, people[n % len(people)][0], fingerprints[0] if n % 2 else None)
        for n, fp in enumerate(fingerprints)
    ]
    group.room.set_groups(ErrorGroups(settled))
    board = group.look(100)
    projection = Projection("epoch", {"id": "x", "title": "Course", "join_code": "K7P4", "is_demo": False})
    assert projection.show(board, 1)
    [frame] = projection.frames_after(0)
    told = json.loads(frame.text)
    assert told.keys() == {"t", "epoch", "seq", "at", "course", "announcements"} | {
        "present",
        "shares",
        "progress",
        "errors",
    }
    for leaf in list_leaves(project(board)):
        assert not isinstance(leaf, str) or leaf in ALLOWED_KEYS | ALLOWED_TEXTS | set(STATUSES) | {"other"}, leaf
    for user in group.users:
        assert str(user) not in frame.text
        assert user.hex not in frame.text
    closed = json.dumps(sorted(ALLOWED_KEYS | ALLOWED_TEXTS | set(STATUSES) | {*told, *told["course"], "other"}))
    for person in people:
        for text in person[:4]:
            if not text.isdecimal() and json.dumps(text)[1:-1] not in closed + 'CourseK7P4epochfalsenulld1{}[]":,.- ':
                assert json.dumps(text, ensure_ascii=False)[1:-1] not in frame.text, text


@given(st.dictionaries(st.sampled_from(HERE), st.integers(0, 40)), st.integers(0, 30))
def test_no_group_of_one_or_two_is_told_of_or_left_over(counts: dict[str, int], offline: int) -> None:
    told = project(make_board(counts | {"offline": offline}))
    present = sum(counts.values())
    if present < CLASS_MIN:
        assert told == {"present": None, "shares": {}, "progress": None, "errors": []}
        return
    assert told["present"] == present
    if not told["shares"]:
        rest = sum(one for one in counts.values() if one < GROUP_MIN)
        assert 2 * rest > present or rest >= GROUP_MIN, "most are in small groups, or each of these must be there"
        return
    shown = {status: share * present / 100 for status, share in told["shares"].items()}
    half_percent = present / 200 + 1e-9
    assert all(number >= GROUP_MIN - half_percent for number in shown.values())
    assert abs(sum(shown.values()) - present) <= half_percent * len(shown), (
        "what is shown is everybody: nobody is left over"
    )


@pytest.mark.parametrize("present", range(CLASS_MIN, 13))
def test_nobody_can_tell_a_small_group_from_none(present: int) -> None:
    """Every class of that size that shows the same might as well have no group of one or two."""
    alike: dict[str, list[dict[str, int]]] = {}
    for cuts in combinations(range(present + len(HERE) - 1), len(HERE) - 1):
        ends = (-1, *cuts, present + len(HERE) - 1)
        counts = {status: ends[i + 1] - ends[i] - 1 for i, status in enumerate(HERE)}
        alike.setdefault(json.dumps(project(make_board(counts))["shares"], sort_keys=True), []).append(counts)
    for shown, classes in alike.items():
        for status in HERE:
            small = [counts for counts in classes if 0 < counts[status] < GROUP_MIN]
            assert not small or any(counts[status] not in (1, 2) for counts in classes), (shown, status)


def test_a_class_of_four_shows_nothing_and_one_left_over_is_counted_with_the_largest_group() -> None:
    assert project(make_board({"ok": 3, "stuck": 1}))["present"] is None
    assert project(make_board({"ok": 4, "stuck": 1}))["shares"] == {"ok": 100}
    assert project(make_board({"ok": 5}))["shares"] == {"ok": 100}
    assert project(make_board({"ok": 6, "stuck": 2, "help": 2}))["shares"] == {"ok": 60, "other": 40}
    assert project(make_board({"ok": 6, "stuck": 4, "offline": 9}))["shares"] == {"ok": 60, "stuck": 40}


def test_errors_of_three_are_told_by_pythons_name_and_cell_alone() -> None:
    cells = [{"id": f"cell-{i}", "idx": i, "title": "secret"} for i in range(12)]

    def error(label: str, n: int, cell: str = "cell-11") -> SharedError:
        return SharedError(uuid4().hex[:16], label, cell, n, 0)

    errors = [error("NameError df", 9), error("NameError 鈴木", 4), error("鈴木Error", 3), error("KeyError x", 2)]
    told = project(make_board({"ok": 12}, cells=cells, errors=errors))["errors"]
    assert told == [{"name": "NameError", "cell": 12, "n": 9}, {"name": OTHER_ERROR, "cell": 12, "n": 3}]
    all_but_one = project(make_board({"ok": 12}, cells=cells, errors=[error("KeyError x", 11, "own cell")]))["errors"]
    assert all_but_one == [{"name": "KeyError", "cell": None, "n": 12}]


def test_the_median_needs_five_and_the_quartiles_twelve_who_have_begun() -> None:
    cells = [{"id": f"cell-{i}", "idx": 2 * i, "title": None} for i in range(10)]

    def progress(positions: list[int]) -> Any:
        students = [{"pos": pos, "st": "ok"} for pos in positions] + [{"pos": 9, "st": "offline"}]
        return project(make_board({"ok": 20}, cells=cells, students=students))["progress"]

    assert progress([1, 1, 0, 2, 3]) is None
    assert progress([1, 2, 3, 4, 5]) == {"ratio": 0.3, "low": None, "high": None, "cell": 5, "cells": 19}
    told = progress([*range(1, 7), *range(1, 7)])
    assert (told["low"], told["high"]) == (0.2, 0.5)


def test_a_frame_is_made_only_for_what_is_new_and_is_whole() -> None:
    projection = Projection("e", {"title": "C", "join_code": None, "is_demo": False})
    assert projection.is_due()
    assert projection.show(make_board({"ok": 9}), 1)
    assert not projection.is_due()
    assert not projection.show(make_board({"ok": 8, "stuck": 1}), 2), "which is shown as nine, as before"
    projection.announcements = [{"at": 3, "text": {"ja": "休憩", "en": "Break"}}]
    assert projection.show(make_board({"ok": 9}), 3)
    assert projection.frames_after(2) == []
    [newest] = projection.frames_after(0)
    assert newest.seq == 2
    assert json.loads(newest.text)["announcements"][0]["text"]["en"] == "Break"
    assert projection.encode_snapshot() == newest.text.encode()


def test_ids_are_no_words_of_the_closed_list() -> None:
    assert not any(str(UUID(int=1)) in text for text in ALLOWED_TEXTS)


def test_every_status_has_its_place_here_and_on_the_board() -> None:
    """A new one fails here until somebody has said whether it means that they are here, and boards know its word."""
    assert set(STATUS_OF.values()) <= set(HERE)
    assert not set(HERE) & set(NOT_HERE)
    state, narrowing, header, glyphs = (
        (WEB / "js" / one).read_text(encoding="utf-8")
        for one in ("state.js", "narrowing.js", "views/header.js", "views/glyph.js")
    )
    typed = re.search(r"@typedef \{([^}]+)\} Status", state)
    counted = re.search(r"const counts = \{([^}]+)\}", narrowing)
    explained = re.search(r"const rules = \[([^\]]+)\]", header)
    assert typed
    assert counted
    assert explained
    assert set(re.findall(r"\w+", typed[1])) == set(STATUSES)
    assert set(re.findall(r"(\w+):", counted[1])) == set(STATUSES)
    assert set(re.findall(r"\w+", explained[1])) == set(STATUSES)
    for language in ("ja", "en"):
        words = json.loads((WEB / "messages" / f"{language}.json").read_text(encoding="utf-8"))
        assert {key.removeprefix("status.") for key in words if key.startswith("status.")} >= set(STATUSES)
    assert set(re.findall(r"^  (\w+):", glyphs, re.MULTILINE)) >= set(STATUSES)


def test_a_status_of_which_nobody_said_that_it_is_here_counts_as_nobody_here() -> None:
    students = [{"st": "asleep", "pos": 1}] * 6 + [{"st": "ok", "pos": 1}] * 4
    told = project(make_board({"asleep": 6, "ok": 4}, cells=[{"id": "a", "idx": 0}], students=students))
    assert told == {"present": None, "shares": {}, "progress": None, "errors": []}
