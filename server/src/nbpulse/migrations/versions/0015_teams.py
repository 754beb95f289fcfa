"""Assistants see the students of their own teams, and those of no team (docs/decisions/0018).

`enrolments.team` is a student's, `enrolments.teams` are an assistant's; `courses.shows_all_teams` opens all of a course
to its assistants. A course is seen *whole* by its instructors and by assistants from whom it hides nobody: they read as
before, by an index on the course. From the others each row is asked for by its student.
"""

from alembic import op

revision = "0015"
down_revision = "0014"

ME = "nullif(current_setting('app.current_user_id', true), '')::uuid"
OWN = f"user_id = {ME}"
TAUGHT = "course_id = ANY(my_taught_courses())"
WHOLE = "course_id = ANY(my_whole_courses())"
MY_STUDENT = "is_my_student(course_id, user_id)"
SEEN = f"({WHOLE} OR {MY_STUDENT})"
COLLEAGUES = f"{TAUGHT} AND role IN ('assistant', 'instructor')"
DEFINER = "SECURITY DEFINER SET search_path = public, pg_temp"
WORK = ("events", "learning_sessions", "learner_states", "learner_cells", "help_requests")
POINTS = (
    *("timeseries.cell_executions", "timeseries.cell_executions_1m", "timeseries.stale_minutes"),
    *("timeseries.cell_executions_10m", "timeseries.learning_progress", "timeseries.performance_metrics"),
)
STAFF_TABLES = ("enrolments", "notebooks", "events", "learning_sessions", "learner_cells")
WHOLE_ONCE = "course_id = ANY((SELECT my_whole_courses())::uuid[])"  # asked once per query, never per row of a scan

# As in 0005: called for every row of a scan, hence kept for the rest of the transaction beside whose answer it is.
KEPT_COURSES = """
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
HIDDEN = """
    NOT c.shows_all_teams AND EXISTS (SELECT FROM enrolments s WHERE s.course_id = e.course_id
        AND s.role NOT IN ('assistant', 'instructor') AND NOT s.team = ANY(e.teams))
"""
FUNCTIONS = {
    "find_my_whole_courses()": f"""
CREATE FUNCTION find_my_whole_courses() RETURNS uuid[] LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT coalesce(array_agg(e.course_id), '{{}}') FROM enrolments e JOIN courses c ON c.id = e.course_id
    WHERE e.user_id = {ME} AND (e.role = 'instructor' OR e.role = 'assistant' AND NOT ({HIDDEN}))
$$
""",
    # For the API, which must not give one's answer to another: the courses somebody sees in part, and the teams there.
    "find_team_views(uuid)": f"""
CREATE FUNCTION find_team_views(person uuid) RETURNS jsonb LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT coalesce(jsonb_object_agg(e.course_id, e.teams), '{{}}')
    FROM enrolments e JOIN courses c ON c.id = e.course_id
    WHERE e.user_id = person AND e.role = 'assistant' AND {HIDDEN}
$$
""",
    # None: the whole course.
    "find_my_teams(uuid)": f"""
CREATE FUNCTION find_my_teams(course uuid) RETURNS text[] LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT CASE WHEN course = ANY(my_whole_courses()) THEN NULL ELSE coalesce(
        (SELECT teams::text[] FROM enrolments e WHERE e.user_id = {ME} AND e.course_id = course), '{{}}') END
$$
""",
    # Course and student, side by side, of the courses seen in part.
    "find_my_team_students()": f"""
CREATE FUNCTION find_my_team_students() RETURNS text LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT coalesce(string_agg(s.course_id::text || s.user_id::text, ' '), '')
    FROM enrolments e JOIN enrolments s ON s.course_id = e.course_id
    WHERE e.user_id = {ME} AND e.role = 'assistant' AND NOT e.course_id = ANY(my_whole_courses())
        AND s.role NOT IN ('assistant', 'instructor') AND (s.team IS NULL OR s.team = ANY(e.teams))
$$
""",
    "is_my_student(uuid, uuid)": """
