"""A student's say in what is recorded, from JupyterLab's toolbar: a notice that says more, pause, withdrawal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page

from torture.connections import Connection, get
from torture.systems import System
from working import until

from .test_front_end import STATE, open_lab, says

DIALOG = ".jp-Dialog"


async def ask(system: System, method: str, rest: str = "", body: bytes = b"") -> Any:
    connection = Connection(system.url)
    path = f"/api/v1/courses/{system.facts['course_id']}{rest}"
    answer = await connection.request(method, path, body=body, token=str(system.facts["teacher_token"]))
    connection.close()
    assert answer.status == 200, answer.body
    return answer.read()


async def shows_status(system: System, status: str) -> bool:
    facts = system.facts
    board = await get(f"{system.url}/api/v1/courses/{facts['course_id']}/live", token=str(facts["teacher_token"]))
    return [student["st"] for student in board.read()["students"]] == [status]


async def choose(page: Page, words: str) -> None:
    """Open the toolbar's item and press the button of that name."""
    await page.click(STATE)
    await page.click(f"{DIALOG} button:has-text('{words}')")


@pytest.mark.browser
@pytest.mark.timeout(300)
async def test_a_student_reads_pauses_resumes_accepts_and_withdraws_in_the_toolbar(
    data_dir: Path, tmp_path: Path, chromium_path: str
) -> None:
    async with System(data_dir / "data", worker_count=1) as system, open_lab(tmp_path, chromium_path) as page:
        await ask(system, "PUT", "/collection", b'{"level": "source"}')
        await page.click(STATE)
        for name, text in (("url", system.url), ("name", "佐藤 花子"), ("code", system.facts["join_code"])):
            await page.fill(f"input[name={name}]", text)
        await page.keyboard.press("Enter")
        await says(page, f"{DIALOG} .nbpulse-problem", "the code of the cells you run")
        assert (await ask(system, "GET", "/collection"))["students"]["current"] == 0, "nobody has joined yet"
        await page.keyboard.press("Enter")
        await says(page, DIALOG, "Connected to My class as 佐藤 花子")
        await page.keyboard.press("Enter")
        await says(page, STATE, "Connected")
        assert (await ask(system, "GET", "/collection"))["students"]["current"] == 1

        await choose(page, "Pause recording")
        await says(page, STATE, "Recording paused")
        await until(lambda: shows_status(system, "paused"), 40)
        await page.click(STATE)
        await says(page, DIALOG, "the code of the cells you run")
        found = await Axe().run(page, context=DIALOG)
        worst = [one["id"] for one in found.response["violations"] if one["impact"] in ("serious", "critical")]
        assert worst == []
        await page.click(f"{DIALOG} button:has-text('Resume recording')")
        await says(page, STATE, "Connected")
        await until(lambda: shows_status(system, "ok"), 40)

        await ask(system, "PUT", "/collection", b'{"level": "output"}')
        await says(page, STATE, "Read new notice", 60)
        await choose(page, "I have read it")
        await says(page, STATE, "Connected")
        assert (await ask(system, "GET", "/collection"))["students"]["current"] == 1

        await choose(page, "Withdraw from recording")
        await page.click(f"{DIALOG} .jp-mod-warn")
        await says(page, DIALOG, "stays until somebody erases it")
        await page.keyboard.press("Enter")
        await says(page, STATE, "Join class")
        assert (await ask(system, "GET", "/collection"))["students"] == {
            "current": 0,
            "older": 0,
            "untold": 0,
            "withdrawn": 1,
        }
