"""Who is asking: the identity that row-level security sees, for the length of one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg


@asynccontextmanager
async def acting_as(pool: asyncpg.Pool, user_id: UUID) -> AsyncIterator[Any]:
    """
    A connection in one transaction, in which policies see `user_id` as the person who asks; afterwards nobody.

    SET takes no parameter, hence the id is parsed and written by us. Raises the driver's errors, and TimeoutError.
    """
    async with pool.acquire(timeout=5) as connection, connection.transaction():
        await connection.execute(f"SET LOCAL app.current_user_id = '{UUID(str(user_id))}'")
        yield connection
