"""Classes with planted trouble in virtual time: who is in trouble, since when, and what their Jupyter would tell.

Promises: the same seed makes the same class; what a student does is written in scenarios.json and demo.json by intent;
nothing here knows a clock, a network, or the rules that are to find them.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from typing import Any, Final
from uuid import UUID

from nbpulse.events import ReceivedEvent
from nbpulse.simulator.lesson import WRONG_ANSWER, Cell, Mistake, load_lesson

START: Final = datetime(2026, 4, 13, 1, 0, tzinfo=UTC)
PRESENCE_S: Final = 20
PLAIN_CELLS: Final = 24
DEMO: Final = "demo"
_TOUCHED_S: Final = 60
_WAIT: Final = "wait"  # nothing happens, but until then nothing later may have
_MISTAKES: Final = (
    Mistake("NameError", "name 'total' is not defined"),
    Mistake("TypeError", "'int' object is not callable"),
    Mistake("SyntaxError", "invalid syntax (line 3)"),
    Mistake("KeyError", "'price'"),
    Mistake("IndexError", "list index out of range"),
    Mistake("ValueError", "could not convert string to float"),
    Mistake("AttributeError", "'list' object has no attribute 'push'"),
    Mistake("ZeroDivisionError", "division by zero"),
)


@cache
def load_scenarios(name: str = "scenarios") -> dict[str, Any]:
    """The file: `class` is what all do, `kinds` what some do besides, or instead."""
    text = resources.files("nbpulse.simulator").joinpath(f"{name}.json").read_text(encoding="utf-8")
    scenarios: dict[str, Any] = json.loads(text)
    return scenarios


@cache
def load_people() -> dict[str, Any]:
    """Names and questions, Japanese and English."""
    people: dict[str, Any] = json.loads(resources.files("nbpulse.simulator").joinpath("people.json").read_text("utf-8"))
    return people


def make_plain_lesson(plan: dict[str, Any]) -> tuple[Cell, ...]:
    """Cells that are all alike, each as hard and as long as `plan` says; each may be an exercise's check."""
    kind = (60 * plan["minutes_per_cell"], math.exp(4), plan["slip"]["chance"], _MISTAKES, True)
    return tuple(Cell(f"cell-{place:02d}", place, "", *kind) for place in range(PLAIN_CELLS))


@dataclass(frozen=True)
class Moment:
    """
    Something that happens `at_s` after the class's beginning: an event, or (None) that presence is told. `cell`: its
    place in the lesson; `data`: as on the wire.
    """

    at_s: float
    student: int
    event_type: str | None
    cell: int = 0
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class Student:
    """One student. `trouble`: (since_s, until_s) of each time they need help, known once that has been played."""

    number: int
    kind: str
    user_id: UUID
    draw: random.Random
    pace: float
    arrives_s: float
    presence: str = "active"
    touched_s: float = 0.0
    trouble: list[list[float]] = field(default_factory=list)
    cell: int = 0
    _runs: int = 0

    def is_in_trouble(self, at_s: float) -> bool:
        """Whether they need help then."""
        return any(since <= at_s < until for since, until in self.trouble)


