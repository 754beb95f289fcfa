"""A disk that is full in mid-class: notebooks go on, what was lost is counted and, once there is room, reported.

Full is played by the limit on the size of files (RLIMIT_FSIZE): the outbox's writes fail as on a full disk.
"""

from __future__ import annotations

import resource
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

from nbpulse_capture.execution import make_event_id
from student_jupyter import open_notebook

from .conftest import FakeApi, Open, wait_until
from .recorded import Recorded
from .test_kernel import ENDS, Kernel

KEPT = 6
SMALL_MEMORY = (
    f"import nbpulse_capture.journal as j; j.MEMORY_LIMIT = {KEPT}; get_ipython().history_manager.enabled = False"
)


@contextmanager
def full_disk(pid: int) -> Iterator[None]:
    """The process can write nothing more into any file."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def count_lost(api: FakeApi) -> int:
    told = [event["data"] for event in api.of_type("kernel_status")]
    return sum(data["event_count"] for data in told if data["status"] == "events_lost")


@pytest.fixture
def kernel(installed_python: Path, student: Path, api: FakeApi) -> Iterator[Kernel]:
    cells = [nbformat.v4.new_code_cell("1", id=f"c{n}") for n in range(20)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), student / "week1.ipynb")
    joined = {"NBPULSE_CAPTURE_URL": api.url, "NBPULSE_CAPTURE_TOKEN": "t"}
    started = Kernel(installed_python, student, joined | {"JPY_SESSION_NAME": str(student / "week1.ipynb")})
    yield started
    started.stop(now=True)


def test_a_kernel_works_on_and_reports_how_much_was_lost(kernel: Kernel, api: FakeApi) -> None:
    kernel.run(SMALL_MEMORY, "c0")
    api.wait_for(1, *ENDS)
    with full_disk(kernel.pid):
        for number in range(1, 11):
            ran = kernel.run(f"{number} * 2", f"c{number}")
            assert (ran.status, len(ran.shown)) == ("ok", 1), "nothing is seen of it"
            assert ran.shown[0]["content"]["data"]["text/plain"] == str(number * 2)
    kernel.run("'there is room again'", "c11")
    wait_until(lambda: "c11" in {one["cell_id"] for one in api.of_type(*ENDS)}, 30)
    wait_until(lambda: count_lost(api) > 0)
    arrived = [one["cell_id"] for one in api.of_type(*ENDS)]
    assert {"c9", "c10", "c11"} <= set(arrived), "the newest were kept in memory"
    starts = len(api.of_type("cell_execution_start"))
    assert count_lost(api) == 2 * 12 - len(arrived) - starts, "every event has arrived or is counted as lost"
    assert len(set(arrived)) == len(arrived)


async def test_a_jupyter_server_works_on_and_reports_how_much_was_lost(
    jupyter_of: Open, api: FakeApi, student: Path, recorded: Recorded
) -> None:
    config = student / "jupyter-home" / "jupyter_config_dir" / "jupyter_server_config.py"
    config.parent.mkdir(parents=True)
    config.write_text(f"import nbpulse_capture.writer as writer\nwriter.WAITING_LIMIT = {KEPT}\n", encoding="utf-8")
    joined = {"NBPULSE_CAPTURE_URL": api.url, "NBPULSE_CAPTURE_TOKEN": "t"}
    async with jupyter_of(env=joined) as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        first = await notebook.run("c0", "1")
        await recorded.wait_for_end(notebook.kernel_id, first)
        with full_disk(jupyter.process.pid):
            for number in range(1, 11):
                ran = await notebook.run(f"c{number}", f"{number} * 2")
                assert (ran.status, len(ran.shown)) == ("ok", 1), "nothing is seen of it"
                (await jupyter.http.get("/api/status")).raise_for_status()
        last = await notebook.run("c11", "1")
        end_id = make_event_id(uuid.UUID(notebook.kernel_id), last.msg_id, "end")
        await recorded.wait_until(lambda: end_id in api.stored and count_lost(api) > 0, 30)
        arrived = [one["cell_id"] for one in api.of_type(*ENDS)]
        assert {"c0", "c10", "c11"} <= set(arrived)
        assert len(set(arrived)) == len(arrived) < 12
        assert count_lost(api) == 2 * 12 - len(arrived) - len(api.of_type("cell_execution_start"))
