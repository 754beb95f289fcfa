"""The page of a course's data as files, for staff and for an analyst, in a browser."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from playwright.async_api import Browser, expect

from browsing import LOOKS, find_barriers, open_as_teacher, open_page, photograph
from stage import Stage, make_run
from stores import connect

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("options", LOOKS)
async def test_the_page_looks_right_everywhere(stage: Stage, browser: Browser, options: dict[str, Any]) -> None:
    async with open_as_teacher(stage, browser, "/data", **options) as page:
        await expect(page.locator("[data-question]")).to_have_count(8)
        assert await find_barriers(page) == []
        await photograph(page, "data", options)


async def test_a_file_is_of_the_days_that_were_chosen_and_names_nobody_unless_asked(
    stage: Stage, browser: Browser
) -> None:
    async with connect(stage.database_url) as owner:  # never the same day in both zones
        await owner.execute("UPDATE courses SET time_zone = 'Pacific/Kiritimati'")
    token = (await stage.join("Alice"))["token"]
    await stage.post(token, make_run())
    await stage.work()
    async with open_as_teacher(stage, browser, "/data", timezone_id="Pacific/Pago_Pago") as page:
        sessions = page.locator("[data-question=sessions] a", has_text="CSV")
        for is_identified in (False, True):
            await page.set_checked("input[name=identified]", is_identified)
            async with page.expect_download() as download:
                await sessions.click()
            text = (await (await download.value).path()).read_text(encoding="utf-8")
            assert len(text.splitlines()) == 2
            assert ("student-" in text) is not is_identified
        await page.fill("input[name=last]", "2000-01-01")
        await expect(page.locator(".problem")).to_be_visible()
        await expect(page.locator("[data-question] a")).to_have_count(0)
        await page.fill("input[name=first]", "2000-01-01")
        await expect(page.locator("[data-question] a")).to_have_count(24)


async def test_an_analyst_finds_this_page_and_no_other(stage: Stage, browser: Browser) -> None:
    async with connect(stage.database_url) as owner:
        analyst = await owner.fetchval(
            "INSERT INTO users (username) VALUES ($1) RETURNING id", f"analyst-{uuid4().hex[:8]}"
        )
        await owner.execute(
            "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, 'analyst')", analyst, stage.course.id
        )
    code = await stage.people.create_link(analyst)
    async with open_page(browser) as page:
        await page.goto(f"{stage.url}/courses/{stage.course.id}/data#code={code}")
        await expect(page.locator("[data-question]")).to_have_count(6)
        places = await page.locator("[data-nav]").evaluate_all("(all) => all.map((one) => one.dataset.nav)")
        assert places == ["courses", "data"]
        await expect(page.locator("input[name=identified]")).to_have_count(0)
        async with page.expect_download() as download:
            await page.locator("[data-question=progress] a").first.click()
        assert (await download.value).suggested_filename.endswith(".csv")
