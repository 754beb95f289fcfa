"""Which students' data has gaps: their events of a window, read one student at a time and judged by integrity.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg

from nbpulse.classroom import Trace, find_signs
from nbpulse.records.analysis import Span, Table
from nbpulse.records.gathering import Parts, connect_parts
from nbpulse.records.people import People

# What a client wrote into `data` may be anything: read as text, taken for a number here.
_TRACES = """
SELECT u.username, e.user_id, e.event_type, e.occurred_at, e.received_at, e.sequence, e.learning_session_id,
    e.data->>'status' AS status, e.data->>'execution_count' AS execution_count, e.data->>'told_by' AS told_by,
    CASE WHEN e.event_type = 'kernel_status' AND e.data->>'status' = 'events_lost' THEN e.data->>'event_count' END
        AS lost_count, e.data->>'clock_ahead_ms' AS clock_ahead_ms
FROM events e JOIN enrolments n ON n.user_id = e.user_id AND n.course_id = e.course_id AND n.role = 'student'
    JOIN users u ON u.id = e.user_id
WHERE e.course_id = $1 AND e.occurred_at >= $2 AND e.occurred_at < $3 AND ($4::uuid IS NULL OR e.user_id = $4)
ORDER BY u.username, e.user_id
"""


_CHANGES = "SELECT created_at FROM collection_versions WHERE course_id = $1 AND version > 1 AND created_at >= $2"


async def list_signs(people: People, course_id: UUID, span: Span, student_id: UUID | None = None) -> Table:
    """Each student's signs in the window, or one student's. Raises Unavailable (NB-2003)."""
    now = datetime.now(UTC)
    rows: list[tuple[Any, ...]] = []
    async with people.connect("list_signs") as connection:
        changes = [row["created_at"] for row in await connection.fetch(_CHANGES, course_id, span.start)]
    async with connect_parts(people, "list_signs", is_staff=True, whose=student_id) as parts:
        async for username, user_id, traces in _read_students(parts, course_id, span, student_id):
            rows += [
                (username, user_id, sign.kind, sign.count, sign.off_s, sign.since, sign.until)
                for sign in find_signs(traces, now, changes)
            ]
    if not parts.is_one:
        rows.sort(key=lambda row: row[:2])
    columns = ("username", "user_id", "sign", "count", "off_s", "since", "until")
    return Table(columns, ("text", "uuid", "text", "integer", "integer", "time", "time"), rows)


async def _read_students(
    parts: Parts, course_id: UUID, span: Span, student_id: UUID | None
) -> AsyncIterator[tuple[str, UUID, list[Trace]]]:
    name, student, traces = "", None, list[Trace]()
    async for piece in parts.walk(_TRACES, course_id, *span, student_id, order=("username", "user_id")):
        for row in piece:
            if row["user_id"] != student:
                if student is not None:
                    yield name, student, traces
                name, student, traces = row["username"], row["user_id"], []
            traces.append(_read_trace(row))
    if student is not None:
        yield name, student, traces


def _read_trace(row: asyncpg.Record) -> Trace:
    return Trace(
        row["event_type"],
        row["occurred_at"],
        row["received_at"],
        row["sequence"],
        row["learning_session_id"],
        status=row["status"],
        execution_count=_read_count(row["execution_count"]),
        told_by=row["told_by"],
        lost_count=_read_count(row["lost_count"]),
        clock_ahead_ms=_read_count(row["clock_ahead_ms"]),
    )


def _read_count(text: str | None) -> int:
    """A whole number below a thousand millions; 0 for anything else."""
    return int(text) if text and len(text) <= 9 and text.isascii() and text.isdigit() else 0
