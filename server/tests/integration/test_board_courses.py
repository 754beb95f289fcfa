"""Pages around a class in a browser: the classes, before class, joining on the wall and on paper, the class's end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from playwright.async_api import Browser, Page, expect

from browsing import LOOKS, find_barriers, open_as_teacher, open_page, photograph
from payloads import PAYLOADS, WATCH
from stage import Stage, make_run
from stores import connect

pytestmark = pytest.mark.browser

COURSES = "/api/v1/courses"
NOTEBOOK = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {},
    "cells": [
        {"cell_type": "markdown", "id": "a", "source": "# 第1回", "metadata": {}},
        {"cell_type": "code", "id": "b", "source": "x = 1", "metadata": {}, "outputs": [], "execution_count": None},
    ],
}


async def name_course(stage: Stage, title: str) -> None:
    async with connect(stage.database_url) as owner:
        await owner.execute("UPDATE courses SET title = $2 WHERE id = $1", stage.course.id, title)


async def leave_other_courses(stage: Stage) -> None:
    """The teacher is a user of all tests of this database: here they have this stage's course alone."""
    async with connect(stage.database_url) as owner:
        await owner.execute(
            "DELETE FROM enrolments WHERE user_id = $1 AND course_id <> $2", stage.teacher_id, stage.course.id
        )


async def post(stage: Stage, path: str, body: Any = None) -> Any:
    answer = await stage.http.post(f"{COURSES}/{stage.course.id}/{path}", json=body or {}, headers=stage.staff)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def find_card(page: Page, stage: Stage) -> Any:
    return page.locator(f"[data-course='{stage.course.id}']")


async def open_courses(page: Page, stage: Stage) -> None:
    await page.wait_for_selector(".board")
    await page.goto(f"{stage.url}/courses")
    await page.wait_for_selector("[data-course], [data-page=no-course]")


# --- classes ----------------------------------------------------------------------------------------------------------


async def test_a_class_is_made_copied_archived_and_brought_back(stage: Stage, browser: Browser) -> None:
    title = f"Programming {uuid4().hex[:6]}"
    async with open_as_teacher(stage, browser) as page:
        await open_courses(page, stage)
        await page.click("[data-part=create] summary")
        await page.fill("[data-part=create] [name=title]", title)
        await page.fill("[data-part=create] [name=time_zone]", "Asia/Nowhere")
        await page.click("[data-action=create]")
        await expect(page.locator(".problem")).to_contain_text("NB-1215")
        await page.fill("[data-part=create] [name=time_zone]", "Asia/Tokyo")
        await page.click("[data-action=create]")
        await page.wait_for_url("**/before")
        await expect(page.locator("header")).to_contain_text(title)
        await expect(page.locator("[data-check=students]")).to_contain_text("Nobody is in this class yet")
        await page.click("[data-nav=courses]")
        card = page.locator("[data-course]", has_text=title)
        await card.locator("[data-action=copy]").click()
        await card.locator("[name=title]").fill(f"{title} again")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/before")
        await expect(page.locator("header")).to_contain_text(f"{title} again")
        await page.goto(f"{stage.url}/courses")
        card = page.locator("[data-course]", has=page.get_by_role("link", name=title, exact=True))
        await card.locator("[data-action=archive]").click()
        archived = page.locator("[data-part=archived]")
        await expect(card).to_be_hidden()
        await archived.locator("> summary").click()
        await card.locator("[data-action=restore]").click()
        await expect(card.locator("[data-action=archive]")).to_be_visible()


async def test_a_class_is_renamed_in_its_place(stage: Stage, browser: Browser) -> None:
    await stage.join()
    async with open_as_teacher(stage, browser) as page, open_as_teacher(stage, browser) as board:
        await open_courses(page, stage)
        await board.wait_for_selector(".board")
        card = find_card(page, stage)
        await card.locator("[data-action=rename]").click()
        await card.locator("[name=title]").fill("<i>Programming</i> II")
        assert await find_barriers(page) == []
        await photograph(page, "rename")
        await card.locator("[name=title]").press("Enter")  # a picture of the whole page may take the focus
        await expect(card.locator(".course-head bdi")).to_have_text("<i>Programming</i> II")
        await expect(card.locator("form")).to_have_count(0)
        await expect(board.locator("h1").first).to_contain_text("<i>Programming</i> II", timeout=20_000)


