"""Who reads which shard, on the wheel's Valkey and on Debian's Redis 7: all shared, none twice, none left alone."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from changing_workers import CHANGES, change_workers, make_students
from nbpulse.cache import Cache
from nbpulse.errors import StartupError
from nbpulse.metrics import RedisQuery
from nbpulse.records.failures import UNAVAILABLE
from nbpulse.shards import SHARD_COUNT
from nbpulse.stream.leases import BEAT_S, LEASE_S, Leases, name_lease, read_owner, share
from nbpulse.stream.link import Command
from stores import WORKER_PASSWORD, check_conservation, connect, create_database, make_class, open_stores
from working import until

ALL = set(range(SHARD_COUNT))


@given(st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=100))
def test_the_shards_are_shared_out_evenly_and_without_a_rest(workers: set[str]) -> None:
    shares = [share(worker, workers) for worker in workers]
    assert sum(shares) == SHARD_COUNT
    assert max(shares) - min(shares) <= 1


@pytest.fixture(params=["embedded_valkey", "redis_7"])
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[Redis]:
    """An emptied server."""
    async with Redis.from_url(request.getfixturevalue(request.param)) as client:
        await client.flushall()
        yield client


class Team:
    """Workers' leases, renewed by hand."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._stack = AsyncExitStack()
        self.members: dict[str, Leases] = {}

    def join(self, name: str) -> Leases:
        """One more, who has not beaten yet."""
        leases = self.members[name] = Leases(self._redis, name)
        self._stack.push_async_callback(leases.close)
        return leases

    async def add(self, name: str) -> Leases:
        leases = self.join(name)
        await leases.renew()
        return leases

    async def renew(self) -> bool:
        """One beat of each; whether every shard is now read by one of them."""
        for leases in self.members.values():
            await leases.renew()
        read = [shard for leases in self.members.values() for shard in leases.reading]
        assert len(read) == len(set(read)), "two read one shard"
        return set(read) == ALL

    async def is_even(self) -> bool:
        """The same, and nobody reads more than his share."""
        counts = [len(leases.reading) for leases in self.members.values()]
        return await self.renew() and max(counts) - min(counts) <= 1

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def team(redis: Redis) -> AsyncIterator[Team]:
    one = Team(redis)
    yield one
    await one.close()


async def renew_around(monkeypatch: pytest.MonkeyPatch, outer: Leases, inner: Leases, when: str) -> None:
    """One beat of `outer`, and all of one of `inner` just before it asks what is named `when`."""
    ask = outer._call

    async def ask_after_the_other(commands: list[Command], query_type: RedisQuery) -> list[Any]:
        if query_type == when and not inner.reading:
            await inner.renew()
        return await ask(commands, query_type)

    monkeypatch.setattr(outer, "_call", ask_after_the_other)
    await outer.renew()


async def test_one_alone_reads_all_at_once_and_writes_nothing_but_its_beat(redis: Redis, team: Team) -> None:
    alone = await team.add("worker")
    assert set(alone.reading) == ALL
    before = await redis.info("commandstats")
    for _ in range(5):
        await alone.renew()
    after = await redis.info("commandstats")
    calls = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
    assert {name: count for name, count in calls.items() if count and name not in {"cmdstat_info", "cmdstat_get"}} == {
        f"cmdstat_{name}": 5 for name in ("eval", "time", "hget", "hset", "hgetall")
    }
    assert set(alone.reading) == ALL
    assert set(await Cache(redis).read_workers()) == {"worker"}


async def test_a_successor_with_a_smaller_share_leaves_nothing_under_its_name(team: Team) -> None:
    await team.add("one")
    team.members.clear()  # it dies with all of them
    await team.add("two")
    again = await team.add("one")
    await until(team.is_even)
    assert len(again.reading) == 32