class PlantedClass:
    """One class of a seed, played from its beginning; `students` say the truth. The demo's has the demo's lesson."""

    def __init__(
        self, seed: int, students: int = 200, minutes: float | None = None, scenario: str = "scenarios"
    ) -> None:
        plan = load_scenarios(scenario)
        self.plan, self.kinds = plan["class"], plan["kinds"]
        self.cells = load_lesson() if scenario == DEMO else make_plain_lesson(self.plan)
        self.end_s = 60 * (minutes or self.plan["minutes"])
        chance = random.Random(f"scenarios:{seed}")  # noqa: S311 - a play, no secret
        kinds = [kind for kind, one in self.kinds.items() for _ in range(round(one["students"] * students / 200))]
        kinds += ["ordinary"] * (students - len(kinds))
        chance.shuffle(kinds)
        late = {number for number in range(students) if chance.random() < self.plan["late_share"]}
        self.students = [
            Student(
                number,
                kind,
                UUID(int=chance.getrandbits(128), version=4),
                random.Random(f"scenarios:{seed}:{number}"),  # noqa: S311
                self.kinds.get(kind, {}).get("pace", self.plan["pace"]["median"])
                * chance.lognormvariate(0, self.plan["pace"]["spread"]),
                60 * chance.uniform(*self.plan["late_min"]) if number in late else chance.uniform(0, 90),
            )
            for number, kind in enumerate(kinds)
        ]

    def play(self) -> Iterator[Moment]:
        """Everything that happens, in the order of time."""
        playing = [self._live(student) for student in self.students]
        playing += [self._tell_presence(student) for student in self.students]
        upcoming: list[tuple[float, int, Moment]] = []
        for number, stream in enumerate(playing):
            if (moment := next(stream, None)) is not None:
                heapq.heappush(upcoming, (moment.at_s, number, moment))
        while upcoming:
            at_s, number, moment = heapq.heappop(upcoming)
            if at_s >= self.end_s:
                continue
            if moment.event_type is None:
                yield replace(moment, data={"state": self._find_presence(self.students[moment.student], at_s)})
            elif moment.event_type != _WAIT:
                yield moment
            if (after := next(playing[number], None)) is not None:
                heapq.heappush(upcoming, (after.at_s, number, after))

    def _find_presence(self, student: Student, at_s: float) -> str:
        """What the front end would tell then."""
        if student.presence != "active":
            return student.presence
        return "active" if at_s - student.touched_s < _TOUCHED_S else "idle"

    def describe(self, moment: Moment, course_id: UUID, sequence: int) -> ReceivedEvent:
        """The event as it would have been received."""
        assert moment.event_type is not None  # noqa: S101 - presence is no event
        student = self.students[moment.student]
        at = START + timedelta(seconds=moment.at_s)
        return ReceivedEvent(
            event_id=UUID(int=(student.user_id.int + sequence) % 2**128),
            event_type=moment.event_type,
            occurred_at=at,
            received_at=at,
            user_id=student.user_id,
            course_id=course_id,
            notebook_path="lesson.ipynb",
            cell_id=self.cells[moment.cell].id,
            cell_index=self.cells[moment.cell].index,
            sequence=sequence,
            data=moment.data,
        )

    def is_planted(self, student: Student) -> bool:
        """Whether trouble was planted with them; its time is then the last of `trouble`, once it has begun."""
        return bool(self.kinds.get(student.kind, {}).get("is_trouble")) and bool(student.trouble)

    # --- what students do -----------------------------------------------------------------------------------------

    def _live(self, student: Student) -> Iterator[Moment]:
        student.touched_s = at_s = student.arrives_s
        yield Moment(at_s, student.number, "notebook_open")
        script = self.kinds[student.kind]["script"] if student.kind in self.kinds else [{"do": "follow"}]
        for act in script:
            if self.kinds.get(student.kind, {}).get("is_trouble") and act["do"] != "follow":
                # Nobody needs help before there is something to do.
                student.trouble.append([max(at_s, 60.0 * self.plan["explains_min"][0][1]), self.end_s])
            for moment in getattr(self, f"_{act['do']}")(student, at_s, act):
                at_s = moment.at_s
                yield moment

    def _follow(self, student: Student, at_s: float, act: dict[str, Any]) -> Iterator[Moment]:
        """The lesson, cell after cell, until the drawn minute, or its end."""
        until_s = 60 * student.draw.uniform(*act["min"]) if "min" in act else self.end_s
        while student.cell < len(self.cells):
            wait_s = self.cells[student.cell].think_s * student.pace * student.draw.lognormvariate(0, 0.45)
            due_s = self._skip_explanations(at_s, wait_s)
            yield from self._type(student, at_s, min(due_s, until_s) - at_s)
            at_s = min(due_s, until_s)
            if due_s > until_s:
                return
            for moment in self._solve(student, due_s):
                at_s = moment.at_s
                yield moment
            student.cell += 1

    def _solve(self, student: Student, at_s: float) -> Iterator[Moment]:
        """One cell: most run at once, some after a slip, a few are a hurdle, which is trouble while it lasts."""
        draw, slip, hurdle = student.draw, self.plan["slip"], self.plan["hurdle"]
        roll = draw.random()
        fails, retry = 0, slip["retry_s"]
        if roll < hurdle["chance"]:
            fails, retry = draw.randint(*hurdle["tries"]), hurdle["retry_s"]
            student.trouble.append([at_s, self.end_s])
        elif roll < hurdle["chance"] + self.cells[student.cell].difficulty:
            fails = draw.choices((1, 2, 3), slip["tries"])[0]
        error = draw.choice(self._list_mistakes(student))
        for _ in range(fails):
            yield from self._run(student, at_s, student.cell, error)
            wait_s = draw.uniform(*retry)
            yield from self._type(student, at_s + 1, wait_s - 1)
            at_s += wait_s
        yield from self._run(student, at_s, student.cell, None)
        if roll < hurdle["chance"]:
            student.trouble[-1][1] = at_s

    def _try(self, student: Student, at_s: float, act: dict[str, Any]) -> Iterator[Moment]:
        """Again and again at one cell, with or without a look back at an earlier one."""
        draw = student.draw
        student.cell = min(student.cell, len(self.cells) - 1)
        error = draw.choice(self._list_mistakes(student))
        while at_s < self.end_s:
            for wait in self._type(student, at_s, draw.uniform(*act["every_s"])):
                at_s = wait.at_s
                yield wait
            if act["fails"] != "the same way":
                error = draw.choice([one for one in _MISTAKES if one is not error])
            if student.cell and draw.random() < act.get("runs_earlier_cell", 0):
                yield from self._run(student, at_s, student.cell - 1, None)
                at_s += 3
            yield from self._run(student, at_s, student.cell, error)

    def _exercise(self, student: Student, at_s: float, act: dict[str, Any]) -> Iterator[Moment]:
        """On to the next exercise: the function is changed and runs well; its check fails at the same line."""
        checks = [place for place, cell in enumerate(self.cells) if cell.is_check]
        check = next((place for place in checks if place > student.cell), checks[-1])
        line = f"assert solve({student.draw.randrange(9)}) == {student.draw.randrange(99)}"
        line = self.cells[check].source or line
        for place in range(student.cell, check - 1):
            yield from self._run(student, at_s, place, None)
            at_s += 5
        while at_s < self.end_s:
            for wait in self._type(student, at_s, student.draw.uniform(*act["every_s"])):
                at_s = wait.at_s
                yield wait
            yield from self._run(student, at_s, check - 1, None)
            at_s += 4
            trace = f"Cell In[{student.draw.randrange(90)}], line 7\n----> 7 {line}"
            yield from self._run(student, at_s, check, WRONG_ANSWER, trace)

    def _raise_hand(self, student: Student, at_s: float, _: dict[str, Any]) -> Iterator[Moment]:
        """Nobody comes here, so it stays up."""
        asked = {"message": student.draw.choice(load_people()["questions"])}
        place = min(student.cell, len(self.cells) - 1)
        yield from self._run(student, at_s, place, student.draw.choice(self._list_mistakes(student)))
        yield Moment(at_s + 15, student.number, "help_request", place, asked)
        yield from self._type(student, at_s + 15, self.end_s - at_s)

    def _struggle(self, student: Student, at_s: float, act: dict[str, Any]) -> Iterator[Moment]:
        student.pace *= act["times_slower"]
        yield from self._follow(student, at_s, act)

    def _run_for_ever(self, student: Student, at_s: float, _: dict[str, Any]) -> Iterator[Moment]:
        yield Moment(at_s, student.number, "cell_execution_start", min(student.cell, len(self.cells) - 1))
        yield from self._type(student, at_s, 120)

    def _look_elsewhere(self, student: Student, _: float, __: dict[str, Any]) -> Iterator[Moment]:
        student.presence = "hidden"
        yield Moment(self.end_s, student.number, _WAIT)

    def _leave_for(self, student: Student, at_s: float, act: dict[str, Any]) -> Iterator[Moment]:
        student.presence = "idle"
        back_s = at_s + 60 * student.draw.uniform(*act["min"])
        yield Moment(back_s, student.number, _WAIT)
        student.presence, student.touched_s = "active", back_s

    def _read(self, student: Student, at_s: float, act: dict[str, Any]) -> Iterator[Moment]:
        yield from self._type(student, at_s, 60 * student.draw.uniform(*act["min"]))

    def _type(self, student: Student, at_s: float, for_s: float) -> Iterator[Moment]:
        """There, typing or scrolling now and then."""
        end_s = at_s + for_s
        while at_s < end_s:
            if not any(60 * since <= at_s < 60 * until for since, until in self.plan["explains_min"]):
                student.touched_s = at_s
            at_s = min(end_s, at_s + 25)
            yield Moment(at_s, student.number, _WAIT)

    def _run(
        self, student: Student, at_s: float, cell: int, error: Mistake | None, traceback: str = ""
    ) -> Iterator[Moment]:
        duration_ms = round(student.draw.lognormvariate(math.log(self.cells[cell].run_ms), 0.8), 1)
        data: dict[str, Any] = {"status": "error" if error else "ok", "execution_duration_ms": duration_ms}
        if error:
            data |= {"error_name": error.name, "error_message": error.message, "traceback": traceback}
        student.touched_s = at_s
        yield Moment(at_s, student.number, "cell_execution_start", cell)
        yield Moment(at_s + duration_ms / 1000, student.number, "cell_execution", cell, data)

    def _list_mistakes(self, student: Student) -> Sequence[Mistake]:
        """What somebody does wrong on the cell they are on."""
        return self.cells[min(student.cell, len(self.cells) - 1)].mistakes or _MISTAKES

    def _skip_explanations(self, at_s: float, wait_s: float) -> float:
        """When `wait_s` of work are over, which rests while the teacher explains."""
        due_s = at_s + wait_s
        for since_min, until_min in self.plan["explains_min"]:
            if at_s < 60 * until_min and due_s > 60 * since_min:
                due_s += 60 * until_min - max(at_s, 60 * since_min)
        return due_s

    def _tell_presence(self, student: Student) -> Iterator[Moment]:
        at_s = student.arrives_s + student.number % PRESENCE_S
        while at_s < self.end_s:
            yield Moment(at_s, student.number, None)
            at_s += PRESENCE_S
