"""Indexes made while the class goes on: writers are not kept waiting, and a kill at any point is made good."""

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from nbpulse.migrations import migrate
from nbpulse.migrations.indexes import drop_index, make_index
from stores import connect, create_database

ROWS = 200_000
WAIT_MAX_S = 1.0
PARTS = """
CREATE TABLE parted (month int NOT NULL, number int NOT NULL, words text) PARTITION BY RANGE (month);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (1) TO (2);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (2) TO (3);
CREATE TABLE parted_default PARTITION OF parted DEFAULT;
INSERT INTO parted SELECT 1 + n % 2, n, repeat(md5(n::text), 4) FROM generate_series(1, 200000) n;
CREATE TABLE plain AS SELECT * FROM parted
"""
VALIDITY = """
SELECT c.relname, x.indisvalid FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid
WHERE x.indrelid::regclass::text LIKE 'parted%' OR x.indrelid = 'plain'::regclass ORDER BY 1
"""
NAMES = ["idx", "parted_1_idx", "parted_2_idx", "parted_default_idx"]


@pytest.fixture
async def database_url(embedded_postgres: str) -> str:
    url = await create_database(embedded_postgres)
    async with connect(url) as owner:
        await owner.execute(PARTS)
    return url


async def apply(url: str, change: Callable[[], None]) -> None:
    """Run `change` as a migration does."""

    def run(connection: Connection) -> None:
        context = MigrationContext.configure(connection, opts={"transaction_per_migration": True})
        with Operations.context(context), context.begin_transaction(_per_migration=True):
            change()

    engine = create_async_engine("postgresql+asyncpg://" + url.split("://", 1)[1])
    try:
        async with engine.connect() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


def make_both() -> None:
    make_index("idx", "parted", "(words, number)")
    make_index("plain_idx", "plain", "(words, number)")


def make_in_a_process(url: str) -> None:
    asyncio.run(apply(url, make_both))


@asynccontextmanager
async def writing(url: str) -> AsyncIterator[list[float]]:
    """A writer that inserts all the while; how long each insert took, in s."""
    waits_s: list[float] = []

    async def write() -> None:
        async with connect(url) as writer:
            while True:
                began = time.monotonic()
                await writer.execute("INSERT INTO parted SELECT 1 + n % 3, n, 'new' FROM generate_series(1, 3) n")
                await writer.execute("INSERT INTO plain VALUES (1, 1, 'new')")
                waits_s.append(time.monotonic() - began)
                await asyncio.sleep(0.002)

    task = asyncio.create_task(write())
    try:
        yield waits_s
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def read_validity(url: str) -> dict[str, bool]:
    async with connect(url) as owner:
        return dict(await owner.fetch(VALIDITY))


async def count_by_index(owner: asyncpg.Connection, table: str) -> tuple[int, int]:
    """Rows as the index knows them, and as the table holds them."""
    await owner.execute("SET enable_seqscan = off")
    by_index = await owner.fetchval(f"SELECT count(*) FROM {table} WHERE words >= ''")
    plan = "\n".join(row[0] for row in await owner.fetch(f"EXPLAIN SELECT count(*) FROM {table} WHERE words >= ''"))
    assert "Seq Scan" not in plan
    await owner.execute("RESET enable_seqscan; SET enable_indexscan = off; SET enable_indexonlyscan = off")
    await owner.execute("SET enable_bitmapscan = off")
    by_table = await owner.fetchval(f"SELECT count(*) FROM {table} WHERE words >= ''")
    await owner.execute("RESET ALL")
    return by_index, by_table


async def test_a_writer_never_waits_while_an_index_is_made_over_rows(database_url: str) -> None:
    async with writing(database_url) as waits_s:
        await asyncio.sleep(0.2)
        before = len(waits_s)
        await apply(database_url, make_both)
        during = waits_s[before:]
    assert len(during) > 10
    assert max(during) < WAIT_MAX_S
    validity = await read_validity(database_url)
    assert validity == {**dict.fromkeys(NAMES, True), "plain_idx": True}
    async with connect(database_url) as owner:
        for table in ("parted", "plain"):
            by_index, by_table = await count_by_index(owner, table)
            assert by_index == by_table > ROWS
        await owner.execute("CREATE TABLE parted_4 PARTITION OF parted FOR VALUES FROM (4) TO (5)")
    assert len(await read_validity(database_url)) == len(NAMES) + 2, "a new partition inherits it"


