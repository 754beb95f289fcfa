"""From the teacher's `nbpulse prepare` to the board, with real kernels: copies under other names are one notebook."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import asyncpg
import nbformat
import pytest

from student_jupyter import open_jupyter, open_notebook
from torture.connections import Connection, get
from torture.systems import System, make_environment
from working import until


async def prepare(system: System, file: Path) -> dict[str, Any]:
    """The command, as a teacher types it beside the running class."""
    command = [sys.executable, "-m", "nbpulse", "prepare", str(file), "--json", "--data", str(system.data_dir)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=make_environment({}))
    said, complained = await process.communicate()
    assert process.returncode == 0, complained.decode()
    told: dict[str, Any] = json.loads(said)
    return told


async def find_runs(system: System) -> dict[str, tuple[str, str]]:
    """Path and cell of each run in the ledger, by the text it was told apart by (its execution's tag)."""
    connection = await asyncpg.connect(system.facts["database_url"])
    try:
        rows = await connection.fetch(
            "SELECT n.path, e.cell_id, e.data->'tags'->>0 AS tag FROM events e JOIN notebooks n ON n.id = e.notebook_id"
            " WHERE event_type = 'cell_execution'"
        )
    finally:
        await connection.close()
    return {row["tag"]: (row["path"], row["cell_id"]) for row in rows}


@pytest.mark.timeout(240)
async def test_a_prepared_notebook_is_one_on_the_board_whatever_its_copies_are_called(
    data_dir: Path, tmp_path: Path, python: Path
) -> None:
    work = tmp_path / "授業"
    work.mkdir()
    cells = [nbformat.v4.new_markdown_cell("# 平均"), *(nbformat.v4.new_code_cell(f"x = {n}") for n in range(4))]
    original = work / "week1.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), original)
    shutil.copy(original, work / "before.ipynb")  # handed out before it was prepared
    async with System(data_dir / "data", worker_count=1) as system:
        told = await prepare(system, original)
        assert (told["url"], told["changed"], told["cells"]) == (system.url, True, 5)
        assert (await prepare(system, original))["changed"] is False
        shutil.copy(original, work / "week1 (1).ipynb")
        strange = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("y = 1", id="mine")])
        (work / "own").mkdir()
        nbformat.write(strange, work / "own" / "week1.ipynb")

        connection = Connection(system.url)
        joined = (
            await connection.post("/api/v1/join", {"join_code": told["join_code"], "display_name": "花子"})
        ).read()
        connection.close()
        env = {"NBPULSE_CAPTURE_DIR": str(tmp_path / "outbox"), "NBPULSE_CAPTURE_CONFIG": str(tmp_path / "config")}
        env |= {"NBPULSE_CAPTURE_URL": system.url, "NBPULSE_CAPTURE_TOKEN": joined["token"]}
        cell_id = cells[2]["id"]
        async with open_jupyter(python, work, env) as jupyter:
            runs = {"prepared": ("week1 (1).ipynb", cell_id), "unprepared": ("before.ipynb", cell_id)}
            for tag, (path, cell) in (runs | {"strange": ("own/week1.ipynb", "mine")}).items():
                async with open_notebook(jupyter.http, path) as notebook:
                    await notebook.wait_for(await notebook.submit(cell, "x = 1", tags=[tag]))

            async def has_all() -> bool:
                return len(await find_runs(system)) == 3

            await until(has_all, 30)
        assert await find_runs(system) == {
            "prepared": ("week1.ipynb", cell_id),
            "unprepared": ("week1.ipynb", cell_id),
            "strange": ("own/week1.ipynb", "mine"),
        }
        facts = system.facts
        token, address = str(facts["teacher_token"]), f"{system.url}/api/v1/courses/{facts['course_id']}/live"
        board = (await get(f"{address}?notebook={told['notebook_id']}", token=token)).read()
        assert [(one["idx"], one["title"]) for one in board["cells"]] == [(n, "平均") for n in range(1, 5)]
