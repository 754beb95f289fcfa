"""docs/authorization.md tried out: every route, every caller, with real tokens; and the ways around a route."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from callers import REFUSED, Callers, open_callers, read_table
from nbpulse.api.access import RULES
from stage import make_run
from stores import connect

TABLE = read_table()
LAST = ("POST /api/v1/sign-out",)
"""After these the caller's session is over."""


@pytest.fixture
async def callers(stage_database: str, embedded_valkey: str) -> AsyncIterator[Callers]:
    async with open_callers(stage_database, embedded_valkey) as opened:
        yield opened


def test_the_table_names_every_route() -> None:
    assert list(TABLE) == list(RULES)


async def test_every_cell(callers: Callers) -> None:
    wrong, tried = [], 0
    for route in sorted(TABLE, key=lambda one: one.startswith(LAST)):
        method, path = route.split(" ", 1)
        if route.startswith(LAST):
            callers.headers["assistant"] = await callers.sign_in(callers.ids["assistant"])
        for caller, cell in TABLE[route].items():
            if method == "WS":
                found = await callers.watch(caller)
            else:
                query = "?wait_s=0" if path.endswith("/inbox") else ""
                answer = await callers.ask(caller, method, callers.fill(path) + query)
                is_problem = answer.headers.get("content-type") == "application/problem+json"
                code = answer.json()["code"] if is_problem else ""
                found = str(answer.status_code) if code in REFUSED else "yes"
                assert answer.status_code < 500, (route, caller, answer.text)
            tried += 1
            if found != cell:
                wrong.append((route, caller, cell, found))
    assert wrong == []
    assert tried == len(RULES) * len(callers.headers)


# --- around the route -------------------------------------------------------------------------------------------------


def draw_tricks(course: str, own: str) -> list[str]:
    """Spellings of the class's board that a router, a proxy or a rule might read in two ways."""
    board = f"/api/v1/courses/{course}/live"
    return [
        *(f"{board}/", f"//api/v1/courses/{course}/live", f"/api//v1/courses/{course}/live"),
        *(f"/API/V1/courses/{course}/live", f"/api/v1/courses/{course}/LIVE", f"/api/v1/./courses/{course}/live"),
        *(f"/api/v1/courses/{own}/../{course}/live", f"/api/v1/courses/{own}/..%2f{course}/live"),
        *(f"/api/v1/courses/{own}/%2e%2e/{course}/live", f"/api/v1/courses/{course}%2flive", f"{board}%2f"),
        *(f"{board};x=1", f"{board}%00", f"{board}%20", f"{board}?", f"{board}%3f", f"{board}#x", f"{board}\\..\\x"),
        *(f"/web/..%2f..%2fapi/v1/courses/{course}/live", f"/web/%2e%2e/api/v1/courses/{course}/live"),
        *(f"/api/v1/courses/{course.upper()}/live", f"/api/v1/courses/{course.replace('-', '')}/live"),
        *(f"/api/v1/courses/{{{course}}}/live", f"/api/v1/courses/urn:uuid:{course}/live"),
        *(f"/api/v1/courses/{course},{own}/live", f"/api/v1/courses/{own}/live/../../{course}/live"),
        *(f"/api/v1/courses/{course}/live?course_id={own}", f"/api/v1/courses/{own}/live?course_id={course}"),
        f"http://127.0.0.1/api/v1/courses/{course}/live",
    ]


