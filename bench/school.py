"""A school's term as rows, made by SQL: one course of 200 students, and as many more as fill the ledger.

Promises: sessions, cells, points and minutes are computed from the ledger's own rows, so they agree with each other;
nothing is random: the same school at the same time give the same figures. Left out is what no read opens: `event_ids`,
learners' states, sealed texts, and rows that are neither a session's begin or end nor a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from uuid import UUID

import asyncpg

from nbpulse.timeseries.postgres import PostgresTimeSeries

STUDENTS = 200
WEEKS_MAX = 16
# In class one run each 80 s, twice a week homework; a run is two rows of the ledger.
SITTINGS = {"class": 65, "homework 1": 17, "homework 2": 17}
ROWS_OF_A_WEEK = STUDENTS * sum(2 * runs + 2 for runs in SITTINGS.values())

_SHARD = "(('x' || substr(md5({0}::text), 1, 8))::bit(32)::bigint % 64)::smallint"
# Ours is course 0; of the others nobody has a name.
_STUDENTS = f"""
CREATE TABLE bench_students AS
SELECT 0 AS course, (row_number() OVER (ORDER BY user_id) - 1)::int AS student, user_id, course_id
FROM enrolments WHERE course_id = $1 AND role = 'student'
UNION ALL SELECT c, s, md5('student ' || c || ' ' || s)::uuid, md5('course ' || c)::uuid
FROM generate_series(1, $2::int - 1) c, generate_series(0, {STUDENTS - 1}) s
"""
_OTHERS = """
INSERT INTO courses (id, title, short_name) SELECT DISTINCT course_id, 'Course ' || course, 'course-' || course
FROM bench_students WHERE course > 0;
INSERT INTO users (id, username) SELECT user_id, 'u' || course || '-' || student FROM bench_students WHERE course > 0;
INSERT INTO enrolments (user_id, course_id, role) SELECT user_id, course_id, 'student' FROM bench_students
WHERE course > 0
"""
_NOTEBOOKS = """
INSERT INTO notebooks (id, course_id, path)
SELECT DISTINCT md5(course || ' week ' || w)::uuid, course_id, 'week' || w || '/lesson.ipynb'
FROM bench_students, generate_series(1, $1::int) w
"""
_NOTEBOOK_CELLS = f"""
INSERT INTO notebook_cells (notebook_id, cell_id, cell_index, cell_type, student_count)
SELECT n.id, 'cell-' || k, k, 'code', {STUDENTS} FROM notebooks n, generate_series(0, 29) k WHERE n.path LIKE 'week%'
"""
# Classes of course c are c * 11 hours before ours, within one week; ours is 75 minutes old now, homework lies between
# two classes.
# A run takes 10 to 550 ms; the first of a cell's (two or three) fails for every second student or third cell.
_WEEK = f"""
INSERT INTO events (user_id, shard, event_id, occurred_at, received_at, recorded_at, ordinal, course_id, event_type,
    notebook_id, learning_session_id, cell_id, cell_index, cell_type, sequence, error_fingerprint, data)
SELECT user_id, shard, md5(user_id || ' ' || ordinal)::uuid, at, at + interval '150 ms', at + interval '250 ms',
    ordinal, course_id, kind, notebook_id, md5(user_id || ' {{week}} ' || sitting)::uuid,
    CASE WHEN kind LIKE 'cell%' THEN 'cell-' || cell END, CASE WHEN kind LIKE 'cell%' THEN cell END,
    CASE WHEN kind LIKE 'cell%' THEN 'code' END, ordinal,
    CASE WHEN kind = 'cell_execution' AND has_failed THEN left(md5('error' || cell % 7 || ' ' || notebook_id), 16) END,
    CASE WHEN kind <> 'cell_execution' THEN '{{{{}}}}'::jsonb
    WHEN has_failed THEN jsonb_build_object('status', 'error', 'has_error', true, 'execution_duration_ms', duration_ms,
        'execution_count', run, 'error_name', (ARRAY['NameError', 'TypeError', 'KeyError'])[1 + cell % 3])
    ELSE jsonb_build_object('status', 'ok', 'has_error', false, 'execution_duration_ms', duration_ms,
        'execution_count', run, 'output_bytes', 120) END
