"""Who may do what: joining, signing in, tokens, roles, origins."""

import asyncio
import re
import time
from typing import Any
from uuid import uuid4

import asyncpg
import httpx2
import pytest

from nbpulse.api.access import RULES, Rule, check_rules
from nbpulse.records.people import People
from stage import Stage, make_run

ORIGIN = "https://elsewhere.example"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def read_names(stage: Stage) -> list[tuple[str, str]]:
    return [(student["num"], student["name"]) for student in (await stage.snapshot())["students"]]


# --- joining ----------------------------------------------------------------------------------------------------------


async def test_a_student_joins_by_the_code_in_any_spelling_and_shows_at_once(stage: Stage) -> None:
    code = f" {stage.course.join_code[:3].lower()}-{stage.course.join_code[3:].lower()} "
    answer = await stage.http.post("/api/v1/join", json={"join_code": code, "display_name": "山田 太郎"})
    assert answer.status_code == 201
    joined = answer.json()
    assert re.fullmatch(r"nbp_student_[0-9a-f]{32}_[\w-]{43}", joined["token"])
    assert joined["username"] == f"{stage.course.short_name}-1"
    assert re.fullmatch(r"(\w{4}-){2}\w{4}", joined["resume_code"])
    assert await read_names(stage) == [(joined["username"], "山田 太郎")]


async def test_the_display_name_is_nowhere_in_clear(stage: Stage) -> None:
    await stage.join("カナリア 花子")
    connection = await asyncpg.connect(stage.database_url)
    try:
        stored = await connection.fetchval("SELECT display_name FROM users ORDER BY created_at DESC LIMIT 1")
    finally:
        await connection.close()
    assert stored
    assert "カナリア" not in stored


async def test_the_resume_code_gives_the_same_person_on_another_machine(stage: Stage) -> None:
    first = await stage.join("太郎", student_number="S-001")
    assert first["username"] == "S-001"
    again = await stage.join("太郎", student_number="S-001", resume_code=first["resume_code"].lower())
    assert (again["user_id"], again["username"]) == (first["user_id"], "S-001")
    assert again["token"] != first["token"]
    assert again["resume_code"] is None
    without_number = await stage.join("太郎", resume_code=first["resume_code"])
    assert without_number["user_id"] == first["user_id"]
    assert len(await read_names(stage)) == 1
    for token in (first["token"], again["token"]):
        assert (await stage.post(token, make_run())).status_code == 202


async def test_a_wrong_resume_code_is_refused_and_another_students_is_too(stage: Stage) -> None:
    await stage.join("太郎", student_number="S-001")
    other = await stage.join("次郎", student_number="S-002")
    for code in ("AAAA-BBBB-CCCC", other["resume_code"]):
        answer = await stage.http.post(
            "/api/v1/join",
            json={
                "join_code": stage.course.join_code,
                "display_name": "太郎",
                "student_number": "S-001",
                "resume_code": code,
            },
        )
        assert (answer.status_code, answer.json()["code"]) == (403, "NB-1106")


async def test_a_taken_number_without_the_code_is_a_new_person_that_staff_are_asked_about(stage: Stage) -> None:
    first = await stage.join("太郎", student_number="S-001")
    second = await stage.join("太郎?", student_number="S-001")
    assert second["user_id"] != first["user_id"]
    assert second["username"] == f"{stage.course.short_name}-2"
    connection = await asyncpg.connect(stage.database_url)
    try:
        same_as = await connection.fetchval(
            "SELECT maybe_same_as::text FROM enrolments WHERE user_id = $1::uuid", second["user_id"]
        )
    finally:
        await connection.close()
    assert same_as == first["user_id"]


