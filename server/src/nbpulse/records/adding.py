"""What several databases tell of a course's cells and errors, added up. Pure.

Promises: counts, students and values add, as a student's rows are in one database; percentiles are made of all values
as the database makes them; rows come in the order in which one database would give them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final
from uuid import UUID

from nbpulse.classroom.quantiles import find_quantile

Row = Mapping[str, Any]
_ERROR_KEY: Final = ("fingerprint", "notebook_id", "notebook_path")
_CELL_KEY: Final = ("notebook_id", "notebook_path", "cell_id")


def add_up_errors(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Error groups, those that most students met first."""
    least, most = _pick(min), _pick(max)
    told = {"error_name": least, "cell_id": least, "errors": sum, "students": sum, "first_at": least, "last_at": most}
    return sorted(
        _add_up(rows, _ERROR_KEY, told),
        key=lambda one: (
            *(-one["students"], -one["errors"], one["fingerprint"]),
            *(one["notebook_id"] is None, str(one["notebook_id"])),
        ),
    )


def add_up_durations(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Cells by the p95 of their `values`, durations in ms; the slowest first."""
    told = {"cell_index": _pick(max), "executions": sum, "students": sum, "values": chain.from_iterable}
    cells = _add_up(rows, _CELL_KEY, told)
    for cell in cells:
        values = sorted(cell.pop("values"))
        cell["avg_ms"], cell["max_ms"] = math.fsum(values) / len(values), values[-1]
        cell["median_ms"], cell["p95_ms"] = find_quantile(values, 0.5), find_quantile(values, 0.95)
    return sorted(cells, key=lambda cell: (-cell["p95_ms"], *_rank_cell(cell)))


def add_up_recoveries(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Cells by the median of their `values`, the times in ms to the next ok; the longest first, then those of none."""
    told = {
        "cell_index": _pick(max),
        "errors": sum,
        "recovered_errors": sum,
        "students": sum,
        "values": chain.from_iterable,
    }
    cells = _add_up(rows, _CELL_KEY, told)
    for cell in cells:
        values = sorted(cell.pop("values"))
        cell["median_ms"], cell["p90_ms"] = find_quantile(values, 0.5), find_quantile(values, 0.9)
    return sorted(cells, key=lambda cell: (cell["median_ms"] is None, -(cell["median_ms"] or 0), *_rank_cell(cell)))


def find_busiest(rows: Iterable[Row]) -> UUID | None:
    """The notebook of most `events`; None of none."""
    counts = Counter[UUID]()
    for row in rows:
        counts[row["notebook_id"]] += row["events"]
    return min(counts, key=lambda one: (-counts[one], one), default=None)


def _add_up(
    rows: Iterable[Row], key: Sequence[str], told: Mapping[str, Callable[[list[Any]], Any]]
) -> list[dict[str, Any]]:
    """One row for each `key`, every other column by its own rule."""
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault(tuple(row[name] for name in key), []).append(row)
    return [
        {
            **dict(zip(key, place, strict=True)),
            **{name: rule([row[name] for row in some]) for name, rule in told.items()},
        }
        for place, some in alike.items()
    ]


def _pick(choose: Callable[..., Any]) -> Callable[[list[Any]], Any]:
    """The least or greatest of those that are known."""
    return lambda values: choose((one for one in values if one is not None), default=None)


def _rank_cell(cell: Row) -> tuple[Any, ...]:
    """By notebook and cell, those of no notebook last."""
    return cell["notebook_path"] is None, cell["notebook_path"] or "", cell["cell_id"]
