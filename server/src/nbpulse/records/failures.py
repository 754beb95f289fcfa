"""Which errors of the database mean: not now, the same again will succeed."""

from __future__ import annotations

import asyncpg

UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # What the driver says when a connection dies between a question and its answer ("another operation in progress").
    asyncpg.InternalClientError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InsufficientResourcesError,
    asyncpg.UniqueViolationError,
)
"""Away, restarting, or beaten by another transaction: the same batch again will succeed."""
