"""`nbpulse processing-record`: what is collected of whom, why, who sees it and for how long, from what is in force."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from nbpulse.collection import DEFAULT, Words, make_notice
from nbpulse.errors import NotFound
from nbpulse.records.owner import open_owner
from nbpulse.records.processing import CourseRecord, list_courses
from nbpulse.settings import Settings
from nbpulse.terminal import answer, get_text, pick_language


async def show_record(settings: Settings, database_url: str, short_name: str | None) -> None:
    """
    The record of one course, or of all but demos, as Markdown to be filed and completed.

    Raises NotFound (NB-3023): there is no such course.
    """
    async with open_owner(database_url) as pool:
        courses = await list_courses(pool, short_name)
    if short_name is not None and not courses:
        raise NotFound("NB-3023", thing="course", id=short_name, command="nbpulse up --json")
    answer(get_text("record_head", date=f"{datetime.now(UTC):%Y-%m-%d}"))
    for course in courses:
        answer(get_text("record_course", **_describe(course, settings)))
    answer(get_text("record_foot"))


def _describe(course: CourseRecord, settings: Settings) -> dict[str, Any]:
    # Until a student was shown the first version, the default holds.
    first = make_notice(1, DEFAULT.level, DEFAULT.without, Words())
    notices = (course.notice_ja or first.notice.ja, course.notice_en or first.notice.en)
    notice = notices[0] if pick_language() == "ja" else notices[1]
    return {
        "title": course.title,
        "short_name": course.short_name,
        "level": course.level or DEFAULT.level,
        "without": ", ".join(course.without) or "-",
        "version": course.version or 1,
        "notice": "\n".join(f"> {line}".rstrip() for line in notice.splitlines()),
        "students": course.students,
        "former": course.former,
        "assistants": course.assistants,
        "instructors": course.instructors,
        "analysts": course.analysts,
        "raw_days": settings.retention_days or "-",
        "session_days": settings.session_retention_days or "-",
        "series": "InfluxDB" if settings.influx_url else "PostgreSQL",
    }
