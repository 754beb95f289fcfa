"""Kernels that no Jupyter server watches (VS Code, a bare kernel with one line), and runs that are no student's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from nbpulse_capture.notebook import locate_vscode
from servers import give_up

from .conftest import FakeApi, wait_until
from .test_kernel import ENDS, Kernel, get_data

NOTEBOOK_ID = "5d0f7b8e-6d2c-4c59-9a35-3f4f2d8a1b10"


@pytest.fixture
def folder(student: Path) -> Path:
    """Where a student keeps a prepared notebook, a copy of it under another name, and an unprepared one."""
    place = student / "授業"
    place.mkdir()
    is_loaded = "assert get_ipython().find_line_magic('nbpulse')"  # else nothing would be told of anybody
    cells = [nbformat.v4.new_code_cell(code, id=f"c{n}") for n, code in enumerate(("x = 1", is_loaded, "x = 2"))]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), place / "own.ipynb")
    prepared = nbformat.v4.new_notebook(cells=cells, metadata={"nbpulse": {"notebook_id": NOTEBOOK_ID}})
    for name in ("week1.ipynb", "week1 (1).ipynb"):
        nbformat.write(prepared, place / name)
    return place


@pytest.fixture
def kernel(installed_python: Path, folder: Path, api: FakeApi) -> Iterator[Kernel]:
    """As VS Code starts one: in the notebook's folder, by nobody's Jupyter server, without a session's name."""
    joined = {"NBPULSE_CAPTURE_URL": api.url, "NBPULSE_CAPTURE_TOKEN": "t", "JPY_SESSION_NAME": ""}
    started = Kernel(installed_python, folder, joined)
    yield started
    started.stop(now=True)


def name_cell(file: Path, handle: str) -> str:
    """A cell as VS Code names it: the notebook's address, and a handle that means something to VS Code alone."""
    return f"vscode-notebook-cell:{file.as_uri().removeprefix('file://')}#{handle}"


def test_a_kernel_of_vs_code_tells_every_run_once_with_the_right_notebook(
    kernel: Kernel, folder: Path, api: FakeApi
) -> None:
    handles = ["W0sZmlsZQ%3D%3D", "W1sZmlsZQ%3D%3D", "X10sZmlsZQ%3D%3D"]
    for number, handle in enumerate(handles):
        kernel.run(f"x = {number}" if number != 1 else "1 / 0", name_cell(folder / "week1 (1).ipynb", handle))
    ends = api.wait_for(3, *ENDS)
    assert [(one["cell_id"], get_data(one)["status"]) for one in ends] == list(
        zip(handles, ("ok", "error", "ok"), strict=True)
    )
    assert {one["notebook_id"] for one in api.stored.values() if one["event_type"] != "kernel_status"} == {NOTEBOOK_ID}
    assert {one["notebook_path"] for one in ends} == {"week1 (1).ipynb"}
    assert len({one["session_id"] for one in ends}) == 1
    assert str(folder) not in json.dumps(api.batches), "an absolute path tells the student's account"


def test_an_unprepared_notebook_of_vs_code_tells_its_cells_prints(kernel: Kernel, folder: Path, api: FakeApi) -> None:
    kernel.run("x = 1", name_cell(folder / "own.ipynb", "W0sZmlsZQ%3D%3D"))
    [end] = api.wait_for(1, *ENDS)
    assert end["notebook_id"] is None
    assert len(end["cell_prints"]) == 3 * 6


@pytest.mark.parametrize(
    ("cell_id", "path", "file"),
    [
        ("vscode-notebook-cell:/home/taro/a%20b.ipynb#W0s", "a b.ipynb", "/home/taro/a b.ipynb"),
        ("vscode-notebook-cell://ssh-remote%2Bhost/home/taro/a.ipynb#W0s", "a.ipynb", "/home/taro/a.ipynb"),
        ("vscode-notebook-cell:/c%3A/Users/%E8%8A%B1%E5%AD%90/a.ipynb#W0s", "a.ipynb", "c:/Users/花子/a.ipynb"),
        ("vscode-notebook-cell:Untitled-1.ipynb?jupyter-notebook#W0s", "Untitled-1.ipynb", None),
    ],
)
def test_vs_codes_address_names_a_file(cell_id: str, path: str, file: str | None) -> None:
    place = locate_vscode(cell_id)
    assert place is not None
    assert (place.path, place.file) == (path, file)


