"""Error groups in the browsers of two members of staff: renamed, merged, muted and taken back, seen by both."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Browser, expect

from browsing import LOOKS, find_barriers, open_as_teacher, photograph
from stage import Stage, make_run

pytestmark = pytest.mark.browser
WAIT_MS = 20_000
LACKS = {"df": 6, "pd": 3}


async def fail_in_two_ways(stage: Stage) -> None:
    """Six who lack `df` on cell 3, three who lack `pd` there, and three who are past it."""
    for number in range(12):
        student = await stage.join(f"学生 {number}", student_number=f"{number}")
        missing = "df" if number < LACKS["df"] else "pd"
        event = make_run(2, "ok" if number > 8 else "error")
        if number <= 8:
            event["data"]["error_message"] = f"name '{missing}' is not defined"
        assert (await stage.post(student["token"], [make_run(0), event])).status_code == 202
    await stage.work()


async def test_what_one_settles_the_other_sees_and_the_note_takes_it_back(stage: Stage, browser: Browser) -> None:
    await fail_in_two_ways(stage)
    async with open_as_teacher(stage, browser) as page, open_as_teacher(stage, browser) as other:
        for one in (page, other):
            await expect(one.locator("[data-shared]")).to_have_count(2, timeout=WAIT_MS)
        await page.locator("[data-shared]").nth(1).locator("[data-error-link]").click()
        await page.locator("[data-part=group] input[name=title]").fill("<b>import 忘れ</b>")
        await page.click("[data-action=rename-group]")
        await expect(page.locator("h1")).to_have_text("<b>import 忘れ</b>", timeout=WAIT_MS)
        await expect(other.locator("[data-shared]").nth(1)).to_contain_text("<b>import 忘れ</b>", timeout=WAIT_MS)

        await page.select_option("select[name=into]", label="NameError df")
        await page.click("[data-action=merge-group]")
        await expect(page.locator("[data-merged]")).to_contain_text("NameError pd", timeout=WAIT_MS)
        await expect(page.locator("[data-part=now] [data-student-link]")).to_have_count(9)
        await expect(other.locator("[data-shared]")).to_have_count(1, timeout=WAIT_MS)
        await expect(other.locator("[data-shared]")).to_have_attribute("data-students", "9")
        await page.click("[data-action=separate-group]")
        await expect(other.locator("[data-shared]")).to_have_count(2, timeout=WAIT_MS)
        await expect(page.locator("[data-merged]")).to_have_count(0, timeout=WAIT_MS)

        await other.locator("[data-act=mute-error]").nth(1).click()
        await expect(other.locator("[data-muted-group]")).to_have_count(1, timeout=WAIT_MS)
        await expect(other.locator("[data-shared]")).to_have_count(1)
        await expect(page.locator("[data-action=mute-group]")).to_have_attribute(
            "aria-pressed", "true", timeout=WAIT_MS
        )
        await other.locator(".note [data-act=undo]").click()
        await expect(other.locator("[data-shared]")).to_have_count(2, timeout=WAIT_MS)
        await expect(other.locator("[data-muted-group]")).to_have_count(0)


async def test_a_muted_cell_has_no_banner_on_any_board_until_somebody_unmutes_it(
    stage: Stage, browser: Browser
) -> None:
    await fail_in_two_ways(stage)
    async with open_as_teacher(stage, browser) as page, open_as_teacher(stage, browser) as other:
        for one in (page, other):
            await expect(one.locator("[data-hot-cell]")).to_be_visible(timeout=WAIT_MS)
        await page.click("[data-act=mute]")
        await expect(other.locator("[data-hot='0']")).to_be_visible(timeout=WAIT_MS)
        await page.reload()
        await expect(page.locator("[data-act=unmute]")).to_contain_text("Cell 3", timeout=WAIT_MS)
        await expect(page.locator("[data-hot-cell]")).to_have_count(0)
        await other.click("[data-act=unmute]")
        await expect(page.locator("[data-hot-cell]")).to_be_visible(timeout=WAIT_MS)


@pytest.mark.parametrize("look", LOOKS)
async def test_settled_groups_look_right_everywhere(stage: Stage, browser: Browser, look: dict[str, Any]) -> None:
    await fail_in_two_ways(stage)
    first, second = (await stage.snapshot())["errors"]
    hot = (await stage.snapshot())["hot"][0]["fp"]
    base = f"/api/v1/courses/{stage.course.id}/errors"
    for fingerprint, changes in (
        (first["fp"], {"title": "CSV を読み込む前に df を使っている(セル 2 を先に実行)"}),
        (second["fp"], {"is_muted": True}),
        (hot, {"is_muted": True}),
        ("ab" * 8, {"is_muted": True}),
        ("cd" * 8, {"merged_into": first["fp"]}),
    ):
        answer = await stage.http.patch(f"{base}/{fingerprint}", headers=stage.staff, json=changes)
        assert answer.status_code == 200, answer.text
    async with open_as_teacher(stage, browser, **look) as page:
        if look["viewport"]["width"] == 820:
            await page.click("[data-tab-button=shared]")
        if look["viewport"]["width"] > 390:
            await page.click(".muted-groups summary")
            await expect(page.locator("[data-muted-group]")).to_have_count(3)
        await expect(page.locator("[data-act=unmute]")).to_be_visible()
        assert await find_barriers(page) == []
        await photograph(page, "settled", look)
        await page.goto(f"{stage.url}/courses/{stage.course.id}/errors/{first['fp']}")
        await expect(page.locator("[data-merged]")).to_have_count(1, timeout=WAIT_MS)
        assert await find_barriers(page) == []
        await photograph(page, "settling", look)
