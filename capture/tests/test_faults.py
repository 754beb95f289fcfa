"""Whatever breaks in us: the notebook and the server go on as if we were not there, and the fault is counted."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from pathlib import Path

import httpx2
import pytest

from nbpulse_capture.cli import describe_status
from student_jupyter import Notebook, connect_kernel, open_notebook

from .conftest import Open
from .recorded import Recorded, check_run

BREAK = """
import nbpulse_capture.{module} as module
def broken(*_, **__):
    raise {error}("injected")
setattr({owner}, "{name}", broken)
"""
SABOTAGES = {
    "websocket requests": ("observer", "module.ServerObserver", "note_request", "ValueError"),
    "reading requests": ("observer", "module", "read_request", "RecursionError"),
    "kernel actions": ("observer", "module.ServerObserver", "note_kernel_action", "KeyError"),
    "files": ("observer", "module.ServerObserver", "note_contents", "KeyError"),
    "starting to watch": ("observer", "module.ServerObserver", "watch", "OSError"),
    "IOPub messages": ("kernels", "module.KernelListener", "_take", "ValueError"),
    "observations": ("watched", "module.WatchedKernel", "note_start", "ZeroDivisionError"),
    "sessions": ("places", "module.SessionPlaces", "refresh", "RuntimeError"),
    "claims": ("claims", "module.ServerClaims", "claim", "PermissionError"),
    "beats": ("claims", "module.ServerClaims", "beat", "OSError"),
    "the tick": ("observer", "module.ServerObserver", "_find_dead_kernels", "RuntimeError"),
    "storing": ("outbox", "module.Outbox", "put", "sqlite3.OperationalError"),
    "hooking in": ("server_extension", "module", "hook_in", "RuntimeError"),
    "beginning": ("observer", "module.ServerObserver", "start", "RuntimeError"),
    "ending": ("observer", "module.ServerObserver", "stop", "RuntimeError"),
    "making the observer": ("server_extension", "module", "ServerObserver", "RuntimeError"),
}
UNSEEN = {
    "hooking in",
    "beginning",
    "ending",
    "making the observer",
    "storing",
}  # the log has them


# Each is a Jupyter server of its own; `make prove` breaks them all.
BROKEN = list(SABOTAGES)
if os.environ.get("NBPULSE_TEST_SCALE") != "full":
    BROKEN = ["websocket requests", "IOPub messages", "the tick", "storing", "hooking in"]


async def use_jupyter(http: httpx2.AsyncClient, notebook: Notebook) -> None:
    """What a student does must look as it always does."""
    for code, status, shown_count in (("40 + 2", "ok", 1), ("1 / 0", "error", 1), ("print(1)", "ok", 1)):
        ran = await notebook.run("c1", code)
        assert (ran.status, len(ran.shown)) == (status, shown_count)
        assert "nbpulse" not in json.dumps([message["content"] for message in ran.shown])
        assert "injected" not in json.dumps([message["content"] for message in ran.shown])
    saved = (await http.get("/api/contents/week1.ipynb")).json()
    (await http.put("/api/contents/week1.ipynb", json=saved)).raise_for_status()
    await notebook.ask_kernel("interrupt")
    await notebook.ask_kernel("restart")
    async with connect_kernel(http, notebook.kernel_id) as again:
        assert (await again.run("c2", "1")).status == "ok"


@pytest.mark.parametrize("what", BROKEN)
async def test_a_fault_anywhere_in_the_server_extension_is_not_felt_but_counted(
    what: str, jupyter_of: Open, student: Path, recorded: Recorded
) -> None:
    module, owner, name, error = SABOTAGES[what]
    config = student / "jupyter-home" / "jupyter_config_dir" / "jupyter_server_config.py"
    config.parent.mkdir(parents=True)
    config.write_text("import sqlite3\n" + BREAK.format(module=module, owner=owner, name=name, error=error))
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        await use_jupyter(jupyter.http, notebook)
        if what not in UNSEEN:
            await recorded.wait_until(lambda: any("injected" in fault for fault in read_faults()))
    assert jupyter.process.returncode in {0, -15}


def read_faults() -> list[str]:
    """As `nbpulse-capture status` shows them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBPULSE_CAPTURE_URL", "http://127.0.0.1:9")
        patch.setenv("NBPULSE_CAPTURE_TOKEN", "t")
        faults: list[str] = describe_status()["faults"]
    return faults


