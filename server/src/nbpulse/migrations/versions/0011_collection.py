"""What a course collects, version by version, and what each student said to it: `collection_versions`, `consents`.

A consent's `version` is the one the student was shown; none where the client showed no notice of ours. The history is
only ever added to: nobody but erasure may change or delete a row.
"""

from alembic import op

revision = "0011"
down_revision = "0010"

ME = "nullif(current_setting('app.current_user_id', true), '')::uuid"
OWN = f"user_id = {ME}"
TAUGHT = "course_id = ANY(my_taught_courses())"
SHARD = (
    "shard smallint NOT NULL CHECK (shard = "
    "(('x' || substr(md5(user_id::text), 1, 8))::bit(32)::bigint % 64)::smallint)"
)
TABLES = f"""
CREATE TABLE collection_versions (
    course_id UUID NOT NULL REFERENCES courses(id) ON DELETE CASCADE,
    version INTEGER NOT NULL CHECK (version > 0),
    level VARCHAR(20) NOT NULL CHECK (level IN ('nothing', 'metadata', 'source', 'output')),
    without TEXT[] NOT NULL DEFAULT '{{}}',
    added_ja TEXT NOT NULL DEFAULT '',
    added_en TEXT NOT NULL DEFAULT '',
    notice_ja TEXT NOT NULL DEFAULT '',
    notice_en TEXT NOT NULL DEFAULT '',
    created_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    created_by UUID REFERENCES users(id) ON DELETE SET NULL,
    PRIMARY KEY (course_id, version)
);
CREATE TABLE consents (
    user_id UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    {SHARD},
    id UUID NOT NULL DEFAULT gen_random_uuid(),
    course_id UUID NOT NULL REFERENCES courses(id) ON DELETE CASCADE,
    at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT clock_timestamp(),
    version INTEGER,
    action VARCHAR(20) NOT NULL CHECK (action IN ('accept', 'withdraw')),
    PRIMARY KEY (user_id, shard, id)
);
CREATE INDEX idx_consents_course ON consents(course_id, user_id, at DESC)
"""
DEFINER = "SECURITY DEFINER SET search_path = public, pg_temp"
NEWEST = "SELECT * FROM collection_versions WHERE course_id = course ORDER BY version DESC LIMIT 1"
LAST_WORD = (
    "SELECT version, action FROM consents WHERE user_id = person AND course_id = course ORDER BY at DESC LIMIT 1"
)
FUNCTIONS = (
    # Asked with each look-up of a student's token: what holds in the course, and what this student was shown last.
    f"""
CREATE FUNCTION find_collection(person uuid, course uuid)
RETURNS TABLE (version integer, level text, without text[], shown_level text, shown_without text[])
LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT n.version, n.level::text, n.without, s.level::text, s.without
    FROM ({NEWEST}) n LEFT JOIN ({LAST_WORD}) w ON true
    LEFT JOIN collection_versions s ON s.course_id = course AND s.version = w.version AND w.action = 'accept'
$$
""",
    # The first version comes into being with the first student who is shown it.
    f"""
CREATE FUNCTION begin_collection(course uuid, ja text, en text) RETURNS SETOF collection_versions
LANGUAGE sql {DEFINER} AS $$
    INSERT INTO collection_versions (course_id, version, level, notice_ja, notice_en)
    SELECT course, 1, 'metadata', ja, en WHERE NOT EXISTS (SELECT FROM collection_versions WHERE course_id = course)
    ON CONFLICT DO NOTHING;
    {NEWEST}
$$
""",
    f"""
CREATE FUNCTION find_course_by_code(code text) RETURNS TABLE (id uuid, title text) LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT c.id, c.title FROM courses c WHERE c.join_code = code
$$
""",
    # A token that works no longer: whether that is because its student has withdrawn.
    f"""
CREATE FUNCTION find_withdrawal(token uuid) RETURNS bytea LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT t.secret_hash FROM tokens t JOIN LATERAL (
        SELECT action FROM consents c WHERE c.user_id = t.user_id AND c.course_id = t.course_id
        ORDER BY at DESC LIMIT 1
    ) w ON w.action = 'withdraw'
    WHERE t.id = token AND t.kind = 'student' AND t.revoked_at IS NOT NULL
$$
""",
)
FOR_USERS = (
    "find_collection(uuid, uuid)",
    "begin_collection(uuid, text, text)",
    "find_course_by_code(text)",
    "find_withdrawal(uuid)",
)
NEW = ("collection_versions", "consents")
RIGHTS = (
    "REVOKE ALL ON collection_versions, consents FROM app_reader, app_writer, app_user, nbpulse_operator",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON collection_versions, consents TO app_maintenance",
    "GRANT SELECT ON collection_versions, consents TO app_reader, nbpulse_operator",
    "GRANT SELECT, INSERT ON collection_versions, consents TO app_user",
)
USER_POLICIES = (
    ("collection_versions", "SELECT", "course_id = ANY(my_courses())"),
    ("collection_versions", "INSERT", TAUGHT),
    ("consents", "SELECT", f"{OWN} OR {TAUGHT}"),
    ("consents", "INSERT", OWN),
)


def upgrade() -> None:
    for statement in TABLES.split(";\n"):
        op.execute(statement)
    for table in NEW:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY maintenance_policy ON {table} TO app_maintenance USING (true) WITH CHECK (true)")
        op.execute(f"CREATE POLICY operator_policy ON {table} FOR SELECT TO nbpulse_operator USING (true)")
        op.execute(f"CREATE POLICY reader_policy ON {table} FOR SELECT TO app_reader USING (true)")
    for statement in RIGHTS:
        op.execute(statement)
    for table, command, rows in USER_POLICIES:
        clause = "WITH CHECK" if command == "INSERT" else "USING"
        op.execute(
            f"CREATE POLICY user_{command.lower()}_policy ON {table} FOR {command} TO app_user {clause} ({rows})"
        )
    op.execute("SET LOCAL ROLE app_maintenance")
    for function in FUNCTIONS:
        op.execute(function)
    for name in FOR_USERS:
        op.execute(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO app_user")
    op.execute("SET LOCAL ROLE nbpulse_owner")


def downgrade() -> None:
    raise NotImplementedError("what students said would be forgotten: restore a backup made before it instead")
