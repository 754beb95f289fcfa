#!/usr/bin/env bash
# Prepares a running primary for its replica: a login for replication only, a slot, a line in pg_hba.conf.
# The image runs it once, after initdb. Run again it takes the password from the file anew and changes nothing else.
# Environment: PGDATA, REPLICATION_PASSWORD_FILE; PGBIN, PGHOST, PGPORT, POSTGRES_USER (postgres), REPLICATION_USER
# (nbpulse_replica), REPLICATION_SLOT (replica_1), REPLICATION_NETWORK (samenet: the networks this machine is in).
set -euo pipefail
: "${PGDATA:?}" "${REPLICATION_PASSWORD_FILE:?}"
[ -z "${PGBIN:-}" ] || PATH=$PGBIN:$PATH
login=${REPLICATION_USER:-nbpulse_replica}
slot=${REPLICATION_SLOT:-replica_1}
[ -s "$REPLICATION_PASSWORD_FILE" ] || { echo "no password in $REPLICATION_PASSWORD_FILE" >&2; exit 1; }

# The password goes through the socket, never onto a command line or into the log.
psql -X -q -v ON_ERROR_STOP=1 -v login="$login" -v slot="$slot" --no-password \
    --username "${POSTGRES_USER:-postgres}" --dbname postgres >/dev/null <<'SQL'
SET log_min_error_statement = panic;
SET log_statement = none;
\set password `cat "$REPLICATION_PASSWORD_FILE"`
SELECT format('CREATE ROLE %I', :'login') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'login') \gexec
ALTER ROLE :"login" LOGIN REPLICATION PASSWORD :'password';
SELECT pg_create_physical_replication_slot(:'slot')
WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = :'slot');
SQL

line="host replication $login ${REPLICATION_NETWORK:-samenet} scram-sha-256"
grep -qxF "$line" "$PGDATA/pg_hba.conf" || printf '%s\n' "$line" >> "$PGDATA/pg_hba.conf"
psql -X -q -v ON_ERROR_STOP=1 --no-password --username "${POSTGRES_USER:-postgres}" --dbname postgres \
    -c "SELECT pg_reload_conf()" >/dev/null
