"""What the time series asks of PostgreSQL, in SQL; postgres.py says when and promises what comes of it."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Final

# Durations are rolled up as the bins of DDSketch: bin i holds the durations d with gamma^(i-1) < d <= gamma^i, that is
# i = ceil(log_gamma d), and 2 gamma^i / (gamma + 1) lies within RELATIVE_ERROR of each of them.
# Masson, Rim, Lee: DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees. VLDB 2019, §2.
RELATIVE_ERROR: Final = 0.01
GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
ZERO_BIN: Final = -32768  # a duration of 0 has no logarithm
_BIN = f"""(CASE WHEN e.execution_duration_ms > 0
    THEN greatest({ZERO_BIN + 1}, least(32767, ceil(ln(e.execution_duration_ms) / {math.log(GAMMA)!r})))
    WHEN e.execution_duration_ms = 0 THEN {ZERO_BIN} END)::smallint"""

MINUTE_NS: Final = 60_000_000_000
SLOT_NS: Final = 10 * MINUTE_NS

# As JSON: for a thousand points half the price of nine arrays, on this side.
WRITE_EXECUTIONS = """
INSERT INTO timeseries.cell_executions AS c (user_id, time_ns, notebook_path, cell_index, event_type,
    execution_duration_ms, has_error, error_message, execution_count, course_id)
SELECT * FROM json_to_recordset($1::json) AS k(user_id uuid, time_ns bigint, notebook_path text, cell_index int,
    event_type text, execution_duration_ms float8, has_error boolean, error_message text, execution_count int,
    course_id uuid)
ON CONFLICT (user_id, time_ns) DO UPDATE SET notebook_path = excluded.notebook_path, cell_index = excluded.cell_index,
    event_type = excluded.event_type, execution_duration_ms = excluded.execution_duration_ms,
    has_error = excluded.has_error, error_message = excluded.error_message, execution_count = excluded.execution_count,
    course_id = CASE WHEN excluded.course_id = '00000000-0000-0000-0000-000000000000' THEN c.course_id
                     ELSE excluded.course_id END
"""
WRITE_PROGRESS = """
INSERT INTO timeseries.learning_progress (user_id, time_ns, course_id, notebook_path, completed_cells, total_cells,
    progress_percentage, session_duration_ms)
SELECT * FROM json_to_recordset($1::json) AS k(user_id uuid, time_ns bigint, course_id uuid, notebook_path text,
    completed_cells int, total_cells int, progress_percentage float8, session_duration_ms bigint)
ON CONFLICT (user_id, time_ns, course_id, notebook_path) DO UPDATE SET completed_cells = excluded.completed_cells,
    total_cells = excluded.total_cells, progress_percentage = excluded.progress_percentage,
    session_duration_ms = excluded.session_duration_ms
"""
WRITE_PERFORMANCE = """
INSERT INTO timeseries.performance_metrics (user_id, time_ns, course_id, notebook_path, cell_type, avg_execution_time,
    max_execution_time, error_rate)
SELECT * FROM json_to_recordset($1::json) AS k(user_id uuid, time_ns bigint, course_id uuid, notebook_path text,
    cell_type text, avg_execution_time float8, max_execution_time float8, error_rate float8)
ON CONFLICT (user_id, time_ns, course_id, notebook_path, cell_type) DO UPDATE SET
    avg_execution_time = excluded.avg_execution_time, max_execution_time = excluded.max_execution_time,
    error_rate = excluded.error_rate
