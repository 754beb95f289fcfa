"""What staff do reaches the student: messages, what was done about an alert, and the number of each inbox.

`learner_states.inbox_revision` rises with everything a student's inbox tells, under the row's lock, so nothing is
committed later under a number already read; `hand_revision` is what it was when the hand last went up or down. Names of
staff and places in the queue go to students through functions of their own.
"""

from alembic import op

revision = "0010"
down_revision = "0009"

ME = "nullif(current_setting('app.current_user_id', true), '')::uuid"
TAUGHT = "course_id = ANY(my_taught_courses())"
DEFINER = "SECURITY DEFINER SET search_path = public, pg_temp"
SHARD = (
    "shard smallint NOT NULL CHECK (shard = "
    "(('x' || substr(md5(user_id::text), 1, 8))::bit(32)::bigint % 64)::smallint)"
)
NEW = ("messages", "interventions")

TABLES = f"""
ALTER TABLE learner_states ADD COLUMN inbox_revision BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN hand_revision BIGINT NOT NULL DEFAULT 0;
CREATE TABLE messages (
    user_id UUID NOT NULL,
    {SHARD},
    id UUID NOT NULL,
    course_id UUID NOT NULL REFERENCES courses(id) ON DELETE CASCADE,
    batch_id UUID NOT NULL,
    thread_id UUID NOT NULL,
    sender_id UUID NOT NULL,
    is_from_staff BOOLEAN NOT NULL,
    kind VARCHAR(20) NOT NULL CHECK (kind IN ('message', 'announcement', 'offer')),
    body TEXT NOT NULL,
    notebook_id UUID,
    cell_id VARCHAR(256),
    source TEXT,
    error_fingerprint VARCHAR(16),
    created_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT clock_timestamp(),
    state VARCHAR(10) NOT NULL DEFAULT 'sent' CHECK (state IN ('sent', 'shown', 'accepted', 'later', 'never')),
    state_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT clock_timestamp(),
    revision BIGINT NOT NULL,
    PRIMARY KEY (user_id, shard, id)
);
CREATE INDEX idx_messages_inbox ON messages(user_id, course_id, revision);
CREATE INDEX idx_messages_course ON messages(course_id, created_at);
CREATE INDEX idx_messages_batch ON messages(batch_id);
CREATE TABLE interventions (
    user_id UUID NOT NULL,
    {SHARD},
    id UUID NOT NULL,
    course_id UUID NOT NULL REFERENCES courses(id) ON DELETE CASCADE,
    alert_id UUID NOT NULL,
    rule VARCHAR(20),
    cell_id VARCHAR(256),
    staff_id UUID NOT NULL,
    action VARCHAR(10) NOT NULL CHECK (action IN ('claim', 'release', 'helped', 'snooze', 'undo', 'note')),
    hand_id UUID,
    undoes UUID,
    note TEXT,
    at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT clock_timestamp(),
    until_at TIMESTAMP WITH TIME ZONE,
    revision BIGINT NOT NULL,
    PRIMARY KEY (user_id, shard, id)
);
CREATE INDEX idx_interventions_course ON interventions(course_id, at)
"""
RIGHTS = (
    "GRANT SELECT, INSERT, UPDATE, DELETE ON messages, interventions TO app_maintenance",
    "GRANT SELECT, INSERT, UPDATE ON messages, interventions TO app_writer",
    "GRANT SELECT ON messages, interventions TO app_reader, nbpulse_operator",
    "GRANT SELECT, INSERT ON messages, interventions TO app_user",
    "GRANT UPDATE (state, state_at, revision) ON messages TO app_user",
    "GRANT UPDATE (inbox_revision) ON learner_states TO app_user",
)
USER_POLICIES = (
    ("messages", "SELECT", f"USING (user_id = {ME} OR {TAUGHT})"),
    (
        *("messages", "INSERT"),
        f"WITH CHECK (sender_id = {ME} AND (user_id = {ME} AND NOT is_from_staff OR {TAUGHT} AND is_from_staff))",
    ),
    ("messages", "UPDATE", f"USING (user_id = {ME})"),
    ("interventions", "SELECT", f"USING ({TAUGHT})"),
    ("interventions", "INSERT", f"WITH CHECK ({TAUGHT} AND staff_id = {ME})"),
)
FUNCTIONS = {
    # What was done about my own alerts; no notes.
    "read_my_care(uuid)": f"""
CREATE FUNCTION read_my_care(course uuid) RETURNS TABLE (id uuid, user_id uuid, alert_id uuid, staff_id uuid,
    action text, hand_id uuid, undoes uuid, at timestamptz, until_at timestamptz, revision bigint)
LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT i.id, i.user_id, i.alert_id, i.staff_id, i.action, i.hand_id, i.undoes, i.at, i.until_at, i.revision
    FROM interventions i
    WHERE i.user_id = {ME} AND i.course_id = course AND i.action <> 'note' AND i.at > now() - interval '12 hours'
$$
""",
    # The names of those who wrote to me or looked after me, and of nobody else.
    "find_my_staff(uuid)": f"""
CREATE FUNCTION find_my_staff(course uuid) RETURNS TABLE (id uuid, username text, display_name text)
LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT u.id, u.username, u.display_name FROM users u WHERE u.id IN (
        SELECT m.sender_id FROM messages m WHERE m.user_id = {ME} AND m.course_id = course AND m.is_from_staff
        UNION SELECT i.staff_id FROM interventions i WHERE i.user_id = {ME} AND i.course_id = course)
$$
""",
    # How many were before me with a hand that is up and that nobody has answered, plus one.
    "find_my_place(uuid)": f"""
CREATE FUNCTION find_my_place(course uuid) RETURNS bigint LANGUAGE sql STABLE {DEFINER} AS $$
    WITH waiting AS (
        SELECT h.user_id, h.opened_at, h.id FROM help_requests h
        WHERE h.course_id = course AND h.closed_at IS NULL AND NOT EXISTS (
            SELECT FROM interventions i WHERE i.user_id = h.user_id AND i.hand_id = h.id AND i.action = 'helped'
                AND NOT EXISTS (SELECT FROM interventions u WHERE u.user_id = i.user_id AND u.undoes = i.id))
    )
    SELECT 1 + (SELECT count(DISTINCT w.user_id) FROM waiting w
        WHERE w.user_id <> mine.user_id AND (w.opened_at, w.id) < (mine.opened_at, mine.id))
    FROM waiting mine WHERE mine.user_id = {ME} ORDER BY mine.opened_at DESC LIMIT 1
$$
""",
}


