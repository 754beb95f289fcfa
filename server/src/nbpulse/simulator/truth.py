"""What was planted in a simulated class, kept in a file: whoever has looked at the board can compare."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from nbpulse.errors import NotFound
from nbpulse.simulator.scenarios import PlantedClass, Student

TRUTH_FILE: Final = "demo_truth.json"
Truth = dict[str, Any]


def describe_trouble(lesson: PlantedClass, student: Student) -> Truth:
    """
    One student of a class that has been played: kind, what a right reason says (`means`; empty: any), and the
    minutes of each trouble.
    """
    plan = lesson.kinds.get(student.kind, {})
    return {
        "i": student.number,
        "kind": student.kind,
        "means": plan.get("means", []),
        "need_per_minute": plan.get("need_per_minute", 1.0),
        "trouble_min": [[round(since / 60, 3), round(until / 60, 3)] for since, until in student.trouble],
    }


def measure_trouble(student: Truth, minute: float) -> float:
    """For how many minutes they have been in trouble then; 0 for none."""
    return max((minute - since for since, until in student["trouble_min"] if since <= minute < until), default=0.0)


def measure_need(student: Truth, minute: float) -> float:
    """Minutes in trouble by then, each as much as the scenario says that kind's is worth."""
    return measure_trouble(student, minute) * float(student["need_per_minute"])


def rank_by_need(students: Iterable[Truth], minute: float) -> list[Truth]:
    """Who is in trouble at that minute of the class, the most need first."""
    troubled = [one for one in students if measure_need(one, minute) > 0]
    return sorted(troubled, key=lambda one: -measure_need(one, minute))


def write_truth(path: Path, truth: Truth) -> None:
    """
    The class's truth: its `students`, and that at `joined_at` (ISO 8601) it was in its minute `begins_min`, from where
    on it goes by `speed`.
    """
    path.write_text(json.dumps(truth, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_truth(data_dir: Path) -> Truth:
    """
    What `write_truth` wrote, with `minute`: which one of the class it is now. Raises NotFound (NB-1370): no demo has
    run there.
    """
    try:
        truth: Truth = json.loads((data_dir / TRUTH_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound("NB-1370", path=data_dir) from error
    passed_s = (datetime.now(UTC) - datetime.fromisoformat(truth["joined_at"])).total_seconds()
    return truth | {"minute": truth["begins_min"] + passed_s / 60 * truth["speed"]}
