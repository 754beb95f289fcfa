"""Several real primaries: every event where its key names it, once, and the directory shows the class as it is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from uuid import UUID, uuid4

import pytest

from nbpulse.events import ReceivedEvent
from nbpulse.records import rollups, routing
from nbpulse.resources import Resources
from nbpulse.shards import SHARD_COUNT, get_shard_number
from primaries import SHARD_TABLES, Primaries, keep_figures, run_primaries
from stores import connect, make_class, make_error, make_event

IS_FULL = os.environ.get("NBPULSE_TEST_SCALE") == "full"
NAMES = ("a", "b", "c", "d") if IS_FULL else ("a", "b")
STUDENTS, RUNS = (2_000, 60_000) if IS_FULL else (200, 3_000)
pytestmark = pytest.mark.timeout(900 if IS_FULL else 180)


@pytest.fixture(scope="module")
def primaries() -> Iterator[Primaries]:
    with run_primaries(NAMES) as started:
        for name in NAMES:
            started.run("add", name, "--url", started.urls[name])
        asyncio.run(started.assign({number: choose(number) for number in range(SHARD_COUNT)}))
        yield started


def choose(number: int) -> str:
    return NAMES[number * len(NAMES) // SHARD_COUNT]


async def read_lsn(url: str) -> int:
    async with connect(url) as connection:
        return int(await connection.fetchval("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))


async def test_every_event_is_in_the_database_its_key_names_and_the_directory_shows_all(
    primaries: Primaries, embedded_valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollups, "FINISH_S", 60.0)
    course_id, students = await make_class(primaries.urls["main"], STUDENTS)
    before = {name: await read_lsn(url) for name, url in primaries.urls.items()}
    stored = 0
    events = [make_event(students[number % STUDENTS], course_id) for number in range(RUNS)]
    events += [make_error(one, course_id) for one in students[:20]]
    events += [make_event(one, course_id, "help_request", data={"message": "助けて"}) for one in students[:5]]
    async with primaries.open_worker(embedded_valkey) as worker:
        for first in range(0, len(events), 500):
            stored += await until_recorded(worker, events[first : first + 500], set())
        again = await worker.ledger.record_events(events[:500])
        assert (again.stored_count, again.duplicate_count) == (0, 500)
        for debt in await worker.ledger.find_debts(older_than_s=0, limit=10_000):
            await worker.ledger.settle_debt(debt.debt_id)
        assert stored == len(events)
    wal = {name: await read_lsn(url) - before[name] for name, url in primaries.urls.items()}

    for name in NAMES:
        async with connect(primaries.urls[name]) as connection:
            for table in SHARD_TABLES:
                found = await connection.fetch(f"SELECT DISTINCT shard FROM {table}")
                assert {choose(row["shard"]) for row in found} <= {name}, table
            assert await connection.fetchval("SELECT count(*) FROM rollup_debts") == 0
            assert await connection.fetchval("SELECT count(*) FROM series_debt") == 0
    rows = await primaries.count("events")
    assert rows.pop("main") == 0
    wanted = {name: sum(choose(get_shard_number(one.user_id)) == name for one in events) for name in NAMES}
    assert rows == wanted
    async with connect(primaries.urls["main"]) as directory:
        shown = await directory.fetch("SELECT * FROM learner_cells ORDER BY user_id, notebook_id, cell_id")
        assert sum(row["attempt_count"] for row in shown) == RUNS + 20
        columns = await directory.fetch("SELECT cell_id, student_count FROM notebook_cells")
        counted = {cell: sum(row["cell_id"] == cell for row in shown) for cell in {row["cell_id"] for row in shown}}
        assert dict(columns) == counted
        assert await directory.fetchval("SELECT count(*) FROM help_requests WHERE closed_at IS NULL") == 5
        assert await directory.fetchval("SELECT count(*) FROM learner_states WHERE hand_revision > 0") == 5
        assert await directory.fetchval("SELECT sum(runs) FROM recent_runs") == RUNS + 20
        states = {row["user_id"]: row["state"] for row in await directory.fetch("SELECT * FROM learner_states")}
    for name in NAMES:
        async with connect(primaries.urls[name]) as connection:
            for row in await connection.fetch("SELECT * FROM learner_states"):
                assert states[row["user_id"]] == row["state"]
            for row in await connection.fetch("SELECT * FROM learner_cells ORDER BY user_id, notebook_id, cell_id"):
                assert row in shown
    share = {name: wal[name] / sum(wal[one] for one in NAMES) * len(NAMES) for name in NAMES}
    parts = {name: rows[name] / sum(rows.values()) * len(NAMES) for name in NAMES}
    if IS_FULL:
        keep_figures(
            "primaries",
            {"primaries": len(NAMES), "events": len(events), "students": STUDENTS, "wal_bytes": wal, "rows": rows},
        )
    for each in (share, parts):
        assert all(0.85 < one < 1.15 for one in each.values()), (share, parts)


async def test_a_worker_with_an_old_map_stores_nothing_and_then_finds_the_way(
    primaries: Primaries, embedded_valkey: str
) -> None:
    course_id, students = await make_class(primaries.urls["main"], 30)
    async with primaries.open_worker(embedded_valkey) as worker:
        moved = get_shard_number(students[0])
        there, elsewhere = choose(moved), NAMES[(NAMES.index(choose(moved)) + 1) % len(NAMES)]
        events = [make_event(one, course_id) for one in students]
        theirs = {(one.user_id, one.event_id) for one in events if get_shard_number(one.user_id) == moved}
        async with connect(primaries.urls[there]) as source, connect(primaries.urls[elsewhere]) as target:
            try:
                await source.execute("UPDATE shard_owners SET is_here = FALSE WHERE shard = $1", moved)
                recorded = await until_recorded(worker, events, theirs)
                assert recorded == len(events) - len(theirs)
                # The map of the directory says another database now; this process has not read it.
                await target.execute("UPDATE shard_owners SET is_here = TRUE, epoch = 3 WHERE shard = $1", moved)
                async with connect(primaries.urls["main"]) as directory:
                    await directory.execute(
                        "UPDATE shard_map SET database = $2, epoch = 3 WHERE shard = $1", moved, elsewhere
                    )
                await until_recorded(worker, events, set())
                assert await target.fetchval("SELECT count(*) FROM events WHERE shard = $1", moved) == len(theirs)
                found = await primaries.count("events", f"course_id = '{course_id}'")
                assert sum(found.values()) == len(events)
            finally:
                for table in (*SHARD_TABLES, "series_marks"):
                    await target.execute(f"DELETE FROM {table} WHERE shard = $1", moved)
                await target.execute("UPDATE shard_owners SET is_here = FALSE WHERE shard = $1", moved)
                await source.execute("UPDATE shard_owners SET is_here = TRUE, epoch = 4 WHERE shard = $1", moved)
                async with connect(primaries.urls["main"]) as directory:
                    await directory.execute(
                        "UPDATE shard_map SET database = $2, epoch = 4 WHERE shard = $1", moved, there
                    )


async def until_recorded(worker: Resources, events: Sequence[ReceivedEvent], waiting: set[tuple[UUID, UUID]]) -> int:
    """Record again and again what was postponed, until only `waiting` is; how many were stored."""
    left, stored = list(events), 0
    async with asyncio.timeout(60):
        while True:
            recorded = await worker.ledger.record_events(left)
            stored += recorded.stored_count
            left = [one for one in left if (one.user_id, one.event_id) in recorded.postponed]
            if {(one.user_id, one.event_id) for one in left} <= waiting:
                return stored
            await asyncio.sleep(0.02)


async def test_a_person_who_has_not_come_from_the_directory_yet_waits_alone(
    primaries: Primaries, embedded_valkey: str
) -> None:
    await make_class(primaries.urls["main"], 1)
    async with primaries.open_worker(embedded_valkey) as worker, connect(primaries.urls["a"]) as late:
        course_id, students = await make_class(primaries.urls["main"], 20)
        at_b = [one for one in students if choose(get_shard_number(one)) != "a"]
        await until_recorded(worker, [make_event(one, course_id) for one in students], set())
        await late.execute("ALTER SUBSCRIPTION nbpulse_directory DISABLE")
        try:
            async with connect(primaries.urls["main"]) as directory:
                new = next(one for one in (uuid4() for _ in range(200)) if choose(get_shard_number(one)) == "a")
                await directory.execute("INSERT INTO users (id, username) VALUES ($1, $2)", new, new.hex)
            first, others = make_event(new, course_id), [make_event(one, course_id) for one in at_b]
            await until_recorded(worker, [first, *others], {(first.user_id, first.event_id)})
        finally:
            await late.execute("ALTER SUBSCRIPTION nbpulse_directory ENABLE")
        assert await until_recorded(worker, [first], set()) == 1
        assert await late.fetchval("SELECT count(*) FROM events WHERE user_id = $1", new) == 1


async def read_shown(url: str, course_id: UUID) -> tuple[int, int, int]:
    """What the directory shows of a class: learners with news, attempts in all their cells, runs of the last hour."""
    async with connect(url) as directory:
        row = await directory.fetchrow(
            "SELECT (SELECT count(*) FROM learner_states WHERE course_id = $1 AND revision > 0),"
            " (SELECT coalesce(sum(attempt_count), 0) FROM learner_cells WHERE course_id = $1),"
            " (SELECT coalesce(sum(runs), 0) FROM recent_runs WHERE course_id = $1)",
            course_id,
        )
    assert row is not None
    return tuple(row)


async def test_what_is_done_meanwhile_is_shown_at_once_and_a_hand_before_anybody_is_told(
    primaries: Primaries, embedded_valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollups, "GATHER_S", 600.0)
    monkeypatch.setattr(rollups, "FINISH_S", 60.0)
    course_id, students = await make_class(primaries.urls["main"], 24)
    groups = [[one for one in students if choose(get_shard_number(one)) == name] for name in NAMES[:2]]
    async with primaries.open_worker(embedded_valkey) as worker:
        for _ in range(4):
            await until_recorded(worker, [make_event(one, course_id) for one in students], set())
        assert await read_shown(primaries.urls["main"], course_id) == (0, 0, 0)
        asked = make_event(groups[0][0], course_id, "help_request", data={"message": "?"})
        await until_recorded(worker, [asked], set())
        count = len(groups[0])
        assert await read_shown(primaries.urls["main"], course_id) == (count, 4 * count, 4 * count)
        async with connect(primaries.urls["main"]) as directory:
            shown = "SELECT count(*) FROM help_requests h JOIN learner_states USING (user_id) WHERE hand_revision > 0"
            assert await directory.fetchval(f"{shown} AND h.course_id = $1", course_id) == 1
    # Who stops brings the rest.
    assert await read_shown(primaries.urls["main"], course_id) == (24, 96, 96)
    assert sum((await primaries.count("rollup_debts")).values()) == 0


async def test_what_a_killed_worker_owed_is_brought_by_another_and_no_old_row_comes_after_it(
    primaries: Primaries, embedded_valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollups, "GATHER_S", 600.0)
    monkeypatch.setattr(rollups, "FINISH_S", 60.0)
    monkeypatch.setattr(routing, "ROLLUP_AGE_S", 0.0)
    course_id, students = await make_class(primaries.urls["main"], 24)
    async with primaries.open_worker(embedded_valkey) as late:
        await until_recorded(late, [make_event(one, course_id) for one in students], set())
        assert await read_shown(primaries.urls["main"], course_id) == (0, 0, 0)
        async with primaries.open_worker(embedded_valkey, "worker-2") as other:
            await other.ledger.keep_rollups()
            assert await read_shown(primaries.urls["main"], course_id) == (24, 24, 24)
        # As if their shards had moved and had news there: what the late one still has in hand is not written over it.
        async with connect(primaries.urls["main"]) as directory:
            await directory.execute("UPDATE recent_runs SET runs = runs + 1 WHERE course_id = $1", course_id)
    assert await read_shown(primaries.urls["main"], course_id) == (24, 24, 48)
