"""What courses collect, version by version, and what students said to it, on PostgreSQL.

Promises: a version is never changed, only followed by another; of a student's words each is kept; who withdraws has no
working token in that course from then on. Every method raises Unavailable (NB-2003) when PostgreSQL is away.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal
from uuid import UUID

import asyncpg
import msgspec

from nbpulse.collection import DEFAULT, Level, Notice, Policy, Words, make_notice, take_stricter
from nbpulse.errors import AccessDenied, InvalidInput
from nbpulse.records.audit import note_audit
from nbpulse.shards import get_shard_number

if TYPE_CHECKING:
    from nbpulse.records.people import People

Action = Literal["accept", "withdraw"]


class Consent(msgspec.Struct, frozen=True):
    """One word of a student's. `version` None: the client showed no notice of ours."""

    at: datetime
    version: int | None
    action: Action


class OwnConsent(msgspec.Struct, frozen=True):
    """What holds in a student's course, what they were shown (None: nothing of ours), what they said (newest first)."""

    course_title: str
    current: Notice
    shown: Notice | None
    history: list[Consent]


class Counts(msgspec.Struct, frozen=True):
    """Students by their last word: shown the newest version, an older one, none by us; withdrawn."""

    current: int
    older: int
    untold: int
    withdrawn: int


_ADD_VERSION = """
INSERT INTO collection_versions (course_id, version, level, without, added_ja, added_en, notice_ja, notice_en,
    created_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""
_ADD_CONSENT = "INSERT INTO consents (user_id, shard, course_id, version, action) VALUES ($1, $2, $3, $4, $5)"
_HISTORY = """
SELECT at, version, action FROM consents WHERE user_id = $1 AND course_id = $2 ORDER BY at DESC LIMIT 100
"""
_COUNT = """
SELECT count(*) FILTER (WHERE w.action = 'accept' AND w.version = $2) AS current,
    count(*) FILTER (WHERE w.action = 'accept' AND w.version < $2) AS older,
    count(*) FILTER (WHERE w.action IS NULL OR w.action = 'accept' AND w.version IS NULL) AS untold,
    count(*) FILTER (WHERE w.action = 'withdraw') AS withdrawn
FROM enrolments e LEFT JOIN LATERAL (
    SELECT action, version FROM consents c WHERE c.course_id = $1 AND c.user_id = e.user_id ORDER BY at DESC LIMIT 1
) w ON true WHERE e.course_id = $1 AND e.role = 'student'
"""


class Consents:
    """Notices and consents, for those whose course it is."""

    def __init__(self, people: People) -> None:
        self._people = people

    async def find_notice(self, code: str) -> tuple[str, Notice]:
        """The title and the newest notice of the course with that join code. Raises AccessDenied (NB-1105)."""
        async with self._people.connect("find_notice") as connection:
            course = await connection.fetchrow("SELECT * FROM find_course_by_code($1)", code)
            if course is None:
                raise AccessDenied("NB-1105")
            return course["title"], await begin_collection(connection, course["id"])

    async def show(self, course_id: UUID) -> tuple[Notice, list[Notice], Counts]:
        """For a course's staff: what holds, all versions from the newest on, and how many students were shown what."""
        async with self._people.connect("show_collection") as connection:
            current = await begin_collection(connection, course_id)
            rows = await connection.fetch(
                "SELECT * FROM collection_versions WHERE course_id = $1 ORDER BY version DESC LIMIT 100", course_id
            )
            counts = await connection.fetchrow(_COUNT, course_id, current.version)
        return current, [_read_notice(row) for row in rows], Counts(**dict(counts))

    async def change(
        self,
        course_id: UUID,
        changed_by: UUID | None,
        *,
        level: Level | None = None,
        without: list[str] | None = None,
        ja: str | None = None,
        en: str | None = None,
    ) -> tuple[Notice, bool]:
        """
        Make a new version of what differs (None: as it is); what holds now, and whether that is new.

        Raises InvalidInput (NB-1343, NB-1344).
        """
        async with self._people.connect("change_collection") as connection:
            # One change after the other: each is compared with what then holds.
            await connection.execute("SELECT pg_advisory_xact_lock(6622011, hashtext($1::text))", str(course_id))
            old = await begin_collection(connection, course_id)
            new = make_notice(
                old.version + 1,
                level or old.level,
                old.without if without is None else without,
                Words(old.added.ja if ja is None else ja, old.added.en if en is None else en),
            )
            if msgspec.structs.replace(new, version=old.version) == old:
                return old, False
            texts = (new.added.ja, new.added.en, new.notice.ja, new.notice.en)
            await connection.execute(
                _ADD_VERSION, course_id, new.version, new.level, list(new.without), *texts, changed_by
            )
            facts = {"version": new.version, "level": new.level, "without": len(new.without)}
            await note_audit(connection, "collection_changed", course_id=course_id, facts=facts)
        return new, True

    async def describe_own(self, user_id: UUID, course_id: UUID) -> OwnConsent:
        """What a student may know of their own course's collection."""
        async with self._people.connect("show_consent") as connection:
            return await _describe_own(connection, user_id, course_id)

    async def answer(self, user_id: UUID, course_id: UUID, version: int, action: Action) -> OwnConsent:
        """
        Keep a student's word; a withdrawal revokes their tokens in the course.

        Raises InvalidInput (NB-1342): no such version.
        """
        async with self._people.connect("note_consent") as connection:
            await note_consent(connection, user_id, course_id, version, action=action)
            if action == "withdraw":
                await connection.execute(
                    "UPDATE tokens SET revoked_at = now() WHERE user_id = $1 AND course_id = $2 AND kind = 'student'"
                    " AND revoked_at IS NULL",
                    user_id,
                    course_id,
                )
            own = await _describe_own(connection, user_id, course_id)
            await note_audit(
                connection,
                "consent_given" if action == "accept" else "consent_withdrawn",
                course_id=course_id,
                subject_id=user_id,
                facts={"version": version},
            )
            return own


