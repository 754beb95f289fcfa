"""Tokens and codes as they are made and kept: of a secret only its SHA-256, compared in constant time.

A session ends by itself a week after its beginning and 12 hours after its last use; an open board uses it. NIST SP
800-63B-4, section 2.1.3, asks for a new sign-in within 30 days where a password is the only factor.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import asyncpg

from nbpulse.errors import AccessDenied

LINK_LIFE: Final = timedelta(minutes=10)
SESSION_LIFE: Final = timedelta(days=7)
SESSION_IDLE: Final = timedelta(hours=12)
PROVIDED_LIFE: Final = timedelta(hours=12)
"""Of a session that began at a provider: who may no longer sign in there is out here within it."""
PASSWORD_SET: Final = "password:set"
"""The scope of a session that began with a link: its person may set a password without the old one."""

# No 0 O 1 I L U: a code is read out loud and typed in.
_CODE_LETTERS: Final = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
_ADD_TOKEN: Final = """
INSERT INTO tokens (id, kind, user_id, course_id, scopes, secret_hash, expires_at, last_used_at)
VALUES ($1, $2::varchar, $3, $4, $5, $6, $7, CASE WHEN $2::varchar = 'session' THEN now() END)
"""


def hash_secret(secret: str) -> bytes:
    """What is stored of a secret. It has 256 random bits (a resume code 59), so a plain hash is enough."""
    return hashlib.sha256(secret.encode()).digest()


def is_hash_of(stored: bytes, secret: str) -> bool:
    """Whether `stored` was made of the secret, in constant time."""
    return hmac.compare_digest(stored, hash_secret(secret))


def make_code(length: int) -> str:
    """A random code that can be read out loud."""
    return "".join(secrets.choice(_CODE_LETTERS) for _ in range(length))


def clean_code(code: str) -> str:
    """A typed code in its stored spelling: capitals, spaces and hyphens do not matter."""
    return "".join(letter for letter in code.upper() if letter.isalnum())


def parse_token(token: str) -> tuple[UUID, str] | None:
    """Id and secret; None for what is no token of ours."""
    parts = token.split("_", 3)
    if len(parts) != 4 or parts[0] != "nbp" or len(parts[2]) != 32:
        return None
    try:
        return UUID(parts[2]), parts[3]
    except ValueError:
        return None


async def add_token(
    connection: asyncpg.Connection,
    kind: str,
    user_id: UUID,
    course_id: UUID | None,
    *,
    scopes: tuple[str, ...] = (),
    life: timedelta | None = None,
) -> str:
    """A new token, shown once. Raises AccessDenied (NB-1125): the account is closed."""
    secret = secrets.token_urlsafe(32)
    token_id = await add_secret(connection, kind, user_id, course_id, secret, scopes=scopes, life=life)
    return f"nbp_{kind}_{token_id.hex}_{secret}"


async def add_session(
    connection: asyncpg.Connection, user_id: UUID, *, life: timedelta = SESSION_LIFE, scopes: tuple[str, ...] = ()
) -> str:
    """The token of a new session, for who has just been proved. Raises as `add_token`."""
    return await add_token(connection, "session", user_id, None, scopes=scopes, life=life)


async def add_secret(
    connection: asyncpg.Connection,
    kind: str,
    user_id: UUID,
    course_id: UUID | None,
    secret: str,
    *,
    scopes: tuple[str, ...] = (),
    life: timedelta | None = None,
) -> UUID:
    """Keep what a secret is known by; its row's id. Raises as `add_token`."""
    token_id = uuid4()
    expires_at = datetime.now(UTC) + life if life else None
    row = token_id, kind, user_id, course_id, list(scopes), hash_secret(secret), expires_at
    try:
        await connection.execute(_ADD_TOKEN, *row)
    except asyncpg.CheckViolationError as error:
        if error.constraint_name == "account_open":
            raise AccessDenied("NB-1125") from error
        raise
    return token_id
