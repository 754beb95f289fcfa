"""The extension in real kernels: an ipykernel of the venv that got the wheel by pip, driven by jupyter_client."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.kernelspec import KernelSpec

from nbpulse_capture.execution import make_event_id
from nbpulse_capture.membership import MembershipFile
from nbpulse_capture.outbox import Outbox
from student_jupyter import Ran

from .conftest import FakeApi, wait_until

ENDS = ("cell_execution",)


class Kernel:
    """A kernel as a Jupyter server would start it for `week1.ipynb`."""

    def __init__(self, python: Path, directory: Path, env: dict[str, str]) -> None:
        self.kernel_id = uuid.uuid4()
        self.manager = KernelManager(connection_file=str(directory / f"kernel-{self.kernel_id}.json"))
        argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self.manager._kernel_spec = KernelSpec(argv=argv, display_name="t", language="python")
        self.manager.start_kernel(cwd=str(directory), env=os.environ | env, stdout=subprocess.DEVNULL)
        self.client: BlockingKernelClient = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    @property
    def pid(self) -> int:
        assert self.manager.provisioner is not None
        return int(self.manager.provisioner.pid)  # type: ignore[attr-defined]

    def submit(self, code: str, cell_id: str | None = None, **content: Any) -> str:
        metadata = {"cellId": cell_id} if cell_id else {}
        asked = {"code": code, "silent": False, "store_history": True, "allow_stdin": False} | content
        asked |= {"user_expressions": {}, "stop_on_error": True}
        message = self.client.session.msg("execute_request", asked, metadata=metadata)
        self.client.shell_channel.send(message)
        return str(message["header"]["msg_id"])

    def collect(self, msg_id: str, timeout_s: float = 60.0) -> Ran:
        ran = Ran("", msg_id)
        while True:
            message = self.client.get_iopub_msg(timeout=timeout_s)
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            state = message["content"].get("execution_state")
            if state == "busy":
                ran.busy_s, ran.busy_written = time.perf_counter(), message["header"]["date"].isoformat()
            elif state == "idle":
                ran.idle_s, ran.idle_written = time.perf_counter(), message["header"]["date"].isoformat()
                break
            elif message["msg_type"] in {"stream", "error", "execute_result", "display_data"}:
                ran.shown.append(message)
        while True:
            message = self.client.get_shell_msg(timeout=timeout_s)
            if message["parent_header"].get("msg_id") == msg_id:
                ran.status = message["content"]["status"]
                return ran

    def run(self, code: str, cell_id: str | None = "c0", **content: Any) -> Ran:
        return self.collect(self.submit(code, cell_id, **content))

    def stop(self, *, now: bool = False) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=now)
        self.manager.cleanup_resources()
        self.manager.context.destroy(linger=0)


Start = Callable[..., Kernel]


@pytest.fixture
def start_kernel(installed_python: Path, student: Path, api: FakeApi) -> Iterator[Start]:
    started: list[Kernel] = []
    work = student / "授業"
    work.mkdir()
    cells = [nbformat.v4.new_markdown_cell("text", id="intro")]
    cells += [nbformat.v4.new_code_cell("1", id=f"c{n}") for n in range(5)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), work / "week1.ipynb")
    default = {"JPY_SESSION_NAME": str(work / "week1.ipynb")}
    joined = {"NBPULSE_CAPTURE_URL": api.url, "NBPULSE_CAPTURE_TOKEN": "t"}

    def start(*, is_joined: bool = True, env: dict[str, str] | None = None) -> Kernel:
        kernel = Kernel(installed_python, work, default | (joined if is_joined else {}) | (env or {}))
        started.append(kernel)
        return kernel

    yield start
    for kernel in started:
        if kernel.manager.has_kernel:
            kernel.stop(now=True)


def get_data(event: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = event["data"]
    return data


def test_a_run_is_told_once_with_its_place_and_its_duration(start_kernel: Start, api: FakeApi) -> None:
    kernel = start_kernel()
    ran = kernel.run("print('hello')", "c2")
    [end] = api.wait_for(1, *ENDS)
    [begin] = api.of_type("cell_execution_start")
    assert end["event_id"] == make_event_id(kernel.kernel_id, ran.msg_id, "end")
    assert begin["event_id"] == make_event_id(kernel.kernel_id, ran.msg_id, "start")
    assert end["notebook_path"] == "week1.ipynb"
    assert (end["cell_id"], end["cell_index"], end["cell_type"]) == ("c2", 3, "code")
    assert get_data(end) | {"execution_duration_ms": 0} == {
        "status": "ok",
        "has_error": False,
        "execution_duration_ms": 0,
        "execution_count": 1,
    }
    [session] = api.of_type("session_start")
    assert session["session_id"] == begin["session_id"] == end["session_id"]
    assert [e["data"] for e in api.of_type("kernel_status")] == [{"status": "started"}]
    assert ran.text == "hello\n"
    assert session["sequence"] < begin["sequence"] < end["sequence"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", end["occurred_at"])
    raw = json.dumps(api.batches)
    assert "hello" not in raw, "source or output was sent"
    assert str(Path.home()) not in raw.replace(str(api), "")


def test_an_error_tells_name_message_and_frames_but_no_source(start_kernel: Start, api: FakeApi) -> None:
    kernel = start_kernel()
    ran = kernel.run("def divide(secret_variable):\n    return secret_variable / 0\ndivide(1)")
    [end] = api.wait_for(1, *ENDS)
    data = get_data(end)
    assert ran.status == "error"
    assert data["status"] == "error"
    assert data["has_error"] is True
    assert data["error_name"] == "ZeroDivisionError"
    assert data["error_message"] == "division by zero"
    assert data["phase"] == "runtime"
    assert data["traceback"].splitlines() == [
        "Cell In[1], line 3, in <module>",
        "Cell In[1], line 2, in divide",
    ]
    assert "secret_variable" not in json.dumps(api.batches)


def test_a_syntax_error_is_exactly_one_run(start_kernel: Start, api: FakeApi) -> None:
    kernel = start_kernel()
    wrong = {"for": "SyntaxError", "if 1:\nx": "IndentationError", "print('a": "SyntaxError", "a = = 1": "SyntaxError"}
    for code in wrong:
        assert kernel.run(code).status == "error"
    kernel.run("1")
    ends = [get_data(e) for e in api.wait_for(5, *ENDS)]
    assert [(e["status"], e.get("phase"), e.get("error_name")) for e in ends] == [
        *(("error", "compile", name) for name in wrong.values()),
        ("ok", None, None),
    ]


def test_an_interrupt_is_not_an_error(start_kernel: Start, api: FakeApi) -> None:
    kernel = start_kernel()
    wait = "import asyncio\nfor _ in range(300): await asyncio.sleep(0.1)"
    for code in ("import time; time.sleep(30)", wait, "while True: pass"):
        msg_id = kernel.submit(code, "c1")
        before = len(api.of_type(*ENDS))
        wait_until(lambda before=before: len(api.of_type("cell_execution_start")) == before + 1)
        time.sleep(0.2)
        kernel.manager.interrupt_kernel()
        kernel.collect(msg_id)
        api.wait_for(before + 1, *ENDS)
    assert [get_data(e)["status"] for e in api.of_type(*ENDS)] == ["interrupted"] * 3
    assert [get_data(e)["has_error"] for e in api.of_type(*ENDS)] == [False] * 3


def test_an_async_cell_and_a_long_one_are_timed_as_the_client_sees_them(start_kernel: Start, api: FakeApi) -> None:
    kernel = start_kernel()
    kernel.run("import asyncio, time")
    for code in ("await asyncio.sleep(0.5)", "time.sleep(2)"):
        ran = kernel.run(code)
        event_id = make_event_id(kernel.kernel_id, ran.msg_id, "end")
        wait_until(lambda event_id=event_id: event_id in api.stored)
        data = get_data(api.stored[event_id])
        assert ran.measure_distance_ms(data["execution_duration_ms"]) < 50
        assert data["status"] == "ok"


def test_an_endless_recursion_is_described_in_bounded_words(start_kernel: Start, api: FakeApi) -> None:
    kernel = start_kernel()
    kernel.run("def f(n): return f(n + 1)\nf(0)")
    [end] = api.wait_for(1, *ENDS)
    data = get_data(end)
    assert data["error_name"] == "RecursionError"
    assert len(data["traceback"].splitlines()) <= 21
    assert len(json.dumps(end)) < 10_000


def test_strange_errors_are_put_into_clean_words(start_kernel: Start, api: FakeApi) -> None:
    kernel = start_kernel()
    for code in (
        "raise ValueError('\\x00 ' + 'x' * 100_000)",
        "raise SystemExit(3)",
        "class Bad:\n    def __repr__(self): raise KeyError('r')\nBad()",
    ):
        kernel.run(code)
    ends = [get_data(e) for e in api.wait_for(3, *ENDS)]
    assert ends[0]["error_message"].startswith("� x")
    assert len(ends[0]["error_message"]) == 2000
    assert ends[1]["error_name"] == "SystemExit"
    assert ends[2]["status"] == "error", "an error while the result is displayed is an error to the student"


def test_what_is_not_a_students_run_is_not_told(start_kernel: Start, api: FakeApi) -> None:
    kernel = start_kernel()
    kernel.run("x = 1", silent=True, store_history=False)
    kernel.run("x = 2", store_history=False)
    kernel.run("   ")
    kernel.run("get_ipython().run_cell('y = 3', store_history=True)", "c3")
    kernel.run("%nbpulse help", "c4")
    kernel.run("z = 4", "c1")
    api.wait_for(2, *ENDS)
    assert [e["cell_id"] for e in api.of_type(*ENDS)] == ["c3", "c1"]
    assert [e["cell_id"] for e in api.of_type("cell_execution_start")] == ["c3", "c1"]


def test_batch_runs_are_recognised(start_kernel: Start, api: FakeApi) -> None:
    """nbclient, papermill and autograders give neither a cell id nor a session; or start inside a student's kernel."""
    batch = start_kernel(env={"JPY_SESSION_NAME": ""})
    batch.run("1", None)
    nested = start_kernel(env={"NBPULSE_CAPTURE_KERNEL_PID": "1"})
    nested.run("1", None)
    student = start_kernel()
    student.run("1", None)
    api.wait_for(1, *ENDS)
    for kernel in (batch, nested):
        kernel.stop()
    assert len(api.of_type(*ENDS)) == 1, "only the student's, server-side execution having no cell id"
    assert len(api.of_type("kernel_status")) == 1


