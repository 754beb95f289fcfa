"""What is older than the operator keeps it goes: whole months by DROP, the rest by rows.

Run by the worker's job, hence with the rights of the login that keeps partitions. The ledger's rows are counted as
removed (docs/decisions/0011). Class-wide durations of courses of at least 5 students are kept.
"""

from alembic import op

revision = "0020"
down_revision = "0019"

MONTHS = """
CREATE FUNCTION drop_expired_months(raw_before timestamptz, derived_before timestamptz, is_real boolean)
RETURNS TABLE (name text, count bigint) LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp SET timezone = 'UTC' SET lock_timeout = '3s' AS $$
DECLARE
    kept record;
    child record;
    month timestamptz;
    bounds text[];
BEGIN
    PERFORM pg_advisory_xact_lock(6622003);
    FOR kept IN SELECT * FROM (VALUES
            ('events', 'occurred_at', raw_before), ('timeseries.cell_executions', '', raw_before),
            ('learning_sessions', 'started_at', derived_before), ('timeseries.learning_progress', '', derived_before),
            ('timeseries.performance_metrics', '', derived_before)) AS k(parent, clock, before) LOOP
        FOR child IN SELECT i.inhrelid::regclass::text AS name FROM pg_inherits i
                WHERE i.inhparent = kept.parent::regclass AND i.inhrelid::regclass::text ~ '_[0-9]{4}_[0-9]{2}$'
                ORDER BY 1 LOOP
            month := to_timestamp(right(child.name, 7), 'YYYY_MM');
            CONTINUE WHEN kept.before IS NULL OR month + interval '1 month' > kept.before;
            bounds := ARRAY[month::text, (month + interval '1 month')::text];
            IF kept.clock = '' THEN
                bounds := ARRAY[(extract(epoch FROM month)::bigint * 1000000000)::text,
                    (extract(epoch FROM month + interval '1 month')::bigint * 1000000000)::text];
            END IF;
            IF is_real THEN
                EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', kept.parent);
            END IF;
            EXECUTE format('SELECT count(*) FROM %s WHERE %I >= %L AND %I < %L', kept.parent,
                CASE kept.clock WHEN '' THEN 'time_ns' ELSE kept.clock END, bounds[1],
                CASE kept.clock WHEN '' THEN 'time_ns' ELSE kept.clock END, bounds[2]) INTO count;
            name := child.name;
            IF is_real THEN
                EXECUTE format('DROP TABLE %s', child.name);
                IF kept.parent = 'events' THEN
                    PERFORM count_removed(count);
                END IF;
            END IF;
            RETURN NEXT;
        END LOOP;
    END LOOP;
END $$
"""
# Rows of tables without months, and those that wait in a default partition; at most so many of each at a time.
# Table, condition ($1 the moment, $2 the same in ns), and which limit it is.
_OLD = {
    "events": ("occurred_at < $1", "raw_before"),
    "event_ids": ("occurred_at < $1", "raw_before"),
    "event_contents": ("occurred_at < $1", "raw_before"),
    "help_requests": ("opened_at < $1", "raw_before"),
    "messages": ("created_at < $1", "raw_before"),
    "interventions": ("at < $1", "raw_before"),
    "dead_letters": ("first_seen_at < $1", "raw_before"),
    "timeseries.cell_executions": ("time_ns < $2", "raw_before"),
    "timeseries.cell_executions_1m": ("minute_ns < $2", "raw_before"),
    "timeseries.cell_executions_10m": ("slot_ns < $2", "derived_before"),
    "timeseries.durations_10m": (
        "slot_ns < $2 AND 5 > (SELECT count(*) FROM enrolments e WHERE e.course_id = t.course_id AND role = 'student')",
        "derived_before",
    ),
    "learning_sessions": ("started_at < $1", "derived_before"),
    "timeseries.learning_progress": ("time_ns < $2", "derived_before"),
    "timeseries.performance_metrics": ("time_ns < $2", "derived_before"),
}
_BY_MONTH = {
    *("events", "timeseries.cell_executions", "learning_sessions"),
    *("timeseries.learning_progress", "timeseries.performance_metrics"),
}
_VALUES = ", ".join(
    "('{}', '{}', {})".format(
        table,
        (f"t.tableoid = '{table}_default'::regclass AND " * (table in _BY_MONTH) + condition).replace("'", "''"),
        limit,
    )
    for table, (condition, limit) in _OLD.items()
)
ROWS = """
CREATE FUNCTION delete_expired_rows(raw_before timestamptz, derived_before timestamptz, at_most integer,
    is_real boolean)
RETURNS TABLE (name text, count bigint) LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    kept record;
BEGIN
    PERFORM pg_advisory_xact_lock(6622003);
    FOR kept IN SELECT * FROM (VALUES {VALUES}) AS k(kept_table, condition, before) LOOP
        CONTINUE WHEN kept.before IS NULL;
        name := kept.kept_table;
        IF is_real THEN
            EXECUTE format('WITH gone AS (DELETE FROM %s t WHERE (t.tableoid, t.ctid) IN'
                ' (SELECT t.tableoid, t.ctid FROM %s t WHERE %s LIMIT %s) RETURNING 1) SELECT count(*) FROM gone',
                kept.kept_table, kept.kept_table, kept.condition, at_most)
                INTO count USING kept.before, extract(epoch FROM kept.before)::bigint * 1000000000;
            IF kept.kept_table = 'events' THEN
                PERFORM count_removed(count);
            END IF;
        ELSE
            EXECUTE format('SELECT count(*) FROM %s t WHERE %s', kept.kept_table, kept.condition)
                INTO count USING kept.before, extract(epoch FROM kept.before)::bigint * 1000000000;
        END IF;
        IF count > 0 THEN
            RETURN NEXT;
        END IF;
    END LOOP;
END $$
"""
NAMES = (
    "drop_expired_months(timestamptz, timestamptz, boolean)",
    "delete_expired_rows(timestamptz, timestamptz, integer, boolean)",
)


def upgrade() -> None:
    op.execute("SET LOCAL ROLE nbpulse_migrator")
    for function, name in zip((MONTHS, ROWS.replace("{VALUES}", _VALUES)), NAMES, strict=True):
        op.execute(function)
        op.execute(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO app_writer, nbpulse_owner")
    op.execute("SET LOCAL ROLE nbpulse_owner")


def downgrade() -> None:
    op.execute("SET LOCAL ROLE nbpulse_migrator")
    for name in NAMES:
        op.execute(f"DROP FUNCTION {name}")
    op.execute("SET LOCAL ROLE nbpulse_owner")
