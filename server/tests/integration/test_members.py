"""A course's people: who is let in and by which code, roles and the last instructor, the roster and who it expects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest
from typer.testing import CliRunner, Result

from nbpulse import cli
from nbpulse.crypto import EncryptedField
from nbpulse.errors import NotFound
from nbpulse.records.merging import merge_users
from stage import KEY, Stage, make_run
from stores import connect
from working import until

ROSTER = "student_number,name,kana,team,seat\n1,山田 太郎,ヤマダ タロウ,red,1-1\n2,佐藤 花子,,blue,\n"


async def call(stage: Stage, method: str, path: str, token: str = "", **sent: Any) -> httpx2.Response:
    """As the teacher, or whoever's token it is."""
    headers = {"Authorization": f"Bearer {token or stage.teacher_token}", **sent.pop("headers", {})}
    return await stage.http.request(method, f"/api/v1/courses/{stage.course.id}/{path}", headers=headers, **sent)


async def list_people(stage: Stage) -> dict[str, dict[str, Any]]:
    """By number, else by name."""
    answer = await call(stage, "GET", "people")
    assert answer.status_code == 200, answer.text
    return {one["number"] or one["name"]: one for one in answer.json()["members"]}


async def take(stage: Stage, roster: str, **query: Any) -> dict[str, Any]:
    answer = await call(
        *(stage, "POST", "roster"),
        params={"dry_run": "false", **query},
        content=roster.encode(),
        headers={"Content-Type": "text/csv; charset=utf-8"},
    )
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def numbers(lines: list[dict[str, Any]]) -> list[str]:
    return [line["student_number"] for line in lines]


async def add_staff(stage: Stage, role: str) -> tuple[UUID, str]:
    user_id = uuid4()
    async with connect(stage.database_url) as owner:
        await owner.execute("INSERT INTO users (id, username) VALUES ($1, $2)", user_id, user_id.hex)
        await owner.execute(
            "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, $3)", user_id, stage.course.id, role
        )
    return user_id, await stage.people.create_staff_token(user_id)


# --- coming in --------------------------------------------------------------------------------------------------------


async def test_who_has_to_be_let_in_waits_and_loses_nothing(stage: Stage) -> None:
    assert (await call(stage, "PATCH", "entry", json={"needs_approval": True})).json()["needs_approval"] is True
    joined = await stage.join("新人", student_number="9")
    assert joined["is_waiting"] is True
    run = make_run()
    refused = await stage.post(joined["token"], run)
    assert (refused.status_code, refused.json()["code"]) == (409, "NB-1140")
    assert int(refused.headers["retry-after"]) >= 10
    assert (await stage.read_inbox(joined))["messages"] == []
    assert (await list_people(stage))["9"]["role"] == "waiting"
    assert (await stage.snapshot())["students"] == []
    body = {"user_ids": [joined["user_id"], str(uuid4())]}
    approved = await call(stage, "POST", "people/approvals", json=body)
    assert approved.json() == {"approved": [joined["user_id"]]}
    assert (await stage.post(joined["token"], run)).status_code == 202
    assert await stage.work() == 1

    async def is_on_the_board() -> bool:
        return [one["id"] for one in (await stage.snapshot())["students"]] == [joined["user_id"]]

    await until(is_on_the_board)


async def test_a_closed_code_lets_nobody_new_in_and_who_was_here_comes_back(stage: Stage) -> None:
    known = await stage.join(student_number="1")
    await call(stage, "PATCH", "entry", json={"is_join_closed": True})
    wanted = {"join_code": stage.course.join_code, "display_name": "x"}
    refused = await stage.http.post("/api/v1/join", json=wanted)
    assert (refused.status_code, refused.json()["code"]) == (403, "NB-1142")
    back = await stage.join(resume_code=known["resume_code"])
    assert (back["user_id"], back["is_waiting"]) == (known["user_id"], False)
    async with connect(stage.database_url) as owner:
        await owner.execute(
            "UPDATE courses SET is_join_closed = FALSE, join_code_expires_at = now() - interval '1 s' WHERE id = $1",
            stage.course.id,
        )
    refused = await stage.http.post("/api/v1/join", json=wanted)
    assert (refused.status_code, refused.json()["code"]) == (403, "NB-1143")
    assert (await stage.http.post("/api/v1/join", json={**wanted, "resume_code": "x"})).json()["code"] == "NB-1106"