"""

# --- rollups ----------------------------------------------------------------------------------------------------------

# DO UPDATE, not DO NOTHING: it takes the row's lock (and writes nothing else), so that a refresh that is about to clear
# the mark waits for these points, or these points wait for it and mark the minute again.
MARK = """
INSERT INTO timeseries.stale_minutes (minute_ns, user_id, course_id)
SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::uuid[])
ON CONFLICT (minute_ns, user_id, course_id) DO UPDATE SET minute_ns = excluded.minute_ns WHERE FALSE
"""
LOCK_STALE = f"""
SELECT minute_ns, user_id, course_id FROM timeseries.stale_minutes
WHERE minute_ns < extract(epoch FROM now() - $1 * interval '1 second')::bigint * 1000000000 - {MINUTE_NS}
ORDER BY minute_ns, user_id, course_id LIMIT $2 FOR UPDATE SKIP LOCKED
"""  # noqa: S608
_KEYS = "unnest($1::bigint[], $2::uuid[], $3::uuid[]) AS k(minute_ns, user_id, course_id)"
CLEAR_ROLLUP = f"""
DELETE FROM timeseries.cell_executions_1m r USING {_KEYS}
WHERE (r.minute_ns, r.user_id, r.course_id) = (k.minute_ns, k.user_id, k.course_id)
"""  # noqa: S608
FILL_ROLLUP = f"""
INSERT INTO timeseries.cell_executions_1m (minute_ns, user_id, course_id, notebook_path, execution_count, timed_count,
    duration_sum_ms, error_count, duration_bins)
SELECT k.minute_ns, k.user_id, k.course_id, e.notebook_path, count(*), count(e.execution_duration_ms),
    coalesce(sum(e.execution_duration_ms), 0), count(*) FILTER (WHERE e.has_error),
    coalesce(array_agg({_BIN}) FILTER (WHERE e.execution_duration_ms IS NOT NULL), '{{}}')
FROM {_KEYS} JOIN timeseries.cell_executions e ON e.user_id = k.user_id AND e.course_id = k.course_id
    AND e.time_ns >= k.minute_ns AND e.time_ns < k.minute_ns + {MINUTE_NS}
WHERE e.time_ns >= $4 AND e.time_ns < $5
GROUP BY k.minute_ns, k.user_id, k.course_id, e.notebook_path
"""  # noqa: S608
CLEAR_STALE = f"""
DELETE FROM timeseries.stale_minutes s USING {_KEYS}
WHERE (s.minute_ns, s.user_id, s.course_id) = (k.minute_ns, k.user_id, k.course_id)
"""  # noqa: S608

# Slots of ten minutes, made of the minutes rolled up so far: while one of a slot's minutes is stale, nobody reads it.
LOCK_SLOT = "SELECT pg_advisory_xact_lock(6622005, hashtext($1::bigint || $2::uuid::text))"
_SLOTS = "unnest($1::bigint[], $2::uuid[]) AS k(slot_ns, course_id)"
# OFFSET 0: slot by slot, by index. Joined freely, every minute the course ever had would be compared with every slot.
_MINUTES_OF_SLOTS = f"""{_SLOTS} CROSS JOIN LATERAL (
        SELECT * FROM timeseries.cell_executions_1m m WHERE m.course_id = k.course_id
            AND m.minute_ns >= k.slot_ns AND m.minute_ns < k.slot_ns + {SLOT_NS} OFFSET 0
    ) r"""  # noqa: S608
CLEAR_SLOTS = f"""
DELETE FROM timeseries.cell_executions_10m d USING {_SLOTS} WHERE (d.slot_ns, d.course_id) = (k.slot_ns, k.course_id)
"""  # noqa: S608
FILL_SLOTS = f"""
INSERT INTO timeseries.cell_executions_10m (slot_ns, user_id, course_id, notebook_path, execution_count, timed_count,
    duration_sum_ms, error_count)
SELECT k.slot_ns, r.user_id, k.course_id, r.notebook_path, sum(r.execution_count), sum(r.timed_count),
    sum(r.duration_sum_ms), sum(r.error_count)
FROM {_MINUTES_OF_SLOTS} GROUP BY k.slot_ns, r.user_id, k.course_id, r.notebook_path
"""  # noqa: S608
CLEAR_DURATIONS = f"""
DELETE FROM timeseries.durations_10m d USING {_SLOTS} WHERE (d.slot_ns, d.course_id) = (k.slot_ns, k.course_id)
"""  # noqa: S608
FILL_DURATIONS = f"""
WITH minute AS MATERIALIZED (
    SELECT k.slot_ns, k.course_id, r.user_id, r.duration_bins FROM {_MINUTES_OF_SLOTS}
    WHERE r.timed_count > 0
), filled AS (
    SELECT slot_ns, course_id, bin, count(*)::int AS runs FROM minute, unnest(duration_bins) AS bin
    GROUP BY slot_ns, course_id, bin
)
INSERT INTO timeseries.durations_10m (slot_ns, course_id, user_ids, bins, counts)
SELECT * FROM (SELECT slot_ns, course_id, array_agg(DISTINCT user_id) FROM minute GROUP BY slot_ns, course_id) people
JOIN (SELECT slot_ns, course_id, array_agg(bin), array_agg(runs) FROM filled GROUP BY slot_ns, course_id) durations
    USING (slot_ns, course_id)
