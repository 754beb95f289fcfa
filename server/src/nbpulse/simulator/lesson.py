"""The lesson every simulated student works through: a real notebook, and how hard each of its cells is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

NOTEBOOK_NAME: Final = "temperatures.ipynb"


@dataclass(frozen=True)
class Mistake:
    """One way to fail, as the kernel words it."""

    name: str
    message: str


@dataclass(frozen=True)
class Cell:
    """
    One code cell; `index` counts all cells. `think_s`: median time before a run; `run_ms`: of a run; `difficulty`: the
    chance, 0..1, that a first try fails; `mistakes`: how it does. `is_check`: it tests what the cell before defines.
    """

    id: str
    index: int
    source: str
    think_s: float
    run_ms: float
    difficulty: float
    mistakes: tuple[Mistake, ...]
    is_check: bool = False


_UNDEFINED: Final = "name '{}' is not defined"
_SYNTAX: Final = Mistake("SyntaxError", "invalid syntax (<ipython-input>, line 1)")
WRONG_ANSWER: Final = Mistake("AssertionError", "")


def _forgot(name: str) -> Mistake:
    return Mistake("NameError", _UNDEFINED.format(name))


# cell id: (thinking, running, difficulty, mistakes); what is not here is easy.
# Cell 12 is the storm: whoever skipped the cell with `by_day` meets it there.
_HARDNESS: Final[dict[str, tuple[float, float, float, tuple[Mistake, ...]]]] = {
    "average": (60, 3, 0.12, (_forgot("temprature"), Mistake("ZeroDivisionError", "division by zero"))),
    "fahrenheit": (90, 2, 0.22, (_SYNTAX, Mistake("IndentationError", "expected an indented block after function"))),
    "check-fahrenheit": (50, 3, 0.25, (WRONG_ANSWER,)),
    "convert": (60, 4, 0.15, (_forgot("to_farenheit"), Mistake("TypeError", "can't multiply sequence by non-int"))),
    "by-day": (80, 3, 0.12, (_forgot("day"), _SYNTAX)),
    "look-up": (40, 2, 0.30, (Mistake("KeyError", "'Sunday'"), Mistake("KeyError", "'sun'"))),
    "warm-days": (120, 3, 0.75, (_forgot("by_day"), _forgot("by_day"), _forgot("avarage"))),
    "bars": (70, 8, 0.15, (Mistake("TypeError", "can't multiply sequence by non-int of type 'float'"), _SYNTAX)),
    "coldest": (130, 2, 0.20, (_SYNTAX, Mistake("AttributeError", "'list' object has no attribute 'get'"))),
    "check-coldest": (50, 3, 0.30, (WRONG_ANSWER, Mistake("TypeError", "'NoneType' object is not callable"))),
    "sort": (60, 3, 0.12, (Mistake("AttributeError", "'dict' object has no attribute 'gets'"),)),
    "count-above": (120, 2, 0.25, (_SYNTAX, Mistake("IndentationError", "unindent does not match"))),
    "use-it": (40, 3, 0.15, (_forgot("count_abow"),)),
    "slow": (30, 2000, 0.0, ()),
    "spread": (50, 20, 0.10, (Mistake("ModuleNotFoundError", "No module named 'statistic'"),)),
    "exercise": (200, 3, 0.35, (_SYNTAX, Mistake("TypeError", "slice indices must be integers"))),
    "check": (60, 3, 0.55, (WRONG_ANSWER, Mistake("IndexError", "list index out of range"))),
}
_EASY: Final[tuple[float, float, float, tuple[Mistake, ...]]] = (40, 2, 0.02, (_SYNTAX,))


def read_notebook() -> str:
    """The notebook's file, as a student would save it."""
    return resources.files("nbpulse.simulator").joinpath(NOTEBOOK_NAME).read_text(encoding="utf-8")


@cache
def load_lesson() -> tuple[Cell, ...]:
    """The code cells in order."""
    cells = json.loads(read_notebook())["cells"]
    return tuple(
        Cell(
            cell["id"],
            index,
            "".join(cell["source"]),
            *_HARDNESS.get(cell["id"], _EASY),
            is_check="exercise" in cell["metadata"].get("tags", ()),
        )
        for index, cell in enumerate(cells)
        if cell["cell_type"] == "code"
    )