def test_a_flood_of_prints_is_two_events_and_all_of_it_arrives(start_kernel: Start, api: FakeApi) -> None:
    kernel = start_kernel()
    ran = kernel.run("for n in range(10_000): print(n, flush=n % 10 == 0)")
    api.wait_for(1, *ENDS)
    assert ran.text.split() == [str(n) for n in range(10_000)]
    assert len(api.of_type(*ENDS, "cell_execution_start")) == 2


def test_after_kill_9_in_mid_run_the_next_kernel_sends_what_was_on_disk(
    start_kernel: Start, api: FakeApi, student: Path
) -> None:
    api.plays = [lambda request, _: bool(request.close_connection) or True] * 3  # it hears nothing
    kernel = start_kernel()
    kernel.run("x = 1", "c1")
    msg_id = kernel.submit("import time; time.sleep(60)", "c2")
    outbox = Outbox(student / "data" / "outbox.sqlite3")
    wait_until(lambda: any(e.get("cell_id") == "c2" for _, e, _ in outbox.read_last_events(50)))
    os.kill(kernel.pid, signal.SIGKILL)
    kernel.stop(now=True)
    api.plays.clear()
    start_kernel()
    killed = make_event_id(kernel.kernel_id, msg_id, "start")
    wait_until(lambda: killed in api.stored, 45)  # at the latest when the dead kernel's lease has ended
    assert [e["cell_id"] for e in api.of_type(*ENDS)] == ["c1"]
    outbox.close()


