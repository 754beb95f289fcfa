"""The audit log: appended by one function, chained by hashes, changed by nobody (docs/decisions/0020).

`link` is the SHA-256 of the row before's link and this row as text, so a row that is changed, left out or put in later
breaks the chain there. No foreign keys: rows outlive the people and courses they tell of, whose ids then mean nothing.
"""

from alembic import op

revision = "0014"
down_revision = "0013"

ME = "nullif(current_setting('app.current_user_id', true), '')::uuid"
TABLE = """
CREATE TABLE audit_log (
    id BIGINT PRIMARY KEY CHECK (id > 0),
    at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT clock_timestamp(),
    actor_id UUID,
    action VARCHAR(40) NOT NULL CHECK (action ~ '^[a-z_]+$'),
    course_id UUID,
    subject_id UUID,
    facts JSONB NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(facts) = 'object' AND length(facts::text) <= 2000),
    link BYTEA NOT NULL
);
CREATE INDEX idx_audit_log_subject ON audit_log(subject_id, id);
CREATE INDEX idx_audit_log_actor ON audit_log(actor_id, id);
ALTER TABLE audit_log ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
REVOKE ALL ON audit_log FROM app_reader, app_writer, app_user, nbpulse_operator;
GRANT SELECT, INSERT ON audit_log TO app_maintenance;
GRANT SELECT ON audit_log TO app_user, nbpulse_operator;
CREATE POLICY maintenance_policy ON audit_log TO app_maintenance USING (true) WITH CHECK (true);
CREATE POLICY operator_policy ON audit_log FOR SELECT TO nbpulse_operator USING (true)
"""
USER_POLICY = f"""
CREATE POLICY user_select_policy ON audit_log FOR SELECT TO app_user USING (subject_id = {ME} OR actor_id = {ME})
"""
# Grants keep our own logins from it; this keeps the owner and a superuser from doing it by mistake.
REFUSE = """
CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_log is only ever added to' USING ERRCODE = 'insufficient_privilege';
END $$
"""
TRIGGER = """
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()
"""
# One after the other until each commits: a number is never left out, and `at` rises with it.
NOTE = f"""
CREATE FUNCTION note_audit(given_action text, course uuid, subject uuid, given_facts jsonb) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    last audit_log;
    made audit_log;
BEGIN
    PERFORM pg_advisory_xact_lock(6622006);
    SELECT * INTO last FROM audit_log ORDER BY id DESC LIMIT 1;
    made := (coalesce(last.id, 0) + 1, clock_timestamp(), {ME}, given_action, course, subject, given_facts, NULL);
    made.link := sha256(coalesce(last.link, '') || convert_to(jsonb_build_array(made.id,
        (extract(epoch FROM made.at) * 1000000)::bigint, made.actor_id, made.action, made.course_id, made.subject_id,
        made.facts)::text, 'UTF8'));
    INSERT INTO audit_log SELECT made.*;
    RETURN made.id;
END $$
"""
NAME = "note_audit(text, uuid, uuid, jsonb)"


def upgrade() -> None:
    for statement in (*TABLE.split(";\n"), USER_POLICY, REFUSE, TRIGGER):
        op.execute(statement)
    op.execute("SET LOCAL ROLE app_maintenance")  # what the function sees and adds, it does by its policies
    op.execute(NOTE)
    op.execute(f"REVOKE ALL ON FUNCTION {NAME} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {NAME} TO app_user, app_writer")
    op.execute("SET LOCAL ROLE nbpulse_owner")


def downgrade() -> None:
    raise NotImplementedError("what was done would be forgotten: restore a backup made before it instead")
