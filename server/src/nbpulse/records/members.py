"""A course's people: who they are in it, who waits, who left, and how students come in.

The same code serves instructors through the API, where PostgreSQL's policies say what is theirs, and the operator's
command line. Promises: a course keeps an instructor; nobody is deleted, who goes is `former` from then on; a role that
a JupyterHub gave is changed there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

import asyncpg
import msgspec
from msgspec import UNSET, UnsetType

from nbpulse.crypto import EncryptedField
from nbpulse.errors import Conflict, NotFound
from nbpulse.records.audit import note_audit
from nbpulse.records.people import People, open_name
from nbpulse.records.tokens import make_code
from nbpulse.shards import get_shard_number

Role = Literal["student", "assistant", "instructor", "analyst", "waiting", "former"]
GivenRole = Literal["student", "assistant", "instructor", "analyst", "former"]
CODE_LIFE: Final = timedelta(days=120)

_MEMBERS = """
SELECT e.user_id, u.username, u.display_name, e.roster_name, e.roster_kana, e.student_number, e.role, e.team, e.teams,
    e.seat, e.joined_at, e.left_at, e.created_at, e.granted_by, e.maybe_same_as
FROM enrolments e JOIN users u ON u.id = e.user_id
WHERE e.course_id = $1 AND ($2::uuid IS NULL OR e.user_id = $2)
ORDER BY coalesce(e.student_number, u.username), e.user_id
"""
_ENTRY = """
SELECT join_code, join_code_expires_at, is_join_closed, needs_approval, shows_all_teams, is_demo
FROM courses WHERE id = $1
"""
_ADD_STATES = """
INSERT INTO learner_states (user_id, shard, course_id)
SELECT k.user_id, k.shard, $1 FROM unnest($2::uuid[], $3::smallint[]) AS k(user_id, shard) ON CONFLICT DO NOTHING
"""


class Member(msgspec.Struct, frozen=True):
    """
    Somebody in a course. `joined_at` None: on the roster, and not come yet; `granted_by`: the JupyterHub that gave the
    role; `same_as`: the user who may be the same person.
    """

    user_id: UUID
    name: str
    kana: str | None
    username: str
    number: str | None
    role: Role
    team: str | None
    teams: list[str]
    seat: str | None
    joined_at: datetime | None
    left_at: datetime | None
    granted_by: str | None
    same_as: UUID | None


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """What of a member shall be another; what is unset stays."""

    role: GivenRole | UnsetType = UNSET
    team: str | UnsetType | None = UNSET
    teams: list[str] | UnsetType = UNSET
    seat: str | UnsetType | None = UNSET


class Entry(msgspec.Struct, frozen=True):
    """How students come into a course."""

    join_code: str | None
    join_code_expires_at: datetime | None
    is_join_closed: bool
    needs_approval: bool
    shows_all_teams: bool
    is_demo: bool


class EntryChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """What of it shall be another; what is unset stays."""

    is_join_closed: bool | UnsetType = UNSET
    needs_approval: bool | UnsetType = UNSET
    shows_all_teams: bool | UnsetType = UNSET


def open_member_name(seal: EncryptedField, row: Mapping[str, Any]) -> str:
    """What a course calls its member: the roster's name, else what they typed, else the username."""
    if row["roster_name"] is not None:
        return unseal_roster(seal, "roster_name", row["user_id"], row["roster_name"])
    return open_name(seal, row["user_id"], row["username"], row["display_name"])


def unseal_roster(seal: EncryptedField, column: str, user_id: UUID, sealed: str) -> str:
    """A name or a reading as the roster has it."""
    return seal.unseal(sealed, table="enrolments", column=column, user_id=user_id)


async def add_states(connection: asyncpg.Connection, course_id: UUID, user_ids: Iterable[UUID]) -> None:
    """The state that every student of a course has, where it is not there."""
    ids = list(user_ids)
    await connection.execute(_ADD_STATES, course_id, ids, [get_shard_number(user_id) for user_id in ids])


