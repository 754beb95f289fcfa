"""A course's originals as `nbpulse prepare` keeps them: the notebook's row and its registered cells.

Promises: registering the same again changes nothing; a cell that a corrected version no longer has stays known with
what students did on it, but is registered no more; two files of one name that share no cell are two notebooks.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import NamedTuple
from uuid import UUID, uuid4

import asyncpg

from nbpulse.errors import InvalidInput
from nbpulse.metrics import name_query
from nbpulse.records.notebooks import CourseNotebook


class OriginalCell(NamedTuple):
    """One cell of an original; `title` is its section's heading, `source` its text as far as it is kept (code)."""

    cell_id: str
    cell_index: int
    cell_type: str
    title: str | None
    exercise_id: str | None
    source: str | None


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


async def choose_notebook(
    pool: asyncpg.Pool, course_id: UUID, wished: UUID | None, paths: Sequence[str], cell_ids: Set[str]
) -> CourseNotebook:
    """
    The course notebook that a file is or becomes: the one of the id it bears, where the course has that; else the first
    of `paths` that is free, was only learned from events, or holds some of the file's cells.

    Raises InvalidInput (NB-1353): all are other notebooks'.
    """
    with name_query("register_original"):
        rows = await pool.fetch(_FIND, course_id)
        is_taken = await pool.fetchval("SELECT EXISTS (SELECT FROM notebooks WHERE id = $1)", wished)
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


async def register(
    pool: asyncpg.Pool, course_id: UUID, notebook: CourseNotebook, title: str, cells: Sequence[OriginalCell]
) -> None:
    """Keep the notebook and its cells, all or nothing."""
    with name_query("register_original"):
        async with pool.acquire(timeout=5) as connection, connection.transaction():
            await connection.execute(_REGISTER, notebook.id, course_id, notebook.path, title[:200])
            columns = [list(column) for column in zip(*cells, strict=True)] or [[] for _ in OriginalCell._fields]
            await connection.execute(_REGISTER_CELLS, notebook.id, *columns)
            await connection.execute(_RELEASE_CELLS, notebook.id, [cell.cell_id for cell in cells])
