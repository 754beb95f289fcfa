"""Who sees which row, kept by the database itself (docs/decisions/0006): row-level security on every table.

Every table and partition has it ENABLEd and FORCEd, so that owning a table shows nothing of it; what a role may do is
a grant and a policy, and the roles reach partitions through their parents only. `app_maintenance` is the role of
erasure, retention, merging and re-sealing.
"""

from alembic import op

revision = "0005"
down_revision = "0004"

# After SET LOCAL has ended the setting is '' and not NULL; a sub-select would be refused on Citus.
ME = "nullif(current_setting('app.current_user_id', true), '')::uuid"
OWN = f"user_id = {ME}"
TAUGHT = "course_id = ANY(my_taught_courses())"
MINE = "course_id = ANY(my_courses())"

STUDENTS_WORK = ("events", "learning_sessions", "learner_states", "learner_cells", "help_requests")
OWN_ONLY = ("event_ids", "event_contents")
SERIES = ("timeseries.cell_executions", "timeseries.cell_executions_1m", "timeseries.stale_minutes")
COURSE_DATA = (
    *("users", "courses", "enrolments", "notebooks", "notebook_cells", "class_meetings"),
    *STUDENTS_WORK,
    *OWN_ONLY,
    *SERIES,
)
OPERATION = ("dead_letters", "series_debt", "series_rejects", "sealing_keys", "sealing_progress", "tokens")
# All but the join code, which lets in, and all but what a token's secret is compared with.
COURSE_COLUMNS = "id, title, short_name, time_zone, is_demo, joined_count, settings, created_at, updated_at"
TOKEN_COLUMNS = "id, kind, user_id, course_id, scopes, created_at, last_used_at, expires_at, revoked_at"
PARTITIONED = ("events", "learning_sessions", "timeseries.cell_executions")

# Table, command, which rows (USING, or WITH CHECK for INSERT).
USER_POLICIES = (
    ("users", "SELECT", f"id = {ME} OR is_my_member(id)"),
    ("users", "INSERT", f"id = {ME} AND role = 'student'"),
    ("courses", "SELECT", "id = ANY(my_courses())"),
    ("enrolments", "SELECT", f"{OWN} OR {TAUGHT}"),
    ("enrolments", "INSERT", f"{OWN} AND role = 'student'"),
    ("tokens", "SELECT", OWN),
    ("tokens", "INSERT", f"{OWN} AND kind IN ('student', 'resume', 'session')"),
    ("tokens", "UPDATE", OWN),
    ("notebooks", "SELECT", MINE),
    ("notebook_cells", "SELECT", "EXISTS (SELECT FROM notebooks n WHERE n.id = notebook_id)"),
    ("class_meetings", "SELECT", MINE),
    ("class_meetings", "INSERT", TAUGHT),
    ("class_meetings", "UPDATE", TAUGHT),
    *((table, "SELECT", OWN) for table in OWN_ONLY),
    # Points carry no course, so this is by people. Never per row: asked once per query.
    *((table, "SELECT", f"{OWN} OR user_id = ANY((SELECT my_students())::uuid[])") for table in SERIES),
    ("sealing_keys", "SELECT", "true"),
    ("sealing_keys", "INSERT", "true"),
)

