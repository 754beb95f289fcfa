"""Commands over several real databases: each does its whole work in every one of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from nbpulse import administration
from nbpulse.crypto import EncryptedField, make_key
from nbpulse.doctor import run_doctor
from nbpulse.erasure import Eraser, open_eraser
from nbpulse.errors import AccessDenied, StartupError
from nbpulse.events import ReceivedEvent
from nbpulse.identity import asking_as
from nbpulse.preparation import DEMO_SHORT_NAME
from nbpulse.records import erasing
from nbpulse.records.audit import note_audit
from nbpulse.records.courses import clear_removed, remove_demo_course
from nbpulse.records.databases import OtherSchema
from nbpulse.resources import Resources
from nbpulse.shards import get_shard_number
from primaries import SHARD_TABLES, Primaries, run_site, store
from stores import KEY, connect, list_holders, make_class, make_error, make_event

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def primaries() -> Iterator[Primaries]:
    with run_site(("b",)) as started:
        yield started


@pytest.fixture(autouse=True)
def passwords(primaries: Primaries, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an operator's commands read them."""
    monkeypatch.setenv("PGPASSFILE", primaries.make_environment()["PGPASSFILE"])


def choose(user_id: UUID) -> str:
    return "b" if get_shard_number(user_id) % 2 else "main"


