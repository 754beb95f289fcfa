"""Courses made, copied and archived by those who teach, and originals registered at the board.

`courses.archived_at`: since when the course is over. It takes nothing more of its students and lets nobody in; what it
has stays readable. Who may make one is said by `may_create_courses()`, in one place for all ways of making one.
"""

from alembic import op

revision = "0032"
down_revision = "0024"

ME = "nullif(current_setting('app.current_user_id', true), '')::uuid"
DEFINER = "SECURITY DEFINER SET search_path = public, pg_temp"
LED = "course_id = ANY(my_led_courses())"
OF_LED = f"EXISTS (SELECT FROM notebooks n WHERE n.id = notebook_id AND n.{LED})"
CELL_COLUMNS = "cell_index, cell_type, title, exercise_id, source, is_registered"
RIGHTS = (
    "ALTER TABLE courses ADD COLUMN archived_at TIMESTAMP WITH TIME ZONE",
    "GRANT SELECT (archived_at) ON courses TO app_reader",
    "GRANT UPDATE (archived_at) ON courses TO app_user",
    "GRANT INSERT, UPDATE (title) ON notebooks TO app_user",
    f"GRANT INSERT, UPDATE ({CELL_COLUMNS}) ON notebook_cells TO app_user",
    f"CREATE POLICY user_insert_policy ON notebooks FOR INSERT TO app_user WITH CHECK ({LED})",
    f"CREATE POLICY user_update_policy ON notebooks FOR UPDATE TO app_user USING ({LED})",
    f"CREATE POLICY user_insert_policy ON notebook_cells FOR INSERT TO app_user WITH CHECK ({OF_LED})",
    f"CREATE POLICY user_update_policy ON notebook_cells FOR UPDATE TO app_user USING ({OF_LED})",
)
FUNCTIONS = {
    # A rehearsal makes an assistant the instructor of a demo: that is no right to courses of one's own.
    "may_create_courses()": f"""
CREATE FUNCTION may_create_courses() RETURNS boolean LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT EXISTS (SELECT FROM users WHERE id = {ME} AND role IN ('instructor', 'operator'))
        OR EXISTS (SELECT FROM enrolments e JOIN courses c ON c.id = e.course_id
            WHERE e.user_id = {ME} AND e.role = 'instructor' AND NOT c.is_demo)
$$
""",
    # NULL: not theirs to make, or the short name (or, once in a long while, the code) is taken.
    "create_course(text, text, text, text, timestamptz)": f"""
CREATE FUNCTION create_course(course_title text, short text, zone text, code text, code_ends timestamptz)
RETURNS uuid LANGUAGE plpgsql {DEFINER} AS $$
DECLARE
    made uuid;
BEGIN
    IF NOT may_create_courses() THEN
        RETURN NULL;
    END IF;
    INSERT INTO courses (title, short_name, time_zone, join_code, join_code_expires_at)
    VALUES (course_title, short, zone, code, code_ends) ON CONFLICT DO NOTHING RETURNING id INTO made;
    IF made IS NOT NULL THEN
        INSERT INTO enrolments (user_id, course_id, role) VALUES ({ME}, made, 'instructor');
    END IF;
    RETURN made;
END $$
""",
    # What the teacher has settled (the rules' column comes with 0025) and prepared; nobody and nothing done by anybody.
    "copy_course(uuid, uuid)": f"""
CREATE FUNCTION copy_course(source uuid, target uuid) RETURNS void LANGUAGE plpgsql {DEFINER} AS $$
BEGIN
    IF NOT (source = ANY(find_my_led_courses()) AND target = ANY(find_my_led_courses())) THEN
        RETURN;
    END IF;
    UPDATE courses t SET time_zone = s.time_zone, needs_approval = s.needs_approval,
        shows_all_teams = s.shows_all_teams, settings = s.settings, alert_rules = s.alert_rules
    FROM courses s WHERE t.id = target AND s.id = source;
    INSERT INTO collection_versions (course_id, version, level, without, added_ja, added_en, notice_ja, notice_en,
        created_by)
    SELECT target, 1, level, without, added_ja, added_en, notice_ja, notice_en, {ME}
    FROM collection_versions WHERE course_id = source ORDER BY version DESC LIMIT 1;
    WITH originals AS MATERIALIZED (
        SELECT n.id, gen_random_uuid() AS new_id, n.path, n.title, n.description FROM notebooks n
        WHERE n.course_id = source
            AND EXISTS (SELECT FROM notebook_cells c WHERE c.notebook_id = n.id AND c.is_registered)
    ), added AS (
        INSERT INTO notebooks (id, course_id, path, title, description)
        SELECT new_id, target, path, title, description FROM originals RETURNING id
    )
    INSERT INTO notebook_cells (notebook_id, cell_id, cell_index, cell_type, title, exercise_id, source,
        is_registered)
    SELECT o.new_id, c.cell_id, c.cell_index, c.cell_type, c.title, c.exercise_id, c.source, TRUE
    FROM originals o JOIN added a ON a.id = o.new_id JOIN notebook_cells c ON c.notebook_id = o.id
    WHERE c.is_registered;
END $$
""",
    # Before anybody is somebody: whether a student's token, a join code or a hub's word leads into a course that is
    # over.
    "is_course_archived(uuid)": f"""
CREATE FUNCTION is_course_archived(course uuid) RETURNS boolean LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT archived_at IS NOT NULL FROM courses WHERE id = course
$$
""",
    # A file may bear the id of a notebook of a course that is not its bearer's.
    "has_notebook(uuid)": f"""
CREATE FUNCTION has_notebook(wanted uuid) RETURNS boolean LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT EXISTS (SELECT FROM notebooks WHERE id = wanted)
$$
""",
}


def upgrade() -> None:
    for statement in RIGHTS:
        op.execute(statement)
    op.execute("SET LOCAL ROLE app_maintenance")  # what these functions see and add, they do by its policies
    for name, function in FUNCTIONS.items():
        op.execute(function)
        op.execute(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO app_user")
    op.execute("SET LOCAL ROLE nbpulse_owner")


def downgrade() -> None:
    raise NotImplementedError("archived courses would take events again: restore a backup made before it instead")
