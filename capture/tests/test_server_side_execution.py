"""Server-side execution with jupyter-collaboration and jupyter_server_nbmodel, no dependencies of ours.

Both are from PyPI, in a venv of this test's own: in that of the tests they would be at work in every JupyterLab.
Without a network the test is skipped; in CI it fails then.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import nbformat
import pytest
from websockets.asyncio.client import connect

from servers import give_up
from student_jupyter import TOKEN, install_capture, open_jupyter, open_notebook

from .recorded import Recorded

SERVER_SIDE = ("jupyter-collaboration==5.0.4", "jupyter_server_nbmodel==0.2.9")


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a student's venv with both and ours."""
    interpreter = install_capture(tmp_path)
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "-q", *SERVER_SIDE]
    done = subprocess.run(pip, check=False, capture_output=True, text=True, timeout=180)
    if done.returncode != 0:
        give_up(f"server-side execution cannot be installed: {done.stderr[-300:]}")
    return interpreter


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


@pytest.mark.timeout(300)
async def test_cells_that_the_server_runs_are_told_once_with_their_ids(student: Path, python: Path) -> None:
    (student / "jupyter-home" / "jupyter_data_dir").mkdir(
        parents=True
    )  # jupyter_server_fileid makes none for its database
    work = student / "rtc"
    work.mkdir()
    cells = [nbformat.v4.new_code_cell("1", id=f"c{n}") for n in range(4)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), work / "week1.ipynb")
    recorded = Recorded(student)
    joined = {"NBPULSE_CAPTURE_URL": "http://127.0.0.1:9", "NBPULSE_CAPTURE_TOKEN": "t"}
    async with (
        open_jupyter(python, work, joined) as jupyter,
        open_notebook(jupyter.http, "week1.ipynb") as notebook,
    ):
        asked = {"format": "json", "type": "notebook"}
        session = (await jupyter.http.put("/api/collaboration/session/week1.ipynb", json=asked)).json()
        document_id = f"json:notebook:{session['fileId']}"
        address = str(jupyter.http.base_url).replace("http", "ws", 1).rstrip("/")
        room = f"{address}/api/collaboration/room/{document_id}?sessionId={session['sessionId']}"
        signed_in = {"Authorization": f"token {TOKEN}"}
        async with connect(room, additional_headers=signed_in, max_size=None) as room_socket, asyncio.timeout(60):
            await room_socket.recv()  # it has the notebook
            await asyncio.sleep(1)
            for cell_id, code in (("c0", "x = 1"), ("c1", "1 / 0"), ("c2", "print(x)"), ("c3", "x +")):
                await execute(jupyter.http, notebook.kernel_id, cell_id, code, document_id)
            await recorded.wait_until(lambda: len(recorded.of("cell_execution")) == 4)
    told = [(e["cell_id"], e["notebook_path"], e["data"]["status"]) for e in recorded.of("cell_execution")]
    statuses = ("ok", "error", "ok", "error")
    assert told == [(f"c{n}", "week1.ipynb", status) for n, status in enumerate(statuses)]
    assert [e["cell_id"] for e in recorded.of("cell_execution_start")] == ["c0", "c1", "c2", "c3"]
