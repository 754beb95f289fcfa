"""The stage of the API's tests: one database for all, an API of its own for each test. Servers of the backups' own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from redis.asyncio import Redis

from nbpulse.embedded import EmbeddedPostgres, EmbeddedValkey
from servers import make_data_dir, run_postgres_15, run_server
from stage import Stage, open_stage
from stores import CITUS_URL, create_database


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


@pytest.fixture(scope="session")
def server_18() -> Iterator[str]:
    """For backups alone: a restore sets the passwords of the server's logins. The Citus cluster where one is given."""
    if CITUS_URL:
        yield CITUS_URL
        return
    with make_data_dir() as directory, run_server(EmbeddedPostgres(directory)) as url:
        yield url


@pytest.fixture(scope="session")
def server_15() -> Iterator[str]:
    """The same, Debian's."""
    with run_postgres_15() as url:
        yield url


@pytest.fixture
def make_valkey() -> Iterator[Callable[[], str]]:
    """New empty ones, one for each call."""
    with make_data_dir() as directory:
        servers: list[EmbeddedValkey] = []

        def start() -> str:
            servers.append(EmbeddedValkey(directory / str(len(servers))))
            servers[-1].data_dir.mkdir(mode=0o711)
            servers[-1].start()
            return servers[-1].url

        try:
            yield start
        finally:
            for server in servers:
                server.stop()