FROM (
    SELECT s.*, {_SHARD.format("user_id")} AS shard, md5(course || ' week ' || {{week}})::uuid AS notebook_id,
        kind, sitting, run, cell, duration_ms,
        ({{week}} * 1000 + sitting * 300 + n)::bigint AS ordinal,
        run % 2 = 0 AND (student + cell) % 2 = 0 OR run % 5 = 1 AND (student + cell) % 3 = 0 AS has_failed,
        date_trunc('milliseconds', $1::timestamptz - interval '75 minutes' - ($2::int - {{week}}) * interval '7 days'
            - course * 11 % 168 * interval '1 hour'
            - CASE WHEN sitting = 0 THEN interval '0' ELSE (sitting * 2 - 0.5) * interval '1 day'
                - student * interval '4 minutes' END
            + (run * 80 + jitter * 70) * interval '1 second'
            + CASE kind WHEN 'cell_execution' THEN duration_ms WHEN 'session_end' THEN 60000 ELSE 0 END
                * interval '1 millisecond') AS at
    FROM bench_students s, unnest($3::int[]) WITH ORDINALITY AS t(runs, number),
        LATERAL generate_series(-1, runs * 2) AS n,
        LATERAL (SELECT (number - 1)::int AS sitting, least(greatest(n / 2, 0), runs - 1) AS run,
            CASE WHEN n = -1 THEN 'session_start' WHEN n = runs * 2 THEN 'session_end'
                WHEN n % 2 = 0 THEN 'cell_execution_start' ELSE 'cell_execution' END AS kind) a,
        LATERAL (SELECT run * 30 / runs AS cell, (student * 7919 + run * 104729) % 1000 / 1000.0 AS jitter) b,
        LATERAL (SELECT round((10 * exp(4 * ((student * 31 + run * 17) % 100 / 100.0)))::numeric, 2)::float8
            AS duration_ms) c
) AS row WHERE at < $1 ORDER BY at
"""
_SESSIONS = """
INSERT INTO learning_sessions (id, user_id, shard, course_id, notebook_id, started_at, last_activity_at, has_end,
    ended_at, total_duration_ms, cell_executions, error_count)
SELECT learning_session_id, user_id, shard, course_id, notebook_id, min(occurred_at), max(occurred_at), true,
    max(occurred_at), extract(epoch FROM max(occurred_at) - min(occurred_at)) * 1000,
    count(*) FILTER (WHERE event_type = 'cell_execution'), count(error_fingerprint)
FROM events WHERE learning_session_id IS NOT NULL GROUP BY learning_session_id, user_id, shard, course_id, notebook_id
ORDER BY min(occurred_at)
"""
_CELLS = """
INSERT INTO learner_cells (user_id, shard, course_id, notebook_id, cell_id, cell_index, revision, attempt_count,
    error_count, last_status, last_at, last_sequence, last_ok_at, first_finished_at)
SELECT user_id, shard, course_id, notebook_id, cell_id, min(cell_index), count(*), count(*), count(error_fingerprint),
    CASE WHEN max(occurred_at) FILTER (WHERE error_fingerprint IS NULL) = max(occurred_at) THEN 'ok' ELSE 'error' END,
    max(occurred_at), max(sequence), max(occurred_at) FILTER (WHERE error_fingerprint IS NULL), min(occurred_at)
FROM events WHERE event_type = 'cell_execution' GROUP BY user_id, shard, course_id, notebook_id, cell_id
ORDER BY min(occurred_at)
"""
_POINTS = """
INSERT INTO timeseries.cell_executions (course_id, user_id, time_ns, notebook_path, cell_index, event_type,
    execution_duration_ms, has_error, error_message, execution_count)
SELECT course_id, user_id, (extract(epoch FROM occurred_at) * 1000)::bigint * 1000000 + ordinal, path, cell_index,
    event_type, (data->>'execution_duration_ms')::float8, error_fingerprint IS NOT NULL,
    data->>'error_name' || ': ...', (data->>'execution_count')::int
