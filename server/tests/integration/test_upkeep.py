"""The background jobs on PostgreSQL: months, statistics, what is known of notebooks."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from nbpulse.errors import Unavailable
from nbpulse.migrations.runner import with_login
from nbpulse.records.owner import has_months_ahead
from nbpulse.records.upkeep import count_cells, keep_partitions
from stores import WORKER_PASSWORD, connect, create_database, make_class, make_event, open_stores

PARTITIONED = (
    *("events", "learning_sessions", "timeseries.cell_executions"),
    *("timeseries.learning_progress", "timeseries.performance_metrics"),
)


@pytest.fixture
async def database_url(embedded_postgres: str) -> str:
    return await create_database(embedded_postgres)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    """Under the worker's own login."""
    url = with_login(database_url, "nbpulse_worker", WORKER_PASSWORD)
    async with asyncpg.create_pool(url, min_size=1, max_size=2) as opened:
        yield opened


async def test_a_month_that_was_missing_is_made_and_takes_its_rows_from_the_default(
    database_url: str, embedded_valkey: str, pool: asyncpg.Pool
) -> None:
    course_id, (student,) = await make_class(database_url, 1)
    now = datetime.now(UTC)
    month = f"_{now:%Y_%m}"
    async with connect(database_url) as owner:
        for table in PARTITIONED:
            await owner.execute(f"DROP TABLE {table}{month}")
        async with open_stores(database_url, embedded_valkey) as stores:
            sent = [make_event(student, course_id) for _ in range(3)]
            old = make_event(student, course_id, occurred_at=now - timedelta(days=900))
            await stores.ledger.record_events([*sent, old])
        assert await owner.fetchval("SELECT count(*) FROM events_default") == 4
        made = await keep_partitions(pool)
        assert {f"{table}{month}" for table in PARTITIONED} <= set(made)
        assert await owner.fetchval(f"SELECT count(*) FROM events{month}") == 3
        assert await owner.fetchval("SELECT count(*) FROM events_default") == 1
        assert await owner.fetchval("SELECT count(*) FROM events") == 4
        assert await keep_partitions(pool) == []
        names = await owner.fetch(
            "SELECT indexrelid::regclass::text AS name FROM pg_index WHERE indrelid = $1::text::regclass",
            f"learning_sessions{month}",
        )
        assert any("user_id_started_at_notebook_id" in row["name"] for row in names), names
        assert (
            await owner.fetchval(
                "SELECT count(*) FROM pg_inherits WHERE inhparent = 'idx_sessions_composite'::regclass"
            )
            >= 5
        )
        analysed = await owner.fetchval("SELECT count(*) FROM pg_class WHERE relkind = 'p' AND reltuples >= 0")
        assert analysed == len(PARTITIONED)
        parents = await owner.fetchval(
            "SELECT relrowsecurity AND relforcerowsecurity FROM pg_class WHERE oid = $1::text::regclass",
            f"events{month}",
        )
        assert parents is True


async def test_a_table_somebody_holds_is_left_for_later(database_url: str, pool: asyncpg.Pool) -> None:
    async with connect(database_url) as owner, connect(database_url) as holder:
        month = f"events_{datetime.now(UTC):%Y_%m}"
        await owner.execute(f"DROP TABLE {month}")
        async with holder.transaction():
            await holder.execute("LOCK TABLE events IN SHARE MODE")
            with pytest.raises(Unavailable):
                await keep_partitions(pool)
        assert month in await keep_partitions(pool)


async def test_months_are_ahead_after_a_migration(database_url: str) -> None:
    async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as owner:
        assert await has_months_ahead(owner)


async def test_cell_counts_come_from_what_students_run_and_updated_at_moves_with_every_change(
    database_url: str, embedded_valkey: str, pool: asyncpg.Pool
) -> None:
    course_id, students = await make_class(database_url, 2)
    async with connect(database_url) as owner:
        async with open_stores(database_url, embedded_valkey) as stores:
            await stores.ledger.record_events(
                [make_event(one, course_id, cell_id=f"c{number}") for one in students for number in range(5)]
            )
        before = await owner.fetchrow("SELECT cell_count, updated_at FROM notebooks WHERE course_id = $1", course_id)
        assert before["cell_count"] == 0
        await count_cells(pool)
        after = await owner.fetchrow("SELECT cell_count, updated_at FROM notebooks WHERE course_id = $1", course_id)
        assert after["cell_count"] == 5
        assert after["updated_at"] > before["updated_at"]
        await count_cells(pool)
        assert (
            await owner.fetchval("SELECT updated_at FROM notebooks WHERE course_id = $1", course_id)
            == after["updated_at"]
        )
        for table, change in (("users", "username = username || 'x'"), ("courses", "title = 'new'")):
            key = students[0] if table == "users" else course_id
            was = await owner.fetchval(f"SELECT updated_at FROM {table} WHERE id = $1", key)
            await owner.execute(f"UPDATE {table} SET {change} WHERE id = $1", key)
            assert await owner.fetchval(f"SELECT updated_at FROM {table} WHERE id = $1", key) > was
