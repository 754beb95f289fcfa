"""Erasure in parts: what is in hand, who was merged, whole courses, kills, and backups that know nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest

import stores
from machines import Machine, drain, make_empty_database, make_machine
from nbpulse.accounting import Auditor
from nbpulse.connections import open_redis
from nbpulse.erasure import Eraser, open_eraser
from nbpulse.errors import AccessDenied
from nbpulse.events import decode
from nbpulse.records import derived
from nbpulse.records.accounting import Accounts
from nbpulse.records.identities import enter_by_identity
from nbpulse.records.merging import merge_users
from nbpulse.records.people import People
from nbpulse.stream import LANES, STREAM_KEYS
from nbpulse.tombstones import Marker
from stores import connect, count_rows, make_class, make_event, spread
from working import is_drained, until, work


@pytest.fixture
async def machine(server_18: str, make_valkey: Callable[[], str], tmp_path: Path) -> Machine:
    return await make_machine(server_18, make_valkey(), tmp_path / "data")


@asynccontextmanager
async def erasing(machine: Machine) -> AsyncIterator[Eraser]:
    async with open_eraser(machine.settings, machine.database_url, machine.redis_url, settle_s=0) as eraser:
        yield eraser


async def teach(machine: Machine, course_id: UUID, users: list[UUID], count: int = 20) -> None:
    async with machine.open_worker() as worker:
        recorded = await worker.ledger.record_events(spread(users, course_id, count))
        await worker.series.write_points(recorded.points)
        await worker.series.refresh_rollups(settle_s=-120)
        await derived.pay_marks(worker.pool, worker.series)


async def count_unaccounted(machine: Machine) -> int | None:
    async with machine.open_worker() as worker:
        await worker.stream.ensure_groups()
        return await Auditor(worker.stream, Accounts(worker.pool)).audit()


async def count_entries(machine: Machine) -> int:
    async with open_redis(machine.redis_url) as redis:
        return sum([await redis.xlen(key) for lane in LANES for key in STREAM_KEYS[lane]])


async def list_holders(machine: Machine, user_id: UUID) -> list[str]:
    return await stores.list_holders(machine.database_url, user_id)


async def test_a_user_and_who_was_merged_into_them_are_in_no_table_any_more(machine: Machine) -> None:
    course_id, (one, other, mate) = await make_class(machine.database_url, 3)
    await teach(machine, course_id, [one, other, mate], 30)
    async with erasing(machine) as eraser:
        await merge_users(eraser.pool, eraser.seal, keep_id=one, drop_id=other)
        assert set(await list_holders(machine, one)) >= {
            "events",
            "timeseries.cell_executions",
            "timeseries.durations_10m",
            "learner_cells",
        }
        rows = await eraser.erase_user(one)
        assert rows["events"] == 20
        assert await eraser.finish_all() == 1
    for user_id in (one, other):
        assert await list_holders(machine, user_id) in ([], ["audit_log"])
    assert set(await list_holders(machine, mate)) >= {"users", "events", "timeseries.durations_10m", "learner_cells"}
    assert await count_unaccounted(machine) == 0
    async with connect(machine.database_url) as connection:
        assert await connection.fetchval("SELECT max(student_count) FROM notebook_cells") == 1
        (row,) = await connection.fetch("SELECT counts FROM timeseries.durations_10m")
        assert sum(row["counts"]) == 10, "the mate's durations are counted anew"


async def test_what_is_in_the_stream_is_counted_once_and_goes(machine: Machine) -> None:
    course_id, (gone, mate) = await make_class(machine.database_url, 2)
    events = spread([gone, mate], course_id, 24)
    async with machine.open_worker() as worker:
        await worker.stream.ensure_groups()
        await Auditor(worker.stream, Accounts(worker.pool)).begin()
        await worker.stream.append(events)
        # Of what was taken in hand a part is stored, and its worker dies before it could acknowledge.
        taken = await worker.stream.read("events")
        assert len(taken) == 24
        await worker.ledger.record_events([decode(one.payload, one.entry) for one in taken[:14]])
        await worker.stream.append(spread([gone, mate], course_id, 10))
    async with erasing(machine) as eraser:
        await eraser.erase_user(gone)
        await eraser.finish_all()
        assert await count_entries(machine) == 17
    await drain(machine)
    assert await count_unaccounted(machine) == 0
    async with connect(machine.database_url) as connection:
        assert await connection.fetchval("SELECT array_agg(DISTINCT user_id) FROM events") == [mate]
        assert await connection.fetchval("SELECT count(*) FROM events") == 17


async def test_an_erasure_that_was_killed_is_finished_by_the_next_one(machine: Machine) -> None:
    course_id, (gone, mate) = await make_class(machine.database_url, 2)
    await teach(machine, course_id, [gone, mate])
    async with machine.open_worker() as worker:
        await worker.stream.ensure_groups()
        await worker.stream.append([make_event(gone, course_id)])
    async with erasing(machine) as eraser:
        await eraser.erase_user(gone)  # and killed here
    assert await count_entries(machine) == 1
    code, said = machine.run("erase-user")
    assert (code, "is finished" in said) == (0, True), said
    assert await count_entries(machine) == 0
    code, said = machine.run("erase-user")
    assert (code, said) == (0, "")
    code, said = machine.run("erase-user", gone.hex, "--yes", gone.hex)
    assert (code, "NB-3023" in said) == (1, True), said


async def test_a_course_goes_with_those_who_are_only_in_it(machine: Machine) -> None:
    course_id, (here, both) = await make_class(machine.database_url, 2)
    other_id, _ = await make_class(machine.database_url, 1)
    async with connect(machine.database_url) as connection:
        await connection.execute(
            "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, 'student')", both, other_id
        )
    await teach(machine, course_id, [here, both])
    await teach(machine, other_id, [both], 5)
    async with machine.open_worker() as worker:
        await worker.stream.ensure_groups()
        await worker.stream.append([make_event(both, course_id), make_event(both, other_id)])
    code, said = machine.run("erase-course", course_id.hex, "--yes", "something else")
    assert (code, "NB-3090" in said) == (1, True), said
    assert "2 students, of whom 1 are in other courses" in said
    code, said = machine.run("erase-course", course_id.hex, "--yes", course_id.hex)
    assert code == 0, said
    assert await list_holders(machine, course_id) == ["audit_log"]
    assert await list_holders(machine, here) in ([], ["audit_log"])
    assert await count_entries(machine) == 1
    await drain(machine)
    assert await count_rows(machine.database_url, "events") == [6]
    assert await count_unaccounted(machine) == 0


async def test_a_backup_of_before_does_not_bring_anybody_back(
    machine: Machine, server_18: str, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    course_id, (gone, mate) = await make_class(machine.database_url, 2)
    await teach(machine, course_id, [gone, mate])
    code, said = machine.run("backup", tmp_path / "b.zip")
    assert code == 0, said
    code, said = machine.run("erase-user", gone.hex, "--yes", gone.hex)
    assert code == 0, said
    marks = machine.data_dir / "tombstones"
    assert marks.stat().st_mode & 0o777 == 0o600
    assert gone.hex not in marks.read_text()

    new = Machine(await make_empty_database(server_18), make_valkey(), machine.data_dir)
    code, said = new.run("restore", tmp_path / "b.zip")
    assert (code, "1 erased people or courses came back" in said) == (0, True), said
    assert await list_holders(new, gone) == ["audit_log"]
    assert await count_rows(new.database_url, "events") == [10]


async def test_whom_another_system_still_knows_is_kept_out_until_let_in_again(machine: Machine) -> None:
    course_id, _ = await make_class(machine.database_url, 1)
    wanted = [(course_id.hex, "student")]
    async with erasing(machine) as eraser:
        people = People(eraser.pool, eraser.seal, Marker(machine.settings.make_tombstone_key))
        entered = await enter_by_identity(people, "jupyterhub", "hanako", wanted)
        assert entered is not None
        await eraser.erase_user(entered.user_id)
        with pytest.raises(AccessDenied, match="NB-1345"):
            await enter_by_identity(people, "jupyterhub", "hanako", wanted)
        assert await enter_by_identity(people, "jupyterhub", "taro", wanted) is not None
        code, said = machine.run("readmit", "jupyterhub", "hanako")
        assert code == 0, said
        again = await enter_by_identity(people, "jupyterhub", "hanako", wanted)
        assert again is not None
        assert again.user_id != entered.user_id
    code, said = machine.run("readmit", "jupyterhub", "hanako")
    assert (code, "NB-3023" in said) == (1, True), said


async def test_a_token_is_known_by_itself_alone(machine: Machine) -> None:
    course_id, (gone, _) = await make_class(machine.database_url, 2)
    async with erasing(machine) as eraser:
        people = People(eraser.pool, eraser.seal, Marker(machine.settings.make_tombstone_key))
        token = await people.create_staff_token(gone, course_id)
        await eraser.erase_user(gone)
        with pytest.raises(AccessDenied, match="NB-1345"):
            await people.find_person(token)
        assert await people.find_person(token[:-1] + ("A" if token[-1] != "A" else "B")) is None
        assert await people.find_person(f"nbp_staff_{uuid4().hex}_x") is None


async def test_who_has_left_the_roster_is_offered(machine: Machine) -> None:
    course_id, (gone, away, here) = await make_class(machine.database_url, 3)
    other_id, _ = await make_class(machine.database_url, 1)
    code, said = machine.run("erase-user", "--left", course_id.hex)
    assert (code, "Nobody has left" in said) == (0, True), said
    async with connect(machine.database_url) as connection:
        await connection.execute(
            "UPDATE enrolments SET role = 'former', left_at = now() WHERE user_id = ANY($1::uuid[])", [gone, away]
        )
        await connection.execute(
            "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, 'student')", away, other_id
        )
    code, said = machine.run("erase-user", "--left", course_id.hex)
    assert (code, "NB-3090" in said, gone.hex in said) == (1, True, True), said
    code, said = machine.run("erase-user", "--left", course_id.hex, "--yes", course_id.hex)
    assert code == 0, said
    async with connect(machine.database_url) as connection:
        left = await connection.fetch("SELECT id FROM users WHERE id = ANY($1::uuid[])", [gone, away, here])
    assert {row["id"] for row in left} == {away, here}
    code, said = machine.run("erase-user", "--left", "nowhere")
    assert (code, "NB-3023" in said) == (1, True), said


async def test_a_student_who_goes_on_while_they_are_erased_leaves_nothing(machine: Machine) -> None:
    course_id, (gone, mate) = await make_class(machine.database_url, 2)
    async with machine.open_worker() as first, machine.open_worker("worker-2") as second:
        await first.stream.ensure_groups()
        async with work(first, claim_idle_s=0.5), work(second, claim_idle_s=0.5), erasing(machine) as eraser:

            async def push() -> None:
                while True:
                    hand = make_event(gone, course_id, "help_request", data={"message": "?"})
                    await first.stream.append([*spread([gone, mate], course_id, 20), hand])
                    await asyncio.sleep(0.02)

            pushing = asyncio.create_task(push())
            await until(lambda: has_events(machine, 200))
            assert (await eraser.erase_user(gone))["events"] > 50
            before = await count_rows(machine.database_url, "events")
            await until(lambda: has_events(machine, before[0] + 100))
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)
            eraser.settle_s = 11
            await until(lambda: is_drained(first.stream))
            await eraser.finish_all()
            assert await Auditor(first.stream, Accounts(first.pool)).audit() == 0
    assert await list_holders(machine, gone) == ["audit_log"]
    async with connect(machine.database_url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM dead_letters") == 0


async def has_events(machine: Machine, count: int) -> bool:
    return (await count_rows(machine.database_url, "events"))[0] >= count
