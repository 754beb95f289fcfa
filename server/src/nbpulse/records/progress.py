"""What counts as progress in a course notebook, in one place for every answer about it.

An item is a cell that makes a column of the board (views.py), or, where such cells belong to exercises, an exercise.
Markdown counts for nothing. An item is complete when the last run among its cells went well.
"""

from __future__ import annotations

from typing import Final

# Of the notebooks in `asked(id, course_id)`: `items(notebook_id, cell_id, item)`.
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
    SELECT notebook_id, cell_id, CASE WHEN has_exercises THEN exercise_id ELSE cell_id END AS item
    FROM counted WHERE exercise_id IS NOT NULL OR NOT has_exercises
), totals AS (
    SELECT notebook_id, count(DISTINCT item)::int AS total FROM items GROUP BY notebook_id
)"""
# And how everybody's items stand now, by the later run's rule of learners.py.
STANDINGS: Final = f"""{ITEMS}, standings AS (
    SELECT DISTINCT ON (c.user_id, c.notebook_id, i.item) c.user_id, c.notebook_id, c.last_at,
        c.last_status = 'ok' AS is_complete
    FROM learner_cells c JOIN items i USING (notebook_id, cell_id)
    ORDER BY c.user_id, c.notebook_id, i.item, c.last_at DESC, c.last_sequence DESC,
        (c.last_status <> 'running') DESC, c.last_status DESC
)"""  # noqa: S608
