"""Which database holds which of the 64 logical shards (docs/decisions/0030), and the fence that keeps it true.

`shard_map`, `shard_databases` and `shard_moves` are the directory's; `shard_owners` is each database's own word on what
it holds. `hold_shards` is called first in every transaction that stores events.
"""

from alembic import op

revision = "0035"
down_revision = "0025"

SHARD_COUNT = 64
TABLES = """
CREATE TABLE shard_databases (
    name VARCHAR(40) PRIMARY KEY,
    url TEXT,
    added_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW()
);
CREATE TABLE shard_map (
    shard SMALLINT PRIMARY KEY,
    database VARCHAR(40) NOT NULL REFERENCES shard_databases(name),
    state VARCHAR(10) NOT NULL DEFAULT 'serving' CHECK (state IN ('serving', 'moving')),
    epoch BIGINT NOT NULL DEFAULT 1
);
CREATE TABLE shard_owners (
    shard SMALLINT PRIMARY KEY,
    epoch BIGINT NOT NULL DEFAULT 1,
    is_here BOOLEAN NOT NULL DEFAULT TRUE
);
CREATE TABLE shard_moves (
    shard SMALLINT PRIMARY KEY,
    source VARCHAR(40) NOT NULL REFERENCES shard_databases(name),
    target VARCHAR(40) NOT NULL REFERENCES shard_databases(name),
    started_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW()
)
"""
ALL = "shard_databases, shard_map, shard_owners, shard_moves"
RIGHTS = (
    f"REVOKE ALL ON {ALL} FROM app_reader, app_writer, app_user, nbpulse_operator",
    f"GRANT SELECT, INSERT, UPDATE, DELETE ON {ALL} TO app_maintenance",
    f"GRANT SELECT ON {ALL} TO nbpulse_operator, app_writer",
    "GRANT SELECT ON shard_databases, shard_map TO app_user",
)
# Shared locks in memory: as rows locked FOR SHARE they would be written to disk with every batch, and a multixact spent
# for every shard that two workers store into at once. Volatile, so that its second statement sees what was committed
# while the first one waited.
HOLD = """
CREATE FUNCTION hold_shards(wanted smallint[], epochs bigint[]) RETURNS SETOF smallint
LANGUAGE plpgsql VOLATILE SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(6622035, one) FROM unnest(wanted) AS one;
    RETURN QUERY SELECT k.shard FROM unnest(wanted, epochs) AS k(shard, epoch)
        LEFT JOIN shard_owners o ON o.shard = k.shard AND o.epoch = k.epoch AND o.is_here WHERE o.shard IS NULL;
END $$
"""


def upgrade() -> None:
    for statement in TABLES.split(";\n"):
        op.execute(statement)
    op.execute("INSERT INTO shard_databases (name) VALUES ('main')")
    op.execute(f"INSERT INTO shard_map (shard, database) SELECT n, 'main' FROM generate_series(0, {SHARD_COUNT - 1}) n")
    op.execute(f"INSERT INTO shard_owners (shard) SELECT n FROM generate_series(0, {SHARD_COUNT - 1}) n")
    for table in ALL.split(", "):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY maintenance_policy ON {table} TO app_maintenance USING (true) WITH CHECK (true)")
        op.execute(f"CREATE POLICY operator_policy ON {table} FOR SELECT TO nbpulse_operator USING (true)")
        op.execute(f"CREATE POLICY worker_policy ON {table} FOR SELECT TO app_writer USING (true)")
    for table in ("shard_databases", "shard_map"):
        op.execute(f"CREATE POLICY user_policy ON {table} FOR SELECT TO app_user USING (true)")
    for statement in RIGHTS:
        op.execute(statement)
    op.execute(HOLD)


def downgrade() -> None:
    raise NotImplementedError("where students' rows are would be forgotten: restore a backup made before it instead")
