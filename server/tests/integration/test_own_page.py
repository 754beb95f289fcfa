"""A student's own page: reached by their own Jupyter's link, of their own work alone, no way to anything more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from playwright.async_api import Browser, Page, expect

from browsing import LOOKS, find_barriers, open_page, photograph
from payloads import PAYLOADS, WATCH
from stage import Stage, make_run
from stores import connect


def bearer(student: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {student['token']}"}


async def make_link(stage: Stage, student: dict[str, Any]) -> str:
    answer = await stage.http.post("/api/v1/me/link", headers=bearer(student))
    assert answer.status_code == 201, answer.text
    code: str = answer.json()["code"]
    assert answer.json()["url"] == f"{stage.url}/me#code={code}"
    return code


@asynccontextmanager
async def open_session(stage: Stage, code: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A browser that was signed in by the link."""
    async with httpx2.AsyncClient(base_url=stage.url, headers={"Origin": stage.url}) as browser:
        assert (await browser.post("/api/v1/sign-in", json={"code": code})).status_code == 200
        yield browser


async def send(stage: Stage, student: dict[str, Any], *events: dict[str, Any]) -> None:
    assert (await stage.post(student["token"], list(events))).status_code == 202
    await stage.work()


async def test_the_link_opens_ones_own_record_once_and_nothing_more(stage: Stage) -> None:
    mine, other = await stage.join("A", student_number="1"), await stage.join("B", student_number="2")
    await send(stage, mine, make_run(0), make_run(1, "error"))
    await send(stage, other, make_run(2, cell_id="cell-of-another"))
    code = await make_link(stage, mine)
    async with open_session(stage, code) as browser:
        (notebook,) = (await browser.get("/api/v1/me/progress")).json()["notebooks"]
        assert [(one["cell_id"], one["state"]) for one in notebook["cells"]] == [("cell-0", "ok"), ("cell-1", "error")]
        for path in ("me", "me/audit", "me/collection", "me/inbox?wait_s=0"):
            assert (await browser.get(f"/api/v1/{path}")).status_code == 200, path
        for path in ("live", f"students/{mine['user_id']}", "people"):
            assert (await browser.get(f"/api/v1/courses/{stage.course.id}/{path}")).status_code == 403, path
        password = {"new": "a long enough password, surely"}
        assert (await browser.put("/api/v1/me/password", json=password)).status_code == 403
        assert (await browser.post("/api/v1/events", json=[make_run()])).status_code == 401
        wanted = {"label": "x", "scopes": ["course:read"]}
        assert (await browser.post("/api/v1/me/tokens", json=wanted)).status_code == 403
    again = await stage.http.post("/api/v1/sign-in", json={"code": code}, headers={"Origin": stage.url})
    assert again.json()["code"] == "NB-1104"


async def test_who_has_become_staff_is_none_by_a_students_link(stage: Stage) -> None:
    student = await stage.join("A")
    code = await make_link(stage, student)
    async with connect(stage.database_url) as owner:
        await owner.execute("UPDATE enrolments SET role = 'instructor' WHERE user_id = $1", UUID(student["user_id"]))
    async with open_session(stage, code) as browser:
        assert (await browser.get(f"/api/v1/courses/{stage.course.id}/live")).status_code == 403


async def test_who_is_signed_in_otherwise_names_a_course_of_which_they_are_a_student(stage: Stage) -> None:
    student = await stage.join("A")
    await send(stage, student, make_run(0))
    code = await stage.people.create_link(UUID(student["user_id"]))
    async with open_session(stage, code) as browser:
        named = {"NBPULSE-Course": str(stage.course.id)}
        assert len((await browser.get("/api/v1/me/progress", headers=named)).json()["notebooks"]) == 1
        for headers in ({}, {"NBPULSE-Course": str(uuid4())}, {"NBPULSE-Course": "x"}):
            assert (await browser.get("/api/v1/me/progress", headers=headers)).status_code == 403
        foreign = {**named, "Origin": "https://evil.example"}
        body = {"version": 1, "action": "withdraw"}
        assert (await browser.post("/api/v1/me/consent", json=body, headers=foreign)).status_code == 403
    async with open_session(stage, await stage.people.create_link(stage.teacher_id)) as browser:
        assert (await browser.get("/api/v1/me/progress", headers=named)).status_code == 403


async def open_me(stage: Stage, page: Page, student: dict[str, Any]) -> None:
    await page.goto(f"{stage.url}/me#code={await make_link(stage, student)}")
    await page.wait_for_selector("[data-part=progress]")


@pytest.mark.browser
async def test_the_page_shows_progress_place_and_looks_and_lets_one_withdraw(stage: Stage, browser: Browser) -> None:
    first, mine = await stage.join("A", student_number="1"), await stage.join("B", student_number="2")
    for student in (first, mine):
        await send(stage, student, make_run(0), make_run(1, "error"))
        await send(stage, student, make_run(1, event_type="help_request", data={"message": "?"}))
    await stage.snapshot()
    async with open_page(browser) as page:
        await open_me(stage, page, mine)
        assert page.url == f"{stage.url}/me"
        await expect(page.locator("[data-done='1']")).to_have_text("Last run ok: 1 of 2 cells")
        await expect(page.locator("[data-part=hand]")).to_contain_text("Your place in the queue: 2.")
        await expect(page.locator("[data-part=looks]")).to_contain_text("You")
        await page.goto(stage.url)
        await page.wait_for_selector("[data-part=progress]")
        await page.click("[data-action=withdraw]")
        await page.click("[data-action=withdraw-now]")
        await expect(page.locator("[data-withdrawn]")).to_be_visible()
    assert (await stage.post(mine["token"], [make_run()])).json()["code"] == "NB-1340"


@pytest.mark.browser
async def test_nothing_anybody_writes_runs_on_ones_own_page(stage: Stage, browser: Browser) -> None:
    student = await stage.join(PAYLOADS[0], student_number=PAYLOADS[1])
    await send(stage, student, *(make_run(n, cell_id=one, notebook_path=one) for n, one in enumerate(PAYLOADS)))
    added = {"en": PAYLOADS[3], "ja": PAYLOADS[4]}
    place = f"/api/v1/courses/{stage.course.id}/collection"
    assert (await stage.http.put(place, json={"added": added}, headers=stage.staff)).status_code == 200
    async with open_page(browser) as page:
        await page.add_init_script(WATCH)
        await open_me(stage, page, student)
        await expect(page.locator("[data-notebook]")).to_have_count(len(PAYLOADS))
        await expect(page.locator(".notice")).to_contain_text(PAYLOADS[3])
        assert await page.evaluate("window.attempts") == []


@pytest.mark.browser
@pytest.mark.parametrize("look", LOOKS)
async def test_the_page_looks_right_everywhere(stage: Stage, browser: Browser, look: dict[str, Any]) -> None:
    student = await stage.join("鈴木 大翔", student_number="1")
    await send(stage, student, *(make_run(n, "error" if n == 7 else "ok") for n in range(9)))
    await send(stage, student, make_run(7, event_type="help_request", data={"message": "?"}))
    await stage.snapshot()
    async with open_page(browser, **look) as page:
        await open_me(stage, page, student)
        await page.wait_for_selector("[data-part=looks] li")
        assert await find_barriers(page) == []
        await photograph(page, "me", look)
