"""learning_progress and performance_metrics: what the ledger's runs make them, in whatever order and way they came."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest

from derivation import derive_points, read_notebooks
from nbpulse.crypto import EncryptedField
from nbpulse.errors import Unavailable
from nbpulse.events import ReceivedEvent
from nbpulse.pipeline import LearningProgressPoint, PerformancePoint, RejectedPoint, SeriesPoint
from nbpulse.records import derived
from nbpulse.records.derived import mark_changed_notebooks, pay_marks
from nbpulse.records.merging import merge_users
from nbpulse.resources import Resources
from stores import CITUS_URL, KEY, connect, count_rows, create_database, make_class, make_error, make_event, open_stores

EXAMPLES = 25 if os.environ.get("NBPULSE_TEST_SCALE") == "full" else 4
STATUSES = ("ok", "ok", "ok", "error", "error", "interrupted", "aborted", "unknown")
GAPS_S = (0, 0, 1, 3, 9, 20, 61, 300, 1_800, 1_801)


def make_trace(chance: random.Random, students: Sequence[UUID], courses: Sequence[UUID]) -> list[ReceivedEvent]:
    """Some work of everybody in two notebooks, one with exercises; the first student also in another course's."""
    trace = []
    for student in students:
        for course_id in courses if student == students[0] else courses[:1]:
            at = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2, minutes=chance.randrange(60))
            sessions = [UUID(int=chance.getrandbits(128)), UUID(int=chance.getrandbits(128)), None]
            for number in range(50):
                at += timedelta(seconds=chance.choice(GAPS_S), milliseconds=chance.choice((0, 0, 250)))
                cell, path = chance.randrange(8), chance.choice(("week1.ipynb", "week2.ipynb"))
                kind = chance.choice(["cell_execution"] * 8 + ["notebook_save", "cell_execution_start"])
                changes: dict[str, Any] = {}
                if kind == "cell_execution":
                    timed = None if chance.random() < 0.2 else chance.uniform(0.01, 9_000)
                    changes["data"] = {"status": chance.choice(STATUSES), "execution_duration_ms": timed}
                if path == "week2.ipynb" and cell < 5 and chance.random() < 0.8:
                    changes["exercise_id"] = chance.choice(("問 1", "a")) if cell == 4 else f"exercise-{cell // 2}"
                trace.append(
                    make_event(
                        *(student, course_id, kind),
                        event_id=UUID(int=chance.getrandbits(128)),
                        occurred_at=at,
                        received_at=at + timedelta(days=1),
                        sequence=number // 2,
                        session_id=chance.choice(sessions),
                        notebook_path=path,
                        cell_id=None if chance.random() < 0.05 else f"cell-{cell}",
                        cell_type=chance.choice(("code", None, "raw")),
                        **changes,
                    )
                )
    return trace


async def read_points(database_url: str, kind: type[LearningProgressPoint | PerformancePoint]) -> list[Any]:
    names = ", ".join(kind.__struct_fields__)
    async with connect(database_url) as owner:
        rows = await owner.fetch(f"SELECT {names} FROM timeseries.{kind.measurement}")
    return [kind(**dict(row)) for row in rows]


async def settle(stores: Resources, database_url: str) -> None:
    """Until nothing is owed any more."""
    await mark_changed_notebooks(stores.pool, rest_s=0)
    while await count_rows(database_url, "series_marks") != [0]:
        await pay_marks(stores.pool, stores.series)


async def check(database_url: str, trace: Sequence[ReceivedEvent], sizes: dict[UUID, int]) -> None:
    """What the store holds is what the trace makes."""
    progress, performance = derive_points(trace, await read_notebooks(database_url), sizes)
    found = await read_points(database_url, LearningProgressPoint)
    assert len(found) == len(progress) > 0
    assert set(found) == progress
    minutes = await read_points(database_url, PerformancePoint)
    assert {(one.user_id, one.time_ns, one.notebook_path, one.cell_type) for one in minutes} == performance.keys()
    for one in minutes:
        wanted = performance[one.user_id, one.time_ns, one.notebook_path, one.cell_type]
        assert msgspec.structs.replace(one, avg_execution_time=None) == msgspec.structs.replace(
            wanted, avg_execution_time=None
        )
        assert one.avg_execution_time == pytest.approx(wanted.avg_execution_time)


