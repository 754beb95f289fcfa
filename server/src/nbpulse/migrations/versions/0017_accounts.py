"""Accounts that people sign in to: passwords, accounts that are closed, and whom a sign-in provider knows.

A password's hash is read through `find_password` alone. No way of signing in can forget that an account is closed: each
ends in a row of `tokens`, and the trigger refuses those.
"""

from alembic import op

revision = "0017"
down_revision = "0016"

ME = "nullif(current_setting('app.current_user_id', true), '')::uuid"
DEFINER = "SECURITY DEFINER SET search_path = public, pg_temp"
TABLES = (
    "ALTER TABLE users ADD COLUMN disabled_at TIMESTAMP WITH TIME ZONE",
    # An OpenID provider is named by its issuer, an address.
    "ALTER TABLE external_identities ALTER COLUMN provider TYPE VARCHAR(255)",
    """
CREATE TABLE passwords (
    user_id UUID PRIMARY KEY REFERENCES users(id) ON DELETE CASCADE,
    hash VARCHAR(255) NOT NULL,
    changed_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW()
)
""",
)
RIGHTS = (
    "REVOKE ALL ON passwords FROM app_reader, app_writer, app_user, nbpulse_operator",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON passwords TO app_maintenance",
    "GRANT SELECT (user_id, changed_at) ON passwords TO app_user, nbpulse_operator",
    "GRANT INSERT ON passwords TO app_user",
    "GRANT UPDATE (hash, changed_at) ON passwords TO app_user",
    "ALTER TABLE passwords ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    "CREATE POLICY maintenance_policy ON passwords TO app_maintenance USING (true) WITH CHECK (true)",
    "CREATE POLICY operator_policy ON passwords FOR SELECT TO nbpulse_operator USING (true)",
    f"CREATE POLICY user_data_policy ON passwords TO app_user USING (user_id = {ME}) WITH CHECK (user_id = {ME})",
)
FUNCTIONS = {
    "find_password(text)": f"""
CREATE FUNCTION find_password(name text) RETURNS TABLE (user_id uuid, hash text) LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT p.user_id, p.hash::text FROM users u JOIN passwords p ON p.user_id = u.id
    WHERE u.username = name AND u.merged_into IS NULL
$$
""",
    # Somebody new gets the id, the name and the sealed display name that are given; a name that is taken is another's.
    "enter_as_identity(text, text, uuid, text, text)": f"""
CREATE FUNCTION enter_as_identity(given_provider text, given_subject text, new_id uuid, name text, sealed_name text)
RETURNS uuid LANGUAGE plpgsql {DEFINER} AS $$
DECLARE
    who uuid;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(given_provider || ' ' || given_subject, 0));
    SELECT i.user_id INTO who FROM external_identities i
    WHERE i.provider = given_provider AND i.subject = given_subject;
    IF who IS NULL THEN
        INSERT INTO users AS u (id, username, display_name) VALUES (new_id, left(name, 80), sealed_name)
        ON CONFLICT (username) DO NOTHING RETURNING u.id INTO who;
        IF who IS NULL THEN
            INSERT INTO users AS u (id, username, display_name)
            VALUES (new_id, left(name, 80) || '-' || left(md5(random()::text), 8), sealed_name) RETURNING u.id INTO who;
        END IF;
        INSERT INTO external_identities (provider, subject, user_id) VALUES (given_provider, given_subject, who);
    END IF;
    RETURN who;
END $$
""",
    "is_account_closed(uuid)": f"""
CREATE FUNCTION is_account_closed(person uuid) RETURNS boolean LANGUAGE sql STABLE {DEFINER} AS $$
    SELECT EXISTS (SELECT FROM users WHERE id = person AND disabled_at IS NOT NULL)
$$
""",
}
# The lock makes a token that is being made and an account that is being closed wait for each other.
REFUSE = f"""
CREATE FUNCTION refuse_tokens_of_closed_accounts() RETURNS trigger LANGUAGE plpgsql {DEFINER} AS $$
DECLARE
    closed_at timestamptz;
BEGIN
    SELECT u.disabled_at INTO closed_at FROM users u WHERE u.id = NEW.user_id FOR SHARE;
    IF closed_at IS NOT NULL THEN
        RAISE EXCEPTION 'the account is closed'
            USING ERRCODE = 'check_violation', TABLE = 'tokens', CONSTRAINT = 'account_open';
    END IF;
    RETURN NEW;
END $$
"""


def upgrade() -> None:
    for statement in (*TABLES, *RIGHTS):
        op.execute(statement)
    op.execute("SET LOCAL ROLE app_maintenance")  # what the functions see, they see by its policies
    for name, function in FUNCTIONS.items():
        op.execute(function)
        op.execute(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO app_user")
    op.execute(REFUSE)
    op.execute("REVOKE ALL ON FUNCTION refuse_tokens_of_closed_accounts() FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION refuse_tokens_of_closed_accounts() TO nbpulse_owner")
    op.execute("SET LOCAL ROLE nbpulse_owner")
    op.execute(
        "CREATE TRIGGER account_open BEFORE INSERT ON tokens FOR EACH ROW"
        " EXECUTE FUNCTION refuse_tokens_of_closed_accounts()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER account_open ON tokens")
    op.execute("SET LOCAL ROLE app_maintenance")
    for name in (*FUNCTIONS, "refuse_tokens_of_closed_accounts()"):
        op.execute(f"DROP FUNCTION {name}")
    op.execute("SET LOCAL ROLE nbpulse_owner")
    op.execute("DROP TABLE passwords")
    op.execute("ALTER TABLE users DROP COLUMN disabled_at")
