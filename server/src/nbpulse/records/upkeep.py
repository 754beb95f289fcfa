"""What the worker keeps in order in the background: partitions, the planner's statistics, what is known of notebooks.

Promises: doing it again changes nothing; several workers may do it at once; nothing here delays a student's event for
longer than 3 s (`ensure_months` gives up then and is tried again).
"""

from __future__ import annotations

from typing import Final

import asyncpg

from nbpulse.errors import Unavailable
from nbpulse.metrics import named_query
from nbpulse.records.failures import UNAVAILABLE

MONTHS_AHEAD: Final = 3
# Cells that make a column on the board (views.py), of every notebook in which their number has changed.
_COUNT_CELLS = """
WITH sizes AS (
    SELECT course_id, greatest(1, least(3, ceil(0.1 * count(*)))) AS enough FROM enrolments
    WHERE role = 'student' GROUP BY course_id
), counts AS (
    SELECT n.id, count(c.cell_id) AS cells FROM notebooks n LEFT JOIN sizes s USING (course_id)
    LEFT JOIN notebook_cells c ON c.notebook_id = n.id AND c.cell_type IS DISTINCT FROM 'markdown'
        AND (c.is_registered OR c.student_count >= coalesce(s.enough, 1))
    GROUP BY n.id
)
UPDATE notebooks n SET cell_count = counts.cells FROM counts
WHERE counts.id = n.id AND n.cell_count IS DISTINCT FROM counts.cells
"""


@named_query("keep_partitions")
async def keep_partitions(pool: asyncpg.Pool) -> list[str]:
    """
    Make the partitions of the coming 3 months and analyse partitioned tables once a day; the partitions made.

    Rows that waited in a default partition move in. Raises Unavailable (NB-2003), also when somebody holds a table.
    """
    try:
        async with pool.acquire(timeout=5) as connection, connection.transaction():
            made: list[str] = await connection.fetchval("SELECT ensure_months($1)", MONTHS_AHEAD)
            await connection.execute("SELECT analyze_parents()")
    except (*UNAVAILABLE, asyncpg.LockNotAvailableError) as error:
        raise Unavailable("NB-2003") from error
    return made


@named_query("count_cells")
async def count_cells(pool: asyncpg.Pool) -> None:
    """Bring `notebooks.cell_count` up to date. Raises Unavailable (NB-2003)."""
    try:
        await pool.execute(_COUNT_CELLS, timeout=10)
    except UNAVAILABLE as error:
        raise Unavailable("NB-2003") from error