"""  # noqa: S608

# --- erasure ----------------------------------------------------------------------------------------------------------
# $1 people, $2 a course (null = none).

ERASE: Final = tuple(
    f"DELETE FROM timeseries.{table} WHERE user_id = ANY($1::uuid[]) OR course_id = $2::uuid"  # noqa: S608 - constants
    for table in (
        *("cell_executions", "cell_executions_1m", "cell_executions_10m", "stale_minutes"),
        *("learning_progress", "performance_metrics"),
    )
)
# Slots of which minutes are left, so that their durations can be counted anew. $1 people.
FIND_SHARED_SLOTS = f"""
SELECT d.slot_ns, d.course_id FROM timeseries.durations_10m d WHERE d.user_ids && $1::uuid[] AND EXISTS (
    SELECT FROM timeseries.cell_executions_1m m WHERE m.course_id = d.course_id
        AND m.minute_ns >= d.slot_ns AND m.minute_ns < d.slot_ns + {SLOT_NS})
ORDER BY d.slot_ns, d.course_id
"""  # noqa: S608
FORGET_SLOT_PEOPLE = """
UPDATE timeseries.durations_10m SET user_ids = ARRAY(SELECT unnest(user_ids) EXCEPT SELECT unnest($1::uuid[]))
WHERE user_ids && $1::uuid[]
"""
CLEAR_EMPTY_SLOTS = "DELETE FROM timeseries.durations_10m WHERE user_ids = '{}'"

# --- windows ----------------------------------------------------------------------------------------------------------
# $1 to $2 the window, $3 the bucket, $4 the course and $5 the people; `ask_of_all` makes of each what ignores the two.
# No "or null" here: a plan that serves any course and any people must be as good as one made anew for each question,
# which alone costs up to 2 ms.

_RAW = """SELECT e.time_ns, e.user_id, e.notebook_path, 1 AS execution_count,
        (e.execution_duration_ms IS NOT NULL)::int AS timed_count,
        coalesce(e.execution_duration_ms, 0) AS duration_sum_ms, e.has_error::int AS error_count"""
_MINE = "{0}.course_id = $4 AND {0}.user_id = ANY($5)"
_SCOPE: Final = re.compile(r"(\w)\.course_id = \$4(?: AND \1\.user_id = ANY\(\$5\))?")
# Minutes that are read raw: the stale ones, and the two that the window cuts. Found as rows that lie together; to ask
# for each of a class's people takes as many searches, in an index of everybody's runs. Where they end is computed here:
# below a policy no sum is compared by index, since it may fail and tell of a row that is not to be seen.
_CUT = " UNION ".join(
    f"SELECT r.minute_ns, r.minute_ns + {MINUTE_NS}, r.user_id, r.course_id FROM timeseries.cell_executions_1m r"  # noqa: S608
    f" WHERE r.minute_ns > {bound} - {MINUTE_NS} AND r.minute_ns < {bound} AND {_MINE.format('r')}"
    for bound in ("$1", "$2")
)
_TOUCHED = f"""touched AS MATERIALIZED (
    SELECT s.minute_ns, s.minute_ns + {MINUTE_NS} AS end_ns, s.user_id, s.course_id FROM timeseries.stale_minutes s
    WHERE s.minute_ns > $1 - {MINUTE_NS} AND s.minute_ns < $2 AND {_MINE.format("s")}
    UNION {_CUT}
)"""  # noqa: S608
_FROM_TOUCHED = """FROM touched t JOIN timeseries.cell_executions e
        ON e.user_id = t.user_id AND e.course_id = t.course_id AND e.time_ns >= t.minute_ns AND e.time_ns < t.end_ns
    WHERE e.time_ns >= $1 AND e.time_ns < $2"""
_IS_UNTOUCHED = """NOT EXISTS (SELECT FROM touched t
        WHERE t.minute_ns = r.minute_ns AND t.user_id = r.user_id AND t.course_id = r.course_id)"""
# $6 to $7 are the window's whole minutes or slots. A slot is read as rolled up unless one of its minutes is stale,
# whosever it is: those slots, and what lies before and after the whole ones, are `loose`, and read by their minutes.
_LOOSE = f"""stale AS MATERIALIZED (
    SELECT DISTINCT s.minute_ns / {SLOT_NS} * {SLOT_NS} AS slot_ns FROM timeseries.stale_minutes s
    WHERE s.minute_ns >= $6 AND s.minute_ns < $7 AND s.course_id = $4
), loose AS MATERIALIZED (
    SELECT slot_ns AS start_ns, slot_ns + {SLOT_NS} AS end_ns FROM stale
    UNION ALL VALUES ($1::bigint, $6::bigint), ($7::bigint, $2::bigint)
)"""  # noqa: S608
_IS_FRESH = "NOT EXISTS (SELECT FROM stale WHERE stale.slot_ns = r.slot_ns)"
# OFFSET 0: piece by piece, by index.
_LOOSE_MINUTES = f"""loose l CROSS JOIN LATERAL (
        SELECT * FROM timeseries.cell_executions_1m r
        WHERE r.minute_ns >= l.start_ns AND r.minute_ns < l.end_ns AND {_MINE.format("r")} OFFSET 0
    ) r"""  # noqa: S608


def _read_rollup(at: str, more: str = "") -> str:
    return f"""SELECT r.{at} AS time_ns, r.user_id, r.notebook_path, r.execution_count, r.timed_count,
        r.duration_sum_ms, r.error_count{more}"""


def _compose_minutes(*, more: str = "", raw_more: str = "") -> str:
    """What a window's figures are added up from: minutes as rolled up, touched ones raw."""
    return f"""
WITH {_TOUCHED}, part AS (
    {_read_rollup("minute_ns", more)}
    FROM timeseries.cell_executions_1m r
    WHERE r.minute_ns >= $6 AND r.minute_ns < $7 AND {_MINE.format("r")} AND {_IS_UNTOUCHED}
    UNION ALL
    {_RAW}{raw_more} {_FROM_TOUCHED}
)"""


