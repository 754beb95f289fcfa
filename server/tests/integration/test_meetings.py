"""Class meetings: by button and by themselves, what the board shows of them, and what ends with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from nbpulse.migrations.runner import with_login
from nbpulse.records.meetings import Changed, keep_meetings
from stage import Stage, make_run
from stores import WORKER_PASSWORD, connect
from working import until


@pytest.fixture
async def worker_pool(stage_database: str) -> AsyncIterator[asyncpg.Pool]:
    url = with_login(stage_database, "nbpulse_worker", WORKER_PASSWORD)
    async with asyncpg.create_pool(url, min_size=1, max_size=2) as opened:
        yield opened


def path(stage: Stage, rest: str = "") -> str:
    return f"/api/v1/courses/{stage.course.id}/meetings{rest}"


async def start(stage: Stage) -> Any:
    return await stage.http.post(path(stage), json={}, headers=stage.staff)


async def end(stage: Stage) -> Any:
    return await stage.http.post(path(stage, "/end"), json={}, headers=stage.staff)


async def run(stage: Stage, students: int, *, ago: timedelta = timedelta(0)) -> list[str]:
    """So many new students run a cell, so long ago."""
    tokens = [(await stage.join(f"学生{number}"))["token"] for number in range(students)]
    for token in tokens:
        occurred_at = (datetime.now(UTC) - ago).isoformat()
        assert (await stage.post(token, make_run(occurred_at=occurred_at))).status_code == 202
    await stage.work()
    return tokens


async def age(stage: Stage, minutes: int) -> None:
    """Everything in this course, as it would be that much later."""
    async with connect(stage.database_url) as owner:
        for table, columns in (
            ("class_meetings", ("started_at", "ended_at")),
            ("learner_states", ("last_activity_at",)),
            ("events", ("occurred_at",)),
            ("help_requests", ("opened_at",)),
        ):
            # In UTC: Citus takes no `timestamptz - interval` of a column, which depends on the time zone.
            moved = ", ".join(
                f"{one} = ({one} AT TIME ZONE 'UTC' - interval '{minutes} minutes') AT TIME ZONE 'UTC'"
                for one in columns
            )
            await owner.execute(f"UPDATE {table} SET {moved} WHERE course_id = $1", stage.course.id)


async def keep(stage: Stage, pool: asyncpg.Pool, *, is_moving: bool = True) -> Changed:
    """As the worker does; other tests' courses in this database are left out of the answer."""
    changed = await keep_meetings(pool, [str(stage.course.id)] if is_moving else [])
    mine = {stage.course.id}
    return Changed(changed.course_ids & mine, [one for one in changed.withdrawals if one.course_id in mine])


async def shows_alerts(stage: Stage, kinds: list[str]) -> bool:
    return [one["kind"] for one in (await stage.snapshot())["alerts"]] == kinds


async def see_meeting(stage: Stage, *, is_ended: bool = False) -> dict[str, Any]:
    """The board's, once it shows one that goes on, or has ended."""
    async with asyncio.timeout(20):
        while True:
            found: dict[str, Any] | None = (await stage.snapshot())["meeting"]
            if found is not None and (found["ended_at"] is not None) == is_ended:
                return found
            await asyncio.sleep(0.05)


async def test_a_button_begins_and_ends_it_once(stage: Stage) -> None:
    assert (await stage.snapshot())["meeting"] is None
    refused = await end(stage)
    assert (refused.status_code, refused.json()["code"]) == (404, "NB-1208")
    first = await start(stage)
    assert first.status_code == 201
    again = await asyncio.gather(*(start(stage) for _ in range(5)))
    assert {answer.status_code for answer in again} == {200}
    assert {answer.json()["id"] for answer in again} == {first.json()["id"]}
    assert (await see_meeting(stage))["id"] == first.json()["id"]
    ended = await end(stage)
    assert (ended.status_code, ended.json()["ended_by"]) == (200, str(stage.teacher_id))
    assert (await see_meeting(stage, is_ended=True))["id"] == first.json()["id"]
    listed = (await stage.http.get(path(stage), headers=stage.staff)).json()["meetings"]
    assert [one["id"] for one in listed] == [first.json()["id"]]


