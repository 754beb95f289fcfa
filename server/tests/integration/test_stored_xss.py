"""Nothing a student writes becomes markup or script on the board: not in any text, not in any of its places."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from playwright.async_api import Browser, Page, expect
from playwright.async_api import TimeoutError as PlaywrightTimeout

from browsing import find_item, list_course_pages, photograph
from payloads import PAYLOADS, PLACES, WATCH
from stage import Stage, make_run
from stores import connect
from working import until

pytestmark = pytest.mark.browser

FOREIGN = "img, iframe, script, object, embed, video, audio, link, style, math, marquee, xss, picture, base, meta"


async def test_every_payload_runs_where_it_is_trusted(browser: Browser) -> None:
    assert len(set(PAYLOADS)) == len(PAYLOADS) >= 50
    page = await browser.new_page()
    harmless: list[tuple[str, str]] = []
    for place, payload in PLACES:
        await page.goto("about:blank")
        await page.evaluate(WATCH)
        await page.set_content(f"<body>{place.replace('{}', payload)}")
        if "<a href" in place:
            await page.click("a", no_wait_after=True)
        try:
            await page.wait_for_function("() => window.attempts.length", timeout=10_000)
        except PlaywrightTimeout:
            harmless.append((place, payload))
    assert not harmless, harmless


async def write_everywhere(stage: Stage, payload: str, shared_error: str, *, raises_hand: bool) -> None:
    """A student whose every text is the payload; one error is that of others too."""
    student = await stage.join(payload, student_number=payload)
    error = {"status": "error", "error_name": payload, "error_message": payload, "traceback": payload}
    shared = error | {"error_name": shared_error, "error_message": shared_error}
    events = [make_run(0, notebook_path=payload, data=error), make_run(0, notebook_path=f"{payload}/week1.ipynb")]
    events += [make_run(4, cell_id=payload, exercise_id=payload, data=error)]
    events += [make_run(3, data=shared) for _ in range(3)]  # three times one error: stuck
    events += [make_run(3, event_type="help_request", data={"message": payload})] if raises_hand else []
    began_at = datetime.now(UTC) - timedelta(minutes=2)  # stuck is who has been so for a minute
    for number, event in enumerate(events):
        event["occurred_at"] = (began_at + timedelta(seconds=number)).isoformat()
    assert (await stage.post(student["token"], events)).status_code == 202
    message = {"id": str(uuid4()), "text": payload}
    headers = {"Authorization": f"Bearer {student['token']}"}
    answer = await stage.http.post("/api/v1/me/messages", json=message, headers=headers)
    assert answer.status_code == 201, answer.text


async def read_all(page: Page, selector: str) -> list[str]:
    texts: list[str] = await page.locator(selector).evaluate_all("(all) => all.map((one) => one.textContent)")
    return texts


async def test_nothing_a_student_writes_runs_on_the_board(stage: Stage, browser: Browser) -> None:
    for place, payload in enumerate(PAYLOADS):
        await write_everywhere(stage, payload, PAYLOADS[place // 6 * 6], raises_hand=place % 2 == 0)
    await stage.work()
    page, told = await open_watched(stage, browser)
    code = await stage.people.create_link(stage.teacher_id)
    await page.goto(f"{stage.url}/courses/{stage.course.id}#code={code}")
    await page.wait_for_selector("[data-alert]")
    await look_at_everything(page)
    assert await page.locator("body").locator(FOREIGN).count() == 0
    assert await page.evaluate("window.attempts") == []
    assert told == []


async def open_watched(stage: Stage, browser: Browser) -> tuple[Page, list[str]]:
    """A page on which everything a script of somebody else's could do is noted."""
    page = await browser.new_page(viewport={"width": 1280, "height": 800}, locale="en-US")
    await page.add_init_script(WATCH)
    told: list[str] = []
    page.on("dialog", lambda dialog: told.append(f"dialog {dialog.message}"))
    page.on("pageerror", lambda error: told.append(f"error {error}"))
    page.on("popup", lambda popup: told.append(f"popup {popup.url}"))
    page.on("request", lambda asked: told.append(asked.url) if not asked.url.startswith(stage.url) else None)
    return page, told


async def write_as_staff(stage: Stage) -> None:
    """What staff can write, and where students sit, is a payload too; of each as much as may be."""
    short = [payload for payload in PAYLOADS if len(payload) <= 40]
    async with connect(stage.database_url) as owner:
        await owner.execute("UPDATE courses SET title = $2 WHERE id = $1", stage.course.id, PAYLOADS[0])
        students = await owner.fetch(
            "SELECT user_id FROM enrolments WHERE course_id = $1 AND role = 'student'", stage.course.id
        )
        for place, row in enumerate(students):
            await owner.execute(
                "UPDATE enrolments SET seat = $3, team = $4 WHERE course_id = $1 AND user_id = $2",
                *(stage.course.id, row["user_id"], short[place % len(short)], short[-1 - place % len(short)]),
            )
    course = f"/api/v1/courses/{stage.course.id}"
    places = [{"kind": "team", "name": name, "x": 50, "y": 50} for name in short]
    for method, path, body in (
        ("PUT", "map", {"version": 0, "places": places}),
        ("POST", "messages", {"id": str(uuid4()), "to": {"all": True}, "text": PAYLOADS[1]}),
        ("POST", "messages", {"id": str(uuid4()), "to": {"all": True}, "text": {"ja": PAYLOADS[2], "en": PAYLOADS[2]}}),
        ("POST", "meetings", {"title": PAYLOADS[3]}),
    ):
        answer = await stage.http.request(method, f"{course}/{path}", headers=stage.staff, json=body)
        assert answer.status_code in (200, 201), answer.text
    shared = (await stage.snapshot())["errors"]
    assert len(shared) > 4
    for place, error in enumerate(shared):
        changes = {"title": short[place], "is_muted": place > 2}
        answer = await stage.http.patch(f"{course}/errors/{error['fp']}", headers=stage.staff, json=changes)
        assert answer.status_code == 200, answer.text
    merged = {"merged_into": shared[0]["fp"]}
    await stage.http.patch(f"{course}/errors/{shared[1]['fp']}", headers=stage.staff, json=merged)


