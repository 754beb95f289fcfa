"""Dead letters: entries the worker could never process, kept sealed with their reason until somebody decides.

Promises: an entry is buried once, before it is acknowledged; the reason holds nobody's text; replaying is safe to
repeat, since the ledger stores an event once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar
from uuid import UUID

import asyncpg
import msgspec

from nbpulse.crypto import EncryptedField
from nbpulse.errors import NotFound, Unavailable
from nbpulse.metrics import name_query
from nbpulse.records.audit import note_audit
from nbpulse.records.failures import UNAVAILABLE

_Answer = TypeVar("_Answer")
_NOBODY = UUID(int=0)
# An entry is counted once (accounting.py): not if it was buried before, nor if it was stored before its worker died.
_BURY = """
WITH buried AS (
    INSERT INTO dead_letters AS d (stream, entry_id, user_id, code, reason, deliveries, payload)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (stream, entry_id) DO UPDATE SET deliveries = greatest(d.deliveries, excluded.deliveries)
    RETURNING xmax = 0 AS is_new
)
INSERT INTO event_counts AS c (slot, quarantined) SELECT 0, 1 FROM buried WHERE is_new AND NOT $8
ON CONFLICT (slot) DO UPDATE SET quarantined = c.quarantined + 1
"""
# Counts, not EXISTS: Citus cannot hand on rows that have no column.
_IS_COUNTED = """
SELECT (SELECT count(*) FROM event_ids WHERE user_id = $3 AND event_id = $4 AND entry_id = $2)
    + (SELECT count(*) FROM spent_entries WHERE stream = $1 AND entry_id = $2) > 0
"""
_LIST = """
SELECT id, stream, entry_id, user_id, code, reason, deliveries, first_seen_at, replayed_at FROM dead_letters
WHERE $1 OR replayed_at IS NULL ORDER BY first_seen_at, id LIMIT $2
"""


class DeadLetter(msgspec.Struct, frozen=True):
    """One buried entry, without its payload."""

    id: UUID
    stream: str
    entry_id: str
    user_id: UUID | None
    code: str
    reason: str
    deliveries: int
    first_seen_at: datetime
    replayed_at: datetime | None


class DeadLetters:
    """The table `dead_letters`. Every method raises Unavailable (NB-2003) when PostgreSQL is away."""

    def __init__(
        self, pool: asyncpg.Pool, seal: EncryptedField, find_home: Callable[[UUID], asyncpg.Pool] | None = None
    ) -> None:
        """`find_home`: the database of a student's rows, where that may be another."""
        self._pool = pool
        self._seal = seal
        self._find_home = find_home or (lambda _: pool)

    async def bury(
        self,
        *,
        stream: bytes,
        entry_id: bytes,
        payload: bytes,
        user_id: UUID | None,
        event_id: UUID | None = None,
        code: str,
        reason: str,
        deliveries: int,
    ) -> None:
        """Keep an entry; buried already, it stays as it is. Afterwards it may be acknowledged."""
        # Any bytes survive the way through text in Latin-1.
        text = payload.decode("latin-1")
        sealed = self._seal.seal(text, table="dead_letters", column="payload", user_id=user_id or _NOBODY)
        place = stream.decode(), entry_id.decode()
        home = self._find_home(user_id) if user_id else self._pool
        is_counted = await self._run(home.fetchval(_IS_COUNTED, *place, user_id, event_id, timeout=5))
        values = (user_id, code, reason[:500], deliveries, sealed, is_counted)
        await self._run(self._pool.execute(_BURY, *place, *values, timeout=5))

    async def list_letters(self, *, include_replayed: bool = False, limit: int = 100) -> list[DeadLetter]:
        """The oldest first; those sent on their way again only when asked for."""
        rows = await self._run(self._pool.fetch(_LIST, include_replayed, limit, timeout=5))
        return [DeadLetter(*row) for row in rows]

    async def read_payload(self, letter_id: UUID) -> bytes:
        """What the entry held, unsealed: free text of a person, for the operator's eyes. Raises NotFound (NB-1201)."""
        _, payload = await self._find(letter_id)
        await self._run(self._note(letter_id))
        return payload

    async def replay(self, letter_id: UUID, append: Callable[[Sequence[tuple[bytes, bytes]]], Awaitable[None]]) -> None:
        """
        Append the entry to its stream again (`append` = EventStream.append_payloads) and note when.

        Raises NotFound (NB-1201), Unavailable when the stream does not take it: then it stays as it was.
        """
        stream, payload = await self._find(letter_id)
        await append([(stream, payload)])
        await self._run(
            self._pool.execute("UPDATE dead_letters SET replayed_at = now() WHERE id = $1", letter_id, timeout=5)
        )

    async def drop(self, letter_id: UUID) -> None:
        """Delete the entry for good; needs the owner's login. Raises NotFound (NB-1201)."""
        await self._run(self._drop(letter_id))

    async def _note(self, letter_id: UUID) -> None:
        async with self._pool.acquire(timeout=5) as connection, connection.transaction():
            user_id = await connection.fetchval("SELECT user_id FROM dead_letters WHERE id = $1", letter_id)
            await note_audit(connection, "letter_viewed", subject_id=user_id, facts={"letter_id": str(letter_id)})

    async def _drop(self, letter_id: UUID) -> None:
        async with self._pool.acquire(timeout=5) as connection, connection.transaction():
            row = await connection.fetchrow("DELETE FROM dead_letters WHERE id = $1 RETURNING user_id", letter_id)
            if row is None:
                raise NotFound("NB-1201")
            facts = {"letter_id": str(letter_id)}
            await note_audit(connection, "letter_dropped", subject_id=row["user_id"], facts=facts)

    async def _find(self, letter_id: UUID) -> tuple[bytes, bytes]:
        """Stream and payload of a letter."""
        row = await self._run(
            self._pool.fetchrow("SELECT stream, user_id, payload FROM dead_letters WHERE id = $1", letter_id, timeout=5)
        )
        if row is None:
            raise NotFound("NB-1201")
        owner = row["user_id"] or _NOBODY
        text = self._seal.unseal(row["payload"], table="dead_letters", column="payload", user_id=owner)
        return row["stream"].encode(), text.encode("latin-1")

    async def _run(self, call: Awaitable[_Answer]) -> _Answer:
        try:
            with name_query("dead_letters"):
                return await call
        except UNAVAILABLE as error:
            raise Unavailable("NB-2003") from error


async def drop_nameless(
    connection: asyncpg.Connection, seal: EncryptedField, needles: Sequence[bytes], among: Sequence[UUID] = ()
) -> int:
    """
    Delete letters that hold one of `needles`, in the transaction that erases what they name; how many. Looked at are
    those of nobody in particular, which had to be opened to know whose they are, and those of the people `among`.
    """
    rows = await connection.fetch(
        "SELECT id, user_id, payload FROM dead_letters WHERE user_id IS NULL OR user_id = ANY($1::uuid[])", among
    )
    found = []
    for row in rows:
        owner = row["user_id"] or _NOBODY
        text = seal.unseal(row["payload"], table="dead_letters", column="payload", user_id=owner)
        if any(needle in text.encode("latin-1") for needle in needles):
            found.append(row["id"])
    await connection.execute("DELETE FROM dead_letters WHERE id = ANY($1::uuid[])", found)
    return len(found)
