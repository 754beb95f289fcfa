"""What the metrics say of calls and connections is what happens: nothing left out, nothing that only waits counted."""

import asyncio
from typing import get_args

from prometheus_client import REGISTRY

from nbpulse.connections import REDIS_POOL_SIZE, open_pool, open_redis
from nbpulse.metrics import InfluxQuery, PostgresQuery, RedisQuery, database_query_duration, name_query
from nbpulse.stream import EventStream
from nbpulse.timeseries.influx import open_influx
from stores import count_rows, create_database, make_class, make_event, open_stores
from working import is_drained, until, work

NAMES = {
    **dict.fromkeys(("postgresql", "postgresql_replica"), get_args(PostgresQuery)),
    "influxdb": get_args(InfluxQuery),
    "redis": get_args(RedisQuery),
}


def count_calls(database: str, query_type: str) -> float:
    labels = {"database": database, "query_type": query_type}
    return REGISTRY.get_sample_value("database_query_duration_seconds_count", labels) or 0


def read_pool(database: str) -> list[float | None]:
    """Open, unused, at most."""
    names = ("size", "idle", "limit")
    return [REGISTRY.get_sample_value(f"database_connection_pool_{name}", {"database": database}) for name in names]


async def test_a_call_to_postgresql_counts_once_under_its_name_also_when_it_fails(embedded_postgres: str) -> None:
    before = {name: count_calls("postgresql", name) for name in ("check", "read_inbox", "other")}
    async with open_pool(embedded_postgres, 2) as pool:
        with name_query("check"):
            await pool.fetch("SELECT 1")
            await asyncio.gather(pool.execute("SELECT 1/0"), return_exceptions=True)
        with name_query("read_inbox"):
            acquiring = pool.acquire()
        async with acquiring as connection:
            await connection.execute("SELECT 1")
            await connection.execute("SELECT 2")
        await pool.execute("SELECT 'of a person'")
    after = {name: count_calls("postgresql", name) - count for name, count in before.items()}
    assert after == {"check": 2, "read_inbox": 1, "other": 1}


async def test_postgresqls_pool_is_told_as_it_is_now(embedded_postgres: str) -> None:
    assert read_pool("postgresql") == [None, None, None], "no pool, no figure"
    async with open_pool(embedded_postgres, 4) as pool:
        assert read_pool("postgresql") == [2, 2, 4]
        async with pool.acquire(), pool.acquire(), pool.acquire():
            assert read_pool("postgresql") == [3, 0, 4]
            async with open_pool(embedded_postgres, 1):
                assert read_pool("postgresql") == [4, 1, 5], "a process's pools are added up"
        assert read_pool("postgresql") == [3, 3, 4]
    assert read_pool("postgresql") == [None, None, None]


async def test_redis_connections_are_told_with_those_the_stream_keeps_to_itself(embedded_valkey: str) -> None:
    async with open_redis(embedded_valkey) as client:
        assert read_pool("redis") == [0, 0, REDIS_POOL_SIZE]
        await client.exists("x")
        assert read_pool("redis") == [1, 1, REDIS_POOL_SIZE]
        stream = EventStream(client)
        await stream.measure_backlog()
        assert read_pool("redis") == [2, 1, REDIS_POOL_SIZE + 1]
        async with client.pubsub() as subscriber:
            await subscriber.subscribe("somebody")
            assert read_pool("redis") == [2, 0, REDIS_POOL_SIZE + 1]
        await stream.close()
        assert read_pool("redis") == [0, 0, REDIS_POOL_SIZE], "leaving Pub/Sub closed the connection it had borrowed"
    assert read_pool("redis") == [None, None, None]


async def test_redis_calls_count_by_command_and_waiting_for_others_does_not(embedded_valkey: str) -> None:
    before = {name: count_calls("redis", name) for name in NAMES["redis"]}
    async with open_redis(embedded_valkey) as client:
        await client.flushall()
        await client.exists("x")
        pipe = client.pipeline(transaction=False)
        pipe.get("x")
        pipe.get("y")
        await pipe.execute()
        async with client.pubsub() as subscriber:
            await subscriber.subscribe("somebody")
            await subscriber.get_message(timeout=0.1)
        stream = EventStream(client)
        await stream.ensure_groups()
        while await stream.read("events", block_ms=20):
            pass
        await stream.read("events", block_ms=20)
        await stream.close()
    grown = {name: count_calls("redis", name) - count for name, count in before.items()}
    counted = {name: count for name, count in grown.items() if count}
    assert counted == {
        "other": 1,  # FLUSHALL: no command of ours
        "exists": 1,
        "pipeline": 1,
        "make_groups": 1,
        "read_pending": 1,
    }


async def test_influxdbs_connections_are_counted_and_a_server_that_is_away_is_timed(influxdb: str) -> None:
    before = count_calls("influxdb", "check")
    async with open_influx(influxdb) as series:
        assert read_pool("influxdb") == [0, 0, 8]
        await series.check()
        assert read_pool("influxdb") == [1, 1, 8]
    assert read_pool("influxdb") == [None, None, None]
    async with open_influx("http://127.0.0.1:9/x") as series:
        await asyncio.gather(series.check(), return_exceptions=True)
    assert count_calls("influxdb", "check") == before + 2


async def test_the_workers_calls_all_have_names(embedded_postgres: str, embedded_valkey: str) -> None:
    database_url = await create_database(embedded_postgres)
    course_id, users = await make_class(database_url, 3)
    names = ("record_events", "write_points", "settle_debt", "refresh_rollups", "find_debts", "check_keys", "other")
    before = {name: count_calls("postgresql", name) for name in names}
    async with open_stores(database_url, embedded_valkey) as stores, work(stores):
        await stores.redis.flushall()
        await stores.stream.ensure_groups()
        await stores.stream.append([make_event(user, course_id) for user in users])
        await until(lambda: is_drained(stores.stream))
        await until(lambda: has_grown("find_debts", before["find_debts"]))
    assert await count_rows(database_url, "events") == [3]
    grown = {name for name in names if count_calls("postgresql", name) > before[name]}
    assert grown == set(names) - {"other"}


async def has_grown(query_type: str, before: float) -> bool:
    return count_calls("postgresql", query_type) > before


def test_no_label_is_outside_the_closed_sets() -> None:
    (family,) = database_query_duration.collect()
    found = {(one.labels["database"], one.labels["query_type"]) for one in family.samples}
    assert found <= {(database, name) for database, names in NAMES.items() for name in names}
