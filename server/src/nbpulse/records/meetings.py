"""Class meetings: one sitting of a course, from its beginning to its end.

A meeting begins by a button, or by itself when 3 students are active after 30 minutes of quiet; it ends by a button, or
by itself after 30 minutes of quiet, as of the last activity. An end by the button can be undone for some seconds: until
then no hand is taken down. Promises: a course has at most one open meeting, whoever asks at once; beginning, ending and
undoing again changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID, uuid5

import asyncpg
import msgspec

from nbpulse.errors import Conflict, NotFound, Unavailable
from nbpulse.events import CLASS_ENDED, ReceivedEvent
from nbpulse.metrics import named_query
from nbpulse.records.audit import note_audit
from nbpulse.records.failures import UNAVAILABLE
from nbpulse.records.people import People

BEGIN_STUDENTS: Final = 3
ACTIVE_MINUTES: Final = 5
QUIET_MINUTES: Final = 30
# The board offers it for 10 s; the rest is for the way here.
UNDO_S: Final = 15
_COLUMNS: Final = "id, title, notebook_ids, started_at, ended_at, started_by, ended_by"
_START = f"""
INSERT INTO class_meetings (course_id, title, started_by) VALUES ($1, $2, $3)
ON CONFLICT (course_id) WHERE ended_at IS NULL DO NOTHING RETURNING {_COLUMNS}
"""  # noqa: S608 - constants
_END = f"""
UPDATE class_meetings SET ended_at = greatest(now(), started_at), ended_by = $2
WHERE course_id = $1 AND ended_at IS NULL RETURNING {_COLUMNS}
"""  # noqa: S608
# Not where another has begun since; whoever ended it.
_REOPEN = f"""
UPDATE class_meetings m SET ended_at = NULL, ended_by = NULL
WHERE course_id = $1 AND id = $2 AND ended_by IS NOT NULL AND ended_at > now() - $3 * interval '1 second'
    AND NOT EXISTS (SELECT FROM class_meetings l WHERE l.course_id = $1 AND l.started_at > m.started_at)
RETURNING {_COLUMNS}
"""  # noqa: S608
_FIND = f"SELECT {_COLUMNS} FROM class_meetings WHERE course_id = $1 AND id = $2"  # noqa: S608
_LIST = f"SELECT {_COLUMNS} FROM class_meetings WHERE course_id = $1 ORDER BY started_at DESC LIMIT $2"  # noqa: S608
# Of those asked about where no meeting is open and enough students are active; `ended_at`: of the meeting before. What
# the ledger says of such a course is asked course by course: they are few, and Citus takes no statement that looks up
# each row there.
_FIND_ACTIVE = """
WITH active AS (
    SELECT s.course_id FROM learner_states s JOIN enrolments e USING (user_id, course_id)
    WHERE s.course_id = ANY(ARRAY(
            SELECT unnest($3::uuid[]) EXCEPT SELECT course_id FROM class_meetings WHERE ended_at IS NULL))
        AND e.role = 'student' AND s.last_activity_at > now() - $1 * interval '1 minute'
    GROUP BY s.course_id HAVING count(*) >= $2
), previous AS (
    SELECT DISTINCT ON (m.course_id) m.course_id, m.ended_at FROM class_meetings m JOIN active USING (course_id)
    ORDER BY m.course_id, m.started_at DESC
)
SELECT a.course_id, p.ended_at FROM active a LEFT JOIN previous p USING (course_id)
"""
# Of students whose rows are in another database the directory knows the half minutes of their runs (rollups.py).
# After one that was ended by its button there must be a gap in the course's events: the same lesson does not begin
# twice because its students go on working.
_BEGIN_BY_ITSELF = """
INSERT INTO class_meetings (course_id, started_at)
SELECT $1, coalesce(least((SELECT min(e.occurred_at) FROM events e
    WHERE e.course_id = $1 AND e.occurred_at > now() - $3 * interval '1 minute'),
    (SELECT to_timestamp(min(r.half_minute)::float8 * 30) FROM recent_runs r WHERE r.course_id = $1
        AND r.half_minute > extract(epoch FROM now() - $3 * interval '1 minute')::int / 30)), now())
