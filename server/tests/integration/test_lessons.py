"""Where the class is being taught: said by staff, of the notebook's cells, for this class meeting; on every board."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from playwright.async_api import Browser, expect

from boards import read
from browsing import open_as_teacher
from stage import Stage, make_run
from stores import connect

WAIT_MS = 20_000


@pytest.fixture
async def board(stage: Stage) -> dict[str, Any]:
    """A class of one student who has run three cells."""
    student = await stage.join()
    await stage.post(student["token"], [make_run(cell) for cell in range(3)])
    await stage.work()
    return await stage.snapshot()


async def mark(stage: Stage, board: dict[str, Any], cell: str | None, **options: Any) -> httpx2.Response:
    url = f"/api/v1/courses/{stage.course.id}/notebooks/{board['notebook']['id']}/position"
    return await stage.http.put(url, json={"cell": cell}, **{"headers": stage.staff} | options)


async def test_every_board_is_told_where_the_class_is_and_the_same_again_changes_nothing(
    stage: Stage, board: dict[str, Any]
) -> None:
    assert board["lesson"] == []
    async with stage.watch(board) as socket:
        first = (await mark(stage, board, "cell-1")).json()["lesson"]
        assert [cell for _, cell in first] == ["cell-1"]
        frame = await read(socket)
        while "lesson" not in frame:
            frame = await read(socket)
        assert frame["lesson"] == first
        assert (await mark(stage, board, "cell-1")).json()["lesson"] == first
        await mark(stage, board, None)
        assert [cell for _, cell in (await mark(stage, board, "cell-2")).json()["lesson"]] == ["cell-1", None, "cell-2"]


async def test_a_cell_or_a_notebook_that_is_not_there_is_refused_and_students_may_not_say(
    stage: Stage, board: dict[str, Any]
) -> None:
    assert (await mark(stage, board, "cell-9")).json()["code"] == "NB-1360"
    assert (await mark(stage, board, "")).json()["code"] == "NB-1007"
    assert (await mark(stage, {"notebook": {"id": uuid4()}}, "cell-1")).json()["code"] == "NB-1201"
    student = await stage.join("other")
    refused = await mark(stage, board, "cell-1", headers={"Authorization": f"Bearer {student['token']}"})
    assert refused.status_code in (403, 404)
    assert (await mark(stage, board, None)).json()["lesson"] == []


async def test_what_was_said_in_an_earlier_meeting_is_over_and_what_was_said_before_this_one_began_holds(
    stage: Stage, board: dict[str, Any]
) -> None:
    meetings = f"/api/v1/courses/{stage.course.id}/meetings"
    await stage.http.post(meetings, json={}, headers=stage.staff)
    await mark(stage, board, "cell-2")
    await stage.http.post(f"{meetings}/end", json={}, headers=stage.staff)
    assert [cell for _, cell in (await mark(stage, board, "cell-0")).json()["lesson"]] == ["cell-2", "cell-0"]
    await stage.http.post(meetings, json={}, headers=stage.staff)
    again = (await mark(stage, board, "cell-0")).json()["lesson"]
    assert [cell for _, cell in again] == ["cell-0"]
    async with connect(stage.database_url) as owner:
        await owner.execute("UPDATE lesson_positions SET marked_at = marked_at - interval '13 hours'")
    assert [cell for _, cell in (await mark(stage, board, "cell-0")).json()["lesson"]] == ["cell-0"]
    assert again != (await mark(stage, board, "cell-0")).json()["lesson"]


@pytest.mark.browser
async def test_one_board_says_it_by_key_and_the_other_shows_it_in_grid_and_curve(
    stage: Stage, browser: Browser, board: dict[str, Any]
) -> None:
    async with open_as_teacher(stage, browser) as mine, open_as_teacher(stage, browser) as other:
        for page in (mine, other):
            await page.wait_for_selector("[data-lesson=cell]")
        await expect(mine.locator("[data-lesson=back]")).to_be_disabled()
        await mine.keyboard.press("]")
        await mine.keyboard.press("]")
        head = other.locator("[data-head=cell-1]")
        await expect(head).to_have_attribute("data-lesson", "true", timeout=WAIT_MS)
        await expect(other.locator("[data-lesson-reached]")).to_have_attribute("data-lesson-reached", "1")
        await expect(head).to_have_accessible_name("Cell 2: the class is here")
        await expect(other.locator("[data-chart=curve]")).to_contain_text("class is at cell 2")
        await expect(other.locator("[data-chart=curve] path[data-lesson]")).to_have_attribute(
            "d", re.compile(r"^M[\d.,]+H.*H100$")
        )
        await other.locator("[data-student] [data-cell=cell-2]").hover()
        await other.keyboard.press("t")
        await expect(mine.locator("[data-lesson=cell]")).to_have_value("cell-2", timeout=WAIT_MS)
        await expect(mine.locator("[data-lesson=next]")).to_be_disabled()
        await mine.locator("[data-lesson=cell]").select_option("")
        await expect(other.locator("[data-head][data-lesson=true]")).to_have_count(0, timeout=WAIT_MS)