async def test_200_students_joining_at_once_get_200_names(stage: Stage) -> None:
    answers = await asyncio.gather(*(stage.join(f"student {number}") for number in range(200)))
    assert len({joined["username"] for joined in answers}) == 200
    assert len((await stage.snapshot())["students"]) == 200


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"join_code": "ZZZZZZ", "display_name": "x"}, 404, "NB-1105"),
        ({"join_code": "", "display_name": "x"}, 422, "NB-1007"),
        ({"join_code": "ZZZZZZ"}, 422, "NB-1007"),
        ({"join_code": "ZZZZZZ", "display_name": " "}, 422, "NB-1007"),
        ({"join_code": "ZZZZZZ", "display_name": "a\x00b"}, 422, "NB-1007"),
        ({"join_code": "ZZZZZZ", "display_name": "x" * 201}, 422, "NB-1007"),
        ({"join_code": 7, "display_name": "x"}, 422, "NB-1007"),
        ([], 422, "NB-1007"),
    ],
)
async def test_joining_with_bad_input_says_what_is_wrong(stage: Stage, body: Any, status: int, code: str) -> None:
    answer = await stage.http.post("/api/v1/join", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


# --- signing in -------------------------------------------------------------------------------------------------------


async def sign_in(stage: Stage, http: httpx2.AsyncClient) -> httpx2.Response:
    code = await stage.people.create_link(stage.teacher_id)
    return await http.post("/api/v1/sign-in", json={"code": code}, headers={"Origin": stage.url})


async def test_a_link_signs_in_once_and_the_cookie_opens_the_board(stage: Stage) -> None:
    code = await stage.people.create_link(stage.teacher_id)
    answer = await stage.http.post("/api/v1/sign-in", json={"code": code}, headers={"Origin": stage.url})
    assert answer.status_code == 200
    assert [course["id"] for course in answer.json()["courses"]].count(str(stage.course.id)) == 1
    cookie = answer.headers["set-cookie"].lower()
    for part in ("nbpulse_session=nbp_session_", "httponly", "samesite=strict", "path=/"):
        assert part in cookie
    assert "secure" not in cookie  # this stage speaks http
    assert (await stage.http.get(f"/api/v1/courses/{stage.course.id}/live")).status_code == 200
    again = await stage.http.post("/api/v1/sign-in", json={"code": code})
    assert (again.status_code, again.json()["code"]) == (401, "NB-1104")


async def test_a_link_that_is_used_twice_at_once_signs_in_once(stage: Stage) -> None:
    code = await stage.people.create_link(stage.teacher_id)
    answers = await asyncio.gather(*(stage.http.post("/api/v1/sign-in", json={"code": code}) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 7


async def test_a_link_of_11_minutes_ago_is_refused(stage: Stage) -> None:
    code = await stage.people.create_link(stage.teacher_id)
    connection = await asyncpg.connect(stage.database_url)
    try:
        await connection.execute("UPDATE tokens SET expires_at = now() - interval '1 minute' WHERE kind = 'link'")
    finally:
        await connection.close()
    answer = await stage.http.post("/api/v1/sign-in", json={"code": code})
    assert (answer.status_code, answer.json()["code"]) == (401, "NB-1104")


async def test_another_site_can_do_nothing_with_the_cookie(stage: Stage) -> None:
    assert (await sign_in(stage, stage.http)).status_code == 200
    path = f"/api/v1/courses/{stage.course.id}/tickets"
    for headers in ({"Origin": ORIGIN}, {}, {"Origin": "null"}, {"Origin": stage.url + "9"}):
        answer = await stage.http.post(path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "NB-1107")
    assert (await stage.http.post(path, headers={"Origin": stage.url})).status_code == 201
    foreign = await stage.http.post("/api/v1/sign-in", json={"code": "x"}, headers={"Origin": ORIGIN})
    assert (foreign.status_code, foreign.json()["code"]) == (403, "NB-1107")
    for name in ("access-control-allow-origin", "access-control-allow-credentials"):
        assert name not in foreign.headers


async def test_signing_out_ends_the_session_everywhere(stage: Stage) -> None:
    assert (await sign_in(stage, stage.http)).status_code == 200
    cookie = stage.http.cookies["nbpulse_session"]
    assert (await stage.http.post("/api/v1/sign-out", headers={"Origin": stage.url})).status_code == 204
    kept = {"Cookie": f"nbpulse_session={cookie}"}
    assert (await stage.http.get("/api/v1/me", headers=kept)).status_code == 401


async def test_a_cookie_over_https_is_secure(stage_database: str, embedded_valkey: str) -> None:
    from stage import open_stage

    async with open_stage(stage_database, embedded_valkey, public_url="https://board.example") as stage:
        code = await stage.people.create_link(stage.teacher_id)
        answer = await stage.http.post(
            "/api/v1/sign-in", json={"code": code}, headers={"Origin": "https://board.example"}
        )
        assert answer.status_code == 200
        assert "secure" in answer.headers["set-cookie"].lower()


# --- tokens and roles -------------------------------------------------------------------------------------------------


async def test_a_revoked_token_ends_within_30_seconds(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    token = (await stage.join())["token"]
    assert (await stage.post(token, make_run())).status_code == 202
    person = await stage.parts.people.find_person(token)
    assert person is not None
    assert await stage.people.revoke_token(person.token_id)
    assert not await stage.parts.people.revoke_token(person.token_id)
    assert (await stage.post(token, make_run())).status_code == 202  # the cached yes
    monkeypatch.setattr("nbpulse.api.access._REFRESH_AFTER_S", 0.0)
    monkeypatch.setattr("nbpulse.api.access.YES_LIFE_S", 0.0)
    assert (await stage.post(token, make_run())).status_code == 401


async def test_alices_token_with_bobs_name_is_refused_and_nothing_of_it_is_stored(stage: Stage) -> None:
    alice, bob = await stage.join("Alice"), await stage.join("Bob")
    forged, own = make_run(user_id=bob["user_id"]), make_run()
    answer = await stage.post(alice["token"], forged)
    assert (answer.status_code, answer.json()["code"]) == (403, "NB-1102")
    answer = await stage.post(alice["token"], [forged, own])
    assert [(one["status"], one.get("code")) for one in answer.json()["results"]] == [
        ("rejected", "NB-1102"),
        ("accepted", None),
    ]
    await stage.work()
    connection = await asyncpg.connect(stage.database_url)
    try:
        rows = await connection.fetch(
            "SELECT user_id::text, event_id::text FROM events WHERE course_id = $1", stage.course.id
        )
    finally:
        await connection.close()
    assert [tuple(row) for row in rows] == [(alice["user_id"], own["event_id"])]


async def test_the_database_holds_no_secret(stage: Stage) -> None:
    token = (await stage.join())["token"]
    secret = token.split("_", 3)[3]
    connection = await asyncpg.connect(stage.database_url)
    try:
        rows = await connection.fetch("SELECT t::text AS row FROM tokens t")
    finally:
        await connection.close()
    assert rows
    assert not [row for row in rows if secret in row["row"]]


async def test_students_see_no_board_and_strangers_no_course(stage: Stage) -> None:
    student = bearer((await stage.join())["token"])
    other = await stage.courses.ensure_course("Another", f"o{uuid4().hex[:8]}")
    for path in ("live", "series?metric=activity"):
        mine = await stage.http.get(f"/api/v1/courses/{stage.course.id}/{path}", headers=student)
        assert (mine.status_code, mine.json()["code"]) == (403, "NB-1103")
        theirs = await stage.http.get(f"/api/v1/courses/{other.id}/{path}", headers=stage.staff)
        assert (theirs.status_code, theirs.json()["code"]) == (404, "NB-1202")
    inbox = await stage.http.get("/api/v1/me/inbox?wait_s=0", headers=stage.staff)
    assert (inbox.status_code, inbox.json()["code"]) == (403, "NB-1103")


async def test_a_token_of_one_course_opens_no_other(stage: Stage) -> None:
    other = await stage.courses.ensure_course("Another", f"o{uuid4().hex[:8]}")
    await stage.courses.ensure_teacher(other.id)
    async with asyncpg.create_pool(stage.database_url, min_size=1, max_size=1) as pool:
        token = await People(pool, stage.courses._seal).create_staff_token(stage.teacher_id, other.id)
    assert (await stage.http.get(f"/api/v1/courses/{other.id}/live", headers=bearer(token))).status_code == 200
    assert (await stage.http.get(f"/api/v1/courses/{stage.course.id}/live", headers=bearer(token))).status_code == 404


async def test_every_route_refuses_nobody_by_its_rule(stage: Stage) -> None:
    for place, rule in RULES.items():
        method, path = place.split(" ")
        if method == "WS" or rule in (Rule.ANYONE, Rule.LOCAL):
            continue
        path = path.replace("{course_id}", str(stage.course.id))
        answer = await stage.http.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (401, "NB-1101"), place


async def test_metrics_are_not_told_through_a_proxy(stage: Stage) -> None:
    assert (await stage.http.get("/metrics")).status_code == 200
    answer = await stage.http.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"})
    assert answer.status_code == 403


def test_a_route_without_a_rule_or_a_rule_without_a_route_stops_the_start() -> None:
    check_rules(RULES)
    with pytest.raises(RuntimeError, match="GET /secret"):
        check_rules({*RULES, "GET /secret"})
    with pytest.raises(RuntimeError, match="POST /api/v1/events"):
        check_rules(RULES.keys() - {"POST /api/v1/events"})


async def test_a_course_goes_with_all_its_students_work(stage: Stage) -> None:
    token = (await stage.join())["token"]
    await stage.post(token, [make_run(), make_run(1, "error")])
    await stage.work()
    assert await stage.courses.delete_course(stage.course.id) == 1
    connection = await asyncpg.connect(stage.database_url)
    try:
        for table in ("events", "learner_states", "learner_cells", "learning_sessions", "enrolments"):
            rows = await connection.fetchval(f"SELECT count(*) FROM {table} WHERE course_id = $1", stage.course.id)
            assert rows == 0, table
    finally:
        await connection.close()
    assert (await stage.http.post("/api/v1/join", json={})).status_code == 422
    started = time.monotonic()
    gone = await stage.http.get(f"/api/v1/courses/{stage.course.id}/live", headers=stage.staff)
    assert gone.status_code in (200, 404)  # the teacher's yes of up to 30 s ago may still show the view
    assert time.monotonic() - started < 5


# --- pages ------------------------------------------------------------------------------------------------------------


async def test_the_pages_keep_to_themselves_and_are_not_sent_twice(stage: Stage) -> None:
    page = await stage.http.get(f"/courses/{stage.course.id}")
    assert page.text.startswith("<!doctype html>")
    script = await stage.http.get("/web/js/main.js")
    assert script.headers["content-type"].startswith("text/javascript")
    again = await stage.http.get("/web/js/main.js", headers={"If-None-Match": script.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for path in ("/web/%2e%2e/settings.py", "/web/..%2fsettings.py", "/web/", "/web/nothing.js", "/web/%00"):
        assert (await stage.http.get(path)).status_code == 404, path


async def test_refusals_of_the_framework_are_problems_too(stage: Stage) -> None:
    for method, path, status, code in (
        ("GET", "/nowhere", 404, "NB-1201"),
        ("DELETE", "/api/v1/events", 405, "NB-1203"),
        ("GET", "/api/v1/courses/no-id/live", 404, "NB-1202"),
        ("GET", f"/api/v1/courses/{stage.course.id}/live?notebook=x", 404, "NB-1201"),
        ("GET", f"/api/v1/courses/{stage.course.id}/series?metric=activity&window_minutes=0", 422, "NB-1007"),
    ):
        answer = await stage.http.request(method, path, headers=stage.staff)
        assert (answer.status_code, answer.json()["code"]) == (status, code), path
        assert answer.headers["content-type"] == "application/problem+json"