WHERE $2::timestamptz IS NULL OR EXISTS (
    SELECT FROM (
        SELECT occurred_at - lag(occurred_at, 1, $2) OVER (ORDER BY occurred_at) AS gap FROM (
            SELECT e.occurred_at FROM events e WHERE e.course_id = $1 AND e.occurred_at > $2
            UNION ALL
            SELECT to_timestamp(r.half_minute::float8 * 30) FROM recent_runs r
            WHERE r.course_id = $1 AND r.half_minute > extract(epoch FROM $2)::int / 30
        ) either
    ) gaps WHERE gap >= $4 * interval '1 minute')
ON CONFLICT (course_id) WHERE ended_at IS NULL DO NOTHING RETURNING course_id
"""
# Of these meetings' courses alone: the planner takes them for many and would read what the whole school has.
_END_BY_ITSELF = """
WITH due AS (
    SELECT id, course_id, started_at FROM class_meetings
    WHERE ended_at IS NULL AND started_at < now() - $1 * interval '1 minute'
), quiet AS (
    SELECT d.id, greatest(max(d.started_at), max(s.last_activity_at)) AS last_at
    FROM due d LEFT JOIN learner_states s ON s.course_id = d.course_id
        AND s.course_id = ANY(ARRAY(SELECT course_id FROM due))
    GROUP BY d.id
)
UPDATE class_meetings m SET ended_at = quiet.last_at FROM quiet
WHERE m.id = quiet.id AND quiet.last_at < now() - $1 * interval '1 minute' RETURNING m.course_id
"""
_NOTE_NOTEBOOKS = """
WITH used AS (
    SELECT id, array_agg(DISTINCT notebook_id ORDER BY notebook_id) AS notebook_ids FROM (
        SELECT m.id, s.notebook_id FROM class_meetings m JOIN learning_sessions s ON s.course_id = m.course_id
            AND s.last_activity_at >= m.started_at AND s.started_at > m.started_at - interval '1 day'
        WHERE m.ended_at IS NULL AND m.course_id = ANY($1::uuid[]) AND s.notebook_id IS NOT NULL
        UNION
        SELECT m.id, r.notebook_id FROM class_meetings m JOIN recent_runs r ON r.course_id = m.course_id
            AND r.half_minute >= extract(epoch FROM m.started_at)::int / 30
        WHERE m.ended_at IS NULL AND m.course_id = ANY($1::uuid[])
    ) either GROUP BY id
)
UPDATE class_meetings m SET notebook_ids = used.notebook_ids FROM used
WHERE m.id = used.id AND m.notebook_ids <> used.notebook_ids
"""
_LEFT_HANDS = """
SELECT h.user_id, h.course_id, h.id, m.id AS meeting_id FROM help_requests h JOIN LATERAL (
    SELECT id, ended_at FROM class_meetings WHERE course_id = h.course_id ORDER BY started_at DESC LIMIT 1
) m ON m.ended_at IS NOT NULL
WHERE h.closed_at IS NULL AND h.opened_at <= m.ended_at AND m.ended_at < now() - $1 * interval '1 second' LIMIT 500
"""


class Meeting(msgspec.Struct, frozen=True):
    """One sitting. `ended_at` None: it goes on. `started_by`, `ended_by` None: by itself."""

    id: UUID
    title: str | None
    notebook_ids: list[UUID]
    started_at: datetime
    ended_at: datetime | None
    started_by: UUID | None
    ended_by: UUID | None


class Changed(msgspec.Struct, frozen=True):
    """What `keep_meetings` found to do: courses whose meeting began or ended, and withdrawals of hands left up."""

    course_ids: set[UUID]
    withdrawals: list[ReceivedEvent]


class Meetings:
    """Meetings for a course's staff. Every method raises Unavailable (NB-2003) when PostgreSQL is away."""

    def __init__(self, people: People) -> None:
        self._people = people

    async def start(self, course_id: UUID, started_by: UUID, title: str | None = None) -> tuple[Meeting, bool]:
        """
        The course's open meeting (title: at most 200 characters), and whether this call has begun it.

        Raises Conflict (NB-1212): the course is archived.
        """
        async with self._people.connect("start_meeting") as connection:
            if await connection.fetchval("SELECT is_course_archived($1)", course_id):
                raise Conflict("NB-1212")
            row = await connection.fetchrow(_START, course_id, title, started_by)
            is_new = row is not None
            if row is None:  # one is open
                row = await connection.fetchrow(_LIST, course_id, 1)
            else:
                facts = {"meeting_id": str(row["id"])}
                await note_audit(connection, "meeting_started", course_id=course_id, facts=facts)
        return Meeting(**dict(row)), is_new

    async def end(self, course_id: UUID, ended_by: UUID) -> Meeting:
        """End the course's open meeting. Raises NotFound (NB-1208) when none is open."""
        async with self._people.connect("end_meeting") as connection:
            row = await connection.fetchrow(_END, course_id, ended_by)
            if row is None:
                raise NotFound("NB-1208")
            await note_audit(connection, "meeting_ended", course_id=course_id, facts={"meeting_id": str(row["id"])})
        return Meeting(**dict(row))

    async def reopen(self, course_id: UUID, meeting_id: UUID) -> Meeting:
        """
        Take the end of a meeting back: it goes on as if it had not ended. One that is open stays as it is.

        Raises NotFound (NB-1201); Conflict (NB-1216): it ended too long ago, or by itself, or another has begun.
        """
        async with self._people.connect("reopen_meeting") as connection:
            row = await connection.fetchrow(_REOPEN, course_id, meeting_id, UNDO_S)
            if row is not None:
                facts = {"meeting_id": str(meeting_id)}
                await note_audit(connection, "meeting_reopened", course_id=course_id, facts=facts)
            else:
                row = await connection.fetchrow(_FIND, course_id, meeting_id)
        if row is None:
            raise NotFound("NB-1201")
        if row["ended_at"] is not None:
            raise Conflict("NB-1216")
        return Meeting(**dict(row))

    async def list_meetings(self, course_id: UUID, limit: int) -> list[Meeting]:
        """The newest first."""
        async with self._people.connect("list_meetings") as connection:
            rows = await connection.fetch(_LIST, course_id, limit)
        return [Meeting(**dict(row)) for row in rows]


