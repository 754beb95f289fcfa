"""Two users that prove to be one person: counted once, in every table, also for what is still on its way."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from nbpulse.crypto import EncryptedField
from nbpulse.errors import InvalidInput
from nbpulse.records.merging import merge_users
from stage import KEY, Stage, make_run


async def read(stage: Stage, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(stage.database_url)
    try:
        return [tuple(row) for row in await connection.fetch(statement, *arguments)]
    finally:
        await connection.close()


async def merge(stage: Stage, keep: str, drop: str) -> int:
    async with asyncpg.create_pool(stage.database_url, min_size=1, max_size=1) as pool:
        return await merge_users(pool, EncryptedField(KEY), keep_id=UUID(keep), drop_id=UUID(drop))


async def test_what_both_users_said_to_the_notice_is_the_one_s_history(stage: Stage) -> None:
    first, second = await stage.join(notice_version=1), await stage.join(notice_version=1)
    await merge(stage, first["user_id"], second["user_id"])
    rows = await read(stage, "SELECT user_id, count(*) FROM consents WHERE course_id = $1 GROUP BY 1", stage.course.id)
    assert rows == [(UUID(first["user_id"]), 2)]
    assert (await stage.post(second["token"], make_run())).status_code == 202


async def test_one_person_under_two_users_is_counted_once(stage: Stage) -> None:
    first = await stage.join(student_number="s1")
    second = await stage.join(student_number="s1")
    assert second["user_id"] != first["user_id"]
    session = "0b9f3c1a-0c55-4a53-8a53-9c5d7c0a4e11"
    shared = make_run(0, "error", session_id=session)
    ours = [shared, make_run(1, session_id=session)]
    theirs = [shared, make_run(1, "error"), make_run(2, "error"), make_run(2)]
    theirs.append(make_run(0, event_type="help_request", data={"message": "助けて"}))
    assert (await stage.post(first["token"], ours)).status_code == 202
    assert (await stage.post(second["token"], theirs)).status_code == 202
    await stage.work()
    waiting = make_run(3)
    assert (await stage.post(second["token"], waiting)).status_code == 202

    assert await merge(stage, first["user_id"], second["user_id"]) == 4
    await stage.work()  # what was still in the stream for the second user

    keep, course = UUID(first["user_id"]), stage.course.id
    ledger = await read(stage, "SELECT user_id, event_id, ordinal FROM events WHERE course_id = $1", course)
    assert {row[0] for row in ledger} == {keep}
    assert len({row[1] for row in ledger}) == len({row[2] for row in ledger}) == len(ledger) == 7
    assert await read(stage, "SELECT count(*) FROM event_ids WHERE user_id = $1", keep) == [(7,)]
    cells = await read(
        stage,
        "SELECT user_id, cell_id, attempt_count, error_count FROM learner_cells WHERE course_id = $1 ORDER BY cell_id",
        course,
    )
    assert [(row[1], row[2], row[3]) for row in cells if row[0] == keep] == [
        ("cell-0", 1, 1),
        ("cell-1", 2, 1),
        ("cell-2", 2, 1),
        ("cell-3", 1, 0),
    ]
    assert len(cells) == 4
    counted = await read(
        stage, "SELECT sum(cell_executions), sum(error_count) FROM learning_sessions WHERE course_id = $1", course
    )
    assert counted == [(6, 3)]
    counts = """SELECT cell_id, student_count FROM notebook_cells c JOIN notebooks n ON n.id = c.notebook_id
        WHERE n.course_id = $1 ORDER BY 1"""
    assert await read(stage, counts, course) == [(f"cell-{n}", 1) for n in range(4)]
    board = await stage.snapshot()
    assert [student["id"] for student in board["students"]] == [first["user_id"]]
    assert [alert["text"] for alert in board["alerts"]] == ["助けて"]

    again = await stage.post(second["token"], make_run(4))
    assert again.status_code == 202, "the second machine goes on as the same person"
    await stage.work()
    assert await read(stage, "SELECT DISTINCT user_id FROM events WHERE course_id = $1", course) == [(keep,)]


async def test_merging_a_stranger_or_oneself_is_refused_and_changes_nothing(stage: Stage) -> None:
    joined = await stage.join()
    for other, code in ((joined["user_id"], "NB-1022"), ("5f0f1e5e-9a57-4a0e-9f0b-6d1c7a0d8b11", "NB-1021")):
        with pytest.raises(InvalidInput) as refused:
            await merge(stage, joined["user_id"], other)
        assert refused.value.code == code


async def test_the_board_asks_whether_two_are_one_and_shows_one_once_they_are(stage: Stage) -> None:
    first = await stage.join(student_number="s7")
    second = await stage.join(student_number="s7")
    board = await stage.snapshot()
    asked = {student["id"]: student["same"] for student in board["students"]}
    assert asked == {first["user_id"]: None, second["user_id"]: first["user_id"]}
    assert {student["num"] for student in board["students"]} == {"s7", second["username"]}
    async with stage.watch(board) as socket:
        await merge(stage, first["user_id"], second["user_id"])
        async with asyncio.timeout(10):
            while json.loads(await socket.recv())["t"] != "resync":
                pass
        assert [student["id"] for student in (await stage.snapshot())["students"]] == [first["user_id"]]
