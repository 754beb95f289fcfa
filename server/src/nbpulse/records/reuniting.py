"""What a backup holds of further databases, put into the one database that is restored; the shards are all there then.

A part is of another moment than the directory: a little earlier, so that nobody and nothing it speaks of is missing
there, but for what was removed meanwhile.

Promises: a learner's state, cells and hands are as the ledger beside them, which is their own database's; what the
directory knew later of the same people (roll-ups, points) goes again; what the API alone writes is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import asyncpg

from nbpulse.archive import Part, Table
from nbpulse.records.copying import Load
from nbpulse.records.moves import MOVED

PART_TABLES: Final = tuple(f"public.{one}" for one in (*MOVED, "series_marks", "series_debt", "event_counts"))
"""What a further database has that is not the directory's. Its standings are worked out anew."""
_FOLDED: Final = {
    f"public.{one}"
    for one in ("learning_sessions", "learner_states", "help_requests", "learner_cells", "series_debt", "event_counts")
}
_MAKE: Final = "CREATE TEMPORARY TABLE {name} (LIKE {table}) ON COMMIT DROP"
_FOLD: Final = (
    """
    UPDATE learner_states s SET revision = 0, last_ordinal = 0, state = NULL, last_activity_at = NULL,
        notebook_id = NULL, help_text = NULL
    WHERE s.shard = ANY($1::smallint[]) AND s.revision > 0
        AND NOT EXISTS (SELECT FROM part_learner_states p WHERE (p.user_id, p.course_id) = (s.user_id, s.course_id))
    """,
    """
    INSERT INTO learner_states AS s SELECT * FROM part_learner_states WHERE shard = ANY($1::smallint[])
    ON CONFLICT (user_id, shard, course_id) DO UPDATE SET revision = excluded.revision,
        last_ordinal = excluded.last_ordinal, state = excluded.state, last_activity_at = excluded.last_activity_at,
        notebook_id = excluded.notebook_id, help_text = excluded.help_text,
        merged_into = coalesce(s.merged_into, excluded.merged_into)
    """,
    "DELETE FROM learner_cells WHERE shard = ANY($1::smallint[])",
    "INSERT INTO learner_cells SELECT * FROM part_learner_cells WHERE shard = ANY($1::smallint[])",
    """
    DELETE FROM help_requests h WHERE h.shard = ANY($1::smallint[])
        AND NOT EXISTS (SELECT FROM part_help_requests p WHERE (p.user_id, p.id) = (h.user_id, h.id))
    """,
    """
    INSERT INTO help_requests AS h SELECT * FROM part_help_requests WHERE shard = ANY($1::smallint[])
    ON CONFLICT (user_id, shard, id) DO UPDATE SET closed_at = excluded.closed_at WHERE h.closed_by IS NULL
    """,
    # Of people and courses that were removed while the parts were read, or were waiting to be cleared.
    """
    INSERT INTO learning_sessions SELECT p.* FROM part_learning_sessions p JOIN users u ON u.id = p.user_id
    LEFT JOIN notebooks n ON n.id = p.notebook_id
    WHERE p.shard = ANY($1::smallint[]) AND (p.notebook_id IS NULL OR n.id IS NOT NULL)
    """,
)
# One batch's points bear one id in every database that it touched.
_ADD_UP: Final = (
    "UPDATE part_series_debt SET id = gen_random_uuid()",
    "INSERT INTO series_debt SELECT * FROM part_series_debt",
    """
    INSERT INTO event_counts AS c SELECT * FROM part_event_counts
    ON CONFLICT (slot) DO UPDATE SET stored = c.stored + excluded.stored, duplicate = c.duplicate + excluded.duplicate,
        quarantined = c.quarantined + excluded.quarantined, dropped = c.dropped + excluded.dropped,
        removed = c.removed + excluded.removed
    """,
)
# The directory was read later than the part: it may have points whose events are in no ledger. Events go by whole
# months, points may stay: of a month before the first event's, none says that its event is missing.
_DROP_POINTS: Final = """
WITH theirs AS MATERIALIZED (
    SELECT user_id, ordinal % 1000000 AS rest, round(extract(epoch FROM occurred_at) * 1000)::bigint AS ms, occurred_at
    FROM event_ids WHERE shard = ANY($1::smallint[])
), known AS (
    SELECT user_id, rest, ms + off AS ms FROM theirs, generate_series(-1, 1) off
), oldest AS MATERIALIZED (
    SELECT user_id, date_trunc('month', min(occurred_at), 'UTC') AS at FROM theirs GROUP BY user_id
), gone AS (
    DELETE FROM timeseries.cell_executions p
    WHERE ('x' || substr(md5(p.user_id::text), 1, 8))::bit(32)::bigint % 64 = ANY($1::smallint[])
        AND p.time_ns / 1000000000 >= coalesce((SELECT extract(epoch FROM at) FROM oldest o
            WHERE o.user_id = p.user_id), 0)
        AND NOT EXISTS (SELECT FROM known k WHERE k.user_id = p.user_id AND k.rest = p.time_ns % 1000000
            AND k.ms = p.time_ns / 1000000)
    RETURNING p.time_ns, p.user_id, p.course_id
), stale AS (
    INSERT INTO timeseries.stale_minutes (minute_ns, user_id, course_id)
    SELECT DISTINCT time_ns / 60000000000 * 60000000000, user_id, course_id FROM gone ON CONFLICT DO NOTHING
)
SELECT array_agg(DISTINCT user_id) FROM gone
"""
_DROP_DERIVED: Final = (
    "DELETE FROM timeseries.learning_progress WHERE user_id = ANY($1::uuid[])",
    "DELETE FROM timeseries.performance_metrics WHERE user_id = ANY($1::uuid[])",
    """
    INSERT INTO series_marks AS m (user_id, shard, notebook_id, since)
    SELECT DISTINCT user_id, shard, notebook_id, TIMESTAMPTZ 'epoch' FROM learning_sessions
    WHERE user_id = ANY($1::uuid[]) AND notebook_id IS NOT NULL
    ON CONFLICT (user_id, shard, notebook_id) DO UPDATE SET since = excluded.since, revision = excluded.revision
    """,
)
_FINISH: Final = (
    """
    UPDATE notebook_cells c SET student_count = k.students FROM (
        SELECT n.notebook_id, n.cell_id, count(l.user_id)::int AS students FROM notebook_cells n
        LEFT JOIN learner_cells l USING (notebook_id, cell_id) GROUP BY n.notebook_id, n.cell_id
    ) k WHERE (c.notebook_id, c.cell_id) = (k.notebook_id, k.cell_id) AND c.student_count <> k.students
    """,
    # Each database had looked at its own learners of a notebook; the one has looked at none of these.
    "UPDATE notebooks SET items_digest = NULL",
    """
    SELECT clear_course(k.course_id) FROM (SELECT DISTINCT course_id FROM learner_states) k
    WHERE NOT EXISTS (SELECT FROM courses c WHERE c.id = k.course_id)
    """,
)


