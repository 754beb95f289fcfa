#!/usr/bin/env bash
# replica-start.sh [POSTGRES OPTION...]: a hot standby that streams from the primary.
# Without data it waits for the primary and takes a base backup; with data it starts at once and catches up.
# Environment: PGDATA (a directory below the volume, so that it can appear whole), PRIMARY_HOST,
# REPLICATION_PASSWORD_FILE; PGBIN, PRIMARY_PORT (5432), PRIMARY_WAIT_S (120), REPLICATION_USER (nbpulse_replica),
# REPLICATION_SLOT (replica_1).
set -euo pipefail
: "${PGDATA:?}" "${PRIMARY_HOST:?}" "${REPLICATION_PASSWORD_FILE:?}"
[ -z "${PGBIN:-}" ] || PATH=$PGBIN:$PATH
port=${PRIMARY_PORT:-5432}
login=${REPLICATION_USER:-nbpulse_replica}
slot=${REPLICATION_SLOT:-replica_1}
pass_file=$PGDATA.pgpass

fail() { echo "replica: $*" >&2; exit 1; }

# Made at each start: a new password needs a restart, no base backup. pg_basebackup -R notes this file's path in the
# replica's settings instead of the password.
write_pass_file() {
    local password
    password=$(<"$REPLICATION_PASSWORD_FILE")
    [ -n "$password" ] || fail "no password in $REPLICATION_PASSWORD_FILE"
    password=${password//\\/\\\\}
    (umask 077 && printf '*:*:*:%s:%s\n' "$login" "${password//:/\\:}" > "$pass_file.new")
    mv "$pass_file.new" "$pass_file"
}

wait_for_primary() {
    local waited_s=0
    until pg_isready -q -h "$PRIMARY_HOST" -p "$port"; do
        [ "$waited_s" -lt "${PRIMARY_WAIT_S:-120}" ] || fail "$PRIMARY_HOST:$port did not answer for $waited_s s"
        sleep 1
        waited_s=$((waited_s + 1))
    done
}

# Under another name until it is whole, so that a start cut short leaves nothing that looks like a replica.
take_base_backup() {
    [ ! -d "$PGDATA" ] || rmdir "$PGDATA" || fail "$PGDATA holds something that is no PostgreSQL data, or is a mount"
    rm -rf "$PGDATA.new"
    wait_for_primary
    echo "replica: taking a base backup of $PRIMARY_HOST:$port" >&2
    pg_basebackup -R -S "$slot" -X stream -c fast -w -D "$PGDATA.new" \
        -d "host=$PRIMARY_HOST port=$port user=$login passfile='$pass_file' application_name=$slot"
    mv "$PGDATA.new" "$PGDATA"
    sync "$(dirname "$PGDATA")"
}

write_pass_file
[ -s "$PGDATA/PG_VERSION" ] || take_base_backup
exec postgres -D "$PGDATA" "$@"
