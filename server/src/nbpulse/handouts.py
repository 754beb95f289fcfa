"""`nbpulse prepare`: makes a teacher's notebook the course's original, so that every copy of it is known again.

What is written into the file: the notebook's id, the class's address and join code (a student then types only a
name), and in each cell the id it has in the original and its exercise. Promises: sources and outputs are not touched;
doing it again changes nothing, neither in the file nor in the course; nbgrader's ids stay, and are the exercises' ids.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid5

from nbpulse.crypto import EncryptedField
from nbpulse.errors import InvalidInput, NotFound, StartupError
from nbpulse.preparation import COURSE_SHORT_NAME, ensure_course
from nbpulse.records.courses import Course, Courses
from nbpulse.records.originals import OriginalCell, choose_notebook, register
from nbpulse.records.owner import open_owner
from nbpulse.settings import Settings
from nbpulse.terminal import answer, get_text, say

EXERCISE_TAG: Final = "exercise"
SOURCE_CHARS_MAX: Final = 20_000
"""Of a cell's code, kept to show what students made of it."""
_CELL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$", re.MULTILINE)


def prepare_notebook(settings: Settings, file: Path, *, course: str, url: str | None, as_json: bool) -> None:
    """
    Prepare one file and say what became of it.

    Raises InvalidInput: no notebook (NB-1350), cannot be written (NB-1351), its name is another's (NB-1353);
    NotFound: no such course (NB-1352).
    """
    content = read_notebook(file)
    prepared = copy.deepcopy(content)
    notebook_id, found, cells = asyncio.run(_register(settings, file, prepared, course))
    handout = {"notebook_id": str(notebook_id), "course_id": str(found.id), "join_code": found.join_code}
    handout |= {"course": found.title}  # what the student is asked to join
    handout |= {"url": url} if url else {}
    mark_notebook(prepared, handout)
    if has_changed := prepared != content:
        write_notebook(file, prepared)
    exercises = {cell.exercise_id for cell in cells if cell.exercise_id}
    facts = {"file": file, "course": found.title, "cells": len(cells), "exercises": len(exercises)}
    facts |= {"sections": sum(cell.cell_type == "markdown" and bool(cell.title) for cell in cells)}
    if as_json:
        answer(json.dumps(handout | facts | {"file": str(file), "changed": has_changed}, ensure_ascii=False))
        return
    say(get_text("prepared" if has_changed else "prepared_already", **facts))
    if not url:
        say(get_text("prepared_no_url"))


async def _register(
    settings: Settings, file: Path, content: dict[str, Any], short_name: str
) -> tuple[UUID, Course, list[OriginalCell]]:
    if not settings.database_url:
        raise StartupError("NB-3052", setting="NBPULSE_DATABASE_URL")
    seal = EncryptedField(settings.read_encryption_keys())
    async with open_owner(settings.database_url) as pool:
        if short_name == COURSE_SHORT_NAME:
            course, _ = await ensure_course(pool, seal)
        elif (found := await Courses(pool, seal).find_course(short_name)) is not None:
            course = found
        else:
            raise NotFound("NB-1352", course=short_name)
        cell_ids = {cell["id"] for cell in content["cells"] if isinstance(cell.get("id"), str)}
        notebook = await choose_notebook(pool, course.id, read_notebook_id(content), list_paths(file), cell_ids)
        cells = list(name_cells(content, notebook.id))
        title = next((cell.title for cell in cells if cell.title), file.stem)
        await register(pool, course.id, notebook, title, cells)
    return notebook.id, course, cells


def list_paths(file: Path) -> list[str]:
    """What the course may call the file: its name, else with ever more of its folders; in one spelling (NFC)."""
    parts = file.absolute().parts
    return [unicodedata.normalize("NFC", "/".join(parts[-n:])) for n in range(1, min(len(parts), 4))]


def read_notebook(file: Path) -> dict[str, Any]:
    """The file as JSON. Raises InvalidInput (NB-1350) for what is no notebook of format 4."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput("NB-1350", file=file, reason=str(error)) from error
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells) or content.get("nbformat") != 4:
        raise InvalidInput("NB-1350", file=file, reason="nbformat 4, cells")
    return dict(content)


def write_notebook(file: Path, content: dict[str, Any]) -> None:
    """As Jupyter writes notebooks; the file is replaced whole or not at all. Raises InvalidInput (NB-1351)."""
    draft = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        text = json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
        draft.write_text(text, encoding="utf-8", newline="\n")
        shutil.copymode(file, draft)
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise InvalidInput("NB-1351", file=file, reason=error.strerror or str(error)) from error


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
    own_ids = {cell.get("id") for cell in content["cells"]}
    ids: set[str] = set()
    original_ids: set[str] = set()
    section: str | None = None
    for index, cell in enumerate(content["cells"]):
        metadata = _get_dict(cell, "metadata")
        ours = dict(_get_dict(metadata, "nbpulse"))
        source = "".join(cell["source"]) if isinstance(cell.get("source"), list) else str(cell.get("source") or "")
        cell_id = cell.get("id")
        if not isinstance(cell_id, str) or not _CELL_ID.fullmatch(cell_id) or cell_id in ids:
            cell_id = uuid5(notebook_id, f"{index}:{source}").hex[:12]
        ids.add(cell_id)
        original_id = ours.get("cell_id")
        is_copy = original_id in original_ids or (original_id != cell_id and original_id in own_ids)
        if not isinstance(original_id, str) or is_copy or ours.get("notebook_id") != str(notebook_id):
            original_id = cell_id
        original_ids.add(original_id)
        if cell.get("cell_type") == "markdown" and (heading := _HEADING.search(source)):
            section = heading[1][:200]
        ours |= {"cell_id": original_id, "notebook_id": str(notebook_id)}
        exercise_id = _find_exercise(metadata, ours)
        cell |= {"id": cell_id, "metadata": metadata | {"nbpulse": ours}}
        cell_type = str(cell.get("cell_type") or "code")
        kept = _clean(source) if cell_type == "code" else None
        yield OriginalCell(original_id, index, cell_type, section, exercise_id, kept)


def _clean(source: str) -> str:
    """What a database holds of it: no NUL, no half of a character."""
    return source[:SOURCE_CHARS_MAX].replace("\x00", "").encode("utf-8", "replace").decode()


def _find_exercise(metadata: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """
    nbgrader's id where it grades or wants a solution; else ours of before, or a new one where the tag asks for it.

    What nbgrader does not say is written into `ours`.
    """
    grader = metadata.get("nbgrader")
    if isinstance(grader, dict) and (grader.get("grade") or grader.get("solution")) and grader.get("grade_id"):
        ours.pop("exercise_id", None)
        return str(grader["grade_id"])[:200]
    tags = metadata.get("tags")
    if "exercise_id" not in ours and isinstance(tags, list) and EXERCISE_TAG in tags:
        ours["exercise_id"] = f"{EXERCISE_TAG}-{ours['cell_id']}"
    return str(ours["exercise_id"])[:200] if ours.get("exercise_id") else None


def _get_dict(owner: dict[str, Any], name: str) -> dict[str, Any]:
    """What stands there, where it is what should stand there."""
    found = owner.get(name)
    return found if isinstance(found, dict) else {}


def mark_notebook(content: dict[str, Any], handout: dict[str, str]) -> None:
    """Write `handout` into the notebook's metadata; cells have ids since nbformat 4.5."""
    metadata = _get_dict(content, "metadata")
    content["metadata"] = metadata | {"nbpulse": _get_dict(metadata, "nbpulse") | handout}
    content["nbformat_minor"] = max(5, content.get("nbformat_minor") or 0)
