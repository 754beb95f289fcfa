"""Where data has gaps, from what students post to what staff are told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from stage import Stage, make_run
from stores import connect


def make_sitting(run_count: int, *, at: datetime, without: frozenset[int] = frozenset()) -> list[dict[str, Any]]:
    """A sitting's events as a client sends them, but for the numbers of `without`."""
    session = str(uuid4())
    started = {"event_type": "session_start", "cell_id": None, "cell_index": None, "data": {}}
    events = [make_run(sequence=1, session_id=session, occurred_at=at.isoformat(), **started)]
    for n in range(run_count):
        when = (at + timedelta(seconds=n)).isoformat()
        events.append(make_run(n % 5, sequence=n + 2, session_id=session, occurred_at=when))
        events[-1]["data"]["execution_count"] = n + 1
    return [one for one in events if one["sequence"] not in without]


async def ask(stage: Stage, token: str | None = None) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {token}"} if token else stage.staff
    answer = await stage.http.get(f"/api/v1/courses/{stage.course.id}/integrity", headers=headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["integrity"]
    return found


async def settle(stage: Stage) -> None:
    """As if everything had come five minutes ago: what is on its way is not missed yet."""
    async with connect(stage.database_url) as owner:
        await owner.execute("UPDATE events SET received_at = $1", datetime.now(UTC) - timedelta(minutes=5))


async def test_staff_are_told_what_is_missing_and_students_are_not(stage: Stage) -> None:
    honest, hiding = await stage.join("誠"), await stage.join("隠")
    at = datetime.now(UTC) - timedelta(minutes=10)
    await stage.post(honest["token"], make_sitting(30, at=at))
    hidden = make_sitting(30, at=at, without=frozenset(range(10, 20)))
    await stage.post(hiding["token"], hidden)
    await stage.work()
    assert await ask(stage) == [], "it may still be on its way"
    await settle(stage)
    found = await ask(stage)
    assert {(one["username"], one["sign"], one["count"]) for one in found} == {
        (hiding["username"], "events_missing", 10),
        (hiding["username"], "runs_missing", 10),
    }
    refused = await stage.http.get(
        f"/api/v1/courses/{stage.course.id}/integrity", headers={"Authorization": f"Bearer {hiding['token']}"}
    )
    assert refused.status_code == 403


async def test_what_comes_late_after_all_closes_the_gap(stage: Stage) -> None:
    student = await stage.join()
    whole = make_sitting(30, at=datetime.now(UTC) - timedelta(minutes=10))
    await stage.post(student["token"], [one for one in whole if one["sequence"] not in range(10, 20)])
    await stage.work()
    await settle(stage)
    assert len(await ask(stage)) == 2
    await stage.post(student["token"], whole)
    await stage.work()
    await settle(stage)
    assert await ask(stage) == []


async def test_a_clock_half_an_hour_ahead_is_told_and_its_events_are_taken(stage: Stage) -> None:
    student = await stage.join()
    runs = make_sitting(10, at=datetime.now(UTC) + timedelta(minutes=30))
    answer = await stage.post(student["token"], runs)
    assert {one["status"] for one in answer.json()["results"]} == {"accepted"}
    await stage.work()
    await settle(stage)
    [sign] = await ask(stage)
    assert sign["sign"] == "clock_wrong"
    assert 1_780 < sign["off_s"] < 1_820


async def test_whatever_a_client_writes_into_its_data_the_question_is_answered(stage: Stage) -> None:
    student = await stage.join()
    nonsense: list[Any] = ["x", -1, 10**30, 1.5, None, [], {"a": 1}, "９", True]
    told = [{"status": "events_lost", "event_count": one, "clock_ahead_ms": one} for one in nonsense]
    events = [make_run(sequence=n, event_type="kernel_status", data=data) for n, data in enumerate(told, 1)]
    await stage.post(student["token"], events)
    await stage.work()
    await settle(stage)
    assert await ask(stage) == []
