"""The simulated class: the same seed makes the same class, and it is worth looking at."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from nbpulse.simulator.kernels import mistype
from nbpulse.simulator.lesson import load_lesson
from nbpulse.simulator.pupils import Pupil, Step, describe_event


def play(number: int, *, seed: int = 7, steps: int = 150) -> list[Step]:
    return list(itertools.islice(Pupil(number, seed).play(), steps))


def list_events(steps: list[Step]) -> list[tuple[str, Any, dict[str, Any]]]:
    return [event for step in steps for event in step.events]


def test_the_same_seed_makes_the_same_class_and_another_seed_another() -> None:
    assert play(5) == play(5)
    assert play(5) != play(5, seed=8)
    assert Pupil(5, 7).name == Pupil(5, 7).name


def test_ids_sent_between_the_steps_do_not_change_the_play() -> None:
    quiet, chatty = Pupil(3, 7), Pupil(3, 7)
    steps = []
    for step in itertools.islice(chatty.play(), 60):
        chatty.make_id()
        steps.append(step)
    assert steps == list(itertools.islice(quiet.play(), 60))


def test_the_lesson_is_a_real_notebook_that_runs_from_top_to_bottom() -> None:
    names: dict[str, Any] = {}
    for cell in load_lesson():
        if cell.id != "slow":
            exec(cell.source, names)


def test_a_mistyped_cell_is_a_mistake_indeed() -> None:
    for cell in load_lesson():
        assert mistype(cell.source) != cell.source


def test_the_class_begins_at_once_and_somebody_asks_for_help_within_three_seconds() -> None:
    elapsed_s, asked_at_s = 0.0, None
    for step in play(2, steps=3):
        elapsed_s += step.wait_s
        if any(event_type == "help_request" for event_type, _, _ in step.events):
            asked_at_s = elapsed_s
    assert asked_at_s is not None
    assert asked_at_s < 3
    assert all(play(number, steps=1)[0].wait_s <= 2 for number in range(200))


def test_cell_12_is_a_storm_of_name_errors() -> None:
    mistakes: Counter[tuple[int, str]] = Counter()
    for number in range(200):
        for event_type, cell, data in list_events(play(number, steps=120)):
            if event_type == "cell_execution" and data["has_error"]:
                mistakes[cell.index, data["error_name"]] += 1
    (index, name), count = mistakes.most_common(1)[0]
    assert (index, name) == (11, "NameError")
    assert count > 200
    assert {name for _, name in mistakes} >= {"KeyError", "SyntaxError", "TypeError", "AssertionError"}


def test_everybody_gets_on_some_faster_than_others_and_a_few_are_away() -> None:
    finished = []
    for number in range(100):
        elapsed_s = 0.0
        for step in play(number, steps=400):
            elapsed_s += step.wait_s
            if any(cell is not None and cell.id == "check" for _, cell, _ in step.events):
                break
        finished.append(elapsed_s)
    finished.sort()
    assert finished[90] > 2 * finished[10]
    absences = [any(step.wait_s >= 360 for step in play(number, steps=400)) for number in range(200)]
    assert 3 <= sum(absences) <= 30


def test_names_are_japanese_and_english_and_mostly_different() -> None:
    names = [Pupil(number, 7).name for number in range(200)]
    assert len(set(names)) > 120
    assert 20 < sum(name.isascii() for name in names) < 90


def test_an_event_has_the_contracts_form() -> None:
    pupil = Pupil(0, 7)
    event = describe_event(pupil, 3, "2026-11-23T01:02:03.456Z", ("cell_execution", load_lesson()[0], {"status": "ok"}))
    assert event["cell_index"] == 1
    assert event["notebook_path"] == "temperatures.ipynb"
    assert event["sequence"] == 3
