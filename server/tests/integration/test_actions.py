"""What staff do: one of two gets the claim, every board and the student see it, and nothing of it gets lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest

from boards import Board, follow, settle
from nbpulse.cache import Cache
from nbpulse.errors import Unavailable
from nbpulse.migrations.runner import with_login
from nbpulse.records.interventions import find_helped_hands
from stage import Stage, make_run, open_stage
from stores import WORKER_PASSWORD, connect
from working import until


@pytest.fixture
async def worker_pool(stage_database: str) -> AsyncIterator[asyncpg.Pool]:
    url = with_login(stage_database, "nbpulse_worker", WORKER_PASSWORD)
    async with asyncpg.create_pool(url, min_size=1, max_size=2) as opened:
        yield opened


async def add_staff(stage: Stage, name: str) -> dict[str, str]:
    """Another instructor's headers."""
    user_id = await stage.courses.ensure_teacher(
        stage.course.id, username=f"{name}-{uuid4().hex[:6]}", display_name=name
    )
    token = await stage.people.create_staff_token(user_id)
    return {"Authorization": f"Bearer {token}", "Cache-Control": "no-store"}


async def raise_hand(stage: Stage, student: dict[str, Any], cell: int = 0, **changes: Any) -> None:
    hand = make_run(cell, event_type="help_request", data={"message": "助けて"}, **changes)
    assert (await stage.post(student["token"], [make_run(cell), hand])).status_code == 202
    await stage.work()


async def find_hand(stage: Stage, student: dict[str, Any]) -> dict[str, Any]:
    """The student's alert on the board."""
    board = await stage.snapshot()
    places = {one["i"]: one["id"] for one in board["students"]}
    found = [one for one in board["alerts"] if one["kind"] == "help" and places[one["i"]] == student["user_id"]]
    assert found, board["alerts"]
    return dict(found[0])


async def act(
    stage: Stage, alert: dict[str, Any], student: dict[str, Any], action: str, headers: Any = None, **body: Any
) -> httpx2.Response:
    return await stage.http.post(
        f"/api/v1/courses/{stage.course.id}/alerts/{alert['id']}/{action}",
        json={"id": str(uuid4()), "user_id": student["user_id"], "rule": alert["kind"], "cell": alert["cell"]} | body,
        headers=headers or stage.staff,
    )


async def forget_time(stage: Stage, student: dict[str, Any], seconds: int) -> None:
    """What was done for this student, as it would be that much later."""
    async with connect(stage.database_url) as owner:
        await owner.execute(
            "UPDATE interventions SET at = at - $2::interval, until_at = until_at - $2::interval WHERE user_id = $1",
            *(UUID(student["user_id"]), timedelta(seconds=seconds)),
        )


async def test_of_two_at_once_one_gets_the_claim_and_the_other_is_told_who(stage: Stage) -> None:
    student = await stage.join()
    await raise_hand(stage, student)
    alert = await find_hand(stage, student)
    staff = [await add_staff(stage, name) for name in ("田中", "佐藤", "Lee")]
    answers = await asyncio.gather(*(act(stage, alert, student, "claim", one) for one in staff))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409]
    (winner,) = [answer.json()["claim"] for answer in answers if answer.status_code == 200]
    for answer in answers:
        if answer.status_code == 409:
            assert (answer.json()["code"], answer.json()["claim"]) == ("NB-1331", winner)
    assert winner["name"] in ("田中", "佐藤", "Lee")


async def test_an_action_sent_again_changes_nothing(stage: Stage) -> None:
    student = await stage.join()
    await raise_hand(stage, student)
    alert = await find_hand(stage, student)
    once = {"id": str(uuid4())}
    first = await act(stage, alert, student, "claim", **once)
    again = await asyncio.gather(*(act(stage, alert, student, "claim", **once) for _ in range(4)))
    assert {answer.text for answer in again} == {first.text}
    log = (await stage.http.get(f"/api/v1/courses/{stage.course.id}/interventions", headers=stage.staff)).json()
    assert [one["action"] for one in log["interventions"]] == ["claim"]


