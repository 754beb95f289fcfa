"""Accounts: their passwords and sessions, whom a sign-in provider knows, and what an operator does with them.

Promises: a password is checked in one place, `check_password`, as slowly for a name that is not here; what is kept of
it is argon2id; nobody is found by a name or an address that a provider gives, only by its word on who it is; a closed
account gets no token of any kind.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import asyncpg
import msgspec

from nbpulse.errors import AccessDenied, InvalidInput, NotFound
from nbpulse.identity import asking_as
from nbpulse.passwords import Hasher, check_rules
from nbpulse.records.audit import note_audit
from nbpulse.records.people import People, Person, open_name
from nbpulse.records.tokens import PASSWORD_SET, SESSION_LIFE, add_session

# How long after a link was opened its person may set a password without knowing the old one.
SETTING_LIFE: Final = timedelta(minutes=15)
_NAME_MAX: Final = 100
_KEEP_PASSWORD: Final = """
INSERT INTO passwords (user_id, hash) VALUES ($1, $2)
ON CONFLICT (user_id) DO UPDATE SET hash = $2, changed_at = now()
"""
_DESCRIBE: Final = """
SELECT u.username, t.created_at > now() - $3::interval AS is_fresh,
    EXISTS (SELECT FROM passwords p WHERE p.user_id = u.id) AS has_password
FROM users u, tokens t WHERE u.id = $1 AND t.id = $2
"""
_ENROL: Final = """
INSERT INTO enrolments (user_id, course_id, role) SELECT $1, id, $3 FROM courses WHERE short_name = $2
"""
_CLOSE_SESSIONS: Final = """
UPDATE tokens SET revoked_at = now() WHERE user_id = $1 AND kind = 'session' AND revoked_at IS NULL
"""


class Account(msgspec.Struct, frozen=True):
    """An account as the operator's list shows it."""

    id: UUID
    username: str
    display_name: str
    has_password: bool
    providers: list[str]
    courses: list[str]
    """`role of short name`."""
    disabled_at: datetime | None


class OwnAccount(msgspec.Struct, frozen=True):
    """An account as its person sees it. `is_free`: a link was just opened, the present password is not asked for."""

    name: str
    has_password: bool
    is_free: bool


