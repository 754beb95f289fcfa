"""A course's alert rules by API: what is refused, when boards follow, and what a class of the past would have shown."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from nbpulse.records.rules import read_rules
from stage import Stage, make_run, serve_api
from stores import connect


def address(stage: Stage, rest: str = "") -> str:
    return f"/api/v1/courses/{stage.course.id}/rules{rest}"


async def put(stage: Stage, **rules: Any) -> Any:
    return await stage.http.put(address(stage), headers=stage.staff, json={"rules": rules})


async def fail_twice(stage: Stage, student: dict[str, Any]) -> None:
    now = datetime.now(UTC)
    runs = [make_run(2, "error", occurred_at=(now - timedelta(seconds=s)).isoformat()) for s in (40, 20)]
    assert (await stage.post(student["token"], runs)).status_code == 202
    await stage.work()


async def find_kinds(stage: Stage, url: str = "") -> list[str]:
    answer = await stage.http.get(f"{url}/api/v1/courses/{stage.course.id}/live", headers=stage.staff)
    return [alert["kind"] for alert in answer.json()["alerts"]]


async def test_what_is_left_out_is_as_by_default_and_only_the_difference_is_kept(stage: Stage) -> None:
    shown = (await stage.http.get(address(stage), headers=stage.staff)).json()
    assert shown["rules"] == shown["defaults"]
    assert shown["may_change"] is True
    assert shown["limits"]["stuck_error_count"] == {"least": 2, "most": 15}
    answer = await put(stage, stuck_error_count=5, off=["idle"])
    assert answer.status_code == 200, answer.text
    assert answer.json()["rules"] == shown["defaults"] | {"stuck_error_count": 5, "off": ["idle"]}
    async with connect(stage.database_url) as owner:
        stored = await owner.fetchval("SELECT alert_rules FROM courses WHERE id = $1", stage.course.id)
        noted = await owner.fetchval(
            "SELECT facts->>'changed' FROM audit_log WHERE action = 'rules_changed' AND course_id = $1", stage.course.id
        )
    assert read_rules(stored).stuck_error_count == 5
    assert "idle_after_ms" not in stored
    assert noted == "off,stuck_error_count"
    assert (await put(stage)).json()["rules"] == shown["defaults"]


@pytest.mark.parametrize(
    ("rules", "code", "words"),
    [
        ({"stuck_error_count": 1}, "NB-1250", "stuck_error_count"),
        ({"off": ["help"]}, "NB-1251", "help"),
        ({"behind_clear_ratio": 0.3}, "NB-1252", "behind_ratio"),
        ({"stuck_errors": 3}, "NB-1007", "stuck_errors"),
        ({"idle_after_ms": "soon"}, "NB-1007", "idle_after_ms"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_its_name(
    stage: Stage, rules: dict[str, Any], code: str, words: str
) -> None:
    answer = await put(stage, **rules)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert words in answer.text
    shown = (await stage.http.get(address(stage), headers=stage.staff)).json()
    assert shown["rules"] == shown["defaults"]


async def test_open_boards_of_every_process_follow(stage: Stage) -> None:
    student = await stage.join()
    await fail_twice(stage, student)
    async with serve_api(stage.database_url, stage.redis_url) as (url, _):
        for where in ("", url):
            assert await find_kinds(stage, where) == []
        assert (await put(stage, stuck_error_count=2, stuck_after_ms=0)).status_code == 200
        async with asyncio.timeout(30):
            for where in ("", url):
                while await find_kinds(stage, where) != ["stuck"]:  # noqa: ASYNC110 - another process tells
                    await asyncio.sleep(0.1)


async def test_a_class_of_the_past_says_what_rules_would_have_shown(stage: Stage) -> None:
    nothing = await stage.http.post(address(stage, "/preview"), headers=stage.staff, json={"rules": {}})
    assert (nothing.status_code, nothing.json()["code"]) == (404, "NB-1253")
    students = [await stage.join(f"学生 {n}", student_number=str(n)) for n in range(4)]
    async with connect(stage.database_url) as owner:
        await owner.execute(
            "INSERT INTO class_meetings (course_id, started_at, ended_at)"
            " VALUES ($1, now() - interval '10 minutes', now() + interval '1 second')",
            stage.course.id,
        )
    now = datetime.now(UTC)
    for student in students:
        runs = [make_run(0, occurred_at=(now - timedelta(seconds=400)).isoformat())]
        assert (await stage.post(student["token"], runs)).status_code == 202
    runs = [make_run(2, "error", occurred_at=(now - timedelta(seconds=s)).isoformat()) for s in (300, 260, 220, 100)]
    assert (await stage.post(students[0]["token"], runs)).status_code == 202
    await stage.work()

    async def count(**rules: Any) -> dict[str, tuple[int, int]]:
        answer = await stage.http.post(address(stage, "/preview"), headers=stage.staff, json={"rules": rules})
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert (told["events"], told["students"], told["meeting"]["is_whole"]) == (8, 4, True)
        return {one["kind"]: (one["fired"], one["students"]) for one in told["rules"]}

    usual = await count()
    assert usual["stuck"] == (1, 1)
    assert usual["help"] == usual["cell_hot"] == (0, 0)
    assert (await count(stuck_error_count=5))["stuck"] == (0, 0)
    without = await count(off=["stuck"])
    assert (without["stuck"], without["same_error"]) == ((0, 0), (1, 1)), "an error keeps its group in the ledger"
    wrong = {"rules": {}, "meeting_id": str(UUID(int=5))}
    refused = await stage.http.post(address(stage, "/preview"), headers=stage.staff, json=wrong)
    assert (refused.status_code, refused.json()["code"]) == (404, "NB-1201")
