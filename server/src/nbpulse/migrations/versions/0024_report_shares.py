"""A class report shared by a link: read-only, without people, until it ends or is taken back."""

from alembic import op

revision = "0024"
down_revision = "0031"

ME = "nullif(current_setting('app.current_user_id', true), '')::uuid"
MINE = f"created_by = {ME}"
LED = "course_id = ANY(my_led_courses())"
DEFINER = "SECURITY DEFINER SET search_path = public, pg_temp"
TABLE = """
CREATE TABLE report_shares (
    id UUID PRIMARY KEY,
    course_id UUID NOT NULL REFERENCES courses(id) ON DELETE CASCADE,
    meeting_id UUID NOT NULL REFERENCES class_meetings(id) ON DELETE CASCADE,
    secret_hash BYTEA NOT NULL,
    created_by UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    opened_count INTEGER NOT NULL DEFAULT 0,
    opened_at TIMESTAMP WITH TIME ZONE,
    revoked_at TIMESTAMP WITH TIME ZONE
);
CREATE INDEX idx_report_shares_meeting ON report_shares(course_id, meeting_id)
"""
COLUMNS = "id, course_id, meeting_id, created_by, created_at, expires_at, opened_count, opened_at, revoked_at"
RIGHTS = (
    "ALTER TABLE report_shares ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    "REVOKE ALL ON report_shares FROM app_reader, app_writer, app_user, nbpulse_operator",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON report_shares TO app_maintenance",
    f"GRANT SELECT ({COLUMNS}) ON report_shares TO app_user, nbpulse_operator",
    "GRANT INSERT, UPDATE (revoked_at) ON report_shares TO app_user",
    "CREATE POLICY maintenance_policy ON report_shares TO app_maintenance USING (true) WITH CHECK (true)",
    "CREATE POLICY operator_policy ON report_shares FOR SELECT TO nbpulse_operator USING (true)",
    f"CREATE POLICY user_select_policy ON report_shares FOR SELECT TO app_user USING ({LED})",
    f"CREATE POLICY user_insert_policy ON report_shares FOR INSERT TO app_user WITH CHECK ({LED} AND {MINE})",
    f"CREATE POLICY user_update_policy ON report_shares FOR UPDATE TO app_user USING ({LED})",
)
# A share is as good as who made it: no instructor of the course any more, no report.
OPEN_REPORT_SHARE = f"""
CREATE FUNCTION open_report_share(share uuid, hash bytea) RETURNS TABLE (course_id uuid, meeting_id uuid,
    created_by uuid, expires_at timestamptz, opened_before timestamptz)
LANGUAGE sql {DEFINER} AS $$
    WITH found AS (
        SELECT s.id, s.opened_at FROM report_shares s
        JOIN enrolments e ON e.user_id = s.created_by AND e.course_id = s.course_id AND e.role = 'instructor'
        WHERE s.id = share AND s.secret_hash = hash AND s.revoked_at IS NULL AND s.expires_at > now()
    )
    UPDATE report_shares s SET opened_count = s.opened_count + 1, opened_at = now() FROM found
    WHERE s.id = found.id
    RETURNING s.course_id, s.meeting_id, s.created_by, s.expires_at, found.opened_at
$$
"""


def upgrade() -> None:
    for statement in TABLE.split(";\n"):
        op.execute(statement)
    for statement in RIGHTS:
        op.execute(statement)
    op.execute("SET LOCAL ROLE app_maintenance")  # what it sees, it sees by its policies
    op.execute(OPEN_REPORT_SHARE)
    op.execute("REVOKE ALL ON FUNCTION open_report_share(uuid, bytea) FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION open_report_share(uuid, bytea) TO app_user")
    op.execute("SET LOCAL ROLE nbpulse_owner")


def downgrade() -> None:
    op.execute("SET LOCAL ROLE app_maintenance")
    op.execute("DROP FUNCTION open_report_share(uuid, bytea)")
    op.execute("SET LOCAL ROLE nbpulse_owner")
    op.execute("DROP TABLE report_shares")
