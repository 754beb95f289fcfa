"""
The OWASP API Security Top 10 of 2023, one class each: https://owasp.org/API-Security/editions/2023/en/0x11-t10/

`ALSO` names the tests elsewhere that show the rest of it.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest

from callers import Callers, open_callers, read_table
from nbpulse.api.access import RULES
from stage import make_run
from stores import connect

TESTS = Path(__file__).parent


@pytest.fixture
async def callers(stage_database: str, embedded_valkey: str) -> AsyncIterator[Callers]:
    async with open_callers(stage_database, embedded_valkey) as opened:
        yield opened


async def send_to(callers: Callers, student: UUID, text: str) -> str:
    """A message of the other course's staff to their own student; its id in that student's inbox."""
    body = {"id": str(uuid4()), "to": {"user_ids": [str(student)]}, "text": text}
    path = f"/api/v1/courses/{callers.other.id}/messages"
    answer = await callers.ask("staff-elsewhere", "POST", path, content=json.dumps(body).encode())
    assert answer.status_code == 201, answer.text
    inbox = await callers.ask("student-elsewhere", "GET", "/api/v1/me/inbox?wait_s=0")
    (message,) = inbox.json()["messages"]
    return str(message["id"])


class TestBrokenObjectLevelAuthorization:
    """API1: an id in a request opens what is not its sender's."""

    ALSO: ClassVar = (
        "test_authorization.py::test_every_cell",
        "test_authorization.py::test_what_a_body_says_beyond_its_fields_changes_nothing",
        "test_row_level_security.py::test_the_truth_table_holds_for_the_api",
        "test_row_level_traffic.py::test_random_queries_through_pgbouncer_show_no_foreign_and_miss_no_own_row",
        "test_actions.py::test_only_staff_act_and_only_on_their_own_students",
        "test_teams.py::test_history_is_of_their_students_alone",
    )

    async def test_ids_of_another_course_open_nothing_within_one_s_own(self, callers: Callers) -> None:
        stage, victim = callers.stage, callers.ids["student-elsewhere"]
        run = json.dumps(make_run(notebook_path="secret-plan.ipynb")).encode()
        assert (await callers.ask("student-elsewhere", "POST", "/api/v1/events", content=run)).status_code == 202
        await stage.work()
        async with connect(stage.database_url) as owner:
            notebook = await owner.fetchval("SELECT id FROM notebooks WHERE course_id = $1", callers.other.id)
        message = await send_to(callers, victim, "どうですか")
        course = f"/api/v1/courses/{stage.course.id}"
        for method, path, body, statuses in (
            ("GET", f"{course}/students/{victim}/sessions", None, (200,)),
            ("GET", f"{course}/live?notebook={notebook}", None, (200, 404)),
            ("GET", f"{course}/notebooks/{notebook}/summary", None, (404,)),
            ("GET", f"{course}/sessions?notebook={notebook}", None, (200,)),
            ("GET", f"{course}/progress?notebook={notebook}", None, (200,)),
            ("GET", f"{course}/messages?student={victim}", None, (200,)),
            ("GET", f"{course}/messages?batch={message}", None, (200,)),
            ("POST", f"{course}/messages", {"to": {"user_ids": [str(victim)]}, "text": "x"}, (404, 422)),
            ("POST", f"{course}/alerts/{uuid4()}/claim", {"user_id": str(victim)}, (404,)),
        ):
            content = json.dumps({"id": str(uuid4())} | body).encode() if body else None
            answer = await callers.ask("instructor", method, path, **({"content": content} if content else {}))
            assert answer.status_code in statuses, (path, answer.text)
            for secret in ("佐藤 陽菜", "secret-plan", "どうですか", callers.other.short_name):
                assert secret not in answer.text, path
            if answer.status_code == 200 and "sessions" in path:
                assert answer.json()["sessions"] == []

    async def test_a_message_is_its_own_student_s_alone(self, callers: Callers) -> None:
        message = await send_to(callers, callers.ids["student-elsewhere"], "君だけに")
        state = f"/api/v1/me/messages/{message}/state"
        answer = await callers.ask("student", "PUT", state, content=b'{"state": "shown"}')
        assert answer.status_code == 404
        body = json.dumps({"id": str(uuid4()), "thread_id": message, "text": "x"}).encode()
        assert (await callers.ask("student", "POST", "/api/v1/me/messages", content=body)).status_code == 404
        inbox = await callers.ask("student", "GET", "/api/v1/me/inbox?wait_s=0")
        assert inbox.json()["messages"] == []


