from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nbpulse_capture.notebook import NotebookShelf, locate_notebook


def write(path: Path, ids: list[str]) -> None:
    cells = [{"id": i, "cell_type": "code", "source": ""} for i in ids]
    path.write_text(json.dumps({"cells": cells, "metadata": {}}), encoding="utf-8")


def test_a_cells_place_follows_the_saved_file(tmp_path: Path) -> None:
    path, shelf = tmp_path / "a.ipynb", NotebookShelf()
    write(path, ["x", "y"])
    assert shelf.read(str(path)).cell_index == {"x": 0, "y": 1}
    write(path, ["new", "x", "y"])
    os.utime(path, ns=(1, 1))
    assert shelf.read(str(path)).cell_index == {"new": 0, "x": 1, "y": 2}


@pytest.mark.parametrize(
    "content", [b"", b"not json", b"[]", b'{"cells": 3}', b'{"cells": [1, {"id": 2}]}', b"[" * 100_000]
)
def test_what_is_no_notebook_is_unknown_and_no_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.ipynb"
    path.write_bytes(content)
    assert NotebookShelf().read(str(path)).cell_index == {}
    assert NotebookShelf().read(str(tmp_path / "missing.ipynb")).cell_index == {}


def test_a_copied_cell_counts_where_it_stands_first(tmp_path: Path) -> None:
    write(tmp_path / "a.ipynb", ["x", "y", "x"])
    assert NotebookShelf().read(str(tmp_path / "a.ipynb")).cell_index == {"x": 0, "y": 1}


def test_a_foreign_notebook_id_is_not_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text('{"cells": [], "metadata": {"nbpulse": {"notebook_id": "week 1"}}}', encoding="utf-8")
    assert NotebookShelf().read(str(path)).notebook_id is None


def test_a_file_without_our_id_tells_its_cells_and_not_what_a_pasted_cell_claims(tmp_path: Path) -> None:
    claim = "5d0f7b8e-6d2c-4c59-9a35-3f4f2d8a1b10"
    event = {"cell_id": "x", "notebook_id": claim, "data": {"status": "ok"}}
    path, missing = tmp_path / "a.ipynb", str(tmp_path / "missing.ipynb")
    write(path, ["x", "y", "x"])
    placed = NotebookShelf().place(event, str(path))
    assert (placed["notebook_id"], len(placed["cell_prints"])) == (None, 2 * 6)
    assert placed["data"] == event["data"]
    assert NotebookShelf().place(event, missing)["notebook_id"] == claim, "where the file is unknown the claim is all"
    path.write_text(json.dumps({"cells": [{"id": "x"}], "metadata": {"nbpulse": {"notebook_id": claim}}}))
    placed = NotebookShelf().place(event | {"notebook_id": None}, str(path))
    assert placed["notebook_id"] == claim
    assert "cell_prints" not in placed


def test_the_path_is_relative_to_the_servers_root_and_otherwise_only_a_name(tmp_path: Path) -> None:
    session = str(tmp_path / "home" / "taro" / "第1回" / "week1.ipynb")
    connection_file = str(tmp_path / "kernel-1.json")
    assert locate_notebook(session, connection_file, "77").path == "week1.ipynb"
    described = {"root_dir": str(tmp_path / "home" / "taro")}
    (tmp_path / "jpserver-77.json").write_text(json.dumps(described))
    place = locate_notebook(session, connection_file, "77")
    assert (place.path, place.file) == ("第1回/week1.ipynb", session)
    (tmp_path / "jpserver-77.json").write_text("{")
    assert locate_notebook(session, connection_file, "77").path == "week1.ipynb"


def test_a_session_named_by_a_relative_path_is_found_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "jpserver-77.json").write_text(json.dumps({"root_dir": str(tmp_path)}))
    place = locate_notebook("sub/a.ipynb", str(tmp_path / "kernel-1.json"), "77")
    assert (place.path, place.file) == ("sub/a.ipynb", str(tmp_path / "sub" / "a.ipynb"))
