"""What a Citus cluster needs of the schema, and what is the same elsewhere (docs/decisions/0034).

Who is asking is said by a function, `ask_as`: on a cluster it says so to every node. Rows that are past their time are
deleted of distributed tables at once: there is no `ctid` across nodes.
"""

from alembic import op

revision = "0038"
down_revision = "0036"

ASK_AS = """
CREATE FUNCTION ask_as(person text) RETURNS text LANGUAGE sql AS $$
    SELECT set_config('app.current_user_id', person, true)
$$
"""
# As in 0020, but what waits in a default partition is asked of that partition itself.
_OLD = {
    "events": ("events_default", "occurred_at < $1", "raw_before"),
    "event_ids": ("event_ids", "occurred_at < $1", "raw_before"),
    "event_contents": ("event_contents", "occurred_at < $1", "raw_before"),
    "help_requests": ("help_requests", "opened_at < $1", "raw_before"),
    "messages": ("messages", "created_at < $1", "raw_before"),
    "interventions": ("interventions", "at < $1", "raw_before"),
    "dead_letters": ("dead_letters", "first_seen_at < $1", "raw_before"),
    "timeseries.cell_executions": ("timeseries.cell_executions_default", "time_ns < $2", "raw_before"),
    "timeseries.cell_executions_1m": ("timeseries.cell_executions_1m", "minute_ns < $2", "raw_before"),
    "timeseries.cell_executions_10m": ("timeseries.cell_executions_10m", "slot_ns < $2", "derived_before"),
    "timeseries.durations_10m": (
        "timeseries.durations_10m",
        "slot_ns < $2 AND 5 > (SELECT count(*) FROM enrolments e WHERE e.course_id = t.course_id AND role = 'student')",
        "derived_before",
    ),
    "learning_sessions": ("learning_sessions_default", "started_at < $1", "derived_before"),
    "timeseries.learning_progress": ("timeseries.learning_progress_default", "time_ns < $2", "derived_before"),
    "timeseries.performance_metrics": ("timeseries.performance_metrics_default", "time_ns < $2", "derived_before"),
}
_VALUES = ", ".join(
    "('{}', '{}', '{}', {})".format(name, place, condition.replace("'", "''"), limit)
    for name, (place, condition, limit) in _OLD.items()
)
DELETE_EXPIRED = """
CREATE OR REPLACE FUNCTION delete_expired_rows(raw_before timestamptz, derived_before timestamptz, at_most integer,
    is_real boolean)
RETURNS TABLE (name text, count bigint) LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    kept record;
    distributed regclass[] := '{}';
BEGIN
    PERFORM pg_advisory_xact_lock(6622003);
    IF to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL THEN
        EXECUTE 'SELECT array_agg(logicalrelid) FROM pg_dist_partition' INTO distributed;
    END IF;
    FOR kept IN SELECT * FROM (VALUES {VALUES}) AS k(kept_table, place, condition, before) LOOP
        CONTINUE WHEN kept.before IS NULL;
        name := kept.kept_table;
        IF NOT is_real THEN
            EXECUTE format('SELECT count(*) FROM %s t WHERE %s', kept.place, kept.condition)
                INTO count USING kept.before, extract(epoch FROM kept.before)::bigint * 1000000000;
        ELSIF kept.place::regclass = ANY(distributed) THEN
            EXECUTE format('DELETE FROM %s t WHERE %s', kept.place, kept.condition)
                USING kept.before, extract(epoch FROM kept.before)::bigint * 1000000000;
            GET DIAGNOSTICS count = ROW_COUNT;
        ELSE
            EXECUTE format('DELETE FROM %s t WHERE ctid IN (SELECT t.ctid FROM %s t WHERE %s LIMIT %s)',
                kept.place, kept.place, kept.condition, at_most)
                USING kept.before, extract(epoch FROM kept.before)::bigint * 1000000000;
            GET DIAGNOSTICS count = ROW_COUNT;
        END IF;
        IF is_real AND kept.kept_table = 'events' THEN
            PERFORM count_removed(count);
        END IF;
        IF count > 0 THEN
            RETURN NEXT;
        END IF;
    END LOOP;
END $$
"""


def upgrade() -> None:
    op.execute(ASK_AS)
    op.execute("SET LOCAL ROLE nbpulse_migrator")
    op.execute(DELETE_EXPIRED.replace("{VALUES}", _VALUES))
    op.execute("SET LOCAL ROLE nbpulse_owner")


def downgrade() -> None:
    op.execute("DROP FUNCTION ask_as(text)")
