"""The stage of the API's tests: one database for all, an API of its own for each test."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from stage import Stage, open_stage
from stores import create_database


@pytest.fixture(scope="session")
def stage_database(embedded_postgres: str) -> str:
    """The superuser's URL of a migrated database."""
    return asyncio.run(create_database(embedded_postgres))


@pytest.fixture
async def stage(stage_database: str, embedded_valkey: str) -> AsyncIterator[Stage]:
    """A class, its teacher, and an API on real stores, the stream without what an earlier test left in it."""
    async with Redis.from_url(embedded_valkey) as redis:
        await redis.flushall()
    async with open_stage(stage_database, embedded_valkey) as opened:
        yield opened
