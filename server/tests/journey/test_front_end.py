"""A student in JupyterLab and in Notebook 7: joins without a terminal, is seen at work, raises a hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg
import pytest
from playwright.async_api import Page, expect

from student_browser import HAND, STATE, TALK, Desk, both_front_ends, open_desk, write_notebook
from torture.connections import get
from torture.systems import System
from working import until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

# What a hand does: pointers pressed, Enter pressed, and the fields that were typed into.
COUNT = """
window.clicks = 0;
window.typed = new Set();
addEventListener("pointerdown", () => { window.clicks += 1; }, true);
addEventListener("keydown", (event) => {
  if (event.key === "Enter") window.clicks += 1;
  else window.typed.add(event.target.name);
}, true);
"""


async def count(page: Page) -> None:
    await page.add_init_script(COUNT)


class Board:
    """What the teacher sees, and what the ledger holds."""

    def __init__(self, system: System) -> None:
        self._system = system

    async def read(self) -> dict[str, Any]:
        facts = self._system.facts
        answer = await get(
            f"{self._system.url}/api/v1/courses/{facts['course_id']}/live", token=str(facts["teacher_token"])
        )
        found: dict[str, Any] = answer.read()
        return found

    async def has_help(self, text: str | None) -> bool:
        alerts = [one for one in (await self.read())["alerts"] if one["kind"] == "help"]
        return (alerts == []) if text is None else any(text in str(one) for one in alerts)

    async def fetch(self, event_type: str) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(self._system.facts["database_url"])
        try:
            rows = await connection.fetch(
                "SELECT e.cell_id, e.cell_index, n.path, e.data::text FROM events e"
                " LEFT JOIN notebooks n ON n.id = e.notebook_id WHERE event_type = $1 ORDER BY occurred_at",
                event_type,
            )
        finally:
            await connection.close()
        return [tuple(row) for row in rows]

    async def knows(self, event_type: str, *wanted: tuple[Any, ...]) -> bool:
        found = await self.fetch(event_type)
        return all(one in found for one in wanted)


async def join_by_hand(desk: Desk, system: System) -> None:
    """Without a prepared notebook: the line from the teacher and the name; a wrong code first."""
    page, address = desk.page, system.url.removeprefix("http://")
    await page.click(STATE)
    await page.fill("input[name=invitation]", f"WRONG-CODE@{address}")
    await page.fill("input[name=name]", "佐藤 花子")
    await page.keyboard.press("Enter")
    await desk.says(".jp-Dialog .nbpulse-problem", "NB-7004")
    assert await page.input_value("input[name=name]") == "佐藤 花子", "nothing is typed twice"
    assert "NOT sent: your code" in await page.inner_text(".jp-Dialog")
    assert await desk.examine(".jp-Dialog") == []
    await page.fill("input[name=invitation]", f"{system.facts['join_code']}@{address}")
    await page.keyboard.press("Enter")
    await desk.says(".Toastify", "Connected to My class as 佐藤 花子")
    await desk.says(STATE, "Connected")


@both_front_ends
async def test_a_student_joins_works_and_is_heard_from_the_toolbar(
    data_dir: Path, tmp_path: Path, python: Path, chromium_path: str, program: str
) -> None:
    write_notebook(tmp_path / "授業")
    async with (
        System(data_dir / "data", worker_count=1) as system,
        open_desk(python, tmp_path, chromium_path, program) as desk,
    ):
        board, page = Board(system), desk.page
        await desk.says(STATE, "Join class")
        assert not await page.is_visible(HAND)
        await join_by_hand(desk, system)

        await desk.wait_for_kernel()
        await page.click(".jp-CodeCell .cm-content")
        await page.keyboard.type("#")
        await page.keyboard.press("Shift+Enter")
        await until(lambda: board.knows("cell_focus", ("broken", 1, "week1.ipynb", "{}")), 20)
        await until(lambda: board.fetch("cell_execution"), 20)
        (run,) = await board.fetch("cell_execution")
        assert run[:3] == ("broken", 1, "week1.ipynb")

        await page.click(HAND)
        await page.fill("input[name=message]", "グラフが出ません")
        await page.keyboard.press("Enter")
        await desk.says(HAND, "Hand is up")
        assert await page.get_attribute(HAND, "aria-pressed") == "true"
        await until(lambda: board.has_help("グラフが出ません"), 10)

        await page.click(STATE)
        await desk.says(TALK, "My class, as 佐藤 花子")
        assert await desk.examine(TALK) == []
        async with page.context.expect_page() as opened:
            await page.click(f"{TALK} .nbpulse-own-page")
        own = await opened.value
        await expect(own.locator("[data-page=me] main")).to_contain_text("week1", timeout=30_000)
        assert own.url == f"{system.url}/me"
        await own.close()

        await page.click(HAND)
        await page.click(".jp-Dialog .jp-mod-accept")
        await desk.says(HAND, "Raise hand")
        await until(lambda: board.has_help(None), 10)
        assert await desk.examine(".nbpulse-item") == []


@both_front_ends
async def test_a_prepared_notebook_is_joined_with_three_clicks_and_one_line(
    data_dir: Path, tmp_path: Path, python: Path, chromium_path: str, program: str
) -> None:
    async with System(data_dir / "data", worker_count=1) as system:
        facts = system.facts
        write_notebook(tmp_path / "授業", url=system.url, join_code=facts["join_code"], course="My class")
        async with open_desk(python, tmp_path, chromium_path, program, language="ja", prepare=count) as desk:
            page = desk.page
            await desk.says(STATE, "授業に参加")
            await page.click(STATE)
            await page.wait_for_selector(".jp-Dialog input[name=name]:focus")
            assert "授業に参加: My class" in await page.inner_text(".jp-Dialog")
            await page.keyboard.type("Sato Hanako")
            await page.keyboard.press("Enter")
            await desk.says(".Toastify", "Sato Hanako として参加しました")
            await desk.says(STATE, "接続中")
            assert await page.evaluate("window.clicks") <= 3
            assert await page.evaluate("[...window.typed]") == ["name"]
            roster = (await Board(system).read())["students"]
            assert [one["name"] for one in roster] == ["Sato Hanako"]
