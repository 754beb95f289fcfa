"""One student's, one cell's, one error's work, as the course's staff are told of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from nbpulse.api.queries import encode_cursor
from nbpulse.records.originals import register_original
from stage import NOBODY, Stage, make_run
from stores import connect

BEGAN = datetime.now(UTC) - timedelta(minutes=10)


@pytest.fixture(autouse=True)
def _begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anew for each test: half an hour after the file was read its events would come too late to be live."""
    monkeypatch.setitem(globals(), "BEGAN", datetime.now(UTC) - timedelta(minutes=10))


def make_told(cell: int, minute: float, source: str, status: str = "ok", **data: Any) -> dict[str, Any]:
    """A run `minute` minutes after the beginning, with its code and what it printed."""
    run = make_run(cell, status, occurred_at=(BEGAN + timedelta(minutes=minute)).isoformat())
    run["data"] |= {"source": source, "output": f"out of {source}", **data}
    return run


async def collect(stage: Stage, level: str = "output") -> int:
    answer = await stage.http.put(
        f"/api/v1/courses/{stage.course.id}/collection", json={"level": level}, headers=stage.staff
    )
    assert answer.status_code == 200, answer.text
    version: int = answer.json()["version"]
    return version


async def join(stage: Stage, name: str, **fields: Any) -> dict[str, Any]:
    """A student who was shown what is collected now."""
    return await stage.join(name, notice_version=(await show(stage, "collection"))["version"], **fields)


async def send(stage: Stage, student: dict[str, Any], *runs: dict[str, Any]) -> None:
    assert (await stage.post(student["token"], list(runs))).status_code == 202
    await stage.work()


async def ask(stage: Stage, path: str, headers: dict[str, str] | None = None, **query: Any) -> httpx2.Response:
    return await stage.http.get(
        f"/api/v1/courses/{stage.course.id}/{path}", params=query, headers=headers or stage.staff
    )


