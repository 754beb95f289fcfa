"""Workers that are killed, stopped, added and taken away while students work: what becomes of shards and students."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from uuid import UUID, uuid4

from redis.asyncio import Redis

import stores as test_stores
from nbpulse.errors import Unavailable
from nbpulse.events import ReceivedEvent
from nbpulse.resources import Resources
from nbpulse.shards import SHARD_COUNT, get_shard_number
from nbpulse.stream.leases import name_lease, read_owner
from stores import connect, make_event
from working import is_drained, is_paid
from working import until as until_within

_PATIENCE_S = 150  # a busy machine is no finding
CHANGES = ("kill", "add", "remove", "stop")
_WORKER = """
import asyncio, signal, sys
sys.path.insert(0, {tests!r})
import stores
from nbpulse import worker
stores.KEY = {key!r}

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with stores.open_stores({database_url!r}, {redis_url!r}, worker={name!r}) as opened:
        await worker.run(opened, stop, claim_idle_s=5)

asyncio.run(main())
"""


@dataclass
class Outcome:
    """What was done, and what was seen of it."""

    changes: Counter[str] = field(default_factory=Counter)
    accepted: list[ReceivedEvent] = field(default_factory=list)
    disordered: list[UUID] = field(default_factory=list)
    """Students whose events were stored in another order than they came."""
    unread_s: dict[str, float] = field(default_factory=dict)
    """By change, the longest that a shard's event waited for its storing: no shard was without a worker for longer."""


async def until(check: Callable[[], Awaitable[object]]) -> None:
    await until_within(check, _PATIENCE_S)


class Workers:
    """Worker processes by name."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._stores = {"database_url": database_url, "redis_url": redis_url, "key": test_stores.KEY}
        self._made = 0

    def add(self) -> str:
        """Start one more; its name."""
        self._made += 1
        name = f"worker-{self._made}"
        script = _WORKER.format(tests=str(Path(__file__).parent), name=name, **self._stores)
        self.running[name] = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
        return name

    def end(self) -> None:
        """Kill whatever still runs."""
        for process in self.running.values():
            process.kill()
            process.wait(10)


def make_students() -> list[UUID]:
    """Ids of which each shard has just one."""
    found: dict[int, UUID] = {}
    while len(found) < SHARD_COUNT:
        user_id = uuid4()
        found.setdefault(get_shard_number(user_id), user_id)
    return sorted(found.values())


async def read_owners(redis: Redis) -> Counter[str]:
    """How many shards each worker at work reads; "" for those of nobody. (Who is silent is taken from the hash.)"""
    pipe = redis.pipeline(transaction=False)
    pipe.hkeys("nbpulse:workers")
    pipe.mget([name_lease(shard) for shard in range(SHARD_COUNT)])
    alive, leases = await pipe.execute()
    owners = (read_owner(lease) for lease in leases)
    return Counter(owner if owner.encode() in alive else "" for owner in owners)


async def is_shared(redis: Redis, names: Sequence[str]) -> bool:
    """Whether these and no others read all shards, as many each."""
    owners = await read_owners(redis)
    return set(owners) == set(names) and max(owners.values()) - min(owners.values()) <= 1


async def change_workers(
    opened: Resources, database_url: str, redis_url: str, course: tuple[UUID, list[UUID]], *, rounds: int, seed: int
) -> Outcome:
    """
    Three workers under a steady load of every student, and `rounds` times each change in random order; each is over
    when all shards are shared out again. Ends drained.
    """
    outcome, random, workers = Outcome(), Random(seed), Workers(database_url, redis_url)
    await opened.stream.ensure_groups()
    try:
        names = [workers.add() for _ in range(3)]
        await until(lambda: is_shared(opened.redis, names))
        order = list(CHANGES) * rounds
        random.shuffle(order)
        async with _loading(opened, course, outcome.accepted):
            for change in order:
                begun = len(outcome.accepted)
                await _change(opened.redis, workers, change, random)
                await until(lambda: is_shared(opened.redis, sorted(workers.running)))
                await asyncio.sleep(1)  # load goes on after it
                seen = outcome.accepted[begun:]
                await until(lambda seen=seen: are_stored(database_url, seen))
                waited_s = await _measure_waits(database_url, seen)
                outcome.unread_s[change] = max(outcome.unread_s.get(change, 0.0), waited_s)
                outcome.changes[change] += 1
        await until(lambda: is_drained(opened.stream))
        await until(lambda: is_paid(database_url))
    finally:
        workers.end()
    outcome.disordered = await _find_disordered(database_url, outcome.accepted)
    return outcome


async def _change(redis: Redis, workers: Workers, change: str, random: Random) -> None:
    if change == "add":
        workers.add()
        return
    name = random.choice(sorted(workers.running))
    process = workers.running[name]
    if change == "stop":
        process.send_signal(signal.SIGSTOP)
        rest = [one for one in workers.running if one != name]
        await until(lambda: is_shared(redis, rest))
        process.send_signal(signal.SIGCONT)  # it goes on with what it had in hand, which others have stored by now
        return
    del workers.running[name]
    process.send_signal(signal.SIGKILL if change == "kill" else signal.SIGTERM)
    code = await asyncio.to_thread(process.wait, 30)
    assert code == (-signal.SIGKILL if change == "kill" else 0)
    if len(workers.running) < 3:
        workers.add()


@asynccontextmanager
async def _loading(
    opened: Resources, course: tuple[UUID, list[UUID]], accepted: list[ReceivedEvent]
) -> AsyncIterator[None]:
    """Every student's next event some 4 times a second, each after the one before was accepted."""
    stopped = asyncio.Event()

    async def load() -> None:
        batch: list[ReceivedEvent] = []
        while batch or not stopped.is_set():
            if not batch:
                started = time.monotonic()
                batch = [make_event(user_id, course[0]) for user_id in course[1]]
            try:
                await opened.stream.append(batch)
            except Unavailable:  # a busy machine: as a client does, the same again; what comes twice is stored once
                await asyncio.sleep(0.1)
                continue
            accepted.extend(batch)
            batch = []
            await asyncio.sleep(max(0.0, 0.25 - (time.monotonic() - started)))

    task = asyncio.create_task(load())
    try:
        yield
    finally:
        stopped.set()
        await task


async def are_stored(database_url: str, events: Sequence[ReceivedEvent]) -> bool:
    """Whether all these are in the ledger."""
    async with connect(database_url) as connection:
        query = "SELECT count(*) FROM events WHERE event_id = ANY($1)"
        return bool(await connection.fetchval(query, [event.event_id for event in events]) == len(events))


async def _measure_waits(database_url: str, events: Sequence[ReceivedEvent]) -> float:
    async with connect(database_url) as connection:
        return float(
            await connection.fetchval(
                "SELECT max(extract(epoch FROM recorded_at - received_at)) FROM events WHERE event_id = ANY($1)",
                [event.event_id for event in events],
            )
        )


async def _find_disordered(database_url: str, accepted: Sequence[ReceivedEvent]) -> list[UUID]:
    async with connect(database_url) as connection:
        rows = await connection.fetch(
            "SELECT user_id, array_agg(sequence ORDER BY ordinal) AS stored FROM events GROUP BY user_id"
        )
    stored = {row["user_id"]: row["stored"] for row in rows}
    sent: dict[UUID, list[int]] = {}
    for event in accepted:
        sent.setdefault(event.user_id, []).append(event.sequence)
    return [user_id for user_id, order in sent.items() if stored[user_id] != order]
