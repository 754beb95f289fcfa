"""A student in JupyterLab: joins from the toolbar, is seen at work, raises a hand, and hears of the class."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import nbformat
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, async_playwright

from servers import CHROMIUM_FLAGS
from student_jupyter import TOKEN, install_capture, run_jupyterlab
from torture.connections import get
from torture.systems import System
from working import until

STATE, HAND = ".nbpulse-state", ".nbpulse-hand"


@asynccontextmanager
async def open_lab(tmp_path: Path, chromium_path: str) -> AsyncIterator[Page]:
    """JupyterLab in a browser, with the wheel installed by pip and a notebook open."""
    python = await asyncio.to_thread(install_capture, tmp_path)
    work = tmp_path / "授業"
    work.mkdir()
    cells = [nbformat.v4.new_markdown_cell("# 第1回", id="title"), nbformat.v4.new_code_cell("1 / 0", id="broken")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), work / "week1.ipynb")
    env = {"NBPULSE_CAPTURE_DIR": str(tmp_path / "outbox"), "NBPULSE_CAPTURE_CONFIG": str(tmp_path / "config")}
    async with run_jupyterlab(python, work, env) as http, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_FLAGS)
        page = await browser.new_page(viewport={"width": 1280, "height": 800})
        await page.goto(f"{str(http.base_url).rstrip('/')}/lab/tree/week1.ipynb?token={TOKEN}")
        await page.wait_for_selector(STATE, timeout=60_000)
        yield page
        await browser.close()


async def says(page: Page, selector: str, text: str, within_s: float = 15) -> None:
    """Waits until the item says so."""
    await page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.innerText.includes(text)",
        arg=[selector, text],
        timeout=within_s * 1000,
    )


async def join(page: Page, url: str, code: str) -> None:
    await page.click(STATE)
    await page.fill("input[name=url]", url)
    await page.fill("input[name=name]", "佐藤 花子")
    await page.fill("input[name=code]", "WRONG-CODE")
    await page.keyboard.press("Enter")
    await says(page, ".jp-Dialog .nbpulse-problem", "NB-7004")
    assert await page.input_value("input[name=name]") == "佐藤 花子", "nothing is typed twice"
    assert "NOT sent: your code" in await page.inner_text(".jp-Dialog")
    await page.fill("input[name=code]", code)
    await page.keyboard.press("Enter")
    await says(page, ".jp-Dialog", "Connected to My class as 佐藤 花子")
    await page.keyboard.press("Enter")
    await says(page, STATE, "Connected")


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


@pytest.mark.browser
@pytest.mark.timeout(300)
async def test_a_student_joins_works_and_is_heard_from_the_toolbar(
    data_dir: Path, tmp_path: Path, chromium_path: str
) -> None:
    async with (
        System(data_dir / "data", worker_count=1) as system,
        open_lab(tmp_path, chromium_path) as page,
    ):
        board = Board(system)
        await says(page, STATE, "Join class")
        assert not await page.is_visible(HAND)
        await join(page, system.url, system.facts["join_code"])

        # JupyterLab runs nothing, and does not say so, before the kernel is there.
        await page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000)
        await page.click(".jp-CodeCell .cm-content")
        await page.keyboard.type("#")
        await page.keyboard.press("Shift+Enter")
        await until(lambda: board.knows("cell_focus", ("broken", 1, "week1.ipynb", "{}")), 20)
        await until(lambda: board.fetch("cell_execution"), 20)
        (run,) = await board.fetch("cell_execution")
        assert run[:3] == ("broken", 1, "week1.ipynb")
        added = '{"change": "added"}'  # running the last cell makes another one

        async def has_added() -> bool:
            return any(one[3] == added for one in await board.fetch("cell_change"))

        await until(has_added, 20)

        await page.click(HAND)
        await page.fill("input[name=message]", "グラフが出ません")
        await page.keyboard.press("Enter")
        await says(page, HAND, "Hand is up (0 min)")
        assert await page.get_attribute(HAND, "aria-pressed") == "true"
        await until(lambda: board.has_help("グラフが出ません"), 10)

        await page.click(HAND)
        await page.click(".jp-Dialog .jp-mod-accept")
        await says(page, HAND, "Raise hand")
        await until(lambda: board.has_help(None), 10)

        found = await Axe().run(page, context=".nbpulse-item")
        worst = [one["id"] for one in found.response["violations"] if one["impact"] in ("serious", "critical")]
        assert worst == []