class Accounts:
    """Accounts on PostgreSQL. Every method raises Unavailable (NB-2003) when it is away."""

    def __init__(self, people: People, hasher: Hasher) -> None:
        self._people = people
        self._hasher = hasher

    # --- signing in -----------------------------------------------------------------------------------------------

    async def check_password(self, name: str, password: str) -> UUID:
        """
        Whose name and password these are.

        Raises AccessDenied (NB-1120) whichever of the two is wrong, TooMuch (NB-1130).
        """
        async with self._people.connect("find_password") as connection:
            found = await connection.fetchrow("SELECT * FROM find_password($1)", clean_username(name))
        kept: str | None = found["hash"] if found else None
        user_id: UUID | None = found["user_id"] if found else None
        if not await self._hasher.verify(kept, password) or user_id is None:
            async with self._people.connect("find_password") as connection:
                await note_audit(connection, "sign_in_failed", subject_id=user_id, facts={"code": "NB-1120"})
            raise AccessDenied("NB-1120")
        if kept is not None and self._hasher.is_outdated(kept):
            await self._keep_password(user_id, await self._hasher.hash(password))
        return user_id

    async def open_session(self, user_id: UUID, by: str, *, life: timedelta = SESSION_LIFE) -> str:
        """
        The token of a new session of who has just proved to be `user_id`, `by` a password or a provider.

        Raises AccessDenied (NB-1125): the account is closed.
        """
        with asking_as(user_id):
            async with self._people.connect("open_session") as connection:
                token = await add_session(connection, user_id, life=life)
                await note_audit(connection, "session_started", subject_id=user_id, facts={"by": by})
                return token

    async def enter(self, provider: str, subject: str, username: str, display_name: str | None) -> UUID:
        """The user whom `provider` calls `subject`; made, of no course, with these names where there is none yet."""
        new_id = uuid4()
        name = clean_username(username) or f"user-{new_id.hex[:8]}"
        sealed = self._seal_name(new_id, display_name) if display_name else None
        async with self._people.connect("enter_as_identity") as connection:
            user_id: UUID = await connection.fetchval(
                "SELECT enter_as_identity($1, $2, $3, $4, $5)", provider, subject, new_id, name, sealed
            )
        return user_id

    def _seal_name(self, user_id: UUID, display_name: str) -> str:
        return self._people.seal.seal(display_name, table="users", column="display_name", user_id=user_id)

    # --- one's own ------------------------------------------------------------------------------------------------

    async def set_password(self, person: Person, present: str | None, new: str) -> str:
        """
        A new password for who asks; every session of theirs ends, and the token of a new one is given back.

        Raises AccessDenied: the present password is wrong, or missing where one has not just come by a link (NB-1123).
        InvalidInput (NB-1121, NB-1122): no good password. TooMuch (NB-1130).
        """
        account = await self.describe(person)
        if not account.is_free:
            try:
                await self.check_password(account.name, present or "")
            except AccessDenied as error:
                raise AccessDenied("NB-1123") from error
        check_rules(new, account.name)
        kept = await self._hasher.hash(new)
        async with self._people.connect("set_password") as connection:
            await connection.execute(_KEEP_PASSWORD, person.user_id, kept)
            await connection.execute(_CLOSE_SESSIONS, person.user_id)
            token = await add_session(connection, person.user_id)
            await note_audit(connection, "password_changed", subject_id=person.user_id)
        return token

    async def describe(self, person: Person) -> OwnAccount:
        """The account of who asks."""
        async with self._people.connect("describe_account") as connection:
            row = await connection.fetchrow(_DESCRIBE, person.user_id, person.token_id, SETTING_LIFE)
        if row is None:
            raise AccessDenied("NB-1101")
        is_free = PASSWORD_SET in person.scopes and row["is_fresh"]
        return OwnAccount(row["username"], row["has_password"], is_free)

    async def close_sessions(self, user_id: UUID) -> int:
        """End every session of who asks; how many there were."""
        async with self._people.connect("close_sessions") as connection:
            done: str = await connection.execute(_CLOSE_SESSIONS, user_id)
            await note_audit(connection, "sessions_ended", subject_id=user_id)
        return int(done.rpartition(" ")[2])

    async def _keep_password(self, user_id: UUID, kept: str) -> None:
        with asking_as(user_id):
            async with self._people.connect("set_password") as connection:
                await connection.execute(_KEEP_PASSWORD, user_id, kept)

    # --- the operator's, with the owner's rights -------------------------------------------------------------------

    async def add(self, username: str, display_name: str | None, course: str | None, role: str) -> UUID:
        """
        A new account, staff of the course of that short name where one is named.

        Raises InvalidInput: no name an account can have (NB-1132), or one that is taken (NB-1131); NotFound (NB-1352):
        there is no such course.
        """
        name, user_id = clean_username(username), uuid4()
        if not name or len(name) > _NAME_MAX:
            raise InvalidInput("NB-1132")
        sealed = self._seal_name(user_id, display_name or name)
        async with self._people.connect("add_account") as connection:
            insert = "INSERT INTO users (id, username, display_name) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
            if await connection.execute(insert, user_id, name, sealed) != "INSERT 0 1":
                raise InvalidInput("NB-1131", name=name)
            if course is not None and await connection.execute(_ENROL, user_id, course, role) != "INSERT 0 1":
                raise NotFound("NB-1352", course=course)
            await note_audit(connection, "account_added", subject_id=user_id)
        return user_id

    async def find(self, name: str) -> UUID | None:
        """The account of that name or id."""
        with contextlib.suppress(ValueError):
            name = str(UUID(name))
        async with self._people.connect("describe_account") as connection:
            user_id: UUID | None = await connection.fetchval(
                "SELECT id FROM users WHERE merged_into IS NULL AND (username = $1 OR id::text = $1)",
                clean_username(name),
            )
        return user_id

    async def close(self, user_id: UUID) -> int:
        """
        Close the account: no new tokens are made, and all it has end; how many there were.

        Two transactions, in this order: a sign-in at the same moment holds its link's row and waits for the user's.
        """
        async with self._people.connect("close_account") as connection:
            await connection.execute(
                "UPDATE users SET disabled_at = coalesce(disabled_at, now()) WHERE id = $1", user_id
            )
        async with self._people.connect("close_account") as connection:
            done: str = await connection.execute(
                "UPDATE tokens SET revoked_at = now() WHERE user_id = $1 AND revoked_at IS NULL AND kind <> 'resume'",
                user_id,
            )
            await note_audit(connection, "account_closed", subject_id=user_id)
        return int(done.rpartition(" ")[2])

    async def reopen(self, user_id: UUID) -> None:
        """Let the account be signed in to again; what ended with its closing stays ended."""
        async with self._people.connect("close_account") as connection:
            await connection.execute("UPDATE users SET disabled_at = NULL WHERE id = $1", user_id)
            await note_audit(connection, "account_reopened", subject_id=user_id)

    async def list(self) -> Sequence[Account]:
        """Who could sign in at the board: staff, and everybody with a password or a provider's word; by name."""
        async with self._people.connect("list_accounts") as connection:
            rows = await connection.fetch(_LIST)
        return [_read_account(self._people, row) for row in rows]


_LIST: Final = """
SELECT u.id, u.username, u.display_name, u.disabled_at, p.user_id IS NOT NULL AS has_password,
    ARRAY(SELECT i.provider::text FROM external_identities i WHERE i.user_id = u.id ORDER BY 1) AS providers,
    ARRAY(SELECT e.role || ' ' || c.short_name FROM enrolments e JOIN courses c ON c.id = e.course_id
          WHERE e.user_id = u.id ORDER BY 1) AS courses
FROM users u LEFT JOIN passwords p ON p.user_id = u.id
WHERE u.merged_into IS NULL AND (p.user_id IS NOT NULL OR u.disabled_at IS NOT NULL
    OR EXISTS (SELECT FROM external_identities i WHERE i.user_id = u.id)
    OR EXISTS (SELECT FROM enrolments e WHERE e.user_id = u.id AND e.role <> 'student')
    OR NOT EXISTS (SELECT FROM enrolments e WHERE e.user_id = u.id))
ORDER BY u.username
"""


def _read_account(people: People, row: asyncpg.Record) -> Account:
    fields = dict(row)
    fields["display_name"] = open_name(people.seal, row["id"], row["username"], row["display_name"])
    return Account(**fields)


def clean_username(name: str) -> str:
    """A typed name in its stored spelling: NFC, without what cannot be seen."""
    text = unicodedata.normalize("NFC", name).strip()
    return "".join(letter for letter in text if unicodedata.category(letter)[0] != "C")
