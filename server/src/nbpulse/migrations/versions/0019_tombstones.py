"""Who and what was erased, as keyed hashes: `tombstones`.

A mark says nothing without the key, which is not in the database. `unfinished` names, in JSON, what of an erasure is
still to be removed outside of the tables; it is NULL once nothing is.
"""

from alembic import op

revision = "0019"
down_revision = "0018"

TABLE = """
CREATE TABLE tombstones (
    mark BYTEA PRIMARY KEY,
    kind VARCHAR(10) NOT NULL CHECK (kind IN ('user', 'token', 'identity', 'course')),
    at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    unfinished TEXT
)
"""
IS_ERASED = """
CREATE FUNCTION is_erased(wanted bytea) RETURNS boolean LANGUAGE sql STABLE
SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT EXISTS (SELECT FROM tombstones WHERE mark = wanted)
$$
"""
RIGHTS = (
    "ALTER TABLE tombstones ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    "REVOKE ALL ON tombstones FROM app_reader, app_writer, app_user, nbpulse_operator",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON tombstones TO app_maintenance",
    "GRANT SELECT ON tombstones TO nbpulse_operator",
    "CREATE POLICY maintenance_policy ON tombstones TO app_maintenance USING (true) WITH CHECK (true)",
    "CREATE POLICY operator_policy ON tombstones FOR SELECT TO nbpulse_operator USING (true)",
)


def upgrade() -> None:
    op.execute(TABLE)
    for statement in RIGHTS:
        op.execute(statement)
    op.execute("SET LOCAL ROLE app_maintenance")
    op.execute(IS_ERASED)
    op.execute("REVOKE ALL ON FUNCTION is_erased(bytea) FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION is_erased(bytea) TO app_user")
    op.execute("SET LOCAL ROLE nbpulse_owner")


def downgrade() -> None:
    raise NotImplementedError("who was erased would be forgotten: restore a backup made before it instead")
