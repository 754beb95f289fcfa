"""Every entry of the stream counts once: `nbpulse_unaccounted_events` is 0, whatever happens, until one is lost."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis

from nbpulse import metrics
from nbpulse.accounting import Auditor
from nbpulse.errors import Unavailable
from nbpulse.events import ReceivedEvent, decode
from nbpulse.pipeline import process_events
from nbpulse.records.accounting import Accounts, forget_spent
from nbpulse.records.dead_letters import DeadLetters
from nbpulse.records.merging import merge_users
from nbpulse.resources import Resources
from nbpulse.stream import STREAM_KEYS, Delivery
from stores import connect, create_database, make_class, make_event, open_stores, spread
from working import is_drained, until, work


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
        await audit(resources)  # as every worker does before it reads
        yield resources


async def audit(resources: Resources) -> float:
    """What a worker that looks now would serve."""
    await Auditor(resources.stream, Accounts(resources.pool)).audit()
    return float(metrics.unaccounted_events._value.get())


async def read_counts(database_url: str) -> dict[str, int]:
    """stored, duplicate, quarantined, dropped."""
    async with connect(database_url) as connection:
        row = await connection.fetchrow(
            "SELECT sum(stored)::int AS stored, sum(duplicate)::int AS duplicate, sum(quarantined)::int AS quarantined,"
            " sum(dropped)::int AS dropped FROM event_counts"
        )
        return dict(row)


async def take(resources: Resources) -> list[Delivery]:
    """Everything that waits, into the hand of `resources`' own worker."""
    found: list[Delivery] = []
    while deliveries := await resources.stream.read("events", block_ms=50):
        found += deliveries
    return found


async def store(resources: Resources, deliveries: Sequence[Delivery]) -> None:
    """What a worker does with them before it acknowledges."""
    received = [decode(one.payload, one.entry) for one in deliveries]
    await process_events(received, ledger=resources.ledger, publisher=resources.publisher)


async def finish(resources: Resources, accepted: Sequence[ReceivedEvent] = ()) -> None:
    """A real worker until nothing is left."""
    async with work(resources, claim_idle_s=0.2):
        if accepted:
            await resources.stream.append(accepted)
        await until(lambda: is_drained(resources.stream))