async def test_a_new_code_takes_the_old_ones_place(stage: Stage) -> None:
    await call(stage, "PATCH", "entry", json={"is_join_closed": True})
    entry = (await call(stage, "POST", "join-code", json={"days": 3})).json()
    assert entry["join_code"] != stage.course.join_code
    assert entry["is_join_closed"] is False
    for code, status in ((stage.course.join_code, 404), (entry["join_code"], 201)):
        answer = await stage.http.post("/api/v1/join", json={"join_code": code, "display_name": "x"})
        assert answer.status_code == status


# --- roles ------------------------------------------------------------------------------------------------------------


async def test_a_course_keeps_an_instructor(stage: Stage) -> None:
    for role in ("assistant", "student", "former"):
        refused = await call(stage, "PATCH", f"people/{stage.teacher_id}", json={"role": role})
        assert (refused.status_code, refused.json()["code"]) == (409, "NB-1145")
    other_id, other = await add_staff(stage, "assistant")
    raised = await call(stage, "PATCH", f"people/{other_id}", json={"role": "instructor"})
    assert raised.json()["role"] == "instructor"
    assert (await call(stage, "PATCH", f"people/{stage.teacher_id}", json={"role": "former"})).status_code == 200
    assert (await call(stage, "GET", "people")).status_code == 403
    assert (await call(stage, "GET", "people", other)).status_code == 200


async def test_who_is_taken_out_delivers_no_more_and_waits_when_they_come_again(stage: Stage) -> None:
    joined = await stage.join(student_number="1")
    assert (await stage.post(joined["token"], make_run())).status_code == 202
    await stage.work()
    await stage.snapshot()
    member = (await call(stage, "PATCH", f"people/{joined['user_id']}", json={"role": "former"})).json()
    assert member["left_at"] is not None
    refused = await stage.post(joined["token"], make_run())
    assert (refused.status_code, refused.json()["code"]) == (403, "NB-1141")
    again = await stage.join(resume_code=joined["resume_code"])
    assert (again["user_id"], again["is_waiting"]) == (joined["user_id"], True)
    taken_back = (await call(stage, "PATCH", f"people/{joined['user_id']}", json={"role": "student"})).json()
    assert (taken_back["role"], taken_back["left_at"]) == ("student", None)
    assert (await stage.post(again["token"], make_run())).status_code == 202


async def test_team_teams_and_seat_are_changed_one_by_one_and_cleared(stage: Stage) -> None:
    joined = await stage.join()
    path = f"people/{joined['user_id']}"
    await call(stage, "PATCH", path, json={"team": " red ", "seat": "1-2"})
    changed = (await call(stage, "PATCH", path, json={"seat": None})).json()
    assert (changed["team"], changed["seat"], changed["role"]) == ("red", None, "student")
    assistant, _ = await add_staff(stage, "assistant")
    changed = (await call(stage, "PATCH", f"people/{assistant}", json={"teams": ["red", " ", "blue"]})).json()
    assert changed["teams"] == ["red", "blue"]
    for wrong in ({"team": "x" * 41}, {"team": "a\nb"}, {"role": "waiting"}, {"role": "operator"}, {"teams": None}):
        assert (await call(stage, "PATCH", path, json=wrong)).status_code == 422


