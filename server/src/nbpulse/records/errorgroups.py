"""
What a course's staff have settled about its error groups.

Promises: what is settled is one row a group, and a change and its audit row are one transaction; merging makes no ring,
whoever merges at once. Of a group there is its fingerprint and what staff call it, and nothing of a student.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from nbpulse.classroom import ErrorGroup, ErrorGroups
from nbpulse.classroom.errorgroups import FINGERPRINT_VERSION
from nbpulse.errors import Conflict
from nbpulse.records.audit import note_audit
from nbpulse.records.people import People

GROUPS_MAX: Final = 1_000
"""Of one course. Every look at a class reads them all."""
_READ: Final = """
SELECT fingerprint, title, merged_into, is_muted FROM error_groups WHERE course_id = $1 AND fingerprint_version = $2
"""
_WRITE: Final = """
INSERT INTO error_groups AS g (course_id, fingerprint_version, fingerprint, title, merged_into, is_muted)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (course_id, fingerprint) DO UPDATE SET (fingerprint_version, title, merged_into, is_muted, updated_at)
    = ROW(excluded.fingerprint_version, excluded.title, excluded.merged_into, excluded.is_muted, now())
"""


async def read_groups(connection: asyncpg.Connection, course_id: UUID) -> ErrorGroups:
    """What is settled in the course."""
    return ErrorGroups(await _read(connection, course_id))


async def change_group(people: People, course_id: UUID, fingerprint: str, changes: dict[str, Any]) -> ErrorGroup:
    """
    Settle some of `title` (at most 80 characters), `merged_into` and `is_muted`, None for none; the group after it.

    Raises Conflict: it would be merged into itself (NB-1365), the course has GROUPS_MAX (NB-1366); Unavailable.
    """
    async with people.connect("change_error_group") as connection:
        # Two who merge at once would make a ring of two, each without seeing the other's.
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 11))", str(course_id))
        settled = {one.fingerprint: one for one in await _read(connection, course_id)}
        before = settled.pop(fingerprint, None)
        after = msgspec.structs.replace(before or ErrorGroup(fingerprint), **changes)
        if after == (before or ErrorGroup(fingerprint)):
            return after
        if after.merged_into and ErrorGroups(settled.values()).find(after.merged_into) == fingerprint:
            raise Conflict("NB-1365")
        if before is None and len(settled) >= GROUPS_MAX:
            raise Conflict("NB-1366", limit=GROUPS_MAX)
        await connection.execute(
            _WRITE, course_id, FINGERPRINT_VERSION, fingerprint, after.title, after.merged_into, after.is_muted
        )
        facts: dict[str, str | int | bool] = {"fingerprint": fingerprint, "changed": ",".join(sorted(changes))}
        await note_audit(connection, "error_group_changed", course_id=course_id, facts=facts)
    return after


async def _read(connection: asyncpg.Connection, course_id: UUID) -> list[ErrorGroup]:
    return [ErrorGroup(**dict(row)) for row in await connection.fetch(_READ, course_id, FINGERPRINT_VERSION)]