async def test_a_kernel_that_the_server_fails_to_observe_tells_of_itself(
    jupyter_of: Open, student: Path, recorded: Recorded
) -> None:
    config = student / "jupyter-home" / "jupyter_config_dir" / "jupyter_server_config.py"
    config.parent.mkdir(parents=True)
    config.write_text(BREAK.format(module="kernels", owner="module.KernelListener", name="_take", error="ValueError"))
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        await notebook.run("c1", "1")
        for cell_id, code, status in (("c2", "1", "ok"), ("c3", "1 / 0", "error")):
            await check_run(recorded, notebook, await notebook.run(cell_id, code), status)


async def test_a_locked_outbox_keeps_neither_the_server_nor_the_notebook_waiting(
    jupyter_of: Open, student: Path, recorded: Recorded
) -> None:
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        await check_run(recorded, notebook, await notebook.run("c1", "1"), "ok")
        holder = sqlite3.connect(student / "data" / "outbox.sqlite3", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        waits_s = []
        for _ in range(20):
            began_s = time.monotonic()
            ran = await notebook.run("c2", "1")
            (await jupyter.http.get("/api/status")).raise_for_status()
            waits_s.append(time.monotonic() - began_s)
        holder.execute("ROLLBACK")
        holder.close()
        assert sorted(waits_s)[10] < 0.5, waits_s
        await check_run(recorded, notebook, ran, "ok")
        assert len(recorded.of("cell_execution")) == 21


async def test_a_full_or_closed_disk_is_not_felt_and_what_waited_is_written_later(
    jupyter_of: Open, student: Path, recorded: Recorded
) -> None:
    (student / "data").write_text("a file where a directory should be")
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        ran = await notebook.run("c1", "40 + 2")
        assert (ran.status, len(ran.shown)) == ("ok", 1)
        (student / "data").unlink()
        await check_run(recorded, notebook, ran, "ok")


async def test_a_kernel_extension_that_breaks_under_a_server_only_loses_what_it_adds(
    jupyter_of: Open, recorded: Recorded
) -> None:
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        sabotage = "import nbpulse_capture.kernel as k; k.get_recorder()._tell_server = lambda *_: 1 / 0"
        await notebook.run("c1", sabotage)
        ran = await notebook.run("c2", "undefined_name")
        assert (ran.status, len(ran.shown)) == ("error", 1)
        data = await check_run(recorded, notebook, ran, "error")
        assert (data["error_name"], data["phase"]) == ("NameError", "runtime")
        assert data["error_message"] == "name 'undefined_name' is not defined"
        assert "traceback" not in data, "what the front end is shown quotes the student's code"
        shown = await notebook.run("c3", "%nbpulse status")
        assert "ZeroDivisionError" in json.dumps([message["content"] for message in shown.shown])


async def test_a_fault_in_counting_output_loses_no_output_and_the_server_counts_it_itself(
    jupyter_of: Open, recorded: Recorded
) -> None:
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        await notebook.run("c1", "import nbpulse_capture.kernel as k; k.get_recorder()._size._told = None")
        for cell_id in ("c2", "c3"):  # of the first the server had not subscribed to the output yet
            ran = await notebook.run(cell_id, "print('shown all the same')")
            assert [message["content"]["text"] for message in ran.shown] == ["shown all the same\n"]
            data = await check_run(recorded, notebook, ran, "ok")
        assert data["output_bytes"] > len("shown all the same")


async def test_secrets_in_an_error_never_reach_the_outbox(jupyter_of: Open, recorded: Recorded, student: Path) -> None:
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        await notebook.run("c1", "import os; os.environ['LAB_API_KEY'] = 'kirschbaum'")
        for code in (
            "raise ConnectionError('postgresql://taro:hunter2@db/lab refused')",
            "raise KeyError(os.environ['LAB_API_KEY'])",
            "raise ValueError('write to hanako@example.ac.jp')",
        ):
            await check_run(recorded, notebook, await notebook.run("c2", code), "error")
    raw = b"".join(path.read_bytes() for path in (student / "data").glob("outbox*"))
    assert b"ConnectionError" in raw
    assert not [secret for secret in (b"hunter2", b"kirschbaum", b"hanako@") if secret in raw]
