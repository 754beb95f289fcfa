"""Copies are known by their cells' ids, whatever happens to the file; what is not clear is nobody's."""

from __future__ import annotations

import copy
import random
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpulse.classroom import make_original, read_prints, recognise
from nbpulse.classroom.originals import print_cell
from nbpulse.errors import InvalidInput
from nbpulse.handouts import list_paths, read_notebook
from nbpulse.notebook import mark_notebook, name_cells, read_notebook_id
from nbpulse_capture.notebook import print_cells

CELL_IDS = st.lists(st.uuids().map(lambda one: one.hex[:8]), min_size=4, max_size=60, unique=True)
HANDOUT = {"notebook_id": "00000000-0000-0000-0000-000000000001", "course_id": "c", "join_code": "ABCDEF"}


def tell(cell_ids: list[str]) -> frozenset[str]:
    """What a client says of a file with these cells, as the server reads it."""
    return read_prints(print_cells(cell_ids))


def make_notebook(*cells: dict[str, Any], minor: int = 5) -> dict[str, Any]:
    return {"nbformat": 4, "nbformat_minor": minor, "metadata": {}, "cells": [dict(cell) for cell in cells]}


def make_cell(source: str = "1", cell_type: str = "code", **fields: Any) -> dict[str, Any]:
    return {"cell_type": cell_type, "source": source, "metadata": {}} | fields


# --- recognising ------------------------------------------------------------------------------------------------------