def test_a_clean_end_is_told_within_two_seconds(start_kernel: Start, api: FakeApi) -> None:
    kernel = start_kernel()
    kernel.run("1")
    began_s = time.monotonic()
    kernel.stop()
    assert time.monotonic() - began_s < 4
    [end] = api.wait_for(1, "session_end", timeout_s=2)
    assert end["session_id"] == api.of_type("session_start")[0]["session_id"]
    assert [get_data(e)["status"] for e in api.of_type("kernel_status")] == ["started", "stopped"]


def test_a_kernel_ends_quickly_with_the_server_away(start_kernel: Start, api: FakeApi) -> None:
    kernel = start_kernel(env={"NBPULSE_CAPTURE_URL": "http://127.0.0.1:9"})
    kernel.run("1")
    began_s = time.monotonic()
    kernel.stop()
    assert time.monotonic() - began_s < 4


def test_nothing_is_written_before_joining_and_a_running_kernel_notices_the_join(
    start_kernel: Start, api: FakeApi, student: Path
) -> None:
    kernel = start_kernel(is_joined=False)
    kernel.run("1", "c1")
    assert not (student / "data").exists()
    told = kernel.run(f"%nbpulse join {api.url} ABCD --name 花子", "c4")
    assert "情報基礎" in told.text
    assert "NOT sent: your code" in told.text
    kernel.run("1", "c2")
    api.wait_for(1, *ENDS)
    assert [e["cell_id"] for e in api.of_type(*ENDS)] == ["c2"]
    assert set(api.tokens) == {"Bearer tok-1"}
    assert "waiting" in kernel.run("%nbpulse status").text.lower()
    kernel.run("%nbpulse leave")
    kernel.run("1", "c3")
    time.sleep(0.5)
    assert [e["cell_id"] for e in api.of_type(*ENDS)] == ["c2"]
    assert MembershipFile().read() is None


