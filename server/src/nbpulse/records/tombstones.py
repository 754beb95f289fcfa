"""Tombstones on PostgreSQL: whether something was erased, and which erasures are not finished outside of the tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal
from uuid import UUID

import asyncpg
import msgspec

from nbpulse.errors import AccessDenied

Kind = Literal["user", "token", "identity", "course"]


class Leftover(msgspec.Struct, frozen=True, kw_only=True):
    """
    What an erasure still has to remove outside of the tables: everything of `user_ids`, and of `course_id` what
    `member_ids` (who are in other courses too) did in the notebooks at `paths`.
    """

    user_ids: list[UUID]
    course_ids: list[UUID] = []
    """Courses whose boards and caches knew them."""
    notebook_ids: list[UUID] = []
    course_id: UUID | None = None
    member_ids: list[UUID] = []
    paths: list[str] = []


_ADD = """
INSERT INTO tombstones (mark, kind, unfinished) SELECT mark, $2, $3 FROM unnest($1::bytea[]) AS k(mark)
ON CONFLICT (mark) DO UPDATE SET unfinished = coalesce(excluded.unfinished, tombstones.unfinished)
"""


async def add(
    connection: asyncpg.Connection, kind: Kind, marks: Iterable[bytes], leftover: Leftover | None = None
) -> None:
    """Set tombstones, in the transaction that erases."""
    text = msgspec.json.encode(leftover).decode() if leftover else None
    await connection.execute(_ADD, list(marks), kind, text)


async def list_marks(pool: asyncpg.Pool, kind: Kind) -> set[bytes]:
    """All marks of a kind. Owner's login."""
    return {row["mark"] for row in await pool.fetch("SELECT mark FROM tombstones WHERE kind = $1", kind)}


async def list_unfinished(pool: asyncpg.Pool) -> list[tuple[bytes, Leftover]]:
    """Erasures whose outer part is still to be done, the oldest first. Owner's login."""
    rows = await pool.fetch("SELECT mark, unfinished FROM tombstones WHERE unfinished IS NOT NULL ORDER BY at, mark")
    return [(row["mark"], msgspec.json.decode(row["unfinished"], type=Leftover)) for row in rows]


async def finish(pool: asyncpg.Pool, mark: bytes) -> None:
    """Nothing of it is left; whose it was is known no more. Owner's login."""
    await pool.execute("UPDATE tombstones SET unfinished = NULL WHERE mark = $1", mark)


async def remove(pool: asyncpg.Pool, mark: bytes) -> bool:
    """Let somebody in again; False where they were not kept out. Owner's login."""
    done: str = await pool.execute("DELETE FROM tombstones WHERE mark = $1 AND kind = 'identity'", mark)
    return done == "DELETE 1"


async def refuse_erased(connection: asyncpg.Connection, mark: bytes) -> None:
    """Raises AccessDenied (NB-1345) where there is a tombstone with this mark."""
    if await connection.fetchval("SELECT is_erased($1)", mark):
        raise AccessDenied("NB-1345")
