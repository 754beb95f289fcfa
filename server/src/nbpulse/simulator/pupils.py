"""What one simulated student does: a script of waits and events, drawn from a seed.

Promises: the same seed makes the same class; paces, mistakes and their repetition are drawn per student and per cell;
nothing here knows a clock or a network.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any
from uuid import UUID

from nbpulse.simulator.lesson import NOTEBOOK_NAME, Cell, Mistake, load_lesson


@cache
def _load_people() -> dict[str, Any]:
    """Names and questions, Japanese and English."""
    people: dict[str, Any] = json.loads(resources.files("nbpulse.simulator").joinpath("people.json").read_text("utf-8"))
    return people


@dataclass(frozen=True)
class Step:
    """After `wait_s`, these events happen at once (event_type, cell, data)."""

    wait_s: float
    events: tuple[tuple[str, Cell | None, dict[str, Any]], ...]


@dataclass
class Pupil:
    """One student: a name, a pace, and a random source of their own."""

    number: int
    seed: int
    speed: float = 1.0
    name: str = field(init=False)
    has_left: bool = False
    is_idle: bool = False
    _random: random.Random = field(init=False)
    _ids: random.Random = field(init=False)
    _execution_count: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(f"{self.seed}:{self.number}")  # noqa: S311 - a play, no secret
        self._ids = random.Random(f"{self.seed}:{self.number}:ids")  # noqa: S311
        draw, people = self._random, _load_people()
        names = people["ja" if draw.random() < 0.75 else "en"]
        family, given = draw.choice(names["family"]), draw.choice(names["given"])
        self.name = f"{family} {given}" if names is people["ja"] else f"{given} {family}"
        self.questions: list[str] = people["questions"]
        self.pace = draw.lognormvariate(0, 0.4)
        self.skill = draw.lognormvariate(0, 0.3)
        self.session_id = self.make_id()

    def make_id(self) -> UUID:
        """The next id of this student's own sequence, apart from what decides the play."""
        return UUID(int=self._ids.getrandbits(128), version=4)

    def play(self) -> Iterator[Step]:
        """
        The student's whole class, without an end.

        It starts in the middle: the first cells are run in one go, as by "Run All Above". Student 2 asks for help soon.
        """
        draw, lesson = self._random, load_lesson()
        start = min(max(round(draw.gauss(5, 2)), 1), len(lesson) - 6)
        yield Step(draw.uniform(0, 2.0), tuple(self._run_above(lesson[:start])))
        if self.number == 2:
            yield Step(0.2, (("help_request", lesson[start], {"message": self.questions[1]}),))
            yield Step(draw.uniform(60, 120) / self.speed, (("help_cancel", lesson[start], {}),))
        absent_from = draw.randrange(start, len(lesson)) if draw.random() < 0.06 else -1
        for position in range(start, len(lesson)):
            if position == absent_from:
                yield from self._be_absent()
            yield from self._solve(lesson[position])
        while True:
            yield from self._solve(draw.choice(lesson), hurry=0.3)

    def _run_above(self, cells: tuple[Cell, ...]) -> Iterator[tuple[str, Cell, dict[str, Any]]]:
        yield ("session_start", cells[0], {})
        for cell in cells:
            yield ("cell_execution_start", cell, {})
            yield ("cell_execution", cell, self._end_well(cell))

    def _solve(self, cell: Cell, hurry: float = 1.0) -> Iterator[Step]:
        """Think, run, fail, think again, until the cell works; after three failures some raise a hand."""
        draw = self._random
        failures = 0
        if draw.random() < cell.difficulty / self.skill and cell.mistakes:
            failures = 1 + min(int(draw.expovariate(0.6)), 6)
        mistake = draw.choice(cell.mistakes) if cell.mistakes else None
        for attempt in range(failures):
            yield from self._run(cell, self._think(cell, 0.5 if attempt else hurry), mistake)
            if attempt == 2 and draw.random() < 0.25:
                yield from self._ask(cell)
            elif draw.random() < 0.3:
                mistake = draw.choice(cell.mistakes)
        yield from self._run(cell, self._think(cell, 0.5 if failures else hurry), None)

    def _run(self, cell: Cell, wait_s: float, mistake: Mistake | None) -> Iterator[Step]:
        yield Step(wait_s, (("cell_execution_start", cell, {}),))
        data = self._end_well(cell)
        if mistake is not None:
            data |= {"status": "error", "has_error": True, "error_name": mistake.name}
            data |= {"error_message": mistake.message}
        yield Step(data["execution_duration_ms"] / 1000, (("cell_execution", cell, data),))

    def _end_well(self, cell: Cell) -> dict[str, Any]:
        self._execution_count += 1
        duration_ms = round(cell.run_ms * self._random.lognormvariate(0, 0.3), 2)
        ended: dict[str, Any] = {"status": "ok", "execution_duration_ms": duration_ms, "has_error": False}
        return ended | {"execution_count": self._execution_count}

    def _think(self, cell: Cell, share: float) -> float:
        return cell.think_s * share * self.pace * self._random.lognormvariate(0, 0.5) / self.speed

    def _ask(self, cell: Cell) -> Iterator[Step]:
        draw = self._random
        yield Step(3 / self.speed, (("help_request", cell, {"message": draw.choice(self.questions)}),))
        yield Step(draw.uniform(40, 150) / self.speed, (("help_cancel", cell, {}),))

    def _be_absent(self) -> Iterator[Step]:
        """Idle with the notebook open, for real minutes: the board counts those. One in three goes home."""
        self.is_idle = True
        self.has_left = self._random.random() < 0.33
        yield Step(self._random.uniform(360, 600), ())
        self.is_idle = self.has_left = False


def describe_event(
    pupil: Pupil, sequence: int, occurred_at: str, event: tuple[str, Cell | None, dict[str, Any]]
) -> dict[str, Any]:
    """One event on the wire."""
    event_type, cell, data = event
    return {
        "schema_version": 1,
        "event_id": str(pupil.make_id()),
        "event_type": event_type,
        "occurred_at": occurred_at,
        "sequence": sequence,
        "session_id": str(pupil.session_id),
        "notebook_path": NOTEBOOK_NAME,
        "cell_id": cell.id if cell else None,
        "cell_index": cell.index if cell else None,
        "cell_type": "code" if cell else None,
        "data": data,
    }
