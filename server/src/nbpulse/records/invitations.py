"""Staff invited by a link: made by an instructor, good once, until it ends or is taken back.

Of its secret only the SHA-256 is kept. Who accepts is either signed in already or becomes somebody by it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID, uuid4

import asyncpg
import msgspec

from nbpulse.errors import AccessDenied, Conflict, NotFound
from nbpulse.identity import asking_as, get_asker, identify
from nbpulse.records.audit import Facts, note_audit
from nbpulse.records.people import People
from nbpulse.records.tokens import PASSWORD_SET, add_session, hash_secret, parse_token

StaffRole = Literal["assistant", "instructor", "analyst"]

_OPEN = """
SELECT i.id, i.role, i.teams, i.created_at, i.expires_at FROM invitations i
WHERE i.course_id = $1 AND i.used_at IS NULL AND i.revoked_at IS NULL AND i.expires_at > now() ORDER BY i.created_at
"""
_ADD = """
INSERT INTO invitations (id, course_id, role, teams, secret_hash, created_by, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""


class Invitation(msgspec.Struct, frozen=True):
    """An invitation that can still be accepted."""

    id: UUID
    role: StaffRole
    teams: list[str]
    created_at: datetime
    expires_at: datetime


class Newcomer(msgspec.Struct, frozen=True):
    """Who has no account yet: the name to sign in with, and the one to be called by."""

    username: str
    display_name: str


class Accepted(msgspec.Struct, frozen=True):
    """What came of it. `session`: the token of who became somebody by it."""

    user_id: UUID
    course_id: UUID
    role: str
    session: str | None


async def list_invitations(people: People, course_id: UUID) -> list[Invitation]:
    """Those that can still be accepted, of a course the asker leads."""
    async with people.connect("invite") as connection:
        return [Invitation(**dict(row)) for row in await connection.fetch(_OPEN, course_id)]


async def invite(
    people: People, course_id: UUID, role: StaffRole, teams: Sequence[str], life: timedelta
) -> tuple[Invitation, str]:
    """An invitation and its code, which is told this once."""
    now = datetime.now(UTC)
    made = Invitation(uuid4(), role, list(teams), now, now + life)
    secret = secrets.token_urlsafe(32)
    async with people.connect("invite") as connection:
        await connection.execute(
            _ADD, made.id, course_id, role, made.teams, hash_secret(secret), get_asker(), made.expires_at
        )
        facts: Facts = {"role": role, "days": life.days}
        await note_audit(connection, "invitation_created", course_id=course_id, facts=facts)
    return made, f"nbp_invitation_{made.id.hex}_{secret}"


async def revoke_invitation(people: People, course_id: UUID, invitation_id: UUID) -> None:
    """Take it back. Raises NotFound (NB-1201): there is none that could still be accepted."""
    async with people.connect("invite") as connection:
        done = await connection.execute(
            "UPDATE invitations SET revoked_at = now() WHERE course_id = $1 AND id = $2 AND used_at IS NULL"
            " AND revoked_at IS NULL",
            *(course_id, invitation_id),
        )
        if done != "UPDATE 1":
            raise NotFound("NB-1201")
        await note_audit(connection, "invitation_revoked", course_id=course_id)


async def describe_invitation(people: People, code: str) -> tuple[str, str]:
    """The course's title and the role. Raises AccessDenied (NB-1147): it can not be accepted (any more)."""
    async with people.connect("accept_invitation") as connection:
        row = await connection.fetchrow("SELECT * FROM describe_invitation($1, $2)", *_parse(code))
    if row is None:
        raise AccessDenied("NB-1147")
    return row["title"], row["role"]


async def accept_invitation(people: People, code: str, user_id: UUID | None, newcomer: Newcomer | None) -> Accepted:
    """
    Take the role, as `user_id` or else as a new user.

    Raises AccessDenied (NB-1147): it can not be accepted (any more); Conflict: the username is taken (NB-1148), or they
    are the course's student (NB-1149). Then the invitation stays good.
    """
    invitation_id, secret_hash = _parse(code)
    who = user_id or uuid4()
    async with people.connect("accept_invitation") as connection:
        with asking_as(who):
            await connection.execute(identify())
        if user_id is None:
            if newcomer is None:
                raise AccessDenied("NB-1101")
            await _add_user(connection, people, who, newcomer)
        row = await connection.fetchrow("SELECT * FROM accept_invitation($1, $2)", invitation_id, secret_hash)
        if row is None:
            raise AccessDenied("NB-1147")
        if row["was"] in ("student", "waiting"):
            raise Conflict("NB-1149")
        session = await add_session(connection, who, scopes=(PASSWORD_SET,)) if user_id is None else None
        facts: Facts = {"role": row["given_role"]}
        await note_audit(connection, "invitation_accepted", course_id=row["course"], subject_id=who, facts=facts)
    return Accepted(who, row["course"], row["given_role"], session)


async def _add_user(connection: asyncpg.Connection, people: People, user_id: UUID, newcomer: Newcomer) -> None:
    sealed = people.seal.seal(newcomer.display_name, table="users", column="display_name", user_id=user_id)
    done = await connection.execute(
        "INSERT INTO users (id, username, display_name) VALUES ($1, $2, $3) ON CONFLICT (username) DO NOTHING",
        *(user_id, newcomer.username, sealed),
    )
    if done != "INSERT 0 1":
        raise Conflict("NB-1148", username=newcomer.username)


def _parse(code: str) -> tuple[UUID, bytes]:
    invitation_id, secret = parse_token(code) or (uuid4(), "")
    return invitation_id, hash_secret(secret)
