"""The board in the browsers of two members of staff: who goes, who was helped, what is written; seen by both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from playwright.async_api import Browser, Page, expect

from browsing import find_barriers, photograph
from stage import Stage, make_run

pytestmark = pytest.mark.browser


@asynccontextmanager
async def look_as(stage: Stage, browser: Browser, name: str, **options: Any) -> AsyncIterator[Page]:
    """The board as a new member of staff of that name, signed in by a link."""
    user_id = await stage.courses.ensure_teacher(
        stage.course.id, username=f"{name}-{uuid4().hex[:6]}", display_name=name
    )
    code = await stage.people.create_link(user_id)
    context = await browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-US", **options)
    page = await context.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    await page.goto(f"{stage.url}/courses/{stage.course.id}#code={code}")
    await page.wait_for_selector(".board")
    try:
        yield page
        assert failures == []
    finally:
        await context.close()


async def raise_hand(stage: Stage, student: dict[str, Any], **changes: Any) -> None:
    hand = make_run(0, event_type="help_request", data={"message": "グラフが出ない"}, **changes)
    assert (await stage.post(student["token"], [make_run(0), hand])).status_code == 202
    await stage.work()


async def fail_together(stage: Stage, students: list[dict[str, Any]], cell: int = 2) -> None:
    for student in students:
        await stage.post(student["token"], make_run(cell, "error"))
    await stage.work()


async def test_a_claim_is_seen_by_the_other_within_a_second_and_helping_can_be_undone(
    stage: Stage, browser: Browser
) -> None:
    student = await stage.join()
    await raise_hand(stage, student)
    async with look_as(stage, browser, "田中") as first, look_as(stage, browser, "Lee") as second:
        for page in (first, second):
            await page.wait_for_selector("[data-alert]")
        await expect(second.locator("[data-act=claim]")).to_have_text("I go")
        started = time.monotonic()
        await first.locator("[data-act=claim]").click()
        await expect(first.locator("[data-act=claim]")).to_have_text("I’m on it")
        await expect(second.locator(".claim .unseen")).to_have_text("田中 is on it", timeout=3_000)
        assert time.monotonic() - started < 1
        assert (await stage.read_inbox(student))["help"]["coming"]["name"] == "田中"

        # By keyboard, from the entry with the focus: taken is taken.
        await second.locator("button.entry").focus()
        await second.keyboard.press("c")
        await expect(second.locator(".note")).to_have_text("田中 is on it already.")

        started = time.monotonic()
        await first.locator("[data-act=helped]").click()
        await expect(first.locator(".note")).to_contain_text("Quiet for 5 minutes")
        # The second's focus is in the list, so it holds still: the entry stays where it is and says that it is over.
        await expect(second.locator("[data-alert][data-done=true]")).to_have_count(1, timeout=3_000)
        assert time.monotonic() - started < 1
        assert (await stage.read_inbox(student))["help"]["open"] is False
        await first.locator("[data-act=undo]").click()
        await expect(second.locator("[data-alert][data-done=false]")).to_have_count(1)
        await first.mouse.move(900, 600)
        await expect(first.locator("[data-act=claim]")).to_have_text("I’m on it")
        assert (await stage.read_inbox(student))["help"]["open"] is True


async def test_what_the_server_refuses_is_taken_back(stage: Stage, browser: Browser) -> None:
    student = await stage.join()
    await raise_hand(stage, student)
    async with look_as(stage, browser, "田中") as page:
        await page.wait_for_selector("[data-alert]")

        async def refuse(route: Any) -> None:
            await asyncio.sleep(0.5)
            claim = {"by": str(uuid4()), "name": "佐藤", "at": 0}
            await route.fulfill(status=409, json={"code": "NB-1331", "title": "taken", "claim": claim})

        await page.route("**/claim", refuse)
        await page.locator("[data-act=claim]").click()
        await expect(page.locator("[data-act=claim]")).to_have_text("I’m on it", timeout=300)
        await expect(page.locator("[data-act=claim]")).to_have_text("I go")
        await expect(page.locator(".note")).to_have_text("佐藤 is on it already.")


async def test_a_thread_goes_on_from_both_ends(stage: Stage, browser: Browser) -> None:
    student = await stage.join()
    await raise_hand(stage, student)
    async with look_as(stage, browser, "田中") as page:
        await page.locator("button.entry").focus()
        await page.keyboard.press("m")
        await page.locator(".talk textarea").fill("plt.show() は?\n<b>太字</b>")
        await page.locator("[data-act=send]").click()
        await expect(page.locator(".talk [data-message]")).to_have_count(1)
        (message,) = (await stage.read_inbox(student))["messages"]
        assert (message["text"], message["from"]) == ("plt.show() は?\n<b>太字</b>", "田中")
        await expect(page.locator(".talk [data-message] p")).to_have_text("plt.show() は?\n<b>太字</b>")
        headers = {"Authorization": f"Bearer {student['token']}"}
        await stage.http.put(f"/api/v1/me/messages/{message['id']}/state", json={"state": "shown"}, headers=headers)
        await expect(page.locator(".talk [data-message]")).to_contain_text("seen", timeout=6_000)
        await page.keyboard.press("Escape")
        await expect(page.locator(".talk")).to_be_hidden()
        body = {"id": str(uuid4()), "thread_id": message["thread_id"], "text": "出ました!"}
        assert (await stage.http.post("/api/v1/me/messages", json=body, headers=headers)).status_code == 201
        waiting = page.locator("[data-mail-of]")
        await expect(waiting).to_contain_text("1", timeout=2_000)
        await waiting.click()
        await expect(page.locator(".talk [data-from=student] p")).to_have_text("出ました!")
        await page.locator(".talk textarea").fill("よかった")
        await page.locator("[data-act=send]").click()
        await expect(page.locator(".talk [data-message]")).to_have_count(3)
        await expect(waiting).to_have_count(0)
    assert {one["thread_id"] for one in (await stage.read_inbox(student))["messages"]} == {message["thread_id"]}


async def test_a_word_to_all_who_share_an_error_says_how_many_got_past_it(stage: Stage, browser: Browser) -> None:
    students = [await stage.join(f"学生{number}") for number in range(4)]
    await fail_together(stage, students[:3])
    async with look_as(stage, browser, "田中") as page:
        error = page.locator("[data-shared]")
        await expect(error).to_contain_text("3 students")
        await expect(error).to_contain_text("NameError df")
        await error.locator("[data-act=announce]").click()
        ja, en = [page.locator(".talk textarea").nth(place) for place in (0, 1)]
        assert "`df` is not defined at cell 3" in await en.input_value()
        assert "セル 3 で `df` が定義されていません" in await ja.input_value()
        await en.fill("3 of you: `df` is not defined. Run cell 2 first.")
        await page.locator("[data-act=send]").click()
        await expect(page.locator(".note")).to_have_text("Sent to 3 students")
        await expect(error.locator("[data-outcome]")).to_contain_text("0 of 3 got past it")
        for student in students[:3]:
            (message,) = (await stage.read_inbox(student))["messages"]
            assert message["text"]["en"] == "3 of you: `df` is not defined. Run cell 2 first."
        assert (await stage.read_inbox(students[3]))["messages"] == []
        later = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
        await stage.post(students[0]["token"], make_run(2, occurred_at=later, sequence=9))
        await stage.work()
        await expect(error).to_contain_text("2 students")
        await expect(error.locator("[data-outcome]")).to_contain_text("1 of 3 got past it", timeout=8_000)
        for student in students[1:3]:
            await stage.post(student["token"], make_run(2, occurred_at=later, sequence=9))
        await stage.work()
        # Nobody shares it any more; what became of the announcement stays in sight.
        await expect(error).to_have_count(0)
        over = page.locator("[data-over]")
        await expect(over).to_contain_text("Run cell 2 first.")
        await expect(over).to_contain_text("3 of 3 got past it", timeout=8_000)


@pytest.mark.parametrize("width", [1280, 820, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_action_is_there_at_every_size_and_no_barrier_is(
    stage: Stage, browser: Browser, width: int, scheme: Any
) -> None:
    students = [await stage.join(f"鈴木 大翔{number}") for number in range(6)]
    await fail_together(stage, students[:4])
    for student in students[:3]:
        await raise_hand(stage, student)
    async with look_as(stage, browser, "田中 花子", color_scheme=scheme) as page:
        await page.set_viewport_size({"width": width, "height": 800})
        await page.goto(f"{stage.url}/courses/{stage.course.id}?lang=ja")
        await expect(page.locator("[data-alert]")).to_have_count(3)
        await page.locator("[data-act=claim]").first.click()
        await page.locator("[data-act=helped]").nth(2).click()
        await page.wait_for_selector(".note")
        assert await find_barriers(page) == []
        await photograph(page, f"actions-ja-{scheme}-{width}")
        await page.locator("[data-act=message]").first.click()
        await page.wait_for_selector(".talk[open]")
        assert await find_barriers(page) == []
        await photograph(page, f"talk-ja-{scheme}-{width}")
        await page.keyboard.press("Escape")
        if width < 900:
            await page.locator("[data-tab-button=shared]").click()
            await page.wait_for_selector("[data-shared]")
            await photograph(page, f"shared-ja-{scheme}-{width}")
        await page.locator("[data-act=announce]").first.click()
        await page.wait_for_selector(".talk[open] textarea")
        assert await find_barriers(page) == []
        await photograph(page, f"announce-ja-{scheme}-{width}")
