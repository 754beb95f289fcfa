"""What the directory keeps of learners whose rows are in another database (docs/decisions/0030).

`rollup_debts` is written there, in the transaction whose learners' state the directory does not show yet; `recent_runs`
is the directory's: a class's runs of the last day by half minute. Both are empty at a site of one database.
"""

from alembic import op

revision = "0036"
down_revision = "0039"

TABLES = """
CREATE TABLE rollup_debts (
    id UUID PRIMARY KEY,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    user_ids UUID[] NOT NULL,
    course_ids UUID[] NOT NULL
);
CREATE TABLE recent_runs (
    user_id UUID NOT NULL,
    shard smallint NOT NULL
        CHECK (shard = (('x' || substr(md5(user_id::text), 1, 8))::bit(32)::bigint % 64)::smallint),
    course_id UUID NOT NULL REFERENCES courses(id) ON DELETE CASCADE,
    notebook_id UUID NOT NULL,
    half_minute INTEGER NOT NULL,
    runs INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    PRIMARY KEY (user_id, shard, notebook_id, half_minute)
);
CREATE INDEX idx_recent_runs_course ON recent_runs(course_id, half_minute)
"""
ME = "nullif(current_setting('app.current_user_id', true), '')::uuid"
NEW = ("rollup_debts", "recent_runs")
POLICIES = (
    *((table, "maintenance_policy", "TO app_maintenance USING (true) WITH CHECK (true)") for table in NEW),
    *((table, "operator_policy", "FOR SELECT TO nbpulse_operator USING (true)") for table in NEW),
    *((table, "worker_policy", "TO app_writer USING (true) WITH CHECK (true)") for table in NEW),
    ("recent_runs", "reader_policy", "FOR SELECT TO app_reader USING (true)"),
    ("recent_runs", "user_data_policy", f"FOR SELECT TO app_user USING (user_id = {ME})"),
    (
        "recent_runs",
        "course_staff_policy",
        "FOR SELECT TO app_user USING (course_id = ANY(my_whole_courses()) OR is_my_student(course_id, user_id))",
    ),
    ("recent_runs", "staff_policy", "FOR SELECT TO app_staff USING (course_id = ANY(my_read_courses()))"),
)
RIGHTS = (
    "REVOKE ALL ON rollup_debts, recent_runs FROM app_reader, app_writer, app_user, nbpulse_operator",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON rollup_debts, recent_runs TO app_maintenance, app_writer",
    "GRANT SELECT ON rollup_debts, recent_runs TO nbpulse_operator",
    "GRANT SELECT ON recent_runs TO app_reader, app_user, app_staff",
)


def upgrade() -> None:
    for statement in TABLES.split(";\n"):
        op.execute(statement)
    for table in NEW:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    for table, name, rule in POLICIES:
        op.execute(f"CREATE POLICY {name} ON {table} {rule}")
    for statement in RIGHTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE rollup_debts, recent_runs")
