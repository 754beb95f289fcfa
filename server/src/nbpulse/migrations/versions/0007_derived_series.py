"""The specification's other two measurements, the course in every point, and durations kept as bins.

Points are shown to staff by course from here on. A point of an earlier version gets its course from the ledger; one
whose event is not found there keeps the nil UUID, which is nobody's course. Rollups are computed anew.
The removal of a course with its points is 0008's.
"""

from alembic import op

revision = "0007"
down_revision = "0006"

NOBODYS = "'00000000-0000-0000-0000-000000000000'"
NEW_SERIES = ("timeseries.learning_progress", "timeseries.performance_metrics")
SLOTS = "timeseries.cell_executions_10m"
DURATIONS = "timeseries.durations_10m"
SERIES = ("timeseries.cell_executions", "timeseries.cell_executions_1m", "timeseries.stale_minutes")
SHARD = (
    "shard smallint NOT NULL CHECK (shard = "
    "(('x' || substr(md5(user_id::text), 1, 8))::bit(32)::bigint % 64)::smallint)"
)

TABLES = f"""
ALTER TABLE notebook_cells ADD COLUMN exercise_id VARCHAR(200);
ALTER TABLE notebooks ADD COLUMN items_digest VARCHAR(32), ADD COLUMN items_marked_at TIMESTAMP WITH TIME ZONE;
CREATE TABLE series_marks (
    user_id UUID NOT NULL,
    {SHARD},
    notebook_id UUID NOT NULL,
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    revision BIGINT NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    marked_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    PRIMARY KEY (user_id, shard, notebook_id)
) WITH (fillfactor = 60);
ALTER TABLE series_debt ADD COLUMN sealed_points TEXT;
ALTER TABLE series_rejects ADD COLUMN measurement VARCHAR(40) NOT NULL DEFAULT 'cell_executions';
ALTER TABLE series_rejects DROP CONSTRAINT series_rejects_pkey;
ALTER TABLE series_rejects ADD PRIMARY KEY (user_id, shard, time_ns, measurement);
ALTER TABLE timeseries.cell_executions ADD COLUMN course_id UUID NOT NULL DEFAULT {NOBODYS};
TRUNCATE timeseries.cell_executions_1m, timeseries.stale_minutes;
ALTER TABLE timeseries.cell_executions_1m DROP CONSTRAINT cell_executions_1m_pkey;
ALTER TABLE timeseries.cell_executions_1m ADD COLUMN course_id UUID NOT NULL,
    ADD COLUMN duration_bins SMALLINT[] NOT NULL, ADD PRIMARY KEY (minute_ns, user_id, course_id, notebook_path);
ALTER TABLE timeseries.stale_minutes DROP CONSTRAINT stale_minutes_pkey;
ALTER TABLE timeseries.stale_minutes ADD COLUMN course_id UUID NOT NULL,
    ADD PRIMARY KEY (minute_ns, user_id, course_id);
CREATE TABLE timeseries.cell_executions_10m (
    slot_ns BIGINT NOT NULL,
    user_id UUID NOT NULL,
    course_id UUID NOT NULL,
    notebook_path VARCHAR(500) NOT NULL,
    execution_count INTEGER NOT NULL,
    timed_count INTEGER NOT NULL,
    duration_sum_ms DOUBLE PRECISION NOT NULL,
    error_count INTEGER NOT NULL,
    PRIMARY KEY (slot_ns, course_id, user_id, notebook_path)
);
CREATE TABLE timeseries.durations_10m (
    slot_ns BIGINT NOT NULL,
    course_id UUID NOT NULL,
    user_ids UUID[] NOT NULL,
    bins SMALLINT[] NOT NULL,
    counts INTEGER[] NOT NULL,
    PRIMARY KEY (slot_ns, course_id)
);
CREATE TABLE timeseries.learning_progress (
    user_id UUID NOT NULL,
    time_ns BIGINT NOT NULL,
    course_id UUID NOT NULL,
    notebook_path VARCHAR(500) NOT NULL,
    completed_cells INTEGER NOT NULL,
    total_cells INTEGER NOT NULL,
    progress_percentage DOUBLE PRECISION NOT NULL,
    session_duration_ms BIGINT NOT NULL,
    PRIMARY KEY (user_id, time_ns, course_id, notebook_path)
) PARTITION BY RANGE (time_ns);
CREATE INDEX idx_learning_progress_course ON timeseries.learning_progress (course_id, time_ns);
CREATE TABLE timeseries.learning_progress_default PARTITION OF timeseries.learning_progress DEFAULT;
CREATE TABLE timeseries.performance_metrics (
    user_id UUID NOT NULL,
    time_ns BIGINT NOT NULL,
    course_id UUID NOT NULL,
    notebook_path VARCHAR(500) NOT NULL,
    cell_type VARCHAR(256) NOT NULL,
    avg_execution_time DOUBLE PRECISION,
    max_execution_time DOUBLE PRECISION,
    error_rate DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (user_id, time_ns, course_id, notebook_path, cell_type)
) PARTITION BY RANGE (time_ns);
CREATE INDEX idx_performance_metrics_course ON timeseries.performance_metrics (course_id, time_ns);
CREATE TABLE timeseries.performance_metrics_default PARTITION OF timeseries.performance_metrics DEFAULT
"""
# The ordinal says which event of the student it is; the moment was rounded to ms by another rule than PostgreSQL's.
FILL_COURSE = """
UPDATE timeseries.cell_executions p SET course_id = e.course_id FROM events e
WHERE e.event_type = 'cell_execution' AND e.user_id = p.user_id AND e.ordinal % 1000000 = p.time_ns % 1000000
    AND abs(p.time_ns / 1000000 - extract(epoch FROM e.occurred_at) * 1000) <= 1
"""
MARK_ALL_MINUTES = """
INSERT INTO timeseries.stale_minutes (minute_ns, user_id, course_id)
SELECT DISTINCT time_ns / 60000000000 * 60000000000, user_id, course_id FROM timeseries.cell_executions
"""
# As in 0005, with two parents more.
ENSURE_MONTHS = """
CREATE OR REPLACE FUNCTION ensure_months(ahead integer) RETURNS text[] LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp SET timezone = 'UTC' SET lock_timeout = '3s' AS $$
DECLARE
    month timestamptz;
    parent text;
    child text;
    bounds text[];
    made text[] := '{}';
BEGIN
    PERFORM pg_advisory_xact_lock(6622003);
    FOR month IN SELECT generate_series(date_trunc('month', now()), now() + ahead * interval '1 month', '1 month') LOOP
        FOREACH parent IN ARRAY ARRAY['events', 'learning_sessions', 'timeseries.cell_executions',
                'timeseries.learning_progress', 'timeseries.performance_metrics'] LOOP
            child := parent || to_char(month, '_YYYY_MM');
            CONTINUE WHEN to_regclass(child) IS NOT NULL;
            bounds := ARRAY[month::text, (month + interval '1 month')::text];
            IF parent LIKE 'timeseries.%' THEN
                bounds := ARRAY[(extract(epoch FROM month)::bigint * 1000000000)::text,
                    (extract(epoch FROM month + interval '1 month')::bigint * 1000000000)::text];
            END IF;
            EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL)', child, parent);
            EXECUTE format('ALTER TABLE %s OWNER TO nbpulse_owner', child);
            EXECUTE format('WITH moved AS (DELETE FROM %1$s_default WHERE %3$I >= %4$L AND %3$I < %5$L RETURNING *)'
                ' INSERT INTO %2$s SELECT * FROM moved', parent, child,
                CASE parent WHEN 'events' THEN 'occurred_at' WHEN 'learning_sessions' THEN 'started_at'
                    ELSE 'time_ns' END, bounds[1], bounds[2]);
            EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
                parent, child, bounds[1], bounds[2]);
            EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', child);
            EXECUTE format('REVOKE ALL ON %s FROM app_reader, app_writer, app_user, nbpulse_operator', child);
            made := made || child;
        END LOOP;
    END LOOP;
    IF cardinality(made) > 0 THEN
        ANALYZE events, learning_sessions, timeseries.cell_executions, timeseries.learning_progress,
            timeseries.performance_metrics;
    END IF;
    RETURN made;
END $$
"""
COUNT_OWED = """
CREATE FUNCTION count_owed() RETURNS TABLE (debt_batches bigint, debt_oldest_s numeric, dead_letters bigint,
    series_marks bigint, mark_oldest_s numeric)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT (SELECT count(*) FROM series_debt),
        (SELECT coalesce(extract(epoch FROM now() - min(created_at)), 0) FROM series_debt),
        (SELECT count(*) FROM dead_letters WHERE replayed_at IS NULL),
        (SELECT count(*) FROM series_marks),
        (SELECT coalesce(extract(epoch FROM now() - min(marked_at)), 0) FROM series_marks)
$$
"""