async def test_what_a_jupyterhub_gave_is_changed_there(stage: Stage) -> None:
    joined = await stage.join()
    async with connect(stage.database_url) as owner:
        await owner.execute(
            "UPDATE enrolments SET granted_by = 'jupyterhub' WHERE user_id = $1", UUID(joined["user_id"])
        )
    refused = await call(stage, "PATCH", f"people/{joined['user_id']}", json={"role": "former"})
    assert (refused.status_code, refused.json()["code"]) == (409, "NB-1146")
    assert (await call(stage, "PATCH", f"people/{joined['user_id']}", json={"team": "red"})).json()["team"] == "red"


@pytest.mark.parametrize("role", ["assistant", "student", "stranger"])
async def test_only_an_instructor_changes_anything(stage: Stage, role: str) -> None:
    student = await stage.join()
    _, token = await add_staff(stage, "assistant")
    status = 403
    if role == "student":
        token = student["token"]
    elif role == "stranger":
        other = await stage.courses.ensure_course("Other", f"o{uuid4().hex[:8]}")
        stranger = await stage.courses.ensure_teacher(other.id, username=f"z{uuid4().hex[:8]}")
        token, status = await stage.people.create_staff_token(stranger), 404
    member = student["user_id"]
    for method, path, sent in (
        ("PATCH", f"people/{member}", {"json": {"role": "former"}}),
        ("POST", "people/approvals", {"json": {"user_ids": [member]}}),
        ("PATCH", "entry", {"json": {"is_join_closed": True}}),
        ("POST", "join-code", {"json": {}}),
        ("POST", "roster?dry_run=false", {"content": ROSTER.encode(), "headers": {"Content-Type": "text/csv"}}),
    ):
        assert (await call(stage, method, path, token, **sent)).status_code == status, path
    seen = await call(stage, "GET", "people", token)
    assert seen.status_code == (200 if role == "assistant" else status)
    people = (await list_people(stage)).values()
    assert sorted(one["role"] for one in people) == ["assistant", "instructor", "student"]


async def test_the_database_lets_only_instructors_write(stage: Stage) -> None:
    """The same statements as another asker: the API's own login, without the API."""
    assistant_id, _ = await add_staff(stage, "assistant")
    student = UUID((await stage.join())["user_id"])
    async with stage.parts.people._pool.acquire() as connection:
        for asker, count in ((stage.teacher_id, 1), (assistant_id, 0), (student, 0)):
            for statement in (
                "UPDATE enrolments SET team = 'x' WHERE course_id = $1 AND role = 'student'",
                "UPDATE courses SET needs_approval = TRUE WHERE id = $1",
            ):
                async with connection.transaction():
                    await connection.execute(f"SET LOCAL app.current_user_id = '{asker}'")
                    assert await connection.execute(statement, stage.course.id) == f"UPDATE {count}"


# --- the roster -------------------------------------------------------------------------------------------------------


async def test_a_roster_is_previewed_then_taken_in_and_names_are_sealed(stage: Stage) -> None:
    preview = await take(stage, ROSTER, dry_run="true")
    assert numbers(preview["added"]) == ["1", "2"]
    assert (await list_people(stage)).keys() == {"teacher"}
    done = await take(stage, ROSTER)
    assert {**done, "is_dry_run": True} == preview
    people = await list_people(stage)
    first = people["1"]
    assert [first[name] for name in ("name", "kana", "team", "seat", "role", "joined_at")] == [
        *("山田 太郎", "ヤマダ タロウ", "red", "1-1", "student", None)
    ]
    again = await take(stage, ROSTER)
    assert (again["added"], again["changed"], again["left"], again["unchanged"]) == ([], [], [], 2)
    board = await stage.snapshot()
    assert [(one["num"], one["name"], one["st"]) for one in board["students"]] == [
        ("1", "山田 太郎", "offline"),
        ("2", "佐藤 花子", "offline"),
    ]
    async with connect(stage.database_url) as owner:
        rows = await owner.fetch(
            "SELECT e::text || u::text AS text FROM enrolments e JOIN users u ON u.id = e.user_id WHERE course_id = $1",
            stage.course.id,
        )
    assert not any(name in row["text"] for row in rows for name in ("山田", "ヤマダ", "佐藤"))