FROM events JOIN (SELECT id AS notebook_id, path FROM notebooks) n USING (notebook_id)
WHERE event_type = 'cell_execution' ORDER BY occurred_at
"""
_MARKS = """
INSERT INTO timeseries.stale_minutes (course_id, user_id, minute_ns)
SELECT DISTINCT course_id, user_id, time_ns / 60000000000 * 60000000000 FROM timeseries.cell_executions
"""
# With their indexes: what grows by a row for each event, the time series, and all else.
BYTES_BY_PART = """
SELECT CASE WHEN n.nspname = 'timeseries' THEN 'series'
    WHEN c.relname ~ '^(events|event_ids|event_contents)' THEN 'ledger' ELSE 'other' END AS part,
    sum(pg_total_relation_size(c.oid))::bigint AS bytes
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND n.nspname IN ('public', 'timeseries') GROUP BY 1
"""


def plan_term(rows: int) -> tuple[int, int]:
    """Weeks and courses of a school with at least `rows` ledger rows; one week of one course is the least."""
    weeks = max(1, min(WEEKS_MAX, rows // ROWS_OF_A_WEEK))
    return weeks, max(1, -(-rows // (ROWS_OF_A_WEEK * weeks)))


async def fill_school(
    database_url: str, course_id: UUID, weeks: int, courses: int, sittings: Mapping[str, int] = SITTINGS
) -> dict[str, int | str]:
    """
    Fill a migrated database, in which the course and its 200 students are enrolled, with so many weeks of that course
    and `courses` - 1 others like it; what is in it. `sittings`: runs of one student in each sitting of a week.
    """
    pool = await asyncpg.create_pool(database_url, min_size=1, max_size=2, command_timeout=3_600)
    try:
        await make_months(pool, weeks)
        await pool.execute(_STUDENTS, course_id, courses)
        await pool.execute(_OTHERS)
        await pool.execute(_NOTEBOOKS, weeks)
        await pool.execute(_NOTEBOOK_CELLS)
        now = await pool.fetchval("SELECT now()")
        for week in range(1, weeks + 1):
            await pool.execute(_WEEK.format(week=week), now, weeks, list(sittings.values()))
        await asyncio.gather(_fill_series(pool), _run(pool, _SESSIONS, _CELLS))
        await pool.execute("DROP TABLE bench_students")
        async with pool.acquire() as connection:
            await connection.execute("VACUUM ANALYZE")  # as the nightly jobs leave it
        return await _count(pool, course_id) | {"weeks": weeks, "courses": courses, "now": now.isoformat()}
    finally:
        await pool.close()


async def make_months(pool: asyncpg.Pool, weeks: int) -> None:
    """The term's partitions, as the product's own function would have made them in their time. Owner's login."""
    definition = await pool.fetchval("SELECT pg_get_functiondef('ensure_months(integer)'::regprocedure)")
    first, since = "date_trunc('month', now())", f"date_trunc('month', now() - interval '{weeks * 7 + 14} days')"
    assert first in definition
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL ROLE nbpulse_migrator")
        await connection.execute(definition.replace("ensure_months", "bench_months").replace(first, since))
        await connection.execute("SELECT bench_months(3)")
        await connection.execute("DROP FUNCTION bench_months(integer)")


async def _fill_series(pool: asyncpg.Pool) -> None:
    await _run(pool, _POINTS, _MARKS)
    await pool.execute("VACUUM ANALYZE timeseries.stale_minutes")
    store = PostgresTimeSeries(pool)
    while await store.refresh_rollups(settle_s=-120):
        pass


async def _run(pool: asyncpg.Pool, *statements: str) -> None:
    for statement in statements:
        await pool.execute(statement)


async def _count(pool: asyncpg.Pool, course_id: UUID) -> dict[str, int | str]:
    tables: Sequence[tuple[str, str]] = (
        ("ledger_rows", "events"),
        ("sessions", "learning_sessions"),
        ("cells", "learner_cells"),
        ("points", "timeseries.cell_executions"),
        ("minutes", "timeseries.cell_executions_1m"),
    )
    found: dict[str, int | str] = {name: await pool.fetchval(f"SELECT count(*) FROM {table}") for name, table in tables}
    for name, since in (("ledger_rows_of_course", "400 days"), ("ledger_rows_of_course_last_day", "1 day")):
        found[name] = await pool.fetchval(
            "SELECT count(*) FROM events WHERE course_id = $1 AND occurred_at > now() - $2::text::interval",
            course_id,
            since,
        )
    found["database_mb"] = await pool.fetchval("SELECT pg_database_size(current_database()) / 1000000")
    return found