class Members:
    """Members and entry of courses. Every method raises Unavailable (NB-2003) when PostgreSQL is away."""

    def __init__(self, people: People) -> None:
        self._people = people
        self._seal = people.seal

    async def list_members(self, course_id: UUID) -> list[Member]:
        """Everybody in the course whom the asker may see, by number."""
        async with self._people.connect("list_people") as connection:
            return [self._read_member(row) for row in await connection.fetch(_MEMBERS, course_id, None)]

    async def list_assistants(self, course_id: UUID) -> list[UUID]:
        """The course's assistants."""
        async with self._people.connect("list_people") as connection:
            rows = await connection.fetch(
                "SELECT user_id FROM enrolments WHERE course_id = $1 AND role = 'assistant'", course_id
            )
        return [row["user_id"] for row in rows]

    async def change(self, course_id: UUID, user_id: UUID, change: Change) -> Member:
        """
        Change one member; how they stand then.

        Raises NotFound (NB-1144), Conflict: the last instructor (NB-1145), a JupyterHub's role (NB-1146).
        """
        async with self._people.connect("change_member") as connection:
            member = await self._lock(connection, course_id, user_id)
            if change.role is not UNSET and change.role != member.role:
                await self._change_role(connection, course_id, member, change.role)
            set_to = msgspec.to_builtins(change)
            set_to.pop("role", None)
            for column, value in set_to.items():  # names of Change's own fields
                await connection.execute(
                    f"UPDATE enrolments SET {column} = $3 WHERE course_id = $1 AND user_id = $2",  # noqa: S608
                    *(course_id, user_id, value),
                )
            (row,) = await connection.fetch(_MEMBERS, course_id, user_id)
            changed = self._read_member(row)
            if changed != member:
                facts: dict[str, str | int | bool] = {"fields": " ".join(sorted(set_to))} if set_to else {}
                if changed.role != member.role:
                    facts |= {"from": member.role, "to": changed.role}
                await note_audit(connection, "member_changed", course_id=course_id, subject_id=user_id, facts=facts)
            return changed

    async def approve(self, course_id: UUID, user_ids: list[UUID]) -> list[UUID]:
        """Let those of them in who wait; who they are."""
        async with self._people.connect("change_member") as connection:
            rows = await connection.fetch(
                "UPDATE enrolments SET role = 'student' WHERE course_id = $1 AND user_id = ANY($2::uuid[])"
                " AND role = 'waiting' RETURNING user_id",
                *(course_id, user_ids),
            )
            approved = [row["user_id"] for row in rows]
            await add_states(connection, course_id, approved)
            for user_id in approved:
                facts = {"from": "waiting", "to": "student"}
                await note_audit(connection, "member_changed", course_id=course_id, subject_id=user_id, facts=facts)
        return approved

    async def find_entry(self, course_id: UUID) -> Entry:
        """Raises NotFound (NB-1202)."""
        async with self._people.connect("list_people") as connection:
            return await _read_entry(connection, course_id)

    async def change_entry(self, course_id: UUID, change: EntryChange) -> Entry:
        """Raises NotFound (NB-1202)."""
        async with self._people.connect("change_entry") as connection:
            for column, value in msgspec.to_builtins(change).items():  # names of EntryChange's own fields
                await connection.execute(f"UPDATE courses SET {column} = $2 WHERE id = $1", course_id, value)  # noqa: S608
            entry = await _read_entry(connection, course_id)
            if facts := msgspec.to_builtins(change):
                await note_audit(connection, "entry_changed", course_id=course_id, facts=facts)
        return entry

    async def renew_code(self, course_id: UUID, life: timedelta = CODE_LIFE) -> Entry:
        """Another join code in place of the old one, open from now on. Raises NotFound (NB-1202)."""
        async with self._people.connect("change_entry") as connection:
            await connection.execute(
                "UPDATE courses SET join_code = $2, join_code_expires_at = $3, is_join_closed = FALSE WHERE id = $1",
                *(course_id, make_code(6), datetime.now(UTC) + life),
            )
            entry = await _read_entry(connection, course_id)
            await note_audit(connection, "entry_changed", course_id=course_id, facts={"new_code_days": life.days})
        return entry

    async def _lock(self, connection: asyncpg.Connection, course_id: UUID, user_id: UUID) -> Member:
        # One change of a course's people after the other: of two instructors who remove each other, one stays.
        await connection.execute("SELECT pg_advisory_xact_lock(6622016, hashtext($1::text))", str(course_id))
        rows = await connection.fetch(_MEMBERS, course_id, user_id)
        if not rows:
            raise NotFound("NB-1144")
        return self._read_member(rows[0])

    async def _change_role(
        self, connection: asyncpg.Connection, course_id: UUID, member: Member, role: GivenRole
    ) -> None:
        if member.granted_by is not None:
            raise Conflict("NB-1146", provider=member.granted_by)
        if member.role == "instructor":
            count = await connection.fetchval(
                "SELECT count(*) FROM enrolments WHERE course_id = $1 AND role = 'instructor'", course_id
            )
            if count == 1:
                raise Conflict("NB-1145")
        await connection.execute(
            "UPDATE enrolments SET role = $3::text, left_at = CASE WHEN $3::text = 'former' THEN now() END"
            " WHERE course_id = $1 AND user_id = $2",
            *(course_id, member.user_id, role),
        )
        if role == "student":
            await add_states(connection, course_id, [member.user_id])

    def _read_member(self, row: asyncpg.Record) -> Member:
        kana = row["roster_kana"]
        return Member(
            user_id=row["user_id"],
            name=open_member_name(self._seal, row),
            kana=kana and unseal_roster(self._seal, "roster_kana", row["user_id"], kana),
            username=row["username"],
            number=row["student_number"],
            role=row["role"],
            team=row["team"],
            teams=row["teams"],
            seat=row["seat"],
            joined_at=row["joined_at"],
            left_at=row["left_at"],
            granted_by=row["granted_by"],
            same_as=row["maybe_same_as"],
        )


async def _read_entry(connection: asyncpg.Connection, course_id: UUID) -> Entry:
    row = await connection.fetchrow(_ENTRY, course_id)
    if row is None:
        raise NotFound("NB-1202")
    return Entry(**dict(row))
