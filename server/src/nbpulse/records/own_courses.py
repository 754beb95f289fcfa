"""Courses as those who teach them see, make, copy and archive them, under their own rights.

Promises: who makes or copies a course is its instructor and nobody else is in it; of a course that is archived nothing
is lost, and bringing it back gives it all back. Every function raises Unavailable (NB-2003) when PostgreSQL is away.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID
from zoneinfo import available_timezones

import msgspec

from nbpulse.errors import AccessDenied, Conflict, InvalidInput, NotFound
from nbpulse.records.audit import note_audit
from nbpulse.records.members import CODE_LIFE
from nbpulse.records.people import People
from nbpulse.records.tokens import make_code

SHORT_NAME: Final = r"^[a-z0-9]+(-[a-z0-9]+)*$"
_SHORT_MAX: Final = 40
_TRIES: Final = 1_000
_LIST = """
SELECT c.id, c.title, c.short_name, c.time_zone, c.is_demo, c.created_at, c.archived_at, e.role,
    CASE WHEN e.role <> 'analyst' THEN c.join_code END AS join_code,
    NOT c.is_join_closed AND c.archived_at IS NULL AND coalesce(c.join_code_expires_at > now(), true) AS is_join_open,
    m.started_at AS meeting_since, ARRAY(SELECT s.user_id FROM enrolments s
        WHERE s.course_id = c.id AND s.role = 'student') AS student_ids
FROM enrolments e JOIN courses c ON c.id = e.course_id
LEFT JOIN class_meetings m ON m.course_id = c.id AND m.ended_at IS NULL
WHERE e.user_id = $1 AND c.id = ANY($2::uuid[])
ORDER BY m.started_at DESC NULLS LAST, c.created_at DESC, c.id
"""
_ARCHIVE = """
UPDATE courses SET archived_at = CASE WHEN $2 THEN now() END WHERE id = $1 AND (archived_at IS NULL) = $2
"""


class OwnCourse(msgspec.Struct, frozen=True):
    """
    A course as its staff see it. `meeting_since`: a class meeting is on; `student_ids`: those whom the asker may see.
    """

    id: UUID
    title: str
    short_name: str
    time_zone: str
    is_demo: bool
    created_at: datetime
    archived_at: datetime | None
    role: str
    join_code: str | None
    is_join_open: bool
    meeting_since: datetime | None
    student_ids: list[UUID]


async def list_courses(people: People, user_id: UUID, course_ids: Sequence[UUID]) -> tuple[list[OwnCourse], bool]:
    """Those of these courses in which the user is, live ones first; and whether they may make a course."""
    async with people.connect("list_courses") as connection:
        rows = await connection.fetch(_LIST, user_id, course_ids)
        may_create = await connection.fetchval("SELECT may_create_courses()")
    return [OwnCourse(**dict(row)) for row in rows], may_create


async def check_creator(people: People) -> None:
    """Raises AccessDenied (NB-1210): who asks may make no course."""
    async with people.connect("create_course") as connection:
        if not await connection.fetchval("SELECT may_create_courses()"):
            raise AccessDenied("NB-1210")


async def create_course(
    people: People, title: str, short_name: str | None, time_zone: str, *, source: UUID | None = None
) -> UUID:
    """
    A new course of that title (at most 200 characters) with a join code of 120 days, taught by who asks. `short_name`
    None: one made from the title. `source`: a course of which how students come in, what is collected, its settings and
    its prepared notebooks are taken over; its time zone too.

    Raises AccessDenied (NB-1210); Conflict (NB-1214): the short name is taken; InvalidInput (NB-1215): no such zone.
    """
    if source is None and time_zone not in available_timezones():
        raise InvalidInput("NB-1215", zone=time_zone)
    async with people.connect("create_course") as connection:
        if not await connection.fetchval("SELECT may_create_courses()"):
            raise AccessDenied("NB-1210")
        for short in [short_name] if short_name else draw_short_names(title):
            made: UUID | None = await connection.fetchval(
                "SELECT create_course($1, $2, $3, $4, $5)",
                *(title, short, time_zone, make_code(6), datetime.now(UTC) + CODE_LIFE),
            )
            if made is not None:
                break
        else:
            raise Conflict("NB-1214", short_name=short_name or make_short_name(title))
        if source is None:
            await note_audit(connection, "course_created", course_id=made)
        else:
            await connection.execute("SELECT copy_course($1, $2)", source, made)
            await note_audit(connection, "course_copied", course_id=made, facts={"source_id": str(source)})
    return made


async def rename_course(people: People, course_id: UUID, title: str) -> bool:
    """Give the course another title (at most 200 characters); whether it is another. Raises NotFound (NB-1202)."""
    async with people.connect("change_course") as connection:
        before = await connection.fetchval("SELECT title FROM courses WHERE id = $1", course_id)
        if before is None:
            raise NotFound("NB-1202")
        if title == before:
            return False
        await connection.execute("UPDATE courses SET title = $2 WHERE id = $1", course_id, title)
        await note_audit(connection, "course_renamed", course_id=course_id)
    return True


async def archive_course(people: People, course_id: UUID, *, is_archived: bool) -> bool:
    """
    End a course for good, or bring it back; whether that changed anything.

    Raises NotFound (NB-1202); Conflict: a class meeting is on (NB-1213).
    """
    async with people.connect("change_course") as connection:
        if not await connection.fetchval("SELECT true FROM courses WHERE id = $1", course_id):
            raise NotFound("NB-1202")
        if is_archived and await connection.fetchval(
            "SELECT true FROM class_meetings WHERE course_id = $1 AND ended_at IS NULL", course_id
        ):
            raise Conflict("NB-1213")
        if await connection.execute(_ARCHIVE, course_id, is_archived) == "UPDATE 0":
            return False
        await note_audit(connection, "course_archived" if is_archived else "course_restored", course_id=course_id)
    return True


def make_short_name(title: str) -> str:
    """A title's Latin letters and digits, in words; "course" where there are none."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall(r"[a-z0-9]+", plain))[:_SHORT_MAX].strip("-") or "course"


def draw_short_names(title: str) -> Iterator[str]:
    """The title's short name, and it with numbers for when it is taken."""
    short = make_short_name(title)
    yield short
    for number in range(2, _TRIES):
        yield f"{short}-{number}"
