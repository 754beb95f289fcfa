"""Which database holds which shard: one for all of them until somebody moves one, in Python as in SQL."""

from __future__ import annotations

import json
import os
from uuid import UUID

import pytest
from typer.testing import CliRunner

from nbpulse import cli
from nbpulse.errors import StartupError
from nbpulse.records import databases
from nbpulse.records.dead_letters import DeadLetters
from nbpulse.shards import SHARD_COUNT, get_shard_key, get_shard_number
from nbpulse.stream import GROUP, STREAM_KEYS
from nbpulse.worker.lane import SUSPECT_DELIVERIES
from stores import (
    check_conservation,
    connect,
    count_rows,
    create_database,
    make_class,
    open_stores,
    spread,
)
from working import is_drained, until, work

IDS = 1_000_000 if os.environ.get("NBPULSE_TEST_SCALE") == "full" else 20_000


@pytest.fixture
async def database_url(embedded_postgres: str) -> str:
    return await create_database(embedded_postgres)


async def test_sql_and_python_route_every_id_to_the_same_shard(database_url: str) -> None:
    async with connect(database_url) as connection:
        check = await connection.fetchval(
            "SELECT pg_get_expr(conbin, conrelid) FROM pg_constraint"
            " WHERE conrelid = 'event_ids'::regclass AND contype = 'c' AND conbin IS NOT NULL"
            " AND pg_get_expr(conbin, conrelid) LIKE '%md5%'"
        )
        assert check.startswith("(shard = ")
        route = check.removeprefix("(shard = ").removesuffix(")")
        rows = await connection.fetch(
            f"SELECT user_id, {route} FROM (SELECT gen_random_uuid() AS user_id FROM generate_series(1, $1)) k", IDS
        )
    assert len(rows) == IDS
    assert all(get_shard_number(UUID(int=user_id.int)) == shard for user_id, shard in rows)


async def test_a_new_database_holds_every_shard_itself(database_url: str, embedded_valkey: str) -> None:
    _, (student,) = await make_class(database_url, students=1)
    async with open_stores(database_url, embedded_valkey) as stores:
        assert list(stores.databases.pools) == ["main"]
        assert await stores.databases.get_user_database(str(student)) is stores.pool
        found = stores.databases.database_connections
        assert list(found) == [f"shard_{number}" for number in range(SHARD_COUNT)]
        assert found[get_shard_key(str(student))] is stores.pool


async def test_a_database_of_another_number_of_shards_is_refused(
    database_url: str, embedded_valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "SHARD_COUNT", 128)
    with pytest.raises(StartupError) as refused:
        async with open_stores(database_url, embedded_valkey):
            pass
    assert refused.value.code == "NB-3120"
    assert "64" in refused.value.title("en")
    assert "128" in refused.value.title("en")


def test_the_list_names_the_databases_and_their_shards(stage_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBPULSE_DATABASE_URL", stage_database)
    shown = CliRunner().invoke(cli.app, ["shard", "list", "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert found["databases"] == [{"name": "main", "url": None}]
    assert [place["shard"] for place in found["shards"]] == list(range(SHARD_COUNT))
    assert {(place["database"], place["state"], place["epoch"]) for place in found["shards"]} == {
        ("main", "serving", 1)
    }
    table = CliRunner().invoke(cli.app, ["shard", "list"])
    assert table.stdout.split()[-4:] == ["main", "NBPULSE_DATABASE_URL", "64", "0"]


async def test_events_of_a_fenced_shard_wait_and_are_never_buried_while_the_others_go_on(
    database_url: str, embedded_valkey: str
) -> None:
    course_id, users = await make_class(database_url, 30)
    fenced = get_shard_number(users[0])
    accepted = spread(users, course_id, 300)
    here = [one for one in accepted if get_shard_number(one.user_id) != fenced]
    async with connect(database_url) as owner, open_stores(database_url, embedded_valkey) as stores:
        await stores.redis.flushall()
        await stores.stream.ensure_groups()
        await owner.execute("UPDATE shard_owners SET is_here = FALSE WHERE shard = $1", fenced)

        async def are_others_stored() -> bool:
            return await count_rows(database_url, "events") == [len(here)]

        async def is_delivered_often() -> bool:
            waiting = await stores.redis.xpending_range(STREAM_KEYS["events"][fenced], GROUP, "-", "+", 10)
            return bool(waiting) and all(one["times_delivered"] > SUSPECT_DELIVERIES for one in waiting)

        async with work(stores, claim_idle_s=0.3):
            await stores.stream.append(accepted)
            await until(are_others_stored)
            await until(is_delivered_often)
            await owner.execute("UPDATE shard_owners SET is_here = TRUE WHERE shard = $1", fenced)
            await until(lambda: is_drained(stores.stream))
        assert await DeadLetters(stores.pool, stores.seal).list_letters() == []
    await check_conservation(database_url, accepted)
