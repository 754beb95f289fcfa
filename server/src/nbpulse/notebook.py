"""A notebook file and what makes it a course's original, so that every copy of it is known again. Pure.

What is written into the file: the notebook's id, the class's address and join code (a student then types only a
name), and in each cell the id it has in the original and its exercise. Promises: sources and outputs are not touched;
doing it again changes nothing; nbgrader's ids stay, and are the exercises' ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid5

from nbpulse.errors import InvalidInput

EXERCISE_TAG: Final = "exercise"
SOURCE_CHARS_MAX: Final = 20_000
"""Of a cell's code, kept to show what students made of it."""
_LABEL_CHARS_MAX: Final = 200
_CELL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TYPES: Final = ("code", "markdown", "raw")
_NAME = re.compile(r"[^\x00]{1,256}")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$", re.MULTILINE)


class OriginalCell(NamedTuple):
    """One cell of an original; `title` is its section's heading, `source` its text as far as it is kept (code)."""

    cell_id: str
    cell_index: int
    cell_type: str
    title: str | None
    exercise_id: str | None
    source: str | None


def parse_notebook(body: bytes, name: object) -> dict[str, Any]:
    """What the file `name` holds. Raises InvalidInput (NB-1350) for what is no notebook of format 4."""
    try:
        content = json.loads(body)
        format_notebook(content).encode()  # what cannot be written again: half a character, endless nesting
    except (ValueError, RecursionError) as error:
        raise InvalidInput("NB-1350", file=name, reason=str(error)) from error
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells) or content.get("nbformat") != 4:
        raise InvalidInput("NB-1350", file=name, reason="nbformat 4, cells")
    return dict(content)


def format_notebook(content: dict[str, Any]) -> str:
    """The file's text, as Jupyter writes notebooks."""
    return json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def read_notebook_id(content: dict[str, Any]) -> UUID | None:
    """The id an earlier preparation wrote."""
    try:
        return UUID(str(_get_dict(_get_dict(content, "metadata"), "nbpulse").get("notebook_id")))
    except ValueError:
        return None


def name_cells(content: dict[str, Any], notebook_id: UUID) -> Iterator[OriginalCell]:
    """
    Give each cell of `content` its id, its id in the original, and its exercise; what the course keeps of each.

    A made id follows from the notebook and the cell's place and source, so that two preparations of one file agree. Of
    cells with one id (copied ones) the first keeps it.
    """
    own_ids = {cell["id"] for cell in content["cells"] if isinstance(cell.get("id"), str)}
    ids: set[str] = set()
    original_ids: set[str] = set()
    section: str | None = None
    for index, cell in enumerate(content["cells"]):
        metadata = _get_dict(cell, "metadata")
        ours = dict(_get_dict(metadata, "nbpulse"))
        source = (
            "".join(map(str, cell["source"])) if isinstance(cell.get("source"), list) else str(cell.get("source") or "")
        )
        cell_id = cell.get("id")
        if not isinstance(cell_id, str) or not _CELL_ID.fullmatch(cell_id) or cell_id in ids:
            cell_id = uuid5(notebook_id, f"{index}:{source}").hex[:12]
        ids.add(cell_id)
        original_id = str(ours.get("cell_id", ""))
        is_copy = original_id in original_ids or (original_id != cell_id and original_id in own_ids)
        if not _NAME.fullmatch(original_id) or is_copy or ours.get("notebook_id") != str(notebook_id):
            original_id = cell_id
        original_ids.add(original_id)
        if cell.get("cell_type") == "markdown" and (heading := _HEADING.search(source)):
            section = _clean(heading[1])
        ours |= {"cell_id": original_id, "notebook_id": str(notebook_id)}
        exercise_id = _find_exercise(metadata, ours)
        cell |= {"id": cell_id, "metadata": metadata | {"nbpulse": ours}}
        cell_type = cell["cell_type"] if cell.get("cell_type") in _TYPES else "code"
        kept = _clean(source, SOURCE_CHARS_MAX) if cell_type == "code" else None
        yield OriginalCell(original_id, index, cell_type, section, exercise_id, kept)


def _find_exercise(metadata: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """
    nbgrader's id where it grades or wants a solution; else ours of before, or a new one where the tag asks for it.

    What nbgrader does not say is written into `ours`.
    """
    grader = metadata.get("nbgrader")
    if isinstance(grader, dict) and (grader.get("grade") or grader.get("solution")) and grader.get("grade_id"):
        ours.pop("exercise_id", None)
        return _clean(str(grader["grade_id"]))
    tags = metadata.get("tags")
    if "exercise_id" not in ours and isinstance(tags, list) and EXERCISE_TAG in tags:
        ours["exercise_id"] = f"{EXERCISE_TAG}-{ours['cell_id']}"
    return _clean(str(ours["exercise_id"])) if ours.get("exercise_id") else None


def _clean(text: str, chars_max: int = _LABEL_CHARS_MAX) -> str:
    """What a database holds of it: no NUL, no half of a character."""
    return text[:chars_max].replace("\x00", "").encode("utf-8", "replace").decode()


def _get_dict(owner: dict[str, Any], name: str) -> dict[str, Any]:
    """What stands there, where it is what should stand there."""
    found = owner.get(name)
    return found if isinstance(found, dict) else {}


def mark_notebook(content: dict[str, Any], handout: dict[str, str]) -> None:
    """Write `handout` into the notebook's metadata; cells have ids since nbformat 4.5."""
    metadata = _get_dict(content, "metadata")
    content["metadata"] = metadata | {"nbpulse": _get_dict(metadata, "nbpulse") | handout}
    minor = content.get("nbformat_minor")
    content["nbformat_minor"] = max(5, minor) if isinstance(minor, int) else 5


def count_cells(cells: list[OriginalCell]) -> dict[str, int]:
    """What was found in the notebook, to be told: `cells`, `exercises`, `sections`."""
    return {
        "cells": len(cells),
        "exercises": len({cell.exercise_id for cell in cells if cell.exercise_id}),
        "sections": sum(cell.cell_type == "markdown" and bool(cell.title) for cell in cells),
    }
