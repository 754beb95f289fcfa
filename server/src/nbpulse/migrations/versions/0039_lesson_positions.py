"""Where in the notebook the class is being taught, as its staff say: each time they said so, of what cell (null: none).

Who said it is not kept: it is about the lesson, and how a teacher teaches is nobody's table.
"""

from alembic import op

revision = "0039"
down_revision = "0034"

TAUGHT = "course_id = ANY(my_taught_courses())"

TABLE = """
CREATE TABLE lesson_positions (
    course_id UUID NOT NULL REFERENCES courses(id) ON DELETE CASCADE,
    notebook_id UUID NOT NULL REFERENCES notebooks(id) ON DELETE CASCADE,
    marked_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT clock_timestamp(),
    cell_id VARCHAR(256),
    PRIMARY KEY (notebook_id, marked_at)
)
"""
RIGHTS = (
    "ALTER TABLE lesson_positions ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    "REVOKE ALL ON lesson_positions FROM app_reader, app_writer, app_user, nbpulse_operator",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON lesson_positions TO app_maintenance",
    "GRANT SELECT ON lesson_positions TO app_user, nbpulse_operator",
    "GRANT INSERT ON lesson_positions TO app_user",
    "CREATE POLICY maintenance_policy ON lesson_positions TO app_maintenance USING (true) WITH CHECK (true)",
    "CREATE POLICY operator_policy ON lesson_positions FOR SELECT TO nbpulse_operator USING (true)",
    f"CREATE POLICY user_select_policy ON lesson_positions FOR SELECT TO app_user USING ({TAUGHT})",
    f"CREATE POLICY user_insert_policy ON lesson_positions FOR INSERT TO app_user WITH CHECK ({TAUGHT})",
)


def upgrade() -> None:
    op.execute(TABLE)
    for statement in RIGHTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE lesson_positions")