async def test_a_class_that_is_on_stands_first_and_is_not_archived(stage: Stage, browser: Browser) -> None:
    await post(stage, "meetings")
    await stage.join()
    async with open_as_teacher(stage, browser) as page:
        await open_courses(page, stage)
        live = page.locator("[data-part=live]")
        await expect(live).to_contain_text(stage.course.title)
        await expect(live).to_contain_text("1 student")
        await find_card(page, stage).locator("[data-action=archive]").click()
        await expect(page.locator(".problem")).to_contain_text("NB-1213")


async def test_assistants_are_given_no_commands(stage: Stage, browser: Browser) -> None:
    async with connect(stage.database_url) as owner:
        user_id = await owner.fetchval("INSERT INTO users (username) VALUES ($1) RETURNING id", f"a{uuid4().hex[:8]}")
        await owner.execute(
            "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, 'assistant')", user_id, stage.course.id
        )
    code = await stage.people.create_link(user_id)
    async with open_page(browser) as page:
        await page.goto(f"{stage.url}/courses#code={code}")
        await expect(find_card(page, stage)).to_contain_text("Assistant")
        await expect(page.locator("[data-action], [data-part=create]").filter(visible=True)).to_have_count(
            await page.locator("header [data-action]").count()
        )
        await page.goto(f"{stage.url}/courses/{stage.course.id}/before")
        await page.wait_for_selector("[data-part=notebooks]")
        await expect(page.locator("input[type=file]")).to_have_count(0)


async def test_who_has_no_class_is_told_what_to_do(stage: Stage, browser: Browser) -> None:
    await leave_other_courses(stage)
    answer = await stage.http.patch(f"{COURSES}/{stage.course.id}", json={"is_archived": True}, headers=stage.staff)
    assert answer.status_code == 200
    async with open_as_teacher(stage, browser, locale="ja-JP") as page:
        await page.wait_for_selector(".board")
        await page.goto(stage.url)
        await page.wait_for_selector("[data-page=no-course]")
        await expect(page.locator("[data-part=create]")).to_have_attribute("open", "")
        for summary in await page.locator("main > details:not(.card) > summary").all():
            await summary.click()
        await expect(page.locator("main")).to_contain_text("nbpulse demo")
        await expect(page.locator("main")).to_contain_text("pip install nbpulse-capture")
        assert await find_barriers(page) == []
        await photograph(page, "courses-none")


async def test_no_title_becomes_markup_or_script(stage: Stage, browser: Browser) -> None:
    async with connect(stage.database_url) as owner:
        for payload in PAYLOADS:
            course = await owner.fetchval(
                "INSERT INTO courses (title, short_name, join_code) VALUES ($1, $2, $3) RETURNING id",
                *(payload, uuid4().hex[:12], uuid4().hex[:8].upper()),
            )
            await owner.execute(
                "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, 'instructor')",
                *(stage.teacher_id, course),
            )
    await name_course(stage, PAYLOADS[0])
    async with open_as_teacher(stage, browser) as page:
        await page.add_init_script(WATCH)
        await open_courses(page, stage)
        shown = await page.locator("[data-course] .course-head bdi").all_text_contents()
        assert set(PAYLOADS) <= set(shown)
        for path in ("before", "join", "handout"):
            await page.goto(f"{stage.url}/courses/{stage.course.id}/{path}")
            await expect(page.locator("bdi", has_text=PAYLOADS[0]).first).to_be_visible()
            assert await page.evaluate("window.attempts") == []
            assert await page.locator("main script, main iframe, main svg script").count() == 0
    async with connect(stage.database_url) as owner:
        await owner.execute("DELETE FROM courses WHERE title = ANY($1::text[])", list(PAYLOADS))