@named_query("keep_meetings")
async def keep_meetings(pool: asyncpg.Pool, moving: Sequence[str]) -> Changed:
    """
    Begin and end what begins and ends by itself, for the worker's login.

    `moving`: the courses of which something was stored in the last ACTIVE_MINUTES. Only in them can a meeting begin, so
    that what else a school has costs nothing here; to end, every open meeting is asked.

    The withdrawals are the caller's to append to the stream: the same hand gives the same event, so again does no harm.
    Raises Unavailable (NB-2003).
    """
    try:
        async with pool.acquire(timeout=5) as connection, connection.transaction():
            ended = await connection.fetch(_END_BY_ITSELF, QUIET_MINUTES)
            begun = [
                row
                for active in await connection.fetch(_FIND_ACTIVE, ACTIVE_MINUTES, BEGIN_STUDENTS, moving)
                for row in await connection.fetch(_BEGIN_BY_ITSELF, *active, ACTIVE_MINUTES, QUIET_MINUTES)
            ]
            await connection.execute(_NOTE_NOTEBOOKS, moving)
            hands = await connection.fetch(_LEFT_HANDS, UNDO_S)
    except UNAVAILABLE as error:
        raise Unavailable("NB-2003") from error
    return Changed({row["course_id"] for row in (*ended, *begun)}, [_withdraw(row) for row in hands])


def _withdraw(row: asyncpg.Record) -> ReceivedEvent:
    now = datetime.now(UTC)
    return ReceivedEvent(
        event_id=uuid5(row["meeting_id"], row["id"].hex),
        event_type="help_cancel",
        occurred_at=now,
        received_at=now,
        user_id=row["user_id"],
        course_id=row["course_id"],
        data={"reason": CLASS_ENDED},
    )
