"""The demo's class: the same seed makes the same class, every kind of trouble is in it, and it is worth looking at."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from nbpulse.classroom import URGENCY
from nbpulse.errors import NotFound
from nbpulse.simulator import BEGINS_MIN, ClassOptions, Schoolroom, read_truth
from nbpulse.simulator.course import list_pupils
from nbpulse.simulator.kernels import mistype
from nbpulse.simulator.lesson import load_lesson
from nbpulse.simulator.scenarios import DEMO, Moment, PlantedClass, load_scenarios
from nbpulse.simulator.schoolroom import _Desk
from nbpulse.simulator.truth import TRUTH_FILE, measure_need, rank_by_need, write_truth


@cache
def plant(seed: int = 7, students: int = 200) -> tuple[PlantedClass, list[Moment]]:
    lesson = PlantedClass(seed, students, scenario=DEMO)
    return lesson, list(lesson.play())


def make_room(students: int = 60, seed: int = 7) -> Schoolroom:
    return Schoolroom(ClassOptions("http://127.0.0.1:1", "CODE", students, seed=seed))


def test_the_same_seed_makes_the_same_class_and_another_seed_another() -> None:
    rooms = [make_room(), make_room(), make_room(seed=8)]
    first, second, other = [(room.tell_truth(), room.pupils) for room in rooms]
    assert first == second
    assert first[0] != other[0]
    assert first[1] != other[1]


def test_the_lesson_is_a_real_notebook_that_runs_from_top_to_bottom() -> None:
    names: dict[str, Any] = {}
    for cell in load_lesson():
        if cell.id != "slow":
            exec(cell.source, names)


def test_a_mistyped_cell_is_a_mistake_indeed() -> None:
    for cell in load_lesson():
        assert mistype(cell.source) != cell.source


def test_before_each_check_stands_the_function_it_tests() -> None:
    lesson = load_lesson()
    checks = [place for place, cell in enumerate(lesson) if cell.is_check]
    assert len(checks) == 3
    for place in checks:
        assert lesson[place].source.startswith("assert ")
        assert lesson[place - 1].source.startswith("def ")


def test_cell_12_is_a_storm_of_name_errors() -> None:
    lesson, moments = plant()
    mistakes = Counter(
        (lesson.cells[one.cell].index, one.data["error_name"])
        for one in moments
        if one.event_type == "cell_execution"
        and one.data["status"] == "error"
        and lesson.students[one.student].kind == "ordinary"
    )
    (index, name), count = mistakes.most_common(1)[0]
    assert (index, name) == (11, "NameError")
    assert count > 150
    assert {name for _, name in mistakes} >= {"KeyError", "SyntaxError", "TypeError", "AssertionError"}


def test_every_reason_the_board_knows_is_planted_and_most_trouble_has_begun_when_the_class_is_joined() -> None:
    kinds = load_scenarios(DEMO)["kinds"].values()
    assert {reason for kind in kinds if kind["is_trouble"] for reason in kind["means"]} == set(URGENCY)
    lesson, _ = plant()
    begun = {one.kind for one in lesson.students if lesson.is_planted(one) and one.is_in_trouble(60 * BEGINS_MIN)}
    assert begun == {name for name, kind in load_scenarios(DEMO)["kinds"].items() if kind["is_trouble"]}


def test_a_class_of_forty_has_one_of_each_trouble() -> None:
    kinds = Counter(one.kind for one in plant(11, 40)[0].students)
    assert all(kinds[name] == 1 for name, kind in load_scenarios(DEMO)["kinds"].items() if kind["is_trouble"])


def test_everybody_gets_on_some_faster_than_others() -> None:
    lesson, moments = plant()
    reached = [0] * len(lesson.students)
    for one in moments:
        if one.event_type == "cell_execution" and one.data["status"] == "ok" and one.at_s <= 60 * BEGINS_MIN:
            reached[one.student] = max(reached[one.student], one.cell + 1)
    reached.sort()
    assert 7 <= median(reached) <= 14
    assert reached[180] > 1.5 * reached[20]


def test_students_sit_in_teams_and_names_are_japanese_and_english_and_mostly_different() -> None:
    pupils = list_pupils(7, 200)
    assert len({one.seat for one in pupils}) == len({one.number for one in pupils}) == 200
    assert set(Counter(one.team for one in pupils).values()) == {10}
    names = [one.name for one in pupils]
    assert len(set(names)) > 120
    assert 20 < sum(name.isascii() for name in names) < 90


def test_an_event_has_the_contracts_form() -> None:
    desk = _Desk(ClassOptions("http://127.0.0.1:1", "CODE"), 0)
    cell, data = load_lesson()[0], {"status": "error", "error_name": "NameError"}
    at = "2026-11-23T01:02:03.456Z"
    opened = desk.describe(Moment(0, 0, "notebook_open"), cell, at)
    event = desk.describe(Moment(1, 0, "cell_execution", 0, data), cell, at)
    assert "cell_id" not in opened
    assert opened["event_id"] != event["event_id"]
    assert event["cell_index"] == 1
    assert event["notebook_path"] == "temperatures.ipynb"
    assert event["sequence"] == 2
    assert event["data"] == {**data, "has_error": True, "execution_count": 1}
    assert desk.describe(Moment(2, 0, None, 0, {"state": "hidden"}), cell, at)["data"] == {"state": "hidden"}


def test_who_is_longer_in_trouble_needs_help_more_and_elsewhere_is_half_as_bad() -> None:
    stuck = {"need_per_minute": 1.0, "trouble_min": [[1, 3], [10, 50]]}
    away = {"need_per_minute": 0.5, "trouble_min": [[2, 50]]}
    later = {"need_per_minute": 1.0, "trouble_min": [[30, 50]]}
    assert measure_need(stuck, 2) == 1
    assert measure_need(stuck, 5) == 0
    assert rank_by_need([later, away, stuck], 20) == [stuck, away]


def test_the_truth_is_kept_and_says_which_minute_it_is(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="NB-1370"):
        read_truth(tmp_path)
    told = make_room(40).tell_truth()
    known = {"seed": 7, "speed": 2.0, "begins_min": 14.0, "joined_at": "2026-01-01T00:00:00+00:00", "students": told}
    write_truth(tmp_path / TRUTH_FILE, known)
    read = read_truth(tmp_path)
    assert read["minute"] > 14
    assert read["students"] == json.loads(json.dumps(told))
    assert {"name", "seat", "team", "number", "kind", "means", "trouble_min"} <= read["students"][0].keys()
