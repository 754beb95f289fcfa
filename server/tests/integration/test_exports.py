"""What is held of a person, in a file for them: all of it, opened, and nobody else's."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from machines import Machine, make_machine
from nbpulse.records.courses import Courses
from nbpulse.records.erasing import count_rows as count_held
from nbpulse.records.messages import Dispatch, Messages
from nbpulse.records.owner import open_owner
from nbpulse.records.people import People
from stage import Stage, make_run
from stores import make_class, make_error, make_event


@pytest.fixture
async def machine(server_18: str, make_valkey: Callable[[], str], tmp_path: Path) -> Machine:
    return await make_machine(server_18, make_valkey(), tmp_path / "data")


def read(file: zipfile.ZipFile, name: str) -> Any:
    return json.loads(file.read(f"{name}.json"))


async def test_the_operator_s_export_is_complete_and_opened(machine: Machine, tmp_path: Path) -> None:
    course_id, (user_id, mate_id) = await make_class(machine.database_url, 2)
    data = {"status": "ok", "execution_duration_ms": 1.0, "source": "=1+1", "output": "2"}
    async with machine.open_worker() as worker:
        error = make_error(user_id, course_id)
        hand = make_event(user_id, course_id, "help_request", data={"message": "わかりません"})
        run = make_event(user_id, course_id, data=data)
        recorded = await worker.ledger.record_events([error, hand, run, make_event(mate_id, course_id)])
        await worker.series.write_points(recorded.points)
        await worker.stream.append([make_event(user_id, course_id, cell_id="waiting"), make_event(mate_id, course_id)])
        seal = worker.seal
    async with open_owner(machine.database_url) as pool:
        people = People(pool, seal)
        teacher_id = await Courses(pool, seal).ensure_teacher(course_id, display_name="佐藤")
        await Messages(people, seal).send(course_id, teacher_id, Dispatch(uuid4(), "どうぞ", user_ids=[user_id]))
        token = await people.create_staff_token(user_id, course_id)
        held = await count_held(pool, [user_id])

    file = tmp_path / "export.zip"
    code, said = machine.run("export-user", user_id.hex, file)
    assert code == 0, said
    assert file.stat().st_mode & 0o777 == 0o600
    code, said = machine.run("export-user", user_id.hex, file)
    assert (code, "NB-3091" in said) == (1, True), said
    code, said = machine.run("export-user", "nobody", tmp_path / "other.zip")
    assert (code, "NB-3023" in said, (tmp_path / "other.zip").exists()) == (1, True, False), said
    with zipfile.ZipFile(file) as out:
        manifest = json.loads(out.read("manifest.json"))
        assert {name: count for name, count in manifest["rows"].items() if name in held} == held
        assert {"users", "courses", "notebooks", "stream"} <= manifest["rows"].keys()
        assert [row["error_message"] for row in read(out, "events")].count("name 'df' is not defined") == 1
        assert read(out, "event_contents")[0]["source"] == "=1+1"
        assert read(out, "help_requests")[0]["message"] == "わかりません"
        assert "どうぞ" in read(out, "messages")[0]["body"]
        assert [json.loads(row["payload"])["cell_id"] for row in read(out, "stream")] == ["waiting"]
        (sheet,) = csv.DictReader(io.StringIO(out.read("event_contents.csv").decode("utf-8-sig")))
        assert sheet["source"] == "'=1+1", "no formula in a spreadsheet"
        everything = b"".join(out.read(name) for name in out.namelist())
    assert mate_id.hex not in everything.decode().replace("-", "")
    assert token.rpartition("_")[2].encode() not in everything
    assert b"secret_hash" not in everything
    assert b'"hash"' not in everything


async def test_a_student_gets_their_own_and_not_twice_in_five_minutes(stage: Stage) -> None:
    hanako, taro = await stage.join("花子", student_number="h-1"), await stage.join("太郎")
    for student in (hanako, taro):
        await stage.post(student["token"], [make_run(status="error")])
    await stage.work()
    headers = {"Authorization": f"Bearer {hanako['token']}"}
    answer = await stage.http.get("/api/v1/me/export", headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as out:
        assert read(out, "users")[0]["display_name"] == "花子"
        assert read(out, "events")[0]["error_message"] == "name 'df' is not defined"
        assert {"enrolments", "consents", "tokens", "learning_sessions"} <= set(
            json.loads(out.read("manifest.json"))["rows"]
        )
        everything = b"".join(out.read(name) for name in out.namelist()).decode()
    assert taro["user_id"] not in everything
    assert stage.course.join_code not in everything
    again = await stage.http.get("/api/v1/me/export", headers=headers)
    assert (again.status_code, again.json()["code"]) == (429, "NB-1346")
    assert int(again.headers["retry-after"]) > 0
    nobody = await stage.http.get("/api/v1/me/export")
    assert nobody.status_code == 401
    told = await stage.http.get("/api/v1/me/audit", headers=headers)
    assert "data_exported" in [one["action"] for one in told.json()["entries"]]
