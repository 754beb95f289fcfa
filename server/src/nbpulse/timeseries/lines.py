"""The two languages of InfluxDB: points in line protocol, names and texts in InfluxQL.

Every field has one type for ever (integers end in `i`, floats have a point or an exponent): another type is refused by
the server. Line protocol: https://docs.influxdata.com/influxdb/v1/write_protocols/line_protocol_reference/
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

from nbpulse.pipeline import CellExecutionPoint, LearningProgressPoint, PerformancePoint, SeriesPoint

TagSet = Literal["specified", "lean"]
ErrorText = Literal["normalised", "none", "full"]


def describe_point(point: SeriesPoint, *, tags: TagSet = "specified", error_text: ErrorText) -> str:
    """One line. The lean tag set and the error text concern `cell_executions` alone."""
    written: dict[str, str] = {"user_id": str(point.user_id), "notebook_path": point.notebook_path}
    match point:
        case CellExecutionPoint():
            more, fields = _describe_execution(point, tags, error_text)
            written |= more
        case LearningProgressPoint():
            fields = [
                f"completed_cells={int(point.completed_cells)}i",
                f"total_cells={int(point.total_cells)}i",
                f"progress_percentage={float(point.progress_percentage)!r}",
                f"session_duration_ms={int(point.session_duration_ms)}i",
            ]
        case PerformancePoint():
            written["cell_type"] = point.cell_type
            times = {"avg": point.avg_execution_time, "max": point.max_execution_time}
            fields = [f"{name}_execution_time={float(ms)!r}" for name, ms in times.items() if ms is not None]
            fields.append(f"error_rate={float(point.error_rate)!r}")
    return f"{_name_series(point.measurement, written)} {','.join(fields)} {point.time_ns}"


def _describe_execution(
    point: CellExecutionPoint, tags: TagSet, error_text: ErrorText
) -> tuple[dict[str, str], list[str]]:
    """
    Further tags, and fields. `has_error` is written only when true, so that the specification's `count("has_error")`
    counts errors; `error_count` beside it is 0 or 1.
    """
    written: dict[str, str] = {}
    fields: list[str] = []
    if tags == "specified":
        if point.cell_index is not None:
            written["cell_index"] = str(point.cell_index)
        written["event_type"] = point.event_type
    else:
        if point.cell_index is not None:
            fields.append(f"cell_index={point.cell_index}i")
        fields.append(f"event_type={_quote_field(point.event_type)}")
    if point.execution_duration_ms is not None:
        fields.append(f"execution_duration_ms={float(point.execution_duration_ms)!r}")
    if point.has_error:
        fields.append("has_error=true")
        if point.error_message and error_text != "none":  # which of the two texts, its maker has decided
            fields.append(f"error_message={_quote_field(point.error_message)}")
    fields.append(f"error_count={int(point.has_error)}i")
    if point.execution_count is not None:
        fields.append(f"execution_count={int(point.execution_count)}i")
    return written, fields


def _name_series(measurement: str, tags: Mapping[str, str]) -> str:
    """Tags in the order of their names, as the server sorts them anyway."""
    return ",".join([measurement, *(f"{name}={_escape_tag(tags[name])}" for name in sorted(tags))])


_TAG_SPECIAL: Final = re.compile(r"([,= ])")
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]")


def clean_tag(value: str) -> str:
    """
    A text as it stands in a tag: never empty and without line breaks, which no tag can hold, and without a backslash
    at its end, which would take the next comma with it.
    """
    clean = _CONTROLS.sub(" ", value)
    return clean + "_" if clean.endswith("\\") else clean or "unknown"


def _escape_tag(value: str) -> str:
    return _TAG_SPECIAL.sub(r"\\\1", clean_tag(value))


def _quote_field(text: str) -> str:
    escaped = _CONTROLS.sub(" ", text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def quote_name(name: str) -> str:
    """A name in InfluxQL."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def quote_text(text: str) -> str:
    """A text in InfluxQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
