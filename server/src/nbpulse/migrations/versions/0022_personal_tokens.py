"""Tokens that people make for their own scripts: a kind of their own, with a label."""

from alembic import op

revision = "0022"
down_revision = "0021"

ME = "nullif(current_setting('app.current_user_id', true), '')::uuid"
KINDS = ("student", "staff", "session", "link", "resume")
OWN_KINDS = ("student", "resume", "session")
KEEP_KINDS = (
    "ALTER TABLE tokens DROP CONSTRAINT tokens_kind_check, ADD CONSTRAINT tokens_kind_check CHECK (kind IN ({}))"
)


def _quote(kinds: tuple[str, ...]) -> str:
    return ", ".join(f"'{kind}'" for kind in kinds)


def _keep_policy(kinds: tuple[str, ...]) -> None:
    op.execute(f"ALTER POLICY user_insert_policy ON tokens WITH CHECK (user_id = {ME} AND kind IN ({_quote(kinds)}))")


def upgrade() -> None:
    op.execute(KEEP_KINDS.format(_quote((*KINDS, "personal"))))
    op.execute("ALTER TABLE tokens ADD COLUMN label VARCHAR(40)")
    op.execute("GRANT SELECT (label) ON tokens TO app_user, nbpulse_operator")
    op.execute("GRANT UPDATE (label) ON tokens TO app_user")
    _keep_policy((*OWN_KINDS, "personal"))


def downgrade() -> None:
    _keep_policy(OWN_KINDS)
    op.execute("DELETE FROM tokens WHERE kind = 'personal'")
    op.execute("ALTER TABLE tokens DROP COLUMN label")
    op.execute(KEEP_KINDS.format(_quote(KINDS)))
