"""The stream's contract, on the wheel's Valkey, on Debian's Redis 7 and on a cluster of three Valkeys and replicas."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from nbpulse import events
from nbpulse.cluster import Cluster
from nbpulse.connections import open_redis
from nbpulse.embedded import EmbeddedValkey
from nbpulse.errors import Unavailable
from nbpulse.stream import BATCH_EVENTS, GROUP, STREAM_KEYS, Delivery, EventStream, get_stream_key
from stores import make_event


@pytest.fixture(params=["embedded_valkey", "redis_7", "valkey_cluster"])
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[Redis | Cluster]:
    """An emptied server."""
    async with open_redis(request.getfixturevalue(request.param)) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def stream(redis: Redis | Cluster) -> AsyncIterator[EventStream]:
    one = EventStream(redis, consumer="worker-1")
    await one.ensure_groups()
    yield one
    await one.close()


@contextmanager
def run_valkey(data_dir: Path) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(data_dir)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def make_runs(count: int, students: int = 50) -> list[events.ReceivedEvent]:
    users, course = [uuid4() for _ in range(students)], uuid4()
    return [make_event(users[number % students], course) for number in range(count)]


async def read_all(stream: EventStream) -> list[Delivery]:
    found: list[Delivery] = []
    while deliveries := await stream.read("events", block_ms=50):
        found += deliveries
    return found


async def test_what_is_appended_is_read_once_and_forgotten_after_its_acknowledgement(stream: EventStream) -> None:
    runs = make_runs(1_200)
    await asyncio.gather(*(stream.append(runs[start : start + 40]) for start in range(0, 1_200, 40)))
    assert await stream.measure_backlog() == 1_200
    assert (await stream.count_entries()).pending == 0
    deliveries = await read_all(stream)
    assert {events.decode(one.payload).event_id for one in deliveries} == {run.event_id for run in runs}
    assert len(deliveries) == 1_200
    assert (await stream.count_entries()).pending == await stream.measure_backlog() == 1_200
    await stream.ack(deliveries)
    assert await stream.measure_backlog() == 0


async def test_a_batch_is_bounded_and_one_busy_student_fills_it(stream: EventStream) -> None:
    await stream.append(make_runs(BATCH_EVENTS + 500, students=1))
    assert len(await stream.read("events")) == BATCH_EVENTS
    await stream.append(make_runs(5_000, students=500))
    assert BATCH_EVENTS * 0.8 <= len(await stream.read("events")) <= BATCH_EVENTS


async def test_helps_travel_apart_from_runs(stream: EventStream) -> None:
    run = make_runs(1)[0]
    help_request = make_event(run.user_id, run.course_id, "help_request")
    await stream.append([run, help_request])
    assert [events.decode(one.payload) for one in await stream.read("help")] == [help_request]
    assert [events.decode(one.payload) for one in await stream.read("events")] == [run]


async def test_a_restarted_worker_first_reads_what_it_had_in_hand(redis: Redis | Cluster, stream: EventStream) -> None:
    await stream.append(make_runs(900))
    lost = await stream.read("events")
    successor = EventStream(redis, consumer="worker-1")
    again = await successor.read("events")
    assert {one.entry_id for one in again} <= {one.entry_id for one in lost}
    assert {one.deliveries for one in again} == {2}
    found = again + await read_all(successor)
    assert len({(one.stream, one.entry_id) for one in found}) == len(found) == 900
    await successor.ack(found)
    assert await successor.measure_backlog() == 0
    await successor.close()


async def test_a_dead_workers_deliveries_are_taken_over_only_when_idle(
    redis: Redis | Cluster, stream: EventStream
) -> None:
    await stream.append(make_runs(20))
    lost = await stream.read("events")
    other = EventStream(redis, consumer="worker-2")
    assert await other.reclaim("events", 60_000) == []
    await asyncio.sleep(0.05)
    taken = await other.reclaim("events", 20)
    assert {one.entry_id for one in taken} == {one.entry_id for one in lost}
    assert {one.deliveries for one in taken} == {2}
    await stream.ack(lost)  # the first worker was only slow: its acknowledgement counts
    assert await other.measure_backlog() == 0
    await other.close()


async def test_trimming_keeps_what_is_pending_or_unread_even_by_another_group(
    redis: Redis | Cluster, stream: EventStream
) -> None:
    runs = make_runs(30, students=1)
    key = get_stream_key(runs[0])
    await stream.append(runs[:20])
    deliveries = await stream.read("events")
    await stream.ack([*deliveries[:10], *deliveries[11:]])
    await stream.trim()
    assert [entry for entry, _ in await redis.xrange(key)] == [one.entry_id for one in deliveries[10:]]
    await redis.xgroup_create(key, "somebody-else", id=deliveries[14].entry_id)
    await stream.ack(deliveries[10:11])
    await stream.append(runs[20:])
    await stream.trim()
    assert await redis.xlen(key) == 15
    await redis.xgroup_destroy(key, "somebody-else")
    await stream.ack(await stream.read("events"))
    await stream.trim()
    assert await redis.xlen(key) == 0
    assert await stream.measure_backlog() == 0


async def test_a_full_backlog_is_refused_and_nothing_is_appended(redis: Redis | Cluster, stream: EventStream) -> None:
    await stream.append(make_runs(60))
    full = EventStream(redis, backlog_limit=50)
    assert await full.measure_backlog() == 60
    await full.append(make_runs(1))  # the figure it goes by is half a second old at most; this one has it measured
    await asyncio.sleep(0.1)
    with pytest.raises(Unavailable) as refusal:
        await full.append(make_runs(1))
    assert refusal.value.code == "NB-2002"
    assert await full.measure_backlog() == 61
    await full.close()


async def test_an_emptied_server_gets_its_groups_back_and_says_so(redis: Redis | Cluster, stream: EventStream) -> None:
    await redis.flushall()
    await stream.append(make_runs(5))
    assert await stream.measure_backlog() == 5
    found: list[Delivery] = []
    for _ in range(5):
        found += await stream.read("events", block_ms=50)
    assert len(found) == 5
    groups = await redis.xinfo_groups(STREAM_KEYS["events"][0])
    assert [group["name"] for group in groups] == [GROUP]


async def test_an_entry_of_another_form_is_delivered_for_burying(redis: Redis | Cluster, stream: EventStream) -> None:
    await redis.xadd(STREAM_KEYS["events"][7], {"x": "1", "y": "2"})
    (delivery,) = await stream.read("events")
    assert delivery.payload == b"x 1 y 2"


async def test_the_promise_is_read_from_the_server(redis: Redis | Cluster, stream: EventStream) -> None:
    assert await stream.read_promise() == ("failover" if isinstance(redis, Cluster) else "power")
    try:
        await redis.config_set("appendfsync", "everysec")
        assert await stream.read_promise() == "process"
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        assert await stream.read_promise() == "memory"
    finally:
        await redis.config_set("appendfsync", "always")
        await redis.config_set("maxmemory-policy", "noeviction")


async def test_a_server_without_memory_is_unavailable_not_an_error(redis: Redis | Cluster, stream: EventStream) -> None:
    everywhere = {"target_nodes": Cluster.PRIMARIES} if isinstance(redis, Cluster) else {}
    try:
        await redis.config_set("maxmemory", "1", **everywhere)
        with pytest.raises(Unavailable) as refusal:
            await stream.append(make_runs(3))
    finally:
        await redis.config_set("maxmemory", "0", **everywhere)
    assert refusal.value.code == "NB-2001"
    assert await stream.measure_backlog() == 0
    await stream.append(make_runs(3))


async def test_a_silent_server_is_given_up_on_within_a_second_and_a_killed_one_loses_nothing(data_dir: Path) -> None:
    with run_valkey(data_dir) as server:
        async with Redis.from_url(server.url) as client:
            stream = EventStream(client, consumer="worker-1")
            await stream.ensure_groups()
            runs = make_runs(10)
            await stream.append(runs)
            os.kill(server.pid, signal.SIGSTOP)
            started = time.monotonic()
            results = await asyncio.gather(*(stream.append(make_runs(5)) for _ in range(50)), return_exceptions=True)
            assert time.monotonic() - started < 1.5
            assert {getattr(result, "code", None) for result in results} == {"NB-2001"}
            os.kill(server.pid, signal.SIGKILL)
            server.stop()
            with pytest.raises(Unavailable):
                await stream.append(runs)
            server.start()
            await asyncio.sleep(0.2)
            assert len(await read_all(stream)) >= 10
            await stream.append(runs)
            assert await stream.measure_backlog() >= 20
            await stream.close()


async def test_a_server_that_was_started_anew_between_two_deliveries_costs_nobody_an_answer(data_dir: Path) -> None:
    with run_valkey(data_dir) as server:
        async with Redis.from_url(server.url) as client:
            stream = EventStream(client, consumer="worker-1")
            await stream.ensure_groups()
            await stream.append(make_runs(10))
            os.kill(server.pid, signal.SIGKILL)
            server.stop()
            server.start()
            await client.ping()  # its ends have come to this process by now too
            await stream.append(make_runs(10))
            assert len(await read_all(stream)) == 20
            await stream.close()
