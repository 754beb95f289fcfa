"""The page of a course's settings in a browser: rules tried and saved, the level of collection, as it looks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from playwright.async_api import Browser, expect

from browsing import LOOKS, find_barriers, open_as_teacher, photograph
from stage import Stage, make_run
from stores import connect

pytestmark = pytest.mark.browser


async def hold_class(stage: Stage) -> None:
    """A class in which one student was stuck."""
    now = datetime.now(UTC)
    async with connect(stage.database_url) as owner:
        await owner.execute(
            "INSERT INTO class_meetings (course_id, started_at, ended_at)"
            " VALUES ($1, now() - interval '10 minutes', now() + interval '1 second')",
            stage.course.id,
        )
    for n in range(3):
        student = await stage.join(f"学生 {n}", student_number=str(n))
        errors = [make_run(2, "error", occurred_at=(now - timedelta(seconds=s)).isoformat()) for s in (300, 260, 180)]
        ok = make_run(0, occurred_at=(now - timedelta(seconds=400)).isoformat())
        assert (await stage.post(student["token"], [ok, *(errors if n == 0 else [])])).status_code == 202
    await stage.work()


async def test_rules_are_tried_on_the_last_class_saved_and_reset(stage: Stage, browser: Browser) -> None:
    await hold_class(stage)
    async with open_as_teacher(stage, browser, "/settings") as page:
        await page.wait_for_selector("[data-part=rules]")
        count = page.locator("[name=stuck_error_count]")
        await expect(count).to_have_value("3")
        await page.click("[data-action=try-rules]")
        await page.wait_for_selector("[data-trial]")
        await expect(page.locator("[data-tried=stuck]")).to_have_text("would have fired 1 times, for 1 student")
        await expect(page.locator("[data-trial]")).to_contain_text("6 events of 3 students")
        await count.fill("1")
        await page.keyboard.press("Tab")
        await page.click("[data-action=save-rules]")
        assert await count.evaluate("input => input.validity.rangeUnderflow"), "the browser says so at the field"
        await count.fill("4")
        await page.keyboard.press("Tab")
        await expect(page.locator(".trial")).to_have_text("Not saved yet.")
        await page.locator("[name=on_idle]").focus()
        await page.keyboard.press("Space")
        await expect(page.locator("[name=idle_after_ms]")).to_be_disabled()
        await page.click("[data-action=save-rules]")
        await expect(page.locator("[data-action=save-rules]")).to_be_disabled()
        await page.reload()
        await expect(count).to_have_value("4")
        await expect(page.locator("[name=on_idle]")).not_to_be_checked()
        await page.click("[data-action=reset-rules]")
        await expect(count).to_have_value("3")
        await page.click("[data-action=save-rules]")
        await expect(page.locator("[data-action=reset-rules]")).to_be_disabled()


async def test_the_level_of_collection_is_another_version(stage: Stage, browser: Browser) -> None:
    async with open_as_teacher(stage, browser, "/settings") as page:
        await page.wait_for_selector("[data-part=rules]")
        await page.check("[name=level][value=source]")
        await page.click("[data-action=save-level]")
        await expect(page.locator("[data-part=collection]")).to_contain_text("Version 2")
        await expect(page.locator("[data-part=kept]")).to_contain_text("days")


@pytest.mark.parametrize("look", LOOKS)
async def test_the_page_has_no_barriers_in_any_look(stage: Stage, browser: Browser, look: dict[str, object]) -> None:
    await hold_class(stage)
    async with open_as_teacher(stage, browser, "/settings", **look) as page:
        await page.wait_for_selector("[data-part=rules]")
        await page.click("[data-action=try-rules]")
        await page.wait_for_selector("[data-trial]")
        assert await find_barriers(page) == []
        await photograph(page, "settings", look)
