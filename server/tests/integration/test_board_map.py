"""The map of the room in a browser: seats by name, places by pointer, keyboard and numbers, a picture; as it looks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from playwright.async_api import Browser, Page, expect

from browsing import LOOKS, find_barriers, open_as_teacher, photograph
from rooms import make_png
from stage import Stage, make_run
from stores import connect

pytestmark = pytest.mark.browser

TEAMS = ("red", "blue", "green")


async def fill_room(stage: Stage, *, seats: bool = True, teams: bool = True) -> None:
    """Nine students: one hand up in the first seat, one stuck in the second, the rest at it; the last sits nowhere."""
    async with connect(stage.database_url) as owner:
        for i in range(9):
            student = await stage.join(f"学生 {i + 1}", student_number=f"S-{uuid4().hex[:6]}")
            await owner.execute(
                "UPDATE enrolments SET seat = $3, team = $4 WHERE user_id = $1 AND course_id = $2",
                *(student["user_id"], stage.course.id),
                f"{'AB'[i // 4]}-{1 + i % 4}" if seats and i < 8 else None,
                TEAMS[i % 3] if teams and i < 8 else None,
            )
            events = [make_run(cell) for cell in range(3)]
            if i == 0:
                events.append(make_run(3, event_type="help_request", data={"message": "教えて"}))
            if i == 1:
                events += [make_run(3, "error") for _ in range(3)]
            began_at = datetime.now(UTC) - timedelta(minutes=2)
            for number, event in enumerate(events):
                event["occurred_at"] = (began_at + timedelta(seconds=number)).isoformat()
            assert (await stage.post(student["token"], events)).status_code == 202
    await stage.work()


@asynccontextmanager
async def look(stage: Stage, browser: Browser, **options: Any) -> AsyncIterator[Page]:
    async with open_as_teacher(stage, browser, "/map", **options) as page:
        await page.wait_for_selector("[data-action=names]", timeout=30_000)
        yield page


async def place(stage: Stage, version: int, *places: dict[str, Any]) -> None:
    url = f"/api/v1/courses/{stage.course.id}/map"
    answer = await stage.http.put(url, headers=stage.staff, json={"version": version, "places": places})
    assert answer.status_code == 200, answer.text


async def test_without_a_map_seats_stand_in_their_rows_and_a_click_says_who(stage: Stage, browser: Browser) -> None:
    await fill_room(stage)
    async with look(stage, browser) as page:
        first, second = page.locator("[data-spot='seat A-1']"), page.locator("[data-spot='seat A-2']")
        await expect(first).to_have_attribute("data-status", "help")
        await expect(second).to_have_attribute("data-status", "stuck")
        await expect(page.locator("[data-elsewhere] [data-spot]")).to_have_count(1)
        boxes = [await page.locator(f"[data-spot='seat {seat}']").bounding_box() for seat in ("A-1", "A-4", "B-1")]
        one, last, below = (box or {} for box in boxes)
        assert one["y"] == last["y"] < below["y"]
        assert one["x"] == below["x"] < last["x"]
        await first.focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("[data-who]")).to_be_visible()  # what it says is there before it opens
        await expect(page.locator("[data-who]")).not_to_contain_text("学生 1")
        await expect(page.locator("[data-who] li")).to_contain_text("help")
        await page.keyboard.press("Escape")
        await expect(page.locator("[data-who]")).to_be_hidden()
        await page.keyboard.press("a")
        await first.click()
        await expect(page.locator("[data-who] li a")).to_have_text("学生 1")


async def test_teams_are_put_on_a_picture_by_pointer_keyboard_and_numbers(stage: Stage, browser: Browser) -> None:
    await fill_room(stage)
    async with look(stage, browser) as page:
        await page.click("[data-action=edit-map]")
        file = {"name": "room.png", "mimeType": "image/png", "buffer": make_png(800, 450)}
        await page.set_input_files("input[type=file]", file)  # type: ignore[arg-type]
        await expect(page.locator(".ground img")).to_be_visible()
        await page.click("[data-unplaced=team] [data-place='team red']")
        red = page.locator(".ground [data-spot='team red']")
        await expect(red).to_have_attribute("data-x", "50")
        await red.focus()
        await page.keyboard.press("ArrowRight")
        await page.keyboard.press("Shift+ArrowUp")
        await expect(red).to_have_attribute("data-x", "52.5")
        await expect(red).to_have_attribute("data-y", "40")
        await expect(red).to_be_focused()
        box = await page.locator(".ground").bounding_box()
        assert box
        await red.hover()
        await page.mouse.down()
        await page.mouse.move(box["x"] + box["width"] * 0.203, box["y"] + box["height"] * 0.701, steps=4)
        await page.mouse.up()
        await expect(red).to_have_attribute("data-x", "20")
        await expect(red).to_have_attribute("data-y", "70")
        await page.keyboard.press("Control+z")
        await expect(red).to_have_attribute("data-x", "52.5")
        await page.keyboard.press("Control+Shift+z")
        await expect(red).to_have_attribute("data-x", "20")
        await page.click("[data-unplaced=team] [data-action=place-all]")
        await expect(page.locator(".ground [data-spot]")).to_have_count(3)
        await page.locator("[data-list] summary").click()
        await page.get_by_label("blue: % from the left").fill("91")
        await page.get_by_label("blue: % from the left").press("Enter")
        await expect(page.locator(".ground [data-spot='team blue']")).to_have_attribute("data-x", "90")
        await page.locator(".ground [data-spot='team green']").focus()
        await page.keyboard.press("Delete")
        await expect(page.locator(".ground [data-spot]")).to_have_count(2)
        await page.click("[data-action=save-map]")
        await expect(page.locator("[data-action=edit-map]")).to_be_visible()
        await expect(page.locator(".ground [data-spot='team red']")).to_have_attribute("data-status", "help")
        await expect(page.locator("[data-elsewhere] [data-spot='team green']")).to_be_visible()
        await page.reload()
        await expect(page.locator(".ground [data-spot='team blue']")).to_be_visible()
        natural = await page.locator(".ground img").evaluate(
            "async (one) => { await one.decode(); return one.naturalWidth; }"
        )
        assert natural == 800


async def test_who_saves_second_is_told_and_loses_nothing(stage: Stage, browser: Browser) -> None:
    await fill_room(stage)
    async with look(stage, browser) as page:
        await page.click("[data-action=edit-map]")
        await page.click("[data-unplaced=team] [data-place='team red']")
        await place(stage, 0, {"kind": "team", "name": "blue", "x": 10, "y": 10})
        await page.click("[data-action=save-map]")
        await expect(page.locator(".problem")).to_contain_text("NB-1300")
        await page.click("[data-action=take-theirs]")
        await expect(page.locator(".ground [data-spot]")).to_have_text(["blue"])
        await page.click("[data-action=undo]")
        await expect(page.locator(".ground [data-spot]")).to_have_text(["red"])
        await page.click("[data-action=save-map]")
        await expect(page.locator("[data-action=edit-map]")).to_be_visible()
        await expect(page.locator(".ground [data-spot]")).to_have_count(1)


async def test_what_is_no_picture_is_said_in_words(stage: Stage, browser: Browser) -> None:
    async with look(stage, browser) as page:
        await expect(page.locator("[data-empty]")).to_have_text("No students yet.")
        await page.click("[data-action=edit-map]")
        for name, kind, body in (
            ("x.svg", "image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
            ("x.png", "image/png", b"x"),
        ):
            await page.set_input_files("input[type=file]", {"name": name, "mimeType": kind, "buffer": body})  # type: ignore[arg-type]
            await expect(page.locator(".problem")).to_contain_text("PNG or JPEG")


async def test_without_seats_and_teams_the_page_says_where_they_come_from(stage: Stage, browser: Browser) -> None:
    await fill_room(stage, seats=False, teams=False)
    async with look(stage, browser, locale="ja-JP") as page:
        await expect(page.locator("[data-empty]")).to_contain_text("メンバー")


@pytest.mark.parametrize("options", LOOKS)
async def test_the_page_looks_right_everywhere(stage: Stage, browser: Browser, options: dict[str, Any]) -> None:
    await fill_room(stage)
    async with look(stage, browser, **options) as page:
        await expect(page.locator("[data-spot='seat A-1'][data-status=help]")).to_be_visible()
        assert await find_barriers(page) == []
        await photograph(page, "map-seats", options)
        url = f"/api/v1/courses/{stage.course.id}/map"
        headers = stage.staff | {"Content-Type": "image/png"}
        answer = await stage.http.put(f"{url}/picture?version=0", headers=headers, content=make_png(960, 540))
        assert answer.status_code == 200
        spots = [{"kind": "team", "name": name, "x": 20 + 25 * i, "y": 25 + 20 * i} for i, name in enumerate(TEAMS)]
        await place(stage, 1, *spots)
        await page.reload()
        await expect(page.locator(".ground [data-spot='team red'][data-status=help]")).to_be_visible(timeout=20_000)
        assert await find_barriers(page) == []
        await photograph(page, "map", options)
        await page.locator(".ground [data-spot='team red']").click()
        assert await find_barriers(page) == []
        await page.keyboard.press("Escape")
        await page.click("[data-action=edit-map]")
        await expect(page.locator("[data-unplaced=seat]")).to_be_visible()
        await page.locator("[data-list] summary").click()
        assert await find_barriers(page) == []
        await photograph(page, "map-edit", options)
