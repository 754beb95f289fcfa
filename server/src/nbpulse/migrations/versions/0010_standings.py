"""How each student stood in a notebook when its derived points were last worked out, and an index by time in a session.

Without them a mark reads every event of the student in the notebook (docs/decisions/0009).
"""

from alembic import op

from nbpulse.migrations.indexes import drop_index, make_index

revision = "0010"
down_revision = "0009"

# `oks`: {item: 1 where its last run before `until` went well, else 0}; `sessions`: {learning session: [active time in
# us, last event]}. A standing is never wrong but only too old: see records/derived.py.
TABLE = """
CREATE TABLE series_standings (
    user_id UUID NOT NULL,
    shard smallint NOT NULL CHECK (shard =
        (('x' || substr(md5(user_id::text), 1, 8))::bit(32)::bigint % 64)::smallint),
    notebook_id UUID NOT NULL REFERENCES notebooks(id) ON DELETE CASCADE,
    until TIMESTAMP WITH TIME ZONE NOT NULL,
    oks JSONB NOT NULL,
    sessions JSONB NOT NULL,
    PRIMARY KEY (user_id, shard, notebook_id)
) WITH (fillfactor = 60);
ALTER TABLE series_standings ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
REVOKE ALL ON series_standings FROM app_reader, app_writer, app_user, nbpulse_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON series_standings TO app_maintenance, app_writer;
GRANT SELECT ON series_standings TO nbpulse_operator;
CREATE POLICY maintenance_policy ON series_standings TO app_maintenance USING (true) WITH CHECK (true);
CREATE POLICY operator_policy ON series_standings FOR SELECT TO nbpulse_operator USING (true);
CREATE POLICY worker_policy ON series_standings TO app_writer USING (true) WITH CHECK (true)
"""


def upgrade() -> None:
    op.execute("DROP TABLE IF EXISTS series_standings")  # of a run that was killed at the index
    for statement in TABLE.split(";\n"):
        op.execute(statement)
    make_index("idx_events_session_time", "events", "(user_id, learning_session_id, occurred_at)")
    drop_index("idx_events_session")  # the new one begins as it did


def downgrade() -> None:
    make_index("idx_events_session", "events", "(user_id, learning_session_id)")
    drop_index("idx_events_session_time")
    op.execute("DROP TABLE series_standings")
