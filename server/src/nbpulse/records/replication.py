"""The primary's side of its embedded replica: a login that may replicate and nothing else, and a slot of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal

import asyncpg

from nbpulse.errors import Unavailable
from nbpulse.records.failures import UNAVAILABLE
from nbpulse.records.owner import OwnerPool, set_passwords

LOGIN: Final = "nbpulse_replica"
SLOT: Final = "nbpulse_replica"

SlotState = Literal["missing", "lost", "waiting", "followed"]

_STATE: Final = "SELECT active, wal_status FROM pg_replication_slots WHERE slot_name = $1"
_DROP: Final = (
    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active"
)


async def ensure_login(owner: OwnerPool, password: str) -> None:
    """Make the login, or give it this password."""
    if not await owner.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", LOGIN):
        await owner.execute(f"CREATE ROLE {LOGIN} LOGIN REPLICATION")
    await set_passwords(owner, {LOGIN: password})


async def drop_slot(owner: OwnerPool) -> None:
    """Where nobody follows any more: what is written from now on is kept for nobody."""
    await owner.execute(_DROP, SLOT)


async def read_slot(url: str) -> SlotState:
    """Whether what the replica has not got yet is kept for it, and whether it follows. Raises Unavailable (NB-2003)."""
    async with _connect(url) as connection:
        row = await connection.fetchrow(_STATE, SLOT)
    if row is None:
        return "missing"
    if row["wal_status"] == "lost":
        return "lost"
    return "followed" if row["active"] else "waiting"


async def renew_slot(url: str) -> None:
    """Keep everything from now on for it. Raises Unavailable (NB-2003), also where the old slot is still followed."""
    async with _connect(url) as connection, connection.transaction():
        await connection.execute(_DROP, SLOT)
        # Reserved at once: a copy that takes long needs what is written meanwhile.
        await connection.execute("SELECT pg_create_physical_replication_slot($1, true)", SLOT)


@asynccontextmanager
async def _connect(url: str) -> AsyncIterator[asyncpg.Connection]:
    try:
        connection = await asyncpg.connect(url, timeout=5, command_timeout=5)
        try:
            yield connection
        finally:
            connection.terminate()
    except (*UNAVAILABLE, asyncpg.DuplicateObjectError, asyncpg.ObjectInUseError) as error:
        raise Unavailable("NB-2003") from error