# Called for every row of a scan, hence the answer is kept for the rest of the transaction beside whose it is. Whoever
# could forge that could set the identity itself.
MY_COURSES = """
CREATE FUNCTION {name}() RETURNS uuid[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    me text := current_setting('app.current_user_id', true);
    kept text := current_setting('app.{name}', true);
BEGIN
    IF me IS NULL OR me = '' THEN
        RETURN '{{}}';
    END IF;
    IF left(kept, 36) = me THEN
        RETURN substr(kept, 37)::uuid[];
    END IF;
    kept := public.find_{name}()::text;
    PERFORM set_config('app.{name}', me || kept, true);
    RETURN kept::uuid[];
END $$
"""
DEFINER = "SECURITY DEFINER SET search_path = public, pg_temp"
LOOKUPS = (
    f"""
CREATE FUNCTION find_my_courses() RETURNS uuid[] LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT coalesce(array_agg(course_id), '{{}}') FROM enrolments WHERE {OWN}
$$
""",
    f"""
CREATE FUNCTION find_my_taught_courses() RETURNS uuid[] LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT coalesce(array_agg(course_id), '{{}}') FROM enrolments WHERE {OWN} AND role IN ('assistant', 'instructor')
$$
""",
    f"""
CREATE FUNCTION my_students() RETURNS uuid[] LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT coalesce(array_agg(DISTINCT user_id), '{{}}') FROM enrolments
    WHERE course_id = ANY(find_my_taught_courses()) AND role = 'student'
$$
""",
    f"""
CREATE FUNCTION is_my_member(person uuid) RETURNS boolean LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT EXISTS (SELECT FROM enrolments WHERE user_id = person AND course_id = ANY(my_taught_courses()))
$$
""",
    # Before anybody is somebody: each takes what only its owner knows, and gives no more than the next step needs.
    f"""
CREATE FUNCTION find_token(token uuid) RETURNS TABLE (id uuid, kind text, user_id uuid, course_id uuid, scopes text[],
    secret_hash bytea, last_used_at timestamptz, courses uuid[], roles text[])
LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT t.id, t.kind, t.user_id, t.course_id, t.scopes, t.secret_hash, t.last_used_at,
        array_agg(e.course_id) FILTER (WHERE e.role IS NOT NULL),
        array_agg(e.role::text) FILTER (WHERE e.role IS NOT NULL)
    FROM tokens t LEFT JOIN enrolments e ON e.user_id = t.user_id AND (t.course_id IS NULL OR e.course_id = t.course_id)
    WHERE t.id = token AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now())
    GROUP BY t.id
$$
""",
    # Counting up locks the course's row: two machines joining with one number at once come one after the other.
    f"""
CREATE FUNCTION open_course_by_code(code text)
RETURNS TABLE (id uuid, title text, short_name text, joined_count integer)
LANGUAGE sql {DEFINER} AS $$
    UPDATE courses c SET joined_count = c.joined_count + 1 WHERE c.join_code = code
    RETURNING c.id, c.title, c.short_name, c.joined_count
$$
""",
    f"""
CREATE FUNCTION find_number_holder(course uuid, number text) RETURNS uuid LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT user_id FROM enrolments WHERE course_id = course AND student_number = number AND maybe_same_as IS NULL
$$
""",
    f"""
CREATE FUNCTION find_resume_code(course uuid, hash bytea) RETURNS TABLE (user_id uuid, username text)
LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT t.user_id, u.username FROM tokens t JOIN users u ON u.id = t.user_id
    WHERE t.kind = 'resume' AND t.course_id = course AND t.secret_hash = hash AND t.revoked_at IS NULL
$$
""",
    # Whether a process's keys fit is asked before anybody is somebody; what it gets is sealed.
    f"""
CREATE FUNCTION find_sealed_samples() RETURNS SETOF text LANGUAGE sql STABLE {DEFINER} AS $$
    (SELECT display_name FROM users WHERE display_name IS NOT NULL LIMIT 1)
    UNION ALL (SELECT error_message FROM events WHERE error_message IS NOT NULL LIMIT 1)
    UNION ALL (SELECT traceback FROM events WHERE traceback IS NOT NULL LIMIT 1)
    UNION ALL (SELECT source FROM event_contents WHERE source IS NOT NULL LIMIT 1)
    UNION ALL (SELECT output FROM event_contents WHERE output IS NOT NULL LIMIT 1)
    UNION ALL (SELECT help_text FROM learner_states WHERE help_text IS NOT NULL LIMIT 1)
    UNION ALL (SELECT message FROM help_requests WHERE message IS NOT NULL LIMIT 1)
    UNION ALL (SELECT payload FROM dead_letters LIMIT 1)
$$
""",
    # Figures for an operator's dashboard, of nobody in particular.
    f"""
CREATE FUNCTION count_owed() RETURNS TABLE (debt_batches bigint, debt_oldest_s numeric, dead_letters bigint)
LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT (SELECT count(*) FROM series_debt),
        (SELECT coalesce(extract(epoch FROM now() - min(created_at)), 0) FROM series_debt),
        (SELECT count(*) FROM dead_letters WHERE replayed_at IS NULL)
$$
""",
    f"""
CREATE FUNCTION open_rehearsal(course_title text, code text) RETURNS uuid LANGUAGE plpgsql {DEFINER} AS $$
DECLARE
    made uuid;
BEGIN
    IF cardinality(my_taught_courses()) = 0 THEN
        RETURN NULL;
    END IF;
    INSERT INTO courses (title, short_name, join_code, is_demo) VALUES (course_title, 'rehearsal-' || code, code, TRUE)
    RETURNING id INTO made;
    INSERT INTO enrolments (user_id, course_id, role) VALUES ({ME}, made, 'instructor');
    RETURN made;
END $$
""",
    f"""
CREATE FUNCTION remove_demo_course(course uuid) RETURNS integer LANGUAGE plpgsql {DEFINER} AS $$
BEGIN
    PERFORM FROM courses WHERE id = course AND is_demo AND id = ANY(find_my_taught_courses()) FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN remove_course(course);
END $$
""",
)
FOR_USERS = (
    *("find_my_courses()", "find_my_taught_courses()", "my_courses()", "my_taught_courses()", "my_students()"),
    *("is_my_member(uuid)", "find_token(uuid)", "open_course_by_code(text)", "find_number_holder(uuid, text)"),
    *(
        "find_resume_code(uuid, bytea)",
        "count_owed()",
        "find_sealed_samples()",
        "open_rehearsal(text, text)",
        "remove_demo_course(uuid)",
    ),
)

