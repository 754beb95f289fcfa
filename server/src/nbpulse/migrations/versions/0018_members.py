"""A course's people: who waits and who left, the roster's names, join codes that end, invitations of staff.

`enrolments.role` says what somebody is in the course: beside student, assistant and instructor, `waiting` (joined, not
yet let in) and `former` (left, at `left_at`; nobody is deleted here). `joined_at` is empty for who is on the roster and
has not come yet. Instructors change what is their course's, by policy.
"""

from alembic import op

revision = "0018"
down_revision = "0017"

ME = "nullif(current_setting('app.current_user_id', true), '')::uuid"
OWN = f"user_id = {ME}"
LED = "course_id = ANY(my_led_courses())"
LEADS = "cardinality(my_led_courses()) > 0"
DEFINER = "SECURITY DEFINER SET search_path = public, pg_temp"

TABLES = """
ALTER TABLE enrolments DROP CONSTRAINT enrolments_role_check,
    ADD CONSTRAINT enrolments_role_check
        CHECK (role IN ('student', 'assistant', 'instructor', 'waiting', 'former')),
    ADD COLUMN left_at TIMESTAMP WITH TIME ZONE,
    ADD COLUMN joined_at TIMESTAMP WITH TIME ZONE DEFAULT NOW(),
    ADD COLUMN roster_name TEXT,
    ADD COLUMN roster_kana TEXT,
    ADD CONSTRAINT enrolments_left_check CHECK ((role = 'former') = (left_at IS NOT NULL));
ALTER TABLE courses ADD COLUMN join_code_expires_at TIMESTAMP WITH TIME ZONE,
    ADD COLUMN is_join_closed BOOLEAN NOT NULL DEFAULT FALSE,
    ADD COLUMN needs_approval BOOLEAN NOT NULL DEFAULT FALSE;
CREATE TABLE invitations (
    id UUID PRIMARY KEY,
    course_id UUID NOT NULL REFERENCES courses(id) ON DELETE CASCADE,
    role VARCHAR(20) NOT NULL CHECK (role IN ('assistant', 'instructor')),
    teams TEXT[] NOT NULL DEFAULT '{}',
    secret_hash BYTEA NOT NULL,
    created_by UUID REFERENCES users(id) ON DELETE SET NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    used_at TIMESTAMP WITH TIME ZONE,
    used_by UUID REFERENCES users(id) ON DELETE SET NULL,
    revoked_at TIMESTAMP WITH TIME ZONE
);
CREATE INDEX idx_invitations_course ON invitations(course_id)
"""
# What an instructor may change.
ENROLMENT_COLUMNS = "role, student_number, seat, team, teams, left_at, joined_at, roster_name, roster_kana"
COURSE_COLUMNS = "title, join_code, join_code_expires_at, is_join_closed, needs_approval, shows_all_teams"
INVITATION_COLUMNS = "id, course_id, role, teams, created_by, created_at, expires_at, used_at, used_by, revoked_at"
RIGHTS = (
    "ALTER TABLE invitations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    "REVOKE ALL ON invitations FROM app_reader, app_writer, app_user, nbpulse_operator",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON invitations TO app_maintenance",
    f"GRANT SELECT ({INVITATION_COLUMNS}) ON invitations TO app_user, nbpulse_operator",
    "GRANT INSERT, UPDATE (revoked_at) ON invitations TO app_user",
    "CREATE POLICY maintenance_policy ON invitations TO app_maintenance USING (true) WITH CHECK (true)",
    "CREATE POLICY operator_policy ON invitations FOR SELECT TO nbpulse_operator USING (true)",
    "GRANT SELECT (join_code_expires_at, is_join_closed, needs_approval) ON courses TO app_reader",
    f"GRANT UPDATE ({ENROLMENT_COLUMNS}) ON enrolments TO app_user",
    f"GRANT UPDATE ({COURSE_COLUMNS}) ON courses TO app_user",
    f"CREATE POLICY user_select_policy ON invitations FOR SELECT TO app_user USING ({LED})",
    f"CREATE POLICY user_insert_policy ON invitations FOR INSERT TO app_user WITH CHECK ({LED} AND created_by = {ME})",
    f"CREATE POLICY user_update_policy ON invitations FOR UPDATE TO app_user USING ({LED})",
    f"CREATE POLICY user_update_policy ON enrolments FOR UPDATE TO app_user USING ({LED})",
    "CREATE POLICY user_update_policy ON courses FOR UPDATE TO app_user USING (id = ANY(my_led_courses()))",
    f"CREATE POLICY staff_insert_policy ON learner_states FOR INSERT TO app_user WITH CHECK ({LED})",
    f"ALTER POLICY user_insert_policy ON enrolments WITH CHECK ({OWN} AND role IN ('student', 'waiting') OR {LED})",
    # An instructor's roster names people who are nobody yet.
    f"ALTER POLICY user_insert_policy ON users WITH CHECK (role = 'student' AND (id = {ME} OR {LEADS}))",
)
FIND_MY_LED_COURSES = f"""
CREATE FUNCTION find_my_led_courses() RETURNS uuid[] LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT coalesce(array_agg(course_id), '{{}}') FROM enrolments WHERE {OWN} AND role = 'instructor'
$$
"""
# As in 0005.
MY_LED_COURSES = """
CREATE FUNCTION my_led_courses() RETURNS uuid[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    me text := current_setting('app.current_user_id', true);
    kept text := current_setting('app.my_led_courses', true);
BEGIN
    IF me IS NULL OR me = '' THEN
        RETURN '{}';
    END IF;
    IF left(kept, 36) = me THEN
        RETURN substr(kept, 37)::uuid[];
    END IF;
    kept := public.find_my_led_courses()::text;
    PERFORM set_config('app.my_led_courses', me || kept, true);
    RETURN kept::uuid[];
END $$
"""
# Who left is no member: of the course they see what is their own.
FIND_MY_COURSES = f"""
CREATE OR REPLACE FUNCTION find_my_courses() RETURNS uuid[] LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT coalesce(array_agg(course_id), '{{}}') FROM enrolments WHERE {OWN} AND role <> 'former'
$$
"""
FUNCTIONS = {
    # Counting up locks the course's row: two machines joining with one number at once come one after the other.
    "open_course_by_code(text)": f"""
CREATE FUNCTION open_course_by_code(code text) RETURNS TABLE (id uuid, title text, short_name text,
    joined_count integer, is_closed boolean, is_expired boolean, needs_approval boolean)
LANGUAGE sql {DEFINER} AS $$
    UPDATE courses c SET joined_count = c.joined_count + 1 WHERE c.join_code = code
    RETURNING c.id, c.title, c.short_name, c.joined_count, c.is_join_closed,
        coalesce(c.join_code_expires_at < now(), false), c.needs_approval
$$
""",
    "find_number_holder(uuid, text)": f"""
CREATE FUNCTION find_number_holder(course uuid, number text) RETURNS TABLE (user_id uuid, username text, role text,
    is_expected boolean, roster_name text, roster_kana text)
LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT e.user_id, u.username, e.role::text, e.joined_at IS NULL, e.roster_name, e.roster_kana
    FROM enrolments e JOIN users u ON u.id = e.user_id
    WHERE e.course_id = course AND e.student_number = number AND e.maybe_same_as IS NULL
$$
""",
    # The one who asks comes for the first time, or again after having left; by then the API knows who they are.
    "come_in(uuid, text)": f"""
CREATE FUNCTION come_in(course uuid, as_role text) RETURNS void LANGUAGE sql {DEFINER} AS $$
    UPDATE enrolments SET joined_at = now(), left_at = NULL, role = as_role
    WHERE {OWN} AND course_id = course AND as_role IN ('student', 'waiting')
        AND (role = 'former' OR joined_at IS NULL)
$$
""",
    # Nobody is somebody by an invitation but by its secret; a role is never lowered by one.
    "accept_invitation(uuid, bytea)": f"""
CREATE FUNCTION accept_invitation(invitation uuid, hash bytea) RETURNS TABLE (course uuid, given_role text, was text)
LANGUAGE plpgsql {DEFINER} AS $$
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
        WHERE e.role = 'former' OR e.role = 'assistant' AND excluded.role = 'instructor';
    RETURN QUERY SELECT found.course_id, found.role::text, held;
END $$
""",
    "describe_invitation(uuid, bytea)": f"""
CREATE FUNCTION describe_invitation(invitation uuid, hash bytea) RETURNS TABLE (title text, role text)
LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT c.title, i.role::text FROM invitations i JOIN courses c ON c.id = i.course_id
    WHERE i.id = invitation AND i.secret_hash = hash AND i.used_at IS NULL AND i.revoked_at IS NULL
        AND i.expires_at > now()
$$
""",
}


def upgrade() -> None:
    for statement in TABLES.split(";\n"):
        op.execute(statement)
    op.execute("SET LOCAL ROLE app_maintenance")  # what these functions see, they see by its policies
    op.execute("UPDATE enrolments SET joined_at = created_at")
    for name in ("open_course_by_code(text)", "find_number_holder(uuid, text)"):
        op.execute(f"DROP FUNCTION {name}")
    for function in (FIND_MY_COURSES, FIND_MY_LED_COURSES, MY_LED_COURSES, *FUNCTIONS.values()):
        op.execute(function)
    for name in ("find_my_led_courses()", "my_led_courses()", *FUNCTIONS):
        op.execute(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO app_user")
    op.execute("SET LOCAL ROLE nbpulse_owner")
    for statement in RIGHTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("who left would be in the course again: restore a backup made before it instead")
