"""A past class in a browser: played, paused, searched, read-only; as it looks."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from playwright.async_api import Browser, Page, expect

from browsing import LOOKS, find_barriers, open_as_teacher, photograph
from meetings import begin, raise_hand, run, teach
from stage import Stage
from stores import connect

pytestmark = pytest.mark.browser
WAIT_MS = 20_000


async def hold_class(stage: Stage) -> UUID:
    """A class with a hand up since its last minutes, and somebody stuck who went on trying."""
    meeting_id = await begin(stage)
    joined = await teach(stage, 8)
    await run(stage, joined[-1], *((ago, 1, "error") for ago in (300, 200, 100, 40)))
    for one in joined[:-2]:
        await run(stage, one, (60, 2, "ok"))
    await raise_hand(stage, joined[0], 120)
    async with connect(stage.database_url) as owner:
        await owner.execute("UPDATE class_meetings SET ended_at = now() WHERE id = $1", meeting_id)
    return meeting_id


async def go_to(page: Page, part: float) -> None:
    """Scrub to that part of the class, and see it."""
    slider = page.locator(".player input[type=range]")
    asked = page.expect_response(lambda answer: "/replay?" in answer.url and "at=" in answer.url)
    async with asked:
        await slider.evaluate(
            "(one, part) => { one.value = +one.min + (one.max - one.min) * part;"
            " one.dispatchEvent(new Event('change', {bubbles: true})); }",
            part,
        )


async def test_a_class_is_found_from_its_report_and_played(stage: Stage, browser: Browser) -> None:
    meeting_id = await hold_class(stage)
    async with open_as_teacher(stage, browser, f"/report/{meeting_id}") as page:
        await page.click("[data-action=replay]")
        await expect(page.locator(".player")).to_be_visible(timeout=WAIT_MS)
        await expect(page.locator(".squares i[data-state='1']")).to_have_count(0)
        await go_to(page, 0.999)
        await expect(page.locator("[data-alert][data-kind=help]")).to_have_count(1, timeout=WAIT_MS)
        await expect(page.locator("[data-alert][data-kind=stuck]")).to_have_count(1)
        await expect(page.locator(".acts:visible")).to_have_count(0)
        await go_to(page, 0)
        await expect(page.locator("[data-alert]")).to_have_count(0, timeout=WAIT_MS)
        await page.locator(".player select").first.select_option("60")
        await page.click("[data-action=play]")
        # Over all its stretches to its end, where it stops by itself.
        await expect(page.locator("[data-alert][data-kind=help]")).to_have_count(1, timeout=3 * WAIT_MS)
        await expect(page.locator(".player[data-playing=false]")).to_be_visible(timeout=3 * WAIT_MS)
        await expect(page.locator(".squares i[data-state='1']")).not_to_have_count(0)


async def test_it_shows_shared_errors_banner_and_charts_as_they_were_and_nothing_to_press(
    stage: Stage, browser: Browser
) -> None:
    meeting_id = await begin(stage)
    await teach(stage, 10)
    async with open_as_teacher(stage, browser, f"/replay/{meeting_id}") as page:
        await expect(page.locator(".player")).to_be_visible(timeout=WAIT_MS)
        await expect(page.locator("[data-shared]")).to_have_count(0)
        now = await page.locator(".player input[type=range]").evaluate("one => [+one.min, +one.max]")
        # All ten have failed on cell 2 by 170 s of the 600; at 250 s eight of them are past it.
        await go_to(page, 175_000 / (now[1] - now[0]))
        await expect(page.locator("[data-shared]")).to_have_attribute("data-students", "10", timeout=WAIT_MS)
        await expect(page.locator("[data-hot-cell]")).to_contain_text("Cell 2 fails for 100 %")
        await expect(page.locator("[data-chart=trend] .chart-words")).to_contain_text("24 runs, 14 errors")
        await expect(page.locator("[data-act]:visible")).to_have_count(0)
        await go_to(page, 0.999)
        await expect(page.locator("[data-shared]")).to_have_attribute("data-students", "2", timeout=WAIT_MS)
        await expect(page.locator("[data-chart=trend] .chart-words")).to_contain_text("32 runs, 14 errors")
        await expect(page.locator("[data-chart=curve] svg")).to_be_visible()


async def test_the_keyboard_plays_and_shows_names(stage: Stage, browser: Browser) -> None:
    meeting_id = await hold_class(stage)
    async with open_as_teacher(stage, browser, f"/replay/{meeting_id}") as page:
        await expect(page.locator(".player")).to_be_visible(timeout=WAIT_MS)
        await page.keyboard.press("Space")
        await expect(page.locator(".player[data-playing=true]")).to_be_visible(timeout=WAIT_MS)
        await page.keyboard.press("Space")
        await expect(page.locator(".player[data-playing=false]")).to_be_visible(timeout=WAIT_MS)
        await expect(page.locator(".grid")).not_to_contain_text("学生 1")
        await page.keyboard.press("a")
        await expect(page.locator(".grid")).to_contain_text("学生 1", timeout=WAIT_MS)


async def test_an_empty_class_says_so(stage: Stage, browser: Browser) -> None:
    meeting_id = await begin(stage)
    async with open_as_teacher(stage, browser, f"/replay/{meeting_id}") as page:
        await expect(page.locator(".problem")).to_contain_text("NB-1233", timeout=WAIT_MS)


@pytest.mark.parametrize("options", LOOKS)
async def test_it_looks_right_everywhere(stage: Stage, browser: Browser, options: dict[str, Any]) -> None:
    meeting_id = await hold_class(stage)
    async with open_as_teacher(stage, browser, f"/replay/{meeting_id}", **options) as page:
        await expect(page.locator(".player")).to_be_visible(timeout=WAIT_MS)
        await go_to(page, 0.95)
        await expect(page.locator("[data-counter=help] b")).to_have_text("1", timeout=WAIT_MS)
        assert await find_barriers(page) == []
        await photograph(page, "replay", options)