@given(ours=CELL_IDS, others=CELL_IDS, added=CELL_IDS, seed=st.integers())
def test_a_copy_is_known_after_cells_were_moved_copied_added_and_removed(
    ours: list[str], others: list[str], added: list[str], seed: int
) -> None:
    chance = random.Random(seed)
    original, other = make_original(uuid4(), "week1.ipynb", ours), make_original(uuid4(), "week2.ipynb", others)
    kept = chance.sample(ours, max(3, len(ours) * 2 // 3))
    file = kept + chance.sample(kept, 2) + chance.sample(added, min(len(added), len(kept)))
    chance.shuffle(file)
    assert recognise([other, original], tell(file)) is original


@given(ours=CELL_IDS, strangers=CELL_IDS)
def test_a_file_of_other_cells_is_no_copy_even_with_two_pasted_ones(ours: list[str], strangers: list[str]) -> None:
    original = make_original(uuid4(), "week1.ipynb", ours)
    assert recognise([original], tell(strangers)) is None
    assert recognise([original], tell([*strangers, *ours[:2]])) is None


def test_ids_that_stand_in_two_notebooks_decide_nothing() -> None:
    made_up = [f"cell-{n}" for n in range(10)]
    two = [make_original(uuid4(), f"week{n}.ipynb", made_up) for n in (1, 2)]
    assert recognise(two, tell(made_up)) is None
    # A few that are its own's more than twice as many decide it.
    longer = make_original(uuid4(), "week3.ipynb", [*made_up, *(f"x{n}" for n in range(11))])
    assert recognise([*two, longer], tell(list(map(str, longer.cell_ids)))) is longer


def test_a_notebook_of_one_cell_is_known_by_it_and_no_cells_at_all_are_nobodys() -> None:
    original = make_original(uuid4(), "a.ipynb", ["f00dcafe"])
    assert recognise([original], tell(["f00dcafe"])) is original
    assert recognise([original], tell([])) is None
    assert recognise([], tell(["f00dcafe"])) is None


@given(st.one_of(st.none(), st.text(), st.text("0123456789abcdef", max_size=2_000)))
def test_whatever_a_client_calls_prints_is_read_within_bounds(told: str | None) -> None:
    prints = read_prints(told)
    assert len(prints) <= 64
    assert all(len(one) == 6 for one in prints)


@given(st.lists(st.text(max_size=64), max_size=200))
def test_client_and_server_print_cells_alike(cell_ids: list[str]) -> None:
    assert tell(cell_ids) == set(sorted({print_cell(one) for one in cell_ids})[:64])


# --- preparing --------------------------------------------------------------------------------------------------------


def prepare(content: dict[str, Any]) -> list[Any]:
    cells = list(name_cells(content, UUID(HANDOUT["notebook_id"])))
    mark_notebook(content, HANDOUT)
    return cells


def test_a_notebook_without_ids_gets_them_and_a_second_preparation_changes_nothing() -> None:
    content = make_notebook(make_cell("# 第1回", "markdown"), make_cell("a = 1"), make_cell("a = 1"), minor=4)
    pristine = copy.deepcopy(content)
    cells = prepare(content)
    assert content["nbformat_minor"] == 5
    assert len({cell["id"] for cell in content["cells"]}) == 3
    assert [cell.title for cell in cells] == ["第1回"] * 3
    assert read_notebook_id(content) == UUID(HANDOUT["notebook_id"])
    assert [(cell["source"], cell["cell_type"]) for cell in content["cells"]] == [
        (cell["source"], cell["cell_type"]) for cell in pristine["cells"]
    ]
    again = copy.deepcopy(content)
    assert prepare(again) == cells
    assert again == content
    assert prepare(pristine) == cells, "the file without ids, prepared once more, is the same notebook"


@pytest.mark.parametrize("copy_first", [False, True])
def test_a_cell_copied_with_its_metadata_is_another_cell_of_the_original(copy_first: bool) -> None:
    content = make_notebook(make_cell(id="aaa"), make_cell(id="bbb"))
    prepare(content)
    duplicate = copy.deepcopy(content["cells"][0]) | {"id": "ccc"}
    content["cells"].insert(0 if copy_first else 2, duplicate)
    cells = prepare(content)
    assert sorted(cell.cell_id for cell in cells) == ["aaa", "bbb", "ccc"]
    content["cells"].append(copy.deepcopy(content["cells"][0]))  # with its nbformat id too, as some tools leave it
    assert len({cell.cell_id for cell in prepare(content)}) == 4


def test_cells_keep_what_they_were_when_a_tool_gives_them_new_ids() -> None:
    content = make_notebook(make_cell(id="aaa"), make_cell(id="bbb"))
    prepare(content)
    for number, cell in enumerate(content["cells"]):
        cell["id"] = f"new{number}"
    assert [cell.cell_id for cell in prepare(content)] == ["aaa", "bbb"]


def test_exercises_are_nbgraders_where_it_asks_for_something_else_the_teachers_tags() -> None:
    asked = {"grade": True, "solution": True, "grade_id": "problem1", "schema_version": 3}
    told = {"grade": False, "solution": False, "locked": True, "grade_id": "text1", "schema_version": 3}
    content = make_notebook(
        make_cell(id="a", metadata={"nbgrader": asked}),
        make_cell(id="b", metadata={"nbgrader": told}),
        make_cell(id="c", metadata={"tags": ["exercise"]}),
        make_cell(id="d", metadata={"nbpulse": {"exercise_id": "q-4"}}),
        make_cell(id="e"),
    )
    assert [cell.exercise_id for cell in prepare(content)] == ["problem1", None, "exercise-c", "q-4", None]
    assert content["cells"][0]["metadata"]["nbgrader"] == asked
    assert "exercise_id" not in content["cells"][0]["metadata"]["nbpulse"], "nbgrader's is read by the client"
    assert [cell.exercise_id for cell in prepare(content)] == ["problem1", None, "exercise-c", "q-4", None]


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"nbformat": 3, "cells": []}', b'{"nbformat": 4, "cells": [1]}'])
def test_what_is_no_notebook_is_refused(tmp_path: Any, raw: bytes) -> None:
    file = tmp_path / "a.ipynb"
    file.write_bytes(raw)
    for path in (file, tmp_path / "missing.ipynb"):
        with pytest.raises(InvalidInput, match="NB-1350"):
            read_notebook(path)


def test_a_files_names_are_in_one_spelling(tmp_path: Any) -> None:
    decomposed = tmp_path / "か\u3099くせい.ipynb"  # as macOS writes it
    assert list_paths(decomposed)[0] == "がくせい.ipynb"
    assert list_paths(tmp_path / "x" / "a.ipynb")[1] == "x/a.ipynb"