async def test_who_joins_with_number_and_name_is_who_the_roster_expects(stage: Stage) -> None:
    await take(stage, ROSTER)
    expected = (await list_people(stage))["1"]
    joined = await stage.join("やまだたろう", student_number="１")
    assert joined["user_id"] == expected["user_id"]
    assert (await stage.post(joined["token"], make_run())).status_code == 202
    people = await list_people(stage)
    assert people["1"]["joined_at"] is not None
    assert people["1"]["name"] == "山田 太郎"
    # The number is theirs from now on: the same name and number again is somebody else until staff say otherwise.
    again = await stage.join("山田太郎", student_number="1")
    assert again["user_id"] != expected["user_id"]


async def test_another_name_with_a_roster_s_number_gets_nobody_s_entry(stage: Stage) -> None:
    await take(stage, ROSTER)
    expected = (await list_people(stage))["2"]
    joined = await stage.join("鈴木 次郎", student_number="2")
    assert joined["user_id"] != expected["user_id"]
    members = (await call(stage, "GET", "people")).json()["members"]
    (stranger,) = [one for one in members if one["user_id"] == joined["user_id"]]
    assert stranger["same_as"] == expected["user_id"]
    assert stranger["number"] == "2"
    assert {one["joined_at"] is None for one in members if one["user_id"] == expected["user_id"]} == {True}


async def test_who_left_the_roster_is_marked_and_comes_back_with_it(stage: Stage) -> None:
    await take(stage, ROSTER)
    guest = await stage.join("聴講生", student_number="77")
    shorter = ROSTER.splitlines(keepends=True)[0] + "2,佐藤 花子,サトウ ハナコ,blue,\n3,新 入生,,,\n"
    kept = await take(stage, shorter, dry_run="true", mark_left="false")
    assert kept["left"] == []
    done = await take(stage, shorter)
    assert [numbers(done[name]) for name in ("added", "changed", "left")] == [["3"], ["2"], ["1"]]
    people = await list_people(stage)
    assert (people["1"]["role"], people["1"]["left_at"] is not None) == ("former", True)
    assert people["77"]["user_id"] == guest["user_id"]
    assert people["77"]["role"] == "student"
    back = await take(stage, ROSTER, mark_left="false")
    assert numbers(back["returned"]) == ["1"]
    assert (await list_people(stage))["1"]["role"] == "student"


async def test_doubts_and_staff_s_numbers_are_named_in_words(stage: Stage) -> None:
    await stage.join("鈴木 次郎", student_number="2")
    staff_id, _ = await add_staff(stage, "assistant")
    async with connect(stage.database_url) as owner:
        await owner.execute("UPDATE enrolments SET student_number = '1' WHERE user_id = $1", staff_id)
    answer = await call(
        *(stage, "POST", "roster"),
        content=(ROSTER + ",x,,,\n").encode("cp932"),
        headers={"Content-Type": "text/csv", "Accept-Language": "ja"},
    )
    told = answer.json()
    assert (told["encoding"], numbers(told["doubtful"])) == ("cp932", ["2"])
    assert [(one["line"], one["code"]) for one in told["problems"]] == [(2, "NB-1159"), (4, "NB-1153")]
    assert told["problems"][1]["title"] == "学籍番号がありません。"


async def test_a_number_that_is_a_username_elsewhere_is_no_obstacle(stage: Stage) -> None:
    name = f"n{uuid4().hex[:8]}"
    async with connect(stage.database_url) as owner:
        await owner.execute("INSERT INTO users (username) VALUES ($1)", name)
    done = await take(stage, f"student_number,name\n{name},甲\n{name}b,乙\n")
    assert len(done["added"]) == 2
    people = await list_people(stage)
    assert people[f"{name}b"]["username"] == f"{name}b"
    assert people[name]["username"].startswith(f"{stage.course.short_name}/")


