"""Reading the audit log: what each person sees about themselves, rows noted once in a while, and the newest link.

A student is told who looked at the class they are in as well as at themselves; names of those who did go to them
through the function, as with what staff write.
"""

from alembic import op

revision = "0016"
down_revision = "0015"

ME = "nullif(current_setting('app.current_user_id', true), '')::uuid"
DEFINER = "SECURITY DEFINER SET search_path = public, pg_temp"
INDEX = "CREATE INDEX idx_audit_log_course ON audit_log(course_id, id) WHERE subject_id IS NULL"
FUNCTIONS = {
    # The lock first: two processes that note the same at once note it once.
    "note_audit_once(text, uuid, uuid, jsonb, interval)": (
        "app_user",
        f"""
CREATE FUNCTION note_audit_once(given_action text, course uuid, subject uuid, given_facts jsonb, within interval)
RETURNS bigint LANGUAGE plpgsql {DEFINER} SET timezone = 'UTC' AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(6622006);
    IF EXISTS (SELECT FROM audit_log a WHERE a.actor_id = {ME} AND a.at > clock_timestamp() - within
            AND a.action = given_action AND a.course_id IS NOT DISTINCT FROM course
            AND a.subject_id IS NOT DISTINCT FROM subject AND a.facts = given_facts) THEN
        RETURN NULL;
    END IF;
    RETURN note_audit(given_action, course, subject, given_facts);
END $$
""",
    ),
    # What I did, what was done to me, and who looked at (or took away) the whole of my classes since I came to them.
    "list_my_audit(uuid[], bigint, integer)": (
        "app_user",
        f"""
CREATE FUNCTION list_my_audit(courses uuid[], before bigint, wanted integer) RETURNS TABLE (id bigint, at timestamptz,
    action text, course_title text, is_mine boolean, actor_id uuid, username text, display_name text)
LANGUAGE sql STABLE {DEFINER} AS $$
    WITH mine AS (
        (SELECT a.* FROM audit_log a WHERE a.subject_id = {ME} AND a.id < before
            AND (a.course_id IS NULL OR a.course_id = ANY(courses)) ORDER BY a.id DESC LIMIT wanted)
        UNION
        (SELECT a.* FROM audit_log a WHERE a.actor_id = {ME} AND a.id < before
            AND (a.course_id IS NULL OR a.course_id = ANY(courses)) ORDER BY a.id DESC LIMIT wanted)
        UNION
        (SELECT a.* FROM enrolments e JOIN audit_log a ON a.course_id = e.course_id AND a.subject_id IS NULL
            AND a.at >= e.created_at AND a.action IN ('class_viewed', 'exported', 'collection_changed')
            WHERE e.user_id = {ME} AND e.role = 'student' AND e.course_id = ANY(courses) AND a.id < before
            ORDER BY a.id DESC LIMIT wanted)
    )
    SELECT m.id, m.at, m.action::text, c.title::text, coalesce(m.actor_id = {ME}, false), m.actor_id,
        u.username::text, u.display_name
    FROM mine m LEFT JOIN courses c ON c.id = m.course_id LEFT JOIN users u ON u.id = m.actor_id
    ORDER BY m.id DESC LIMIT wanted
$$
""",
    ),
    "find_audit_anchor()": (
        "app_writer",
        f"""
CREATE FUNCTION find_audit_anchor() RETURNS TABLE (id bigint, link bytea) LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT a.id, a.link FROM audit_log a ORDER BY a.id DESC LIMIT 1
$$
""",
    ),
}


def upgrade() -> None:
    op.execute(INDEX)
    op.execute("SET LOCAL ROLE app_maintenance")
    for name, (role, function) in FUNCTIONS.items():
        op.execute(function)
        op.execute(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO {role}")
    op.execute("SET LOCAL ROLE nbpulse_owner")


def downgrade() -> None:
    op.execute("SET LOCAL ROLE app_maintenance")
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}")
    op.execute("SET LOCAL ROLE nbpulse_owner")
    op.execute("DROP INDEX idx_audit_log_course")
