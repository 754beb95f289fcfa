"""A backup of several real databases while a class runs, and its return into one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from machines import make_empty_database
from nbpulse import backup
from nbpulse.errors import StartupError
from nbpulse.events import ReceivedEvent
from nbpulse.records.accounting import Accounts
from nbpulse.records.copying import LEFT_OUT, Snapshot
from nbpulse.records.moves import MADE_ANEW
from nbpulse.records.primaries import PUBLISHED
from nbpulse.records.reuniting import PART_TABLES
from nbpulse.shards import get_shard_number
from primaries import Primaries, run_site
from stores import connect, make_class, make_error, make_event
from working import is_drained, until, work

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def primaries() -> Iterator[Primaries]:
    with run_site(("b",)) as started:
        yield started


@pytest.fixture(autouse=True)
def passwords(primaries: Primaries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSFILE", primaries.make_environment()["PGPASSFILE"])


def is_at_b(user_id: UUID) -> bool:
    return get_shard_number(user_id) % 2 == 1


def draw_students() -> list[UUID]:
    """Six of each database."""
    drawn = [uuid4() for _ in range(100)]
    return [*filter(is_at_b, drawn)][:6] + [one for one in drawn if not is_at_b(one)][:6]


def make_work(students: list[UUID], course_id: UUID) -> list[ReceivedEvent]:
    text = {"status": "ok", "execution_duration_ms": 5.0, "source": "x = 1", "output": "1"}
    events = [
        make_event(one, course_id, data=text, cell_id=f"cell-{n}", cell_index=n) for one in students for n in (0, 1)
    ]
    events += [make_error(one, course_id, cell_id="cell-2", cell_index=2) for one in students]
    return events + [make_event(one, course_id, "help_request", data={"message": "助けて"}) for one in students]


async def check_whole(url: str, course_id: UUID, expected: set[UUID]) -> None:
    """Every one of these events once, and everything that is counted of them as many times."""
    async with connect(url) as connection:
        rows = await connection.fetch("SELECT event_id FROM events WHERE course_id = $1", course_id)
        assert sorted(row[0] for row in rows) == sorted(expected)
        ids = await connection.fetchval(
            "SELECT count(*) FROM event_ids WHERE event_id = ANY($1::uuid[])", list(expected)
        )
        assert ids == len(expected)
        counts = await connection.fetchrow(
            """
            SELECT (SELECT count(*) FROM events WHERE course_id = $1 AND event_type = 'cell_execution') AS runs,
                (SELECT sum(attempt_count) FROM learner_cells WHERE course_id = $1) AS attempts,
                (SELECT sum(cell_executions) FROM learning_sessions WHERE course_id = $1) AS executions,
                (SELECT count(*) FROM timeseries.cell_executions WHERE course_id = $1) AS points,
                (SELECT sum(student_count) FROM notebook_cells c JOIN notebooks n ON n.id = c.notebook_id
                    WHERE n.course_id = $1) AS seen,
                (SELECT count(*) FROM learner_cells WHERE course_id = $1) AS cells,
                (SELECT count(*) FROM events WHERE course_id = $1 AND event_type = 'help_request') AS hands,
                (SELECT count(*) FROM help_requests WHERE course_id = $1) AS helps
            """,
            course_id,
        )
        assert counts["runs"] == counts["attempts"] == counts["executions"] == counts["points"]
        assert counts["seen"] == counts["cells"]
        assert counts["hands"] == counts["helps"]


async def settle(primaries: Primaries, redis_url: str, url: str) -> None:
    """Work off what waits, and what is owed."""
    async with primaries.open_worker(redis_url) as worker:
        await worker.stream.ensure_groups()
        async with work(worker):
            await until(lambda: is_drained(worker.stream))

        async def is_owed() -> bool:
            for debt in await worker.ledger.find_debts(older_than_s=0, limit=1_000):
                await worker.series.write_points(debt.points)
                await worker.ledger.settle_debt(debt.debt_id)  # type: ignore[arg-type]
            async with connect(url) as connection:
                return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM series_debt)"))

        assert not await is_owed()
        assert await Accounts(worker.pool).count_missing_rows() == 0


async def test_two_databases_under_load_come_back_as_one_with_every_accepted_event_once(
    primaries: Primaries, make_valkey: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, file = make_valkey(), tmp_path / "site.zip"
    course_id, students = await make_class(primaries.urls["main"], draw_students())
    gone_id, guests = await make_class(primaries.urls["main"], draw_students())
    loop, opening = asyncio.get_running_loop(), backup.open_snapshot
    late = make_work(students, course_id)
    async with primaries.open_worker(stream) as worker:
        await worker.stream.ensure_groups()

        async def interfere() -> None:
            """Between the two moments: work is stored, and a class is removed."""
            left = late
            async with asyncio.timeout(60):
                while left:
                    recorded = await worker.ledger.record_events(left)
                    await worker.series.write_points(recorded.points)
                    left = [one for one in left if (one.user_id, one.event_id) in recorded.postponed]
            async with connect(primaries.urls["main"]) as directory:
                await directory.execute("SELECT remove_course($1)", gone_id)

        @asynccontextmanager
        async def open_between(pool: asyncpg.Pool, only: Collection[str] | None = None) -> AsyncIterator[Snapshot]:
            if only is None:
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(interfere(), loop))
            async with opening(pool, only) as snapshot:
                yield snapshot

        monkeypatch.setattr(backup, "open_snapshot", open_between)
        async with work(worker):
            before = make_work(students, course_id)
            await worker.stream.append([*before, *make_work(guests, gone_id)])
            await until(lambda: is_drained(worker.stream))
            sent: list[ReceivedEvent] = []

            async def push() -> None:
                while True:
                    more = make_work(students, course_id)
                    await worker.stream.append(more)
                    sent.extend(more)
                    await asyncio.sleep(0.05)

            pushing = asyncio.create_task(push())
            await until(lambda: _has(sent, 100))
            certain = list(sent)
            await asyncio.to_thread(lambda: primaries.invoke("backup", str(file), redis_url=stream))
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)
            await until(lambda: is_drained(worker.stream))

    fresh = make_valkey()
    one = primaries._replace(urls={"main": await make_empty_database(primaries.servers["main"].url)})
    printed = await asyncio.to_thread(lambda: one.invoke("restore", str(file), "--json", redis_url=fresh))
    said = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
    assert said["events"] > len(before)
    await settle(one, fresh, one.urls["main"])
    await asyncio.to_thread(one.run, "verify")
    async with connect(one.urls["main"]) as connection:
        rows = await connection.fetch("SELECT event_id FROM events WHERE course_id = $1", course_id)
        assert await connection.fetchval("SELECT count(*) FROM events WHERE course_id = $1", gone_id) == 0
    restored = {row[0] for row in rows}
    known = {event.event_id for event in (*before, *certain)}
    assert known <= restored <= {event.event_id for event in (*before, *sent, *late)}
    assert not restored & {event.event_id for event in late if is_at_b(event.user_id)}
    await check_whole(one.urls["main"], course_id, restored)

    # Clients send again what nobody has told them to be stored.
    async with one.open_worker(fresh) as worker:
        await worker.stream.append([*before, *sent, *late])
    await settle(one, fresh, one.urls["main"])
    await check_whole(one.urls["main"], course_id, {event.event_id for event in (*before, *sent, *late)})


async def _has(sent: list[ReceivedEvent], count: int) -> bool:
    return len(sent) >= count


async def test_what_a_further_database_alone_has_is_in_a_backup(primaries: Primaries) -> None:
    """A table with rows that is none of the directory's, of a part, or made anew, would be lost without a word."""
    own = {*PART_TABLES, *LEFT_OUT, *(f"public.{one}" for one in (*PUBLISHED, *MADE_ANEW))}
    own |= {"public.audit_log", "public.sealing_keys"}  # the directory's own; see docs/operations.md
    async with connect(primaries.urls["b"]) as connection:
        tables = await connection.fetch(
            "SELECT n.nspname || '.' || c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE nspname IN ('public', 'timeseries') AND relkind IN ('r', 'p') AND NOT relispartition"
        )
        full = {
            row["name"] for row in tables if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {row['name']})")
        }
    assert "public.events" in full
    assert full <= own


async def test_a_site_of_several_databases_is_not_restored_onto(
    primaries: Primaries, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    stream, file = make_valkey(), tmp_path / "site.zip"
    await asyncio.to_thread(lambda: primaries.invoke("backup", str(file), redis_url=stream))
    with pytest.raises(StartupError) as refused:
        await asyncio.to_thread(lambda: primaries.invoke("restore", str(file), redis_url=stream))
    assert refused.value.code == "NB-3121"
