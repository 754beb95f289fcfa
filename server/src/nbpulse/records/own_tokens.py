"""Tokens that work: those of a person, made for a script and made to stop; and all, as the operator sees them.

Promises: a secret is told once, when it is made; a token is shown to its owner and the operator, without it; a
personal token reaches no further than its owner does, and ends by itself.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec

from nbpulse.errors import InvalidInput, NotFound
from nbpulse.records.audit import note_audit
from nbpulse.records.people import People
from nbpulse.records.tokens import SESSION_IDLE, add_token, parse_token

PERSONAL: Final = "personal"
OWN_TOKENS_MAX: Final = 50
_WORKING: Final = (
    "user_id = $1 AND kind IN ('student', 'staff', 'session', 'personal') AND revoked_at IS NULL"
    " AND (expires_at IS NULL OR expires_at > now())"
    " AND NOT (kind = 'session' AND last_used_at < now() - $2::interval)"
)
_COLUMNS: Final = "id, kind, label, scopes, course_id, created_at, last_used_at, expires_at"
_LIST: Final = f"SELECT {_COLUMNS} FROM tokens WHERE {_WORKING} ORDER BY created_at DESC, id"  # noqa: S608 - constants
_COUNT: Final = f"SELECT count(*) FROM tokens WHERE {_WORKING}"  # noqa: S608
_REVOKE: Final = f"UPDATE tokens SET revoked_at = now() WHERE {_WORKING} AND id = $3 RETURNING kind, course_id"  # noqa: S608


class OwnToken(msgspec.Struct, frozen=True):
    """A token as its owner sees it. `last_used_at` is right within 5 minutes."""

    id: UUID
    kind: str
    label: str | None
    scopes: list[str]
    course_id: UUID | None
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None


class TokenRow(msgspec.Struct, frozen=True):
    """A token as a list shows it: never its secret."""

    id: UUID
    kind: str
    label: str | None
    scopes: list[str]
    username: str
    course_title: str | None
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None


class OwnTokens:
    """Of whoever asks. Every method raises Unavailable (NB-2003) when the database is away."""

    def __init__(self, people: People) -> None:
        self._people = people

    async def list_all(self, user_id: UUID) -> list[OwnToken]:
        """What works in their name now, newest first: neither links nor resume codes."""
        async with self._people.connect("list_tokens") as connection:
            rows = await connection.fetch(_LIST, user_id, SESSION_IDLE)
        return [OwnToken(**dict(row)) for row in rows]

    async def create(
        self, user_id: UUID, label: str, scopes: tuple[str, ...], course_id: UUID | None, life: timedelta
    ) -> tuple[UUID, str]:
        """
        A new token for a script: its id and, this once, itself.

        Raises InvalidInput (NB-1183): they have too many; AccessDenied (NB-1125): the account is closed.
        """
        async with self._people.connect("create_token") as connection:
            count = await connection.fetchval(_COUNT, user_id, SESSION_IDLE)
            if count >= OWN_TOKENS_MAX:
                raise InvalidInput("NB-1183", limit=OWN_TOKENS_MAX)
            token = await add_token(connection, PERSONAL, user_id, course_id, scopes=scopes, life=life)
            parsed = parse_token(token)
            assert parsed is not None  # noqa: S101 - it was made a line ago
            await connection.execute("UPDATE tokens SET label = $2 WHERE id = $1", parsed[0], label)
            facts: dict[str, str | int | bool] = {"token_id": str(parsed[0]), "scopes": " ".join(scopes)}
            await note_audit(connection, "token_created", course_id=course_id, subject_id=user_id, facts=facts)
        return parsed[0], token

    async def revoke(self, user_id: UUID, token_id: UUID) -> None:
        """Raises NotFound (NB-1201): none of theirs that works has that id."""
        async with self._people.connect("revoke_token") as connection:
            row = await connection.fetchrow(_REVOKE, user_id, SESSION_IDLE, token_id)
            if row is None:
                raise NotFound("NB-1201")
            facts: dict[str, str | int | bool] = {"token_id": str(token_id), "kind": row["kind"]}
            await note_audit(connection, "token_revoked", course_id=row["course_id"], subject_id=user_id, facts=facts)


async def list_tokens(people: People) -> list[TokenRow]:
    """Every token that still works, newest first; for the operator's login."""
    async with people.connect("list_tokens") as connection:
        rows = await connection.fetch(
            "SELECT t.id, t.kind, t.label, t.scopes, u.username, c.title AS course_title, t.created_at,"
            " t.last_used_at, t.expires_at, t.revoked_at"
            " FROM tokens t JOIN users u ON u.id = t.user_id LEFT JOIN courses c ON c.id = t.course_id"
            " WHERE t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now())"
            " ORDER BY t.created_at DESC"
        )
    return [TokenRow(**dict(row)) for row in rows]