class TestBrokenAuthentication:
    """API2: somebody passes for somebody else."""

    ALSO: ClassVar = (
        "test_access.py::test_a_link_that_is_used_twice_at_once_signs_in_once",
        "test_access.py::test_a_link_of_11_minutes_ago_is_refused",
        "test_access.py::test_another_site_can_do_nothing_with_the_cookie",
        "test_access.py::test_the_database_holds_no_secret",
        "test_access.py::test_a_revoked_token_ends_within_30_seconds",
        "test_authorization.py::test_a_token_counts_in_its_header_alone",
        "test_audit_trail.py::test_a_replayed_ticket_and_a_foreign_page_leave_rows",
        "test_hub_access.py::test_bobs_name_with_alices_token_is_refused",
    )

    async def test_a_token_that_is_not_wholly_right_is_nobody_s(self, callers: Callers) -> None:
        names = ("student", "student-elsewhere")
        mine, others = (callers.headers[name]["Authorization"].split(" ")[1] for name in names)
        kind, number, secret = re.fullmatch(r"nbp_(\w+?)_([0-9a-f]{32})_(.+)", mine).groups()  # type: ignore[union-attr]
        other_number, other_secret = others.split("_", 3)[2:]
        for token in (
            *(f"nbp_{kind}_{number}_{other_secret}", f"nbp_{kind}_{other_number}_{secret}"),
            *(f"nbp_{kind}_{number}_", f"nbp_{kind}_{number}", f"nbp_{kind}_{number}_{secret[:-1]}", mine + "x"),
            *(mine.swapcase(), f"nbp_{kind}__{secret}", "nbp_", "null", "undefined", "*", "Bearer"),
            f"nbp_{kind}_{number}_{'0' * 10_000}",
        ):
            answer = await callers.stage.http.get("/api/v1/me", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 401, token[:80]
            assert secret not in answer.text

    async def test_the_kind_that_a_token_names_gives_it_no_rights(self, callers: Callers) -> None:
        token = callers.headers["student"]["Authorization"].replace("nbp_student_", "nbp_staff_")
        board = f"/api/v1/courses/{callers.stage.course.id}/live"
        answer = await callers.stage.http.get(board, headers={"Authorization": token})
        assert answer.status_code in (401, 403)


class TestBrokenObjectPropertyLevelAuthorization:
    """API3: a field is told or taken that is not the caller's."""

    ALSO: ClassVar = (
        "test_authorization.py::test_what_a_body_says_beyond_its_fields_changes_nothing",
        "test_collections.py::test_students_see_their_own_and_set_nothing",
        "test_row_level_security.py::test_nothing_goes_around_the_tables",
    )

    async def test_answers_hold_nothing_that_only_others_may_know(self, callers: Callers) -> None:
        stage = callers.stage
        async with connect(stage.database_url) as owner:
            hashes = [row[0].hex() for row in await owner.fetch("SELECT secret_hash FROM tokens")]
        for caller in ("student", "assistant", "instructor", "hub-student"):
            for route in RULES:
                method, path = route.split(" ", 1)
                if method != "GET" or path.startswith("/web/"):
                    continue
                answer = await callers.ask(caller, method, callers.fill(path) + "?wait_s=0")
                assert "secret_hash" not in answer.text, route
                assert not [one for one in hashes if one in answer.text], route
                if caller.endswith("student") and answer.status_code == 200:
                    assert stage.course.join_code not in answer.text, route
                    assert str(callers.ids["instructor"]) not in answer.text, route


class TestUnrestrictedResourceConsumption:
    """API4: one request, or many, cost without bound."""

    ALSO: ClassVar = (
        "test_ingest.py::test_an_endless_body_is_cut_off",
        "test_ingest.py::test_a_body_that_is_none_is_refused_as_a_whole",
        "test_ingest.py::test_at_the_backlogs_limit_nothing_more_is_taken",
        "test_sharing.py::test_many_readers_of_one_question_cost_one_computation",
        "test_audit_trail.py::test_a_flood_of_refusals_is_counted_and_not_written_one_by_one",
    )

    async def test_no_answer_is_larger_or_later_than_its_bound(self, callers: Callers) -> None:
        course = f"/api/v1/courses/{callers.stage.course.id}"
        for caller, path in (
            ("instructor", f"{course}/sessions?limit=5001"),
            ("instructor", f"{course}/progress?limit=0"),
            ("instructor", f"{course}/meetings?limit=501"),
            ("instructor", f"{course}/series?metric=activity&window_minutes=10081"),
            ("instructor", f"{course}/activity?bucket=1m&start=2026-01-01&end=2026-03-01"),
            ("student", "/api/v1/me/inbox?wait_s=31"),
            ("student", "/api/v1/me/audit?limit=201"),
        ):
            answer = await callers.ask(caller, "GET", path)
            assert answer.status_code == 422, path

    async def test_no_body_is_read_beyond_its_bound(self, callers: Callers) -> None:
        course = f"/api/v1/courses/{callers.stage.course.id}"
        large = b'{"text": "' + b"x" * 2_000_000 + b'"}'
        for caller, method, path in (
            ("nobody", "POST", "/api/v1/join"),
            ("nobody", "POST", "/api/v1/sign-in"),
            ("student", "POST", "/api/v1/me/messages"),
            ("student", "POST", "/api/v1/me/consent"),
            ("student", "PUT", f"/api/v1/me/messages/{uuid4()}/state"),
            ("instructor", "POST", f"{course}/messages"),
            ("instructor", "POST", f"{course}/meetings"),
            ("instructor", "PUT", f"{course}/collection"),
            ("instructor", "POST", f"{course}/alerts/{uuid4()}/claim"),
        ):
            assert (await callers.ask(caller, method, path, content=large)).status_code == 413, path
            deep = b'{"x": ' * 10_000 + b"1" + b"}" * 10_000
            assert (await callers.ask(caller, method, path, content=deep)).status_code in (400, 413, 422), path


class TestBrokenFunctionLevelAuthorization:
    """API5: a function is open to whom it is not meant for."""

    ALSO: ClassVar = (
        "test_authorization.py::test_every_cell",
        "test_authorization.py::test_no_other_method_goes_around_a_rule",
        "test_authorization.py::test_no_header_says_another_method_or_path",
        "test_authorization.py::test_a_proxys_headers_make_nobody_local",
    )

    def test_students_and_strangers_have_no_course_s_function(self) -> None:
        for route, cells in read_table().items():
            if "{course_id}" in route and not route.startswith("GET /courses/"):  # but the pages
                for caller in ("nobody", "expired", "student", "student-elsewhere", "staff-elsewhere", "operator"):
                    assert cells[caller] in ("401", "403", "404", "4401", "4403"), (route, caller)


class TestUnrestrictedAccessToSensitiveBusinessFlows:
    """API6: a flow that is right for one does harm when many, or the wrong ones, go through it."""

    ALSO: ClassVar = (
        "test_access.py::test_a_wrong_resume_code_is_refused_and_another_students_is_too",
        "test_access.py::test_a_taken_number_without_the_code_is_a_new_person_that_staff_are_asked_about",
        "test_audit_trail.py::test_every_refusal_leaves_a_row_that_names_who_and_why",
    )

    async def test_a_student_number_opens_nobody_s_work(self, callers: Callers) -> None:
        stage = callers.stage
        first = await stage.join("A", student_number="4711")
        second = await stage.join("B", student_number="4711")
        assert second["user_id"] != first["user_id"]
        headers = {"Authorization": f"Bearer {second['token']}"}
        assert (await stage.http.get("/api/v1/me", headers=headers)).json()["user_id"] == second["user_id"]


class TestServerSideRequestForgery:
    """API7: the server fetches what a caller names."""

    async def test_no_text_of_a_caller_s_is_fetched(self, callers: Callers) -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/x"
        stage, course = callers.stage, f"/api/v1/courses/{callers.stage.course.id}"
        event = make_run(0, "error", notebook_path=url, cell_id=url)
        event["data"] |= {"error_name": url, "error_message": url, "traceback": url, "source": f"<img src={url}>"}
        for caller, method, path, body in (
            ("nobody", "POST", "/api/v1/join", {"join_code": stage.course.join_code, "display_name": url}),
            ("student", "POST", "/api/v1/events", event),
            ("student", "POST", "/api/v1/me/messages", {"id": str(uuid4()), "text": url}),
            ("instructor", "POST", f"{course}/messages", {"id": str(uuid4()), "to": {"all": True}, "text": url}),
            ("instructor", "PUT", f"{course}/collection", {"added": {"ja": url, "en": url}}),
            ("instructor", "POST", f"{course}/meetings", {"title": url}),
        ):
            headers = {"Nbpulse-Course": url, "Referer": url, "X-Forwarded-Host": url, "Forwarded": f"host={url}"}
            headers |= {"X-Callback-Url": url}
            sent = {"content": json.dumps(body).encode(), "headers": headers}
            assert (await callers.ask(caller, method, path, **sent)).status_code in (200, 201, 202), path
        await stage.work()
        assert (await callers.ask("instructor", "GET", f"{course}/live")).status_code == 200
        await asyncio.sleep(0.5)
        with pytest.raises(BlockingIOError):
            listening.accept()
        listening.close()

    async def test_no_parameter_is_an_address(self, callers: Callers) -> None:
        described = (await callers.stage.http.get("/api/v1/openapi.json")).text
        names = set(re.findall(r'"name":"(\w+)"', described)) | set(re.findall(r'"(\w+)":\{"type"', described))
        assert not [name for name in names if re.search(r"ur[il]|host|callback|webhook|redirect|link", name)]
        assert '"format":"uri"' not in described


class TestSecurityMisconfiguration:
    """API8: something is open, verbose or lax by default."""

    ALSO: ClassVar = (
        "test_headers.py::test_every_route_whoever_asks",
        "test_headers.py::test_a_failure_of_ours_too_and_it_says_nothing_about_itself",
        "test_headers.py::test_only_where_people_come_by_https_is_it_demanded",
        "test_access.py::test_metrics_are_not_told_through_a_proxy",
    )

    async def test_no_other_site_is_let_in_by_cors_and_no_manual_is_served(self, callers: Callers) -> None:
        for path in ("/api/v1/me", "/api/v1/events", f"/api/v1/courses/{callers.stage.course.id}/live", "/"):
            for method in ("GET", "OPTIONS"):
                headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "GET"}
                answer = await callers.stage.http.request(method, path, headers=headers)
                assert not [name for name in answer.headers if name.startswith("access-control-")], path
        for path in ("/docs", "/redoc", "/openapi.json", "/debug", "/admin", "/.env", "/.git/config", "/server-status"):
            assert (await callers.stage.http.get(path)).status_code == 404, path


