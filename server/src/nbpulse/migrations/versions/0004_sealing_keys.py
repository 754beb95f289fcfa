"""Which keys seal people's texts (for each a text that only it opens, never the key), how far a rotation is."""

from alembic import op

revision = "0004"
down_revision = "0003"

TABLES = (
    """
CREATE TABLE sealing_keys (
    key_id VARCHAR(16) PRIMARY KEY,
    canary TEXT NOT NULL,
    first_used_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW()
)
""",
    """
CREATE TABLE sealing_progress (
    key_id VARCHAR(16) NOT NULL,
    table_name VARCHAR(63) NOT NULL,
    column_name VARCHAR(63) NOT NULL,
    last_key TEXT[] NOT NULL,
    resealed BIGINT NOT NULL,
    PRIMARY KEY (key_id, table_name, column_name)
)
""",
)
GRANTS = (
    "REVOKE ALL ON sealing_keys, sealing_progress FROM app_reader, app_writer, app_user, nbpulse_operator",
    # Whoever starts first with a new key in front says so.
    "GRANT SELECT, INSERT ON sealing_keys TO app_writer, app_user",
    "GRANT SELECT ON sealing_keys TO nbpulse_operator",
)


def upgrade() -> None:
    for statement in (*TABLES, *GRANTS):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE sealing_keys")
    op.execute("DROP TABLE sealing_progress")