_MINUTE_PARTS = _compose_minutes()
_SLOT_PARTS = f"""
WITH {_TOUCHED}, {_LOOSE}, part AS (
    {_read_rollup("slot_ns")}
    FROM timeseries.cell_executions_10m r
    WHERE r.slot_ns >= $6 AND r.slot_ns < $7 AND {_MINE.format("r")} AND {_IS_FRESH}
    UNION ALL
    {_read_rollup("minute_ns")} FROM {_LOOSE_MINUTES} WHERE {_IS_UNTOUCHED}
    UNION ALL
    {_RAW} {_FROM_TOUCHED}
)"""
_ACTIVITY = """ SELECT time_ns / $3 * $3 AS at_ns, user_id, sum(duration_sum_ms) / sum(timed_count) AS avg_duration_ms,
    sum(timed_count)::bigint AS execution_count
FROM part GROUP BY at_ns, user_id HAVING sum(timed_count) > 0 ORDER BY at_ns, user_id
"""
_ERROR_RATE = """ SELECT time_ns / $3 * $3 AS at_ns, notebook_path, sum(error_count)::bigint AS error_count,
    sum(execution_count)::bigint AS total_executions
FROM part GROUP BY at_ns, notebook_path ORDER BY at_ns, notebook_path
"""
# For buckets of whole slots, and for finer ones.
SLOT_ACTIVITY, MINUTE_ACTIVITY = _SLOT_PARTS + _ACTIVITY, _MINUTE_PARTS + _ACTIVITY
SLOT_ERROR_RATE, MINUTE_ERROR_RATE = _SLOT_PARTS + _ERROR_RATE, _MINUTE_PARTS + _ERROR_RATE
# From `filled(at_ns, bin, runs)`. The bin of rank q(n-1), as in the paper: the first up to which there are
# more than that.
_RANK_BINS = """
ranked AS (
    SELECT at_ns, bin, sum(runs) OVER (PARTITION BY at_ns ORDER BY bin) AS up_to,
        sum(runs) OVER (PARTITION BY at_ns) AS runs FROM filled
)
SELECT at_ns, ARRAY[min(bin) FILTER (WHERE up_to > 0.5 * (runs - 1)), min(bin) FILTER (WHERE up_to > 0.95 * (runs - 1))]
    AS bins, max(runs)::bigint AS execution_count
FROM ranked GROUP BY at_ns ORDER BY at_ns
"""
_BINNED_PARTS = _compose_minutes(
    more=", r.duration_bins",
    raw_more=f", CASE WHEN e.execution_duration_ms IS NULL THEN '{{}}' ELSE ARRAY[{_BIN}] END",
)
MINUTE_PERCENTILES = f"""
{_BINNED_PARTS}, filled AS (
    SELECT time_ns / $3 * $3 AS at_ns, bin, count(*) AS runs FROM part, unnest(duration_bins) AS bin GROUP BY at_ns, bin
), {_RANK_BINS}
"""  # noqa: S608
_TIMED = f"""SELECT e.time_ns, {_BIN} AS bin"""
# Bins can be taken away as they are added: the class's, without those of the people in them who were not asked for
# (they are few: its instructors).
SLOT_PERCENTILES = f"""
WITH {_TOUCHED}, {_LOOSE}, slot AS MATERIALIZED (
    SELECT r.*, r.slot_ns + {SLOT_NS} AS end_ns FROM timeseries.durations_10m r
    WHERE r.slot_ns >= $6 AND r.slot_ns < $7 AND r.course_id = $4 AND {_IS_FRESH}
), other AS MATERIALIZED (
    SELECT s.slot_ns, s.end_ns, s.course_id, one AS user_id FROM slot s, unnest(s.user_ids) AS one
    WHERE $5::uuid[] IS NOT NULL AND NOT EXISTS (SELECT FROM unnest($5::uuid[]) AS asked WHERE asked = one)
), part AS (
    SELECT slot_ns AS time_ns, k.bin, k.runs FROM slot, unnest(bins, counts) AS k(bin, runs)
    UNION ALL
    {_TIMED}, -1 FROM other o JOIN timeseries.cell_executions e ON e.user_id = o.user_id AND e.course_id = o.course_id
        AND e.time_ns >= o.slot_ns AND e.time_ns < o.end_ns WHERE e.execution_duration_ms IS NOT NULL
    UNION ALL
    SELECT r.minute_ns, bin, 1 FROM {_LOOSE_MINUTES} CROSS JOIN LATERAL unnest(r.duration_bins) AS bin
    WHERE {_IS_UNTOUCHED}
    UNION ALL
    {_TIMED}, 1 {_FROM_TOUCHED} AND e.execution_duration_ms IS NOT NULL
), filled AS (
    SELECT time_ns / $3 * $3 AS at_ns, bin, sum(runs) AS runs FROM part GROUP BY at_ns, bin HAVING sum(runs) > 0
), {_RANK_BINS}
"""  # noqa: S608
PROGRESS = f"""
SELECT DISTINCT ON (at_ns, user_id, notebook_path) time_ns / $3 * $3 AS at_ns, user_id, notebook_path, completed_cells,
    total_cells, progress_percentage, session_duration_ms
FROM timeseries.learning_progress e WHERE time_ns >= $1 AND time_ns < $2 AND {_MINE.format("e")}
ORDER BY at_ns, user_id, notebook_path, time_ns DESC
"""  # noqa: S608
PERFORMANCE = f"""
SELECT time_ns / $3 * $3 AS at_ns, notebook_path, cell_type, avg(avg_execution_time) AS avg_execution_time,
    max(max_execution_time) AS max_execution_time, avg(error_rate) AS error_rate
FROM timeseries.performance_metrics e WHERE time_ns >= $1 AND time_ns < $2 AND {_MINE.format("e")}
GROUP BY at_ns, notebook_path, cell_type ORDER BY at_ns, notebook_path, cell_type
"""  # noqa: S608


@cache
def ask_of_all(statement: str) -> str:
    """The same window of every course and of everybody: $4 and $5 are null."""
    return _SCOPE.sub("$4::uuid IS NULL AND $5::uuid[] IS NULL", statement)
