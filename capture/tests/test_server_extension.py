"""The server extension in a real Jupyter Server of a venv that got the wheel by pip, driven as a browser does it."""

from __future__ import annotations

import asyncio
import json
import stat
import uuid
from pathlib import Path

import psutil

from nbpulse_capture.cli import main
from nbpulse_capture.execution import TOLD_PREFIX
from student_jupyter import connect_kernel, open_notebook

from .conftest import CELL_COUNT, FakeApi, Open
from .recorded import Recorded, check_run, measure_s


async def test_every_way_a_run_can_end_is_told_once_with_its_cell(jupyter_of: Open, recorded: Recorded) -> None:
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        expected = [
            (await notebook.run("c1", "print('hello')"), "ok", {}),
            (await notebook.run("c2", "def f(hidden):\n    return hidden / 0\nf(1)"), "error", {"phase": "runtime"}),
            (await notebook.run("c3", "for x in 3 print(x)"), "error", {"phase": "compile"}),
            (await notebook.run("c4", "import time; time.sleep(2)"), "ok", {}),
            (await notebook.run("c5", "import asyncio; await asyncio.sleep(0.5)"), "ok", {}),
            (await notebook.run("c6", "time.sleep(60)", interrupt_after_s=0.5), "interrupted", {}),
        ]
        for ran, status, more in expected:
            data = await check_run(recorded, notebook, ran, status)
            assert data.items() >= more.items()
            assert ran.measure_distance_ms(data["execution_duration_ms"]) < 50
            assert ("error_name" in data) == (status == "error")
        zero = recorded.of_run(notebook.kernel_id, expected[1][0])["end"]["data"]
    assert (zero["error_name"], zero["error_message"]) == ("ZeroDivisionError", "division by zero")
    assert zero["traceback"].splitlines() == ["Cell In[2], line 3, in <module>", "Cell In[2], line 2, in f"]
    assert [e["data"]["execution_count"] for e in recorded.of("cell_execution")] == [1, 2, 3, 4, 5, 6]
    assert recorded.of("cell_execution")[0]["data"]["output_bytes"] > 5
    [begun], [ended] = recorded.of("session_start"), recorded.of("session_end")
    runs = recorded.of("cell_execution_start", "cell_execution")
    assert {e["session_id"] for e in runs} == {begun["session_id"]} == {ended["session_id"]}
    assert [e["data"]["status"] for e in recorded.of("kernel_status")] == ["started", "interrupted", "stopped"]
    assert "hidden" not in json.dumps(recorded.read()), "source was recorded"


async def test_an_interrupt_ends_the_running_cell_and_aborts_the_queued_one(
    jupyter_of: Open, recorded: Recorded
) -> None:
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        running = await notebook.submit("c1", "import time; time.sleep(60)")
        queued = await notebook.submit("c2", "1")
        await recorded.wait_for_start(notebook.kernel_id, running)
        await notebook.ask_kernel("interrupt")
        await notebook.wait_for(running, queued)
        await check_run(recorded, notebook, running, "interrupted")
        data = await check_run(recorded, notebook, queued, "aborted")
        assert set(data) == {"status", "has_error"}
        assert (running.status, queued.status) == ("error", "aborted")


async def test_run_all_of_sixty_cells_with_one_failing_is_one_error_and_the_rest_aborted(
    jupyter_of: Open, recorded: Recorded
) -> None:
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        runs = [await notebook.submit(f"c{n}", "1 / 0" if n == 30 else f"x = {n}") for n in range(CELL_COUNT)]
        await notebook.wait_for(*runs)
        for n, ran in enumerate(runs):
            await check_run(recorded, notebook, ran, "ok" if n < 30 else "error" if n == 30 else "aborted")
        ends = recorded.of("cell_execution")
        assert sorted(e["cell_id"] for e in ends) == sorted(f"c{n}" for n in range(CELL_COUNT))
        assert len(recorded.of("cell_execution_start")) == 31


async def test_a_restart_in_mid_run_ends_the_run_and_the_sitting_goes_on(jupyter_of: Open, recorded: Recorded) -> None:
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        cut = await notebook.submit("c1", "import time; time.sleep(60)")
        await recorded.wait_for_start(notebook.kernel_id, cut)
        await notebook.ask_kernel("restart")
        await check_run(recorded, notebook, cut, "interrupted")
        await check_run(recorded, notebook, await notebook.run("c2", "1"), "ok")
        assert [e["data"] for e in recorded.of("kernel_status")][1:] == [{"status": "restarted", "automatic": False}]
        assert len(recorded.of("session_start")) == 1


