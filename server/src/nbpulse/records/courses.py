"""Courses and their staff, as the operator's commands make and remove them.

Promises: making what is there already changes nothing; removing a course takes every row that bears its students'
work, and the people who were only in it, in one transaction of the directory; further databases of students' rows
follow, whatever is killed in between.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import asyncpg
import msgspec

from nbpulse.crypto import EncryptedField
from nbpulse.errors import AccessDenied, Unavailable
from nbpulse.metrics import named_query
from nbpulse.records.audit import note_audit
from nbpulse.records.failures import UNAVAILABLE
from nbpulse.records.members import CODE_LIFE
from nbpulse.records.moves import hold_still
from nbpulse.records.people import People
from nbpulse.records.tokens import make_code


class Course(msgspec.Struct, frozen=True):
    """A course as the operator sees it."""

    id: UUID
    title: str
    short_name: str
    join_code: str
    is_demo: bool


_READ_COURSE = "SELECT id, title, short_name, join_code, is_demo FROM courses"
_LIST_COURSES: Final = "SELECT DISTINCT course_id FROM learner_states"
_LIST_PRESENT: Final = "SELECT id FROM courses WHERE id = ANY($1::uuid[])"


class Courses:
    """Courses on PostgreSQL, for the owner's login. Every method raises Unavailable (NB-2003) when it is away."""

    def __init__(self, pool: asyncpg.Pool, seal: EncryptedField) -> None:
        self._people = People(pool, seal)
        self._seal = seal

    async def ensure_course(self, title: str, short_name: str, *, is_demo: bool = False) -> Course:
        """The course of that short name (at most 50 characters), made with a fresh join code where there is none."""
        async with self._people.connect("ensure_course") as connection:
            await connection.execute(
                "INSERT INTO courses (title, short_name, join_code, join_code_expires_at, is_demo)"
                " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (short_name) DO NOTHING",
                *(title, short_name, make_code(6), datetime.now(UTC) + CODE_LIFE, is_demo),
            )
            row = await connection.fetchrow(f"{_READ_COURSE} WHERE short_name = $1", short_name)
        return Course(**dict(row))

    async def find_course(self, short_name: str) -> Course | None:
        """The course of that short name."""
        async with self._people.connect("find_course") as connection:
            row = await connection.fetchrow(f"{_READ_COURSE} WHERE short_name = $1", short_name)
        return Course(**dict(row)) if row else None

    async def ensure_teacher(
        self, course_id: UUID, *, username: str = "teacher", display_name: str = "teacher"
    ) -> UUID:
        """The user of that name, made where there is none, as an instructor of the course."""
        async with self._people.connect("ensure_teacher") as connection:
            await connection.execute(
                "INSERT INTO users (username, role) VALUES ($1, 'instructor') ON CONFLICT (username) DO NOTHING",
                username,
            )
            user_id: UUID = await connection.fetchval("SELECT id FROM users WHERE username = $1", username)
            sealed = self._seal.seal(display_name, table="users", column="display_name", user_id=user_id)
            await connection.execute(
                "UPDATE users SET display_name = $2 WHERE id = $1 AND display_name IS NULL", user_id, sealed
            )
            await connection.execute(
                "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, 'instructor')"
                " ON CONFLICT (user_id, course_id) DO UPDATE SET role = 'instructor'",
                user_id,
                course_id,
            )
        return user_id

    async def begin_meeting(self, course_id: UUID, started_at: datetime) -> None:
        """A class meeting of a new course that has begun by then."""
        async with self._people.connect("begin_meeting") as connection:
            await connection.execute(
                "INSERT INTO class_meetings (course_id, started_at) VALUES ($1, $2)", course_id, started_at
            )

    async def delete_course(self, course_id: UUID) -> int:
        """Remove the course and all work in it here (`clear_removed` in other databases); how many students went."""
        async with self._people.connect("delete_course") as connection:
            await connection.execute("SET LOCAL statement_timeout = '10min'")
            count: int = await connection.fetchval("SELECT remove_course($1)", course_id)
            await note_audit(connection, "course_removed", course_id=course_id, facts={"students": count})
        return count


async def open_rehearsal(people: People) -> Course:
    """
    A course of its own for a rehearsal, with the member of staff who asks as its instructor; marked as a demo.

    Raises AccessDenied (NB-1103): who asks is of no course's staff.
    """
    code, title = make_code(6), "Rehearsal / リハーサル"
    async with people.connect("open_rehearsal") as connection:
        course_id = await connection.fetchval("SELECT open_rehearsal($1, $2)", title, code)
        if course_id is None:
            raise AccessDenied("NB-1103")
        row = await connection.fetchrow(f"{_READ_COURSE} WHERE id = $1", course_id)
    return Course(**dict(row))


async def remove_demo_course(people: People, course_id: UUID) -> int:
    """
    Remove a demo or rehearsal course with all work in it here; how many students went with it. What other databases
    have of it goes within a minute, by a worker (`clear_removed`).

    Raises AccessDenied (NB-1103) for any other course, and for who is not of its staff.
    """
    async with people.connect("remove_demo_course") as connection:
        await connection.execute("SET LOCAL statement_timeout = '60s'")
        count: int | None = await connection.fetchval("SELECT remove_demo_course($1)", course_id)
        if count is None:
            raise AccessDenied("NB-1103")
        await note_audit(connection, "course_removed", course_id=course_id, facts={"students": count})
    return count


@named_query("clear_removed")
async def clear_removed(home: asyncpg.Pool, directory: asyncpg.Pool) -> int:
    """
    What the database `home` has of courses that are no more; of how many the directory's word has not come there yet.

    Not while shards move: of a row that is in two databases it would be counted twice that it went. Raises Unavailable
    (NB-2003); StartupError (NB-3129, NB-3137) while they do, where there is something to remove.
    """
    if home is directory:
        return 0
    try:
        there = [row[0] for row in await home.fetch(_LIST_COURSES, timeout=30)]
        present = {row[0] for row in await directory.fetch(_LIST_PRESENT, there, timeout=5)}
        gone = [one for one in there if one not in present]
        if not gone:
            return 0
        async with hold_still(directory):
            done = [await home.fetchval("SELECT forget_course($1)", one, timeout=600) for one in gone]
    except UNAVAILABLE as error:
        raise Unavailable("NB-2003") from error
    return done.count(None)