async def test_a_large_roster_is_taken_in_at_once_and_every_page_answers(stage: Stage) -> None:
    first = await stage.join("first", student_number="0")
    assert (await stage.post(first["token"], [make_run(0, "error")])).status_code == 202
    await stage.work()
    async with connect(stage.database_url) as owner:
        await owner.execute("ANALYZE")  # what the planner knows is of before, as on a site's first day
    rows = "".join(f"{stage.course.short_name}{number},name {number}\n" for number in range(2_000))
    done = await take(stage, "student_number,name\n" + rows)
    assert len(done["added"]) == 2_000

    async def are_on_the_board() -> bool:
        answer = await stage.http.get(f"/api/v1/courses/{stage.course.id}/live", headers=stage.staff)
        assert answer.status_code == 200, answer.text
        return len(answer.json()["students"]) == 2_001

    await until(are_on_the_board)
    ready = await call(stage, "GET", "readiness")
    assert (ready.status_code, len(ready.json()["students"])) == (200, 2_001), ready.text
    async with connect(stage.database_url) as owner:  # in the next minute they all make the same mistake
        fingerprint = await owner.fetchval("SELECT error_fingerprint FROM events WHERE course_id = $1", stage.course.id)
        await owner.execute(
            "UPDATE learner_states s SET state = f.state FROM learner_states f"
            " WHERE s.course_id = $1 AND f.course_id = $1 AND f.user_id = $2 AND s.user_id <> f.user_id",
            *(stage.course.id, UUID(first["user_id"])),
        )
    error = await call(stage, "GET", f"errors/{fingerprint}")
    assert (error.status_code, len(error.json()["now"])) == (200, 2_001), error.text
    for to in ({"all": True}, {"error_fingerprint": fingerprint}):
        sent = await call(stage, "POST", "messages", json={"id": str(uuid4()), "to": to, "text": "hello"})
        assert (sent.status_code, sent.json()["recipients"]) == (201, 2_001), sent.text


async def test_merging_keeps_what_the_roster_says(stage: Stage) -> None:
    await take(stage, ROSTER)
    expected = UUID((await list_people(stage))["2"]["user_id"])
    joined = UUID((await stage.join("鈴木", student_number="2"))["user_id"])
    async with asyncpg.create_pool(stage.database_url, min_size=1, max_size=1) as pool:
        await merge_users(pool, EncryptedField(KEY), keep_id=joined, drop_id=expected)
    merged = (await list_people(stage))["2"]
    assert (merged["user_id"], merged["name"], merged["team"]) == (str(joined), "佐藤 花子", "blue")
    assert merged["joined_at"] is not None


async def test_every_change_is_in_the_audit_log(stage: Stage) -> None:
    await call(stage, "PATCH", "entry", json={"needs_approval": True})
    await call(stage, "PATCH", "entry", json={})
    await call(stage, "POST", "join-code", json={"days": 7})
    code = (await call(stage, "GET", "people")).json()["entry"]["join_code"]
    joined = await stage.http.post("/api/v1/join", json={"join_code": code, "display_name": "x"})
    student = joined.json()["user_id"]
    await call(stage, "POST", "people/approvals", json={"user_ids": [student]})
    for _ in range(2):
        await call(stage, "PATCH", f"people/{student}", json={"role": "assistant", "teams": ["red"]})
    await take(stage, ROSTER, dry_run="true")
    await take(stage, ROSTER)
    async with connect(stage.database_url) as owner:
        rows = await owner.fetch(
            "SELECT action, actor_id, subject_id, facts FROM audit_log WHERE course_id = $1 AND actor_id = $2"
            " AND action NOT LIKE '%viewed' ORDER BY id",
            *(stage.course.id, stage.teacher_id),
        )
    assert [(row["action"], row["subject_id"], json.loads(row["facts"])) for row in rows] == [
        ("entry_changed", None, {"needs_approval": True}),
        ("entry_changed", None, {"new_code_days": 7}),
        ("member_changed", UUID(student), {"from": "waiting", "to": "student"}),
        ("member_changed", UUID(student), {"fields": "teams", "from": "student", "to": "assistant"}),
        ("roster_imported", None, {"added": 2, "changed": 0, "returned": 0, "left": 0}),
    ]


