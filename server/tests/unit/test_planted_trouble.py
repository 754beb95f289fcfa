"""Planted trouble is found, for the right reason, and little else: `bench/insight.py` on two small classes."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from nbpulse.simulator.scenarios import PlantedClass

BENCH = Path(__file__).resolve().parents[3] / "bench" / "insight.py"


def load_bench() -> ModuleType:
    spec = spec_from_file_location("insight", BENCH)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_who_was_planted_with_trouble_is_found_and_the_reason_is_right() -> None:
    bench = load_bench()
    classes = [bench.play(seed, students=60, minutes=55) for seed in (101, 102)]
    told = bench.summarise(classes)
    planted = [one for lesson in classes for one in lesson["planted"]]
    assert {one["kind"] for one in planted} >= {"silent_stuck", "repeated_error", "wrong_answer_loop", "wandered_off"}
    assert all(one["flag_s"] is not None for one in planted)
    assert told["reason_right"] >= 0.8
    assert told["false_per_1000_student_minutes"] <= 3


def test_the_same_seed_makes_the_same_class() -> None:
    first, second = ([(m.at_s, m.student, m.event_type, m.cell) for m in PlantedClass(3, 20, 20).play()] for _ in "ab")
    assert first == second
    assert first == sorted(first, key=lambda one: one[0])