class Reunion:
    """Loads the parts of an archive, one after the other, into what `load` has loaded of the directory."""

    def __init__(self, load: Load) -> None:
        self._load = load

    async def begin(self, part: Part) -> None:
        """Make room for a part's tables that are not simply added."""
        for table in part.tables:
            if table.name in _FOLDED:
                await self._connection.execute(_MAKE.format(name=_name(table), table=table.name))

    async def load_table(self, table: Table, chunks: Iterator[bytes]) -> None:
        """As `Load.load_table`."""
        await self._load.load_table(table, chunks, into=_name(table) if table.name in _FOLDED else None)

    async def end(self, part: Part) -> None:
        """Make one of the part and what is there; its tables are all loaded."""
        for statement in _FOLD:
            await self._connection.execute(statement, part.shards)
        for statement in _ADD_UP:
            await self._connection.execute(statement)
        if ahead := await self._connection.fetchval(_DROP_POINTS, part.shards):
            for statement in _DROP_DERIVED:
                await self._connection.execute(statement, ahead)
        await self._connection.execute(
            f"DROP TABLE {', '.join(_name(one) for one in part.tables if one.name in _FOLDED)}"
        )

    async def finish(self) -> None:
        """What is counted over all parts, once they are there."""
        for statement in _FINISH:
            await self._connection.execute(statement)

    @property
    def _connection(self) -> asyncpg.Connection:
        return self._load.connection


def _name(table: Table) -> str:
    return f"part_{table.name.partition('.')[2]}"
