"""A prepared notebook and its copies: the file, the course, and which notebook real events end in."""

from __future__ import annotations

import asyncio
import copy
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import nbformat
import pytest

from nbpulse import handouts
from nbpulse.errors import InvalidInput, NotFound
from nbpulse.records import notebooks
from nbpulse.resources import Resources
from nbpulse_capture.notebook import NotebookShelf
from stores import connect, create_database, make_class, make_event, make_settings, open_stores


@pytest.fixture
async def database_url(embedded_postgres: str) -> str:
    return await create_database(embedded_postgres)


@pytest.fixture
async def worker(database_url: str, embedded_valkey: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Resources]:
    monkeypatch.setattr(notebooks, "ORIGINALS_LIFE_S", 0.0)
    async with open_stores(database_url, embedded_valkey) as stores:
        yield stores


@pytest.fixture
def prepare(database_url: str, embedded_valkey: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`nbpulse prepare FILE --json`, in a thread as it has an event loop of its own."""

    async def run(file: Path, course: str) -> dict[str, Any]:
        settings = make_settings(database_url, embedded_valkey)
        options = {"course": course, "url": "http://10.0.0.5:8642", "as_json": True}
        await asyncio.to_thread(handouts.prepare_notebook, settings, file, **options)
        said: dict[str, Any] = json.loads(capsys.readouterr().out)
        return said

    return run


def write_notebook(file: Path, ids: list[str] | None = None) -> Path:
    """Six cells as Jupyter writes them; nbformat 4.4 without `ids`."""
    cells = [nbformat.v4.new_markdown_cell("# 平均と分散"), *(nbformat.v4.new_code_cell(f"x = {n}") for n in range(5))]
    cells[3]["metadata"]["tags"] = ["exercise"]
    for number, cell in enumerate(cells):
        if ids:
            cell["id"] = ids[number]
        else:
            del cell["id"]
    notebook = {"nbformat": 4, "nbformat_minor": 5 if ids else 4, "metadata": {}, "cells": cells}
    file.write_text(json.dumps(notebook, ensure_ascii=False, indent=1), encoding="utf-8")
    return file


def make_ids() -> list[str]:
    return [uuid4().hex[:8] for _ in range(6)]


def place(file: Path, user_id: UUID, course_id: UUID, cell: int = 1, **changes: Any) -> Any:
    """A run of a student's file, as the capture sends it: placed in the file by its own code."""
    content = json.loads(file.read_bytes())
    metadata = content["cells"][cell]["metadata"].get("nbpulse", {})
    data = {"status": "ok", "has_error": False}
    data |= {"original_cell_id": metadata["cell_id"]} if "cell_id" in metadata else {}
    cell_id = content["cells"][cell].get("id", "random")
    event = {"notebook_path": file.name, "cell_id": cell_id, "notebook_id": metadata.get("notebook_id"), "data": data}
    placed = NotebookShelf().place(event | changes, str(file))
    placed["notebook_id"] = UUID(placed["notebook_id"]) if placed["notebook_id"] else None
    return make_event(user_id, course_id, **{name: value for name, value in placed.items() if name != "cell_type"})


async def find_notebook(database_url: str, event: Any) -> tuple[str, str]:
    """The path and cell that an event was stored under."""
    async with connect(database_url) as connection:
        row = await connection.fetchrow(
            "SELECT n.path, e.cell_id FROM events e JOIN notebooks n ON n.id = e.notebook_id WHERE e.event_id = $1",
            event.event_id,
        )
    return row["path"], row["cell_id"]


async def test_preparing_writes_ids_and_registers_and_again_changes_nothing(
    prepare: Callable[..., Any], database_url: str, tmp_path: Path
) -> None:
    course_id, _ = await make_class(database_url, 1)
    file = write_notebook(tmp_path / "第1回.ipynb")
    said = await prepare(file, course_id.hex)
    assert (said["changed"], said["cells"], said["sections"], said["exercises"]) == (True, 6, 1, 1)
    written = nbformat.read(file, as_version=nbformat.NO_CONVERT)
    nbformat.validate(written)
    told = written["metadata"]["nbpulse"]
    assert (told["url"], told["course_id"]) == ("http://10.0.0.5:8642", str(course_id))
    bytes_before = file.read_bytes()
    async with connect(database_url) as connection:
        queries = ("SELECT * FROM notebooks", "SELECT * FROM notebook_cells ORDER BY cell_index")
        before = [await connection.fetch(query) for query in queries]
        assert (await prepare(file, course_id.hex))["changed"] is False
        assert [await connection.fetch(query) for query in queries] == before
    assert file.read_bytes() == bytes_before
    assert [(row["title"], row["exercise_id"] is not None, row["cell_type"]) for row in before[1]] == [
        ("平均と分散", n == 3, "markdown" if n == 0 else "code") for n in range(6)
    ]
    with pytest.raises(NotFound, match="NB-1352"):
        await prepare(file, "no-such-course")


async def test_copies_of_a_prepared_notebook_are_one_notebook_whatever_they_are_called(
    prepare: Callable[..., Any], worker: Resources, database_url: str, tmp_path: Path
) -> None:
    course_id, [student] = await make_class(database_url, 1)
    original = write_notebook(tmp_path / "がくせい.ipynb")
    await prepare(original, course_id.hex)
    content = json.loads(original.read_bytes())
    events = []
    for name in ("がくせい.ipynb", "か\u3099くせい.ipynb", "がくせい (1).ipynb", "copy/Untitled.ipynb"):
        file = tmp_path / "student" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")
        events.append(place(file, student, course_id))
    await worker.ledger.record_events(events)
    cell_id = content["cells"][1]["id"]
    assert [await find_notebook(database_url, event) for event in events] == [("がくせい.ipynb", cell_id)] * 4
    # A copied cell, and one to which a tool gave a new id, are the original's cell.
    content["cells"].append(copy.deepcopy(content["cells"][1]) | {"id": "of-the-copy"})
    file.write_text(json.dumps(content), encoding="utf-8")
    run = place(file, student, course_id, cell=6)
    await worker.ledger.record_events([run])
    assert await find_notebook(database_url, run) == ("がくせい.ipynb", cell_id)


async def test_unprepared_copies_are_known_by_their_cells_and_never_by_their_name(
    prepare: Callable[..., Any], worker: Resources, database_url: str, tmp_path: Path
) -> None:
    course_id, [student] = await make_class(database_url, 1)
    ids = make_ids()
    handed_out = write_notebook(tmp_path / "week1 (1).ipynb", ids)  # before the teacher prepared it
    original = write_notebook(tmp_path / "week1.ipynb", ids)
    await prepare(original, course_id.hex)
    (tmp_path / "other").mkdir()
    strangers = write_notebook(tmp_path / "other" / "week1.ipynb", make_ids())
    no_ids = write_notebook(tmp_path / "other" / "week2.ipynb")
    events = [place(file, student, course_id) for file in (handed_out, strangers, no_ids)]
    await worker.ledger.record_events(events)
    found = [(await find_notebook(database_url, event))[0] for event in events]
    assert found == ["week1.ipynb", "unknown/week1.ipynb", "week2.ipynb"]


async def test_a_prepared_cell_in_a_scratch_file_does_not_make_it_the_course_notebook(
    prepare: Callable[..., Any], worker: Resources, database_url: str, tmp_path: Path
) -> None:
    course_id, [student] = await make_class(database_url, 1)
    original = write_notebook(tmp_path / "week1.ipynb", make_ids())
    await prepare(original, course_id.hex)
    scratch = write_notebook(tmp_path / "scratch.ipynb", make_ids())
    content = json.loads(scratch.read_bytes())
    content["cells"].append(json.loads(original.read_bytes())["cells"][2] | {"id": "pasted"})
    scratch.write_text(json.dumps(content), encoding="utf-8")
    run = place(scratch, student, course_id, cell=6)
    await worker.ledger.record_events([run])
    assert await find_notebook(database_url, run) == ("scratch.ipynb", "pasted")


async def test_a_corrected_version_handed_out_in_mid_class_is_the_same_notebook(
    prepare: Callable[..., Any], worker: Resources, database_url: str, tmp_path: Path
) -> None:
    course_id, [student] = await make_class(database_url, 1)
    file = write_notebook(tmp_path / "week1.ipynb", make_ids())
    await prepare(file, course_id.hex)
    first = place(file, student, course_id)
    content = json.loads(file.read_bytes())
    dropped = content["cells"].pop(4)
    content["cells"][2]["source"] = "x = 'corrected'"
    content["cells"].insert(1, nbformat.v4.new_code_cell("new", id="brand-new"))
    corrected = tmp_path / "week1-corrected.ipynb"
    corrected.write_text(json.dumps(content), encoding="utf-8")
    said = await prepare(corrected, course_id.hex)
    second = place(corrected, student, course_id)
    await worker.ledger.record_events([first, second])
    assert [(await find_notebook(database_url, one))[0] for one in (first, second)] == ["week1.ipynb"] * 2
    assert (await find_notebook(database_url, second))[1] == "brand-new"
    async with connect(database_url) as connection:
        registered = await connection.fetch(
            "SELECT cell_id FROM notebook_cells WHERE notebook_id = $1 AND is_registered ORDER BY cell_index",
            UUID(said["notebook_id"]),
        )
    assert [row["cell_id"] for row in registered] == [cell["id"] for cell in content["cells"]]
    assert dropped["id"] not in {row["cell_id"] for row in registered}


async def test_what_was_learned_before_the_preparation_stays_with_the_notebook(
    prepare: Callable[..., Any], worker: Resources, database_url: str, tmp_path: Path
) -> None:
    course_id, [student] = await make_class(database_url, 1)
    file = write_notebook(tmp_path / "week1.ipynb", make_ids())
    before = place(file, student, course_id)
    await worker.ledger.record_events([before])
    said = await prepare(file, course_id.hex)
    async with connect(database_url) as connection:
        learned = await connection.fetchval("SELECT notebook_id FROM events WHERE event_id = $1", before.event_id)
    assert said["notebook_id"] == str(learned)


async def test_two_files_of_one_name_are_two_notebooks_and_one_of_another_course_gets_a_new_id(
    prepare: Callable[..., Any], worker: Resources, database_url: str, tmp_path: Path
) -> None:
    course_id, [student] = await make_class(database_url, 1)
    other_id, _ = await make_class(database_url, 1)
    ids = []
    for week in ("week1", "week2"):
        (tmp_path / week).mkdir()
        file = write_notebook(tmp_path / week / "notebook.ipynb", make_ids())
        ids.append((await prepare(file, course_id.hex))["notebook_id"])
    assert len(set(ids)) == 2
    run = place(file, student, course_id)
    await worker.ledger.record_events([run])
    assert (await find_notebook(database_url, run))[0] == "week2/notebook.ipynb"
    said = await prepare(file, other_id.hex)  # next year's course
    assert said["notebook_id"] not in ids
    assert json.loads(file.read_bytes())["metadata"]["nbpulse"]["course_id"] == str(other_id)


async def test_a_file_that_cannot_be_written_is_said_and_left_whole(
    prepare: Callable[..., Any], database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course_id, _ = await make_class(database_url, 1)
    file = write_notebook(tmp_path / "week1.ipynb", make_ids())
    before = file.read_bytes()

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InvalidInput, match="NB-1351"):
        await prepare(file, course_id.hex)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["week1.ipynb"]  # noqa: PTH208 - no draft stays behind