async def show(stage: Stage, path: str, headers: dict[str, str] | None = None, **query: Any) -> Any:
    answer = await ask(stage, path, headers, **query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def find_notebook(stage: Stage) -> str:
    notebook: str = (await stage.snapshot())["notebook"]["id"]
    return notebook


async def test_a_students_runs_bear_the_texts_that_were_collected_page_by_page(stage: Stage) -> None:
    await collect(stage)
    student = await join(stage, "鈴木 大翔", student_number="7")
    failed = make_told(1, 2, "df", "error", traceback="Traceback …")
    await send(stage, student, make_told(0, 1, "x = 1"), failed, make_told(1, 3, "df = 1"))
    first = await show(stage, f"students/{student['user_id']}/runs", limit=2)
    assert [one["source"] for one in first["runs"]] == ["df = 1", "df"]
    assert first["runs"][1] | {"event_id": 0, "at": 0, "notebook_id": 0, "error_fingerprint": 0} == {
        "event_id": 0,
        "at": 0,
        "notebook_id": 0,
        "error_fingerprint": 0,
        "cell_id": "cell-1",
        "cell_index": 1,
        "status": "error",
        "duration_ms": 12.5,
        "execution_count": 1.0,
        "error_name": "NameError",
        "error_label": "NameError df",
        "error_message": "name 'df' is not defined",
        "traceback": "Traceback …",
        "source": "df",
        "output": "out of df",
    }
    rest = await show(stage, f"students/{student['user_id']}/runs", limit=2, cursor=first["next"])
    assert ([one["source"] for one in rest["runs"]], rest["next"]) == (["x = 1"], None)
    of_cell = await show(
        stage, f"students/{student['user_id']}/runs", notebook=await find_notebook(stage), cell="cell-0"
    )
    assert [one["cell_id"] for one in of_cell["runs"]] == ["cell-0"]
    early = encode_cursor(["0001-01-01T00:00:00+10:00", str(uuid4())])  # a time that UTC does not have
    for cursor in ("x", early):
        answer = await ask(stage, f"students/{student['user_id']}/runs", cursor=cursor)
        assert answer.json()["code"] == "NB-1205"


async def test_a_students_page_says_who_they_are_and_what_they_did_in_this_class(stage: Stage) -> None:
    student = await stage.join("鈴木 大翔", student_number="7")
    await send(stage, student, make_told(0, 1, "x"), make_told(1, 2, "y", "error"))
    hand = make_run(event_type="help_request", data={"message": "グラフが出ない"})
    await send(stage, student, hand)
    told = await show(stage, f"students/{student['user_id']}")
    assert told["student"]["name"] == "鈴木 大翔"
    assert told["student"]["num"] == "7"
    assert [(one["cell_index"], one["status"]) for one in told["trace"]["runs"]] == [(1, "error"), (0, "ok")]
    assert len(told["trace"]["sittings"]) == 1
    assert [(one["text"], one["closed_at"]) for one in told["trace"]["hands"]] == [("グラフが出ない", None)]
    assert told["collects"] == {
        "level": "metadata",
        "source": False,
        "output": False,
        "error_message": True,
        "traceback": True,
    }
    # Nothing that is not collected was kept, and the page says which is not.
    runs = (await show(stage, f"students/{student['user_id']}/runs"))["runs"]
    assert {(one["source"], one["output"]) for one in runs} == {(None, None)}
    await collect(stage, "source")  # more waits for the student to be shown it
    assert (await show(stage, f"students/{student['user_id']}"))["collects"]["source"] is False
    empty = await show(stage, f"students/{student['user_id']}", since="2020-01-01T00:00:00Z")
    assert (empty["trace"]["runs"], empty["trace"]["sittings"]) == ([], [])


async def test_a_cells_answers_are_grouped_and_compared_with_the_teachers(stage: Stage) -> None:
    await collect(stage)
    cells = [{"cell_type": "code", "id": f"cell-{n}", "metadata": {}, "source": "x = 0\nprint(x)"} for n in range(2)]
    content = {"cells": cells, "metadata": {}}
    notebook_id, _ = await register_original(stage.people, stage.course.id, ["week1.ipynb"], content)
    students = [await join(stage, name, student_number=str(n)) for n, name in enumerate(("A", "B", "C", "D"))]
    place = {"notebook_id": str(notebook_id)}
    await send(stage, students[0], make_told(0, 0, "x") | place, make_told(1, 1, "x = 1\nprint(x)") | place)
    await send(
        *(stage, students[1], make_told(0, 0, "x") | place, make_told(1, 1, "x=2", "error") | place),
        make_told(1, 4, "x=1\n\nprint( x )") | place,
    )
    await send(stage, students[2], make_told(1, 1, "secret_word()", "error") | place)
    told = await show(stage, f"cells/{notebook_id}", cell="cell-1")
    assert told["cell"]["original"] == "x = 0\nprint(x)"
    assert told["figures"]["states"] == {"ok": 2, "error": 1, "running": 0, "none": 1}
    assert told["figures"]["tries"] == [1.25, 1.5, 1.75]
    assert told["figures"]["time_ms"] == [105_000, 150_000, 195_000]
    assert [(one["count"], one["ok"]) for one in told["groups"]] == [(2, 2), (1, 0)]
    assert told["groups"][0]["diff"] == [["-", "x = 0"], ["+", "x = 1"], ["=", "print(x)"]]
    assert [one["name"] for one in told["students"]] == ["B", "A", "C", "D"]
    assert [one.get("group") for one in told["students"]] == [0, 0, 1, None]
    for query, names in (
        ({"state": "error"}, ["C"]),
        ({"state": "none"}, ["D"]),
        ({"q": "SECRET_word"}, ["C"]),
        ({"sort": "runs"}, ["B", "A", "C", "D"]),
        ({"sort": "length"}, ["B", "A", "C", "D"]),
        ({"skip": 1, "limit": 2}, ["A", "C"]),
    ):
        page = await show(stage, f"cells/{notebook_id}", cell="cell-1", **query)
        assert [one["name"] for one in page["students"]] == names, query
    assert (await ask(stage, f"cells/{notebook_id}", cell="nowhere")).json()["code"] == "NB-1271"
    assert (await ask(stage, f"cells/{NOBODY}", cell="cell-1")).json()["code"] == "NB-1271"


async def test_of_runs_in_one_moment_the_students_and_the_cells_page_call_the_same_the_newest(stage: Stage) -> None:
    await collect(stage)
    student = await join(stage, "鈴木 大翔")
    await send(stage, student, *(make_told(1, 1, f"x = {number}") for number in range(8)))
    runs = (await show(stage, f"students/{student['user_id']}/runs"))["runs"]
    told = await show(stage, f"cells/{await find_notebook(stage)}", cell="cell-1")
    assert [one["source"] for one in told["groups"]] == [runs[0]["source"]]


async def test_an_error_says_who_has_it_now_where_and_how_it_was_worded(stage: Stage) -> None:
    first, second = await stage.join("A", student_number="1"), await stage.join("B", student_number="2")
    await send(stage, first, make_run(2, "error"))
    await send(stage, second, make_run(2, "error"), make_run(2, "error"))
    (shared,) = (await stage.snapshot())["errors"]
    told = await show(stage, f"errors/{shared['fp']}")
    assert (told["label"], told["students"], told["runs"], told["version"]) == ("NameError df", 2, 3, 1)
    assert [one["name"] for one in told["now"]] == ["A", "B"]
    assert [(one["cell_id"], one["runs"], one["students"]) for one in told["cells"]] == [("cell-2", 3, 2)]
    assert sum(told["trend"]["counts"]) == 3
    assert [(one["message"], one["count"]) for one in told["examples"]] == [("name 'df' is not defined", 3)]
    await send(stage, first, make_run(2, "ok", sequence=9))
    told = await show(stage, f"errors/{shared['fp']}")
    assert [one["name"] for one in told["now"]] == ["B"]
    assert (await ask(stage, f"errors/{'0' * 16}")).json()["code"] == "NB-1272"
    assert (await ask(stage, "errors/x%00")).status_code == 422


async def test_an_assistant_is_shown_their_teams_alone(stage: Stage) -> None:
    await collect(stage)
    red, blue = await join(stage, "Red"), await join(stage, "Blue")
    assistant = uuid4()
    async with connect(stage.database_url) as owner:
        for student, team in ((red, "red"), (blue, "blue")):
            await owner.execute("UPDATE enrolments SET team = $2 WHERE user_id = $1", UUID(student["user_id"]), team)
        await owner.execute("INSERT INTO users (id, username) VALUES ($1, $2)", assistant, assistant.hex)
        await owner.execute(
            "INSERT INTO enrolments (user_id, course_id, role, teams) VALUES ($1, $2, 'assistant', '{red}')",
            *(assistant, stage.course.id),
        )
    headers = {"Authorization": f"Bearer {await stage.people.create_staff_token(assistant)}"}
    for student in (red, blue):
        await send(stage, student, make_told(0, 1, f"of {student['user_id']}", "error"))
    for path in (f"students/{blue['user_id']}", f"students/{blue['user_id']}/runs"):
        answer = await ask(stage, path, headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "NB-1270")
    runs = (await show(stage, f"students/{red['user_id']}/runs", headers))["runs"]
    assert [one["source"] for one in runs] == [f"of {red['user_id']}"]
    notebook = await find_notebook(stage)
    for asker, names in ((headers, ["Red"]), (stage.staff, ["Blue", "Red"])):
        cell = await show(stage, f"cells/{notebook}", asker, cell="cell-0")
        assert sorted(one["name"] for one in cell["students"]) == names
        assert sorted(one["students"][0]["name"] for one in cell["groups"]) == names
        error = await show(stage, f"errors/{runs[0]['error_fingerprint']}", asker)
        assert sorted(one["name"] for one in error["now"]) == names
        assert error["students"] == len(names)
    for path in ("interventions", "integrity"):
        assert (await ask(stage, path, headers, student=blue["user_id"])).status_code == 200


@pytest.mark.parametrize("course", ["another", "own"])
async def test_who_is_in_two_courses_is_shown_in_each_with_its_own_work(stage: Stage, course: str) -> None:
    await collect(stage)
    student = await join(stage, "A")
    await send(stage, student, make_told(0, 1, "of this course"))
    other = await stage.courses.ensure_course("Another", f"o{uuid4().hex[:8]}")
    teacher = await stage.courses.ensure_teacher(other.id, username=f"t{uuid4().hex}")
    async with connect(stage.database_url) as owner:
        await owner.execute(
            "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, 'student')",
            *(UUID(student["user_id"]), other.id),
        )
    token = stage.teacher_token if course == "own" else await stage.people.create_staff_token(teacher)
    place = stage.course.id if course == "own" else other.id
    answer = await stage.http.get(
        f"/api/v1/courses/{place}/students/{student['user_id']}/runs", headers={"Authorization": f"Bearer {token}"}
    )
    assert [one["source"] for one in answer.json()["runs"]] == (["of this course"] if course == "own" else [])
