"""Error groups renamed, merged and muted by API: who may, when boards follow, what it changes, what is refused."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from boards import Board, follow
from meetings import begin, report_path, run
from nbpulse import hub
from nbpulse.records import errorgroups
from stage import Stage, make_run, serve_api
from stores import connect

PD = {"error_name": "NameError", "error_message": "name 'pd' is not defined"}


async def settle(stage: Stage, fingerprint: str, *, token: str | None = None, **changes: Any) -> httpx2.Response:
    path = f"/api/v1/courses/{stage.course.id}/errors/{fingerprint}"
    headers = {"Authorization": f"Bearer {token}"} if token else stage.staff
    return await stage.http.patch(path, headers=headers, json=changes)


async def fail_in_two_ways(stage: Stage) -> tuple[list[dict[str, Any]], str, str]:
    """Three who lack `df` on cell 1, two who lack `pd` there; the two groups' fingerprints."""
    students = [await stage.join(f"学生 {number}", student_number=f"{number}") for number in range(5)]
    for number, one in enumerate(students):
        event = make_run(1, "error")
        event["data"] |= PD if number > 2 else {}
        assert (await stage.post(one["token"], event)).status_code == 202
    await stage.work()
    first, second = (await stage.snapshot())["errors"]
    assert (first["label"], first["n"], second["label"], second["n"]) == ("NameError df", 3, "NameError pd", 2)
    return students, first["fp"], second["fp"]


async def test_a_name_a_merge_and_their_undoing_are_on_every_board_and_audited(stage: Stage) -> None:
    _, df, pd = await fail_in_two_ways(stage)
    async with serve_api(stage.database_url, stage.redis_url) as (url, _):
        live = f"{url}/api/v1/courses/{stage.course.id}/live"
        await stage.http.get(live, headers=stage.staff)

        async def see(*wanted: tuple[str | None, int]) -> None:
            async with asyncio.timeout(20):
                while True:
                    answer = await stage.http.get(live, headers=stage.staff)
                    if [(one["title"], one["n"]) for one in answer.json()["errors"]] == list(wanted):
                        return
                    await asyncio.sleep(0.05)

        renamed = await settle(stage, df, title=" 読み込み忘れ ")
        assert (renamed.status_code, renamed.json()) == (
            200,
            {"fingerprint": df, "title": "読み込み忘れ", "merged_into": None, "is_muted": False},
        )
        await see(("読み込み忘れ", 3), (None, 2))
        assert (await settle(stage, pd, merged_into=df)).status_code == 200
        await see(("読み込み忘れ", 5))
        assert (await settle(stage, pd, merged_into=None)).status_code == 200
        assert (await settle(stage, df, title=None)).status_code == 200
        await see((None, 3), (None, 2))
        assert (await settle(stage, df, title="")).json()["title"] is None, "nothing changes: nothing is noted"
    async with connect(stage.database_url) as owner:
        rows = await owner.fetch(
            "SELECT facts->>'changed' AS changed, facts->>'fingerprint' AS fp, actor_id FROM audit_log"
            " WHERE course_id = $1 AND action = 'error_group_changed' ORDER BY id",
            stage.course.id,
        )
    assert [(row["changed"], row["fp"]) for row in rows] == [
        *(("title", df), ("merged_into", pd), ("merged_into", pd), ("title", df)),
    ]
    assert {row["actor_id"] for row in rows} == {stage.teacher_id}


