"""A student's say in what is recorded, from JupyterLab's toolbar: a notice that says more, pause, withdrawal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from student_browser import STATE, TALK, Desk, open_desk, write_notebook
from torture.connections import Connection, get
from torture.systems import System
from working import until

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


async def choose(desk: Desk, words: str) -> None:
    """Open the talk's word on what is seen, and there what can be done about it."""
    await desk.page.click(STATE)
    if not await desk.page.is_visible(f"{TALK} .nbpulse-recording"):
        await desk.page.click(f"{TALK} summary")
    await desk.page.click(f"{TALK} .nbpulse-recording")
    await desk.page.click(f"{DIALOG} button:has-text('{words}')")


async def shows_look(desk: Desk) -> bool:
    """Whether the student is told that the teacher looked; asked anew each time."""
    await choose(desk, "Who looked at my work")
    await desk.page.wait_for_selector(f"{DIALOG} .nbpulse-text")
    if "Teacher: looked at the class's work" in await desk.page.inner_text(DIALOG):
        return True
    await desk.page.keyboard.press("Escape")
    return False


@pytest.mark.browser
@pytest.mark.timeout(300)
async def test_a_student_reads_pauses_resumes_accepts_and_withdraws_in_the_toolbar(
    data_dir: Path, tmp_path: Path, python: Path, chromium_path: str
) -> None:
    write_notebook(tmp_path / "授業")
    async with (
        System(data_dir / "data", worker_count=1) as system,
        open_desk(python, tmp_path, chromium_path, "jupyterlab") as desk,
    ):
        page = desk.page
        await ask(system, "PUT", "/collection", b'{"level": "source"}')
        await page.click(STATE)
        line = f"{system.facts['join_code']}@{system.url.removeprefix('http://')}"
        await page.fill("input[name=invitation]", line)
        await page.fill("input[name=name]", "佐藤 花子")
        await page.keyboard.press("Enter")
        await desk.says(f"{DIALOG} .nbpulse-problem", "the code of the cells you run")
        assert (await ask(system, "GET", "/collection"))["students"]["current"] == 0, "nobody has joined yet"
        await page.keyboard.press("Enter")
        await desk.says(".Toastify", "Connected to My class as 佐藤 花子")
        await desk.says(STATE, "Connected")
        assert (await ask(system, "GET", "/collection"))["students"]["current"] == 1

        assert (await ask(system, "GET", "/live"))["students"]
        await until(lambda: shows_look(desk), 20)
        assert await desk.examine(DIALOG) == []
        await page.keyboard.press("Escape")

        await choose(desk, "Pause recording")
        await desk.says(STATE, "Recording paused")
        await until(lambda: shows_status(system, "paused"), 40)
        await page.click(STATE)
        await desk.says(DIALOG, "the code of the cells you run")
        assert await desk.examine(DIALOG) == []
        await page.click(f"{DIALOG} button:has-text('Resume recording')")
        await desk.says(STATE, "Connected")
        await until(lambda: shows_status(system, "ok"), 40)

        await ask(system, "PUT", "/collection", b'{"level": "output"}')
        await desk.says(STATE, "Read new notice", 60)
        await page.click(STATE)
        await page.click(f"{DIALOG} button:has-text('I have read it')")
        await desk.says(STATE, "Connected")
        assert (await ask(system, "GET", "/collection"))["students"]["current"] == 1

        await choose(desk, "Withdraw from recording")
        await page.click(f"{DIALOG} .jp-mod-warn")
        await desk.says(DIALOG, "stays until somebody erases it")
        await page.keyboard.press("Enter")
        await desk.says(STATE, "Join class")
        assert (await ask(system, "GET", "/collection"))["students"] == {
            "current": 0,
            "older": 0,
            "untold": 0,
            "withdrawn": 1,
        }