async def ask_raw(url: str, line: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """A request whose line no client has tidied up: status and whole answer."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = {"Host": address.netloc, "Connection": "close"} | headers
    text = f"{line} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in head.items()) + "\r\n"
    writer.write(text.encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    return int(answer.split(b" ", 2)[1]), answer


@pytest.mark.parametrize("caller", ["nobody", "student", "staff-elsewhere", "hub-student"])
async def test_no_spelling_of_a_path_opens_a_board(callers: Callers, caller: str) -> None:
    course, own = str(callers.stage.course.id), str(callers.other.id)
    told = (callers.stage.course.title.encode(), b'"students"', callers.stage.course.short_name.encode())
    for path in draw_tricks(course, own):
        status, answer = await ask_raw(callers.stage.url, f"GET {path}", callers.headers[caller])
        is_own = caller == "staff-elsewhere" and path.endswith(f"/{own}/live?course_id={course}")
        assert (status == 200) is is_own, (path, status)
        if not is_own:
            assert status in (400, 401, 403, 404, 405), (path, status)
            assert not [word for word in told if word in answer], path
        assert callers.stage.course.title.encode() not in answer, path


@pytest.mark.parametrize("caller", ["nobody", "student", "staff-elsewhere", "instructor"])
async def test_no_other_method_goes_around_a_rule(callers: Callers, caller: str) -> None:
    board, headers = f"/api/v1/courses/{callers.stage.course.id}/live", callers.headers[caller]
    for method in ("HEAD", "OPTIONS", "TRACE", "PUT", "PATCH", "DELETE", "POST", "PROPFIND", "get", "FOO"):
        status, answer = await ask_raw(callers.stage.url, f"{method} {board}", headers | {"Content-Length": "0"})
        assert status in (400, 405), (method, status)
        assert b'"students"' not in answer


@pytest.mark.parametrize(
    "override", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Original-URL", "X-Rewrite-URL"]
)
async def test_no_header_says_another_method_or_path(callers: Callers, override: str) -> None:
    board = f"/api/v1/courses/{callers.stage.course.id}/live"
    for caller, value, expected in (
        ("student", board, 200),  # /api/v1/me, as the line says
        ("instructor", "DELETE", 200),
    ):
        answer = await callers.ask(caller, "GET", "/api/v1/me", headers={override: value})
        assert answer.status_code == expected
        assert "students" not in answer.json()
    answer = await callers.ask(
        "instructor", "POST", f"{board.removesuffix('live')}tickets", headers={override: "DELETE"}
    )
    assert answer.status_code == 201


async def test_a_token_counts_in_its_header_alone(callers: Callers) -> None:
    token = callers.headers["instructor"]["Authorization"].partition(" ")[2]
    board = f"/api/v1/courses/{callers.stage.course.id}/live"
    for path in (f"{board}?token={token}", f"{board}?access_token={token}", f"{board}?authorization=Bearer%20{token}"):
        assert (await callers.stage.http.get(path)).status_code == 401
    for headers in ({"X-Auth-Token": token}, {"Cookie": f"token={token}"}, {"Authorization": f"Basic {token}"}):
        assert (await callers.stage.http.get(board, headers=headers)).status_code == 401
    # A header given on purpose goes before the cookie, also when it is worth less.
    both = callers.headers["assistant"] | callers.headers["student"]
    assert (await callers.stage.http.get(board, headers=both)).status_code == 403


async def test_a_proxys_headers_make_nobody_local(callers: Callers) -> None:
    for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
        assert (await callers.stage.http.get("/metrics", headers={name: "127.0.0.1"})).status_code == 403


# --- more than was asked for ------------------------------------------------------------------------------------------


def add_fields(callers: Callers) -> dict[str, Any]:
    """What a server that takes whatever it is sent would take."""
    victim, foreign = str(callers.ids["student-elsewhere"]), str(callers.other.id)
    return {
        **dict.fromkeys(("user_id", "sender_id", "staff_id", "started_by", "created_by", "actor_id"), victim),
        "course_id": foreign,
        "role": "instructor",
        "roles": {foreign: "instructor"},
        "kind": "staff",
        "scopes": ["course:read"],
        "received_at": "2020-01-01T00:00:00Z",
        "created_at": "2020-01-01T00:00:00Z",
        "is_from_staff": True,
        "is_demo": True,
        "granted_by": "jupyterhub",
        "ordinal": 1,
        "revision": 99,
        "state": "x",
    }


async def count_theirs(callers: Callers) -> dict[str, tuple[int, int]]:
    """Table -> how many rows bear the other course, and how many the victim."""
    victim, foreign = callers.ids["student-elsewhere"], callers.other.id
    counts = {}
    async with connect(callers.stage.database_url) as owner:
        columns = await owner.fetch(
            "SELECT format('%I.%I', table_schema, table_name) AS name, array_agg(column_name::text) AS columns"
            " FROM information_schema.columns WHERE table_schema IN ('public', 'timeseries')"
            " AND table_name NOT IN ('audit_log') AND data_type = 'uuid' GROUP BY 1"
        )
        for name, ids in columns:
            conditions = [f"{column} = ANY($1::uuid[])" for column in ids]
            counts[name] = tuple(
                [
                    await owner.fetchval(f"SELECT count(*) FROM {name} WHERE {' OR '.join(conditions)}", [one])
                    for one in (foreign, victim)
                ]
            )
    return counts  # type: ignore[return-value]


async def test_what_a_body_says_beyond_its_fields_changes_nothing(callers: Callers) -> None:
    stage, more = callers.stage, add_fields(callers)
    before = await count_theirs(callers)
    course = f"/api/v1/courses/{stage.course.id}"
    text = {"id": str(uuid4()), "text": "こんにちは"}
    event = make_run(**{name: value for name, value in more.items() if name != "user_id"})
    answers = {}
    for name, caller, method, path, body in (
        (
            "join",
            "nobody",
            "POST",
            "/api/v1/join",
            {"join_code": stage.course.join_code, "display_name": "高橋 蓮"} | more,
        ),
        ("event", "student", "POST", "/api/v1/events", event),
        ("forged", "student", "POST", "/api/v1/events", make_run(user_id=more["user_id"])),
        ("in data", "student", "POST", "/api/v1/events", make_run(data={"status": "ok"} | more)),
        ("message", "student", "POST", "/api/v1/me/messages", more | text),
        ("consent", "student", "POST", "/api/v1/me/consent", more | {"version": 1, "action": "accept"}),
        ("meeting", "instructor", "POST", f"{course}/meetings", more | {"title": "1"}),
        ("notice", "instructor", "PUT", f"{course}/collection", more | {"level": "source", "version": 7}),
        (
            *("to class", "instructor", "POST", f"{course}/messages"),
            {**more, **text, "id": str(uuid4()), "to": {"all": True, "course_id": more["course_id"]}},
        ),
        ("rehearsal", "instructor", "POST", f"{course}/rehearsals", more),
    ):
        answer = await callers.ask(caller, method, path, content=json.dumps(body).encode())
        assert answer.status_code < 500, (name, answer.text)
        answers[name] = answer
    assert answers["forged"].status_code == 403
    for name in ("join", "message", "meeting", "notice", "to class", "rehearsal"):
        assert answers[name].status_code in (200, 201), (name, answers[name].text)
    await stage.work()
    assert await count_theirs(callers) == before

    joined = answers["join"].json()
    me = await stage.http.get("/api/v1/me", headers={"Authorization": f"Bearer {joined['token']}"})
    assert [(one["id"], one["role"]) for one in me.json()["courses"]] == [(str(stage.course.id), "student")]
    student, instructor = callers.ids["student"], callers.ids["instructor"]
    async with connect(stage.database_url) as owner:
        for statement, expected in (
            ("SELECT DISTINCT user_id FROM events WHERE course_id = $1", [student]),
            ("SELECT DISTINCT sender_id FROM messages WHERE course_id = $1 AND NOT is_from_staff", [student]),
            ("SELECT DISTINCT sender_id FROM messages WHERE course_id = $1 AND is_from_staff", [instructor]),
            ("SELECT started_by FROM class_meetings WHERE course_id = $1", [instructor]),
            ("SELECT created_by FROM collection_versions WHERE course_id = $1 AND version > 1", [instructor]),
            ("SELECT is_demo FROM courses WHERE id = $1", [False]),
            ("SELECT max(version) FROM collection_versions WHERE course_id = $1", [2]),
            ("SELECT count(*) FROM events WHERE course_id = $1 AND received_at < now() - interval '1 hour'", [0]),
        ):
            rows = await owner.fetch(statement, stage.course.id)
            assert [row[0] for row in rows] == expected, statement
