"""What became of each entry of the stream: counted in the transaction that did it, so that none can go unnoticed.

`event_ids.entry_id` says which entry stored an event, `spent_entries` which entries stored none and why; together they
make a redelivered entry tell apart from a client's duplicate, and each entry count once. `removed` are ledger rows that
were deleted on purpose. `stream_bases` holds what the counters stood at when a stream server was first seen.
"""

from alembic import op

revision = "0008"
down_revision = "0007"

TABLES = """
ALTER TABLE event_ids ADD COLUMN entry_id VARCHAR(60);
CREATE TABLE event_counts (
    slot SMALLINT PRIMARY KEY,
    stored BIGINT NOT NULL DEFAULT 0,
    duplicate BIGINT NOT NULL DEFAULT 0,
    quarantined BIGINT NOT NULL DEFAULT 0,
    dropped BIGINT NOT NULL DEFAULT 0,
    removed BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 20);
CREATE TABLE spent_entries (
    stream VARCHAR(100) NOT NULL,
    entry_id VARCHAR(60) NOT NULL,
    outcome VARCHAR(20) NOT NULL CHECK (outcome IN ('duplicate', 'dropped')),
    at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    PRIMARY KEY (stream, entry_id)
);
CREATE INDEX idx_spent_entries_at ON spent_entries USING brin (at);
CREATE TABLE stream_bases (
    generation VARCHAR(40) PRIMARY KEY,
    base BIGINT NOT NULL,
    first_seen_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW()
)
"""
NEW = ("event_counts", "spent_entries", "stream_bases")
# As in 0002; points and marks go by the course, also of people who stay in another one. The ledger's rows that go are
# counted as removed, and users go with those that were merged into them.
REMOVE = """
CREATE OR REPLACE FUNCTION remove_course(course uuid) RETURNS integer
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    only_here uuid[];
    gone bigint;
BEGIN
    SELECT coalesce(array_agg(e.user_id), '{}') INTO only_here FROM enrolments e
    WHERE e.course_id = course AND e.role = 'student'
        AND NOT EXISTS (SELECT FROM enrolments o WHERE o.user_id = e.user_id AND o.course_id <> course);
    DELETE FROM event_contents c USING events e
        WHERE e.course_id = course AND (c.user_id, c.event_id) = (e.user_id, e.event_id);
    DELETE FROM event_ids i USING events e
        WHERE e.course_id = course AND (i.user_id, i.event_id) = (e.user_id, e.event_id);
    DELETE FROM events WHERE course_id = course;
    GET DIAGNOSTICS gone = ROW_COUNT;
    PERFORM count_removed(gone);
    DELETE FROM learning_sessions WHERE course_id = course;
    DELETE FROM learner_states WHERE course_id = course;
    DELETE FROM learner_cells WHERE course_id = course;
    DELETE FROM help_requests WHERE course_id = course;
    DELETE FROM series_marks m USING notebooks n WHERE n.course_id = course AND m.notebook_id = n.id;
    DELETE FROM courses WHERE id = course;
    DELETE FROM timeseries.cell_executions WHERE course_id = course OR user_id = ANY(only_here);
    DELETE FROM timeseries.cell_executions_1m WHERE course_id = course OR user_id = ANY(only_here);
    DELETE FROM timeseries.stale_minutes WHERE course_id = course OR user_id = ANY(only_here);
    DELETE FROM timeseries.cell_executions_10m WHERE course_id = course;
    DELETE FROM timeseries.durations_10m WHERE course_id = course;
    DELETE FROM timeseries.learning_progress WHERE course_id = course OR user_id = ANY(only_here);
    DELETE FROM timeseries.performance_metrics WHERE course_id = course OR user_id = ANY(only_here);
    DELETE FROM dead_letters WHERE user_id = ANY(only_here);
    WITH RECURSIVE gone AS (
        SELECT unnest(only_here) AS id UNION SELECT u.id FROM users u JOIN gone ON u.merged_into = gone.id
    )
    DELETE FROM users u USING gone WHERE u.id = gone.id;
    RETURN cardinality(only_here);
END $$
"""
COUNT_REMOVED = """
CREATE FUNCTION count_removed(count bigint) RETURNS void LANGUAGE sql SET search_path = public, pg_temp AS $$
    INSERT INTO event_counts AS c (slot, removed) VALUES (0, count)
    ON CONFLICT (slot) DO UPDATE SET removed = c.removed + excluded.removed
$$
"""
RIGHTS = (
    "GRANT SELECT, INSERT, UPDATE, DELETE ON event_counts, spent_entries, stream_bases TO app_maintenance",
    "GRANT SELECT ON event_counts, spent_entries, stream_bases TO nbpulse_operator",
    "REVOKE ALL ON event_counts, spent_entries, stream_bases FROM app_reader, app_writer, app_user",
    "GRANT SELECT, INSERT, UPDATE ON event_counts, spent_entries, stream_bases TO app_writer",
    "GRANT DELETE ON spent_entries TO app_writer",
    "REVOKE ALL ON FUNCTION count_removed(bigint) FROM PUBLIC",
    "GRANT EXECUTE ON FUNCTION count_removed(bigint) TO app_maintenance",
)


def upgrade() -> None:
    for statement in TABLES.split(";\n"):
        op.execute(statement)
    for table in NEW:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY maintenance_policy ON {table} TO app_maintenance USING (true) WITH CHECK (true)")
        op.execute(f"CREATE POLICY operator_policy ON {table} FOR SELECT TO nbpulse_operator USING (true)")
        op.execute(f"CREATE POLICY worker_policy ON {table} TO app_writer USING (true) WITH CHECK (true)")
    op.execute(COUNT_REMOVED)
    op.execute(REMOVE)
    for statement in RIGHTS:
        op.execute(statement)
    # What is in the ledger already was stored before anybody counted.
    op.execute("SET LOCAL ROLE app_maintenance")
    op.execute("INSERT INTO event_counts (slot, stored) SELECT 0, count(*) FROM events HAVING count(*) > 0")
    op.execute("SET LOCAL ROLE nbpulse_owner")


def downgrade() -> None:
    raise NotImplementedError("what was counted would be forgotten: restore a backup made before it instead")
