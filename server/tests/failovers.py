"""The primary dies while workers write, and its replica, which is promoted: what was acknowledged is there or lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import psutil

from nbpulse.connections import open_pool
from nbpulse.crypto import EncryptedField
from nbpulse.errors import Unavailable
from nbpulse.events import ReceivedEvent
from nbpulse.migrations.runner import with_login
from nbpulse.records.ledger import PostgresLedger
from nbpulse.records.notebooks import NotebookDirectory
from nbpulse.records.replication import SLOT
from replicated import Pair, run_pair
from stores import KEY, WORKER_PASSWORD, connect, create_database, make_class, spread
from working import until

WRITERS, BATCH_EVENTS, STUDENTS = 4, 20, 40


class Failover(NamedTuple):
    """
    Events. `lost`: acknowledged and not at the promoted server. `wrong`: after all were delivered again, how far rows
    and counts are from one for each.
    """

    acknowledged: int
    lost: int
    wrong: int
    promotion_s: float


class _Writers:
    """Workers' writes until the server is gone; `acknowledged` is what a commit was confirmed of."""

    def __init__(self, students: Sequence[UUID], course_id: UUID) -> None:
        self._students, self._course_id = students, course_id
        self.given: list[list[ReceivedEvent]] = []
        self.acknowledged: list[UUID] = []

    async def await_acknowledged(self, count: int) -> None:
        """Until more than so many are; a busy machine takes its time."""

        async def are_enough() -> bool:
            return len(self.acknowledged) > count

        await until(are_enough)

    async def write(self, ledger: PostgresLedger) -> None:
        while True:
            batch = spread(self._students, self._course_id, BATCH_EVENTS)
            self.given.append(batch)
            try:
                await ledger.record_events(batch)
            except Unavailable:
                return
            self.acknowledged += [event.event_id for event in batch]


def find_receiver(pair: Pair) -> psutil.Process:
    """The replica's process that the log comes in through."""
    children = psutil.Process(pair.standby.pid).children(recursive=True)
    return next(one for one in children if "walreceiver" in " ".join(one.cmdline()))


async def is_followed(pair: Pair, *, is_synchronous: bool) -> bool:
    async with connect(pair.primary.url) as connection:
        state = await connection.fetchval(
            "SELECT sync_state FROM pg_stat_replication WHERE application_name = $1 AND state = 'streaming'", SLOT
        )
    return bool(state == ("sync" if is_synchronous else "async"))


async def fail_over(pair: Pair, database: str, *, is_synchronous: bool, load_s: float, cut_s: float) -> Failover:
    """
    Load for at least `load_s`, for its last `cut_s` with the replica's receiver standing still; kill -9 of both; the
    replica starts again and is promoted; then everything is delivered again, as a stream does with what it has no
    acknowledgement of.
    """
    course_id, students = await make_class(database, STUDENTS)
    async with connect(pair.primary.url) as connection:
        wanted = f"FIRST 1 ({SLOT})" if is_synchronous else ""
        await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{wanted}'")
        await connection.execute("SELECT pg_reload_conf()")
    await until(lambda: is_followed(pair, is_synchronous=is_synchronous))
    writers = _Writers(students, course_id)
    url = with_login(database, "nbpulse_worker", WORKER_PASSWORD)
    seal = EncryptedField([KEY.encode()])
    async with open_pool(url, WRITERS) as pool:
        ledger = PostgresLedger(pool, seal, NotebookDirectory())
        writing = [asyncio.create_task(writers.write(ledger)) for _ in range(WRITERS)]
        await asyncio.sleep(load_s - cut_s)
        await writers.await_acknowledged(WRITERS * BATCH_EVENTS)
        find_receiver(pair).suspend()
        at_cut = len(writers.acknowledged)
        await asyncio.sleep(cut_s)
        if not is_synchronous:  # nothing holds them up: some are the dead primary's alone
            await writers.await_acknowledged(at_cut)
        pair.kill(pair.primary)
        await asyncio.gather(*writing)
    # What the kernel holds for the receiver would still be read: as on another machine that goes at the same time.
    pair.kill(pair.standby)
    pair.standby.start()
    began_s = time.perf_counter()
    assert await pair.ask_replica("SELECT pg_promote(true, 60)")
    promotion_s = time.perf_counter() - began_s
    promoted = pair.find_replica(database)
    async with connect(promoted) as connection:
        kept = {row["event_id"] for row in await connection.fetch("SELECT event_id FROM events")}
    async with open_pool(with_login(promoted, "nbpulse_worker", WORKER_PASSWORD), WRITERS) as pool:
        ledger = PostgresLedger(pool, seal, NotebookDirectory())
        for batch in writers.given:
            await ledger.record_events(batch)
    events = {event.event_id for batch in writers.given for event in batch}
    async with connect(promoted) as connection:
        rows = await connection.fetchval("SELECT count(*) FROM events")
        counted = await connection.fetchval("SELECT sum(last_ordinal)::bigint FROM learner_states")
    wrong = abs(rows - len(events)) + abs(counted - len(events))
    return Failover(len(writers.acknowledged), len(set(writers.acknowledged) - kept), wrong, promotion_s)


def run_failover(data_dir: Path, *, is_synchronous: bool, load_s: float = 2.0, cut_s: float = 1.0) -> Failover:
    """On two new servers, stopped afterwards."""
    with run_pair(data_dir) as pair:

        async def run() -> Failover:
            database = await create_database(pair.primary.url)
            await pair.until_same()
            return await fail_over(pair, database, is_synchronous=is_synchronous, load_s=load_s, cut_s=cut_s)

        return asyncio.run(run())
