"""A course's alert rules, and a lesson of its past to try them on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from nbpulse.classroom import DEFAULT_RULES, AlertRules, Column, ErrorGroups
from nbpulse.errors import NotFound
from nbpulse.events import ReceivedEvent
from nbpulse.records.adding import find_busiest
from nbpulse.records.audit import note_audit
from nbpulse.records.errorgroups import read_groups
from nbpulse.records.gathering import connect_parts
from nbpulse.records.people import People

EVENTS_MAX: Final = 60_000
LESSON_MAX: Final = timedelta(hours=4)
_MEETING = """
SELECT id, title, started_at, coalesce(ended_at, now()) AS ended_at FROM class_meetings
WHERE course_id = $1 AND ($2::uuid IS NULL OR id = $2) ORDER BY started_at DESC LIMIT 1
"""
_NOTEBOOK = """
SELECT notebook_id, count(*) AS events FROM events WHERE course_id = $1 AND occurred_at >= $2 AND occurred_at < $3
    AND event_type = 'cell_execution' AND notebook_id IS NOT NULL
GROUP BY notebook_id
"""
_COLUMNS = """
SELECT cell_id, cell_index, title FROM notebook_cells WHERE notebook_id = $1 AND cell_type IS DISTINCT FROM 'markdown'
    AND (is_registered OR student_count >= 3) ORDER BY cell_index NULLS LAST, cell_id LIMIT 500
"""
_STUDENTS = "SELECT user_id FROM enrolments WHERE course_id = $1 AND role = 'student'"
_EVENTS = """
SELECT e.user_id, e.event_id, e.event_type, e.occurred_at, e.received_at, e.cell_id, e.cell_index, e.sequence,
    e.error_message, e.traceback, e.data->>'status' AS status, e.data->>'error_name' AS error_name,
    e.data->'execution_duration_ms' AS duration_ms
FROM events e
WHERE e.course_id = $1 AND e.occurred_at >= $2 AND e.occurred_at < $3 AND e.received_at < e.occurred_at + $6
    AND (e.notebook_id = $4 OR e.event_type IN ('help_request', 'help_cancel', 'kernel_status'))
