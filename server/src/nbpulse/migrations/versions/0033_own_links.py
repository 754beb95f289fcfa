"""A student's Jupyter may make a one-use link to their own page (docs/sign-in.md): of one course, never more."""

from alembic import op

revision = "0033"
down_revision = "0032"

ME = "nullif(current_setting('app.current_user_id', true), '')::uuid"
KINDS = "kind IN ('student', 'resume', 'session', 'personal')"


def upgrade() -> None:
    op.execute(
        f"ALTER POLICY user_insert_policy ON tokens WITH CHECK (user_id = {ME}"
        f" AND ({KINDS} OR kind = 'link' AND course_id IS NOT NULL))"
    )


def downgrade() -> None:
    op.execute(f"ALTER POLICY user_insert_policy ON tokens WITH CHECK (user_id = {ME} AND {KINDS})")
