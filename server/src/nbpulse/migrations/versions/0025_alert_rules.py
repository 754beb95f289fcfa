"""A course's own alert rules: what differs from the defaults, as JSON."""

from alembic import op

revision = "0025"
down_revision = "0033"

IS_OBJECT = "CHECK (jsonb_typeof(alert_rules) = 'object')"


def upgrade() -> None:
    op.execute(f"ALTER TABLE courses ADD COLUMN alert_rules JSONB NOT NULL DEFAULT '{{}}' {IS_OBJECT}")
    op.execute("GRANT SELECT (alert_rules) ON courses TO app_reader")
    op.execute("GRANT UPDATE (alert_rules) ON courses TO app_user")


def downgrade() -> None:
    op.execute("ALTER TABLE courses DROP COLUMN alert_rules")
