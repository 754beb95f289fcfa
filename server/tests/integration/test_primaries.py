"""Several real primaries: every event where its key names it, once, and the directory shows the class as it is."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbpulse.shards import SHARD_COUNT, get_shard_number
from primaries import SHARD_TABLES, Primaries, run_primaries
from stores import connect, make_class, make_error, make_event

IS_FULL = os.environ.get("NBPULSE_TEST_SCALE") == "full"
NAMES = ("a", "b", "c", "d") if IS_FULL else ("a", "b")
STUDENTS, RUNS = (2_000, 60_000) if IS_FULL else (200, 3_000)


@pytest.fixture(scope="module")
def primaries() -> Iterator[Primaries]:
    with run_primaries(NAMES) as started:
        for name in NAMES:
            started.run("add", name, "--url", started.urls[name])
        yield started


def choose(number: int) -> str:
    return NAMES[number * len(NAMES) // SHARD_COUNT]


async def read_lsn(url: str) -> int:
    async with connect(url) as connection:
        return int(await connection.fetchval("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))


async def test_every_event_is_in_the_database_its_key_names_and_the_directory_shows_all(
    primaries: Primaries, embedded_valkey: str
) -> None:
    await primaries.assign({number: choose(number) for number in range(SHARD_COUNT)})
    course_id, students = await make_class(primaries.urls["main"], STUDENTS)
    before = {name: await read_lsn(url) for name, url in primaries.urls.items()}
    stored = 0
    events = [make_event(students[number % STUDENTS], course_id) for number in range(RUNS)]
    events += [make_error(one, course_id) for one in students[:20]]
    events += [make_event(one, course_id, "help_request", data={"message": "助けて"}) for one in students[:5]]
    async with primaries.open_worker(embedded_valkey) as worker:
        left = list(events)
        async with asyncio.timeout(120):
            while left:  # a person who has not come from the directory yet costs another try
                batch, left = left[:500], left[500:]
                recorded = await worker.ledger.record_events(batch)
                stored += recorded.stored_count
                left += [one for one in batch if (one.user_id, one.event_id) in recorded.postponed]
                await asyncio.sleep(0.01 if recorded.postponed else 0)
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
            {"primaries": len(NAMES), "events": len(events), "students": STUDENTS, "wal_bytes": wal, "rows": rows}
        )
    for each in (share, parts):
        assert all(0.85 < one < 1.15 for one in each.values()), (share, parts)


def keep_figures(figures: dict[str, object]) -> None:
    path = Path(__file__).resolve().parents[3] / "bench" / "results" / "primaries.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