CREATE FUNCTION is_my_student(course uuid, student uuid) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
DECLARE
    me text := current_setting('app.current_user_id', true);
    kept text := current_setting('app.my_team_students', true);
BEGIN
    IF me IS NULL OR me = '' THEN
        RETURN false;
    END IF;
    IF left(kept, 36) IS DISTINCT FROM me THEN
        kept := me || ' ' || public.find_my_team_students();
        PERFORM set_config('app.my_team_students', kept, true);
    END IF;
    RETURN strpos(kept, course::text || student::text) > 0;
END $$
""",
}
IS_MY_MEMBER = f"""
CREATE OR REPLACE FUNCTION is_my_member(person uuid) RETURNS boolean LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT EXISTS (SELECT FROM enrolments e WHERE e.user_id = person AND e.course_id = ANY(my_taught_courses())
        AND (e.course_id = ANY(my_whole_courses()) OR e.role IN ('assistant', 'instructor')
            OR is_my_student(e.course_id, e.user_id)))
$$
"""
# A course seen in part is read as `app_user`, whose policies know teams; `app_staff` knows whole courses only.
READ_AS_STAFF = """
CREATE FUNCTION read_as_staff() RETURNS text LANGUAGE sql AS $$
    SELECT set_config('role', CASE cardinality(my_taught_courses()) WHEN cardinality(my_whole_courses())
        THEN 'app_staff' ELSE 'none' END, true)
$$
"""


def upgrade() -> None:
    op.execute("ALTER TABLE enrolments ADD COLUMN teams TEXT[] NOT NULL DEFAULT '{}'")
    op.execute("ALTER TABLE courses ADD COLUMN shows_all_teams BOOLEAN NOT NULL DEFAULT FALSE")
    op.execute("GRANT SELECT (shows_all_teams) ON courses TO app_reader")
    op.execute("SET LOCAL ROLE app_maintenance")  # what these functions see, they see by its policies
    op.execute(FUNCTIONS["find_my_whole_courses()"])
    op.execute(KEPT_COURSES.format(name="my_whole_courses"))
    for name, function in FUNCTIONS.items():
        if name != "find_my_whole_courses()":
            op.execute(function)
    op.execute(IS_MY_MEMBER)
    op.execute(READ_AS_STAFF)
    for name in (*FUNCTIONS, "my_whole_courses()", "read_as_staff()"):
        op.execute(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO app_user, app_staff")
    op.execute("SET LOCAL ROLE nbpulse_owner")
    for table in WORK:
        op.execute(f"ALTER POLICY course_staff_policy ON {table} USING {SEEN}")
    for table, policy, rows in (
        ("learner_states", "staff_update_policy", f"USING {SEEN}"),
        ("enrolments", "user_select_policy", f"USING ({OWN} OR {SEEN} OR {COLLEAGUES})"),
        ("consents", "user_select_policy", f"USING ({OWN} OR {SEEN})"),
        ("messages", "user_select_policy", f"USING ({OWN} OR {SEEN})"),
        (
            *("messages", "user_insert_policy"),
            f"WITH CHECK (sender_id = {ME} AND ({OWN} AND NOT is_from_staff OR {SEEN} AND is_from_staff))",
        ),
        ("interventions", "user_select_policy", f"USING {SEEN}"),
        ("interventions", "user_insert_policy", f"WITH CHECK ({SEEN} AND staff_id = {ME})"),
        ("timeseries.durations_10m", "user_select_policy", f"USING ({WHOLE_ONCE})"),
        *((table, "user_select_policy", f"USING ({OWN} OR {WHOLE_ONCE} OR {MY_STUDENT})") for table in POINTS),
        *((table, "staff_policy", f"USING ({WHOLE})") for table in STAFF_TABLES),
        ("courses", "staff_policy", "USING (id = ANY(my_whole_courses()))"),
    ):
        op.execute(f"ALTER POLICY {policy} ON {table} {rows}")


def downgrade() -> None:
    raise NotImplementedError("what was hidden would be shown: restore a backup made before it instead")
