"""Removing a course with all work in it; the API's login may do it to demo and rehearsal courses only.

A login of ours may delete no student's row by itself, so the way for the API is a function of the owner's.
"""

from alembic import op

revision = "0002"
down_revision = "0001"

# Children first. A person who is in another course keeps what belongs there.
REMOVE = """
CREATE FUNCTION remove_course(course uuid) RETURNS integer
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    only_here uuid[];
BEGIN
    SELECT coalesce(array_agg(e.user_id), '{}') INTO only_here FROM enrolments e
    WHERE e.course_id = course AND e.role = 'student'
        AND NOT EXISTS (SELECT FROM enrolments o WHERE o.user_id = e.user_id AND o.course_id <> course);
    DELETE FROM event_contents c USING events e
        WHERE e.course_id = course AND (c.user_id, c.event_id) = (e.user_id, e.event_id);
    DELETE FROM event_ids i USING events e
        WHERE e.course_id = course AND (i.user_id, i.event_id) = (e.user_id, e.event_id);
    DELETE FROM events WHERE course_id = course;
    DELETE FROM learning_sessions WHERE course_id = course;
    DELETE FROM learner_states WHERE course_id = course;
    DELETE FROM learner_cells WHERE course_id = course;
    DELETE FROM help_requests WHERE course_id = course;
    DELETE FROM courses WHERE id = course;
    DELETE FROM timeseries.cell_executions WHERE user_id = ANY(only_here);
    DELETE FROM timeseries.cell_executions_1m WHERE user_id = ANY(only_here);
    DELETE FROM timeseries.stale_minutes WHERE user_id = ANY(only_here);
    DELETE FROM dead_letters WHERE user_id = ANY(only_here);
    DELETE FROM users WHERE id = ANY(only_here);
    RETURN cardinality(only_here);
END $$
"""
REMOVE_DEMO = """
CREATE FUNCTION remove_demo_course(course uuid) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM FROM courses WHERE id = course AND is_demo FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN remove_course(course);
END $$
"""
GRANT = (
    "REVOKE ALL ON FUNCTION remove_course(uuid) FROM PUBLIC",
    "REVOKE ALL ON FUNCTION remove_demo_course(uuid) FROM PUBLIC",
    "GRANT EXECUTE ON FUNCTION remove_demo_course(uuid) TO app_user",
)


def upgrade() -> None:
    for statement in (REMOVE, REMOVE_DEMO, *GRANT):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP FUNCTION remove_demo_course(uuid)")
    op.execute("DROP FUNCTION remove_course(uuid)")
