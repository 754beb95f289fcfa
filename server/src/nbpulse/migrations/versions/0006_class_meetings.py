"""Class meetings: one open per course, found by course, and who ended one (nobody: it ended by itself)."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute("ALTER TABLE class_meetings ADD COLUMN ended_by UUID REFERENCES users(id) ON DELETE SET NULL")
    op.execute("CREATE UNIQUE INDEX idx_class_meetings_open ON class_meetings(course_id) WHERE ended_at IS NULL")
    op.execute("CREATE INDEX idx_class_meetings_course ON class_meetings(course_id, started_at DESC)")


def downgrade() -> None:
    op.execute("DROP INDEX idx_class_meetings_course")
    op.execute("DROP INDEX idx_class_meetings_open")
    op.execute("ALTER TABLE class_meetings DROP COLUMN ended_by")
