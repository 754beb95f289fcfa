"""Between staff and a student in real front ends: the hand and who comes, messages both ways, an offered change."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from student_browser import HAND, STATE, TALK, both_front_ends, open_desk, write_notebook
from torture.connections import Connection, get
from torture.systems import System
from working import until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

OFFERED = "values = [1, 2, 3]\nprint(values)"
ANSWER = f"{TALK} textarea"


class Staff:
    """The course's teacher, who speaks to the API as the board does."""

    def __init__(self, system: System) -> None:
        self._facts = system.facts
        self._url = system.url
        self._path = f"/api/v1/courses/{system.facts['course_id']}"

    async def read(self, path: str) -> Any:
        answer = await get(f"{self._url}{self._path}{path}", token=str(self._facts["teacher_token"]))
        assert answer.status == 200, answer.body
        return answer.read()

    async def post(self, path: str, **content: Any) -> Any:
        connection = Connection(self._url)
        try:
            body = {"id": str(uuid.uuid4()), **content}
            answer = await connection.post(self._path + path, body, token=str(self._facts["teacher_token"]))
        finally:
            connection.close()
        assert answer.status in (200, 201), answer.body
        return answer.read()

    async def find_help(self) -> dict[str, Any]:
        """The raised hand as the board shows it."""
        found: list[dict[str, Any]] = []

        async def look() -> bool:
            found[:] = [one for one in (await self.read("/live"))["alerts"] if one["kind"] == "help"]
            return bool(found)

        await until(look, 15)
        return found[0]

    async def says_of(self, student: str, text: str, **wanted: Any) -> bool:
        """Whether the talk with that student holds such a message."""
        told = json.dumps(await self.read(f"/messages?student={student}"), ensure_ascii=False)
        return text in told and all(f'"{name}": "{value}"' in told for name, value in wanted.items())


@both_front_ends
async def test_a_student_hears_who_comes_answers_and_takes_an_offered_change(
    data_dir: Path, tmp_path: Path, python: Path, chromium_path: str, program: str
) -> None:
    write_notebook(tmp_path / "授業")
    env = {"NBPULSE_CAPTURE_DIR": str(tmp_path / "data"), "NBPULSE_CAPTURE_CONFIG": str(tmp_path / "config")}
    async with System(data_dir / "data", worker_count=1) as system:
        command = [str(python.parent / "nbpulse-capture"), "join", system.url, system.facts["join_code"]]
        named = [*command, "--name", "佐藤 花子"]
        await asyncio.to_thread(subprocess.run, named, env=os.environ | env, check=True, timeout=60)
        staff = Staff(system)
        async with open_desk(python, tmp_path, chromium_path, program) as desk:
            page = desk.page
            await desk.says(STATE, "Connected")
            await desk.wait_for_kernel()
            await page.click(".jp-CodeCell >> nth=1 >> .cm-content")
            await page.keyboard.press("Shift+Enter")

            await page.click(HAND)
            await page.fill("input[name=message]", "グラフが出ません")
            await page.keyboard.press("Enter")
            alert = await staff.find_help()
            await desk.says(HAND, "Place 1")
            student = (await staff.read("/live"))["students"][alert["i"]]["id"]
            await staff.post(f"/alerts/{alert['id']}/claim", user_id=student)
            await desk.says(HAND, "is coming", within_s=5)

            await staff.post("/messages", to={"user_ids": [student]}, text="どこで困っていますか")
            await desk.says(STATE, "1 new", within_s=5)
            await page.click(STATE)
            await desk.says(f"{TALK} [role=log]", "どこで困っていますか")
            await page.fill(ANSWER, "2番目のセルです")
            await page.keyboard.press("Enter")
            await until(lambda: staff.says_of(student, "2番目のセルです"), 10)
            await until(lambda: staff.says_of(student, "どこで困っていますか", state="shown"), 10)
            await desk.says(f"{TALK} .nbpulse-mine", "2番目のセルです")
            assert await page.locator(".nbpulse-mine").count() == 1, "the class's copy of an answer is the same answer"

            notebook_id = (await staff.read("/live"))["notebook"]["id"]
            offer = {"notebook_id": notebook_id, "cell_id": "second", "source": OFFERED, "text": "3も入れましょう"}
            await staff.post("/messages", to={"user_ids": [student]}, offer=offer)
            await desk.says(f"{TALK} ins", "values = [1, 2, 3]")
            await page.click(f"{TALK} .nbpulse-accept")
            await desk.says(f"{TALK} .nbpulse-fate:not(:empty)", "Accepted")
            lines = await page.locator(".jp-CodeCell >> nth=1 >> .cm-line").all_inner_texts()
            assert "\n".join(lines) == OFFERED
            await until(lambda: staff.says_of(student, "3も入れましょう", state="accepted"), 10)

            await staff.post(f"/alerts/{alert['id']}/helped", user_id=student)
            await desk.says(HAND, "Raise hand", within_s=5)
