"""Who is asking is said by a function, `ask_as`: on a Citus cluster it says so to every node (migrations/citus.py)."""

from alembic import op

revision = "0038"
down_revision = "0035"

FUNCTION = """
CREATE FUNCTION ask_as(person text) RETURNS text LANGUAGE sql AS $$
    SELECT set_config('app.current_user_id', person, true)
$$
"""


def upgrade() -> None:
    op.execute(FUNCTION)


def downgrade() -> None:
    op.execute("DROP FUNCTION ask_as(text)")
