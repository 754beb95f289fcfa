"""What a projector may show of staff's messages, and where a course's teams and seats are.

`messages.is_for_class`: written to the whole class, not to some who were named or who have one error. `course_maps`: a
picture of the room (its bytes and their media type) and places on it; `version` rises with each change, so that of two
who edit at once the second is told.
"""

from alembic import op

revision = "0030"
down_revision = "0029"

TAUGHT = "course_id = ANY(my_taught_courses())"
LED = "course_id = ANY(my_led_courses())"

TABLES = """
ALTER TABLE messages ADD COLUMN is_for_class BOOLEAN NOT NULL DEFAULT FALSE;
CREATE TABLE course_maps (
    course_id UUID PRIMARY KEY REFERENCES courses(id) ON DELETE CASCADE,
    version INTEGER NOT NULL DEFAULT 1,
    places JSONB NOT NULL DEFAULT '[]',
    picture BYTEA,
    picture_type VARCHAR(20) CHECK (picture_type IN ('image/jpeg', 'image/png', 'image/webp')),
    picture_width INTEGER,
    picture_height INTEGER,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    updated_by UUID REFERENCES users(id) ON DELETE SET NULL,
    CHECK (num_nulls(picture, picture_type, picture_width, picture_height) IN (0, 4))
)
"""
RIGHTS = (
    "ALTER TABLE course_maps ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    "REVOKE ALL ON course_maps FROM app_reader, app_writer, app_user, nbpulse_operator",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON course_maps TO app_maintenance",
    "GRANT SELECT ON course_maps TO app_user, nbpulse_operator",
    "GRANT INSERT, UPDATE ON course_maps TO app_user",
    "CREATE POLICY maintenance_policy ON course_maps TO app_maintenance USING (true) WITH CHECK (true)",
    "CREATE POLICY operator_policy ON course_maps FOR SELECT TO nbpulse_operator USING (true)",
    f"CREATE POLICY user_select_policy ON course_maps FOR SELECT TO app_user USING ({TAUGHT})",
    f"CREATE POLICY user_insert_policy ON course_maps FOR INSERT TO app_user WITH CHECK ({LED})",
    f"CREATE POLICY user_update_policy ON course_maps FOR UPDATE TO app_user USING ({LED}) WITH CHECK ({LED})",
)


def upgrade() -> None:
    for statement in TABLES.split(";\n"):
        op.execute(statement)
    for statement in RIGHTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE course_maps")
    op.execute("ALTER TABLE messages DROP COLUMN is_for_class")
