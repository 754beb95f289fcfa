"""A course's originals as `nbpulse prepare` keeps them: the notebook's row and its registered cells.

Promises: registering the same again changes nothing; a cell that a corrected version no longer has stays known with
what students did on it, but is registered no more; two files of one name that share no cell are two notebooks.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from nbpulse.errors import InvalidInput
from nbpulse.notebook import OriginalCell, count_cells, name_cells, read_notebook_id
from nbpulse.records.audit import Facts, note_audit
from nbpulse.records.notebooks import CourseNotebook
from nbpulse.records.people import People

_REGISTER = """
INSERT INTO notebooks AS n (id, course_id, path, title) VALUES ($1, $2, $3, $4)
ON CONFLICT (id) DO UPDATE SET title = excluded.title WHERE n.title IS DISTINCT FROM excluded.title
"""
_REGISTER_CELLS = """
INSERT INTO notebook_cells AS n (notebook_id, cell_id, cell_index, cell_type, title, exercise_id, source,
    is_registered)
SELECT $1, k.*, TRUE FROM unnest($2::text[], $3::int[], $4::text[], $5::text[], $6::text[], $7::text[]) AS k
ON CONFLICT (notebook_id, cell_id) DO UPDATE SET cell_index = excluded.cell_index, cell_type = excluded.cell_type,
    title = excluded.title, exercise_id = excluded.exercise_id, source = excluded.source, is_registered = TRUE
WHERE (n.cell_index, n.cell_type, n.title, n.exercise_id, n.source, n.is_registered) IS DISTINCT FROM
    (excluded.cell_index, excluded.cell_type, excluded.title, excluded.exercise_id, excluded.source, TRUE)
"""
_RELEASE_CELLS = """
UPDATE notebook_cells SET is_registered = FALSE
WHERE notebook_id = $1 AND is_registered AND NOT cell_id = ANY($2::text[])
"""


_FIND = """
SELECT n.id, n.path, array_agg(c.cell_id) FILTER (WHERE c.is_registered) AS cell_ids
FROM notebooks n LEFT JOIN notebook_cells c ON c.notebook_id = n.id WHERE n.course_id = $1 GROUP BY n.id
"""


async def register_original(
    people: People, course_id: UUID, paths: Sequence[str], content: dict[str, Any]
) -> tuple[UUID, list[OriginalCell]]:
    """
    Make a notebook file (`content`, whose cells are given their ids in it) the course's original: its id and cells.

    `paths` are what the course may call it, the first that is free. All or nothing.

    Raises InvalidInput (NB-1353): they are other notebooks'. Unavailable (NB-2003).
    """
    cell_ids = {cell["id"] for cell in content["cells"] if isinstance(cell.get("id"), str)}
    async with people.connect("register_original") as connection:
        notebook = await _choose_notebook(connection, course_id, read_notebook_id(content), paths, cell_ids)
        cells = list(name_cells(content, notebook.id))
        title = next((cell.title for cell in cells if cell.title), paths[0].removesuffix(".ipynb"))
        await connection.execute(_REGISTER, notebook.id, course_id, notebook.path, title[:200])
        columns = [list(column) for column in zip(*cells, strict=True)] or [[] for _ in OriginalCell._fields]
        await connection.execute(_REGISTER_CELLS, notebook.id, *columns)
        await connection.execute(_RELEASE_CELLS, notebook.id, [cell.cell_id for cell in cells])
        facts: Facts = {"notebook_id": str(notebook.id), **count_cells(cells)}
        await note_audit(connection, "notebook_prepared", course_id=course_id, facts=facts)
    return notebook.id, cells


async def _choose_notebook(
    connection: asyncpg.Connection, course_id: UUID, wished: UUID | None, paths: Sequence[str], cell_ids: Set[str]
) -> CourseNotebook:
    """
    The course notebook that a file is or becomes: the one of the id it bears, where the course has that; else the first
    of `paths` that is free, was only learned from events, or holds some of the file's cells.
    """
    rows = await connection.fetch(_FIND, course_id)
    is_taken = await connection.fetchval("SELECT has_notebook($1)", wished)
    if (own := next((row for row in rows if row["id"] == wished), None)) is not None:
        return CourseNotebook(own["id"], own["path"])
    by_path = {row["path"]: row for row in rows}
    for path in paths:
        row = by_path.get(path)
        if row is None:
            return CourseNotebook(wished if wished and not is_taken else uuid4(), path)
        if not cell_ids or not row["cell_ids"] or not cell_ids.isdisjoint(row["cell_ids"]):
            return CourseNotebook(row["id"], path)
    raise InvalidInput("NB-1353", path=paths[-1])
