"""The pages of one student, one cell and one error in a browser: what they show, the ways to them, their looks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
from playwright.async_api import Browser, Page, expect

from browsing import LOOKS, find_barriers, open_as_teacher, photograph
from payloads import PAYLOADS, WATCH
from stage import Stage, make_run
from stores import connect

pytestmark = pytest.mark.browser
BEGAN = datetime.now(UTC) - timedelta(minutes=20)


@pytest.fixture(autouse=True)
def _begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anew for each test: half an hour after the file was read its events would come too late to be live."""
    monkeypatch.setitem(globals(), "BEGAN", datetime.now(UTC) - timedelta(minutes=20))


TRACEBACK = "Traceback (most recent call last)\n  Cell In[3], line 1\nNameError: name 'df' is not defined"
FOREIGN = "img, iframe, script, object, embed, video, audio, link, style, math, marquee, xss, picture, base, meta"


def make_told(cell: int, minute: float, source: str, status: str = "ok", **data: Any) -> dict[str, Any]:
    run = make_run(cell, status, occurred_at=(BEGAN + timedelta(minutes=minute)).isoformat())
    run["data"] |= {"source": source, "output": f"{source!r}\n", **data}
    return run


async def teach(stage: Stage, *, collects: bool = True) -> list[dict[str, Any]]:
    """A class of three: the first is stuck on cell 3, the second past it, the third has not come so far."""
    course = f"/api/v1/courses/{stage.course.id}"
    version = 1
    if collects:
        answer = await stage.http.put(f"{course}/collection", json={"level": "output"}, headers=stage.staff)
        version = answer.json()["version"]
    assert (await stage.http.post(f"{course}/meetings", json={}, headers=stage.staff)).status_code == 201
    async with connect(stage.database_url) as owner:
        await owner.execute("UPDATE class_meetings SET started_at = $2 WHERE course_id = $1", stage.course.id, BEGAN)
    names = ("鈴木 大翔", "高橋 葵", "Ana Khan")
    students = [await stage.join(name, student_number=f"10{n}", notice_version=version) for n, name in enumerate(names)]
    failed = [make_told(2, 9 + n, "df.head()", "error", traceback=TRACEBACK) for n in range(3)]
    for student, runs in zip(
        students,
        (
            [make_told(0, 1, "import pandas as pd"), make_told(1, 4, "x = [1, 2]"), *failed],
            [
                make_told(0, 2, "import pandas as pd"),
                failed[0] | {"event_id": str(uuid4())},
                make_told(2, 12, "df = 1"),
            ],
            [make_told(0, 3, "import pandas")],
        ),
        strict=True,
    ):
        assert (await stage.post(student["token"], runs)).status_code == 202
    hand = make_run(2, event_type="help_request", data={"message": "グラフが出ない"})
    assert (await stage.post(students[0]["token"], [hand])).status_code == 202
    await stage.work()
    return students


@asynccontextmanager
async def open_student(stage: Stage, browser: Browser, student: dict[str, Any], **options: Any) -> AsyncIterator[Page]:
    async with open_as_teacher(stage, browser, f"/students/{student['user_id']}", **options) as page:
        await page.wait_for_selector("[data-part=standing] .pill")
        yield page


async def test_a_student_is_opened_from_the_board_and_one_goes_back_by_a_key(stage: Stage, browser: Browser) -> None:
    students = await teach(stage)
    async with open_as_teacher(stage, browser) as page:
        row = page.locator(f"[data-student='{students[0]['user_id']}']")
        await row.locator(".who").focus()
        await page.keyboard.press("Enter")
        await page.wait_for_selector("[data-page=student] [data-part=standing] .pill")
        await expect(page.locator("h1")).to_have_text("100")
        await page.keyboard.press("a")
        await expect(page.locator("h1")).to_have_text("鈴木 大翔")
        await expect(page.locator("[data-part=standing]")).to_contain_text("グラフが出ない")
        await page.keyboard.press("Escape")
        await page.wait_for_selector(".board")
        await row.locator(".name").click()
        await page.wait_for_selector("[data-page=student]")
        await page.click("[data-action=back]")
        await page.wait_for_selector(".board")
        await page.hover("[data-alert]")
        await page.locator("[data-alert] [data-act=open]").first.click()
        await page.wait_for_selector("[data-page=student]")


