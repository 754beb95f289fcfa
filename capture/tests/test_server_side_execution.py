"""Server-side execution with jupyter-collaboration and jupyter_server_nbmodel, no dependencies of ours.

Runs where NBPULSE_TEST_RTC_PYTHON names the interpreter of a venv that has both, JupyterLab and ipykernel.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import nbformat
import pytest
from websockets.asyncio.client import connect

from student_jupyter import TOKEN, build_wheel, open_jupyter, open_notebook

from .recorded import Recorded

RTC_PYTHON = os.environ.get("NBPULSE_TEST_RTC_PYTHON", "")


async def execute(
    http: httpx2.AsyncClient, kernel_id: str, cell_id: str, code: str, document_id: str
) -> dict[str, Any]:
    """Run a cell as the front end of nbmodel asks for it, and wait for the result."""
    metadata = {"cell_id": cell_id, "document_id": document_id}
    asked = await http.post(f"/api/kernels/{kernel_id}/execute", json={"code": code, "metadata": metadata})
    asked.raise_for_status()
    async with asyncio.timeout(30):
        while True:
            answer = await http.get(asked.headers["Location"])
            if answer.status_code != 202:
                result: dict[str, Any] = answer.json()
                return result
            await asyncio.sleep(0.1)


@pytest.mark.skipif(not RTC_PYTHON, reason="NBPULSE_TEST_RTC_PYTHON names no venv with server-side execution")
@pytest.mark.timeout(300)
async def test_cells_that_the_server_runs_are_told_once_with_their_ids(student: Path, tmp_path: Path) -> None:
    wheel = await asyncio.to_thread(build_wheel, tmp_path)
    pip = [sys.executable, "-m", "pip", "--python", RTC_PYTHON, "install", "--no-deps", "--no-index", "-q"]
    await asyncio.to_thread(subprocess.run, [*pip, "--force-reinstall", str(wheel)], check=True, timeout=120)
    work = student / "rtc"
    work.mkdir()
    cells = [nbformat.v4.new_code_cell("1", id=f"c{n}") for n in range(4)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), work / "week1.ipynb")
    recorded = Recorded(student)
    joined = {"NBPULSE_CAPTURE_URL": "http://127.0.0.1:9", "NBPULSE_CAPTURE_TOKEN": "t"}
    async with (
        open_jupyter(Path(RTC_PYTHON), work, joined) as jupyter,
        open_notebook(jupyter.http, "week1.ipynb") as notebook,
    ):
        asked = {"format": "json", "type": "notebook"}
        session = (await jupyter.http.put("/api/collaboration/session/week1.ipynb", json=asked)).json()
        document_id = f"json:notebook:{session['fileId']}"
        address = str(jupyter.http.base_url).replace("http", "ws", 1).rstrip("/")
        room = f"{address}/api/collaboration/room/{document_id}?sessionId={session['sessionId']}"
        async with connect(room, additional_headers={"Authorization": f"token {TOKEN}"}, max_size=None):
            await asyncio.sleep(2)  # the room reads the notebook
            for cell_id, code in (("c0", "x = 1"), ("c1", "1 / 0"), ("c2", "print(x)"), ("c3", "x +")):
                await execute(jupyter.http, notebook.kernel_id, cell_id, code, document_id)
            await recorded.wait_until(lambda: len(recorded.of("cell_execution")) == 4)
    told = [(e["cell_id"], e["notebook_path"], e["data"]["status"]) for e in recorded.of("cell_execution")]
    statuses = ("ok", "error", "ok", "error")
    assert told == [(f"c{n}", "week1.ipynb", status) for n, status in enumerate(statuses)]
    assert [e["cell_id"] for e in recorded.of("cell_execution_start")] == ["c0", "c1", "c2", "c3"]