ORDER BY e.occurred_at, e.sequence, e.event_id LIMIT $5
"""
_LATE: Final = timedelta(minutes=15)


class Lesson(msgspec.Struct, frozen=True):
    """
    What happened in one notebook during a meeting, in the order of time; what came 15 minutes late or more is left out.

    `is_whole`: false where only the first 4 hours or 60,000 events are given.
    """

    meeting_id: UUID
    title: str | None
    started_at: datetime
    ended_at: datetime
    notebook_id: UUID | None
    columns: list[Column]
    user_ids: list[UUID]
    events: list[ReceivedEvent]
    is_whole: bool
    groups: ErrorGroups
    """As they are settled now."""


def read_rules(stored: str | None) -> AlertRules:
    """The rules of the `alert_rules` column; what a newer version has stored besides is passed over."""
    changes: Mapping[str, Any] = json.loads(stored or "{}")
    known = {name: value for name, value in changes.items() if name in AlertRules.__struct_fields__}
    return msgspec.convert(known, AlertRules)


class CourseRules:
    """Rules of courses. Every method raises Unavailable (NB-2003) when PostgreSQL is away."""

    def __init__(self, people: People) -> None:
        self._people = people

    async def find(self, course_id: UUID) -> AlertRules:
        """The course's rules, the defaults where it has set none. Raises NotFound (NB-1202)."""
        async with self._people.connect("find_rules") as connection:
            return await _find(connection, course_id)

    async def change(self, course_id: UUID, rules: AlertRules) -> None:
        """Keep checked rules: what differs from the defaults. Raises NotFound (NB-1202)."""
        async with self._people.connect("change_rules") as connection:
            before = await _find(connection, course_id, is_locked=True)
            if rules == before:
                return
            stored = msgspec.json.encode(rules).decode()
            await connection.execute("UPDATE courses SET alert_rules = $2::jsonb WHERE id = $1", course_id, stored)
            changed = [name for name in AlertRules.__struct_fields__ if getattr(rules, name) != getattr(before, name)]
            facts: dict[str, str | int | bool] = {"changed": ",".join(changed), "are_defaults": rules == DEFAULT_RULES}
            await note_audit(connection, "rules_changed", course_id=course_id, facts=facts)

    async def read_lesson(self, course_id: UUID, meeting_id: UUID | None) -> Lesson:
        """That meeting, or the newest for None. Raises NotFound: none (NB-1253), no such one (NB-1201)."""
        seal = self._people.seal
        async with self._people.connect("read_lesson") as connection:
            meeting = await connection.fetchrow(_MEETING, course_id, meeting_id)
            if meeting is None:
                raise NotFound("NB-1253" if meeting_id is None else "NB-1201")
            students = await connection.fetch(_STUDENTS, course_id)
            groups = await read_groups(connection, course_id)
        since, until = meeting["started_at"], min(meeting["ended_at"], meeting["started_at"] + LESSON_MAX)
        async with connect_parts(self._people, "read_lesson", is_staff=True) as parts:
            notebook_id = find_busiest(await parts.fetch(_NOTEBOOK, course_id, since, until))
            rows = await parts.fetch(_EVENTS, course_id, since, until, notebook_id, EVENTS_MAX + 1, _LATE)
        if not parts.is_one:
            rows.sort(key=lambda row: (row["occurred_at"], row["sequence"], row["event_id"]))
            rows = rows[: EVENTS_MAX + 1]
        async with self._people.connect("read_lesson") as connection:
            columns = await connection.fetch(_COLUMNS, notebook_id)
        user_ids = [row["user_id"] for row in students]
        of_students = set(user_ids)

        def open_text(row: asyncpg.Record, column: str) -> str | None:
            text = row[column]
            return seal.unseal(text, table="events", column=column, user_id=row["user_id"]) if text else None

        events = [
            _read_event(row, course_id, open_text(row, "error_message"), open_text(row, "traceback"))
            for row in rows[:EVENTS_MAX]
            if row["user_id"] in of_students
        ]
        return Lesson(
            meeting["id"],
            meeting["title"],
            since,
            until if len(rows) <= EVENTS_MAX else rows[EVENTS_MAX]["occurred_at"],
            notebook_id,
            [Column(row["cell_id"], row["cell_index"], row["title"]) for row in columns],
            user_ids,
            events,
            is_whole=len(rows) <= EVENTS_MAX and until == meeting["ended_at"],
            groups=groups,
        )


async def _find(connection: asyncpg.Connection, course_id: UUID, *, is_locked: bool = False) -> AlertRules:
    lock = " FOR UPDATE" if is_locked else ""
    row = await connection.fetchrow(f"SELECT alert_rules FROM courses WHERE id = $1{lock}", course_id)  # noqa: S608
    if row is None:
        raise NotFound("NB-1202")
    return read_rules(row["alert_rules"])


def _read_event(
    row: asyncpg.Record, course_id: UUID, error_message: str | None, traceback: str | None
) -> ReceivedEvent:
    data: dict[str, Any] = {
        "status": row["status"],
        "error_name": row["error_name"],
        "error_message": error_message,
        "traceback": traceback,
        "execution_duration_ms": json.loads(row["duration_ms"]) if row["duration_ms"] else None,
    }
    return ReceivedEvent(
        event_id=row["event_id"],
        event_type=row["event_type"],
        occurred_at=row["occurred_at"].astimezone(UTC),
        received_at=row["received_at"].astimezone(UTC),
        user_id=row["user_id"],
        course_id=course_id,
        cell_id=row["cell_id"],
        cell_index=row["cell_index"],
        sequence=row["sequence"],
        data={name: value for name, value in data.items() if value is not None},
    )
