"""The report of a meeting by API: its figures are those of what happened; for whom it is meant; shared by a link."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from meetings import begin, help_student, raise_hand, report_path, share, teach
from nbpulse.records import reports
from stage import NOBODY, Stage
from stores import connect


async def ask(stage: Stage, meeting_id: UUID, headers: dict[str, str] | None = None) -> dict[str, Any]:
    answer = await stage.http.get(report_path(stage, meeting_id), headers=headers or stage.staff)
    assert answer.status_code == 200, answer.text
    report: dict[str, Any] = answer.json()
    return report


async def test_the_figures_are_those_of_what_happened(stage: Stage) -> None:
    meeting_id = await begin(stage)
    joined = await teach(stage)
    absent = await stage.join("欠席 太郎", student_number="900")
    await raise_hand(stage, joined[0], 300)
    await help_student(stage, joined[0])
    report = await ask(stage, meeting_id)
    figures = report["figures"]
    assert (figures["students"], figures["came"], figures["runs"], figures["errors"]) == (7, 6, 20, 10)
    assert (figures["stuck"], figures["hands"], figures["troubled"]) == (2, 1, 3)
    assert (figures["unreached"], figures["unpassed"], figures["waits"]) == (2, 2, 1)
    assert 295_000 < figures["wait_median_ms"] == figures["wait_worst_ms"] < 400_000
    first, second = report["cells"]
    assert (first["cell_id"], first["reached"], first["ok"], first["failed"], first["median_ms"]) == (
        *("cell-0", 6, 6, 0),
        None,
    )
    assert (second["reached"], second["ok"], second["failed"], second["runs"], second["errors"]) == (6, 4, 6, 14, 10)
    assert (second["median_ms"], second["error"]["label"], second["error"]["students"]) == (100_000, "NameError df", 6)
    assert report["progress"]["quartiles"] == [2, 2, 2, 2, 2]
    assert report["never_came"] == [absent["user_id"]]
    named = {one["user_id"]: (one["name"], one["number"]) for one in report["people"]}
    assert named[absent["user_id"]] == ("欠席 太郎", "900")
    assert {one["user_id"] for one in report["troubles"]} <= named.keys()
    assert [(one["action"], one["got_past"]) for one in report["interventions"]] == [("helped", False)]
    assert (report["previous"], report["is_whole"], report["meeting"]["ended_at"]) == (None, True, None)


async def test_what_was_before_and_after_is_of_other_meetings(stage: Stage) -> None:
    before = await begin(stage, 520, 480)  # the first runs alone
    after = await begin(stage, 420)
    joined = await teach(stage)
    found = await ask(stage, after)
    assert (found["figures"]["came"], found["figures"]["runs"]) == (4, 4)
    assert found["previous"]["meeting"]["id"] == str(before)
    assert found["previous"]["figures"]["runs"] == len(joined)
    assert (await ask(stage, before))["previous"] is None


async def test_an_empty_meeting_is_empty(stage: Stage) -> None:
    report = await ask(stage, await begin(stage))
    assert (report["figures"]["students"], report["figures"]["runs"]) == (0, 0)
    assert (report["cells"], report["progress"], report["troubles"]) == ([], None, [])


async def test_what_is_no_meeting_of_the_course_is_said(stage: Stage) -> None:
    other = await stage.courses.ensure_course("数学", f"m{uuid4().hex[:8]}")
    async with connect(stage.database_url) as owner:
        foreign = await owner.fetchval("INSERT INTO class_meetings (course_id) VALUES ($1) RETURNING id", other.id)
    for meeting_id in (NOBODY, foreign):
        for rest in ("", ".csv"):
            refused = await stage.http.get(report_path(stage, meeting_id, rest), headers=stage.staff)
            assert (refused.status_code, refused.json()["code"]) == (404, "NB-1230")
        refused = await stage.http.post(report_path(stage, meeting_id, "/shares"), headers=stage.staff, json={})
        assert (refused.status_code, refused.json()["code"]) == (404, "NB-1230")


async def test_a_meeting_of_too_many_events_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting_id = await begin(stage)
    await teach(stage)
    monkeypatch.setattr(reports, "EVENTS_MAX", 19)
    refused = await stage.http.get(report_path(stage, meeting_id), headers=stage.staff)
    assert (refused.status_code, refused.json()["code"]) == (422, "NB-1231")
    assert "19" in refused.json()["title"]


async def test_an_assistant_of_a_team_is_told_of_its_students_alone(stage: Stage) -> None:
    meeting_id = await begin(stage)
    joined = await teach(stage)
    async with connect(stage.database_url) as owner:
        for number, one in enumerate(joined):
            team = "red" if number in (0, 5) else "blue"
            await owner.execute("UPDATE enrolments SET team = $2 WHERE user_id = $1", UUID(one["user_id"]), team)
        assistant = await owner.fetchval("INSERT INTO users (username) VALUES ($1) RETURNING id", uuid4().hex)
        await owner.execute(
            "INSERT INTO enrolments (user_id, course_id, role, teams) VALUES ($1, $2, 'assistant', '{red}')",
            *(assistant, stage.course.id),
        )
    token = await stage.people.create_staff_token(assistant)
    report = await ask(stage, meeting_id, {"Authorization": f"Bearer {token}"})
    assert (report["is_whole"], report["figures"]["students"], report["figures"]["came"]) == (False, 2, 2)
    assert (report["figures"]["runs"], report["figures"]["stuck"]) == (7, 1)
    assert {one["user_id"] for one in report["troubles"]} == {joined[5]["user_id"]}
    assert {one["name"] for one in report["people"]} == {"学生 5"}
    shares = await stage.http.post(
        report_path(stage, meeting_id, "/shares"), headers={"Authorization": f"Bearer {token}"}, json={}
    )
    assert shares.status_code == 403


async def test_the_table_holds_the_cells_without_people_or_formulas(stage: Stage) -> None:
    meeting_id = await begin(stage)
    await teach(stage)
    async with connect(stage.database_url) as owner:
        await owner.execute(
            "UPDATE notebook_cells SET title = '=1+1' WHERE cell_id = 'cell-1' AND notebook_id IN"
            " (SELECT id FROM notebooks WHERE course_id = $1)",
            stage.course.id,
        )
    answer = await stage.http.get(report_path(stage, meeting_id, ".csv"), headers=stage.staff)
    assert answer.status_code == 200
    assert "attachment" in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"))))
    assert [(row["cell_number"], row["title"], row["reached"], row["failed"]) for row in rows] == [
        ("1", "", "6", "0"),
        ("2", "'=1+1", "6", "6"),
    ]
    assert rows[1]["commonest_error"] == "NameError df"
    assert "学生" not in answer.text


# --- by a link --------------------------------------------------------------------------------------------------------


async def open_share(stage: Stage, code: str) -> httpx2.Response:
    return await stage.http.post("/api/v1/shared/report", json={"code": code})


async def test_a_link_shows_the_report_without_people(stage: Stage) -> None:
    meeting_id = await begin(stage, ended_ago_s=0)
    joined = await teach(stage, 7)
    await raise_hand(stage, joined[0], 300)
    made = await share(stage, meeting_id, days=3)
    answer = await open_share(stage, made["code"])
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["course"]["title"] == stage.course.title
    assert datetime.fromisoformat(told["expires_at"]) - datetime.now(UTC) < timedelta(days=3)
    assert told.keys() == {
        *("course", "meeting", "figures", "previous", "progress", "notebooks", "cells", "expires_at"),
    }
    for secret in (*(one["user_id"] for one in joined), "学生", "nr-", "わかりません", str(meeting_id), "user_id"):
        assert secret not in answer.text, secret
    # 2 of 7 stayed stuck and 1 had a hand up: too few to be told.
    assert (told["figures"]["came"], told["figures"]["stuck"], told["figures"]["unreached"]) == (7, None, None)
    assert (told["cells"][1]["reached"], told["cells"][1]["failed"], told["cells"][1]["ok"]) == (7, 7, None)
    assert told["cells"][1]["error"]["label"] == "NameError df"


async def test_of_a_class_of_few_a_link_shows_nothing(stage: Stage) -> None:
    meeting_id = await begin(stage)
    await teach(stage, 4)
    told = (await open_share(stage, (await share(stage, meeting_id))["code"])).json()
    assert told["figures"]["came"] is None
    assert {cell["reached"] for cell in told["cells"]} == {None}
    assert {cell["error"] for cell in told["cells"]} == {None}


async def test_a_link_ends_when_taken_back_too_old_or_its_maker_leads_no_more(stage: Stage) -> None:
    meeting_id = await begin(stage)
    taken, aged, kept = [await share(stage, meeting_id) for _ in range(3)]
    listed = await stage.http.get(report_path(stage, meeting_id, "/shares"), headers=stage.staff)
    assert [one["id"] for one in listed.json()["shares"]] == [taken["id"], aged["id"], kept["id"]]
    assert "code" not in listed.text
    gone = await stage.http.delete(report_path(stage, meeting_id, f"/shares/{taken['id']}"), headers=stage.staff)
    assert gone.status_code == 204
    again = await stage.http.delete(report_path(stage, meeting_id, f"/shares/{taken['id']}"), headers=stage.staff)
    assert (again.status_code, again.json()["code"]) == (404, "NB-1201")
    async with connect(stage.database_url) as owner:
        await owner.execute("UPDATE report_shares SET expires_at = now() WHERE id = $1", UUID(aged["id"]))
    for code in (taken["code"], aged["code"], kept["code"][:-1], "nonsense", f"nbp_report_{uuid4().hex}_x"):
        refused = await open_share(stage, code)
        assert (refused.status_code, refused.json()["code"]) == (403, "NB-1232"), code
    assert (await open_share(stage, kept["code"])).status_code == 200
    listed = await stage.http.get(report_path(stage, meeting_id, "/shares"), headers=stage.staff)
    assert [(one["id"], one["opened_count"]) for one in listed.json()["shares"]] == [(kept["id"], 1)]
    async with connect(stage.database_url) as owner:
        await owner.execute(
            "UPDATE enrolments SET role = 'assistant' WHERE user_id = $1 AND course_id = $2",
            *(stage.teacher_id, stage.course.id),
        )
    assert (await open_share(stage, kept["code"])).status_code == 403


async def test_links_cannot_be_guessed_for_long_and_only_their_hash_is_kept(stage: Stage) -> None:
    meeting_id = await begin(stage)
    made = await share(stage, meeting_id)
    secret = made["code"].split("_", 3)[3]
    async with connect(stage.database_url) as owner:
        row = await owner.fetchrow("SELECT * FROM report_shares WHERE id = $1", UUID(made["id"]))
    assert secret.encode() not in row["secret_hash"]
    assert len(row["secret_hash"]) == 32
    for _ in range(300):
        await open_share(stage, "nbp_report_nonsense")
    refused = await open_share(stage, made["code"])
    assert (refused.status_code, refused.json()["code"]) == (429, "NB-1180")


async def test_sharing_is_in_the_audit_log(stage: Stage) -> None:
    meeting_id = await begin(stage)
    made = await share(stage, meeting_id, days=7)
    for _ in range(2):
        await open_share(stage, made["code"])
    await stage.http.delete(report_path(stage, meeting_id, f"/shares/{made['id']}"), headers=stage.staff)
    async with connect(stage.database_url) as owner:
        rows = await owner.fetch(
            "SELECT action, actor_id, facts FROM audit_log WHERE course_id = $1 AND action LIKE 'report%' ORDER BY id",
            stage.course.id,
        )
    assert [(row["action"], row["actor_id"]) for row in rows] == [
        ("report_shared", stage.teacher_id),
        ("report_share_opened", None),
        ("report_share_revoked", stage.teacher_id),
    ]
    facts = json.loads(rows[0]["facts"])
    assert facts == {"meeting_id": str(meeting_id), "share_id": made["id"], "days": 7}


async def test_how_long_a_link_lives_is_bounded(stage: Stage) -> None:
    meeting_id = await begin(stage)
    for days in (0, 366, "x"):
        refused = await stage.http.post(
            report_path(stage, meeting_id, "/shares"), headers=stage.staff, json={"days": days}
        )
        assert (refused.status_code, refused.json()["code"]) == (422, "NB-1007")
