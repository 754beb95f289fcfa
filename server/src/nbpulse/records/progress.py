"""What counts as progress in a course notebook, in one place for every answer about it.

An item is a cell that makes a column of the board (views.py), or, where such cells belong to exercises, an exercise.
Markdown counts for nothing. An item is complete when the last run among its cells went well.
"""

from __future__ import annotations

from typing import Final

# Of the notebooks in `asked(id, course_id)`: `items(notebook_id, cell_id, item, has_exercises)`.
ITEMS: Final = """
counted AS (
    SELECT c.notebook_id, c.cell_id, c.exercise_id,
        bool_or(c.exercise_id IS NOT NULL) OVER (PARTITION BY c.notebook_id) AS has_exercises
    FROM asked a CROSS JOIN LATERAL (
        SELECT greatest(1, least(3, ceil(0.1 * count(*)))) AS enough FROM enrolments
        WHERE course_id = a.course_id AND role = 'student'
    ) size JOIN notebook_cells c ON c.notebook_id = a.id
    WHERE c.cell_type IS DISTINCT FROM 'markdown' AND (c.is_registered OR c.student_count >= size.enough)
), items AS (
    SELECT notebook_id, cell_id, CASE WHEN has_exercises THEN exercise_id ELSE cell_id END AS item, has_exercises
    FROM counted WHERE exercise_id IS NOT NULL OR NOT has_exercises
), totals AS (
    SELECT notebook_id, count(DISTINCT item)::int AS total FROM items GROUP BY notebook_id
)"""
_CELLS_OF_ITEM = """
    FROM items i CROSS JOIN LATERAL (
        SELECT user_id, last_status, last_at, last_sequence FROM learner_cells
        WHERE notebook_id = i.notebook_id AND cell_id = i.cell_id
    ) c"""
# And how many each has completed by now: `done(notebook_id, user_id, completed, last_at)`; of an exercise's cells the
# later run decides, by the rule of learners.py. Counted before anything is joined to it, cell by cell: a term has a
# hundred thousand, and the planner, who expects few, would look up each by itself.
DONE: Final = f"""{ITEMS}, done AS MATERIALIZED (
    SELECT i.notebook_id, c.user_id, count(*) FILTER (WHERE c.last_status = 'ok') AS completed,
        max(c.last_at) AS last_at
    {_CELLS_OF_ITEM} WHERE NOT i.has_exercises GROUP BY i.notebook_id, c.user_id
    UNION ALL
    SELECT notebook_id, user_id, count(*) FILTER (WHERE last_status = 'ok'), max(last_at) FROM (
        SELECT DISTINCT ON (c.user_id, i.notebook_id, i.item) i.notebook_id, c.user_id, c.last_status, c.last_at
        {_CELLS_OF_ITEM} WHERE i.has_exercises
        ORDER BY c.user_id, i.notebook_id, i.item, c.last_at DESC, c.last_sequence DESC,
            (c.last_status <> 'running') DESC, c.last_status DESC
    ) last GROUP BY notebook_id, user_id
)"""  # noqa: S608