async def test_a_title_that_no_store_can_hold_is_refused(stage: Stage) -> None:
    refused = await stage.http.post(path(stage), json={"title": "\x00"}, headers=stage.staff)
    assert (refused.status_code, refused.json()["code"]) == (422, "NB-1007")


async def test_students_may_not(stage: Stage) -> None:
    token = (await stage.join())["token"]
    student = {"Authorization": f"Bearer {token}"}
    for method, rest in (("GET", ""), ("POST", ""), ("POST", "/end")):
        answer = await stage.http.request(method, path(stage, rest), json={}, headers=student)
        assert answer.status_code == 403


async def test_three_students_begin_it_and_half_an_hour_of_quiet_ends_it(
    stage: Stage, worker_pool: asyncpg.Pool
) -> None:
    await run(stage, 2)
    assert not (await keep(stage, worker_pool)).course_ids
    await run(stage, 1)
    assert not (await keep(stage, worker_pool, is_moving=False)).course_ids
    assert (await keep(stage, worker_pool)).course_ids == {stage.course.id}
    assert not (await keep(stage, worker_pool)).course_ids
    (meeting,) = (await stage.http.get(path(stage), headers=stage.staff)).json()["meetings"]
    assert (meeting["started_by"], meeting["ended_at"]) == (None, None)
    assert len(meeting["notebook_ids"]) == 1
    await age(stage, 29)
    assert not (await keep(stage, worker_pool, is_moving=False)).course_ids
    await age(stage, 2)
    assert (await keep(stage, worker_pool, is_moving=False)).course_ids == {stage.course.id}
    (meeting,) = (await stage.http.get(path(stage), headers=stage.staff)).json()["meetings"]
    assert datetime.now(UTC) - datetime.fromisoformat(meeting["ended_at"]) > timedelta(minutes=30)
    # The next lesson begins by itself again.
    await run(stage, 3)
    assert (await keep(stage, worker_pool)).course_ids == {stage.course.id}


async def test_students_who_work_on_after_the_end_do_not_begin_it_again(
    stage: Stage, worker_pool: asyncpg.Pool
) -> None:
    await start(stage)
    await run(stage, 3)
    await end(stage)
    await run(stage, 3)
    await age(stage, 20)
    await run(stage, 3)
    assert not (await keep(stage, worker_pool)).course_ids
    await age(stage, 31)
    await run(stage, 3)
    assert (await keep(stage, worker_pool)).course_ids == {stage.course.id}


async def test_after_its_end_no_alert_fires_and_a_raised_hand_is_told(stage: Stage, worker_pool: asyncpg.Pool) -> None:
    await start(stage)
    (token,) = await run(stage, 1)
    help_id = uuid4()
    request = make_run(event_type="help_request", event_id=str(help_id), data={"message": "わかりません"})
    assert (await stage.post(token, request)).status_code == 202
    await stage.work()
    assert [one["kind"] for one in (await stage.snapshot())["alerts"]] == ["help"]
    assert not (await keep(stage, worker_pool)).withdrawals
    await end(stage)
    await until(lambda: shows_alerts(stage, []), 10)
    assert not (await keep(stage, worker_pool)).withdrawals, "its end can still be undone"
    await age(stage, 1)
    first, second = await keep(stage, worker_pool), await keep(stage, worker_pool)
    assert [one.event_id for one in first.withdrawals] == [one.event_id for one in second.withdrawals]
    await stage.parts.stream.append([*first.withdrawals, *second.withdrawals])
    await stage.work()
    assert not (await keep(stage, worker_pool)).withdrawals
    headers = {"Authorization": f"Bearer {token}"}
    inbox = (await stage.http.get("/api/v1/me/inbox?wait_s=0", headers=headers)).json()
    assert inbox["help"]["open"] is False
    (message,) = inbox["messages"]
    assert message["kind"] == "class_ended"
    assert "授業が終了" in message["text"]["ja"]
    later = (await stage.http.get(f"/api/v1/me/inbox?wait_s=0&after={inbox['after']}", headers=headers)).json()
    assert later["messages"] == []


