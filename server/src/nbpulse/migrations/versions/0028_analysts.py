"""Analysts of a course: they read its history without names, and nothing else (docs/decisions/0029).

What may be read is a grant to `app_staff` and these policies: of the courses one teaches whole and of those one is an
analyst of. `users` is not among what an analyst sees, so no name leaves the database for them.
"""

from alembic import op

revision = "0028"
down_revision = "0022"

ME = "nullif(current_setting('app.current_user_id', true), '')::uuid"
DEFINER = "SECURITY DEFINER SET search_path = public, pg_temp"
STAFF_TABLES = ("enrolments", "notebooks", "events", "learning_sessions", "learner_cells")
ROLES = """
ALTER TABLE enrolments DROP CONSTRAINT enrolments_role_check, ADD CONSTRAINT enrolments_role_check
    CHECK (role IN ('student', 'assistant', 'instructor', 'analyst', 'waiting', 'former'));
ALTER TABLE invitations DROP CONSTRAINT invitations_role_check, ADD CONSTRAINT invitations_role_check
    CHECK (role IN ('assistant', 'instructor', 'analyst'))
"""
FIND = f"""
CREATE FUNCTION find_my_read_courses() RETURNS uuid[] LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT my_whole_courses() || coalesce(array_agg(course_id), '{{}}')
    FROM enrolments WHERE user_id = {ME} AND role = 'analyst'
$$
"""
# As in 0005: kept for the rest of the transaction beside whose answer it is.
KEPT = """
CREATE FUNCTION my_read_courses() RETURNS uuid[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    me text := current_setting('app.current_user_id', true);
    kept text := current_setting('app.my_read_courses', true);
BEGIN
    IF me IS NULL OR me = '' THEN
        RETURN '{}';
    END IF;
    IF left(kept, 36) = me THEN
        RETURN substr(kept, 37)::uuid[];
    END IF;
    kept := public.find_my_read_courses()::text;
    PERFORM set_config('app.my_read_courses', me || kept, true);
    RETURN kept::uuid[];
END $$
"""
# An invitation never lowers a role.
ACCEPT = f"""
CREATE OR REPLACE FUNCTION accept_invitation(invitation uuid, hash bytea)
RETURNS TABLE (course uuid, given_role text, was text) LANGUAGE plpgsql {DEFINER} AS $$
DECLARE
    found invitations;
    held text;
BEGIN
    UPDATE invitations i SET used_at = now(), used_by = {ME}
    WHERE i.id = invitation AND i.secret_hash = hash AND i.used_at IS NULL AND i.revoked_at IS NULL
        AND i.expires_at > now() AND {ME} IS NOT NULL
    RETURNING i.* INTO found;
    IF found.id IS NULL THEN
        RETURN;
    END IF;
    SELECT e.role INTO held FROM enrolments e WHERE e.user_id = {ME} AND e.course_id = found.course_id FOR UPDATE;
    INSERT INTO enrolments AS e (user_id, course_id, role, teams)
    VALUES ({ME}, found.course_id, found.role, found.teams)
    ON CONFLICT (user_id, course_id) DO UPDATE SET role = excluded.role, teams = excluded.teams, left_at = NULL
        WHERE e.role = 'former' OR e.role = 'analyst' AND excluded.role IN ('assistant', 'instructor')
            OR e.role = 'assistant' AND excluded.role = 'instructor';
    RETURN QUERY SELECT found.course_id, found.role::text, held;
END $$
"""


def upgrade() -> None:
    for statement in ROLES.split(";\n"):
        op.execute(statement)
    op.execute("SET LOCAL ROLE app_maintenance")  # what these functions see, they see by its policies
    for function in (FIND, KEPT, ACCEPT):
        op.execute(function)
    for name in ("find_my_read_courses()", "my_read_courses()"):
        op.execute(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO app_user, app_staff")
    op.execute("SET LOCAL ROLE nbpulse_owner")
    for table in STAFF_TABLES:
        op.execute(f"ALTER POLICY staff_policy ON {table} USING (course_id = ANY(my_read_courses()))")
    op.execute("ALTER POLICY staff_policy ON courses USING (id = ANY(my_read_courses()))")


def downgrade() -> None:
    raise NotImplementedError("analysts would have no role: restore a backup made before it instead")