async def test_a_claim_made_at_one_api_is_seen_at_the_other_and_by_the_student_within_a_second(
    stage: Stage, stage_database: str, embedded_valkey: str
) -> None:
    student = await stage.join()
    await raise_hand(stage, student)
    async with open_stage(stage_database, embedded_valkey) as other:
        other.course, other.teacher_token = stage.course, stage.teacher_token
        alert = await find_hand(stage, student)
        first = await other.snapshot()
        assert alert["id"] in {one["id"] for one in first["alerts"]}, "both give the alert the same name"
        board = Board(first)
        inbox = await stage.read_inbox(student)
        assert inbox["help"]["coming"] is None
        async with other.watch(first) as socket:
            waiting = asyncio.create_task(other.read_inbox(student, inbox["after"], wait_s=9))
            await asyncio.sleep(0.5)
            assert not waiting.done()
            headers = await add_staff(stage, "田中")
            started = time.monotonic()
            assert (await act(stage, alert, student, "claim", headers)).status_code == 200
            await follow(socket, board, lambda b: (b.alerts[alert["id"]].get("claim") or {}).get("name") == "田中")
            assert time.monotonic() - started < 1
            heard = await waiting
            assert time.monotonic() - started < 1
    assert heard["help"]["coming"]["name"] == "田中"
    assert (heard["help"]["open"], heard["help"]["place"]) == (True, 1)
    assert heard["after"] > inbox["after"]