class TestImproperInventoryManagement:
    """API9: something runs that nobody knows of."""

    ALSO: ClassVar = (
        "test_access.py::test_a_route_without_a_rule_or_a_rule_without_a_route_stops_the_start",
        "test_authorization.py::test_the_table_names_every_route",
    )
    UNDESCRIBED: ClassVar = {
        "GET /": "a page",
        "GET /courses": "a page",
        "GET /me": "a page",
        "GET /shared/report": "a page",
        "GET /join": "a page",
        "GET /join/{code}": "a page",
        "GET /courses/{course_id}": "a page",
        "GET /courses/{course_id}/{page:path}": "a page",
        "GET /web/{path:path}": "files of the pages",
        "GET /api/v1/openapi.json": "the description itself",
        "WS /api/v1/courses/{course_id}/ws": "OpenAPI knows no WebSockets",
    }

    async def test_every_route_is_described_or_said_why_not(self, callers: Callers) -> None:
        paths = (await callers.stage.http.get("/api/v1/openapi.json")).json()["paths"]
        described = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
        assert described - RULES.keys() == set()
        assert RULES.keys() - described <= self.UNDESCRIBED.keys(), RULES.keys() - described

    async def test_there_is_no_other_version(self, callers: Callers) -> None:
        for path in ("/api/me", "/api/v0/me", "/api/v2/me", "/v1/me", "/api/v1beta/me", "/api/internal/me"):
            assert (await callers.ask("instructor", "GET", path)).status_code == 404, path


