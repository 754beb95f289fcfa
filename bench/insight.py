"""Whom the board's rules find in classes with planted trouble, how soon, and whether rightly: `docs/insight.md`.

    python bench/insight.py [--classes 20] [--students 200]
    python bench/insight.py --scenario demo --students 60 --seed 401    # the demo's class; writes insight_demo.json

Classes are played in virtual time through the same states and rules as the live board's (`classroom`); no server runs.
Nothing here is tuned: what students do is in `nbpulse/simulator/scenarios.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any
from uuid import UUID

from nbpulse.classroom import DEFAULT_RULES, Alert, Column, Trial
from nbpulse.simulator.scenarios import START, PlantedClass, Student

RESULTS = Path(__file__).parent / "results"
COURSE, NOTEBOOK = UUID(int=1), UUID(int=2)
START_MS = int(START.timestamp() * 1000)
LOOK_S = 5
GLANCES_MIN = {"scenarios": (35,), "demo": (14, 18, 22, 26, 30)}
"""When the three who need help most are looked for; the demo joins its class at minute 22."""


def play(seed: int, students: int = 200, minutes: float | None = None, scenario: str = "scenarios") -> dict[str, Any]:
    """One class, and what the board said of it."""
    lesson = PlantedClass(seed, students, minutes, scenario)
    columns = [Column(cell.id, cell.index) for cell in lesson.cells]
    trial = Trial(COURSE, NOTEBOOK, columns, [one.user_id for one in lesson.students], DEFAULT_RULES)
    tops: list[tuple[int, int]] = []
    first: dict[int, tuple[float, str]] = {}
    false: dict[str, int] = {}
    listed: set[int] = set()
    glances: dict[int, tuple[list[int], list[int]]] = {}
    look_s, sequence = 0.0, 0

    def look() -> None:
        nonlocal listed
        alerts, _ = trial.look(START_MS + round(look_s * 1000))
        ranked = list(dict.fromkeys(alert.i for alert in alerts))
        kinds: dict[int, Alert] = {}
        for alert in alerts:
            kinds.setdefault(alert.i, alert)
        for i in ranked:
            student = lesson.students[i]
            if student.is_in_trouble(look_s):
                if lesson.is_planted(student) and student.trouble[-1][0] <= look_s:
                    first.setdefault(i, (look_s, kinds[i].kind))
            elif i not in listed:
                key = f"{student.kind}: {kinds[i].kind}"
                false[key] = false.get(key, 0) + 1
        listed = set(ranked)
        if look_s % 60 == 0 and ranked:
            top = ranked[:10]
            tops.append((sum(lesson.students[i].is_in_trouble(look_s) for i in top), len(top)))
        if look_s / 60 in GLANCES_MIN[scenario]:
            glances[round(look_s / 60)] = ranked[:3], find_neediest(lesson, look_s)

    for moment in lesson.play():
        while moment.at_s >= look_s:
            look()
            look_s += LOOK_S
        student = lesson.students[moment.student]
        if moment.event_type is None:
            at_ms = START_MS + round(moment.at_s * 1000)
            trial.room.hear(str(student.user_id), at_ms, moment.data["state"])
        else:
            sequence += 1
            trial.happen(lesson.describe(moment, COURSE, sequence))
    return {
        "seed": seed,
        "student_minutes": students * lesson.end_s / 60,
        "planted": [describe(lesson, one, first) for one in lesson.students if lesson.is_planted(one)],
        "false": false,
        "tops": tops,
        "glances": glances,
    }


def describe(lesson: PlantedClass, student: Student, first: dict[int, tuple[float, str]]) -> dict[str, Any]:
    """One who was planted: when the trouble began, and when and as what the board said so."""
    since_s = student.trouble[-1][0]
    flagged_s, kind = first.get(student.number, (None, None))
    plan = lesson.kinds[student.kind]
    return {
        "kind": student.kind,
        "since_s": round(since_s),
        "visible_s": round(lesson.end_s - since_s),
        "flag_s": None if flagged_s is None else round(max(0.0, flagged_s - since_s)),
        "said": kind,
        "is_right": kind in plan["means"],
    }


def find_neediest(lesson: PlantedClass, at_s: float) -> list[int]:
    """The three in trouble with the most need: minutes, each as much as the scenario says that kind's is worth."""

    def need(student: Student) -> float:
        since_s = min(since for since, until in student.trouble if since <= at_s < until)
        worth: float = lesson.kinds.get(student.kind, {}).get("need_per_minute", 1.0)
        return (at_s - since_s) * worth

    troubled = [one for one in lesson.students if one.is_in_trouble(at_s)]
    return [one.number for one in sorted(troubled, key=need, reverse=True)[:3]]