async def test_a_kernel_that_kills_itself_is_told_of_within_three_seconds(jupyter_of: Open, recorded: Recorded) -> None:
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        fatal = await notebook.submit("c1", "import os; os._exit(1)")
        queued = await notebook.submit("c2", "1")
        begun = await recorded.wait_for_start(notebook.kernel_id, fatal)
        await check_run(recorded, notebook, fatal, "kernel_died")
        await check_run(recorded, notebook, queued, "aborted")
        end = recorded.of_run(notebook.kernel_id, fatal)["end"]
        assert measure_s(begun, end) < 3.0
        assert "execution_duration_ms" not in end["data"], "nobody saw when it died"
        await recorded.wait_until(lambda: len(recorded.of("kernel_status")) == 3)
        assert [e["data"] for e in recorded.of("kernel_status")][1:] == [
            {"status": "died"},
            {"status": "restarted", "automatic": True},
        ]


async def test_the_end_is_told_when_the_lid_was_closed_in_mid_run(jupyter_of: Open, recorded: Recorded) -> None:
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        ran = await notebook.submit("c1", "import time; time.sleep(2); 1 / 0")
        await recorded.wait_for_start(notebook.kernel_id, ran)
        await notebook.close_socket()
        data = await check_run(recorded, notebook, ran, "error")
        assert 2000 < data["execution_duration_ms"] < 4000


async def test_after_kill_9_of_the_server_the_run_ends_as_unknown_at_the_next_start(
    jupyter_of: Open, recorded: Recorded
) -> None:
    async with jupyter_of() as jupyter:
        session = open_notebook(jupyter.http, "week1.ipynb")
        notebook = await session.__aenter__()
        done = await notebook.run("c1", "1")
        cut = await notebook.submit("c2", "import time; time.sleep(600)")
        await recorded.wait_for_start(notebook.kernel_id, cut)
        await jupyter.kill()
        told = recorded.of_run(notebook.kernel_id, cut)
        assert set(told) == {"start"}, "on disk before the kill, and nothing after it"
    async with jupyter_of():
        data = await check_run(recorded, notebook, cut, "unknown")
        await check_run(recorded, notebook, done, "ok")
        assert "execution_duration_ms" not in data
        told = recorded.of_run(notebook.kernel_id, cut)
        assert 0 <= measure_s(told["start"], told["end"]) < 10, "when the dead server was last alive"
    async with jupyter_of():
        await asyncio.sleep(3)
    assert len(recorded.of("cell_execution")) == 2


async def test_a_renamed_notebook_is_told_of_by_its_new_name_at_once(
    jupyter_of: Open, recorded: Recorded, work: Path
) -> None:
    """The file browser renames the file; the session is told later, or never."""
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        await check_run(recorded, notebook, await notebook.run("c1", "1"), "ok")
        renamed = await jupyter.http.patch("/api/contents/week1.ipynb", json={"path": "第1回.ipynb"})
        renamed.raise_for_status()
        data = await check_run(recorded, notebook, await notebook.run("c2", "1"), "ok", path="第1回.ipynb")
        await jupyter.http.patch(f"/api/sessions/{notebook.session_id}", json={"path": "第1回.ipynb"})
        await check_run(recorded, notebook, await notebook.run("c3", "1"), "ok", path="第1回.ipynb")
        assert data["execution_count"] == 2
        saved = (await jupyter.http.get("/api/contents/第1回.ipynb")).json()
        await jupyter.http.put("/api/contents/第1回.ipynb", json=saved)
        await recorded.wait_until(lambda: recorded.of("notebook_save"))
        assert [e["notebook_path"] for e in recorded.of("notebook_save")] == ["第1回.ipynb"]
        indexes = {e["cell_id"]: e["cell_index"] for e in recorded.of("cell_execution")}
        assert indexes == {"c1": 2, "c2": 3, "c3": 4}, "as in the file of the time"


async def test_ten_thousand_printed_lines_are_two_events_with_their_size(jupyter_of: Open, recorded: Recorded) -> None:
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        flood = "for n in range(10_000): print(n, flush=n % 5 == 0)"
        ran = await notebook.run("c1", flood)
        data = await check_run(recorded, notebook, ran, "ok")
        assert data["output_bytes"] > sum(len(str(n)) + 1 for n in range(10_000))
        after = await notebook.run("c2", "1 + 1")
        assert (await check_run(recorded, notebook, after, "ok"))["output_bytes"] < 300
        assert ran.idle_s - ran.busy_s < 30