async def begin_collection(connection: asyncpg.Connection, course_id: UUID) -> Notice:
    """The course's newest version; the first is made of the defaults by whoever asks first."""
    first = make_notice(1, DEFAULT.level, DEFAULT.without, Words())
    row = await connection.fetchrow(
        "SELECT * FROM begin_collection($1, $2, $3)", course_id, first.notice.ja, first.notice.en
    )
    return _read_notice(row)


async def note_consent(
    connection: asyncpg.Connection, user_id: UUID, course_id: UUID, version: int | None, *, action: Action = "accept"
) -> Notice:
    """
    Keep the word, in the transaction of who says it; the newest version, which need not be that one.

    Raises InvalidInput (NB-1342): no such version.
    """
    current = await begin_collection(connection, course_id)
    if version is not None and not 1 <= version <= current.version:
        raise InvalidInput("NB-1342", version=version, newest=current.version)
    await connection.execute(_ADD_CONSENT, user_id, get_shard_number(user_id), course_id, version, action)
    return current


def read_policy(row: asyncpg.Record) -> Policy:
    """What may be collected of a token's student now, from a row of find_collection()."""
    if row["version"] is None:  # nobody in the course was shown anything yet
        return DEFAULT
    newest = Policy(row["version"], row["level"], tuple(row["without"]))
    is_shown = row["shown_level"] is not None
    return take_stricter(newest, Policy(0, row["shown_level"], tuple(row["shown_without"])) if is_shown else DEFAULT)


def _read_notice(row: asyncpg.Record) -> Notice:
    return Notice(
        version=row["version"],
        level=row["level"],
        without=tuple(row["without"]),
        added=Words(row["added_ja"], row["added_en"]),
        notice=Words(row["notice_ja"], row["notice_en"]),
    )


async def _describe_own(connection: asyncpg.Connection, user_id: UUID, course_id: UUID) -> OwnConsent:
    title = await connection.fetchval("SELECT title FROM courses WHERE id = $1", course_id)
    current = await begin_collection(connection, course_id)
    rows = await connection.fetch(_HISTORY, user_id, course_id)
    history = [Consent(**dict(row)) for row in rows]
    shown = None
    if history and history[0].action == "accept" and history[0].version is not None:
        row = await connection.fetchrow(
            "SELECT * FROM collection_versions WHERE course_id = $1 AND version = $2", course_id, history[0].version
        )
        shown = _read_notice(row)
    return OwnConsent(title or "", current, shown, history)
