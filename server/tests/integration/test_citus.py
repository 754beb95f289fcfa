"""`nbpulse migrate --citus`, on the cluster named by NBPULSE_TEST_CITUS_URL (docs/operations.md, Citus)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from machines import fingerprint, make_machine, make_successor, teach
from nbpulse.connections import open_pool
from nbpulse.crypto import EncryptedField
from nbpulse.errors import StartupError
from nbpulse.migrations import citus, migrate
from nbpulse.records.copying import open_snapshot
from nbpulse.records.merging import merge_users
from nbpulse.records.owner import open_owner
from nbpulse.shards import get_shard_number
from stage import KEY, Stage, make_run
from stores import (
    CITUS_URL,
    PASSWORDS,
    connect,
    count_rows,
    create_cluster_database,
    create_database,
    make_class,
    open_stores,
    spread,
)

needs_cluster = pytest.mark.skipif(
    CITUS_URL is None, reason="NBPULSE_TEST_CITUS_URL names no Citus cluster: nothing is said of one"
)
MONTHS = ("2026-08-01", "2026-11-20")


class Killed(Exception):
    """The migration died here."""


async def fill(url: str, students: int) -> None:
    """Runs of a class in a default partition and in a month's."""
    course_id, user_ids = await make_class(url, students)
    async with connect(url) as owner:
        for user_id in user_ids:
            for month in MONTHS:
                await owner.execute(
                    "INSERT INTO events (user_id, shard, event_id, occurred_at, received_at, ordinal, course_id,"
                    " event_type, sequence, data) VALUES ($1, $2, gen_random_uuid(), $3::text::timestamptz, now(), 1,"
                    " $4, 'presence', 1, '{}')",
                    *(user_id, get_shard_number(user_id), month, course_id),
                )


@pytest.mark.skipif(CITUS_URL is not None, reason="on a cluster nothing is missing")
async def test_without_citus_it_says_what_is_missing(embedded_postgres: str) -> None:
    async with citus.connect(embedded_postgres) as connection:
        with pytest.raises(StartupError, match="NB-3115"):
            await citus.check(connection)


@needs_cluster
async def test_rows_move_to_the_nodes_also_when_it_is_killed_on_the_way() -> None:
    assert CITUS_URL is not None
    url = await create_cluster_database(CITUS_URL)
    await migrate(url, PASSWORDS)
    await fill(url, 12)

    reports: list[tuple[int, ...]] = []

    def die_after_two(done: int, _total: int) -> None:
        if done == 2:
            raise Killed

    async with citus.connect(url) as connection:
        with pytest.raises(Killed):
            await citus.distribute(connection, PASSWORDS, die_after_two)
        for _ in range(2):  # goes on; then changes nothing
            reports.clear()
            await citus.check(connection)
            await citus.distribute(connection, PASSWORDS, lambda *progress: reports.append(progress))
            assert reports == [(number, 5) for number in range(1, 6)]
        assert await count_rows(url, "events") == [12 * len(MONTHS)]
        left = "SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree('events')"
        assert await connection.fetchval(left) == 0
        nodes = "SELECT count(DISTINCT nodeport) FROM citus_shards WHERE table_name = 'events'::regclass"
        wanted = "SELECT count(*) FROM pg_dist_node WHERE shouldhaveshards"
        assert await connection.fetchval(nodes) == await connection.fetchval(wanted)


@needs_cluster
async def test_a_table_distributed_otherwise_is_refused_and_nothing_changes() -> None:
    assert CITUS_URL is not None
    url = await create_cluster_database(CITUS_URL)
    await migrate(url, PASSWORDS)
    async with citus.connect(url) as connection:
        await connection.execute("SELECT create_reference_table('event_ids')")
        with pytest.raises(StartupError, match="NB-3117") as refusal:
            await citus.check(connection)
        assert refusal.value.facts["table"] == "event_ids"
        await connection.execute("SELECT undistribute_table('event_ids')")
        await citus.check(connection)


@needs_cluster
async def test_one_run_goes_from_the_student_to_the_board_and_is_counted_once(stage: Stage) -> None:
    student = await stage.join()
    run = make_run(status="error")
    for _ in range(2):
        answer = await stage.post(student["token"], run)
        assert answer.status_code == 202, answer.text
    await stage.work()
    assert [one["id"] for one in (await stage.snapshot())["students"]] == [student["user_id"]]
    answer = await stage.http.get(f"/api/v1/courses/{stage.course.id}/failing-cells", headers=stage.staff)
    assert [(row["cell_id"], row["errors"]) for row in answer.json()["failing_cells"]] == [("cell-0", 1)]
    async with connect(stage.database_url) as owner:
        course = stage.course.id
        assert await owner.fetchval("SELECT count(*) FROM events WHERE course_id = $1", course) == 1
        assert await owner.fetchval("SELECT error_count FROM learning_sessions WHERE course_id = $1", course) == 1