def draw_students(count: int) -> list[UUID]:
    """So many, half of them of each database."""
    drawn: dict[str, list[UUID]] = {"main": [], "b": []}
    while min(map(len, drawn.values())) < count // 2:
        one = uuid4()
        drawn[choose(one)].append(one)
    return [one for some in drawn.values() for one in some[: count // 2]]


async def count_all(primaries: Primaries, user_id: UUID) -> dict[str, dict[str, int]]:
    """Rows of a person in each database, by table."""
    return {
        name: {table: (await primaries.count(table, f"user_id = '{user_id}'"))[name] for table in SHARD_TABLES}
        for name in primaries.urls
    }


def make_work(students: list[UUID], course_id: UUID) -> list[ReceivedEvent]:
    data = {"status": "ok", "execution_duration_ms": 5.0, "source": "x = 1", "output": "1"}
    events = [
        make_event(one, course_id, data=data, cell_id=f"cell-{n}", cell_index=n) for one in students for n in range(4)
    ]
    events += [make_error(one, course_id) for one in students]
    return events + [make_event(one, course_id, "help_request", data={"message": "助けて"}) for one in students]


@pytest.mark.parametrize("home", ["main", "b"])
async def test_a_student_is_erased_from_their_database_and_the_directory(
    primaries: Primaries, embedded_valkey: str, home: str
) -> None:
    course_id, students = await make_class(primaries.urls["main"], draw_students(12))
    gone = next(one for one in students if choose(one) == home)
    others = [one for one in students if one != gone]
    own = {"notebook_path": "mine.ipynb", "cell_id": "secret", "exercise_id": "my words"}
    shared = {"cell_id": "cell-1", "cell_index": 1, "exercise_id": "task 1"}
    async with primaries.open_worker(embedded_valkey) as worker:
        events = make_work(students, course_id)
        events += [make_event(gone, course_id, **own), make_event(gone, course_id, **shared)]
        events += [make_event(one, course_id, **shared) for one in others if choose(one) != home]
        opened = [
            make_event(one, course_id, "notebook_open", notebook_path="read.ipynb", cell_id=None) for one in others
        ]
        events += [*opened, make_event(gone, course_id, "notebook_open", notebook_path="read.ipynb", cell_id=None)]
        await store(worker, events)
        settings = primaries.make_settings(embedded_valkey)
        async with open_eraser(settings, primaries.urls["main"], embedded_valkey, settle_s=0) as eraser:
            held = await eraser.describe_user(gone.hex)
            assert held is not None
            assert held.rows["events"] == sum(one.user_id == gone for one in events)
            rows = await eraser.erase_user(gone)
            assert rows["events"] == held.rows["events"]
            assert await eraser.finish_all() == 1
            assert await eraser.describe_user(gone.hex) is None
        for counts in (await count_all(primaries, gone)).values():
            assert set(counts.values()) == {0}
        late = make_event(gone, course_id)
        recorded = await worker.ledger.record_events([late])
        assert (recorded.stored_count, recorded.postponed) == (0, frozenset())
    await asyncio.to_thread(primaries.run, "verify")
    found = await primaries.count("events", f"course_id = '{course_id}'")
    assert sum(found.values()) == sum(one.user_id != gone for one in events)
    async with connect(primaries.urls["main"]) as directory:
        paths = {row[0] for row in await directory.fetch("SELECT path FROM notebooks WHERE course_id = $1", course_id)}
        assert paths == {"week1.ipynb", "read.ipynb"}
        exercises = await directory.fetch(
            "SELECT c.cell_id, c.exercise_id FROM notebook_cells c JOIN notebooks n ON n.id = c.notebook_id"
            " WHERE n.course_id = $1 AND c.exercise_id IS NOT NULL",
            course_id,
        )
        assert [tuple(row) for row in exercises] == [("cell-1", "task 1")]


async def test_an_erasure_killed_between_two_databases_is_finished_by_the_next(
    primaries: Primaries, embedded_valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    course_id, students = await make_class(primaries.urls["main"], draw_students(8))
    gone = next(one for one in students if choose(one) == "b")
    settings = primaries.make_settings(embedded_valkey)
    async with primaries.open_worker(embedded_valkey) as worker:
        await store(worker, make_work(students, course_id))

        class Killed(Exception):
            pass

        async def die(_: Eraser, __: object) -> dict[str, int]:
            raise Killed

        async with open_eraser(settings, primaries.urls["main"], embedded_valkey, settle_s=0) as eraser:
            with monkeypatch.context() as patched:
                patched.setattr(Eraser, "_erase_elsewhere", die)
                with pytest.raises(Killed):
                    await eraser.erase_user(gone)
        counts = await count_all(primaries, gone)
        assert set(counts["main"].values()) == {0}
        assert counts["b"]["events"] > 0
        async with open_eraser(settings, primaries.urls["main"], embedded_valkey, settle_s=0) as eraser:
            assert await eraser.finish_all() == 1
        for counts_there in (await count_all(primaries, gone)).values():
            assert set(counts_there.values()) == {0}
    await asyncio.to_thread(primaries.run, "verify")


async def test_an_export_holds_a_student_s_rows_wherever_they_are(
    primaries: Primaries, embedded_valkey: str, tmp_path: Path
) -> None:
    course_id, students = await make_class(primaries.urls["main"], draw_students(8))
    async with primaries.open_worker(embedded_valkey) as worker:
        events = make_work(students, course_id)
        await store(worker, events)
    for home in ("main", "b"):
        student = next(one for one in students if choose(one) == home)
        file = tmp_path / f"{home}.zip"
        command = ("export-user", student.hex, str(file))
        await asyncio.to_thread(lambda: primaries.invoke(*command, redis_url=embedded_valkey))  # noqa: B023
        with zipfile.ZipFile(file) as archive:
            rows = {
                name: len(json.loads(archive.read(f"{name}.json"))) for name in ("events", "event_ids", "learner_cells")
            }
            texts = json.loads(archive.read("event_contents.json"))
        assert rows == {"events": 6, "event_ids": 6, "learner_cells": rows["learner_cells"]}
        assert rows["learner_cells"] >= 4
        assert {row["source"] for row in texts} == {"x = 1"}


async def test_retention_and_the_series_are_kept_in_every_database(primaries: Primaries, embedded_valkey: str) -> None:
    course_id, students = await make_class(primaries.urls["main"], draw_students(12))
    old = datetime.now(UTC) - timedelta(days=100)
    async with primaries.open_worker(embedded_valkey) as worker:
        kept = make_work(students, course_id)
        dropped = [make_event(one, course_id, occurred_at=old, received_at=old) for one in students]
        await store(worker, [*kept, *dropped])
    before = await primaries.count("events", f"course_id = '{course_id}'")
    assert min(before.values()) > 0
    # The series is made anew from every database: what is lost of it comes back.
    async with connect(primaries.urls["main"]) as owner:
        points = await owner.fetchval("SELECT count(*) FROM timeseries.cell_executions WHERE course_id = $1", course_id)
        assert points == len([one for one in (*kept, *dropped) if one.event_type == "cell_execution"])
        await owner.execute("DELETE FROM timeseries.cell_executions WHERE course_id = $1", course_id)
        window = ("--from", (old - timedelta(days=1)).isoformat(), "--to", (datetime.now(UTC)).isoformat())
        command = ("rebuild-timeseries", *window)
        await asyncio.to_thread(lambda: primaries.invoke(*command, redis_url=embedded_valkey))
        again = await owner.fetchval("SELECT count(*) FROM timeseries.cell_executions WHERE course_id = $1", course_id)
        assert again == points
        assert await owner.fetchval("SELECT count(DISTINCT user_id) FROM timeseries.learning_progress") >= len(students)
    days = {"NBPULSE_RETENTION_DAYS": "30"}
    await asyncio.to_thread(lambda: primaries.invoke("retention", redis_url=embedded_valkey, **days))
    after = await primaries.count("events", f"course_id = '{course_id}'")
    for name in before:
        assert before[name] - after[name] == sum(choose(one.user_id) == name for one in dropped)
    await asyncio.to_thread(primaries.run, "verify")


async def test_every_database_is_sealed_anew(primaries: Primaries, embedded_valkey: str) -> None:
    course_id, students = await make_class(primaries.urls["main"], draw_students(8))
    async with primaries.open_worker(embedded_valkey) as worker:
        await store(worker, make_work(students, course_id))
    fresh = make_key().decode()
    keys = {"NBPULSE_ENCRYPTION_KEYS": f"{fresh},{KEY}"}
    await asyncio.to_thread(lambda: primaries.invoke("rotate-keys", **keys))
    newest, texts = EncryptedField(fresh.encode()), 0
    for url in primaries.urls.values():
        async with connect(url) as connection:
            for row in await connection.fetch(
                "SELECT user_id, error_message FROM events WHERE error_message IS NOT NULL"
            ):
                assert newest.is_newest(row["error_message"])
                texts += 1
    assert texts >= len(students)
    await asyncio.to_thread(lambda: primaries.invoke("rotate-keys", "--drop-old", **keys))
    old_first = {"NBPULSE_ENCRYPTION_KEYS": f"{KEY},{fresh}"}
    await asyncio.to_thread(lambda: primaries.invoke("rotate-keys", **old_first))  # for the tests after this one
    await asyncio.to_thread(lambda: primaries.invoke("rotate-keys", "--drop-old", **old_first))


async def list_all_holders(primaries: Primaries, sought: UUID) -> set[str]:
    """Tables of any database in which this id stands."""
    return {table for url in primaries.urls.values() for table in await list_holders(url, sought)}


async def make_two_courses(
    primaries: Primaries, worker: Resources
) -> tuple[UUID, UUID, list[UUID], list[ReceivedEvent]]:
    """
    Two courses with work in both databases; who is in the first alone; what is to stay: the second's, two of whose
    people are in both.
    """
    course_id, students = await make_class(primaries.urls["main"], draw_students(8))
    other_id, more = await make_class(primaries.urls["main"], draw_students(4))
    both = [next(one for one in students if choose(one) == home) for home in primaries.urls]
    async with connect(primaries.urls["main"]) as directory:
        await directory.executemany(
            "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, 'student')",
            [(one, other_id) for one in both],
        )
    kept = make_work([*more, *both], other_id)
    await store(worker, [*make_work(students, course_id), *kept])
    return course_id, other_id, [one for one in students if one not in both], kept


async def check_gone(primaries: Primaries, worker: Resources, course_id: UUID, gone: list[UUID]) -> None:
    """Nothing of the course, nor of those who were only in it, in any database; what comes late is dropped."""
    assert await list_all_holders(primaries, course_id) <= {"audit_log"}
    for one in gone:
        assert await list_all_holders(primaries, one) <= {"audit_log"}
    late = [make_event(one, course_id) for one in gone]
    recorded = await worker.ledger.record_events(late)
    assert (recorded.stored_count, recorded.postponed) == (0, frozenset())
    await asyncio.to_thread(primaries.run, "verify")


@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_course_is_erased_from_every_database_and_its_people_s_other_work_stays(
    primaries: Primaries, embedded_valkey: str, monkeypatch: pytest.MonkeyPatch, *, is_killed: bool
) -> None:
    async with primaries.open_worker(embedded_valkey) as worker:
        course_id, other_id, gone, kept = await make_two_courses(primaries, worker)
        settings = primaries.make_settings(embedded_valkey)

        class Killed(Exception):
            pass

        async def die(*_: object) -> dict[str, int]:
            raise Killed

        async with open_eraser(settings, primaries.urls["main"], embedded_valkey, settle_s=0) as eraser:
            held = await eraser.describe_course(course_id.hex)
            assert held is not None
            assert held.rows["events"] == 8 * 6
            if is_killed:
                with monkeypatch.context() as patched:
                    patched.setattr(erasing, "clear_course", die)
                    with pytest.raises(Killed):
                        await eraser.erase_course(course_id)
            else:
                assert (await eraser.erase_course(course_id))["events"] == 8 * 6
        if is_killed:
            assert "events" in await list_holders(primaries.urls["b"], course_id)
        async with open_eraser(settings, primaries.urls["main"], embedded_valkey, settle_s=0) as eraser:
            assert await eraser.finish_all() >= 1
        await check_gone(primaries, worker, course_id, gone)
        found = await primaries.count("events", f"course_id = '{other_id}'")
        assert sum(found.values()) == len(kept)
        assert min(found.values()) > 0
        late = make_event(kept[0].user_id, other_id)
        await store(worker, [late])


async def test_a_demo_is_removed_from_every_database_also_after_a_kill(
    primaries: Primaries, embedded_valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with primaries.open_worker(embedded_valkey) as worker:
        course_id, other_id, gone, kept = await make_two_courses(primaries, worker)
        async with connect(primaries.urls["main"]) as directory:
            await directory.execute(
                "UPDATE courses SET short_name = $2, is_demo = TRUE WHERE id = $1", course_id, DEMO_SHORT_NAME
            )

        class Killed(Exception):
            pass

        async def die(*_: object) -> int:
            raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(administration, "clear_removed", die)
            with pytest.raises(Killed):
                await asyncio.to_thread(lambda: primaries.invoke("demo", "--remove", redis_url=embedded_valkey))
        assert "events" in await list_holders(primaries.urls["b"], course_id)
        await asyncio.to_thread(lambda: primaries.invoke("demo", "--remove", redis_url=embedded_valkey))
        await check_gone(primaries, worker, course_id, gone)
        assert sum((await primaries.count("events", f"course_id = '{other_id}'")).values()) == len(kept)


async def test_a_rehearsal_ends_at_once_and_a_worker_clears_the_other_databases(
    primaries: Primaries, embedded_valkey: str
) -> None:
    async with primaries.open_worker(embedded_valkey) as worker, primaries.open_api(embedded_valkey) as api:
        course_id, other_id, gone, kept = await make_two_courses(primaries, worker)
        async with connect(primaries.urls["main"]) as directory:
            teacher = await directory.fetchval("INSERT INTO users (username) VALUES ($1) RETURNING id", uuid4().hex)
            await directory.execute(
                "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, 'instructor')", teacher, course_id
            )
            await directory.execute("UPDATE courses SET is_demo = TRUE WHERE id = $1", course_id)
        with asking_as(gone[0]), pytest.raises(AccessDenied):
            await remove_demo_course(api.people, course_id)
        with asking_as(teacher):
            assert await remove_demo_course(api.people, course_id) == len(gone)

        async def clear() -> bool:
            waiting = 0

            async def clear_one(home: asyncpg.Pool) -> None:
                nonlocal waiting
                waiting += await clear_removed(home, worker.pool)

            await worker.ledger.in_each(clear_one)
            return waiting == 0

        # While a shard is between two databases it waits.
        async with connect(primaries.urls["main"]) as directory:
            await directory.execute("INSERT INTO shard_moves (shard, source, target) VALUES (1, 'b', 'main')")
            with pytest.raises(StartupError, match="NB-3137"):
                await clear()
            await directory.execute("DELETE FROM shard_moves")
        async with asyncio.timeout(60):
            while not await clear():  # noqa: ASYNC110 - another server's work
                await asyncio.sleep(0.05)
        await check_gone(primaries, worker, course_id, gone)
        assert sum((await primaries.count("events", f"course_id = '{other_id}'")).values()) == len(kept)


async def find_files(url: str) -> dict[str, int]:
    """The file of every table and partition with something in it."""
    async with connect(url) as connection:
        rows = await connection.fetch(
            "SELECT c.oid::regclass::text, pg_relation_filenode(c.oid) FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE nspname IN ('public', 'timeseries') AND relkind = 'r' AND pg_relation_size(c.oid) > 0"
        )
    return {row[0]: row[1] for row in rows}


async def test_every_database_is_compacted(primaries: Primaries, embedded_valkey: str) -> None:
    course_id, students = await make_class(primaries.urls["main"], draw_students(8))
    async with primaries.open_worker(embedded_valkey) as worker:
        events = make_work(students, course_id)
        await store(worker, events)
        before = {name: await find_files(url) for name, url in primaries.urls.items()}
        await asyncio.to_thread(lambda: primaries.invoke("compact", redis_url=embedded_valkey))
        for name, url in primaries.urls.items():
            assert "event_ids" in before[name]
            after = await find_files(url)
            assert not {table for table, file in before[name].items() if after.get(table) == file}
        await store(worker, [make_event(one, course_id) for one in students])  # and they take events as before
    found = await primaries.count("events", f"course_id = '{course_id}'")
    assert sum(found.values()) == len(events) + len(students)


async def test_the_audit_log_of_every_database_is_verified(primaries: Primaries) -> None:
    async with connect(primaries.urls["b"]) as there:
        await note_audit(there, "retention_applied", facts={"rows": 1})
        said = await asyncio.to_thread(primaries.invoke, "audit", "verify")
        assert "b: as it was written, up to " in said
        last = await there.fetchval("SELECT max(id) FROM audit_log")
        await there.execute("ALTER TABLE audit_log DISABLE TRIGGER refuse_change")
        change = "UPDATE audit_log SET facts = $2::jsonb WHERE id = $1"
        await there.execute(change, last, '{"rows": 2}')
        try:
            with pytest.raises(StartupError) as refused:
                await asyncio.to_thread(primaries.invoke, "audit", "verify")
            assert refused.value.code == "NB-3139"
            assert f"row {last} " in refused.value.title("en")
        finally:
            await there.execute(change, last, '{"rows": 1}')
            await there.execute("ALTER TABLE audit_log ENABLE TRIGGER refuse_change")
    await asyncio.to_thread(primaries.invoke, "audit", "verify")


async def test_a_database_of_another_schema_is_refused_by_name_and_one_that_is_away_is_not(
    primaries: Primaries, embedded_valkey: str
) -> None:
    course_id, students = await make_class(primaries.urls["main"], draw_students(8))
    async with connect(primaries.urls["b"]) as behind:
        newest = await behind.fetchval("SELECT version_num FROM alembic_version")
        await behind.execute("UPDATE alembic_version SET version_num = '0001'")
        try:
            for opening in (primaries.open_worker, primaries.open_api):
                with pytest.raises(StartupError) as refused:
                    async with opening(embedded_valkey):
                        pass
                assert refused.value.code == "NB-3136"
                assert "b" in refused.value.title("en").split()
        finally:
            await behind.execute("UPDATE alembic_version SET version_num = $1", newest)
    os.kill(primaries.servers["b"].pid, signal.SIGKILL)
    try:
        async with primaries.open_worker(embedded_valkey) as worker:
            events = [make_event(one, course_id) for one in students]
            recorded = await worker.ledger.record_events(events)
            assert recorded.postponed == {(one.user_id, one.event_id) for one in events if choose(one.user_id) == "b"}
            primaries.servers["b"].revive()
            async with connect(primaries.urls["b"]) as back:
                await back.execute("UPDATE alembic_version SET version_num = '0001'")
            with pytest.raises(OtherSchema):
                async with worker.databases.get_pool("b").acquire():
                    pass
            waiting = [one for one in events if (one.user_id, one.event_id) in recorded.postponed]
            recorded = await worker.ledger.record_events(waiting)
            assert len(recorded.postponed) == len(waiting)
            async with connect(primaries.urls["b"]) as back:
                await back.execute("UPDATE alembic_version SET version_num = $1", newest)
            await store(worker, waiting)
    finally:
        async with connect(primaries.urls["b"]) as back:
            await back.execute("UPDATE alembic_version SET version_num = $1", newest)


async def test_doctor_looks_at_every_database(
    primaries: Primaries, embedded_valkey: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = primaries.make_settings(embedded_valkey)
    await asyncio.to_thread(lambda: run_doctor(primaries.directory, settings, as_json=True))
    checks = json.loads(capsys.readouterr().out)["checks"]
    (found,) = [one for one in checks if one["name"] == "shard_database"]
    assert found["result"] == "ok", found
    assert found["found"].startswith("b: ")
