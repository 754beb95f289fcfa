"""The audit log: numbered without a gap, chained, and changed by nobody."""

from __future__ import annotations

import asyncio
import hashlib
from uuid import uuid4

import asyncpg
import pytest

from nbpulse.migrations.runner import with_login
from nbpulse.records.audit import note_audit
from stores import AUDIT_TEXT, WORKER_PASSWORD, connect, create_database


@pytest.fixture(scope="module")
def database_url(embedded_postgres: str) -> str:
    return asyncio.run(create_database(embedded_postgres))


@pytest.fixture
def api_url(database_url: str) -> str:
    return with_login(database_url, "nbpulse_api", WORKER_PASSWORD)


async def read_chain(database_url: str) -> list[tuple[int, str, bytes]]:
    async with connect(database_url) as owner:
        rows = await owner.fetch(f"SELECT id, {AUDIT_TEXT} AS text, link FROM audit_log ORDER BY id")
    return [tuple(row) for row in rows]


async def test_rows_written_at_once_are_numbered_without_a_gap_and_chained(database_url: str, api_url: str) -> None:
    async def write(count: int, *, is_kept: bool = True) -> None:
        async with connect(api_url) as connection:
            for number in range(count):
                transaction = connection.transaction()
                await transaction.start()
                await connection.execute(f"SET LOCAL app.current_user_id = '{uuid4()}'")
                await note_audit(connection, "board_viewed", course_id=uuid4(), facts={"number": number, "kind": "表"})
                await (transaction.commit() if is_kept else transaction.rollback())

    before = len(await read_chain(database_url))
    await asyncio.gather(*(write(25) for _ in range(4)), write(25, is_kept=False))
    chain = await read_chain(database_url)
    assert [number for number, _, _ in chain] == list(range(1, before + 101))
    last = b""
    for number, text, link in chain:
        assert link == hashlib.sha256(last + text.encode()).digest(), number
        last = link


async def test_the_actor_is_who_asks_and_each_sees_what_is_about_them(database_url: str, api_url: str) -> None:
    teacher, student = uuid4(), uuid4()

    async def read_as(person: object) -> list[tuple[object, ...]]:
        async with connect(api_url) as connection, connection.transaction():
            await connection.execute(f"SET LOCAL app.current_user_id = '{person or ''}'")
            rows = await connection.fetch("SELECT actor_id, action, subject_id FROM audit_log")
            return [tuple(row) for row in rows]

    async with connect(api_url) as connection:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL app.current_user_id = '{teacher}'")
            await note_audit(connection, "student_viewed", subject_id=student)
        async with connection.transaction():
            await note_audit(connection, "access_refused")
    expected = [(teacher, "student_viewed", student)]
    assert await read_as(teacher) == expected
    assert await read_as(student) == expected
    assert await read_as(uuid4()) == []
    assert await read_as(None) == []
    assert (await read_chain(database_url))[-1][1].split(", ")[2:4] == ["null", '"access_refused"']


async def test_nobody_changes_or_removes_a_row(database_url: str, api_url: str) -> None:
    worker_url = with_login(database_url, "nbpulse_worker", WORKER_PASSWORD)
    async with connect(api_url) as connection:
        await note_audit(connection, "access_refused")
    for url in (api_url, worker_url, database_url):  # the last one is a superuser's
        async with connect(url) as connection:
            for statement in ("UPDATE audit_log SET facts = '{}'", "DELETE FROM audit_log", "TRUNCATE audit_log"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement)
    for url in (api_url, worker_url):
        async with connect(url) as connection:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute("INSERT INTO audit_log (id, action, link) VALUES (99, 'joined', 'x')")


async def test_facts_are_small(api_url: str) -> None:
    async with connect(api_url) as connection:
        with pytest.raises(asyncpg.CheckViolationError):
            await note_audit(connection, "access_refused", facts={"path": "x" * 2001})