@pytest.mark.parametrize("when", ["beat", "read_leases", "take_leases"])
async def test_of_two_who_begin_at_once_neither_takes_what_the_other_has(
    team: Team, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Whoever was not there yet at one's own beat may have taken shards since."""
    first, second = team.join("first"), team.join("second")
    await renew_around(monkeypatch, first, second, when)
    assert second.reading
    assert not first.reading.keys() & second.reading.keys()
    await until(team.is_even)


async def test_who_comes_back_while_another_succeeds_him_keeps_what_he_took_first(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await team.add("first"), await team.add("second")
    await until(team.is_even)
    await asyncio.sleep(LEASE_S)  # both are silent
    assert not {**first.reading, **second.reading}
    await renew_around(monkeypatch, first, second, "take_leases")
    assert (len(first.reading), len(second.reading)) == (32, 32)
    assert set(first.reading) | set(second.reading) == ALL


async def test_who_comes_gets_a_share_and_who_leaves_gives_it_back_at_once(team: Team) -> None:
    first = await team.add("first")
    second = await team.add("second")
    assert not second.reading, "nothing is taken from somebody alive"
    await until(team.is_even)
    assert (len(first.reading), len(second.reading)) == (32, 32)
    third = await team.add("third")
    await until(team.is_even)
    assert sorted(map(len, (first.reading, second.reading, third.reading))) == [21, 21, 22]
    await team.members.pop("second").leave()
    assert not second.reading
    assert await team.renew(), "in one beat, without waiting for anything to lapse"


async def test_what_is_in_hand_is_read_no_more_but_not_given_away_either(redis: Redis, team: Team) -> None:
    first = await team.add("first")
    second = await team.add("second")
    for _ in range(3):
        await first.renew(ALL)
        await second.renew()
    assert len(first.reading) == 32
    assert not second.reading
    assert {read_owner(await redis.get(name_lease(shard))) for shard in ALL} == {"first"}
    await first.renew()
    await second.renew()
    assert set(second.reading) == ALL - set(first.reading)


async def test_a_silent_worker_loses_its_shards_by_its_own_clock_first(team: Team) -> None:
    silent = await team.add("silent")
    other = await team.add("other")
    await until(team.is_even)
    before = dict(silent.reading)
    del team.members["silent"]
    silent_at = time.monotonic()
    while len(other.reading) < SHARD_COUNT:
        await other.renew()
        assert not (set(other.reading) & set(silent.reading)), "it still believed that it may read"
        await asyncio.sleep(0.05)
        assert time.monotonic() - silent_at < 30
    assert not silent.reading
    team.members["silent"] = silent  # it wakes up
    await until(team.is_even)
    assert len(silent.reading) == 32
    for shard in set(before) & set(silent.reading):
        assert silent.reading[shard] != before[shard], "another may have read it in between: to be adopted anew"


async def test_a_successor_of_the_same_name_goes_on_at_once(redis: Redis, team: Team) -> None:
    await team.add("worker")
    successor = Leases(redis, "worker")
    await successor.renew()
    assert set(successor.reading) == ALL
    await successor.renew()
    await successor.close()


async def test_of_two_workers_with_one_name_the_later_one_ends_and_says_why(redis: Redis, team: Team) -> None:
    first = await team.add("worker")
    later = Leases(redis, "worker")
    await later.renew()
    await first.renew()
    with pytest.raises(StartupError) as end:
        await later.renew()
    assert end.value.code == "NB-3105"
    assert end.value.facts["worker"] == "worker"
    await first.renew()
    assert set(first.reading) == ALL
    await later.close()


async def test_who_is_stuck_lets_others_try_and_takes_part_again_later(team: Team) -> None:
    stuck = await team.add("stuck")
    other = await team.add("other")
    for _ in range(2):
        await stuck.renew(ALL, is_stuck=True)
        await other.renew()
    assert not stuck.reading
    assert set(other.reading) == ALL
    for _ in range(3):  # both: then nobody takes anything from anybody
        await stuck.renew(ALL, is_stuck=True)
        await other.renew(ALL, is_stuck=True)
    assert set(other.reading) == ALL
    await until(team.is_even)
    assert len(stuck.reading) == 32


async def test_an_emptied_server_is_shared_out_anew(redis: Redis, team: Team) -> None:
    one, _ = await team.add("one"), await team.add("two")
    await until(team.is_even)
    before = dict(one.reading)
    await redis.flushall()
    await until(team.is_even)
    assert all(one.reading[shard] != before[shard] for shard in set(before) & set(one.reading))


async def test_what_a_worker_notes_of_itself_is_timed_by_the_server(redis: Redis, team: Team) -> None:
    one = await team.add("one")
    await one.renew(lag_ms=42)
    seconds, microseconds = await redis.time()
    noted = json.loads((await redis.hgetall("nbpulse:workers"))[b"one"])
    assert abs(seconds + microseconds / 1e6 - noted["at"]) < 20
    assert (noted["lag_ms"], noted["takes"]) == (42, True)
    assert BEAT_S * 4 < LEASE_S, "some beats may be late"


@pytest.mark.timeout(900)
async def test_workers_killed_stopped_added_and_removed_under_load_keep_each_students_order(
    embedded_postgres: str, embedded_valkey: str
) -> None:
    rounds = 10 if os.environ.get("NBPULSE_TEST_SCALE") == "full" else 1
    async with Redis.from_url(embedded_valkey) as client:
        await client.flushall()
    database_url = await create_database(embedded_postgres)
    course = await make_class(database_url, make_students())
    async with open_stores(database_url, embedded_valkey, worker="watcher") as opened:
        outcome = await change_workers(opened, database_url, embedded_valkey, course, rounds=rounds, seed=1)
    print(f"{dict(outcome.changes)}, {len(outcome.accepted)} events; an event waited at most {outcome.unread_s} s")  # noqa: T201
    assert outcome.changes == dict.fromkeys(CHANGES, rounds)
    assert outcome.disordered == []
    await check_conservation(database_url, outcome.accepted)


async def test_a_worker_that_stops_within_a_transaction_frees_its_students_rows(embedded_postgres: str) -> None:
    database_url = await create_database(embedded_postgres)
    worker_url = f"postgresql://nbpulse_worker:{WORKER_PASSWORD}@{database_url.rpartition('@')[2]}"
    async with connect(worker_url) as stopped, connect(worker_url) as successor:
        transaction = stopped.transaction()
        await transaction.start()
        await stopped.execute("SELECT pg_advisory_xact_lock(1)")
        await successor.execute("SELECT pg_advisory_lock(1)", timeout=60)
        with pytest.raises(UNAVAILABLE):  # woken up it takes the batch up anew, and sees that it is stored
            await stopped.execute("SELECT 1")