async def test_a_students_page_tells_what_they_did_and_follows_them(stage: Stage, browser: Browser) -> None:
    students = await teach(stage)
    async with open_student(stage, browser, students[0]) as page:
        await expect(page.locator("[data-timeline-summary]")).to_have_text("Runs: 5, failed: 3, raised hands: 1")
        runs = page.locator("[data-part=runs] [data-run]")
        await expect(runs).to_have_count(5)
        await expect(page.locator("[data-missing]")).to_have_count(0)
        await runs.first.locator("summary").click()
        await expect(runs.first).to_contain_text("df.head()")
        await expect(runs.first).to_contain_text("Cell In[3], line 1")
        await expect(page.locator("[data-part=sessions] tbody tr")).to_have_count(1)
        claim = page.locator("[data-part=standing] [data-act=claim]").first
        await claim.click()
        await expect(claim).to_have_attribute("aria-pressed", "true")
        assert (await stage.post(students[0]["token"], [make_run(2)])).status_code == 202
        await stage.work()
        await expect(runs).to_have_count(6, timeout=30_000)
        await expect(page.locator("[data-part=care]")).to_contain_text("went to help", timeout=40_000)
        await page.click("main [data-act=message]")
        await page.fill("dialog textarea", "Look at cell 1 again.")
        await page.click("dialog [data-act=send]")
        await expect(page.locator("dialog .message")).to_contain_text("Look at cell 1 again.")


async def test_a_page_says_what_is_not_collected_and_who_is_nobody_here(stage: Stage, browser: Browser) -> None:
    students = await teach(stage, collects=False)
    async with open_student(stage, browser, students[0]) as page:
        await expect(page.locator("[data-missing='source output']")).to_contain_text("Not collected")
        await page.goto(f"{stage.url}/courses/{stage.course.id}/students/{uuid4()}")
        await expect(page.locator("[data-code=NB-1270]")).to_be_visible()


@pytest.mark.parametrize("look", LOOKS)
async def test_a_students_page_looks_right_everywhere(stage: Stage, browser: Browser, look: dict[str, Any]) -> None:
    students = await teach(stage)
    async with open_student(stage, browser, students[0], **look) as page:
        await page.locator("[data-part=runs] summary").first.click()
        await page.click("[data-action=names]")
        assert await find_barriers(page) == []
        await photograph(page, "student", look)


@asynccontextmanager
async def watching(page: Page, stage: Stage) -> AsyncIterator[None]:
    """Fails where something of a student's ran, or was taken for markup."""
    told: list[str] = []
    page.on("dialog", lambda dialog: told.append(f"dialog {dialog.message}"))
    page.on("popup", lambda popup: told.append(f"popup {popup.url}"))
    page.on("request", lambda asked: told.append(asked.url) if not asked.url.startswith(stage.url) else None)
    await page.add_init_script(WATCH)
    yield
    assert await page.locator("body").locator(FOREIGN).count() == 0
    assert await page.evaluate("window.attempts") == []
    assert told == []


async def write_everywhere(stage: Stage) -> dict[str, Any]:
    """A student whose name and every text, of one run each, are payloads."""
    answer = await stage.http.put(
        f"/api/v1/courses/{stage.course.id}/collection", json={"level": "output"}, headers=stage.staff
    )
    student = await stage.join(PAYLOADS[0], student_number=PAYLOADS[1], notice_version=answer.json()["version"])
    events = []
    for place, payload in enumerate(PAYLOADS):
        texts = {"output": payload, "error_name": payload, "error_message": payload}
        changes = {"cell_id": payload} if place % 2 else {}
        events.append(make_told(4, place / 10, payload, "error", traceback=payload, **texts) | changes)
    hand = make_run(4, event_type="help_request", data={"message": PAYLOADS[2]})
    assert (await stage.post(student["token"], [*events, hand])).status_code == 202
    await stage.work()
    return student


async def test_nothing_a_student_writes_runs_on_their_page(stage: Stage, browser: Browser) -> None:
    student = await write_everywhere(stage)
    async with open_student(stage, browser, student) as page, watching(page, stage):
        await page.reload()
        await page.wait_for_selector("[data-part=standing] .pill")
        await page.click("[data-action=names]")
        await expect(page.locator("h1")).to_have_text(PAYLOADS[0])
        await page.click("[data-action=more]")
        runs = page.locator("[data-run]")
        await expect(runs).to_have_count(len(PAYLOADS))
        await page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        texts = await page.locator("[data-run] pre code").all_text_contents()
        assert set(PAYLOADS) <= set(texts)


async def find_place(stage: Stage, cell: int) -> str:
    """A cell's page, after the course's address."""
    return f"/cells/{(await stage.snapshot())['notebook']['id']}/cell-{cell}"


