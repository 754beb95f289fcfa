"""Points that the time series does not hold yet, kept from the ledger's own transaction on until it does.

Where points bear what students' errors said in full (NBPULSE_INFLUX_ERROR_TEXT), the debt is sealed as a whole.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Final
from uuid import UUID, uuid4

import asyncpg
import msgspec

from nbpulse.crypto import EncryptedField
from nbpulse.pipeline import CellExecutionPoint, Recorded

_FIND = """
SELECT id, points, sealed_points FROM series_debt WHERE created_at < now() - $1 * interval '1 second'
ORDER BY created_at LIMIT $2
"""
_PLACE: Final = {"table": "series_debt", "column": "sealed_points", "user_id": UUID(int=0)}
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[CellExecutionPoint, ...]).decode


async def note(
    connection: asyncpg.Connection,
    points: tuple[CellExecutionPoint, ...],
    seal: EncryptedField | None,
    debt_id: UUID | None = None,
) -> UUID:
    """
    A batch's points as a debt, sealed where `seal` is given; its id, one for all databases of a batch. Inside the
    batch's transaction.
    """
    debt_id, plain = debt_id or uuid4(), _encode(points)
    sealed = None
    if seal is not None:
        sealed = seal.seal(base64.b85encode(plain).decode(), **_PLACE)  # type: ignore[arg-type]
    await connection.execute(
        "INSERT INTO series_debt (id, points, sealed_points) VALUES ($1, $2, $3)",
        debt_id,
        b"" if sealed else plain,
        sealed,
    )
    return debt_id


async def find(pool: asyncpg.Pool, seal: EncryptedField, older_than_s: float, limit: int) -> list[Recorded]:
    """Batches whose points are still owed, oldest first. Raises what the driver raises."""
    rows = await pool.fetch(_FIND, older_than_s, limit, timeout=5)
    return [Recorded((), _read(row, seal), 0, 0, row["id"]) for row in rows]


def _read(row: asyncpg.Record, seal: EncryptedField) -> tuple[CellExecutionPoint, ...]:
    if row["sealed_points"] is None:
        return _decode(row["points"])
    return _decode(base64.b85decode(seal.unseal(row["sealed_points"], **_PLACE)))  # type: ignore[arg-type]


async def drop_points(
    connection: asyncpg.Connection, seal: EncryptedField, is_meant: Callable[[CellExecutionPoint], bool]
) -> int:
    """Take points out of what is owed, in the transaction that erases them; how many."""
    dropped = 0
    for row in await connection.fetch("SELECT id, points, sealed_points FROM series_debt ORDER BY id FOR UPDATE"):
        points = _read(row, seal)
        kept = tuple(point for point in points if not is_meant(point))
        if len(kept) == len(points):
            continue
        dropped += len(points) - len(kept)
        await connection.execute("DELETE FROM series_debt WHERE id = $1", row["id"])
        if kept:
            await note(connection, kept, seal if row["sealed_points"] is not None else None)
    return dropped