def summarise(classes: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of docs/insight.md."""
    kinds: dict[str, dict[str, Any]] = {}
    for kind in sorted({one["kind"] for lesson in classes for one in lesson["planted"]}):
        planted = [one for lesson in classes for one in lesson["planted"] if one["kind"] == kind]
        times = sorted(one["flag_s"] for one in planted if one["flag_s"] is not None)
        found = [one for one in planted if one["flag_s"] is not None]
        kinds[kind] = {
            "planted": len(planted),
            "found": len(found),
            "flag_s_p50": times[len(times) // 2] if times else None,
            "flag_s_p95": times[min(len(times) - 1, int(0.95 * len(times)))] if times else None,
            "reason_right": round(sum(one["is_right"] for one in found) / len(found), 3) if found else None,
        }
    entries: dict[str, int] = {}
    for lesson in classes:
        for key, count in lesson["false"].items():
            entries[key] = entries.get(key, 0) + count
    found_all = [one for lesson in classes for one in lesson["planted"] if one["flag_s"] is not None]
    full = [true for lesson in classes for true, shown in lesson["tops"] if shown == 10]
    shares = [10 * true / shown for lesson in classes for true, shown in lesson["tops"]]
    glances = {
        minute: [len(set(shown) & set(needy)) for shown, needy in (lesson["glances"][minute] for lesson in classes)]
        for minute in classes[0]["glances"]
    }
    return {
        "kinds": kinds,
        "reason_right": round(sum(one["is_right"] for one in found_all) / len(found_all), 3),
        "false_per_1000_student_minutes": round(
            1000 * sum(entries.values()) / sum(lesson["student_minutes"] for lesson in classes), 3
        ),
        "false_entries": dict(sorted(entries.items(), key=lambda one: -one[1])),
        "top10_true_mean": round(mean(full), 2) if full else None,
        "top10_true_p5": sorted(full)[int(0.05 * len(full))] if full else None,
        "top10_minutes_with_8_or_more": round(sum(true >= 8 for true in full) / len(full), 3) if full else None,
        "shorter_lists_true_of_10": round(mean(shares), 2),
        "top3_right_mean": {minute: round(mean(right), 2) for minute, right in glances.items()},
        "top3_right": glances,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--students", type=int, default=200)
    parser.add_argument("--seed", type=int, default=201)
    parser.add_argument("--scenario", choices=list(GLANCES_MIN), default="scenarios")
    parser.add_argument("--dry", action="store_true", help="print only")
    asked = parser.parse_args()
    started_s = time.perf_counter()
    seeds = range(asked.seed, asked.seed + asked.classes)
    with ProcessPoolExecutor(2) as pool:
        given = ([one] * asked.classes for one in (asked.students, None, asked.scenario))
        classes = list(pool.map(play, seeds, *given))
    summary = {"classes": asked.classes, "students": asked.students, **summarise(classes)}
    summary["took_s"] = round(time.perf_counter() - started_s)
    text = json.dumps(summary, indent=1)
    print(text)
    if not asked.dry:
        name = "insight_demo" if asked.scenario == "demo" else "insight"
        (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
