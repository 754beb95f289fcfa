"""Class reports in a browser: the list, a report, its link; for staff, strangers, paper, in every look."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from playwright.async_api import Browser, Page, expect

from browsing import LOOKS, find_barriers, open_as_teacher, open_page, photograph
from meetings import begin, help_student, raise_hand, run, share, teach
from payloads import PAYLOADS
from stage import Stage
from stores import connect

pytestmark = pytest.mark.browser


async def hold_class(stage: Stage) -> str:
    """A meeting before and one with everything in it; its address after the course."""
    before = await begin(stage, 3_000, 2_400)
    meeting_id = await begin(stage)
    joined = await teach(stage, 12)
    await run(stage, joined[3], (2_900, 0, "ok"), (2_800, 1, "error"))
    await stage.join("欠席 太郎", student_number="900")
    await raise_hand(stage, joined[0], 300)
    await help_student(stage, joined[0], "claim")
    await help_student(stage, joined[0])
    await stage.http.post(
        f"/api/v1/courses/{stage.course.id}/messages",
        headers=stage.staff,
        json={"id": str(before), "to": {"all": True}, "text": {"ja": "セル 1 をもう一度", "en": "Run cell 1 again"}},
    )
    async with connect(stage.database_url) as owner:
        await owner.execute("UPDATE class_meetings SET ended_at = now() WHERE id = $1", meeting_id)
        await owner.execute(
            "UPDATE enrolments SET joined_at = now() - interval '1 hour' WHERE course_id = $1", stage.course.id
        )
        await owner.execute(
            "UPDATE notebook_cells SET title = 'データを読む' WHERE cell_id = 'cell-1'"
            " AND notebook_id IN (SELECT id FROM notebooks WHERE course_id = $1)",
            stage.course.id,
        )
    return f"/report/{meeting_id}"


async def wait_for_report(page: Page) -> None:
    await page.wait_for_selector("[data-part=cells]")


async def test_a_report_is_found_and_says_what_next_year_should_know(stage: Stage, browser: Browser) -> None:
    path = await hold_class(stage)
    async with open_as_teacher(stage, browser, "/report") as page:
        await expect(page.locator("[data-meeting-link]")).to_have_count(2)
        await page.locator("[data-meeting-link]").first.click()
        await wait_for_report(page)
        assert page.url.endswith(path)
        sentences = page.locator("[data-part=sentences]")
        await expect(sentences).to_contain_text("cell 2 (“データを読む”): half of the students needed 1.7 min or more")
        await expect(sentences).to_contain_text("12 of 12 met an error there; 12 of them met NameError df")
        await expect(sentences).to_contain_text("nobody reached 2; 2 of them did not get past it")
        await expect(sentences).to_contain_text("Help took 5")
        came = page.locator("[data-figure=came] td")
        await expect(came).to_have_text(["12 of 13", "1 of 13", "+11"])
        await expect(page.locator("[data-part=work]")).to_contain_text("0 of 1 helped got past the cell")
        await expect(page.locator("[data-part=letters]")).to_contain_text("announcement to 13")


async def test_names_are_hidden_until_they_are_wanted(stage: Stage, browser: Browser) -> None:
    path = await hold_class(stage)
    async with open_as_teacher(stage, browser, path) as page:
        never = page.locator("[data-part=never]")
        await expect(never).to_contain_text("900")
        await expect(page.locator("main")).not_to_contain_text("欠席 太郎")
        await page.click("[data-action=names]")
        await expect(never).to_contain_text("欠席 太郎")
        await expect(page.locator("[data-group=alone]")).to_contain_text("学生 11")


async def test_an_empty_course_and_an_empty_meeting_say_so(stage: Stage, browser: Browser) -> None:
    async with open_as_teacher(stage, browser, "/report") as page:
        await expect(page.locator("[data-empty]")).to_contain_text("No class has been held yet")
    meeting_id = await begin(stage)
    async with open_as_teacher(stage, browser, f"/report/{meeting_id}") as page:
        await expect(page.locator("[data-empty]")).to_contain_text("No student ran anything")
        await expect(page.locator("[data-part=figures]")).to_contain_text("there is none to compare it with")
    async with open_as_teacher(stage, browser, "/report/nonsense") as page:
        await expect(page.locator(".problem")).to_contain_text("NB-1201")


async def test_a_link_is_made_opened_by_a_stranger_and_taken_back(stage: Stage, browser: Browser) -> None:
    path = await hold_class(stage)
    async with open_as_teacher(stage, browser, path) as page, open_page(browser) as stranger:
        await page.locator("[data-part=sharing] select").select_option("7")
        await page.click("[data-action=share]")
        link = await page.locator("[data-part=sharing] .command code").inner_text()
        assert "/shared/report#nbp_report_" in link
        asked: list[str] = []
        stranger.on("request", lambda request: asked.append(request.url))
        await stranger.goto(link)
        await wait_for_report(stranger)
        await expect(stranger.locator("[data-shared-until]")).to_contain_text("Shared by a link")
        secret = link.rpartition("#")[2]
        assert not [url for url in asked if secret in url.partition("#")[0]]
        text = await stranger.locator("main").inner_text()
        for word in ("学生", "nr-", "900", "セル 1"):
            assert word not in text
        assert await stranger.locator("[data-part=troubles], [data-part=never], [data-part=letters]").count() == 0
        await stranger.reload()
        await wait_for_report(stranger)
        await page.reload()
        await expect(page.locator("[data-shares]")).to_contain_text("opened 2 times")
        await page.click("[data-action=revoke-share]")
        await expect(page.locator("[data-shares]")).to_have_count(0)
        await stranger.reload()
        await expect(stranger.locator(".problem")).to_contain_text("NB-1232")


async def test_it_prints_without_buttons_and_with_what_is_folded(stage: Stage, browser: Browser) -> None:
    path = await hold_class(stage)
    async with open_as_teacher(stage, browser, path, color_scheme="dark") as page:
        await wait_for_report(page)
        await page.emulate_media(media="print")
        await page.evaluate("dispatchEvent(new Event('beforeprint'))")
        await expect(page.locator("details:not([open])")).to_have_count(0)
        for hidden in (".top", ".course-nav", "[data-part=sharing]", "[data-action=print]"):
            await expect(page.locator(hidden)).to_be_hidden()
        assert await page.evaluate("getComputedStyle(document.body).colorScheme") == "light"
        assert len(await page.pdf(format="A4")) > 10_000
        await photograph(page, "report-print")


async def test_texts_of_students_and_teachers_are_texts(stage: Stage, browser: Browser) -> None:
    path = await hold_class(stage)
    payload = PAYLOADS[0]
    async with connect(stage.database_url) as owner:
        await owner.execute("UPDATE class_meetings SET title = $2 WHERE course_id = $1", stage.course.id, payload)
        await owner.execute(
            "UPDATE notebook_cells SET title = $2 WHERE notebook_id IN (SELECT id FROM notebooks WHERE course_id = $1)",
            *(stage.course.id, payload),
        )
    async with open_as_teacher(stage, browser, path) as page:
        await wait_for_report(page)
        await expect(page.locator("h1")).to_have_text(payload)
        await expect(page.locator("[data-part=sentences]")).to_contain_text(payload)


@pytest.mark.parametrize("options", LOOKS)
async def test_a_report_looks_right_everywhere(stage: Stage, browser: Browser, options: dict[str, Any]) -> None:
    path = await hold_class(stage)
    async with open_as_teacher(stage, browser, path, **options) as page:
        await wait_for_report(page)
        assert await find_barriers(page) == []
        await photograph(page, "report", options)
        await page.goto(page.url.rpartition("/")[0])
        await page.wait_for_selector("[data-meeting-link]")
        assert await find_barriers(page) == []
        await photograph(page, "reports", options)


@pytest.mark.parametrize("options", LOOKS[::2])
async def test_a_shared_report_looks_right(stage: Stage, browser: Browser, options: dict[str, Any]) -> None:
    path = await hold_class(stage)
    made = await share(stage, UUID(path.rpartition("/")[2]))
    async with open_page(browser, **options) as page:
        await page.goto(f"{stage.url}/shared/report#{made['code']}")
        await wait_for_report(page)
        assert await find_barriers(page) == []
        await photograph(page, "shared-report", options)
