"""A course's rows can be removed in a database beside the directory, where its people may not have changed yet.

`clear_course` is what `remove_course` did of one course; `forget_course` lets a worker do it where the directory's word
has come that there is no such course any more. Its lock waits for batches in flight: who comes later finds no course.
"""

from alembic import op

revision = "0044"
down_revision = "0043"

# The notebooks of a course that is gone are known by its sessions alone.
CLEAR = """
CREATE FUNCTION clear_course(course uuid) RETURNS bigint
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    books uuid[];
    gone bigint;
BEGIN
    SELECT coalesce(array_agg(id), '{}') INTO books FROM (
        SELECT id FROM notebooks WHERE course_id = course
        UNION SELECT notebook_id FROM learning_sessions WHERE course_id = course AND notebook_id IS NOT NULL
    ) k;
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
    DELETE FROM series_marks WHERE notebook_id = ANY(books);
    DELETE FROM series_standings WHERE notebook_id = ANY(books);
    DELETE FROM courses WHERE id = course;
    RETURN gone;
END $$
"""
# As in 0008, but for what is `clear_course` now.
REMOVE = """
CREATE OR REPLACE FUNCTION remove_course(course uuid) RETURNS integer
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    only_here uuid[];
BEGIN
    SELECT coalesce(array_agg(e.user_id), '{}') INTO only_here FROM enrolments e
    WHERE e.course_id = course AND e.role = 'student'
        AND NOT EXISTS (SELECT FROM enrolments o WHERE o.user_id = e.user_id AND o.course_id <> course);
    PERFORM clear_course(course);
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
FORGET = """
CREATE FUNCTION forget_course(course uuid) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM courses WHERE id = course) THEN
        RETURN NULL;
    END IF;
    PERFORM FROM learner_states WHERE course_id = course ORDER BY user_id FOR UPDATE;
    RETURN clear_course(course);
END $$
"""


def upgrade() -> None:
    op.execute(CLEAR)
    op.execute(REMOVE)
    op.execute("REVOKE ALL ON FUNCTION clear_course(uuid) FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION clear_course(uuid) TO app_maintenance")
    op.execute("SET LOCAL ROLE app_maintenance")  # what it sees, it sees by its policies
    op.execute(FORGET)
    op.execute("REVOKE ALL ON FUNCTION forget_course(uuid) FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION forget_course(uuid) TO app_writer")
    op.execute("SET LOCAL ROLE nbpulse_owner")


def downgrade() -> None:
    raise NotImplementedError("restore a backup made before it instead")
