"""A course of whose students none has a team is seen whole by its assistants, as docs/decisions/0018 says.

`NULL = ANY('{}')` is false, not NULL: whoever had no team counted as hidden from an assistant who has none either.
"""

from alembic import op

revision = "0021"
down_revision = "0020"

ME = "nullif(current_setting('app.current_user_id', true), '')::uuid"
DEFINER = "SECURITY DEFINER SET search_path = public, pg_temp"
HIDDEN = """
    NOT c.shows_all_teams AND EXISTS (SELECT FROM enrolments s WHERE s.course_id = e.course_id
        AND s.role NOT IN ('assistant', 'instructor') AND s.team IS NOT NULL AND NOT s.team = ANY(e.teams))
"""
FUNCTIONS = (
    f"""
CREATE OR REPLACE FUNCTION find_my_whole_courses() RETURNS uuid[] LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT coalesce(array_agg(e.course_id), '{{}}') FROM enrolments e JOIN courses c ON c.id = e.course_id
    WHERE e.user_id = {ME} AND (e.role = 'instructor' OR e.role = 'assistant' AND NOT ({HIDDEN}))
$$
""",
    f"""
CREATE OR REPLACE FUNCTION find_team_views(person uuid) RETURNS jsonb LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT coalesce(jsonb_object_agg(e.course_id, e.teams), '{{}}')
    FROM enrolments e JOIN courses c ON c.id = e.course_id
    WHERE e.user_id = person AND e.role = 'assistant' AND {HIDDEN}
$$
""",
)


def upgrade() -> None:
    op.execute("SET LOCAL ROLE app_maintenance")  # whose they are
    for function in FUNCTIONS:
        op.execute(function)
    op.execute("SET LOCAL ROLE nbpulse_owner")


def downgrade() -> None:
    raise NotImplementedError("restore a backup made before it instead")
