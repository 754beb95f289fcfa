"""People whom another system knows: a JupyterHub's user is one user here, its groups are enrolments.

`granted_by` names who made an enrolment, and so who may take it back; none: a join code, or an operator by hand.
"""

from alembic import op

revision = "0011"
down_revision = "0010"

IDENTITIES = """
CREATE TABLE external_identities (
    provider VARCHAR(40) NOT NULL,
    subject VARCHAR(255) NOT NULL,
    user_id UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    PRIMARY KEY (provider, subject)
);
CREATE INDEX idx_external_identities_user ON external_identities(user_id)
"""
# The roles of one course are given once each, the highest first. Nobody new is made who is in no course here. A student
# who left a group keeps the enrolment, with their work in it, but it is not among the courses given back; staff who
# left lose it. Nothing is written while nothing has changed: this is asked every half minute for each who is at work.
ENTER = """
CREATE FUNCTION enter_by_identity(given_provider text, given_subject text, short_names text[], wanted_roles text[])
RETURNS TABLE (found_user uuid, course uuid, short text, given_role text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    who uuid;
    wanted uuid[];
    wanted_as text[];
    name text := left(given_subject, 80);
BEGIN
    SELECT array_agg(c.id), array_agg(w.role) INTO wanted, wanted_as
    FROM (SELECT DISTINCT ON (n) n, r AS role FROM unnest(short_names, wanted_roles) WITH ORDINALITY AS u(n, r, place)
          ORDER BY n, place) w
    JOIN courses c ON c.short_name = w.n;
    SELECT i.user_id INTO who FROM external_identities i
    WHERE i.provider = given_provider AND i.subject = given_subject;
    IF who IS NULL THEN
        IF wanted IS NULL THEN
            RETURN;
        END IF;
        PERFORM pg_advisory_xact_lock(hashtextextended(given_provider || ' ' || given_subject, 0));
        SELECT i.user_id INTO who FROM external_identities i
        WHERE i.provider = given_provider AND i.subject = given_subject;
    END IF;
    IF who IS NULL THEN
        -- A name that is taken is another person's: who joined by code may have typed any.
        INSERT INTO users AS u (username) VALUES (name) ON CONFLICT (username) DO NOTHING RETURNING u.id INTO who;
        IF who IS NULL THEN
            INSERT INTO users AS u (username) VALUES (name || '-' || left(md5(random()::text), 8))
            RETURNING u.id INTO who;
        END IF;
        INSERT INTO external_identities (provider, subject, user_id) VALUES (given_provider, given_subject, who);
    END IF;
    INSERT INTO enrolments AS e (user_id, course_id, role, granted_by)
    SELECT who, w.course_id, w.role, given_provider FROM unnest(wanted, wanted_as) AS w(course_id, role)
    WHERE NOT EXISTS (SELECT FROM enrolments k WHERE k.user_id = who AND k.course_id = w.course_id
        AND (k.role = w.role OR k.granted_by IS DISTINCT FROM given_provider))
    ON CONFLICT (user_id, course_id) DO UPDATE SET role = excluded.role WHERE e.granted_by = given_provider;
    INSERT INTO learner_states AS l (user_id, shard, course_id)
    SELECT who, (('x' || substr(md5(who::text), 1, 8))::bit(32)::bigint % 64)::smallint, w.course_id
    FROM unnest(wanted, wanted_as) AS w(course_id, role)
    WHERE w.role = 'student' AND NOT EXISTS (
        SELECT FROM learner_states k WHERE k.user_id = who AND k.course_id = w.course_id)
    ON CONFLICT DO NOTHING;
    DELETE FROM enrolments e WHERE e.user_id = who AND e.granted_by = given_provider AND e.role <> 'student'
        AND NOT (e.course_id = ANY(coalesce(wanted, '{}')));
    RETURN QUERY SELECT who, c.id, c.short_name::text, e.role::text
    FROM enrolments e JOIN courses c ON c.id = e.course_id
    WHERE e.user_id = who AND (e.granted_by IS NULL OR e.course_id = ANY(coalesce(wanted, '{}')));
END $$
"""
ME = "nullif(current_setting('app.current_user_id', true), '')::uuid"
RIGHTS = (
    "REVOKE ALL ON external_identities FROM app_reader, app_writer, app_user, nbpulse_operator",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON external_identities TO app_maintenance",
    "GRANT SELECT ON external_identities TO nbpulse_operator, app_user",
    "ALTER TABLE external_identities ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    "CREATE POLICY maintenance_policy ON external_identities TO app_maintenance USING (true) WITH CHECK (true)",
    "CREATE POLICY operator_policy ON external_identities FOR SELECT TO nbpulse_operator USING (true)",
    f"CREATE POLICY user_select_policy ON external_identities FOR SELECT TO app_user USING (user_id = {ME})",
)
ENTER_BY_IDENTITY = "enter_by_identity(text, text, text[], text[])"


def upgrade() -> None:
    for statement in IDENTITIES.split(";\n"):
        op.execute(statement)
    op.execute("ALTER TABLE enrolments ADD COLUMN granted_by VARCHAR(40)")
    for statement in RIGHTS:
        op.execute(statement)
    op.execute("SET LOCAL ROLE app_maintenance")  # what the function sees, it sees by its policies
    op.execute(ENTER)
    op.execute(f"REVOKE ALL ON FUNCTION {ENTER_BY_IDENTITY} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {ENTER_BY_IDENTITY} TO app_user")
    op.execute("SET LOCAL ROLE nbpulse_owner")


def downgrade() -> None:
    op.execute("SET LOCAL ROLE app_maintenance")
    op.execute(f"DROP FUNCTION {ENTER_BY_IDENTITY}")
    op.execute("SET LOCAL ROLE nbpulse_owner")
    op.execute("ALTER TABLE enrolments DROP COLUMN granted_by")
    op.execute("DROP TABLE external_identities")
