"""Points that the time-series store will never take as they stand, with its reason, until they are rebuilt."""

from alembic import op

revision = "0003"
down_revision = "0002"

REJECTS = """
CREATE TABLE series_rejects (
    user_id UUID NOT NULL,
    shard smallint NOT NULL CHECK (shard = (('x' || substr(md5(user_id::text), 1, 8))::bit(32)::bigint % 64)::smallint),
    time_ns BIGINT NOT NULL,
    reason VARCHAR(500) NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    PRIMARY KEY (user_id, shard, time_ns)
)
"""


def upgrade() -> None:
    op.execute(REJECTS)


def downgrade() -> None:
    op.execute("DROP TABLE series_rejects")
