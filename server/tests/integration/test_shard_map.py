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
from nbpulse.shards import SHARD_COUNT, get_shard_key, get_shard_number
from stores import connect, create_database, make_class, open_stores

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