@pytest.mark.parametrize("cell_id", ["c0", "", "vscode-notebook-cell:", "vscode-notebook-cell://[x/a.ipynb#W0s"])
def test_an_address_that_names_no_file_is_nobodys(cell_id: str) -> None:
    assert locate_vscode(cell_id) is None


def test_a_bare_kernel_with_one_line_tells_its_runs_as_of_an_unknown_notebook(
    installed_python: Path, folder: Path, api: FakeApi
) -> None:
    """Colab's case: no configuration of ours is read, no session's name, the cells' ids are Colab's own."""
    joined = {"NBPULSE_CAPTURE_URL": api.url, "NBPULSE_CAPTURE_TOKEN": "t", "JPY_SESSION_NAME": ""}
    config = installed_python.parents[1] / "etc" / "ipython" / "ipython_kernel_config.json"
    hidden = config.rename(config.with_suffix(".hidden"))
    try:
        kernel = Kernel(installed_python, folder, joined)
        try:
            kernel.run("x = 1", "before")
            kernel.run("%load_ext nbpulse_capture", "colab-1")
            kernel.run("x = 2", "colab-2")
            kernel.run("%load_ext nbpulse_capture\n1 / 0", "colab-3")
            ends = api.wait_for(2, *ENDS)
        finally:
            kernel.stop()
    finally:
        hidden.rename(config)
    assert [(one["cell_id"], get_data(one)["status"]) for one in ends] == [("colab-2", "ok"), ("colab-3", "error")]
    assert {one["notebook_path"] for one in ends} == {"unknown"}
    assert len(api.of_type("cell_execution_start")) == 2


# --- no student's -----------------------------------------------------------------------------------------------------


def run_tool(python: Path, folder: Path, api: FakeApi, *arguments: str, script: str = "") -> None:
    """A tool that runs a notebook, in the student's own Python and account, where the student has joined."""
    env = {name: value for name, value in os.environ.items() if name != "JPY_SESSION_NAME"}
    env |= {"NBPULSE_CAPTURE_URL": api.url, "NBPULSE_CAPTURE_TOKEN": "t"}
    command = [str(python), "-c", script] if script else [str(python), "-m", *arguments]
    done = subprocess.run(command, cwd=folder, env=env, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    executed = nbformat.read(folder / "done.ipynb", as_version=4)
    assert [cell["execution_count"] for cell in executed["cells"]] == [1, 2, 3], "it has really run"


def test_a_run_by_nbclient_is_no_students(installed_python: Path, folder: Path, api: FakeApi) -> None:
    script = (
        "import nbformat, nbclient; book = nbformat.read('week1.ipynb', 4);"
        " nbclient.NotebookClient(book, kernel_name='python3').execute(); nbformat.write(book, 'done.ipynb')"
    )
    run_tool(installed_python, folder, api, script=script)
    assert api.request_count == 0


def test_a_run_by_nbconvert_is_no_students(installed_python: Path, folder: Path, api: FakeApi) -> None:
    arguments = ("nbconvert", "--to", "notebook", "--execute", "week1.ipynb", "--output", "done.ipynb")
    run_tool(installed_python, folder, api, *arguments)
    assert api.request_count == 0


def test_a_run_by_papermill_is_no_students(installed_python: Path, folder: Path, api: FakeApi) -> None:
    # Into the student's venv, which is thrown away; what Jupyter brings is there already.
    pip = [sys.executable, "-m", "pip", "--python", str(installed_python), "install", "-q", "papermill==2.7.0"]
    done = subprocess.run(pip, check=False, capture_output=True, text=True, timeout=150)
    if done.returncode != 0:
        give_up(f"papermill cannot be installed: {done.stderr[-300:]}")
    run_tool(installed_python, folder, api, "papermill", "week1.ipynb", "done.ipynb", "-k", "python3")
    assert api.request_count == 0


def test_a_student_who_runs_a_tool_in_a_cell_is_counted_for_that_cell_alone(
    kernel: Kernel, folder: Path, api: FakeApi
) -> None:
    code = (
        "import nbformat, nbclient; book = nbformat.read('week1.ipynb', 4)\n"
        "nbclient.NotebookClient(book, kernel_name='python3').execute(); 'done'"
    )
    kernel.run(code, name_cell(folder / "own.ipynb", "W0sZmlsZQ%3D%3D"))
    api.wait_for(1, *ENDS)
    kernel.run("1", name_cell(folder / "own.ipynb", "W1sZmlsZQ%3D%3D"))
    wait_until(lambda: len(api.of_type(*ENDS)) == 2)
    assert len(api.of_type("session_start")) == 1