@needs_cluster
async def test_two_users_whose_rows_are_on_different_nodes_are_made_one(stage: Stage) -> None:
    async with connect(stage.database_url) as owner:
        found: dict[int, dict[str, str]] = {}
        while len(found) < 2:
            student = await stage.join()
            shard = "SELECT get_shard_id_for_distribution_column('events', $1::uuid)"
            place = await owner.fetchval(
                f"SELECT groupid FROM pg_dist_placement WHERE shardid = ({shard})", student["user_id"]
            )
            found[place] = student
        keep, drop = found.values()
        shared = make_run(status="error")
        assert (await stage.post(keep["token"], [shared, make_run(1)])).status_code == 202
        assert (await stage.post(drop["token"], [shared, make_run(1), make_run(2)])).status_code == 202
        await stage.work()
        keep_id, drop_id = UUID(keep["user_id"]), UUID(drop["user_id"])
        async with open_owner(stage.database_url) as pool:
            assert await merge_users(pool, EncryptedField(KEY), keep_id=keep_id, drop_id=drop_id) == 2
        for table, rows in (("events", 4), ("event_ids", 4), ("learning_sessions", 2), ("learner_cells", 3)):
            count = f"SELECT count(*) FROM {table} WHERE user_id = $1"
            assert [await owner.fetchval(count, one) for one in (keep_id, drop_id)] == [rows, 0], table
        message = "SELECT error_message FROM events WHERE user_id = $1 AND error_message IS NOT NULL"
        sealed = await owner.fetchval(message, keep_id)
        text = EncryptedField(KEY).unseal(sealed, table="events", column="error_message", user_id=keep_id)
        assert text == "name 'df' is not defined"


@needs_cluster
async def test_the_month_s_partitions_are_made_and_dropped_on_every_node() -> None:
    assert CITUS_URL is not None
    url = await create_database(CITUS_URL)
    await fill(url, 3)
    async with connect(url) as owner:
        await owner.execute("SELECT ensure_months(5)")
        gone = await owner.fetch("SELECT * FROM drop_expired_months('2026-12-01', NULL, true)")
        gone += await owner.fetch("SELECT * FROM delete_expired_rows('2026-12-01', NULL, 10000, true)")
        assert {row["name"]: row["count"] for row in gone if row["count"]} == {"events_2026_11": 3, "events": 3}
        assert await owner.fetchval("SELECT count(*) FROM events") == 0


@needs_cluster
@pytest.mark.parametrize("is_distributed_before", [True, False])
async def test_a_backup_made_there_comes_back_there(
    make_valkey: Callable[[], str], tmp_path: Path, is_distributed_before: bool
) -> None:
    assert CITUS_URL is not None
    old = await make_machine(CITUS_URL, make_valkey(), tmp_path / "old")
    await teach(old)
    assert old.run("backup", tmp_path / "b.zip")[0] == 0
    new = await make_successor(CITUS_URL, make_valkey(), old, tmp_path / "new")
    distribute, restore = ("migrate", "--citus"), ("restore", tmp_path / "b.zip")
    for command in (distribute, restore) if is_distributed_before else (restore, distribute):
        code, said = new.run(*command)
        assert code == 0, said
    assert await fingerprint(new.database_url) == await fingerprint(old.database_url)
    async with connect(new.database_url) as owner:
        assert await owner.fetchval("SELECT count(*) FROM citus_shards WHERE table_name = 'events'::regclass") > 0


@needs_cluster
async def test_a_backup_is_of_one_moment_on_every_node(embedded_valkey: str) -> None:
    assert CITUS_URL is not None
    url = await create_database(CITUS_URL)
    course_id, users = await make_class(url, 12)
    tables = ("events", "event_ids", "learner_cells", "learning_sessions", "learner_states")
    async with open_stores(url, embedded_valkey) as stores, open_owner(url) as pool:
        await stores.ledger.record_events(spread(users, course_id, 24))
        before = await count_rows(url, *tables)
        async with open_snapshot(pool) as snapshot:
            assert await snapshot.connection.fetchval("SELECT count(*) FROM courses") == 1
            await stores.ledger.record_events(spread([*reversed(users)], course_id, 60))
            found = [await snapshot.connection.fetchval(f"SELECT count(*) FROM {table}") for table in tables]
        assert found == before
    assert (await count_rows(url, "events")) == [84]


async def test_a_node_that_is_lost_in_the_middle_of_a_statement_is_a_database_that_is_away(
    embedded_postgres: str,
) -> None:
    """Citus calls it an internal error; what PostgreSQL itself calls so stays one."""
    lost, own = "failure on connection marked as essential: node-2:5432", "cache lookup failed for type 7"
    async with open_pool(embedded_postgres, 1) as pool:
        for message, expected in ((lost, ConnectionResetError), (own, asyncpg.InternalServerError)):
            with pytest.raises(expected, match=message):
                await pool.execute(f"DO $$ BEGIN RAISE EXCEPTION '{message}' USING ERRCODE = 'XX000'; END $$")