def upgrade() -> None:
    for statement in TABLES.split(";\n"):
        op.execute(statement)
    _protect()
    op.execute("SET LOCAL ROLE app_maintenance")  # the owner sees no row
    for function in ("count_owed()", "my_students()"):  # nobody is shown points by student any more
        op.execute(f"DROP FUNCTION {function}")
    for statement in (FILL_COURSE, MARK_ALL_MINUTES, COUNT_OWED):
        op.execute(statement)
    op.execute("REVOKE ALL ON FUNCTION count_owed() FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION count_owed() TO app_user")
    op.execute("SET LOCAL ROLE nbpulse_migrator")
    op.execute(ENSURE_MONTHS)
    op.execute("SET LOCAL ROLE nbpulse_owner")


def _protect() -> None:
    everyone = "app_reader, app_writer, app_user, nbpulse_operator"
    new = ("series_marks", SLOTS, DURATIONS, *NEW_SERIES)
    for table in (*new, *(f"{parent}_default" for parent in NEW_SERIES)):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        op.execute(f"REVOKE ALL ON {table} FROM {everyone}")
        op.execute(f"CREATE POLICY maintenance_policy ON {table} TO app_maintenance USING (true) WITH CHECK (true)")
    for table in new:
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO app_maintenance")
        op.execute(f"GRANT SELECT, INSERT, UPDATE ON {table} TO app_writer")
        op.execute(f"GRANT SELECT ON {table} TO nbpulse_operator")
        op.execute(f"CREATE POLICY operator_policy ON {table} FOR SELECT TO nbpulse_operator USING (true)")
        op.execute(f"CREATE POLICY worker_policy ON {table} TO app_writer USING (true) WITH CHECK (true)")
    op.execute(f"GRANT DELETE ON series_marks, {SLOTS}, {DURATIONS} TO app_writer")
    for table in (SLOTS, DURATIONS, *NEW_SERIES):
        op.execute(f"GRANT SELECT ON {table} TO app_reader, app_user")
        op.execute(f"CREATE POLICY reader_policy ON {table} FOR SELECT TO app_reader USING (true)")
    for table in SERIES:
        op.execute(f"DROP POLICY user_select_policy ON {table}")
    taught = "course_id = ANY((SELECT my_taught_courses())::uuid[])"  # asked once per query, never per row of a scan
    own = "user_id = nullif(current_setting('app.current_user_id', true), '')::uuid"
    for table in (*SERIES, SLOTS, *NEW_SERIES):
        op.execute(f"CREATE POLICY user_select_policy ON {table} FOR SELECT TO app_user USING ({own} OR {taught})")
    op.execute(f"CREATE POLICY user_select_policy ON {DURATIONS} FOR SELECT TO app_user USING ({taught})")


def downgrade() -> None:
    raise NotImplementedError("a course once shown apart is not mixed again: restore a backup made before it instead")
