#!/bin/sh
# redis-start.sh [OPTION...]: Redis with the promise that accepted events survive a power cut.
# The password comes on stdin, since a command line shows it to everybody. Environment: REDIS_PASSWORD_FILE.
set -eu
password=$(sed 's/[\\"]/\\&/g' "${REDIS_PASSWORD_FILE:?}")
[ -n "$password" ] || { echo "no password in $REDIS_PASSWORD_FILE" >&2; exit 1; }
# In the image this hands the data to the account redis and goes on as it.
entrypoint=$(command -v docker-entrypoint.sh || true)
exec $entrypoint redis-server - "$@" <<CONFIGURATION
requirepass "$password"
appendonly yes
appendfsync always
no-appendfsync-on-rewrite no
maxmemory-policy noeviction
save ""
CONFIGURATION
