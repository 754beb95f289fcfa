#!/usr/bin/env bash
# make-secrets.sh [DIRECTORY]: makes the passwords that compose.yaml names, one file each. What is there stays.
# The containers' accounts differ, and each must read its files: the closed directory keeps everybody else out.
set -euo pipefail
directory=${1:-$(dirname "${BASH_SOURCE[0]}")/../../secrets}
mkdir -p "$directory"
chmod 700 "$directory"
for name in postgres_password replication_password redis_password influxdb_password; do
    [ ! -s "$directory/$name" ] || continue
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > "$directory/$name.new"
    chmod 444 "$directory/$name.new"
    mv "$directory/$name.new" "$directory/$name"
done
