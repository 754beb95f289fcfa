"""A student's ordinary day in a real Jupyter shows no gap; a kernel's extension that is taken out shows one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg
import nbformat
import pytest

from student_jupyter import Notebook, connect_kernel, open_jupyter, open_notebook
from torture.connections import Connection
from torture.systems import System
from working import until


async def settle(system: System, run_count: int) -> list[dict[str, Any]]:
    """The signs once so many runs are stored, as if five minutes had gone by since."""
    owner = await asyncpg.connect(system.read_running()["admin_database_url"])
    try:

        async def has_all() -> bool:
            query = "SELECT count(*) = $1 FROM events WHERE event_type = 'cell_execution'"
            return bool(await owner.fetchval(query, run_count))

        await until(has_all, 30)
        await owner.execute("UPDATE events SET received_at = received_at - interval '5 minutes'")
    finally:
        await owner.close()
    facts = system.facts
    connection = Connection(system.url)
    path, token = f"/api/v1/courses/{facts['course_id']}/integrity", str(facts["teacher_token"])
    answer = await connection.request("GET", path, token=token, headers="Cache-Control: no-store\r\n")
    connection.close()
    found: list[dict[str, Any]] = answer.read()["integrity"]
    return found


async def run_many(notebook: Notebook, *codes: str) -> None:
    for number, code in enumerate(codes):
        await notebook.run(f"c{number}", code)


@pytest.mark.timeout(240)
async def test_errors_interrupts_restarts_magics_pauses_and_two_kernels_are_no_gap(
    data_dir: Path, tmp_path: Path, python: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for name in ("week1.ipynb", "scratch.ipynb"):
        cells = [nbformat.v4.new_code_cell("1", id=f"c{n}") for n in range(9)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), work / name)
    async with System(data_dir / "data", worker_count=1) as system:
        connection = Connection(system.url)
        asked = {"join_code": system.facts["join_code"], "display_name": "誠"}
        token = (await connection.post("/api/v1/join", asked)).read()["token"]
        connection.close()
        env = {"NBPULSE_CAPTURE_DIR": str(tmp_path / "outbox"), "NBPULSE_CAPTURE_CONFIG": str(tmp_path / "config")}
        env |= {"NBPULSE_CAPTURE_URL": system.url, "NBPULSE_CAPTURE_TOKEN": token}
        async with (
            open_jupyter(python, work, env) as jupyter,
            open_notebook(jupyter.http, "week1.ipynb") as first,
            open_notebook(jupyter.http, "scratch.ipynb") as second,
        ):
            await run_many(first, "1", "1 / 0", "x +", "%nbpulse status", "   ", "2", "%nbpulse help", "3")
            await run_many(second, *"12345")
            await first.run("c8", "import time; time.sleep(30)", interrupt_after_s=1)
            await first.ask_kernel("restart")
            async with connect_kernel(jupyter.http, first.kernel_id) as again:
                await run_many(again, *"1234567")
                assert await settle(system, 18) == []
                await run_many(again, "%nbpulse pause", *"1234567", "%nbpulse resume")
                await run_many(again, *"123")
                assert await settle(system, 18 + 3) == [], "what was run in a pause is not missed"
                await again.run("c0", "%unload_ext nbpulse_capture.kernel")
                await run_many(again, *"123456")
                [sign] = await settle(system, 21 + 7)
    assert (sign["sign"], sign["count"]) in {("kernel_silent", 6), ("kernel_silent", 7)}
