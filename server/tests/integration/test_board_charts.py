"""The live page's figures in a browser: funnel, charts, teams, the time they count, order and size; as they look."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from playwright.async_api import Browser, Page, expect

from browsing import LOOKS, find_barriers, open_as_teacher, photograph
from stage import Stage, make_run
from stores import connect

pytestmark = pytest.mark.browser

CELLS = [("はじめに", None), ("はじめに", None), ("集計", "Q1"), ("集計", "Q1"), ("グラフ", None)]
TEAMS = ["赤", "赤", "青", "青", None]


async def make_class(stage: Stage) -> list[dict[str, Any]]:
    """A prepared notebook with sections and an exercise; five students, four of them in two teams, at work."""
    async with connect(stage.database_url) as owner:
        notebook_id = await owner.fetchval(
            "INSERT INTO notebooks (course_id, path, title) VALUES ($1, 'week1.ipynb', '第 1 回') RETURNING id",
            stage.course.id,
        )
        await owner.executemany(
            "INSERT INTO notebook_cells (notebook_id, cell_id, cell_index, cell_type, title, exercise_id,"
            " is_registered) VALUES ($1, $2, $3, 'code', $4, $5, TRUE)",
            [(notebook_id, f"cell-{n}", n, title, exercise) for n, (title, exercise) in enumerate(CELLS)],
        )
    students = [await stage.join(f"生徒 {n}", student_number=f"100{n}") for n in range(len(TEAMS))]
    async with connect(stage.database_url) as owner:
        for n, (student, team) in enumerate(zip(students, TEAMS, strict=True)):
            await owner.execute(
                "UPDATE enrolments SET team = $2, seat = $3 WHERE user_id = $1",
                *(UUID(student["user_id"]), team, f"A-{9 - n}"),
            )
    for n, student in enumerate(students):
        runs = [make_run(cell) for cell in range(min(n + 1, 4))]
        runs += [make_run(n, "error"), make_run(event_type="presence", data={"state": "active"})]
        await stage.post(student["token"], runs)
    await stage.post(students[2]["token"], make_run(event_type="help_request", notebook_path=None, data={}))
    await stage.work()
    return students


@asynccontextmanager
async def look(stage: Stage, browser: Browser, **options: Any) -> AsyncIterator[Page]:
    """The live page of that class."""
    async with open_as_teacher(stage, browser, **options) as page:
        await page.wait_for_selector(".board[data-link=live] .counters", timeout=20_000)
        yield page


async def test_the_funnel_and_the_charts_tell_what_the_class_did(stage: Stage, browser: Browser) -> None:
    students = await make_class(stage)
    async with look(stage, browser) as page:
        first = page.locator(".funnel [data-cell=cell-0]")
        await expect(first).to_have_attribute("data-reached", "5")
        await expect(first).to_have_attribute("data-error", "1")
        await expect(page.locator(".funnel [data-cell=cell-4]")).to_have_attribute("data-reached", "1")
        await first.hover()
        await expect(page.locator(".readout")).to_contain_text("reached 5 · ok 4 · error 1")
        trend = page.locator("[data-chart=trend]")
        await expect(trend).to_contain_text("last 15 min: 19 runs, 5 errors (26 %)")
        await stage.post(students[0]["token"], make_run(0))
        await stage.work()
        await expect(first).to_have_attribute("data-ok", "5", timeout=20_000)
        await expect(trend).to_contain_text("20 runs")
        await trend.get_by_role("button", name="Table").click()
        # By half minutes, and the class may have begun in one and gone on in the next.
        counts = trend.locator("tbody td")
        await expect(counts.first).to_be_visible()
        told = [int(count) for count in await counts.all_text_contents()]
        assert (sum(told[::2]), sum(told[1::2])) == (20, 5)
        slot = page.locator("[data-slot]").first
        await slot.select_option("exercises")
        await expect(page.locator("[data-exercise=Q1]")).to_contain_text("1 done, 3 begun")
        await slot.select_option("sections")
        await expect(page.locator("[data-section-count]")).to_have_count(3)
        await page.locator("[data-section-count]", has_text="集計").locator("button").click()
        await expect(page.locator(".head [data-section=true]")).to_have_count(2)
        await page.reload()
        await expect(page.locator("[data-section-count]")).to_have_count(3)  # the choice is kept


async def test_a_team_narrows_list_grid_counters_and_charts(stage: Stage, browser: Browser) -> None:
    await make_class(stage)
    async with look(stage, browser) as page:
        tiles = page.locator(".tiles [data-team]")
        await expect(tiles).to_have_count(2)
        await expect(tiles.first).to_have_attribute("data-team", "青")  # somebody asks for help there
        await tiles.first.click()
        await expect(page.locator("[data-row-count]")).to_have_attribute("data-row-count", "2")
        await expect(page.locator(".funnel [data-cell=cell-0]")).to_have_attribute("data-reached", "2")
        await expect(page.locator("[data-alert]")).to_have_count(1)
        await expect(page.locator("[data-counter=help] b")).to_have_text("1")
        await page.locator("[data-bar=team]").select_option("赤")
        await expect(page.locator("[data-alert]")).to_have_count(0)
        await expect(page.locator("[data-counter=help] b")).to_have_text("0")
        await expect(page.locator("[data-chart=trend]")).to_contain_text("5 runs, 2 errors")
        await page.locator("[data-bar=time]").select_option("5")
        await expect(page.locator(".funnel [data-cell=cell-0]")).to_have_attribute("data-reached", "2")
        await page.click("[data-bar=clear]")
        await expect(page.locator("[data-row-count]")).to_have_attribute("data-row-count", "5")
        await expect(page.locator(".funnel [data-cell=cell-0]")).to_have_attribute("data-reached", "5")


async def test_the_grid_has_orders_and_sizes_and_the_keys_walk_over_the_funnel(stage: Stage, browser: Browser) -> None:
    await make_class(stage)
    async with look(stage, browser) as page:
        names = page.locator("[data-student] .name")
        await expect(names).to_have_text(["1000", "1001", "1002", "1003", "1004"])
        await page.locator("[data-bar=order]").select_option("seat")
        await expect(names).to_have_text(["1004", "1003", "1002", "1001", "1000"])
        await page.locator("[data-bar=order]").select_option("progress")
        await expect(names).to_have_text(["1000", "1001", "1002", "1003", "1004"])
        await page.click("[data-bar=larger]")
        await expect(page.locator(".grid-panel")).to_have_attribute("data-zoom", "2")
        await page.focus(".grid")
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("ArrowRight")
        await expect(page.locator(".readout")).to_contain_text("reached 5")
        await page.keyboard.press("ArrowDown")
        await expect(page.locator(".readout")).to_contain_text("1000")


@pytest.mark.parametrize("options", LOOKS)
async def test_the_page_looks_right_everywhere(stage: Stage, browser: Browser, options: dict[str, Any]) -> None:
    await make_class(stage)
    async with look(stage, browser, **options) as page:
        if options["viewport"]["width"] < 900:
            await page.click("[data-tab-button=charts]")
            await expect(page.locator("[data-chart=staff]")).not_to_be_empty()
        await expect(page.locator("[data-chart=trend] rect")).not_to_have_count(0)
        assert await find_barriers(page) == []
        # Cut off, the board goes on showing what it showed, as readable as before.
        await page.evaluate("document.querySelector('.board').dataset.link = 'stale'")
        assert await find_barriers(page) == []
        await photograph(page, "live-charts", options)
