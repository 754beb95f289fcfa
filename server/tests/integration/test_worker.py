"""The worker on real stores: everything stored once, whatever dies, is bad, or is away in between."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis

import stores as test_stores
from nbpulse import events, worker
from nbpulse.embedded import EmbeddedValkey
from nbpulse.errors import Unavailable
from nbpulse.events import ReceivedEvent
from nbpulse.pipeline import Recorded
from nbpulse.records.dead_letters import DeadLetters
from nbpulse.resources import Resources
from nbpulse.stream import STREAM_KEYS, EventStream
from stores import (
    check_conservation,
    connect,
    count_rows,
    create_database,
    make_class,
    make_error,
    make_event,
    open_stores,
    spread,
)
from working import is_drained, is_paid, until, work

# Deaths of a worker, most of them between its commit and its acknowledgement.
DEATHS = 60 if os.environ.get("NBPULSE_TEST_SCALE") == "full" else 6


@pytest.fixture
async def redis_url(embedded_valkey: str) -> str:
    async with Redis.from_url(embedded_valkey) as client:
        await client.flushall()
    return embedded_valkey


@pytest.fixture
async def database_url(embedded_postgres: str) -> str:
    return await create_database(embedded_postgres)


@pytest.fixture
async def stores(database_url: str, redis_url: str) -> AsyncIterator[Resources]:
    async with open_stores(database_url, redis_url) as resources:
        await resources.stream.ensure_groups()
        yield resources


async def test_events_go_all_the_way_once_and_are_told_to_everybody(stores: Resources, database_url: str) -> None:
    course_id, users = await make_class(database_url, 5)
    accepted = [make_event(users[0], course_id, "session_start"), *spread(users, course_id, 60)]
    accepted += [
        make_error(users[1], course_id),
        make_event(users[2], course_id, "help_request", data={"message": "?"}),
    ]
    heard: dict[str, list[dict[str, object]]] = {}
    async with stores.redis.pubsub() as listener:
        await listener.subscribe("progress_events", "error_events", "session_events")
        await listener.ssubscribe(f"nbpulse:live:{course_id}")
        async with work(stores):
            await stores.stream.append(accepted + accepted[:20])
            await until(lambda: is_drained(stores.stream))
            await until(lambda: is_paid(database_url))
        while message := await listener.get_message(ignore_subscribe_messages=False, timeout=0.2):
            if message["type"] in {"message", "smessage"}:
                heard.setdefault(message["channel"].decode(), []).append(json.loads(message["data"]))
    await check_conservation(database_url, accepted)
    progress = {message["data"]["event_id"] for message in heard["progress_events"]}
    assert progress == {str(event.event_id) for event in accepted}
    assert {message["event_type"] for message in heard["error_events"]} == {"execution_error"}
    assert "not defined" not in json.dumps(heard["error_events"] + heard["progress_events"])
    assert {message["event_type"] for message in heard["session_events"]} == {"session_start"}
    states = [state for message in heard[f"nbpulse:live:{course_id}"] for state in message["states"]]
    assert {state["user_id"] for state in states} == {str(user_id) for user_id in users}


async def test_one_bad_event_is_buried_and_its_neighbours_are_stored(stores: Resources, database_url: str) -> None:
    course_id, users = await make_class(database_url, 4)
    good = spread(users, course_id, 200)
    bad = make_event(users[0], course_id, cell_id="x" * 300)  # past the API's check: no column holds it
    async with work(stores) as port:
        await stores.redis.xadd(STREAM_KEYS["events"][3], {"e": b'{"event_id": \xff'})
        await stores.stream.append([*good[:100], bad, *good[100:]])
        await until(lambda: is_drained(stores.stream))
        await until(lambda: is_paid(database_url))
        health = await asyncio.to_thread(fetch, port, "/health")
        metrics = await asyncio.to_thread(fetch, port, "/metrics")
    await check_conservation(database_url, good)
    letters = {letter.code: letter for letter in await DeadLetters(stores.pool, stores.seal).list_letters()}
    assert set(letters) == {"NB-4001", "NB-4002"}
    assert letters["NB-4002"].user_id == users[0]
    assert letters["NB-4002"].reason.startswith("StringDataRightTruncationError at ")
    assert health[0] == 200
    assert b"nbpulse_worker_events_total" in metrics[1]


def fetch(port: int, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read()


async def test_a_buried_event_is_stored_when_replayed_after_the_mend(stores: Resources, database_url: str) -> None:
    course_id, users = await make_class(database_url, 2)
    early = make_event(users[0], course_id, cell_id="early")
    letters = DeadLetters(stores.pool, stores.seal)
    async with connect(database_url) as admin:
        await admin.execute("ALTER TABLE events ADD CONSTRAINT bad_migration CHECK (cell_id <> 'early')")
    async with work(stores):
        await stores.stream.append([early])
        await until(letters.list_letters)
        (letter,) = await letters.list_letters()
        assert events.decode(await letters.read_payload(letter.id)) == early
        async with connect(database_url) as admin:
            await admin.execute("ALTER TABLE events DROP CONSTRAINT bad_migration")
        for _ in range(2):
            await letters.replay(letter.id, stores.stream.append_payloads)
        await until(lambda: is_drained(stores.stream))
        await until(lambda: is_paid(database_url))
    assert await letters.list_letters() == []
    assert len(await letters.list_letters(include_replayed=True)) == 1
    await check_conservation(database_url, [early])


async def test_a_bad_deploy_stops_the_worker_not_the_events(
    stores: Resources, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    course_id, users = await make_class(database_url, 20)
    accepted = spread(users, course_id, 300)

    async def fail(events: Sequence[ReceivedEvent]) -> Recorded:
        raise KeyError("a bug of ours")

    with monkeypatch.context() as patch:
        patch.setattr(stores.ledger, "record_events", fail)
        async with work(stores) as port:
            await stores.stream.append(accepted)
            await until(lambda: is_unhealthy(port))
            assert await asyncio.to_thread(fetch, port, "/health") == (
                503,
                b'{"status":"unhealthy","code":"NB-4003"}',
            )
    letters = DeadLetters(stores.pool, stores.seal)
    buried = await letters.list_letters(limit=1_000)
    assert 50 <= len(buried) <= 60
    assert await stores.stream.measure_backlog() == 300 - len(buried)
    async with open_stores(database_url, redis_url) as mended, work(mended):
        for letter in buried:
            await letters.replay(letter.id, mended.stream.append_payloads)
        await until(lambda: is_drained(mended.stream))
        await until(lambda: is_paid(database_url))
    await check_conservation(database_url, accepted)


async def is_unhealthy(port: int) -> bool:
    return (await asyncio.to_thread(fetch, port, "/health"))[0] == 503


async def test_a_help_request_does_not_queue_behind_a_storm(stores: Resources, database_url: str) -> None:
    course_id, users = await make_class(database_url, 100)
    storm = spread(users[1:], course_id, 6_000)
    for start in range(0, len(storm), 500):
        await stores.stream.append(storm[start : start + 500])
    help_request = make_event(users[0], course_id, "help_request", data={"message": "stuck"})
    async with work(stores):
        await until(lambda: is_started(database_url))
        await stores.stream.append([help_request])
        await until(lambda: is_raised(database_url), 5)
        assert await stores.stream.measure_backlog() > 0, "the storm was over before the hand was up: make it larger"
        await until(lambda: is_drained(stores.stream))


async def is_started(database_url: str) -> bool:
    return await count_rows(database_url, "events") != [0]


async def is_raised(database_url: str) -> bool:
    return await count_rows(database_url, "help_requests") == [1]


async def test_a_worker_that_wakes_up_after_its_batch_was_taken_over_does_no_harm(
    stores: Resources, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    course_id, users = await make_class(database_url, 10)
    accepted = spread(users, course_id, 300)
    asleep, wake = asyncio.Event(), asyncio.Event()
    record = stores.ledger.record_events

    async def sleep_first(batch: Sequence[ReceivedEvent]) -> Recorded:
        asleep.set()
        await wake.wait()
        return await record(batch)

    monkeypatch.setattr(stores.ledger, "record_events", sleep_first)
    async with open_stores(database_url, redis_url, worker="worker-2") as other, work(stores):
        await stores.stream.append(accepted)
        await asleep.wait()
        async with work(other, claim_idle_s=0.3):
            await until(lambda: has_events(database_url, 300))
        wake.set()
        await until(lambda: is_drained(stores.stream))
        await until(lambda: is_paid(database_url))
    await check_conservation(database_url, accepted)


async def has_events(database_url: str, count: int) -> bool:
    return (await count_rows(database_url, "events"))[0] >= count


async def test_while_postgresql_cuts_every_connection_the_batch_is_kept(stores: Resources, database_url: str) -> None:
    course_id, users = await make_class(database_url, 40)
    accepted = spread(users, course_id, 3_000)
    async with connect(database_url) as admin, work(stores):
        for start in range(0, len(accepted), 100):
            await stores.stream.append(accepted[start : start + 100])
            if start % 300 == 0:
                await admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE usename = 'nbpulse_worker' AND datname = current_database()"
                )
            await asyncio.sleep(0.02)
        await until(lambda: is_drained(stores.stream))
        await until(lambda: is_paid(database_url))
    assert await count_rows(database_url, "dead_letters") == [0]
    await check_conservation(database_url, accepted)


async def test_a_store_that_is_away_is_no_death_of_the_worker(
    stores: Resources, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    course_id, users = await make_class(database_url, 1)
    accepted = spread(users, course_id, 3)
    await stores.stream.append(accepted)
    async with Redis.from_url(redis_url) as client:
        for key in STREAM_KEYS["events"]:  # taken again and again by a worker that died
            for entry_id, _ in await client.xrange(key):
                await client.xreadgroup(b"nbpulse-workers", "dead", {key: ">"}, noack=False)
                await client.xclaim(key, b"nbpulse-workers", "dead", 0, [entry_id], retrycount=4)
    record_events, tries = stores.ledger.record_events, 0

    async def record_when_back(batch: Sequence[ReceivedEvent]) -> Recorded:
        nonlocal tries
        tries += 1
        if tries <= 4:
            raise Unavailable("NB-2003")
        return await record_events(batch)

    monkeypatch.setattr(stores.ledger, "record_events", record_when_back)
    async with work(stores, claim_idle_s=0.05):
        await until(lambda: is_drained(stores.stream))
        await until(lambda: is_paid(database_url))
    assert tries == 4 + 3, "each was tried alone"
    assert await count_rows(database_url, "dead_letters") == [0]
    await check_conservation(database_url, accepted)


async def test_while_valkey_dies_again_and_again_nothing_is_lost_or_doubled(database_url: str, data_dir: Path) -> None:
    course_id, users = await make_class(database_url, 40)
    accepted = spread(users, course_id, 1_500)
    server = EmbeddedValkey(data_dir)
    server.start()
    try:
        async with open_stores(database_url, server.url) as stores, work(stores):
            for start in range(0, len(accepted), 50):
                if start in (300, 700, 1_100):
                    os.kill(server.pid, signal.SIGKILL)
                    server.stop()
                    server.start()
                await send(stores.stream, accepted[start : start + 50])
            await until(lambda: is_drained(stores.stream))
            await until(lambda: is_paid(database_url))
    finally:
        server.stop()
    assert await count_rows(database_url, "dead_letters") == [0]
    await check_conservation(database_url, accepted)


async def send(stream: EventStream, batch: Sequence[ReceivedEvent]) -> None:
    """As a client does: again until it is told that it was accepted."""
    async with asyncio.timeout(20):
        while True:
            try:
                await stream.append(batch)
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return


WORKER = """
import asyncio, os, random, signal, sys
sys.path.insert(0, {tests!r})
import stores
from stores import open_stores
from nbpulse import worker
from nbpulse.stream import EventStream