async def test_each_entry_is_stored_or_a_duplicate_or_set_aside(stores: Resources, database_url: str) -> None:
    course_id, users = await make_class(database_url, 4)
    good = spread(users, course_id, 100)
    bad = make_event(users[0], course_id, cell_id="x" * 300)
    await stores.redis.xadd(STREAM_KEYS["events"][3], {"e": b'{"event_id": \xff'})
    await finish(stores, [*good, *good[:30], bad])
    await finish(stores, good[:10])
    assert await audit(stores) == 0
    assert await read_counts(database_url) == {"stored": 100, "duplicate": 40, "quarantined": 2, "dropped": 0}
    async with connect(database_url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM spent_entries WHERE outcome = 'duplicate'") == 40

    letters = DeadLetters(stores.pool, stores.seal)
    for letter in await letters.list_letters():
        await letters.replay(letter.id, stores.stream.append_payloads)
    await finish(stores)
    assert await audit(stores) == 0
    assert (await read_counts(database_url))["quarantined"] == 4


async def test_a_death_between_commit_and_acknowledgement_counts_nothing_twice(
    stores: Resources, database_url: str
) -> None:
    course_id, users = await make_class(database_url, 3)
    events = spread(users, course_id, 40)
    await stores.stream.append([*events, *events[:15]])
    taken = await take(stores)
    await store(stores, taken)
    before = await read_counts(database_url)
    stores.stream.replay_pending("events")
    await finish(stores)
    assert await audit(stores) == 0
    assert await read_counts(database_url) == before == {"stored": 40, "duplicate": 15, "quarantined": 0, "dropped": 0}


async def test_a_worker_that_slept_finishes_what_another_has_acknowledged(
    stores: Resources, database_url: str, redis_url: str
) -> None:
    course_id, users = await make_class(database_url, 3)
    events = spread(users, course_id, 40)
    await stores.stream.append([*events, *events[:15]])
    asleep = await take(stores)
    async with open_stores(database_url, redis_url, worker="worker-2") as other:
        await finish(other)
        await store(stores, asleep)
        await stores.stream.ack(asleep)
        assert await audit(other) == 0
    assert await read_counts(database_url) == {"stored": 40, "duplicate": 15, "quarantined": 0, "dropped": 0}


async def test_what_was_stored_before_it_killed_its_worker_is_not_counted_again_when_buried(
    stores: Resources, database_url: str
) -> None:
    course_id, users = await make_class(database_url, 1)
    await stores.stream.append([make_event(users[0], course_id)])
    (delivery,) = await take(stores)
    await store(stores, [delivery])
    event = decode(delivery.payload)
    for _ in range(2):
        await DeadLetters(stores.pool, stores.seal).bury(
            stream=delivery.stream,
            entry_id=delivery.entry_id,
            payload=delivery.payload,
            user_id=event.user_id,
            event_id=event.event_id,
            code="NB-4002",
            reason="the worker died of it",
            deliveries=5,
        )
    await stores.stream.ack([delivery])
    assert await audit(stores) == 0
    assert await read_counts(database_url) == {"stored": 1, "duplicate": 0, "quarantined": 0, "dropped": 0}


async def test_an_entry_deleted_by_hand_shows_and_so_does_a_ledger_row(stores: Resources, database_url: str) -> None:
    course_id, users = await make_class(database_url, 2)
    await finish(stores, spread(users, course_id, 20))
    assert await audit(stores) == 0

    await stores.stream.trim()  # what is acknowledged may go
    await stores.stream.append(spread(users, course_id, 5))
    for key in STREAM_KEYS["events"]:
        if waiting := await stores.redis.xrange(key, count=1):
            await stores.redis.xdel(key, waiting[0][0])
            break
    await finish(stores)
    assert await audit(stores) == 1

    async with connect(database_url) as connection:
        await connection.execute(
            "DELETE FROM events WHERE (user_id, event_id) IN (SELECT user_id, event_id FROM events LIMIT 1)"
        )
    assert await audit(stores) == 2


async def test_what_is_removed_on_purpose_is_not_missed(stores: Resources, database_url: str) -> None:
    course_id, users = await make_class(database_url, 3)
    shared = make_event(users[0], course_id)
    again = make_event(users[1], course_id, event_id=shared.event_id)
    await finish(stores, [*spread(users, course_id, 30), shared, again])
    async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as pool:
        await merge_users(pool, stores.seal, keep_id=users[0], drop_id=users[1])
    assert await audit(stores) == 0
    late = spread(users, course_id, 6)
    async with connect(database_url) as connection:
        await connection.execute("SELECT remove_course($1)", course_id)
        assert await connection.fetchval("SELECT count(*) FROM events") == 0
    await finish(stores, late)
    assert await audit(stores) == 0
    assert (await read_counts(database_url))["dropped"] == 6


async def test_a_new_stream_server_is_counted_from_where_it_was_found(stores: Resources, database_url: str) -> None:
    course_id, users = await make_class(database_url, 2)
    await finish(stores, spread(users, course_id, 12))
    await stores.redis.flushall()
    await stores.stream.append(spread(users, course_id, 7))
    await stores.stream.ensure_groups()
    assert await audit(stores) == 0
    await finish(stores, spread(users, course_id, 3))
    assert await audit(stores) == 0
    assert (await read_counts(database_url))["stored"] == 22
    async with connect(database_url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM stream_bases") == 2


@asynccontextmanager
async def two_busy_workers(
    stores: Resources, database_url: str, redis_url: str, users: Sequence[UUID], course_id: UUID
) -> AsyncIterator[list[int]]:
    """Two workers that are never without work; how many rounds of 25 events and 3 repeats they have been given."""
    given = [0]

    async def push() -> None:
        while True:
            events = spread(users, course_id, 25)
            with suppress(Unavailable):  # a machine with much else to do: they may be there or not
                await stores.stream.append([*events, *events[:3]])
                given[0] += 1
            await asyncio.sleep(0.03)

    async with open_stores(database_url, redis_url, worker="worker-2") as other, work(stores), work(other):
        pushing = asyncio.create_task(push())
        try:
            yield given
        finally:
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)
            await until(lambda: is_drained(stores.stream))


async def test_two_workers_under_load_never_show_a_loss_that_is_none(
    stores: Resources, database_url: str, redis_url: str
) -> None:
    course_id, users = await make_class(database_url, 30)
    auditor, shown = Auditor(stores.stream, Accounts(stores.pool)), set()
    async with two_busy_workers(stores, database_url, redis_url, users, course_id) as given:
        for _ in range(150):
            await auditor._compare()
            shown.add(metrics.unaccounted_events._value.get())
    assert shown == {0.0}
    assert await audit(stores) == 0
    counts = await read_counts(database_url)
    assert counts["stored"] >= 25 * given[0]
    assert counts["duplicate"] >= 3 * given[0] > 0


async def test_a_loss_shows_also_while_the_workers_are_never_without_work(
    stores: Resources, database_url: str, redis_url: str
) -> None:
    course_id, users = await make_class(database_url, 30)
    auditor = Auditor(stores.stream, Accounts(stores.pool))
    async with two_busy_workers(stores, database_url, redis_url, users, course_id) as given:
        await until(lambda: asyncio.sleep(0.01, given[0] > 5))
        async with connect(database_url) as connection:  # as if 60 entries had been acknowledged and not dealt with
            await connection.execute("INSERT INTO event_counts (slot, stored) VALUES (99, -60)")

        async def is_shown() -> bool:
            await auditor._compare()
            return bool(metrics.unaccounted_events._value.get() > 0)

        await until(is_shown, 30)
    assert await audit(stores) == 60, "60 rows more than were counted hide nothing"


async def test_spent_entries_are_forgotten_after_a_week(stores: Resources, database_url: str) -> None:
    async with connect(database_url) as connection:
        await connection.execute(
            "INSERT INTO spent_entries (stream, entry_id, outcome, at) VALUES"
            " ('s', '1-0', 'duplicate', now() - interval '8 days'), ('s', '2-0', 'duplicate', now())"
        )
        await forget_spent(stores.pool)
        left: list[Any] = await connection.fetch("SELECT entry_id FROM spent_entries")
    assert [row[0] for row in left] == ["2-0"]