async def reopen(stage: Stage, meeting_id: str) -> Any:
    return await stage.http.post(path(stage, f"/{meeting_id}/reopen"), json={}, headers=stage.staff)


async def test_an_end_can_be_undone_as_if_it_had_not_been(stage: Stage, worker_pool: asyncpg.Pool) -> None:
    meeting_id = (await start(stage)).json()["id"]
    (token,) = await run(stage, 1)
    assert (await stage.post(token, make_run(event_type="help_request", data={}))).status_code == 202
    await stage.work()
    before = (await stage.snapshot())["alerts"]
    assert [one["kind"] for one in before] == ["help"]
    await end(stage)
    await until(lambda: shows_alerts(stage, []), 20)
    answers = await asyncio.gather(*(reopen(stage, meeting_id) for _ in range(3)))
    assert {answer.status_code for answer in answers} == {200}
    assert {(answer.json()["ended_at"], answer.json()["ended_by"]) for answer in answers} == {(None, None)}
    await until(lambda: shows_alerts(stage, ["help"]), 20)
    assert (await stage.snapshot())["alerts"][0]["id"] == before[0]["id"]
    assert not (await keep(stage, worker_pool)).withdrawals
    async with connect(stage.database_url) as owner:
        rows = await owner.fetch(
            "SELECT action, actor_id FROM audit_log WHERE course_id = $1 AND action LIKE 'meeting%' ORDER BY id",
            stage.course.id,
        )
    assert [row["action"] for row in rows] == ["meeting_started", "meeting_ended", "meeting_reopened"]
    assert {row["actor_id"] for row in rows} == {stage.teacher_id}


async def test_an_end_of_long_ago_or_before_another_class_stays(stage: Stage, worker_pool: asyncpg.Pool) -> None:
    first = (await start(stage)).json()["id"]
    await end(stage)
    await start(stage)
    refused = await reopen(stage, first)
    assert (refused.status_code, refused.json()["code"]) == (409, "NB-1216")
    second = (await end(stage)).json()["id"]
    await age(stage, 1)
    assert (await reopen(stage, second)).json()["code"] == "NB-1216"
    for unknown in (str(uuid4()), "x"):
        assert (await reopen(stage, unknown)).status_code == 404


async def test_the_reason_is_ours_to_say(stage: Stage) -> None:
    (token,) = await run(stage, 1)
    for event_type, data in (("help_request", {}), ("help_cancel", {"reason": "class_ended"})):
        event = make_run(event_type=event_type, sequence=2, data=data)
        assert (await stage.post(token, event)).status_code == 202
    await stage.work()
    inbox = await stage.http.get("/api/v1/me/inbox?wait_s=0", headers={"Authorization": f"Bearer {token}"})
    assert (inbox.json()["help"]["open"], inbox.json()["messages"]) == (False, [])


async def test_what_began_before_the_meeting_is_no_alert_of_it(stage: Stage) -> None:
    token = (await stage.join())["token"]
    presence = make_run(event_type="presence", data={"state": "active"})
    for second in (100, 90, 80):
        occurred_at = (datetime.now(UTC) - timedelta(seconds=second)).isoformat()
        await stage.post(token, make_run(0, "error", occurred_at=occurred_at))
    await stage.post(token, presence)
    await stage.work()
    await until(lambda: shows_alerts(stage, ["stuck"]), 10)
    await start(stage)
    await until(lambda: shows_alerts(stage, []), 10)
    assert isinstance(UUID((await see_meeting(stage))["id"]), UUID)
