"""Every answer of every route bears the headers that keep it to itself; what is about people is kept by nobody."""

from __future__ import annotations

import re
from typing import Any

import httpx2
import pytest
from playwright.async_api import async_playwright
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from nbpulse.api.access import RULES
from nbpulse.api.headers import EVERYWHERE, OTHER_POLICY, PAGE_POLICY
from nbpulse.api.pages import WEB_DIR
from servers import CHROMIUM_FLAGS
from stage import NOBODY, Stage, open_stage

PAGES = {route for route in RULES if not re.search(r" /(api|web|health|metrics)\b", route)}
JSON = {"Content-Type": "application/json"}


def check_headers(headers: Any, place: str, *, policy: str = OTHER_POLICY, keep: str = "no-store") -> None:
    expected = {name.decode(): value.decode() for name, value in EVERYWHERE}
    expected |= {"content-security-policy": policy, "cache-control": keep}
    found = {name: ", ".join(value for key, value in headers if key.lower() == name) for name in expected}
    assert found == expected, place


def check(answer: httpx2.Response, **expected: str) -> None:
    check_headers(answer.headers.multi_items(), f"{answer.request.method} {answer.request.url.path}", **expected)


def fill(path: str, course: object) -> str:
    """The path with the course's id, somebody's ids and a file's name in it."""
    filled = path.replace("{path:path}", "js/main.js").replace("{course_id}", str(course))
    filled = re.sub(r"\{\w*id\}", str(NOBODY), filled).replace("{action}", "claim")
    return f"{filled}?wait_s=0"  # of the inbox: it has nothing to tell


def test_the_policies_allow_nothing_inline_and_nothing_from_elsewhere() -> None:
    for policy in (PAGE_POLICY, OTHER_POLICY):
        rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
        assert rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == "'none'"
        assert set(rules.values()) <= {"'none'", "'self'", "'script'"}
        assert (rules.get("require-trusted-types-for") == "'script'") is (policy == PAGE_POLICY)


async def test_every_route_whoever_asks(stage: Stage) -> None:
    student = await stage.join()
    for route in sorted(RULES):
        method, path = route.split(" ", 1)
        for token in (None, "nonsense", student["token"], stage.teacher_token):
            for course in (NOBODY, stage.course.id):
                if method == "WS" or (method == "DELETE" and course == stage.course.id):
                    continue  # below; the class is needed
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                body = {"content": b"{}", "headers": headers | JSON} if method != "GET" else {"headers": headers}
                answer = await stage.http.request(method, fill(path, course), **body)
                is_file = answer.status_code == 200 and (route in PAGES or path.startswith("/web/"))
                check(
                    answer,
                    policy=PAGE_POLICY if route in PAGES else OTHER_POLICY,
                    keep="no-cache" if is_file else "no-store",
                )


async def test_every_file_also_when_it_has_not_changed(stage: Stage) -> None:
    files = [path.relative_to(WEB_DIR).as_posix() for path in WEB_DIR.rglob("*") if path.is_file()]
    assert {"js/main.js", "app.css", "index.html"} <= set(files)
    for file in files:
        answer = await stage.http.get(f"/web/{file}")
        assert answer.status_code == 200, file
        check(answer, policy=PAGE_POLICY if file.endswith(".html") else OTHER_POLICY, keep="no-cache")
        again = await stage.http.get(f"/web/{file}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304, file
        check(again, policy="", keep="no-cache")  # the browser goes on with the policy it has


@pytest.mark.browser
async def test_the_page_is_whole_again_when_it_has_not_changed(stage: Stage, chromium_path: str) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_FLAGS)
        page = await browser.new_page()
        statuses, refused = set(), []
        page.on("response", lambda answer: statuses.add(answer.status))
        page.on("console", lambda said: refused.append(said.text) if "Content Security Policy" in said.text else None)
        for _ in range(3):
            await page.goto(f"{stage.url}/courses/{stage.course.id}")
            await page.wait_for_selector("main")
        await browser.close()
    assert 304 in statuses
    assert refused == []


async def test_refusals_of_every_kind(stage: Stage) -> None:
    large = b'{"display_name": "' + b"x" * 2_000_000 + b'"}'
    for method, path, sent, status in (
        ("GET", "/nowhere", {}, 404),
        ("PATCH", "/api/v1/me", {}, 405),
        ("OPTIONS", "/api/v1/me", {}, 405),
        ("DELETE", "/api/v1/events", {}, 405),
        ("POST", "/api/v1/join", {"content": b"{", "headers": JSON}, 400),
        ("POST", "/api/v1/join", {"content": large, "headers": JSON}, 413),
        ("POST", "/api/v1/join", {"content": b"{}"}, 415),
        ("POST", "/api/v1/join", {"content": b"{}", "headers": JSON | {"Origin": "https://evil.example"}}, 403),
    ):
        answer = await stage.http.request(method, path, **sent)
        assert answer.status_code == status, (method, path)
        check(answer)


async def test_a_failure_of_ours_too_and_it_says_nothing_about_itself(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a-word-of-the-inside")

    monkeypatch.setattr(stage.parts.people, "describe_person", fail)
    answer = await stage.http.get("/api/v1/me", headers=stage.staff)
    assert answer.status_code == 500
    assert "a-word-of-the-inside" not in answer.text
    check(answer)


@pytest.mark.parametrize(
    ("path", "origin"), [(f"/api/v1/courses/{NOBODY}/ws", "https://evil.example"), ("/api/v1/nowhere", None)]
)
async def test_a_refused_websocket_is_told_nothing(stage: Stage, path: str, origin: str | None) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"{stage.url.replace('http', 'ws')}{path}", origin=origin):  # type: ignore[arg-type]
            pass
    response = refused.value.response
    assert (response.status_code, response.body) == (403, b"")
    assert {name.lower() for name, _ in response.headers.raw_items()} <= {
        "date",
        "connection",
        "content-length",
        "content-type",
    }


async def test_only_where_people_come_by_https_is_it_demanded(
    stage: Stage, stage_database: str, embedded_valkey: str
) -> None:
    assert "strict-transport-security" not in (await stage.http.get("/")).headers
    async with open_stage(stage_database, embedded_valkey, public_url="https://pulse.example") as behind_a_proxy:
        for path in ("/", "/web/app.css", "/api/v1/me", "/nowhere", "/health/live"):
            answer = await behind_a_proxy.http.get(path)
            assert answer.headers["strict-transport-security"] == "max-age=31536000", path
        delivery = await behind_a_proxy.post("nonsense", [])
        assert delivery.headers["strict-transport-security"] == "max-age=31536000"