async def test_a_cells_page_groups_equal_code_and_finds_answers(stage: Stage, browser: Browser) -> None:
    students = await teach(stage)
    async with open_as_teacher(stage, browser) as page:
        await page.locator("[data-student] i[data-cell='cell-0']").first.focus()
        await page.keyboard.press("Shift+Enter")
        await page.wait_for_selector("[data-page=cell] [data-answer]")
        await expect(page.locator("h1")).to_have_text("Cell 1")
        await expect(page.locator("[data-count=ok] b")).to_have_text("3")
        groups = page.locator("[data-group]")
        await expect(groups).to_have_count(2)
        await expect(groups.first).to_contain_text("2 students")
        await expect(page.locator("[data-answer]")).to_have_count(3)
        await page.get_by_label("Search code, output, names").fill("as pd")
        await expect(page.locator("[data-count-answers='2']")).to_be_visible()
        await page.get_by_label("Last run").select_option("error")
        await expect(page.locator("[data-count-answers='0']")).to_be_visible()
        await page.get_by_label("Search code, output, names").fill("")
        await page.get_by_label("Last run").select_option("ok")
        await expect(page.locator("[data-count-answers='3']")).to_be_visible()
        await page.locator(f"[data-answer='{students[1]['user_id']}'] [data-student-link]").click()
        await page.wait_for_selector("[data-page=student]")


async def test_a_cell_of_which_no_code_is_collected_shows_figures_and_says_so(stage: Stage, browser: Browser) -> None:
    await teach(stage, collects=False)
    async with open_as_teacher(stage, browser, await find_place(stage, 2)) as page:
        await expect(page.locator("[data-missing='source output']")).to_be_visible()
        await expect(page.locator("[data-figure=tries]")).to_contain_text("median 2")
        await expect(page.locator("[data-group]")).to_have_count(0)
        await expect(page.locator("[data-count=none] b")).to_have_text("1")
        await page.goto(f"{stage.url}/courses/{stage.course.id}/cells/{uuid4()}/cell-1")
        await expect(page.locator("[data-code=NB-1271]")).to_be_visible()


async def test_an_errors_page_says_who_has_it_and_a_word_goes_to_them(stage: Stage, browser: Browser) -> None:
    students = await teach(stage)
    failed = make_told(2, 9, "df.tail()", "error", traceback=TRACEBACK)
    assert (await stage.post(students[2]["token"], [failed])).status_code == 202
    await stage.work()
    async with open_as_teacher(stage, browser) as page:
        await page.click("[data-shared] [data-error-link]")
        await page.wait_for_selector("[data-page=error] [data-part=now]")
        await expect(page.locator("h1")).to_have_text("NameError df")
        await expect(page.locator("[data-part=now] [data-student-link]")).to_have_count(2)
        await expect(page.locator("[data-example]").first).to_contain_text("name 'df' is not defined")
        await page.click("[data-act=announce]")
        await page.click("dialog [data-act=send]")
        await expect(page.locator("[data-batch]")).to_contain_text("0 of 2", timeout=20_000)
        await page.click("[data-cell-link]")
        await page.wait_for_selector("[data-page=cell]")


@pytest.mark.parametrize("look", LOOKS)
async def test_the_pages_of_a_cell_and_of_an_error_look_right_everywhere(
    stage: Stage, browser: Browser, look: dict[str, Any]
) -> None:
    students = await teach(stage)
    cell = await find_place(stage, 2)
    async with open_as_teacher(stage, browser, cell, **look) as page:
        await page.wait_for_selector("[data-answer]")
        await page.click("[data-action=names]")
        assert await find_barriers(page) == []
        await photograph(page, "cell", look)
        runs = f"/api/v1/courses/{stage.course.id}/students/{students[0]['user_id']}/runs?limit=1"
        fingerprint = (await stage.http.get(runs, headers=stage.staff)).json()["runs"][0]["error_fingerprint"]
        await page.goto(f"{stage.url}/courses/{stage.course.id}/errors/{fingerprint}")
        await page.wait_for_selector("[data-example]")
        assert await find_barriers(page) == []
        await photograph(page, "error", look)


async def test_nothing_a_student_writes_runs_on_the_pages_of_cells_and_errors(stage: Stage, browser: Browser) -> None:
    student = await write_everywhere(stage)
    runs = f"/api/v1/courses/{stage.course.id}/students/{student['user_id']}/runs?limit=100"
    told = (await stage.http.get(runs, headers=stage.staff)).json()["runs"]
    async with open_as_teacher(stage, browser) as page, watching(page, stage):
        await page.wait_for_selector(".board")
        place = f"{stage.url}/courses/{stage.course.id}"
        for notebook_id, cell_id in dict.fromkeys((run["notebook_id"], run["cell_id"]) for run in told):
            await page.goto(f"{place}/cells/{notebook_id}/{quote(cell_id, safe='')}")
            await expect(page.locator("[data-answer] pre code").first).to_be_visible()
            assert await page.evaluate("window.attempts") == []
        for run in told[::6]:
            await page.goto(f"{place}/errors/{run['error_fingerprint']}")
            await expect(page.locator("[data-example]").first).to_be_visible()
            assert await page.evaluate("window.attempts") == []