def test_asking_for_help_and_taking_it_back(start_kernel: Start, api: FakeApi) -> None:
    kernel = start_kernel()
    kernel.run("1", "c2")
    shown = kernel.run("%nbpulse help where is df?", "c4").text
    [request] = api.wait_for(1, "help_request")
    assert request["data"] == {"message": "where is df?"}
    assert request["cell_id"] == "c2", "the cell the student is at, not the magic's"
    assert "--cancel" in shown
    kernel.run("%nbpulse help --cancel", "c4")
    assert api.wait_for(1, "help_cancel")[0]["data"] == {}


@pytest.mark.parametrize(
    "sabotage",
    [
        "import nbpulse_capture.kernel as k; k.describe_start = None; k.describe_execution = None",
        "import nbpulse_capture.kernel as k; k.get_recorder()._get_parent = lambda: 1 / 0",
        "import nbpulse_capture.outbox as o; o.Outbox.put = None",
        "import nbpulse_capture.journal as j; j.Journal.put = None; j.Journal.store = None",
        "import nbpulse_capture.membership as m; m.MembershipFile.read = lambda self: 1 / 0",
        "import nbpulse_capture.sender as s; s.Sender._take_turn = lambda self, **k: 1 / 0",
    ],
)
def test_whatever_breaks_in_us_the_notebook_shows_nothing(start_kernel: Start, sabotage: str) -> None:
    kernel = start_kernel()
    kernel.run(sabotage)
    for code, status in (("40 + 2", "ok"), ("1 / 0", "error"), ("await __import__('asyncio').sleep(0)", "ok")):
        ran = kernel.run(code)
        assert ran.status == status
        assert "nbpulse" not in json.dumps([m["content"] for m in ran.shown])
        assert len(ran.shown) == (code != "await __import__('asyncio').sleep(0)")


def test_an_outbox_that_cannot_be_written_is_not_felt(start_kernel: Start, api: FakeApi, student: Path) -> None:
    (student / "data").write_text("a file where a directory should be")
    kernel = start_kernel()
    ran = kernel.run("40 + 2", "c1")
    assert (ran.status, len(ran.shown)) == ("ok", 1)
    (student / "data").unlink()  # the disk is back: what was kept in memory is stored and sent
    kernel.run("1", "c2")
    api.wait_for(2, *ENDS)
    assert [e["cell_id"] for e in api.of_type(*ENDS)] == ["c1", "c2"] or {e["cell_id"] for e in api.of_type(*ENDS)} == {
        "c1",
        "c2",
    }


def test_a_restart_begins_a_new_learning_session(start_kernel: Start, api: FakeApi) -> None:
    kernel = start_kernel()
    kernel.run("1")
    kernel.manager.restart_kernel()
    kernel.client.wait_for_ready(timeout=60)
    kernel.run("2")
    api.wait_for(2, *ENDS)
    first, second = (e["session_id"] for e in api.of_type("session_start"))
    assert first != second
    assert [e["session_id"] for e in api.of_type("session_end")] == [first]


def test_a_code_kernel_of_vs_code_names_notebook_and_cell(start_kernel: Start, api: FakeApi) -> None:
    kernel = start_kernel(env={"JPY_SESSION_NAME": ""})
    kernel.run("1", "vscode-notebook-cell:/home/taro/%E6%8E%88%E6%A5%AD/week%201.ipynb#W0sZmlsZQ%3D%3D")
    [end] = api.wait_for(1, *ENDS)
    assert (end["notebook_path"], end["cell_id"]) == ("week 1.ipynb", "W0sZmlsZQ%3D%3D")
    assert "taro" not in json.dumps(api.batches)
