"""What the simulated class's teacher does before it begins: the notebook, the roster, where the teams sit."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from nbpulse.errors import StartupError
from nbpulse.simulator.lesson import NOTEBOOK_NAME, read_notebook
from nbpulse.simulator.scenarios import load_people
from nbpulse.simulator.wire import Wire, describe_refusal

_TABLE: Final = 10
"""Who sits at one table is a team."""
_TABLES_ABREAST: Final = 5
_TABLES_SHOWN: Final = 40
"""So many are on the map; it has no room for more."""


@dataclass(frozen=True)
class Pupil:
    """One student as the roster has them."""

    name: str
    number: str
    team: str
    seat: str


def list_pupils(seed: int, students: int) -> list[Pupil]:
    """The roster, by seat."""
    people, pupils = load_people(), []
    for place in range(students):
        draw = random.Random(f"people:{seed}:{place}")  # noqa: S311 - a play, no secret
        is_japanese = draw.random() < 0.75
        names = people["ja" if is_japanese else "en"]
        family, given = draw.choice(names["family"]), draw.choice(names["given"])
        table, chair = divmod(place, _TABLE)
        pupils.append(
            Pupil(
                name=f"{family} {given}" if is_japanese else f"{given} {family}",
                number=f"D{seed % 100:02d}{place + 1:04d}",
                team=f"T{table + 1:02d}",
                seat=f"{table + 1}-{chair + 1}",
            )
        )
    return pupils


async def prepare_course(staff: Wire, course_id: str, pupils: Sequence[Pupil]) -> None:
    """All of it, as the course's instructor (whose token the wire bears). Raises StartupError (NB-3021)."""
    course = f"/api/v1/courses/{course_id}"
    notebook = f"{course}/notebooks?name={NOTEBOOK_NAME}"
    await _ask(staff, "POST", notebook, read_notebook().encode(), "application/x-ipynb+json")
    if not pupils:
        return
    await _ask(staff, "POST", f"{course}/roster?dry_run=false", _write_roster(pupils).encode(), "text/csv")
    places = [
        {
            "kind": "team",
            "name": team,
            "x": 10.0 + 20 * (table % _TABLES_ABREAST),
            "y": 7.5 + 12.5 * (table // _TABLES_ABREAST),
        }
        for table, team in enumerate(list(dict.fromkeys(one.team for one in pupils))[:_TABLES_SHOWN])
    ]
    await _ask(staff, "PUT", f"{course}/map", {"version": 0, "places": places})


def _write_roster(pupils: Sequence[Pupil]) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(("student_number", "name", "team", "seat"))
    writer.writerows((one.number, one.name, one.team, one.seat) for one in pupils)
    return file.getvalue()


async def _ask(staff: Wire, method: str, path: str, content: Any, content_type: str = "application/json") -> None:
    try:
        answer = await staff.ask(method, path, content, content_type)
    except (OSError, TimeoutError) as error:
        raise StartupError("NB-3021", url=path, detail=str(error) or type(error).__name__) from error
    if answer.status not in {200, 201}:
        raise StartupError("NB-3021", url=path, detail=describe_refusal(answer))
