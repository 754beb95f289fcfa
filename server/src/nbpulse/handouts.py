"""`nbpulse prepare`: makes a teacher's notebook the course's original (notebook.py), and writes the file anew."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any
from uuid import UUID

from nbpulse.crypto import EncryptedField
from nbpulse.errors import InvalidInput, NotFound, StartupError
from nbpulse.notebook import OriginalCell, count_cells, format_notebook, mark_notebook, parse_notebook
from nbpulse.preparation import COURSE_SHORT_NAME, ensure_course
from nbpulse.records.courses import Course, Courses
from nbpulse.records.originals import register_original
from nbpulse.records.owner import open_owner
from nbpulse.records.people import People
from nbpulse.settings import Settings
from nbpulse.terminal import answer, get_text, say


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
    facts = {"file": file, "course": found.title, **count_cells(cells)}
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
        notebook_id, cells = await register_original(People(pool, seal), course.id, list_paths(file), content)
    return notebook_id, course, cells


def list_paths(file: Path) -> list[str]:
    """What the course may call the file: its name, else with ever more of its folders; in one spelling (NFC)."""
    parts = file.absolute().parts
    return [unicodedata.normalize("NFC", "/".join(parts[-n:])) for n in range(1, min(len(parts), 4))]


def read_notebook(file: Path) -> dict[str, Any]:
    """The file as JSON. Raises InvalidInput (NB-1350) for what is no notebook of format 4."""
    try:
        body = file.read_bytes()
    except OSError as error:
        raise InvalidInput("NB-1350", file=file, reason=str(error)) from error
    return parse_notebook(body, file)


def write_notebook(file: Path, content: dict[str, Any]) -> None:
    """As Jupyter writes notebooks; the file is replaced whole or not at all. Raises InvalidInput (NB-1351)."""
    draft = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(format_notebook(content), encoding="utf-8", newline="\n")
        shutil.copymode(file, draft)
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise InvalidInput("NB-1351", file=file, reason=error.strerror or str(error)) from error