@pytest.mark.parametrize("options", LOOKS)
async def test_the_classes_look_right_everywhere(stage: Stage, browser: Browser, options: dict[str, Any]) -> None:
    await leave_other_courses(stage)
    await name_course(stage, "情報 I(1 年 3 組)")
    await stage.join()
    await post(stage, "meetings")
    await stage.http.post(COURSES, json={"title": "Data Science, autumn 2026"}, headers=stage.staff)
    old = (await stage.http.post(COURSES, json={"title": "情報 I(2025)"}, headers=stage.staff)).json()
    await stage.http.patch(f"{COURSES}/{old['id']}", json={"is_archived": True}, headers=stage.staff)
    async with open_as_teacher(stage, browser, **options) as page:
        await open_courses(page, stage)
        await find_card(page, stage).locator("[data-action=copy]").click()
        await page.locator("[data-part=archived] > summary").click()
        assert await find_barriers(page) == []
        await photograph(page, "courses", options)


# --- before class -----------------------------------------------------------------------------------------------------


async def seat_class(stage: Stage) -> None:
    """A roster of whom some have come, one of them silent, one gone; a prepared notebook and one that is not."""
    rows = "".join(f"10{number:02},学生 {number},,{'赤青'[number % 2]},\n" for number in range(1, 13))
    answer = await stage.http.post(
        f"{COURSES}/{stage.course.id}/roster?dry_run=false",
        headers=stage.staff | {"Content-Type": "text/csv"},
        content=f"student_number,name,kana,team,seat\n{rows}".encode(),
    )
    assert answer.status_code == 200
    for number in range(1, 6):
        student = await stage.join(f"学生 {number}", student_number=f"10{number:02}")
        if number > 1:
            await stage.post(student["token"], make_run())
    await stage.work()
    sent = await stage.http.post(
        f"{COURSES}/{stage.course.id}/notebooks?name=lesson2.ipynb",
        headers=stage.staff | {"Content-Type": "application/x-ipynb+json"},
        content=json.dumps(NOTEBOOK).encode(),
    )
    assert sent.status_code == 200


async def test_before_class_shows_whom_to_look_after_and_names_on_demand(stage: Stage, browser: Browser) -> None:
    await seat_class(stage)
    async with open_as_teacher(stage, browser, "/before") as page:
        await expect(page.locator("[data-check=students]")).to_contain_text("4 of 12 students are connected")
        await expect(page.locator("[data-state=silent] li")).to_have_text(["1001 青"])
        await expect(page.locator("[data-state=absent] li")).to_have_count(7)
        await expect(page.locator("[data-check=notebooks]")).to_contain_text("1 notebook in use is not prepared")
        await expect(page.locator("[data-check=notebooks]")).to_have_attribute("data-well", "false")
        await expect(page.locator("[data-check=stores]")).to_be_visible()
        await expect(page.locator("[data-check=address]")).to_contain_text("--host lan")
        await page.click("[data-action=names]")
        await expect(page.locator("[data-state=silent] li")).to_contain_text("学生 1")


async def test_a_notebook_goes_in_and_comes_back_prepared(stage: Stage, browser: Browser, tmp_path: Path) -> None:
    file, bad = tmp_path / "第1回.ipynb", tmp_path / "bad.ipynb"
    file.write_text(json.dumps(NOTEBOOK), encoding="utf-8")
    bad.write_text("not a notebook", encoding="utf-8")
    async with open_as_teacher(stage, browser, "/before") as page:
        chooser = page.locator("[data-part=notebooks] input[type=file]")
        await chooser.set_input_files(bad)
        await expect(page.locator("[data-part=notebooks] .problem")).to_contain_text("NB-1350")
        await chooser.set_input_files(file)
        await expect(page.locator("[data-told]")).to_contain_text("第1回.ipynb is ready: 2 cells, 1 sections")
        await expect(page.locator("[data-prepared=true]")).to_contain_text("第1回.ipynb")
        async with page.expect_download() as saving:
            await page.click("[data-action=download]")
        saved = await (await saving.value).path()
        content = json.loads(saved.read_text(encoding="utf-8"))
        assert (await saving.value).suggested_filename == "第1回.ipynb"
        assert content["metadata"]["nbpulse"]["join_code"] == stage.course.join_code
        await chooser.set_input_files(files=[{"name": "第1回.ipynb", "mimeType": "", "buffer": saved.read_bytes()}])
        await expect(page.locator("[data-told]")).to_contain_text("was prepared already")


