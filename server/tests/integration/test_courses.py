"""Courses made, copied and archived; notebooks prepared by API; what is looked at before class; who may."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4
from xml.etree import ElementTree as ET

import pytest

from callers import open_callers
from nbpulse.records.own_courses import make_short_name
from stage import Stage, make_run
from stores import connect

COURSES = "/api/v1/courses"


async def create(stage: Stage, headers: dict[str, str] | None = None, **body: Any) -> Any:
    return await stage.http.post(COURSES, json=body, headers=headers or stage.staff)


async def read(stage: Stage, headers: dict[str, str] | None = None) -> dict[str, Any]:
    answer = await stage.http.get(COURSES, headers=headers or stage.staff)
    assert answer.status_code == 200, answer.text
    listed: dict[str, Any] = answer.json()
    return listed


async def list_ids(stage: Stage, headers: dict[str, str] | None = None) -> list[str]:
    return [one["id"] for one in (await read(stage, headers))["courses"]]


async def archive(stage: Stage, course_id: object, *, is_archived: bool = True) -> Any:
    return await stage.http.patch(f"{COURSES}/{course_id}", json={"is_archived": is_archived}, headers=stage.staff)


async def add_person(stage: Stage, role: str | None, course_id: UUID, user_role: str = "student") -> dict[str, str]:
    """The headers of somebody new with that role in the course (None: in none)."""
    async with connect(stage.database_url) as owner:
        user_id = await owner.fetchval(
            "INSERT INTO users (username, role) VALUES ($1, $2) RETURNING id", f"p{uuid4().hex[:8]}", user_role
        )
        if role:
            await owner.execute(
                "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, $3)", user_id, course_id, role
            )
    return {"Authorization": f"Bearer {await stage.people.create_staff_token(user_id)}"}


async def read_audit(stage: Stage, course_id: str) -> list[tuple[str, dict[str, Any]]]:
    async with connect(stage.database_url) as owner:
        rows = await owner.fetch(
            "SELECT action, facts FROM audit_log WHERE course_id = $1 AND actor_id = $2"
            " AND action <> 'class_viewed' ORDER BY id",
            *(UUID(course_id), stage.teacher_id),
        )
    return [(row["action"], json.loads(row["facts"])) for row in rows]


# --- making and copying -----------------------------------------------------------------------------------------------


async def test_who_makes_a_course_is_its_instructor_and_alone_in_it(stage: Stage) -> None:
    mark = uuid4().hex[:6]
    made = await create(stage, title=f"Données {mark}", time_zone="Europe/Paris")
    assert made.status_code == 201, made.text
    course = made.json()
    assert (course["short_name"], course["role"], course["is_demo"]) == (f"donnees-{mark}", "instructor", False)
    assert (course["time_zone"], course["student_count"], course["is_join_open"]) == ("Europe/Paris", 0, True)
    again = (await create(stage, title=f"Données {mark}")).json()
    assert again["short_name"] == f"donnees-{mark}-2"
    assert again["join_code"] != course["join_code"]
    board = await stage.http.get(f"{COURSES}/{course['id']}/live", headers=stage.staff)
    assert board.status_code == 200
    people = (await stage.http.get(f"{COURSES}/{course['id']}/people", headers=stage.staff)).json()["members"]
    assert [(one["user_id"], one["role"]) for one in people] == [(str(stage.teacher_id), "instructor")]
    assert await read_audit(stage, course["id"]) == [("course_created", {})]


@pytest.mark.parametrize(
    ("title", "short"),
    [
        ("情報 I", "i"),
        ("データ科学", "course"),
        ("Python 入門 2026", "python-2026"),
        ("—", "course"),
        ("x" * 90, "x" * 40),
    ],
)
def test_a_short_name_is_made_of_the_titles_latin_letters(title: str, short: str) -> None:
    assert make_short_name(title) == short


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "NB-1007"),
        ({"title": ""}, 422, "NB-1007"),
        ({"title": "  "}, 422, "NB-1007"),
        ({"title": "a\nb"}, 422, "NB-1007"),
        ({"title": "\x00"}, 422, "NB-1007"),
        ({"title": "x" * 201}, 422, "NB-1007"),
        ({"title": "x", "short_name": "No spaces"}, 422, "NB-1007"),
        ({"title": "x", "short_name": "a/../b"}, 422, "NB-1007"),
        ({"title": "x", "time_zone": "Mars/Olympus"}, 422, "NB-1215"),
    ],
)
async def test_a_bad_course_is_refused_and_not_made(stage: Stage, body: Any, status: int, code: str) -> None:
    before = await list_ids(stage)
    refused = await create(stage, **body)
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert await list_ids(stage) == before


async def test_a_short_name_that_is_taken_is_said(stage: Stage) -> None:
    refused = await create(stage, title="x", short_name=stage.course.short_name)
    assert (refused.status_code, refused.json()["code"]) == (409, "NB-1214")
    assert stage.course.short_name in refused.json()["title"]


async def test_only_who_teaches_or_operates_may_make_one(stage: Stage) -> None:
    demo = await stage.courses.ensure_course("Demo", f"d{uuid4().hex[:8]}", is_demo=True)
    for role, course, user_role, may in (
        ("instructor", stage.course.id, "student", True),
        ("instructor", demo.id, "instructor", True),
        (None, stage.course.id, "operator", True),
        ("instructor", demo.id, "student", False),
        ("assistant", stage.course.id, "student", False),
        (None, stage.course.id, "analyst", False),
    ):
        headers = await add_person(stage, role, course, user_role)
        assert (await read(stage, headers))["may_create"] is may, (role, user_role)
        answer = await create(stage, headers, title="x")
        assert answer.status_code == (201 if may else 403), (role, user_role)
        assert may or answer.json()["code"] == "NB-1210"
    # A rehearsal makes an assistant instructor of a demo, and no more than that.
    assistant = await add_person(stage, "assistant", stage.course.id)
    made = await stage.http.post(f"{COURSES}/{stage.course.id}/rehearsals", json={}, headers=assistant)
    copied = await stage.http.post(
        f"{COURSES}/{made.json()['course_id']}/copies", json={"title": "x"}, headers=assistant
    )
    assert copied.json()["code"] == "NB-1210"


async def test_a_copy_takes_what_is_settled_and_prepared_and_nobody(stage: Stage) -> None:
    here = f"{COURSES}/{stage.course.id}"
    await stage.http.patch(f"{here}/entry", json={"shows_all_teams": True}, headers=stage.staff)
    await stage.http.put(f"{here}/collection", json={"level": "source", "without": ["typing"]}, headers=stage.staff)
    await stage.http.put(f"{here}/rules", json={"rules": {"stuck_error_count": 5}}, headers=stage.staff)
    prepared = await upload(stage, make_notebook(["a", "b"]))
    token = (await stage.join())["token"]
    await stage.post(token, make_run(notebook_path="learned.ipynb"))
    await stage.work()
    answer = await stage.http.post(f"{here}/copies", json={"title": "情報 I (2027)"}, headers=stage.staff)
    assert answer.status_code == 201, answer.text
    copy = answer.json()
    assert (copy["student_count"], copy["role"], copy["is_join_open"]) == (0, "instructor", True)
    assert copy["join_code"] != stage.course.join_code
    ready = (await stage.http.get(f"{COURSES}/{copy['id']}/readiness", headers=stage.staff)).json()
    people = (await stage.http.get(f"{COURSES}/{copy['id']}/people", headers=stage.staff)).json()
    assert people["entry"]["shows_all_teams"] is True
    assert (ready["collection"]["level"], ready["collection"]["version"]) == ("source", 1)
    assert [(one["path"], one["is_prepared"]) for one in ready["notebooks"]] == [("week1.ipynb", True)]
    assert ready["notebooks"][0]["id"] != prepared["notebook_id"]
    rules = (await stage.http.get(f"{COURSES}/{copy['id']}/rules", headers=stage.staff)).json()["rules"]
    assert rules["stuck_error_count"] == 5
    assert ready["students"] == []
    assert await read_audit(stage, copy["id"]) == [("course_copied", {"source_id": str(stage.course.id)})]
    # Last term's file, prepared for this course, is its original again.
    again = await upload(stage, json.loads(prepared["text"]), course_id=copy["id"])
    assert (again["notebook_id"], again["has_changed"]) == (ready["notebooks"][0]["id"], True)


# --- naming -----------------------------------------------------------------------------------------------------------


async def test_another_title_is_on_open_boards_and_projectors_and_audited(stage: Stage) -> None:
    board = await stage.snapshot()
    projector = f"{COURSES}/{stage.course.id}/projector"
    assert (await stage.http.get(projector, headers=stage.staff)).json()["course"]["title"] == stage.course.title
    async with stage.watch(board) as socket:
        done = await stage.http.patch(
            f"{COURSES}/{stage.course.id}", json={"title": " 情報 II <b> "}, headers=stage.staff
        )
        assert (done.status_code, done.json()["title"], done.json()["archived_at"]) == (200, "情報 II <b>", None)
        async with asyncio.timeout(30):
            while (frame := json.loads(await socket.recv())).get("course") is None:
                pass
    assert (frame["course"]["title"], frame["course"]["join_code"]) == ("情報 II <b>", stage.course.join_code)
    async with asyncio.timeout(30):
        while (await stage.http.get(projector, headers=stage.staff)).json()["course"]["title"] != "情報 II <b>":  # noqa: ASYNC110 - at its next frame
            await asyncio.sleep(0.1)
    again = await stage.http.patch(f"{COURSES}/{stage.course.id}", json={"title": "情報 II <b>"}, headers=stage.staff)
    assert again.status_code == 200
    assert [action for action, _ in await read_audit(stage, str(stage.course.id))] == ["course_renamed"]
    assistant = await add_person(stage, "assistant", stage.course.id)
    refused = await stage.http.patch(f"{COURSES}/{stage.course.id}", json={"title": "x"}, headers=assistant)
    assert refused.status_code == 403


@pytest.mark.parametrize(
    "body", [{}, {"title": ""}, {"title": "  "}, {"title": "a\nb"}, {"title": None}, {"title": "x" * 201}]
)
async def test_a_title_that_is_none_is_refused(stage: Stage, body: dict[str, Any]) -> None:
    answer = await stage.http.patch(f"{COURSES}/{stage.course.id}", json=body, headers=stage.staff)
    assert (answer.status_code, answer.json()["code"]) == (422, "NB-1007")
    assert (await stage.snapshot())["course"]["title"] == stage.course.title


# --- archiving --------------------------------------------------------------------------------------------------------


async def test_an_archived_course_takes_nothing_loses_nothing_and_comes_back(stage: Stage) -> None:
    student = await stage.join()
    assert (await stage.post(student["token"], make_run())).status_code == 202
    await stage.work()
    done = await archive(stage, stage.course.id)
    assert done.status_code == 200
    assert done.json()["archived_at"] is not None
    assert done.json()["is_join_open"] is False
    assert (await archive(stage, stage.course.id)).json() == done.json(), "again changes nothing"
    refused = await stage.post(student["token"], make_run())
    assert (refused.status_code, refused.json()["code"]) == (403, "NB-1211")
    newcomer = {"join_code": stage.course.join_code, "display_name": "佐藤 陽菜"}
    again = newcomer | {"resume_code": student["resume_code"], "display_name": "鈴木 大翔"}
    for body in (newcomer, again):
        answer = await stage.http.post("/api/v1/join", json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "NB-1211")
    begun = await stage.http.post(f"{COURSES}/{stage.course.id}/meetings", json={}, headers=stage.staff)
    assert (begun.status_code, begun.json()["code"]) == (409, "NB-1212")
    for path in ("live", "sessions", "meetings", "people", "readiness"):
        assert (await stage.http.get(f"{COURSES}/{stage.course.id}/{path}", headers=stage.staff)).status_code == 200
    inbox = await stage.http.get("/api/v1/me/inbox?wait_s=0", headers={"Authorization": f"Bearer {student['token']}"})
    assert inbox.status_code == 200, "what was said to them they still read"
    assert (await archive(stage, stage.course.id, is_archived=False)).json()["archived_at"] is None
    assert (await stage.post(student["token"], make_run())).status_code == 202
    actions = [action for action, _ in await read_audit(stage, str(stage.course.id)) if action.startswith("course")]
    assert actions == ["course_archived", "course_restored"]


async def test_a_hubs_student_of_an_archived_course_is_told_so_and_not_turned_away(
    stage_database: str, embedded_valkey: str
) -> None:
    async with open_callers(stage_database, embedded_valkey) as callers:
        stage = callers.stage
        teacher = {"Authorization": f"Bearer {await stage.people.create_staff_token(stage.teacher_id)}"}
        body = {"content": json.dumps(make_run()).encode()}
        assert (await callers.ask("hub-student", "POST", "/api/v1/events", **body)).status_code == 202
        done = await stage.http.patch(f"{COURSES}/{stage.course.id}", json={"is_archived": True}, headers=teacher)
        assert done.status_code == 200
        refused = await callers.ask("hub-student", "POST", "/api/v1/events", content=json.dumps(make_run()).encode())
        assert (refused.status_code, refused.json()["code"]) == (403, "NB-1211")


async def test_a_course_is_not_archived_in_mid_class(stage: Stage) -> None:
    await stage.http.post(f"{COURSES}/{stage.course.id}/meetings", json={}, headers=stage.staff)
    refused = await archive(stage, stage.course.id)
    assert (refused.status_code, refused.json()["code"]) == (409, "NB-1213")
    await stage.http.post(f"{COURSES}/{stage.course.id}/meetings/end", json={}, headers=stage.staff)
    assert (await archive(stage, stage.course.id)).status_code == 200


async def test_the_list_has_live_ones_first_and_only_ones_own(stage: Stage) -> None:
    newer = (await create(stage, title="Newer")).json()["id"]
    await stage.courses.ensure_course("Not mine", f"n{uuid4().hex[:8]}")
    mine = (newer, str(stage.course.id))
    assert [one for one in await list_ids(stage) if one in mine] == [newer, str(stage.course.id)]
    student = await stage.join()
    await stage.post(student["token"], make_run(event_type="presence", data={"state": "active"}))
    await stage.http.post(f"{COURSES}/{stage.course.id}/meetings", json={}, headers=stage.staff)
    first = (await read(stage))["courses"][0]
    assert first["id"] == str(stage.course.id)
    assert first["meeting_since"] is not None
    assert (first["student_count"], first["connected_count"]) == (1, 1)
    assert await list_ids(stage, {"Authorization": f"Bearer {student['token']}"}) == []
    bound = {"Authorization": f"Bearer {await stage.people.create_staff_token(stage.teacher_id, stage.course.id)}"}
    assert await list_ids(stage, bound) == [str(stage.course.id)]
    assert (await read(stage, bound))["may_create"] is False


# --- notebooks --------------------------------------------------------------------------------------------------------


def make_notebook(ids: list[str], **metadata: Any) -> dict[str, Any]:
    heading = {"cell_type": "markdown", "id": "head", "source": "# 第1回", "metadata": {}}
    code = {"cell_type": "code", "execution_count": None, "outputs": [], "metadata": {"tags": ["exercise"]}}
    cells = [heading, *(code | {"id": one, "source": f"x = '{one}'"} for one in ids)]
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}


async def send(stage: Stage, body: bytes, name: str = "week1.ipynb", course_id: object = None, **headers: str) -> Any:
    return await stage.http.post(
        f"{COURSES}/{course_id or stage.course.id}/notebooks",
        params={"name": name},
        content=body,
        headers=stage.staff | {"Content-Type": "application/x-ipynb+json"} | headers,
    )


async def upload(stage: Stage, content: dict[str, Any], **options: Any) -> dict[str, Any]:
    answer = await send(stage, json.dumps(content).encode(), **options)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_a_prepared_notebook_comes_back_and_again_unchanged(stage: Stage) -> None:
    told = await upload(stage, make_notebook(["a", "b"]), name="C:\\Users\\田中\\week1.ipynb")
    assert (told["cells"], told["exercises"], told["sections"]) == (3, 2, 1)
    assert (told["file_name"], told["has_changed"]) == ("week1.ipynb", True)
    content = json.loads(told["text"])
    ours = content["metadata"]["nbpulse"]
    assert (ours["join_code"], ours["url"], ours["course"]) == (stage.course.join_code, stage.url, stage.course.title)
    assert [cell["source"] for cell in content["cells"]] == ["# 第1回", "x = 'a'", "x = 'b'"]
    again = await upload(stage, content)
    assert (again["has_changed"], again["notebook_id"]) == (False, told["notebook_id"])
    # What a student runs in a copy of it is known as its.
    token = (await stage.join())["token"]
    run = make_run(cell_id="a", notebook_path="copy of week1.ipynb", notebook_id=told["notebook_id"])
    assert (await stage.post(token, run)).status_code == 202
    await stage.work()
    assert (await stage.snapshot())["notebook"]["id"] == told["notebook_id"]
    audit = await read_audit(stage, str(stage.course.id))
    assert [facts["notebook_id"] for action, facts in audit if action == "notebook_prepared"] == [
        told["notebook_id"]
    ] * 2


async def test_a_file_of_a_strangers_course_becomes_a_notebook_of_its_own(stage: Stage) -> None:
    other = await stage.courses.ensure_course("Not mine", f"n{uuid4().hex[:8]}")
    foreign = uuid4()
    async with connect(stage.database_url) as owner:
        await owner.execute(
            "INSERT INTO notebooks (id, course_id, path) VALUES ($1, $2, 'week1.ipynb')", foreign, other.id
        )
    told = await upload(stage, make_notebook(["a"], nbpulse={"notebook_id": str(foreign)}))
    assert told["notebook_id"] != str(foreign)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "NB-1350"),
        (b"not json", "NB-1350"),
        (b"\xff\xfe", "NB-1350"),
        (b"[" * 50_000, "NB-1350"),
        (b'{"nbformat": 3, "worksheets": []}', "NB-1350"),
        (b'{"nbformat": 4, "metadata": {}, "cells": [], "x": "\\ud800"}', "NB-1350"),
    ],
)
async def test_a_bad_file_is_refused_and_nothing_is_registered(stage: Stage, body: bytes, code: str) -> None:
    refused = await send(stage, body)
    assert (refused.status_code, refused.json()["code"]) == (422, code)
    ready = await stage.http.get(f"{COURSES}/{stage.course.id}/readiness", headers=stage.staff)
    assert ready.json()["notebooks"] == []


async def test_odd_notebooks_are_taken_as_far_as_they_go(stage: Stage) -> None:
    odd = make_notebook(["a"])
    odd["nbformat_minor"] = "five"
    odd["cells"] += [
        {"cell_type": "markdown", "source": ["# a\u0000b", 5], "id": ["no", "id"]},
        {
            "cell_type": "x" * 300,
            "source": None,
            "metadata": {"nbpulse": {"cell_id": {"a": 1}, "exercise_id": "\u0000"}},
        },
        {"metadata": {"nbgrader": {"grade": True, "grade_id": "q\u0000" * 300}}, "id": "a"},
    ]
    assert (await upload(stage, odd))["cells"] == 5


async def test_names_sizes_and_types_that_are_none_are_refused(stage: Stage) -> None:
    good = json.dumps(make_notebook(["a"])).encode()
    for name in ("", "..", ".hidden.ipynb", "a\nb.ipynb", "x" * 201):
        assert (await send(stage, good, name)).status_code == 422, name
    assert (await send(stage, good, **{"Content-Type": "text/csv"})).json()["code"] == "NB-1005"
    assert (await send(stage, b" " * 10_000_001)).json()["code"] == "NB-1004"
    first = await upload(stage, make_notebook(["a"]), name="same.ipynb")
    assert first["has_changed"]
    strange = make_notebook(["z"])
    strange["cells"][0]["id"] = "other"
    taken = await send(stage, json.dumps(strange).encode(), "same.ipynb")
    assert (taken.status_code, taken.json()["code"]) == (422, "NB-1353")


# --- before class -----------------------------------------------------------------------------------------------------


async def test_before_class_it_is_said_who_has_come_and_who_sends(stage: Stage) -> None:
    roster = "student_number,name\n1,山田 太郎\n2,佐藤 花子\n"
    await stage.http.post(
        f"{COURSES}/{stage.course.id}/roster?dry_run=false",
        headers=stage.staff | {"Content-Type": "text/csv"},
        content=roster.encode(),
    )
    come = await stage.join("佐藤 花子", student_number="2")
    silent = await stage.join("高橋 葵", student_number="3")
    gone = await stage.join("伊藤 蓮", student_number="4")
    quit_ = await stage.join("渡辺 葵", student_number="5")
    for student in (come, gone):
        await stage.post(student["token"], make_run())
    await stage.work()
    as_quitter = {"Authorization": f"Bearer {quit_['token']}"}
    withdrawn = await stage.http.post(
        "/api/v1/me/consent", json={"version": 1, "action": "withdraw"}, headers=as_quitter
    )
    assert withdrawn.status_code == 200, withdrawn.text
    async with connect(stage.database_url) as owner:
        await owner.execute(
            "UPDATE learner_states SET last_activity_at = now() - interval '7 days' WHERE user_id = $1",
            UUID(gone["user_id"]),
        )
    await stage.parts.cache.forget([stage.course.id], [UUID(gone["user_id"])], [])
    answer = await stage.http.get(f"{COURSES}/{stage.course.id}/readiness", headers=stage.staff)
    assert answer.status_code == 200, answer.text
    ready = answer.json()
    assert [(one["number"], one["name"], one["state"]) for one in ready["students"]] == [
        ("1", "山田 太郎", "absent"),
        ("2", "佐藤 花子", "connected"),
        ("3", "高橋 葵", "silent"),
        ("4", "伊藤 蓮", "away"),
        ("5", "渡辺 葵", "withdrawn"),
    ]
    assert [(one["path"], one["is_prepared"], one["student_count"]) for one in ready["notebooks"]] == [
        ("week1.ipynb", False, 2)
    ]
    assert ready["is_presence_known"] is True
    listed = await read(stage)
    assert (listed["address"], listed["is_local"]) == (stage.url, True)
    await stage.post(silent["token"], make_run(event_type="presence", data={"state": "active"}))
    ready = (await stage.http.get(f"{COURSES}/{stage.course.id}/readiness", headers=stage.staff)).json()
    assert ready["students"][2]["state"] == "connected"


async def test_an_assistant_sees_before_class_whom_they_see_elsewhere(stage: Stage) -> None:
    seen, hidden = await stage.join("鈴木 大翔"), await stage.join("高橋 葵")
    assistant = await add_person(stage, "assistant", stage.course.id)
    async with connect(stage.database_url) as owner:
        for student, team in ((seen, "red"), (hidden, "blue")):
            await owner.execute("UPDATE enrolments SET team = $2 WHERE user_id = $1", UUID(student["user_id"]), team)
        await owner.execute(
            "UPDATE enrolments SET teams = '{red}' WHERE course_id = $1 AND role = 'assistant'", stage.course.id
        )
    ready = (await stage.http.get(f"{COURSES}/{stage.course.id}/readiness", headers=assistant)).json()
    assert [one["user_id"] for one in ready["students"]] == [seen["user_id"]]
    assert (await read(stage, assistant))["courses"][0]["student_count"] == 1


async def test_the_join_codes_picture_is_one_and_holds_no_script(stage: Stage) -> None:
    answer = await stage.http.get(f"{COURSES}/{stage.course.id}/join-code.svg", headers=stage.staff)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert {one.tag.rpartition("}")[2] for one in ET.fromstring(answer.text).iter()} == {"svg", "path"}
