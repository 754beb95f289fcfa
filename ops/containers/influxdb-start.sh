#!/usr/bin/env bash
# influxdb-start.sh [OPTION...]: InfluxDB 1.x that lets in its administrator only, who is made at the first start.
# nbpulse makes its own database, which 1.x allows administrators only. The image's own preparation is not used: it reads
# no password files, and one that was cut short is never finished.
# Environment: INFLUXDB_ADMIN_PASSWORD_FILE; INFLUXDB_ADMIN_USER (nbpulse), INFLUXDB_PORT (8086), INFLUXDB_MARK.
set -euo pipefail
user=${INFLUXDB_ADMIN_USER:-nbpulse}
port=${INFLUXDB_PORT:-8086}
mark=${INFLUXDB_MARK:-/var/lib/influxdb/nbpulse-prepared}
password=$(<"${INFLUXDB_ADMIN_PASSWORD_FILE:?}")
[ -n "$password" ] || { echo "no password in $INFLUXDB_ADMIN_PASSWORD_FILE" >&2; exit 1; }
export INFLUXDB_HTTP_AUTH_ENABLED=true

ask() { influx -host 127.0.0.1 -port "$port" "$@" 2>&1; }
is_let_in() { INFLUX_USERNAME=$user INFLUX_PASSWORD=$password ask -execute 'SHOW DATABASES' >/dev/null; }

# On loopback only, because as long as there is no administrator anybody may make one. The statement comes on stdin,
# since a command line shows the password to everybody.
prepare() {
    local quoted=${password//\\/\\\\} tries answer=
    INFLUXDB_HTTP_BIND_ADDRESS=127.0.0.1:$port influxd "$@" &
    local server=$!
    trap 'kill "$server" 2>/dev/null || true' EXIT
    trap 'exit 143' TERM INT
    for tries in {1..120}; do
        ! is_let_in || break
        kill -0 "$server" || exit 1
        answer=$(ask <<<"CREATE USER \"$user\" WITH PASSWORD '${quoted//\'/\\\'}' WITH ALL PRIVILEGES") || sleep 0.5
    done
    is_let_in || { echo "influxdb: $user is not let in after $tries tries: $answer" >&2; exit 1; }
    kill "$server"
    wait "$server" || true
    trap - EXIT TERM INT
    : > "$mark"
}

[ -e "$mark" ] || prepare "$@"
exec env INFLUXDB_HTTP_BIND_ADDRESS="${INFLUXDB_HTTP_BIND_ADDRESS:-:$port}" influxd "$@"