class TestUnsafeConsumptionOfApis:
    """API10: what another service answers is believed."""

    ALSO: ClassVar = (
        "test_hub_access.py::test_while_the_hub_fails_who_was_known_delivers_and_who_was_not_is_asked_to_come_again",
        "test_hub_access.py::test_a_slow_hubs_answer_is_good_for_the_next_try",
        "test_hub_access.py::test_a_service_of_the_hub_is_no_user",
    )

    @pytest.mark.parametrize(
        "answer",
        [
            *(b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"kind": "user"}', b'{"kind": "user", "name": null}'),
            b'{"kind": "user", "name": 7, "groups": [], "scopes": []}',
            b'{"kind": "user", "name": "a", "groups": "course-x", "scopes": "access:services"}',
            b'{"kind": "user", "name": "a", "groups": [{"course": 1}], "scopes": []}',
            b"<html>" + b"x" * 3_000_000,
            b"[" * 200_000,
        ],
    )
    async def test_whatever_a_hub_answers_lets_nobody_in_and_breaks_nothing(
        self, callers: Callers, answer: bytes
    ) -> None:
        callers.hub.says = (200, answer)
        headers = {"Authorization": f"token {uuid4().hex}"}
        for path in ("/api/v1/me", "/api/v1/me/inbox?wait_s=0"):
            assert (await callers.stage.http.get(path, headers=headers)).status_code in (401, 403, 503)
        callers.hub.says = None
        assert (await callers.ask("student", "GET", "/api/v1/me")).status_code == 200

    async def test_a_name_a_hub_tells_is_text_and_nothing_else(self, callers: Callers) -> None:
        name = "<script>alert(1)</script>'; DROP TABLE users; --\u202e"
        token = callers.hub.give(name, f"course-{callers.stage.course.short_name}")
        answer = await callers.stage.http.get("/api/v1/me", headers={"Authorization": f"token {token}"})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["display_name"].startswith("<script>alert(1)</script>'; DROP TABLE")


def list_references() -> list[str]:
    classes: list[Any] = [kind for name, kind in globals().items() if name.startswith("Test")]
    assert len(classes) == 10
    return [reference for kind in classes for reference in getattr(kind, "ALSO", ())]


@pytest.mark.parametrize("reference", list_references())
def test_what_is_referred_to_is_there(reference: str) -> None:
    file, _, name = reference.partition("::")
    assert re.search(rf"^(async )?def {name}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE)
