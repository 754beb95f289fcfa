"""A class as its own students may see it on the projector: nobody's name, nobody's words, no group of one or two.

Everything it says is a number, or a word of a closed list. Promises, whatever the class (decision 0028): a group
smaller than 3 is not told of, nor can it be found by subtracting what is shown; of fewer than 5 students nothing is
said.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Any, Final

from nbpulse.classroom.rules import HERE

GROUP_MIN: Final = 3
CLASS_MIN: Final = 5
# Each quarter of the class is a group of its own.
_QUARTILES_MIN: Final = 4 * GROUP_MIN
_ERRORS_MAX: Final = 5
# A class of errors that a student has named may be named after another student: only Python's own are told.
ERROR_NAMES: Final = frozenset(
    name for name, one in vars(builtins).items() if isinstance(one, type) and issubclass(one, BaseException)
)
OTHER_ERROR: Final = "Error"


def project(board: Mapping[str, Any]) -> dict[str, Any]:
    """
    What of a snapshot (`Classroom.snapshot`) may be shown to everybody.

    `present`: how many are here, None for fewer than 5, and then the rest is empty. `shares`: whole percent of them by
    status, `other` for small groups together; empty where only small groups could be told of. `progress`: how far half
    of those who have begun are, `ratio` 0..1 of the cells and `cell`, the number people call it by, of `cells`; `low`
    and `high`: the quartiles' ratios, None for fewer than 12. `errors`: that at least 3 (`n`) have now, by Python's
    name.
    """
    here = {status: board["counts"][status] for status in HERE}
    present = sum(here.values())
    if present < CLASS_MIN:
        return {"present": None, "shares": {}, "progress": None, "errors": []}
    return {
        "present": present,
        "shares": {status: round(100 * count / present) for status, count in _withhold(here).items()},
        "progress": _describe_progress(board["cells"], board["students"]),
        "errors": _describe_errors(board["errors"], board["cells"], present),
    }


def _withhold(counts: Mapping[str, int]) -> dict[str, int]:
    """
    The groups of at least 3. The others together where they are 3 or more; one or two are counted with the largest
    group, which so looks the same whether they are there or not. Nothing at all where most are in small groups, or
    where the others are so many that each small group must be there.
    """
    shown = {status: count for status, count in counts.items() if count >= GROUP_MIN}
    rest = sum(counts.values()) - sum(shown.values())
    others = len(counts) - len(shown)
    if 2 * rest > sum(counts.values()) or rest > (GROUP_MIN - 1) * (others - 1) > 0:
        return {}
    if rest >= GROUP_MIN:
        shown["other"] = rest
    elif rest:
        shown[max(shown, key=shown.__getitem__)] += rest
    return shown


def _describe_progress(
    cells: Sequence[Mapping[str, Any]], students: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    begun = sorted(one["pos"] for one in students if one["pos"] > 0 and one["st"] in HERE)
    if len(begun) < CLASS_MIN or not cells:
        return None
    median = begun[len(begun) // 2]
    has_quartiles = len(begun) >= _QUARTILES_MIN
    return {
        "ratio": round(median / len(cells), 3),
        "low": round(begun[len(begun) // 4] / len(cells), 3) if has_quartiles else None,
        "high": round(begun[len(begun) * 3 // 4] / len(cells), 3) if has_quartiles else None,
        "cell": cells[median - 1]["idx"] + 1,
        "cells": cells[-1]["idx"] + 1,
    }


def _describe_errors(errors: Sequence[Any], cells: Sequence[Mapping[str, Any]], present: int) -> list[dict[str, Any]]:
    """The most widespread first; two groups of one name on one cell are one line, with the larger number."""
    numbers = {cell["id"]: cell["idx"] + 1 for cell in cells}
    lines: dict[tuple[str, int | None], int] = {}
    for error in errors:
        name = (error.label.split() or [""])[0]
        place = name if name in ERROR_NAMES else OTHER_ERROR, numbers.get(error.cell)
        count = min(error.n, present)
        if count >= GROUP_MIN:
            # All but one or two is as good as all: those who are without it are no group to be told of either.
            lines[place] = max(lines.get(place, 0), present if present - count < GROUP_MIN else count)
    return [{"name": name, "cell": cell, "n": n} for (name, cell), n in lines.items()][:_ERRORS_MAX]
