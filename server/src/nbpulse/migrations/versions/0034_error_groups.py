"""What a course's staff have settled about its error groups: a name of their own, one with another, muted.

`fingerprint_version` is that of `fingerprint`'s making: what is settled holds for fingerprints of that version alone.
"""

from alembic import op

revision = "0034"
down_revision = "0035"

TAUGHT = "course_id = ANY(my_taught_courses())"
TABLE = """
CREATE TABLE error_groups (
    course_id UUID NOT NULL REFERENCES courses(id) ON DELETE CASCADE,
    fingerprint VARCHAR(16) NOT NULL CHECK (fingerprint ~ '^[0-9a-f]{16}$'),
    fingerprint_version SMALLINT NOT NULL,
    title VARCHAR(80),
    merged_into VARCHAR(16) CHECK (merged_into ~ '^[0-9a-f]{16}$' AND merged_into <> fingerprint),
    is_muted BOOLEAN NOT NULL DEFAULT FALSE,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    PRIMARY KEY (course_id, fingerprint)
)
"""
RIGHTS = (
    "ALTER TABLE error_groups ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    "REVOKE ALL ON error_groups FROM app_reader, app_writer, app_user, nbpulse_operator",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON error_groups TO app_maintenance",
    "GRANT SELECT ON error_groups TO app_user, nbpulse_operator",
    "GRANT INSERT, UPDATE ON error_groups TO app_user",
    "CREATE POLICY maintenance_policy ON error_groups TO app_maintenance USING (true) WITH CHECK (true)",
    "CREATE POLICY operator_policy ON error_groups FOR SELECT TO nbpulse_operator USING (true)",
    f"CREATE POLICY user_select_policy ON error_groups FOR SELECT TO app_user USING ({TAUGHT})",
    f"CREATE POLICY user_insert_policy ON error_groups FOR INSERT TO app_user WITH CHECK ({TAUGHT})",
    f"CREATE POLICY user_update_policy ON error_groups FOR UPDATE TO app_user USING ({TAUGHT}) WITH CHECK ({TAUGHT})",
)


def upgrade() -> None:
    op.execute(TABLE)
    for statement in RIGHTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE error_groups")