async def test_an_api_that_dies_before_it_tells_leaves_every_board_right(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = await stage.join()
    await raise_hand(stage, student)
    alert = await find_hand(stage, student)
    first = await stage.snapshot()
    board = Board(first)

    async def die(*_: Any) -> None:
        raise Unavailable("NB-2001")

    monkeypatch.setattr(Cache, "announce_actions", die)
    async with stage.watch(first) as socket:
        started = time.monotonic()
        assert (await act(stage, alert, student, "claim")).status_code == 200
        await follow(socket, board, lambda b: b.alerts[alert["id"]].get("claim") is not None)
        assert time.monotonic() - started < 3.5, "the hub looks every 2 s"
    await asyncio.sleep(0.3)
    assert (await find_hand(stage, student))["claim"]["by"] == str(stage.teacher_id)
    assert (await stage.read_inbox(student))["help"]["coming"]["name"] == "teacher"


async def test_helping_takes_the_hand_down_and_undoing_puts_it_up_again(
    stage: Stage, worker_pool: asyncpg.Pool
) -> None:
    student = await stage.join()
    await raise_hand(stage, student)
    alert = await find_hand(stage, student)
    first = await stage.snapshot()
    board = Board(first)
    async with stage.watch(first) as socket:
        answer = await act(stage, alert, student, "helped")
        assert answer.json()["helped_at"] is not None
        await follow(socket, board, lambda b: not b.alerts)
        assert board.students[0]["quiet"] > time.time() * 1000 + 200_000
        assert (await stage.read_inbox(student))["help"]["open"] is False
        assert not await mine(stage, worker_pool), "for 10 s it can be undone"

        assert (await act(stage, alert, student, "undo")).json()["helped_at"] is None
        await follow(socket, board, lambda b: alert["id"] in b.alerts)
        assert (await stage.read_inbox(student))["help"]["open"] is True
        refused = await act(stage, alert, student, "undo")
        assert (refused.status_code, refused.json()["code"]) == (409, "NB-1332")

        await act(stage, alert, student, "helped")
        await follow(socket, board, lambda b: not b.alerts)
        await forget_time(stage, student, 12)
        withdrawals = await mine(stage, worker_pool)
        await stage.parts.stream.append([*withdrawals, *await mine(stage, worker_pool)])
        await stage.work()
        assert not await mine(stage, worker_pool)
        await settle(socket, board)
        assert not board.alerts
        # What the student asks next is a new matter, quiet or not.
        await raise_hand(stage, student, occurred_at=(datetime.now(UTC) + timedelta(seconds=1)).isoformat())
        await follow(socket, board, lambda b: len(b.alerts) == 1)
    assert (await stage.read_inbox(student))["help"] | {"since": 0} == {
        "open": True,
        "since": 0,
        "coming": None,
        "place": 1,
    }
    async with connect(stage.database_url) as owner:
        rows = await owner.fetch(
            "SELECT closed_at IS NULL AS is_open FROM help_requests WHERE user_id = $1 ORDER BY opened_at",
            UUID(student["user_id"]),
        )
        reasons = await owner.fetch(
            "SELECT data->>'reason' FROM events WHERE user_id = $1 AND event_type = 'help_cancel'",
            UUID(student["user_id"]),
        )
    assert [row["is_open"] for row in rows] == [False, True]
    assert [row[0] for row in reasons] == ["helped"]


async def mine(stage: Stage, pool: asyncpg.Pool) -> list[Any]:
    return [one for one in await find_helped_hands(pool) if one.course_id == stage.course.id]


async def test_a_snoozed_alert_comes_back_when_its_time_is_over(stage: Stage) -> None:
    student = await stage.join()
    await raise_hand(stage, student)
    alert = await find_hand(stage, student)
    answer = await act(stage, alert, student, "snooze", minutes=1)
    assert abs(answer.json()["snoozed_until"] - time.time() * 1000 - 60_000) < 10_000
    await until(lambda: shows(stage, []), 5)
    assert (await stage.read_inbox(student))["help"]["open"] is True, "a student's hand is theirs"
    async with open_stage(stage.database_url, stage.redis_url) as other:
        other.course, other.teacher_token = stage.course, stage.teacher_token
        await forget_time(stage, student, 60)
        await until(lambda: shows(other, [alert["id"]]), 5)


async def shows(stage: Stage, alert_ids: list[str]) -> bool:
    return [one["id"] for one in (await stage.snapshot())["alerts"]] == alert_ids


async def test_the_place_in_the_queue_moves_up_without_a_word(stage: Stage) -> None:
    first, second = await stage.join("first"), await stage.join("second")
    await raise_hand(stage, first)
    await raise_hand(stage, second)
    assert [(await stage.read_inbox(one))["help"]["place"] for one in (first, second)] == [1, 2]
    inbox = await stage.read_inbox(second)
    waiting = asyncio.create_task(stage.read_inbox(second, inbox["after"], wait_s=9))
    await asyncio.sleep(0.3)
    started = time.monotonic()
    await act(stage, await find_hand(stage, first), first, "helped")
    moved = await waiting
    assert moved["help"]["place"] == 1
    assert time.monotonic() - started < 4


async def test_the_log_says_who_did_what_and_whether_the_student_got_past_it(stage: Stage) -> None:
    student = await stage.join()
    await raise_hand(stage, student, cell=1)
    alert = await find_hand(stage, student)
    path = f"/api/v1/courses/{stage.course.id}/interventions"
    await act(stage, alert, student, "claim")
    await act(stage, alert, student, "note", text="引用符を忘れる\n(前回も)")
    await act(stage, alert, student, "helped")
    await act(stage, alert, student, "undo")
    log = (await stage.http.get(path, headers=stage.staff)).json()["interventions"]
    assert [one["action"] for one in log] == ["undo", "helped", "note", "claim"]
    assert [one["is_undone"] for one in log] == [False, True, False, False]
    assert [one["note"] for one in log] == [None, None, "引用符を忘れる\n(前回も)", None]
    assert {(one["rule"], one["cell_id"], one["name"], one["got_past"]) for one in log} == {
        ("help", "cell-1", "teacher", False)
    }
    later = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    await stage.post(student["token"], make_run(1, occurred_at=later, sequence=9))
    await stage.work()
    log = (await stage.http.get(path, headers=stage.staff)).json()["interventions"]
    assert {one["got_past"] for one in log} == {True}
    older = (await stage.http.get(path, params={"before": log[1]["at"], "limit": 1}, headers=stage.staff)).json()
    assert [one["action"] for one in older["interventions"]] == ["note"]
    async with connect(stage.database_url) as owner:
        (note,) = await owner.fetch(
            "SELECT note FROM interventions WHERE note IS NOT NULL AND course_id = $1", stage.course.id
        )
    assert "引用符" not in note["note"]


async def test_only_staff_act_and_only_on_their_own_students(stage: Stage) -> None:
    student = await stage.join()
    await raise_hand(stage, student)
    alert = await find_hand(stage, student)
    as_student = {"Authorization": f"Bearer {student['token']}"}
    assert (await act(stage, alert, student, "claim", as_student)).status_code == 403
    nobody = await act(stage, alert, {"user_id": str(uuid4())}, "claim")
    assert (nobody.status_code, nobody.json()["code"]) == (404, "NB-1330")
    itself = await act(stage, alert, {"user_id": str(stage.teacher_id)}, "claim")
    assert itself.status_code == 404
    async with open_stage(stage.database_url, stage.redis_url) as other:
        theirs = await other.join()
        assert (await act(stage, alert, theirs, "claim")).status_code == 404
    for action, body in (("note", {}), ("claim", {"text": "x"}), ("dance", {}), ("snooze", {"minutes": 0})):
        assert (await act(stage, alert, student, action, **body)).status_code == 422
