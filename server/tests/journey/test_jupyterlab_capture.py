"""JupyterLab in a real browser with the capture wheel installed by pip: what is clicked is told, nothing disturbed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from playwright.async_api import ConsoleMessage, Page, async_playwright

from nbpulse_capture.outbox import Outbox
from servers import CHROMIUM_FLAGS
from student_jupyter import TOKEN, Jupyter, open_jupyter

CELLS = (("good", "40 + 2"), ("bad", "1 / 0"), ("never", "'not reached'"))


def read_events(file: Path, event_type: str) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    outbox = Outbox(file)
    try:
        return [event for _, event, _ in outbox.read_last_events(1000) if event["event_type"] == event_type]
    finally:
        outbox.close()


async def await_events(file: Path, event_type: str, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(40):
        while len(found := read_events(file, event_type)) < count:  # noqa: ASYNC110 - another process's file
            await asyncio.sleep(0.2)
    return found


async def await_kernel(jupyter: Jupyter) -> None:
    """JupyterLab runs nothing, and says it has, while its kernel is not there."""
    async with asyncio.timeout(60):
        while True:
            kernels = (await jupyter.http.get("/api/kernels")).json()
            if kernels and kernels[0]["execution_state"] == "idle" and kernels[0]["connections"]:
                break
            await asyncio.sleep(0.2)
    await asyncio.sleep(1)


async def run_all_cells(page: Page) -> None:
    """The menu's Run > Run All Cells."""
    await page.locator(".lm-MenuBar-item", has_text="Run").click()
    await page.locator("li[data-command='runmenu:run-all']").click()


@pytest.mark.browser
@pytest.mark.timeout(300)
async def test_a_student_in_jupyterlab_runs_all_renames_and_saves_and_sees_nothing_of_us(
    tmp_path: Path, python: Path, chromium_path: str
) -> None:
    work = tmp_path / "授業"
    work.mkdir()
    cells = [nbformat.v4.new_code_cell(code, id=cell_id) for cell_id, code in CELLS]
    cells[0]["metadata"]["nbpulse"] = {"exercise_id": "ex-1"}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), work / "week1.ipynb")
    file = tmp_path / "outbox" / "outbox.sqlite3"
    env = {"NBPULSE_CAPTURE_DIR": str(tmp_path / "outbox"), "NBPULSE_CAPTURE_CONFIG": str(tmp_path / "config")}
    env |= {"NBPULSE_CAPTURE_URL": "http://127.0.0.1:9", "NBPULSE_CAPTURE_TOKEN": "t"}
    said: list[str] = []

    def note(message: ConsoleMessage) -> None:
        said.append(f"{message.type}: {message.text}")

    async with open_jupyter(python, work, env, program="jupyterlab") as jupyter, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_FLAGS)
        page = await browser.new_page(viewport={"width": 1400, "height": 900})
        page.on("console", note)
        await page.goto(f"{str(jupyter.http.base_url).rstrip('/')}/lab/tree/week1.ipynb?token={TOKEN}")
        await page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        await await_kernel(jupyter)
        await run_all_cells(page)
        ends = await await_events(file, "cell_execution", 3)
        await page.keyboard.press("Escape")
        await page.keyboard.press("Control+s")
        saves = await await_events(file, "notebook_save", 1)
        shown = await page.locator(".jp-Notebook").inner_text()
        await browser.close()
    told = {e["cell_id"]: (e["data"]["status"], e["notebook_path"], e["exercise_id"]) for e in ends}
    assert told == {
        "good": ("ok", "week1.ipynb", "ex-1"),
        "bad": ("error", "week1.ipynb", None),
        "never": ("aborted", "week1.ipynb", None),
    }
    assert len(ends) == 3
    assert [e["cell_id"] for e in read_events(file, "cell_execution_start")] == ["good", "bad"]
    assert {e["notebook_path"] for e in saves} == {"week1.ipynb"}
    assert "nbpulse" not in shown + json.dumps(said)
    assert "ZeroDivisionError" in shown
    assert [e["data"]["status"] for e in read_events(file, "kernel_status")] == ["started", "stopped"]