def upgrade() -> None:
    for statement in TABLES.split(";\n"):
        op.execute(statement)
    for table in NEW:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        op.execute(f"REVOKE ALL ON {table} FROM app_reader, app_writer, app_user, nbpulse_operator")
        op.execute(f"CREATE POLICY maintenance_policy ON {table} TO app_maintenance USING (true) WITH CHECK (true)")
        op.execute(f"CREATE POLICY worker_policy ON {table} TO app_writer USING (true) WITH CHECK (true)")
        op.execute(f"CREATE POLICY operator_policy ON {table} FOR SELECT TO nbpulse_operator USING (true)")
        op.execute(f"CREATE POLICY reader_policy ON {table} FOR SELECT TO app_reader USING (true)")
    for statement in RIGHTS:
        op.execute(statement)
    for table, command, rows in USER_POLICIES:
        op.execute(f"CREATE POLICY user_{command.lower()}_policy ON {table} FOR {command} TO app_user {rows}")
    op.execute(f"CREATE POLICY staff_update_policy ON learner_states FOR UPDATE TO app_user USING ({TAUGHT})")
    op.execute("SET LOCAL ROLE app_maintenance")
    for name, function in FUNCTIONS.items():
        op.execute(function)
        op.execute(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO app_user")
    op.execute("SET LOCAL ROLE nbpulse_owner")


def downgrade() -> None:
    op.execute("SET LOCAL ROLE app_maintenance")
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}")
    op.execute("SET LOCAL ROLE nbpulse_owner")
    op.execute("DROP POLICY staff_update_policy ON learner_states")
    op.execute("REVOKE UPDATE (inbox_revision) ON learner_states FROM app_user")
    op.execute("DROP TABLE interventions, messages")
    op.execute("ALTER TABLE learner_states DROP COLUMN inbox_revision, DROP COLUMN hand_revision")