async def test_an_open_board_is_told_of_what_is_muted(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    _, df, _ = await fail_in_two_ways(stage)
    snapshot = await stage.snapshot()
    board = Board(snapshot)
    monkeypatch.setattr(hub, "RECONCILE_S", 3_600.0)  # it does not find out by itself
    async with stage.watch(snapshot) as socket:
        await settle(stage, df, is_muted=True)
        await follow(socket, board, lambda one: [muted["fp"] for muted in one.figures["muted"]] == [df])
        assert [one["label"] for one in board.figures["errors"]] == ["NameError pd"]
        await settle(stage, df, is_muted=False)
        await follow(socket, board, lambda one: len(one.figures["errors"]) == 2)
        assert board.figures["muted"] == []


async def test_a_merged_group_has_one_page_and_one_announcement(stage: Stage) -> None:
    students, df, pd = await fail_in_two_ways(stage)
    await settle(stage, pd, merged_into=df)
    await settle(stage, df, title="読み込み忘れ")
    for fingerprint in (df, pd):
        path = f"/api/v1/courses/{stage.course.id}/errors/{fingerprint}"
        told = (await stage.http.get(path, headers=stage.staff)).json()
        assert (told["fingerprint"], told["title"], told["label"], told["is_muted"]) == (
            *(df, "読み込み忘れ"),
            *(told["label"], False),
        )
        assert told["merged"] == [{"fingerprint": pd, "label": "NameError pd", "students": 2}]
        assert (told["students"], told["runs"], len(told["now"])) == (5, 5, 5)
        body = {"id": str(uuid4()), "to": {"error_fingerprint": fingerprint}, "text": "セル 1 を先に"}
        path = f"/api/v1/courses/{stage.course.id}/messages"
        sent = await stage.http.post(path, headers=stage.staff, json=body)
        assert (sent.status_code, sent.json()["recipients"]) == (201, len(students))


async def test_a_report_counts_them_as_one_and_calls_them_by_their_name(stage: Stage) -> None:
    meeting_id = await begin(stage)
    _, df, pd = await fail_in_two_ways(stage)

    async def read() -> tuple[Any, ...]:
        report = (await stage.http.get(report_path(stage, meeting_id), headers=stage.staff)).json()
        (cell,) = report["cells"]
        error = cell["error"]
        return cell["failed"], error and (error["title"], error["label"], error["students"])

    assert await read() == (5, (None, "NameError df", 3))
    await settle(stage, pd, merged_into=df)
    await settle(stage, df, title="=HYPERLINK(0)")
    assert await read() == (5, ("=HYPERLINK(0)", "NameError df", 5))
    table = await stage.http.get(report_path(stage, meeting_id, ".csv"), headers=stage.staff)
    assert "'=HYPERLINK(0)" in table.text, "no formula"
    shares = await stage.http.post(report_path(stage, meeting_id, "/shares"), headers=stage.staff, json={})
    shown = await stage.http.post("/api/v1/shared/report", json={"code": shares.json()["code"]})
    assert "HYPERLINK" not in shown.text
    assert shown.json()["cells"][0]["error"]["label"] == "NameError df"
    await settle(stage, df, is_muted=True)
    assert await read() == (5, None)


async def test_report_and_replay_go_by_the_courses_own_rules_and_muted_groups(stage: Stage) -> None:
    meeting_id = await begin(stage)
    student = await stage.join()
    await run(stage, student, *((ago, 1, "error") for ago in (300, 280)), (100, 2, "ok"))
    (fp,) = {one["error"]["fingerprint"] for one in (await ask(stage, meeting_id))["cells"] if one["error"]}

    async def count() -> tuple[int, int]:
        at = round((time.time() - 150) * 1000)
        path = f"/api/v1/courses/{stage.course.id}/meetings/{meeting_id}/replay?at={at}"
        board = (await stage.http.get(path, headers=stage.staff)).json()["snapshot"]
        return (await ask(stage, meeting_id))["figures"]["stuck"], len(board["alerts"])

    assert await count() == (0, 0)
    rules = {"stuck_error_count": 2, "stuck_after_ms": 60_000}
    path = f"/api/v1/courses/{stage.course.id}/rules"
    assert (await stage.http.put(path, headers=stage.staff, json={"rules": rules})).status_code == 200
    assert await count() == (1, 1)
    await settle(stage, fp, is_muted=True)
    assert await count() == (0, 0)
    preview = await stage.http.post(f"{path}/preview", headers=stage.staff, json={"rules": rules})
    assert {one["kind"]: one["fired"] for one in preview.json()["rules"]}["stuck"] == 0


async def ask(stage: Stage, meeting_id: UUID) -> dict[str, Any]:
    report: dict[str, Any] = (await stage.http.get(report_path(stage, meeting_id), headers=stage.staff)).json()
    return report


async def test_nothing_is_merged_into_itself_whoever_merges_at_once(stage: Stage) -> None:
    one, two, three = ("1" * 16, "2" * 16, "3" * 16)
    assert (await settle(stage, one, merged_into=one)).json()["code"] == "NB-1365"
    answers = await asyncio.gather(
        settle(stage, one, merged_into=two),
        settle(stage, two, merged_into=three),
        settle(stage, three, merged_into=one),
    )
    assert sorted(answer.status_code for answer in answers) == [200, 200, 409]
    refused = next(answer for answer in answers if answer.status_code == 409).json()
    assert (refused["code"], bool(refused["todo"])) == ("NB-1365", True)


@pytest.mark.parametrize(
    ("fingerprint", "changes"),
    [
        ("x" * 16, {"is_muted": True}),
        ("1" * 15, {"is_muted": True}),
        ("1" * 16, {"is_muted": None}),
        ("1" * 16, {"title": "x" * 81}),
        ("1" * 16, {"title": "a\nb"}),
        ("1" * 16, {"merged_into": "df"}),
        ("1" * 16, {"name": "df"}),
    ],
)
async def test_what_makes_no_sense_is_refused(stage: Stage, fingerprint: str, changes: dict[str, Any]) -> None:
    answer = await settle(stage, fingerprint, **changes)
    assert (answer.status_code, answer.json()["code"]) == (422, "NB-1007")


async def test_a_course_has_so_many_and_each_of_them_can_still_be_changed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errorgroups, "GROUPS_MAX", 2)
    for digit in "12":
        assert (await settle(stage, digit * 16, is_muted=True)).status_code == 200
    refused = await settle(stage, "3" * 16, is_muted=True)
    assert (refused.status_code, refused.json()["code"]) == (409, "NB-1366")
    assert (await settle(stage, "2" * 16, is_muted=False)).status_code == 200


async def test_an_assistant_settles_too_and_strangers_do_not_know_of_it(stage: Stage) -> None:
    other = await stage.courses.ensure_course("数学", f"m{uuid4().hex[:8]}")
    stranger = await stage.courses.ensure_teacher(other.id, username=f"s-{uuid4().hex[:6]}")
    student = await stage.join()
    async with connect(stage.database_url) as owner:
        assistant = await owner.fetchval("INSERT INTO users (username) VALUES ($1) RETURNING id", uuid4().hex)
        await owner.execute(
            "INSERT INTO enrolments (user_id, course_id, role, teams) VALUES ($1, $2, 'assistant', '{red}')",
            *(assistant, stage.course.id),
        )
    helper, foreign = [await stage.people.create_staff_token(one) for one in (assistant, stranger)]
    assert (await settle(stage, "1" * 16, token=helper, is_muted=True)).status_code == 200
    assert (await settle(stage, "1" * 16, token=foreign, is_muted=False)).status_code == 404
    assert (await settle(stage, "1" * 16, token=student["token"], is_muted=False)).status_code == 403
    assert [one["fp"] for one in (await stage.snapshot())["muted"]] == ["1" * 16]
