"""Courses as a record of processing describes them. Owner's login."""

from __future__ import annotations

import asyncpg
import msgspec

_LIST = """
SELECT c.title, c.short_name, v.version, v.level, coalesce(v.without, '{}') AS without, v.notice_ja, v.notice_en,
    count(*) FILTER (WHERE e.role = 'student') AS students, count(*) FILTER (WHERE e.role = 'former') AS former,
    count(*) FILTER (WHERE e.role = 'assistant') AS assistants,
    count(*) FILTER (WHERE e.role = 'instructor') AS instructors,
    count(*) FILTER (WHERE e.role = 'analyst') AS analysts
FROM courses c LEFT JOIN enrolments e ON e.course_id = c.id
LEFT JOIN LATERAL (SELECT * FROM collection_versions k WHERE k.course_id = c.id ORDER BY version DESC LIMIT 1) v ON true
WHERE (c.short_name = $1 OR $1::text IS NULL AND NOT c.is_demo)
GROUP BY c.id, v.version, v.level, v.without, v.notice_ja, v.notice_en ORDER BY c.short_name
"""


class CourseRecord(msgspec.Struct, frozen=True):
    """A course, its newest notice (None where nobody was shown any yet), and its people by role."""

    title: str
    short_name: str
    version: int | None
    level: str | None
    without: list[str]
    notice_ja: str | None
    notice_en: str | None
    students: int
    former: int
    assistants: int
    instructors: int
    analysts: int


async def list_courses(pool: asyncpg.Pool, short_name: str | None) -> list[CourseRecord]:
    """That course, or all but demos."""
    return [CourseRecord(**dict(row)) for row in await pool.fetch(_LIST, short_name)]
