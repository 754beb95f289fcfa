"""Class meetings as they are held on a stage: begun, worked in, helped in, and their reports shared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from stage import Stage, make_run
from stores import connect

AGO_S = 600
"""The meeting began so long ago."""


async def begin(stage: Stage, ago_s: float = AGO_S, ended_ago_s: float | None = None) -> UUID:
    """A meeting that began so long ago; it goes on, or has ended."""
    now = datetime.now(UTC)
    async with connect(stage.database_url) as owner:
        meeting_id: UUID = await owner.fetchval(
            "INSERT INTO class_meetings (course_id, started_at, ended_at) VALUES ($1, $2, $3) RETURNING id",
            *(stage.course.id, now - timedelta(seconds=ago_s)),
            None if ended_ago_s is None else now - timedelta(seconds=ended_ago_s),
        )
    return meeting_id


async def run(stage: Stage, student: dict[str, Any], *runs: tuple[float, int, str]) -> None:
    """A student's runs: so many seconds ago, on which cell, how it ended."""
    now = datetime.now(UTC)
    events = [
        make_run(cell, status, occurred_at=(now - timedelta(seconds=ago)).isoformat(), sequence=number)
        for number, (ago, cell, status) in enumerate(runs)
    ]
    assert (await stage.post(student["token"], events)).status_code == 202
    await stage.work()


async def raise_hand(stage: Stage, student: dict[str, Any], ago_s: float) -> None:
    at = (datetime.now(UTC) - timedelta(seconds=ago_s)).isoformat()
    event = make_run(1, event_type="help_request", occurred_at=at, data={"message": "わかりません"})
    assert (await stage.post(student["token"], event)).status_code == 202
    await stage.work()


async def help_student(stage: Stage, student: dict[str, Any], action: str = "helped") -> None:
    answer = await stage.http.post(
        f"/api/v1/courses/{stage.course.id}/alerts/{uuid4()}/{action}",
        headers=stage.staff,
        json={"id": str(uuid4()), "user_id": student["user_id"], "rule": "help", "cell": "cell-1"},
    )
    assert answer.status_code == 200, answer.text


def report_path(stage: Stage, meeting_id: UUID, rest: str = "") -> str:
    return f"/api/v1/courses/{stage.course.id}/meetings/{meeting_id}/report{rest}"


async def teach(stage: Stage, students: int = 6) -> list[dict[str, Any]]:
    """A class in its meeting: all pass cell 0, fail on cell 1 and pass it 100 s later; the last two stay stuck."""
    joined = [await stage.join(f"学生 {number}", student_number=f"nr-{number}") for number in range(students)]
    for one in joined[:-2]:
        await run(stage, one, (500, 0, "ok"), (450, 1, "error"), (400, 1, "ok"))
    for one in joined[-2:]:
        await run(stage, one, (500, 0, "ok"), (450, 1, "error"), (440, 1, "error"), (430, 1, "error"))
    return joined


async def share(stage: Stage, meeting_id: UUID, **wanted: Any) -> dict[str, Any]:
    answer = await stage.http.post(report_path(stage, meeting_id, "/shares"), headers=stage.staff, json=wanted)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made