# --- invitations ------------------------------------------------------------------------------------------------------


async def invite(stage: Stage, **wanted: Any) -> dict[str, Any]:
    answer = await call(stage, "POST", "invitations", json={"role": "assistant", **wanted})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def accept(stage: Stage, code: str, **more: Any) -> httpx2.Response:
    """In a browser of its own, signed in as nobody."""
    async with httpx2.AsyncClient(base_url=stage.url, headers=more.pop("headers", {})) as browser:
        return await browser.post("/api/v1/invitations/accept", json={"code": code, **more})


def newcomer() -> dict[str, str]:
    return {"username": f"staff-{uuid4().hex[:8]}", "display_name": "田中 花子"}


async def sign_in(stage: Stage, user_id: UUID) -> dict[str, str]:
    """The cookie of a board."""
    code = await stage.people.create_link(user_id)
    async with httpx2.AsyncClient(base_url=stage.url) as browser:
        answer = await browser.post("/api/v1/sign-in", json={"code": code})
    return {"Cookie": answer.headers["set-cookie"].partition(";")[0], "Origin": stage.url}


async def test_an_invitation_makes_somebody_of_nobody_once(stage: Stage) -> None:
    made = await invite(stage, teams=["red"])
    described = await stage.http.post("/api/v1/invitations/describe", json={"code": made["code"]})
    assert described.json() == {"course_title": stage.course.title, "role": "assistant"}
    assert (await accept(stage, made["code"])).json()["code"] == "NB-1007"
    taken = await accept(stage, made["code"], username="teacher", display_name="x")
    assert (taken.status_code, taken.json()["code"]) == (409, "NB-1148")
    accepted = await accept(stage, made["code"], **newcomer())
    assert accepted.status_code == 200, accepted.text
    assert [one["role"] for one in accepted.json()["courses"]] == ["assistant"]
    assert "httponly" in accepted.headers["set-cookie"].lower()
    people = await list_people(stage)
    assert people["田中 花子"]["teams"] == ["red"]
    again = await accept(stage, made["code"], **newcomer())
    assert (again.status_code, again.json()["code"]) == (403, "NB-1147")
    assert (await call(stage, "GET", "people")).json()["invitations"] == []


async def test_who_is_signed_in_takes_the_role_as_themselves_and_is_never_lowered(stage: Stage) -> None:
    other = await stage.courses.ensure_course("Other", f"o{uuid4().hex[:8]}")
    user_id = await stage.courses.ensure_teacher(other.id, username=f"t{uuid4().hex[:8]}", display_name="佐藤 樹")
    cookie = await sign_in(stage, user_id)
    foreign = {**cookie, "Origin": "https://elsewhere.example"}
    made = await invite(stage, role="instructor")
    assert (await accept(stage, made["code"], headers=foreign)).json()["code"] == "NB-1107"
    accepted = await accept(stage, made["code"], headers=cookie)
    assert accepted.json() == {"user_id": str(user_id), "course_id": str(stage.course.id)}
    lower = await invite(stage, role="assistant")
    assert (await accept(stage, lower["code"], headers=cookie)).status_code == 200
    assert (await list_people(stage))["佐藤 樹"]["role"] == "instructor"
    live = await stage.http.get(f"/api/v1/courses/{stage.course.id}/live", headers=cookie)
    assert live.status_code == 200


async def test_a_student_is_not_made_staff_by_a_link_and_the_link_stays_good(stage: Stage) -> None:
    student = await stage.join()
    made = await invite(stage)
    refused = await accept(stage, made["code"], headers=await sign_in(stage, UUID(student["user_id"])))
    assert (refused.status_code, refused.json()["code"]) == (409, "NB-1149")
    assert (await accept(stage, made["code"], **newcomer())).status_code == 200


