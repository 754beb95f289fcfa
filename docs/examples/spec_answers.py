"""Reads what psql, the influx shell, redis-cli and /metrics print, for spec_checks.py; and the specification's keys."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

TAGS = {
    "cell_executions": {"user_id", "notebook_path", "cell_index", "event_type"},
    "learning_progress": {"user_id", "notebook_path"},
    "performance_metrics": {"user_id", "notebook_path", "cell_type"},
}
FIELDS = {
    "cell_executions": {
        "execution_duration_ms": "float",
        "has_error": "boolean",
        "error_message": "string",
        "execution_count": "integer",
        "error_count": "integer",
    },
    "learning_progress": {
        "completed_cells": "integer",
        "total_cells": "integer",
        "progress_percentage": "float",
        "session_duration_ms": "integer",
    },
    "performance_metrics": {
        "avg_execution_time": "float",
        "max_execution_time": "float",
        "error_rate": "float",
    },
}
_NUMBERS = {"time", "cell_index", "execution_count", "error_count", "cell_executions", "total_duration_ms"}


def read_psql(answer: str) -> list[dict[str, Any]]:
    """The rows of psql's table; numbers and times as such, an empty cell is None."""
    lines = [line for line in answer.splitlines() if " | " in line or line.endswith(" |")]
    names, *rows = ([cell.strip() for cell in line.split("|")] for line in lines)
    return [{name: _read_value(name, cell) for name, cell in zip(names, row, strict=True)} for row in rows]


def _read_value(name: str, cell: str) -> Any:
    if not cell:
        return None
    if name.endswith("_at"):
        return datetime.fromisoformat(cell)
    return int(cell) if name in _NUMBERS else cell


def read_influx(answer: str) -> list[dict[str, Any]]:
    """The rows of the influx shell's csv, tags unfolded; the time in nanoseconds, an empty cell is left out."""
    rows, names = [], []
    for cells in csv.reader(answer.splitlines()):
        if not cells:
            continue
        if cells[0] == "name":
            names = cells
            continue
        row = {name: cell for name, cell in zip(names, cells, strict=True) if cell != ""}
        tags = dict(tag.split("=", 1) for tag in row.pop("tags", "").split(",") if tag)
        rows.append({name: _read_field(name, cell) for name, cell in (row | tags).items()})
    return rows


def _read_field(name: str, cell: str) -> Any:
    if name == "time":
        return read_time_ns(cell)
    if cell in {"true", "false"}:
        return cell == "true"
    try:
        return int(cell)
    except ValueError:
        try:
            return float(cell)
        except ValueError:
            return cell


def read_time_ns(text: str) -> int:
    """An RFC 3339 time to the nanosecond, which datetime does not hold."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = round(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0") or 0)


def read_messages(answer: str) -> dict[str, list[dict[str, Any]]]:
    """Per channel what `redis-cli SUBSCRIBE` printed: three lines a message."""
    lines = answer.splitlines()
    heard = defaultdict(list)
    for kind, channel, message in zip(lines[::3], lines[1::3], lines[2::3], strict=False):
        if kind == "message":
            heard[channel].append(json.loads(message))
    return dict(heard)


def read_metrics(answer: str) -> dict[str, float]:
    """Sample -> value; of one that several processes serve, the sum."""
    found: dict[str, float] = defaultdict(float)
    for line in answer.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] += float(value)
    return dict(found)


def compare_keys(answer: str, column: str, equal: Callable[[str, Any, Any], str]) -> list[str]:
    """Every measurement's keys (and types of fields) against the specification's."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for row in read_influx(answer):
        found[row["name"]][row[column]] = row.get("fieldType")
    if column == "tagKey":
        wanted: dict[str, dict[str, Any]] = {name: dict.fromkeys(tags) for name, tags in TAGS.items()}
    else:
        wanted = FIELDS
    said = [equal("measurements", len(found), len(wanted))]
    for name, keys in wanted.items():
        equal(f"{name}: keys", dict(found[name]), keys)
    return [*said, equal("keys", sum(map(len, found.values())), sum(map(len, wanted.values())))]