@pytest.mark.parametrize("options", LOOKS)
async def test_before_class_looks_right_everywhere(stage: Stage, browser: Browser, options: dict[str, Any]) -> None:
    await seat_class(stage)
    async with open_as_teacher(stage, browser, "/before", **options) as page:
        await page.wait_for_selector("[data-check=stores]")
        assert await find_barriers(page) == []
        await photograph(page, "before", options)
        for path, there in (("join", ".qr"), ("handout", "[data-sheet=en] .qr")):
            await page.goto(f"{stage.url}/courses/{stage.course.id}/{path}")
            await page.wait_for_selector(there)
            assert await find_barriers(page) == []
            await photograph(page, path, options)


# --- joining ----------------------------------------------------------------------------------------------------------


async def test_the_code_on_the_wall_names_nobody_and_says_when_it_is_closed(stage: Stage, browser: Browser) -> None:
    await stage.join("鈴木 大翔")
    async with open_as_teacher(stage, browser, "/join") as page:
        await expect(page.locator("[data-join-code]")).to_have_text(stage.course.join_code)
        await expect(page.locator(".qr")).to_have_js_property("complete", True)
        assert await page.locator(".qr").evaluate("(one) => one.naturalWidth") > 0
        await expect(page.locator("main")).not_to_contain_text("鈴木")
        await stage.http.patch(f"{COURSES}/{stage.course.id}/entry", json={"is_join_closed": True}, headers=stage.staff)
        await page.reload()
        await expect(page.locator("main")).to_contain_text("Nobody new can join")
        await expect(page.locator(".qr")).to_have_count(0)


async def test_the_page_behind_the_qr_code_says_how_to_join_and_what_is_recorded(
    stage: Stage, browser: Browser
) -> None:
    async with open_page(browser, viewport={"width": 390, "height": 800}) as page:
        await page.goto(f"{stage.url}/join")
        await page.fill("[name=code]", stage.course.join_code.lower())
        await page.keyboard.press("Enter")
        await expect(page.locator("h1")).to_contain_text(stage.course.title)
        command = f"nbpulse-capture join {stage.url} {stage.course.join_code}"
        await expect(page.locator(".command").nth(1)).to_contain_text(command)
        await expect(page.locator(".prose")).to_contain_text("recorded")
        assert await find_barriers(page) == []
        await photograph(page, "join-student")
        await page.goto(f"{stage.url}/join/NOSUCH")
        await expect(page.locator(".problem")).to_contain_text("NB-1105")


async def test_on_paper_are_the_two_sheets_alone(stage: Stage, browser: Browser) -> None:
    async with open_as_teacher(stage, browser, "/handout", color_scheme="dark") as page:
        await page.wait_for_selector("[data-sheet=ja] .qr")
        await page.emulate_media(media="print")
        for shown in ("[data-sheet=ja]", "[data-sheet=en]"):
            await expect(page.locator(shown)).to_be_visible()
            await expect(page.locator(shown)).to_contain_text(f"{stage.url} {stage.course.join_code}")
        await expect(page.locator(".top, .course-nav, .no-print, h1").filter(visible=True)).to_have_count(0)
        await expect(page.locator("[data-sheet=ja]")).to_contain_text("記録される内容")
        pdf = await page.pdf(format="A4")
        assert pdf.count(b"/Type /Page\n") == 2
        await photograph(page, "handout-print")


# --- the end of a class -----------------------------------------------------------------------------------------------


async def test_the_end_of_a_class_is_taken_back_and_leads_to_its_report(stage: Stage, browser: Browser) -> None:
    await stage.join()
    async with open_as_teacher(stage, browser) as page:
        await page.click("[data-action=start-meeting]")
        await page.click("[data-action=end-meeting]")
        await expect(page.locator("[data-meeting=off]")).to_be_visible()
        await page.locator(".note button").click()
        await expect(page.locator("[data-meeting=on]")).to_be_visible()
        await page.click("[data-action=end-meeting]")
        report = page.locator("[data-action=report]")
        await expect(report).to_be_visible()
        meeting = (await stage.http.get(f"{COURSES}/{stage.course.id}/meetings", headers=stage.staff)).json()[
            "meetings"
        ]
        assert len(meeting) == 1
        href = await report.get_attribute("href")
        assert href == f"/courses/{stage.course.id}/report/{meeting[0]['id']}"
        assert await find_barriers(page) == []
        await photograph(page, "meeting-ended")
