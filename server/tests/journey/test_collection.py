"""What is collected of a real student, from the teacher's command to the stores' files, and its end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import nbformat
import pytest

from nbpulse.crypto import EncryptedField
from student_jupyter import Notebook, open_jupyter, open_notebook
from torture.connections import get
from torture.systems import System, make_environment
from working import until

SECRET = "v3ry-s3cret-of-the-environment"
STUDENT_CLI = "import sys; from nbpulse_capture.cli import main; sys.exit(main(sys.argv[1:]))"


def make_code(canary: str) -> str:
    """A cell whose source and whose output hold a canary each."""
    return f"source_{canary} = 'out' + 'put_{canary}'\nprint(source_{canary})"


class Class:
    """The running nbpulse, and one student with their own Python and files."""

    def __init__(self, system: System, python: Path, place: Path) -> None:
        self.system = system
        self._python = python
        self.place = place
        self.env = {
            "NBPULSE_CAPTURE_DIR": str(place / "outbox"),
            "NBPULSE_CAPTURE_CONFIG": str(place / "config"),
            "SCHOOL_API_TOKEN": SECRET,
        }

    async def teach(self, *arguments: str) -> str:
        """The teacher's `nbpulse`."""
        command = [sys.executable, "-m", "nbpulse", *arguments, "--data", str(self.system.data_dir)]
        return await run_command(command, make_environment({}), 0)

    async def study(self, *arguments: str, code: int = 0) -> str:
        """The student's `nbpulse-capture`."""
        env = os.environ | {"LANG": "en_US.UTF-8"} | self.env
        return await run_command([str(self._python), "-c", STUDENT_CLI, *arguments], env, code)

    async def fetch(self, statement: str) -> list[Any]:
        connection = await asyncpg.connect(self.system.facts["database_url"])
        try:
            return list(await connection.fetch(statement))
        finally:
            await connection.close()

    async def count_runs(self) -> int:
        return int((await self.fetch("SELECT count(*) FROM events WHERE event_type = 'cell_execution'"))[0][0])

    async def run(self, notebook: Notebook, code: str) -> None:
        """Run a cell, and wait until the ledger has it."""
        before = await self.count_runs()
        await notebook.run("c1", code)

        async def is_there() -> bool:
            return await self.count_runs() > before

        await until(is_there, 30)

    async def read_statuses(self) -> list[str]:
        facts = self.system.facts
        url = f"{self.system.url}/api/v1/courses/{facts['course_id']}/live"
        board = (await get(url, token=str(facts["teacher_token"]))).read()
        return [student["st"] for student in board["students"]]

    def find_in_files(self, text: str, *folders: Path) -> list[str]:
        """Every file of the server's data directory and of the student's that holds the text."""
        looked_at = folders or (self.system.data_dir, self.place / "outbox", self.place / "config")
        files = [path for folder in looked_at for path in folder.rglob("*") if path.is_file()]
        assert files
        return [str(path) for path in files if text.encode() in path.read_bytes()]


async def run_command(command: list[str], env: dict[str, str], code: int) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == code, (command, out.decode(), err.decode())
    return out.decode() + err.decode()


async def is_soon(check: Callable[[], Awaitable[bool]], within_s: float = 30) -> None:
    await until(check, within_s)


@pytest.mark.timeout(300)
async def test_a_student_s_code_is_nowhere_until_the_course_collects_it_and_the_student_has_seen_so(
    data_dir: Path, tmp_path: Path, python: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", id="c1")]), work / "week1.ipynb")
    async with System(data_dir / "data", worker_count=1) as system:
        of = Class(system, python, tmp_path)
        shown = await of.study("join", system.url, system.facts["join_code"], "--name", "花子")
        assert shown.index("Not recorded:") < shown.index("Joined")
        async with (
            open_jupyter(python, work, of.env) as jupyter,
            open_notebook(jupyter.http, "week1.ipynb") as notebook,
        ):
            await of.run(notebook, make_code("one") + f"\nprint('{SECRET[:4]}' + '{SECRET[4:]}')")
            told = await of.teach("collection", "class", "--level", "output", "--without", "cell_focus", "--json")
            assert json.loads(told.splitlines()[0])["students"] == {
                "current": 0,
                "older": 1,
                "untold": 0,
                "withdrawn": 0,
            }
            await asyncio.sleep(31)  # so long may an API process go on as before
            await of.run(notebook, make_code("two"))
            for canary in ("source_one", "output_one", "source_two", "output_two", SECRET):
                assert of.find_in_files(canary) == [], canary
            assert await of.fetch("SELECT * FROM event_contents") == []

            async def has_new_notice() -> bool:
                status = json.loads(await of.study("status", "--json"))
                return bool(status["notice_due"]) and status["level"] == "metadata"

            await is_soon(has_new_notice)
            assert "what your cells show" in await of.study("notice", "--accept")
            await of.run(notebook, make_code("three"))
            await check_sealed(of)
            await check_pause_and_end(of, notebook)


async def check_sealed(of: Class) -> None:
    """The third cell's source and output are stored, sealed, and in no file of PostgreSQL in clear."""
    seal = EncryptedField((of.system.data_dir / "encryption.key").read_bytes().split())
    (row,) = await of.fetch("SELECT user_id, source, output FROM event_contents")
    opened = [
        seal.unseal(row[name], table="event_contents", column=name, user_id=row["user_id"])
        for name in ("source", "output")
    ]
    assert opened == [make_code("three"), "output_three\n"]
    # What is committed is in PostgreSQL's log, which lies there too.
    for canary in ("source_three", "output_three"):
        assert of.find_in_files(canary, of.system.data_dir / "postgresql") == []
    assert "source_three" in await of.study("what-is-recorded")
    assert of.find_in_files("source_three", of.place / "outbox") != [], "the search finds what is there"


async def check_pause_and_end(of: Class, notebook: Notebook) -> None:
    """What runs in a pause is nowhere; who withdraws is not recorded any more, and nothing waits here."""
    await of.study("pause")
    await notebook.run("c1", make_code("four"))

    async def is_paused() -> bool:
        return await of.read_statuses() == ["paused"]

    await is_soon(is_paused)
    before = await of.count_runs()
    await of.study("resume")
    assert "stays until somebody erases it" in await of.study("withdraw", "--yes")
    await notebook.run("c1", make_code("five"))
    await asyncio.sleep(3)
    assert await of.count_runs() == before
    for canary in ("source_four", "output_four", "source_five", "output_five"):
        assert of.find_in_files(canary) == [], canary
    assert of.find_in_files("source_three", of.place / "outbox", of.place / "config") == []
    actions = await of.fetch("SELECT action, version FROM consents ORDER BY at")
    assert [tuple(row) for row in actions] == [("accept", 1), ("accept", 2), ("withdraw", 2)]
    assert "NB-7001" in await of.study("status", code=1)