@pytest.mark.parametrize("end", ["revoked", "expired", "forged", "another id", "no code"])
async def test_an_invitation_that_ended_or_is_none_opens_nothing(stage: Stage, end: str) -> None:
    made = await invite(stage)
    code = made["code"]
    if end == "revoked":
        assert (await call(stage, "DELETE", f"invitations/{made['id']}")).status_code == 204
        assert (await call(stage, "DELETE", f"invitations/{made['id']}")).status_code == 404
    elif end == "expired":
        async with connect(stage.database_url) as owner:
            await owner.execute("UPDATE invitations SET expires_at = now() WHERE id = $1", UUID(made["id"]))
    else:
        forged = code[:-1] + ("A" if code[-1] != "A" else "B")
        code = {"forged": forged, "another id": code.replace(code[15:47], uuid4().hex), "no code": "x"}[end]
    for path in ("describe", "accept"):
        answer = await stage.http.post(f"/api/v1/invitations/{path}", json={"code": code, **newcomer()})
        assert (answer.status_code, answer.json()["code"]) == (403, "NB-1147"), path


async def test_two_who_accept_one_invitation_at_once(stage: Stage) -> None:
    made = await invite(stage)
    answers = await asyncio.gather(*(accept(stage, made["code"], **newcomer()) for _ in range(5)))
    assert sorted(one.status_code for one in answers) == [200, 403, 403, 403, 403]


async def test_the_secret_of_an_invitation_is_nowhere(stage: Stage) -> None:
    made = await invite(stage)
    secret = made["code"].split("_", 3)[3]
    async with connect(stage.database_url) as owner:
        assert secret not in str(await owner.fetch("SELECT i::text FROM invitations i"))
    assert secret not in (await call(stage, "GET", "people")).text


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Awaitable[Result]]:
    monkeypatch.setenv("NBPULSE_DATABASE_URL", stage.database_url)
    monkeypatch.setenv("NBPULSE_REDIS_URL", stage.redis_url)
    monkeypatch.setenv("NBPULSE_ENCRYPTION_KEYS", KEY.decode())
    monkeypatch.setenv("NBPULSE_PUBLIC_URL", stage.url)

    async def call_command(*arguments: str) -> Result:
        command = [*arguments, "--data", str(tmp_path / "data")]
        return await asyncio.to_thread(CliRunner().invoke, cli.app, command)

    return call_command


async def test_the_operator_takes_a_roster_in(
    stage: Stage, run: Callable[..., Awaitable[Result]], tmp_path: Path
) -> None:
    file = tmp_path / "roster.csv"
    file.write_bytes((ROSTER + ",x,,,\n").encode("cp932"))
    shown = await run("roster", "import", stage.course.short_name, str(file))
    assert shown.exit_code == 0, shown.output
    for words in ("new: 2", "1 山田 太郎", "line 4: No student number.", "NB-1153", "Nothing was done"):
        assert words in shown.output, shown.output
    assert (await list_people(stage)).keys() == {"teacher"}
    done = await run("roster", "import", stage.course.short_name, str(file), "--yes", "--json")
    told = json.loads(done.stdout)
    assert (told["is_done"], told["added"], told["problems"]) == (True, 2, [{"line": 4, "code": "NB-1153"}])
    assert (await list_people(stage))["1"]["name"] == "山田 太郎"
    refused = await run("roster", "import", "no-such-course", str(file))
    assert isinstance(refused.exception, NotFound)


async def test_the_operator_invites_staff(stage: Stage, run: Callable[..., Awaitable[Result]]) -> None:
    made = await run("invite", stage.course.short_name, "--role", "instructor", "--json")
    assert made.exit_code == 0, made.output
    url = json.loads(made.stdout)["link"]
    assert url.startswith(f"{stage.url}/#invite=nbp_invitation_")
    accepted = await accept(stage, url.partition("#invite=")[2], **newcomer())
    assert [one["role"] for one in accepted.json()["courses"]] == ["instructor"]