@pytest.mark.parametrize("victim", ["parted_1", "parted_2", "plain"])
async def test_killed_while_it_makes_any_of_them_it_is_whole_when_run_again(database_url: str, victim: str) -> None:
    process = multiprocessing.get_context("spawn").Process(target=make_in_a_process, args=(database_url,))
    process.start()
    async with connect(database_url) as owner:
        deadline_s = time.monotonic() + 30
        while not (
            backend := await owner.fetchval(
                "SELECT pid FROM pg_stat_progress_create_index"
                " WHERE relid = $1::regclass AND datname = current_database()",
                victim,
            )
        ):
            assert process.is_alive() or process.exitcode is None, "it was over before it could be killed"
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.001)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        await owner.fetchval("SELECT pg_terminate_backend($1, 10000)", backend)
    process.join()
    left = await read_validity(database_url)
    assert not all(left.values()) or "plain_idx" not in left
    async with writing(database_url) as waits_s:
        await apply(database_url, make_both)
    assert max(waits_s) < WAIT_MAX_S
    assert await read_validity(database_url) == {**dict.fromkeys(NAMES, True), "plain_idx": True}


async def test_a_long_reader_makes_no_writer_wait(database_url: str) -> None:
    """Somebody holds a lock that the parent's step must wait for: it steps back, so that nobody queues behind it."""
    async with connect(database_url) as reader, writing(database_url) as waits_s:
        transaction = reader.transaction()
        await transaction.start()
        await reader.execute("LOCK TABLE parted IN ROW EXCLUSIVE MODE")
        making = asyncio.create_task(apply(database_url, make_both))
        await asyncio.sleep(1.5)
        assert not making.done()
        await transaction.rollback()
        await making
    assert max(waits_s) < WAIT_MAX_S
    assert all((await read_validity(database_url)).values())


async def test_an_index_that_is_there_is_left_alone_and_dropping_twice_is_no_error(database_url: str) -> None:
    async def find() -> Any:
        async with connect(database_url) as owner:
            return await owner.fetch("SELECT oid FROM pg_class WHERE relname = ANY($1) ORDER BY 1", NAMES)

    await apply(database_url, make_both)
    made = await find()
    await apply(database_url, make_both)
    assert await find() == made
    for _ in range(2):
        await apply(database_url, lambda: drop_index("plain_idx"))
    assert list(await read_validity(database_url)) == NAMES


async def test_a_dropped_index_of_the_sessions_is_made_again_by_the_migration(embedded_postgres: str) -> None:
    url = await create_database(embedded_postgres, "0009")
    async with connect(url) as owner:
        await owner.execute("SELECT ensure_months(3)")
        await owner.execute("DROP INDEX idx_sessions_composite, idx_sessions_course, idx_events_errors")
        await owner.execute("UPDATE alembic_version SET version_num = '0008'")
    await asyncio.gather(migrate(url, {}, "0009"), migrate(url, {}, "0009"))
    async with connect(url) as owner:
        rows = await owner.fetch(
            "SELECT c.relname, x.indisvalid, (SELECT count(*) FROM pg_inherits WHERE inhparent = c.oid) AS parts,"
            " (SELECT count(*) FROM pg_inherits WHERE inhparent = x.indrelid) AS partitions FROM pg_index x"
            " JOIN pg_class c ON c.oid = x.indexrelid"
            " WHERE c.relname IN ('idx_sessions_composite', 'idx_sessions_course', 'idx_events_errors')"
        )
    assert len(rows) == 3
    for row in rows:
        assert row["indisvalid"], row
        assert row["parts"] == row["partitions"] >= 4, row