stores.KEY = {key!r}

ack = EventStream.ack

async def die_before_some_acks(self, deliveries):
    if random.random() < {death_ratio}:
        os.kill(os.getpid(), signal.SIGKILL)
    await ack(self, deliveries)

EventStream.ack = die_before_some_acks

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with open_stores({database_url!r}, {redis_url!r}, worker={name!r}) as stores:
        await worker.run(stores, stop, claim_idle_s=1.0)

asyncio.run(main())
"""


def start_worker(database_url: str, redis_url: str, name: str, death_ratio: float = 0) -> subprocess.Popen[bytes]:
    script = WORKER.format(
        tests=str(Path(__file__).parents[1]),
        database_url=database_url,
        redis_url=redis_url,
        name=name,
        key=test_stores.KEY,
        death_ratio=death_ratio,
    )
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)


async def test_workers_killed_at_any_point_lose_and_double_nothing(database_url: str, redis_url: str) -> None:
    course_id, users = await make_class(database_url, 60)
    accepted: list[ReceivedEvent] = []
    chance = random.Random(11)
    async with open_stores(database_url, redis_url, worker="watcher") as stores:
        await stores.stream.ensure_groups()
        workers = {name: start_worker(database_url, redis_url, name, 0.3) for name in ("worker-1", "worker-2")}
        deaths = 0
        try:
            while deaths < DEATHS:
                accepted += (batch := spread(users, course_id, 20))
                await stores.stream.append(batch)
                await asyncio.sleep(0.05)
                if chance.random() < 0.02:
                    workers[chance.choice(sorted(workers))].kill()
                for name, process in workers.items():
                    if process.poll() is not None:
                        deaths += 1
                        workers[name] = start_worker(database_url, redis_url, name, 0.3)
            for name, process in workers.items():
                process.kill()
                process.wait(10)
                workers[name] = start_worker(database_url, redis_url, name)
            await until(lambda: is_drained(stores.stream))
            # With three acknowledgements in ten deadly, a good entry may twice be the last its worker tried: it looks
            # like the cause and is buried, which must lose nothing either.
            letters = DeadLetters(stores.pool, stores.seal)
            buried = await letters.list_letters()
            assert len(buried) <= DEATHS // 5
            for letter in buried:
                assert letter.reason == "the worker died of it"
                await letters.replay(letter.id, stores.stream.append_payloads)
            await until(lambda: is_drained(stores.stream))
            await until(lambda: is_paid(database_url))
        finally:
            for process in workers.values():
                process.kill()
                process.wait(10)
    await check_conservation(database_url, accepted)


async def test_an_event_the_worker_dies_of_is_buried_and_innocent_company_is_not(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    course_id, users = await make_class(database_url, 5)
    company = spread(users, course_id, 100)
    deadly = make_event(users[0], course_id, cell_id="deadly")
    deaths = 0
    for _ in range(8):
        async with open_stores(database_url, redis_url) as stores:
            await stores.stream.ensure_groups()
            if deaths == 0:
                await stores.stream.append([*company, deadly])
            record, is_dead = stores.ledger.record_events, asyncio.Event()

            async def die(batch: Sequence[ReceivedEvent], is_dead: asyncio.Event = is_dead, record=record) -> Recorded:
                if any(event.cell_id == "deadly" for event in batch):
                    is_dead.set()
                    await asyncio.sleep(60)
                return await record(batch)

            monkeypatch.setattr(stores.ledger, "record_events", die)
            running = asyncio.create_task(worker.run(stores, asyncio.Event(), claim_idle_s=60))
            dying = asyncio.create_task(is_dead.wait())
            drained = asyncio.create_task(until(lambda: is_drained(stores.stream)))
            await asyncio.wait([dying, drained], return_when=asyncio.FIRST_COMPLETED)
            is_over = not is_dead.is_set()
            deaths += is_dead.is_set()
            for task in (running, dying, drained):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            if is_over:
                break
    assert deaths <= 4
    assert await count_rows(database_url, "dead_letters", "events") == [1, 100]


async def test_sigterm_lets_the_batch_in_hand_finish(database_url: str, redis_url: str) -> None:
    course_id, users = await make_class(database_url, 30)
    async with open_stores(database_url, redis_url, worker="watcher") as stores:
        await stores.stream.ensure_groups()
        accepted = spread(users, course_id, 4_000)
        for start in range(0, len(accepted), 500):
            await stores.stream.append(accepted[start : start + 500])
        process = start_worker(database_url, redis_url, "worker-1")
        await until(lambda: is_started(database_url))
        process.terminate()
        assert await asyncio.to_thread(process.wait, 40) == 0
        assert (await stores.stream.count_entries()).pending == 0
        stored = (await count_rows(database_url, "events"))[0]
        assert stored == 4_000 - await stores.stream.measure_backlog()