async def send(stores: Resources, part: list[ReceivedEvent], chance: random.Random) -> None:
    """As one worker stores it, in batches, paying now and then."""
    while part:
        size = chance.randrange(1, 60)
        batch, part = part[:size], part[size:]
        while True:
            try:
                await stores.ledger.record_events(batch)
                break
            except Unavailable:  # two at one student at the first moment: the same batch again, as the worker does
                await asyncio.sleep(0.01)
        if chance.random() < 0.3:
            await pay_marks(stores.pool, stores.series)
        if chance.random() < 0.1:
            await mark_changed_notebooks(stores.pool, rest_s=0)


@pytest.mark.parametrize("seed", range(EXAMPLES))
async def test_any_order_repeats_and_two_workers_end_in_the_points_plain_python_computes(
    embedded_postgres: str, embedded_valkey: str, seed: int
) -> None:
    chance = random.Random(seed)
    database_url = await create_database(embedded_postgres)
    course_id, students = await make_class(database_url, 11)
    other_course, _ = await make_class(database_url, 1)
    trace = make_trace(chance, students, (course_id, other_course))
    sent = trace + chance.sample(trace, len(trace) // 3)
    chance.shuffle(sent)
    async with (
        open_stores(database_url, embedded_valkey) as one,
        open_stores(database_url, embedded_valkey, worker="worker-2") as two,
    ):
        middle = len(sent) // 2
        await asyncio.gather(
            send(one, sent[:middle], random.Random(seed)), send(two, sent[middle:], random.Random(-seed))
        )
        await settle(one, database_url)
    await check(database_url, trace, {course_id: 11, other_course: 1})


class Store:
    """A store that fails, hangs or refuses where told; `during` is done while it is being written."""

    def __init__(self, trouble: str = "", during: Any = None) -> None:
        self.trouble, self.during = trouble, during
        self.written: list[SeriesPoint] = []

    async def write_points(self, points: Sequence[SeriesPoint]) -> Sequence[RejectedPoint]:
        if self.during is not None:
            await self.during()
        if self.trouble == "away":
            raise Unavailable("NB-2005")
        if self.trouble == "hanging":
            await asyncio.sleep(60)
        self.written += points
        if self.trouble == "refusing":
            return [RejectedPoint(one.user_id, one.time_ns, "no", one.measurement) for one in points]
        return ()


@pytest.mark.parametrize("trouble", ["away", "hanging"])
async def test_a_store_that_is_away_or_hangs_leaves_the_marks_and_is_paid_later(
    embedded_postgres: str, embedded_valkey: str, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derived, "SERIES_DEADLINE_S", 0.05)
    database_url = await create_database(embedded_postgres)
    course_id, (student,) = await make_class(database_url, 1)
    async with open_stores(database_url, embedded_valkey) as stores:
        runs = [make_event(student, course_id) for _ in range(3)]
        await stores.ledger.record_events(runs)
        with pytest.raises(Unavailable, match="NB-2005"):
            await pay_marks(stores.pool, Store(trouble))
        assert await count_rows(database_url, "series_marks") == [1]
        await settle(stores, database_url)
    await check(database_url, runs, {course_id: 1})


async def test_news_that_comes_while_points_are_written_waits_for_nobody_and_stays_marked(
    embedded_postgres: str, embedded_valkey: str
) -> None:
    database_url = await create_database(embedded_postgres)
    course_id, students = await make_class(database_url, 2)
    async with open_stores(database_url, embedded_valkey) as stores:
        runs = [make_event(one, course_id) for one in students]
        await stores.ledger.record_events(runs)
        late = make_error(students[0], course_id)

        async def record() -> None:
            async with asyncio.timeout(5):  # no lock of ours is in its way
                await stores.ledger.record_events([late])

        assert await pay_marks(stores.pool, Store(during=record)) == 2
        async with connect(database_url) as owner:
            assert [row["user_id"] for row in await owner.fetch("SELECT user_id FROM series_marks")] == [students[0]]
        await settle(stores, database_url)
        await pay_marks(stores.pool, stores.series)
    found = await read_points(database_url, PerformancePoint)
    assert {one.user_id for one in found} == set(students)
    assert max(one.error_rate for one in found if one.user_id == students[0]) > 0


async def test_a_mark_is_paid_from_the_standing_before_it_and_reads_nothing_older(
    embedded_postgres: str, embedded_valkey: str
) -> None:
    database_url = await create_database(embedded_postgres)
    course_id, (student,) = await make_class(database_url, 1)
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    session = UUID(int=7)
    async with open_stores(database_url, embedded_valkey) as stores, connect(database_url) as owner:

        async def run(number: int, status: str) -> ReceivedEvent:
            at = start + timedelta(seconds=60 * number)
            event = make_event(
                *(student, course_id),
                occurred_at=at,
                received_at=at + timedelta(hours=2),
                session_id=session,
                cell_id=f"cell-{number % 3}",
                data={"status": status},
                sequence=number,
            )
            await stores.ledger.record_events([event])
            await pay_marks(stores.pool, stores.series)
            return event

        trace = [await run(number, status) for number, status in enumerate(("ok", "ok", "error", "ok", "error"))]
        # Had it to be read, the ledger's past would be missed from here on.
        await owner.execute("DELETE FROM events WHERE occurred_at < $1", start + timedelta(seconds=100))
        trace += [await run(number, status) for number, status in ((5, "ok"), (6, "error"))]
        wanted, _ = derive_points(trace, await read_notebooks(database_url), {course_id: 1})
        # The first three were made when the notebook had fewer cells.
        last = sorted(wanted, key=lambda one: one.time_ns)[3:]
        assert [one.completed_cells for one in last] == [2, 1, 2, 1]
        found = await read_points(database_url, LearningProgressPoint)
        assert sorted(found, key=lambda one: one.time_ns)[3:] == last


async def test_a_mark_in_the_ledgers_hand_is_left_and_not_waited_for(
    embedded_postgres: str, embedded_valkey: str
) -> None:
    database_url = await create_database(embedded_postgres)
    course_id, (student,) = await make_class(database_url, 1)
    async with open_stores(database_url, embedded_valkey) as stores, connect(database_url) as ledger:
        await stores.ledger.record_events([make_event(student, course_id)])
        async with ledger.transaction():
            await ledger.execute("UPDATE series_marks SET revision = revision")
            async with asyncio.timeout(5):
                assert await pay_marks(stores.pool, stores.series) == 1
        assert await count_rows(database_url, "series_marks") == [1]
        await settle(stores, database_url)


async def test_only_one_worker_pays_at_a_time(embedded_postgres: str, embedded_valkey: str) -> None:
    database_url = await create_database(embedded_postgres)
    course_id, (student,) = await make_class(database_url, 1)
    async with open_stores(database_url, embedded_valkey) as stores:
        await stores.ledger.record_events([make_event(student, course_id)])
        seen: list[int] = []

        async def pay_too() -> None:
            seen.append(await pay_marks(stores.pool, stores.series))

        assert await pay_marks(stores.pool, Store(during=pay_too)) == 1
        assert seen == [0]
        assert await count_rows(database_url, "series_marks") == [0]


async def test_points_the_store_refuses_are_set_aside_under_their_measurement(
    embedded_postgres: str, embedded_valkey: str
) -> None:
    database_url = await create_database(embedded_postgres)
    course_id, (student,) = await make_class(database_url, 1)
    async with open_stores(database_url, embedded_valkey) as stores:
        await stores.ledger.record_events([make_event(student, course_id)])
        await pay_marks(stores.pool, Store("refusing"))
    async with connect(database_url) as owner:
        rows = await owner.fetch("SELECT measurement, reason FROM series_rejects ORDER BY 1")
    assert [tuple(row) for row in rows] == [("learning_progress", "no"), ("performance_metrics", "no")]
    assert await count_rows(database_url, "series_marks") == [0]


async def test_a_batch_that_comes_again_marks_nothing(embedded_postgres: str, embedded_valkey: str) -> None:
    database_url = await create_database(embedded_postgres)
    course_id, (student,) = await make_class(database_url, 1)
    async with open_stores(database_url, embedded_valkey) as stores:
        runs = [make_event(student, course_id) for _ in range(3)]
        await stores.ledger.record_events(runs)
        await settle(stores, database_url)
        await stores.ledger.record_events(runs)
        assert await count_rows(database_url, "series_marks") == [0]


async def test_cells_that_begin_to_count_change_everybodys_points_but_once_a_minute(
    embedded_postgres: str, embedded_valkey: str
) -> None:
    database_url = await create_database(embedded_postgres)
    course_id, students = await make_class(database_url, 25)  # 3 make a column
    async with open_stores(database_url, embedded_valkey) as stores:
        trace = [make_event(one, course_id, cell_id="a") for one in students[:3]]
        await stores.ledger.record_events(trace)
        await settle(stores, database_url)
        assert {one.total_cells for one in await read_points(database_url, LearningProgressPoint)} == {1}
        trace += [make_event(one, course_id, cell_id="b", exercise_id="exercise 1") for one in students[3:6]]
        await stores.ledger.record_events(trace[3:])
        await pay_marks(stores.pool, stores.series)
        await mark_changed_notebooks(stores.pool)
        assert await count_rows(database_url, "series_marks") == [0], "changed less than a minute ago"
        await mark_changed_notebooks(stores.pool, rest_s=0)
        assert await count_rows(database_url, "series_marks") == [6]
        await settle(stores, database_url)
        await mark_changed_notebooks(stores.pool, rest_s=0)
        assert await count_rows(database_url, "series_marks") == [0], "nothing has changed since"
    await check(database_url, trace, {course_id: 25})


async def test_two_users_that_prove_to_be_one_have_the_points_of_one(
    embedded_postgres: str, embedded_valkey: str
) -> None:
    database_url = await create_database(embedded_postgres)
    course_id, (keep, drop) = await make_class(database_url, 2)
    # Moments between two ms, where PostgreSQL and Python round to different ones.
    start = datetime(2026, 11, 23, 1, 2, 3, 122_500, tzinfo=UTC)
    sessions = {one: UUID(int=number) for number, one in enumerate((keep, drop))}
    runs = [
        make_event(
            *((keep, drop)[number % 2], course_id),
            occurred_at=start + timedelta(seconds=7 * number),
            received_at=start + timedelta(hours=1),
            session_id=sessions[(keep, drop)[number % 2]],
        )
        for number in range(40)
    ]
    async with open_stores(database_url, embedded_valkey) as stores:
        for part in (runs[:30], runs[20:]):
            await stores.series.write_points((await stores.ledger.record_events(part)).points)
        await settle(stores, database_url)
        await stores.ledger.record_events([make_event(drop, course_id)])  # a mark that is still owed
        async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as owner:
            await merge_users(owner, EncryptedField(KEY.encode()), keep_id=keep, drop_id=drop)
        await settle(stores, database_url)
    async with connect(database_url) as owner:
        assert await owner.fetchval("SELECT count(*) FROM timeseries.cell_executions WHERE user_id = $1", keep) == 40
        last = await owner.fetch(
            "SELECT event_id, occurred_at, cell_id, sequence FROM events ORDER BY occurred_at DESC"
        )
    assert len(last) == 41
    more = make_event(keep, course_id, session_id=None, **dict(last[0]))
    await check(database_url, [*(msgspec.structs.replace(one, user_id=keep) for one in runs), more], {course_id: 1})


async def test_a_removed_course_leaves_no_point_and_no_mark(embedded_postgres: str, embedded_valkey: str) -> None:
    database_url = await create_database(embedded_postgres)
    course_id, (student, *_) = await make_class(database_url, 2)
    other_course, _ = await make_class(database_url, 1)
    tables = [f"timeseries.{kind.measurement}" for kind in (LearningProgressPoint, PerformancePoint)]
    tables += ["timeseries.cell_executions", "series_marks"]
    async with open_stores(database_url, embedded_valkey) as stores, connect(database_url) as owner:
        await owner.execute("INSERT INTO enrolments VALUES ($1, $2, 'student')", student, other_course)
        for course in (course_id, other_course):
            recorded = await stores.ledger.record_events([make_event(student, course)])
            await stores.series.write_points(recorded.points)
        await settle(stores, database_url)
        for course in (course_id, other_course):
            await stores.ledger.record_events([make_event(student, course)])
        assert await count_rows(database_url, *tables) == [2, 2, 2, 2]
        await owner.execute("SELECT remove_course($1)", course_id)
        assert await count_rows(database_url, *tables) == [1, 1, 1, 1], "the other course's stay"
        assert await owner.fetchval("SELECT course_id FROM timeseries.learning_progress") == other_course


@pytest.mark.skipif(CITUS_URL is not None, reason="shards as small as these are read whole: docs/operations.md, Citus")
async def test_the_work_of_a_mark_goes_by_index(embedded_postgres: str, embedded_valkey: str) -> None:
    database_url = await create_database(embedded_postgres)
    course_id, students = await make_class(database_url, 40)
    async with open_stores(database_url, embedded_valkey) as stores:
        for _ in range(20):
            await stores.ledger.record_events([make_event(one, course_id) for one in students for _ in range(10)])
        async with connect(database_url) as owner:
            await owner.execute("ANALYZE")
            notebook_id = await owner.fetchval("SELECT id FROM notebooks")
            await explain(owner, students[0], notebook_id)


async def explain(owner: asyncpg.Connection, student: UUID, notebook_id: UUID) -> None:
    month = f"events_{datetime.now(UTC):%Y_%m}"
    since = datetime.now(UTC) - timedelta(hours=1)
    for statement, *more in ((derived._PROGRESS, True), (derived._PERFORMANCE,)):
        rows = await owner.fetch(f"EXPLAIN (COSTS OFF) {statement}", [student], [notebook_id], [since], None, *more)
        plan = "\n".join(row[0] for row in rows)
        assert f"Seq Scan on {month}" not in plan, plan
