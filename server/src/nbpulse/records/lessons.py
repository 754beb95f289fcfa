"""Where in a notebook its class is being taught, as its staff say it on the board; kept without who said it."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import asyncpg

from nbpulse.errors import NotFound
from nbpulse.records.people import People

Position = tuple[int, str | None]
"""When, in ms since 1970, and of which cell from then on; None: of none."""

# A class meeting's own, and what was said before it since the one before it ended.
_READ: Final = """
SELECT (extract(epoch FROM marked_at) * 1000)::bigint AS at_ms, cell_id FROM lesson_positions
WHERE course_id = $1 AND notebook_id = $2 AND marked_at > greatest(now() - interval '12 hours', (
    SELECT ended_at FROM class_meetings WHERE course_id = $1 ORDER BY started_at DESC OFFSET 1 LIMIT 1))
ORDER BY marked_at DESC LIMIT 200
"""
_HAS_CELL: Final = """
SELECT EXISTS (SELECT FROM notebook_cells WHERE notebook_id = n.id AND cell_id = $3)
FROM notebooks n WHERE n.id = $2 AND n.course_id = $1
"""


async def read_positions(connection: asyncpg.Connection, course_id: UUID, notebook_id: UUID | None) -> list[Position]:
    """Of the newest class meeting, at most 12 hours and 200 of them, the newest last."""
    rows = await connection.fetch(_READ, course_id, notebook_id)
    return [(row["at_ms"], row["cell_id"]) for row in reversed(rows)]


class Lessons:
    """Every method raises Unavailable (NB-2003) when PostgreSQL is away."""

    def __init__(self, people: People) -> None:
        self._people = people

    async def mark(self, course_id: UUID, notebook_id: UUID, cell_id: str | None) -> list[Position]:
        """
        From now on the class is at this cell of the notebook (None: at none); where it is already, nothing changes.

        Returns what `read_positions` does from now on. Raises NotFound: the course has no such notebook (NB-1201), the
        notebook no such cell (NB-1360).
        """
        async with self._people.connect("mark_lesson") as connection:
            has_cell = await connection.fetchval(_HAS_CELL, course_id, notebook_id, cell_id)
            if has_cell is None:
                raise NotFound("NB-1201")
            if cell_id is not None and not has_cell:
                raise NotFound("NB-1360")
            known = await read_positions(connection, course_id, notebook_id)
            if (known[-1][1] if known else None) == cell_id:
                return known
            await connection.execute(
                "INSERT INTO lesson_positions (course_id, notebook_id, cell_id) VALUES ($1, $2, $3)",
                course_id,
                notebook_id,
                cell_id,
            )
            return await read_positions(connection, course_id, notebook_id)