async def test_what_the_kernel_adds_is_on_no_message_but_the_last_of_its_run(
    jupyter_of: Open, recorded: Recorded
) -> None:
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        first = await notebook.submit("c1", "import threading; threading.Timer(0.3, print, ['late']).start(); 1")
        second = await notebook.submit("c2", "import time; time.sleep(0.8)")
        await notebook.wait_for(first, second)
        await check_run(recorded, notebook, first, "ok")
        data = await check_run(recorded, notebook, second, "ok")
        assert data["execution_duration_ms"] != round(data["execution_duration_ms"]), (
            "as exact as only the kernel knows"
        )
    shown = [message for ran in (first, second) for message in ran.shown]
    assert sorted(message["msg_type"] for message in shown) == ["execute_result", "stream"]
    assert not [name for message in shown for name in message["metadata"] if name.startswith(TOLD_PREFIX)]


async def test_two_kernels_are_told_apart_and_presence_is_of_one(jupyter_of: Open, recorded: Recorded) -> None:
    async with (
        jupyter_of() as jupyter,
        open_notebook(jupyter.http, "week1.ipynb") as first,
        open_notebook(jupyter.http, "week2.ipynb") as second,
    ):
        runs = [await notebook.submit("c1", "import time; time.sleep(1)") for notebook in (first, second)]
        for notebook, ran in zip((first, second), runs, strict=True):
            await notebook.wait_for(ran)
        await check_run(recorded, first, runs[0], "ok")
        await check_run(recorded, second, runs[1], "ok", path="week2.ipynb")
    assert len({e["session_id"] for e in recorded.of("session_start", "session_end")}) == 2
    assert len(recorded.of("session_end")) == 2


async def test_a_run_before_the_session_is_there_waits_for_its_notebook(jupyter_of: Open, recorded: Recorded) -> None:
    async with jupyter_of() as jupyter:
        kernel = (await jupyter.http.post("/api/kernels", json={"name": "python3"})).json()
        async with connect_kernel(jupyter.http, kernel["id"]) as notebook:
            ran = await notebook.run("c1", "1")
            start = await recorded.wait_for_start(kernel["id"], ran)
            assert start["notebook_path"] == "unknown", "on disk, but held back"
            made_up = {"path": str(uuid.uuid4()), "name": "", "type": "notebook", "kernel": {"id": kernel["id"]}}
            session = (await jupyter.http.post("/api/sessions", json=made_up)).json()
            await jupyter.http.patch(f"/api/sessions/{session['id']}", json={"path": "week1.ipynb"})
            await recorded.wait_until(
                lambda: {e["notebook_path"] for e in recorded.of_run(kernel["id"], ran).values()} == {"week1.ipynb"}, 5
            )
            await check_run(recorded, notebook, ran, "ok")
            paths = {e["notebook_path"] for e in recorded.read()}
            assert paths == {"week1.ipynb"}, "also of the session and the kernel"


async def test_what_the_teacher_has_written_into_a_cell_is_told(jupyter_of: Open, recorded: Recorded) -> None:
    """In both forms in which front ends speak to the server."""
    marks = {"tags": ["exercise"], "nbpulse": {"exercise_id": "ex-1", "cell_id": "original", "notebook_id": "not one"}}
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        for old_form in (False, True):
            async with connect_kernel(jupyter.http, notebook.kernel_id, old_form=old_form) as front_end:
                ran = await front_end.submit("c1", "1", **marks)
                await front_end.wait_for(ran)
                data = await check_run(recorded, notebook, ran, "ok")
                assert (data["tags"], data["original_cell_id"]) == (["exercise"], "original")
                told = recorded.of_run(notebook.kernel_id, ran)
                assert {e["exercise_id"] for e in told.values()} == {"ex-1"}
                graded = await front_end.submit("c2", "1", nbgrader={"grade_id": "g-1"})
                await front_end.wait_for(graded)
                await check_run(recorded, notebook, graded, "ok")
                assert recorded.of_run(notebook.kernel_id, graded)["end"]["exercise_id"] == "g-1"