async def is_titled(stage: Stage) -> bool:
    """Whether the live class has heard of what staff have called the errors."""
    return any(error["title"] for error in (await stage.snapshot())["errors"])


async def shows_titles(stage: Stage, page: Page) -> bool:
    titles = {error["title"] for error in (await stage.snapshot())["errors"]} - {None}
    return bool(titles) and titles <= set(await read_all(page, "[data-shared] bdi"))


async def test_nothing_anybody_writes_runs_on_any_page_of_a_course(stage: Stage, browser: Browser) -> None:
    for place, payload in enumerate(PAYLOADS):
        await write_everywhere(stage, payload, PAYLOADS[place // 6 * 6], raises_hand=place % 2 == 0)
    await stage.work()
    await write_as_staff(stage)
    page, told = await open_watched(stage, browser)
    await until(lambda: is_titled(stage))
    code = await stage.people.create_link(stage.teacher_id)
    await page.goto(f"{stage.url}/courses/{stage.course.id}#code={code}")
    await page.wait_for_selector("[data-alert]", timeout=30_000)
    await page.keyboard.press("a")
    await until(lambda: shows_titles(stage, page))  # a group that was merged into another is still going
    board = await stage.snapshot()
    await page.locator(".muted-groups summary").click()
    assert {muted["title"] for muted in board["muted"]} <= set(await read_all(page, "[data-muted-group] bdi"))
    await page.locator("[data-act=unmute-group]").first.click()  # the note says its name
    await expect(page.locator(".note")).to_be_visible()
    assert await page.evaluate("window.attempts") == []
    for name in list_course_pages():
        await page.goto(f"{stage.url}/courses/{stage.course.id}/{name}{find_item(name, board)}")
        await page.wait_for_selector("[data-page]:not([data-page=connecting]) main", timeout=30_000)
        await page.wait_for_load_state("networkidle")
        for summary in await page.locator("main summary:visible").all():
            await summary.click()
        await look_at_one_page(page, name)
        assert await page.locator("body").locator(f":is({FOREIGN}):not([src^='/api/v1/'])").count() == 0, name
        assert await page.evaluate("window.attempts") == [], name
        assert told == [], name


async def look_at_one_page(page: Page, name: str) -> None:
    """What a page shows when something is done on it; what was written is there as it was written."""
    short = {payload for payload in PAYLOADS if len(payload) <= 40}
    if name == "map":
        assert short <= set(await read_all(page, ".ground [data-spot] bdi"))
        await page.locator(".ground [data-spot]").last.click()
        assert set(await read_all(page, "[data-who] a bdi")) & set(PAYLOADS)
        await page.keyboard.press("Escape")
        await page.click("[data-action=edit-map]")
        assert short <= set(await read_all(page, "[data-unplaced=seat] bdi"))
        await page.click("[data-unplaced=seat] [data-action=place-all]")
        await page.locator("[data-list] summary").click()
        assert short <= set(await read_all(page, "[data-list] bdi"))
        await page.click("[data-action=leave-map]")
    elif name == "projector":
        await expect(page.locator("h1")).to_have_text(PAYLOADS[0])
        await expect(page.locator("[data-announcement]")).to_have_count(2, timeout=20_000)
        assert {one.strip() for one in await read_all(page, "[data-announcement] bdi")} == set(PAYLOADS[1:3])
        assert set(await read_all(page, "[data-error] code")) <= {"another error"}, "no error class of a student's"
    await photograph(page, f"stored-xss-{name}")


async def look_at_everything(page: Page) -> None:
    """Every place of the board that shows a student's text; it is there as it was written."""
    written = set(PAYLOADS)
    assert set(await read_all(page, "[data-student] .name")) == written  # numbers
    await page.locator("[data-action=names]").click()
    await expect(page.locator("[data-action=names]")).to_have_attribute("aria-pressed", "true")
    assert set(await read_all(page, "[data-student] .name")) == written
    assert set(await read_all(page, "[data-alert] q")) == set(PAYLOADS[::2])
    assert await read_all(page, "[data-alert][data-kind=stuck] code")
    await photograph(page, "board-stored-xss")
    shared = await read_all(page, "[data-shared] code")
    assert len(shared) >= 3, shared
    assert all(label.startswith(tuple(PAYLOADS[::6])) for label in shared), shared
    await page.locator("[data-act=announce]").first.click()  # the draft names the error
    await page.locator("dialog [data-act=close]").click()
    for name in await page.locator("[data-student] [role=rowheader]").all():
        await name.hover()
    for button in await page.locator("[data-mail-of]").all():
        await button.click()
        await expect(page.locator("dialog .message p").first).to_be_visible()
        assert set(await read_all(page, "dialog .message p")) <= written
        await page.locator("dialog [data-act=close]").click()
    options = page.locator("select.notebook option")
    names = "\n".join(await read_all(page, "select.notebook option"))
    assert all(payload.rpartition("/")[2] in names for payload in PAYLOADS)  # a path is shown by its last part
    for place in (1, -1):
        value = await options.nth(place).get_attribute("value")
        await page.locator("select.notebook").select_option(value)
        await page.wait_for_selector("[data-student]")