# Every month's partition from this one to `ahead` months on, of each partitioned table; rows that wait in the default
# partition move in. Run by the worker's job, hence with the rights of the login that keeps partitions.
ENSURE_MONTHS = """
CREATE FUNCTION ensure_months(ahead integer) RETURNS text[] LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp SET timezone = 'UTC' SET lock_timeout = '3s' AS $$
DECLARE
    month timestamptz;
    parent text;
    child text;
    bounds text[];
    made text[] := '{}';
BEGIN
    PERFORM pg_advisory_xact_lock(6622003);
    FOR month IN SELECT generate_series(date_trunc('month', now()), now() + ahead * interval '1 month', '1 month') LOOP
        FOREACH parent IN ARRAY ARRAY['events', 'learning_sessions', 'timeseries.cell_executions'] LOOP
            child := parent || to_char(month, '_YYYY_MM');
            CONTINUE WHEN to_regclass(child) IS NOT NULL;
            bounds := ARRAY[month::text, (month + interval '1 month')::text];
            IF parent = 'timeseries.cell_executions' THEN
                bounds := ARRAY[(extract(epoch FROM month)::bigint * 1000000000)::text,
                    (extract(epoch FROM month + interval '1 month')::bigint * 1000000000)::text];
            END IF;
            EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL)', child, parent);
            EXECUTE format('ALTER TABLE %s OWNER TO nbpulse_owner', child);
            EXECUTE format('WITH moved AS (DELETE FROM %1$s_default WHERE %3$I >= %4$L AND %3$I < %5$L RETURNING *)'
                ' INSERT INTO %2$s SELECT * FROM moved', parent, child,
                CASE parent WHEN 'events' THEN 'occurred_at' WHEN 'learning_sessions' THEN 'started_at'
                    ELSE 'time_ns' END, bounds[1], bounds[2]);
            EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
                parent, child, bounds[1], bounds[2]);
            EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', child);
            EXECUTE format('REVOKE ALL ON %s FROM app_reader, app_writer, app_user, nbpulse_operator', child);
            made := made || child;
        END LOOP;
    END LOOP;
    IF cardinality(made) > 0 THEN
        ANALYZE events, learning_sessions, timeseries.cell_executions;
    END IF;
    RETURN made;
END $$
"""
# The autovacuum analyses partitions, never the parents, whose statistics the planner needs as well.
ANALYZE_PARENTS = """
CREATE FUNCTION analyze_parents() RETURNS integer LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    parent regclass;
    count integer := 0;
BEGIN
    FOR parent IN SELECT c.oid::regclass FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
            WHERE c.relkind = 'p' AND n.nspname IN ('public', 'timeseries')
                AND coalesce(s.last_analyze, '-infinity') < now() - interval '24 hours' LOOP
        EXECUTE format('ANALYZE %s', parent);
        count := count + 1;
    END LOOP;
    RETURN count;
END $$
"""
TOUCH = """
CREATE FUNCTION touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END $$
"""