async def test_what_is_no_students_run_is_not_told(jupyter_of: Open, recorded: Recorded) -> None:
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        console = {"path": "console-1", "name": "", "type": "console", "kernel": {"name": "python3"}}
        other = (await jupyter.http.post("/api/sessions", json=console)).json()["kernel"]["id"]
        async with connect_kernel(jupyter.http, other) as in_console:
            ran = await in_console.submit("x", "1")
            await in_console.wait_for(ran)
        for code, silent in (("x = 1", True), ("   ", False), ("%nbpulse status", False)):
            ran = await notebook.submit("c1", code, silent=silent)
            await notebook.wait_for(ran)
        nested = "import nbformat, nbclient; nbclient.execute(nbformat.read('week2.ipynb', 4)); 'executed'"
        shown = await notebook.run("c2", nested)
        assert shown.status == "ok", shown.shown
        await check_run(recorded, notebook, shown, "ok")
        assert len(recorded.of("cell_execution", "cell_execution_start")) == 2
        assert {e["notebook_path"] for e in recorded.read()} == {"week1.ipynb"}


async def test_joining_takes_effect_without_a_restart_and_nothing_is_written_before(
    jupyter_of: Open, recorded: Recorded, student: Path, api: FakeApi
) -> None:
    async with jupyter_of(env={}) as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        await notebook.run("c1", "1")
        await asyncio.sleep(1.5)
        assert not (student / "data").exists()
        assert await asyncio.to_thread(main, ["join", api.url, "ABCD", "--name", "花子"]) == 0
        await asyncio.sleep(1.5)  # the server looks once a second
        ran = await notebook.run("c2", "1")
        data = await check_run(recorded, notebook, ran, "ok")
        assert "output_bytes" in data
        await recorded.wait_until(lambda: len(api.of_type("cell_execution")) == 1)
        await recorded.wait_until(lambda: api.presence)
        assert api.presence[0]["data"]["state"] in {"idle", "active"}, "by whether it went before the first run"
        assert api.presence[0]["notebook_path"] == "week1.ipynb"
        shown = await notebook.run("c3", "%nbpulse help where is df?")
        await recorded.wait_until(lambda: api.of_type("help_request"))
        [request] = api.of_type("help_request")
        assert (request["data"], request["cell_id"]) == ({"message": "where is df?"}, "c2"), shown.shown
        assert await asyncio.to_thread(main, ["leave"]) == 0
        await notebook.run("c4", "1")
        assert await asyncio.to_thread(main, ["join", api.url, "ABCD", "--name", "花子"]) == 0
        await notebook.run("c5", "1")
        await recorded.wait_until(lambda: len(api.of_type("cell_execution")) == 2)
    assert [e["cell_id"] for e in api.of_type("cell_execution")] == ["c2", "c5"]
    assert [e["cell_id"] for e in api.of_type("cell_execution_start")] == ["c2", "c5"]
    assert len({e["session_id"] for e in api.of_type("session_start")}) == 2, "joining again is a sitting of its own"


async def test_files_are_their_owners_only_and_nothing_stays_behind(
    jupyter_of: Open, recorded: Recorded, student: Path
) -> None:
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        await check_run(recorded, notebook, await notebook.run("c1", "1"), "ok")
        files = [path for path in (student / "data").rglob("*") if path.is_file()]
        assert {path.name for path in files} >= {"outbox.sqlite3", "alive", notebook.kernel_id}
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        assert {stat.S_IMODE(path.stat().st_mode) for path in files[0].parents[0:1]} == {0o700}
        pids = [jupyter.process.pid, *(p.pid for p in psutil.Process(jupyter.process.pid).children(recursive=True))]
    assert list((student / "data" / "servers").iterdir()) == []
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


async def test_a_kernel_whose_server_has_stopped_observing_tells_of_itself(
    jupyter_of: Open, recorded: Recorded, student: Path
) -> None:
    """Its claim is gone, as when observing has failed; what both tell is one event."""
    async with jupyter_of() as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        await check_run(recorded, notebook, await notebook.run("c1", "1"), "ok")
        await notebook.run("c2", deafen_server(student))
        alone = await notebook.run("c3", "1 / 0")
        data = await check_run(recorded, notebook, alone, "error")
        assert data["error_name"] == "ZeroDivisionError"
    assert len(recorded.of("session_start")) == 2, "a session of the server's and one of the kernel's"


def deafen_server(student: Path) -> str:
    """Code that takes the claims away and keeps the server from renewing them."""
    place = next((student / "data" / "servers").iterdir())
    return f"import shutil; shutil.rmtree({str(place)!r}); open({str(place)!r}, 'w').close()"
