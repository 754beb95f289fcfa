"""Whose a token was that has expired or was revoked: who still uses it is told so, and the audit log whose it was."""

from alembic import op

revision = "0031"
down_revision = "0030"

NAME = "find_ended_token(uuid)"
FUNCTION = """
CREATE FUNCTION find_ended_token(token uuid) RETURNS TABLE (user_id uuid, secret_hash bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT t.user_id, t.secret_hash FROM tokens t
    WHERE t.id = token AND (t.revoked_at IS NOT NULL OR t.expires_at <= now())
$$
"""


def upgrade() -> None:
    op.execute("SET LOCAL ROLE app_maintenance")  # what it sees, it sees by its policies
    op.execute(FUNCTION)
    op.execute(f"REVOKE ALL ON FUNCTION {NAME} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {NAME} TO app_user")
    op.execute("SET LOCAL ROLE nbpulse_owner")


def downgrade() -> None:
    op.execute("SET LOCAL ROLE app_maintenance")
    op.execute(f"DROP FUNCTION {NAME}")