def upgrade() -> None:
    _touch()
    _index()
    op.execute("SET LOCAL ROLE app_maintenance")  # what these functions see, they see by its policies
    for name in ("my_courses", "my_taught_courses"):
        op.execute(MY_COURSES.format(name=name))
    op.execute("SET LOCAL ROLE nbpulse_owner")
    op.execute("DROP FUNCTION remove_demo_course(uuid)")
    op.execute("GRANT EXECUTE ON FUNCTION remove_course(uuid) TO app_maintenance")
    _grant()
    _protect()
    op.execute("SET LOCAL ROLE app_maintenance")
    for function in LOOKUPS:
        op.execute(function)
    for name in FOR_USERS:
        op.execute(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO app_user")
    op.execute("GRANT EXECUTE ON FUNCTION find_sealed_samples() TO app_writer, nbpulse_operator")
    op.execute("SET LOCAL ROLE nbpulse_migrator")
    for function in (ENSURE_MONTHS, ANALYZE_PARENTS):
        op.execute(function)
    for name in ("ensure_months(integer)", "analyze_parents()"):
        op.execute(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO app_writer, nbpulse_owner")
    op.execute("SET LOCAL ROLE nbpulse_owner")
    _let_users_in()


def _touch() -> None:
    op.execute(TOUCH)
    for table in ("users", "courses", "notebooks"):
        op.execute(
            f"CREATE TRIGGER touch_updated_at BEFORE UPDATE ON {table} FOR EACH ROW"
            " WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_updated_at()"
        )


def _index() -> None:
    op.execute("CREATE INDEX idx_sessions_course ON learning_sessions(course_id, started_at)")


def _grant() -> None:
    everything = ", ".join((*COURSE_DATA, *OPERATION))
    reading = ", ".join(table for table in COURSE_DATA if table != "courses")
    worked_on = ", ".join((*COURSE_DATA, "dead_letters", "series_debt", "series_rejects"))
    for statement in (
        "REVOKE ALL ON ALL TABLES IN SCHEMA public, timeseries FROM app_reader, app_writer, app_user, nbpulse_operator",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public, timeseries REVOKE SELECT ON TABLES FROM app_user",
        "GRANT USAGE ON SCHEMA public, timeseries TO app_maintenance",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {everything} TO app_maintenance",
        f"GRANT SELECT ON {reading} TO app_reader",
        f"GRANT SELECT ({COURSE_COLUMNS}) ON courses TO app_reader",
        f"GRANT SELECT, INSERT, UPDATE ON {worked_on} TO app_writer",
        "GRANT DELETE ON series_debt, timeseries.cell_executions_1m, timeseries.stale_minutes TO app_writer",
        "GRANT SELECT, INSERT ON sealing_keys TO app_writer, app_user",
        f"GRANT SELECT ON {worked_on}, sealing_keys TO nbpulse_operator",
        f"GRANT SELECT ON {', '.join(COURSE_DATA)} TO app_user",
        "GRANT INSERT ON users, enrolments, tokens, learner_states, class_meetings TO app_user",
        "GRANT UPDATE ON class_meetings TO app_user",
        "GRANT UPDATE (last_used_at, revoked_at) ON tokens TO app_user",
        f"GRANT SELECT ({TOKEN_COLUMNS}) ON tokens TO app_user, nbpulse_operator",
    ):
        op.execute(statement)


def _protect() -> None:
    op.execute("""
DO $$
DECLARE name regclass;
BEGIN
    FOR name IN SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p') AND n.nspname IN ('public', 'timeseries') LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
    END LOOP;
END $$""")
    op.execute(
        "CREATE POLICY migration_policy ON alembic_version TO nbpulse_owner, app_maintenance"
        " USING (true) WITH CHECK (true)"
    )
    # Partitions are reached through their parents only; rows that wait in a default one are moved to their month.
    for table in (*COURSE_DATA, *OPERATION, *(f"{parent}_default" for parent in PARTITIONED)):
        op.execute(f"CREATE POLICY maintenance_policy ON {table} TO app_maintenance USING (true) WITH CHECK (true)")
    for table in (*COURSE_DATA, *OPERATION):
        op.execute(f"CREATE POLICY operator_policy ON {table} FOR SELECT TO nbpulse_operator USING (true)")
        if table not in ("tokens", "sealing_progress"):
            op.execute(f"CREATE POLICY worker_policy ON {table} TO app_writer USING (true) WITH CHECK (true)")
    for table in COURSE_DATA:
        op.execute(f"CREATE POLICY reader_policy ON {table} FOR SELECT TO app_reader USING (true)")


def _let_users_in() -> None:
    for table in STUDENTS_WORK:
        # The specification's policy and its name. What it is good for beyond reading, the grants decide.
        op.execute(f"CREATE POLICY user_data_policy ON {table} FOR ALL TO app_user USING ({OWN})")
        op.execute(f"CREATE POLICY course_staff_policy ON {table} FOR SELECT TO app_user USING ({TAUGHT})")
    for table, command, rows in USER_POLICIES:
        clause = "WITH CHECK" if command == "INSERT" else "USING"
        op.execute(
            f"CREATE POLICY user_{command.lower()}_policy ON {table} FOR {command} TO app_user {clause} ({rows})"
        )


def downgrade() -> None:
    raise NotImplementedError("protection is not taken back: restore a backup made before it instead")
