"""API and worker may ask which schema a database has: of several, one that is behind is refused at their start."""

from alembic import op

revision = "0043"
down_revision = "0038"

FIND = """
CREATE FUNCTION find_schema() RETURNS text LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT version_num FROM alembic_version
$$
"""


def upgrade() -> None:
    op.execute(FIND)
    op.execute("REVOKE ALL ON FUNCTION find_schema() FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION find_schema() TO app_user, app_writer, nbpulse_operator")


def downgrade() -> None:
    op.execute("DROP FUNCTION find_schema()")
