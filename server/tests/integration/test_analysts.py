"""An analyst of a course: its history without names, and nothing else, by the API and by PostgreSQL."""

from __future__ import annotations

import csv
import io
from typing import Any
from uuid import UUID, uuid4

import pytest

from nbpulse.identity import ask_as
from stage import Stage, make_run
from stores import connect

QUESTIONS = ("sessions", "progress", "failing-cells", "common-errors", "slow-cells", "recovery-times")


async def become_analyst(stage: Stage) -> dict[str, str]:
    """Invited by the instructor, accepted as a new person: the headers of their session."""
    invited = await stage.http.post(
        f"/api/v1/courses/{stage.course.id}/invitations", headers=stage.staff, json={"role": "analyst", "teams": []}
    )
    assert invited.status_code == 201, invited.text
    body = {"code": invited.json()["code"], "username": f"analyst-{uuid4().hex[:8]}", "display_name": "研究者"}
    answer = await stage.http.post("/api/v1/invitations/accept", json=body, headers={"Origin": stage.url})
    assert answer.status_code in (200, 201), answer.text
    cookies = "; ".join(f"{name}={value}" for name, value in answer.cookies.items())
    stage.http.cookies.clear()
    return {"Cookie": cookies}


async def work(stage: Stage, students: int) -> list[dict[str, Any]]:
    """So many students fail on one cell each and pass it, in a notebook with their name on it."""
    joined = [
        await stage.join(f"name-{number}-{uuid4().hex[:6]}", student_number=f"n{number}") for number in range(students)
    ]
    for number, one in enumerate(joined):
        run = {"notebook_path": f"kadai-name-{number}.ipynb"} if number == 0 else {}
        await stage.post(one["token"], [make_run(2, "error", **run), make_run(2, **run), make_run(3)])
    await stage.work()
    return joined


async def ask(stage: Stage, headers: dict[str, str], question: str, **query: str) -> Any:
    answer = await stage.http.get(f"/api/v1/courses/{stage.course.id}/{question}", params=query, headers=headers)
    assert answer.status_code == 200, (question, answer.text)
    return answer.text if query.get("format") == "csv" else answer.json()


async def test_an_analyst_reads_the_history_without_names_in_every_form(stage: Stage) -> None:
    joined = await work(stage, 6)
    analyst = await become_analyst(stage)
    secrets = [word for one in joined for word in (one["user_id"], UUID(one["user_id"]).hex, one["username"])]
    secrets += [f"name-{number}" for number in range(6)]
    rows = {}
    for question in QUESTIONS:
        for form in ("json", "ndjson", "csv"):
            text = str(await ask(stage, analyst, question, format=form)) if form != "ndjson" else ""
            if form == "ndjson":
                answer = await stage.http.get(
                    f"/api/v1/courses/{stage.course.id}/{question}?format=ndjson", headers=analyst
                )
                text = answer.text
            assert [word for word in secrets if word in text] == [], (question, form)
        rows[question] = list(
            csv.DictReader(io.StringIO((await ask(stage, analyst, question, format="csv")).lstrip("\ufeff")))
        )
    assert len({row["user_id"] for row in rows["sessions"]}) == 6
    assert {row["user_id"] for row in rows["progress"]} == {row["user_id"] for row in rows["sessions"]}
    assert {row["notebook_path"] for row in rows["sessions"]} == {""}
    # The five who worked in the course's notebook; the sixth's own notebook is theirs.
    assert {row["students"] for row in rows["failing-cells"]} == {"5"}
    assert {row["notebook_path"] for row in rows["slow-cells"]} != {""}
    staff = await ask(stage, stage.staff, "sessions")
    assert {one["user_id"] for one in staff["sessions"]} == {one["user_id"] for one in joined}


async def test_an_analyst_asks_for_names_in_vain(stage: Stage) -> None:
    await work(stage, 1)
    analyst = await become_analyst(stage)
    for form in ("csv", "json"):
        answer = await stage.http.get(
            f"/api/v1/courses/{stage.course.id}/sessions?format={form}&identified=1", headers=analyst
        )
        assert (answer.status_code, answer.json()["code"]) == (403, "NB-1160")


async def test_figures_of_few_are_not_an_analysts(stage: Stage) -> None:
    await work(stage, 4)
    analyst = await become_analyst(stage)
    assert (await ask(stage, analyst, "failing-cells"))["failing_cells"] == []
    assert (await ask(stage, stage.staff, "failing-cells"))["failing_cells"] != []


@pytest.mark.parametrize(
    "place", ["live", "people", "activity", "messages", "interventions", "collection", "integrity"]
)
async def test_nothing_else_of_the_course_is_an_analysts(stage: Stage, place: str) -> None:
    analyst = await become_analyst(stage)
    answer = await stage.http.get(f"/api/v1/courses/{stage.course.id}/{place}", headers=analyst)
    assert (answer.status_code, answer.json()["code"]) == (403, "NB-1103")


async def test_postgresql_shows_an_analyst_history_and_nobody(stage: Stage) -> None:
    await work(stage, 2)
    analyst = await become_analyst(stage)
    me = UUID((await stage.http.get("/api/v1/me", headers=analyst)).json()["user_id"])
    ask_as(me)
    try:
        async with stage.parts.people.connect("check") as connection:
            for table in ("events", "learning_sessions", "learner_states", "messages", "timeseries.cell_executions"):
                assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0, table
        async with stage.parts.people.connect("check", is_staff=True) as connection:
            assert await connection.fetchval("SELECT count(*) FROM events") == 6
            assert await connection.fetchval("SELECT array_agg(DISTINCT course_id) FROM events") == [stage.course.id]
            assert await connection.fetchval("SELECT count(*) FROM users") == 0
    finally:
        ask_as(None)


async def test_an_invitation_makes_an_analyst_staff_and_never_the_other_way(stage: Stage) -> None:
    analyst = await become_analyst(stage)
    me = (await stage.http.get("/api/v1/me", headers=analyst)).json()["user_id"]
    for role, becomes in (("assistant", "assistant"), ("analyst", "assistant"), ("instructor", "instructor")):
        invited = await stage.http.post(
            f"/api/v1/courses/{stage.course.id}/invitations", headers=stage.staff, json={"role": role, "teams": []}
        )
        accepted = await stage.http.post(
            "/api/v1/invitations/accept",
            json={"code": invited.json()["code"]},
            headers=analyst | {"Origin": stage.url},
        )
        assert accepted.status_code in (200, 201), accepted.text
        async with connect(stage.database_url) as owner:
            found = await owner.fetchval("SELECT role FROM enrolments WHERE user_id = $1", UUID(me))
        assert found == becomes
