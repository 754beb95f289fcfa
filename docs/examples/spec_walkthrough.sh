#!/usr/bin/env bash
# Types the specification's own statements on a real, running nbpulse and compares every answer with the ledger.
#
#   docs/examples/spec_walkthrough.sh
#
# Starts InfluxDB and nbpulse (with its own PostgreSQL and Valkey) on free ports and an empty directory, lets a simulated
# class work, asks, and stops and removes everything. Exit code 0: every answer equals the ledger; 1: one does not; 2:
# something is missing here. STUDENTS (12) and SECONDS_OF_CLASS (25) make another class; PATIENCE_S (90) is how long after
# it InfluxDB may be behind the ledger (points follow by seconds; after a notebook's number of cells has changed, by a
# minute) before its answer counts as wrong. PYTHON names the Python that has nbpulse.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-python3} STUDENTS=${STUDENTS:-12} SECONDS_OF_CLASS=${SECONDS_OF_CLASS:-25} PATIENCE_S=${PATIENCE_S:-90}
export LC_ALL=C.UTF-8 PGTZ=UTC PSQLRC=/dev/null NBPULSE_LANGUAGE=en
pids=() asked=0 wrong=0

# --- what must be here ------------------------------------------------------------------------------------------------

need() { # PROGRAM WHERE_FROM
    command -v "$1" >/dev/null && return
    echo "'$1' is missing. $2" >&2
    missing=yes
}
missing=
need psql "Debian, Ubuntu: apt install postgresql-client; macOS: brew install libpq"
need redis-cli "Debian, Ubuntu: apt install redis-tools; macOS: brew install redis"
need influx "the shell of InfluxDB 1.x. Debian 12: apt install influxdb-client; elsewhere the 1.x client from influxdata.com"
need influxd "InfluxDB 1.x. Debian 12: apt install influxdb; elsewhere InfluxDB 1.x from influxdata.com"
need curl "Debian, Ubuntu: apt install curl"
"$PYTHON" -c 'import nbpulse' 2>/dev/null ||
    { echo "'$PYTHON' has no nbpulse. Install it (make setup) or name another: PYTHON=.venv/bin/python" >&2; missing=yes; }
[ -z "$missing" ] || exit 2

# --- starting and stopping --------------------------------------------------------------------------------------------

work=$(mktemp -d "${TMPDIR:-/tmp}/nbpulse-walkthrough-XXXXXX")
chmod 711 "$work" # run by root, the servers are somebody else
stop_all() {
    trap - EXIT INT TERM
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        kill "${pids[i]}" 2>/dev/null && wait "${pids[i]}" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap stop_all EXIT
trap 'exit 130' INT TERM

run_behind() { # NAME COMMAND...: keeps running; what it says is in $work/NAME
    "${@:2}" </dev/null >"$work/$1" 2>"$work/$1.err" &
    pids+=($!)
}

wait_until() { # SECONDS WHAT COMMAND...; not for a process that has ended
    local deadline=$((SECONDS + $1)) newest=${pids[${#pids[@]} - 1]}
    until "${@:3}"; do
        if ((SECONDS >= deadline)) || ! kill -0 "$newest" 2>/dev/null; then
            echo "$2: not there after $((SECONDS - deadline + $1)) s. What was said:" >&2
            tail -n 15 "$work"/*.err >&2
            exit 1
        fi
        sleep 0.2
    done
}

find_port() { "$PYTHON" -c 'from nbpulse.network import find_free_port; print(find_free_port())'; }
says() { grep -qs -e "$1" "$work/$2"; }

start_stores() {
    echo "Starting InfluxDB and nbpulse in $work …"
    local port
    port=$(find_port)
    mkdir "$work/influxdb"
    run_behind influxd env INFLUXDB_HTTP_BIND_ADDRESS="127.0.0.1:$port" INFLUXDB_BIND_ADDRESS="127.0.0.1:$(find_port)" \
        INFLUXDB_META_DIR="$work/influxdb/meta" INFLUXDB_DATA_DIR="$work/influxdb/data" \
        INFLUXDB_DATA_WAL_DIR="$work/influxdb/wal" INFLUXDB_REPORTING_DISABLED=true influxd run -config /dev/null
    wait_until 30 "InfluxDB" curl -fs -o /dev/null "http://127.0.0.1:$port/ping"
    run_behind up env NBPULSE_INFLUX_URL="http://127.0.0.1:$port/nbpulse" \
        "$PYTHON" -m nbpulse up --json --port 0 --data "$work/data"
    wait_until 90 "nbpulse up" says '"teacher_token"' up
    eval "$("$PYTHON" "$here/connect.py" "$work/data")"
}

hold_class() {
    run_behind heard redis-cli -u "$REDIS_URL" SUBSCRIBE progress_events error_events session_events
    wait_until 10 "the three channels" says '^session_events$' heard
    run_behind board "$PYTHON" "$here/open_board.py"
    wait_until 10 "a board" says . board
    echo "$STUDENTS simulated students work for $SECONDS_OF_CLASS s …"
    "$PYTHON" -c 'import os, pathlib, sys
from nbpulse.simulator import run_class
asked = {"url": os.environ["API_URL"], "join_code": os.environ["JOIN_CODE"], "students": int(sys.argv[1]),
         "speed": 20.0, "minutes": float(sys.argv[2]) / 60}
run_class(asked, os.environ["COURSE_ID"], os.environ["TEACHER_TOKEN"], pathlib.Path(sys.argv[3]))' \
        "$STUDENTS" "$SECONDS_OF_CLASS" "$work/data"
    wait_until 30 "the stream worked off" is_quiet
}
is_quiet() {
    curl -fsS "$API_URL/health" | grep -q '"backlog":0' &&
        curl -fsS "$API_URL/metrics" | grep -q '^nbpulse_series_debt_batches 0'
}

# --- asking -----------------------------------------------------------------------------------------------------------

quote() { # COMMAND...: as one would type it
    local word typed=
    for word; do
        case $word in
            "$DATABASE_URL") word='$DATABASE_URL' ;;
            "$REDIS_URL") word='$REDIS_URL' ;;
            "$WORKER_METRICS_URL") word='$WORKER_METRICS_URL' ;;
            "$API_URL"*) word="\$API_URL${word#"$API_URL"}" ;;
            *\'*) word="\"$word\"" ;;
            *[!a-zA-Z0-9_./:=-]*) word="'$word'" ;;
        esac
        typed+=" $word"
    done
    typed=${typed//"$INFLUX"/'$INFLUX'}
    echo "${typed# }"
}

show() { # LINES[:PATTERN] FILE: the first of its lines (with the pattern)
    local lines=${1%%:*} pattern= all
    case $1 in *:*) pattern=${1#*:} ;; esac
    { grep -e "$pattern" "$2" || true; } | awk '!seen[$0]++' >"$work/shown" # a csv says its header once per series
    head -n "$lines" "$work/shown" | cut -c 1-150 | sed 's/^/  /'
    all=$(wc -l <"$2")
    ((all <= lines)) || echo "  … ($((all - lines)) more lines)"
}

heading() { printf '\n── %d. %s\n' "$((++asked))" "$1"; }

step() { # HEADING CHECK LINES_SHOWN ASKED_AGAIN_UNTIL COMMAND...; $typed is what it would be at a terminal, where it differs
    heading "$1"
    echo "$ ${typed:-$(quote "${@:5}")}"
    local verdict
    while true; do
        "${@:5}" >"$work/answer" 2>&1 || true # what it says instead of an answer is no answer: the check will see
        verdict=$("$PYTHON" "$here/spec_checks.py" "$2" <"$work/answer") && break
        ((SECONDS < $4)) || { wrong=$((wrong + 1)); break; }
        sleep 1
    done
    show "$3" "$work/answer"
    echo "$verdict"
}

ask_postgresql() {
    step "PostgreSQL, query 1: the class's progress" class_progress 6 0 psql "$DATABASE_URL" -c "SELECT
    u.username,
    ls.notebook_id,
    ls.cell_executions,
    ls.error_count,
    ls.total_duration_ms
FROM learning_sessions ls
JOIN users u ON ls.user_id = u.id
WHERE ls.started_at >= NOW() - INTERVAL '1 day'
ORDER BY ls.started_at DESC;"
    step "PostgreSQL, query 2: one student in one notebook" one_student 8 0 psql "$DATABASE_URL" -q -c \
        'PREPARE one_student (uuid, uuid) AS
SELECT * FROM learning_sessions
WHERE user_id = $1 AND notebook_id = $2
ORDER BY started_at DESC LIMIT 10;' -c "EXECUTE one_student ('$STUDENT_ID', '$NOTEBOOK_ID')"
}

influx_step() { # HEADING CHECK LINES_SHOWN STATEMENT
    # shellcheck disable=SC2086 # several arguments
    step "$1" "$2" "$3" "$settled_s" influx $INFLUX -format csv -execute "${4//$'\n'/ }" # it takes one line only
}

ask_influxdb() {
    influx_step "InfluxDB: activity by student and 10 minutes" activity '7:^name\|,[1-9][0-9]*$' \
        'SELECT mean("execution_duration_ms") as avg_duration,
       count("execution_duration_ms") as execution_count
FROM "cell_executions"
WHERE time >= now() - 1h
GROUP BY time(10m), "user_id"'
    influx_step "InfluxDB: error rate by notebook and hour" error_rate '3:^name\|,[1-9]' \
        'SELECT count("has_error") as error_count,
       count(*) as total_executions
FROM "cell_executions"
WHERE time >= now() - 24h
GROUP BY time(1h), "notebook_path"'
    influx_step "InfluxDB: which tags" tag_keys 10 'SHOW TAG KEYS'
    influx_step "InfluxDB: which fields" field_keys 13 'SHOW FIELD KEYS'
    influx_step "InfluxDB: the last points of cell_executions" last_runs 6 \
        'SELECT * FROM "cell_executions" ORDER BY time DESC LIMIT 5'
    influx_step "InfluxDB: the last point of learning_progress of each student" last_progress 8 \
        'SELECT * FROM "learning_progress" GROUP BY "user_id", "notebook_path" ORDER BY time DESC LIMIT 1'
    influx_step "InfluxDB: performance_metrics of the last hour" performance 6 \
        'SELECT * FROM "performance_metrics" WHERE time >= now() - 1h ORDER BY time DESC'
}

ask_redis() {
    typed='redis-cli -u $REDIS_URL SUBSCRIBE progress_events error_events session_events   # since before the class' \
        step "Redis: what a subscriber heard during the class" channels 9 "$settled_s" tail -n +10 "$work/heard"
    step "Redis: open boards" connections 4 0 redis-cli -u "$REDIS_URL" HGETALL websocket_connections
    step "Redis: where a student works" session 2 0 redis-cli -u "$REDIS_URL" GET "session:$STUDENT_ID"
    # Made when somebody asks for it; the board's page of that notebook does.
    curl -fsS -o /dev/null -H "Authorization: Bearer $TEACHER_TOKEN" \
        "$API_URL/api/v1/courses/$COURSE_ID/notebooks/$NOTEBOOK_ID/summary"
    step "Redis: the class of a notebook in numbers" summary 2 0 redis-cli -u "$REDIS_URL" GET "class_summary:$NOTEBOOK_ID"
}

ask_http() {
    step "Health of every store" health 2 "$settled_s" curl -sS "$API_URL/health"
    step "Metrics of API and worker" metrics 8:^database_connection_pool_size "$settled_s" curl -sS "$API_URL/metrics" "$WORKER_METRICS_URL"
}

start_stores
hold_class
settled_s=$((SECONDS + PATIENCE_S))
ask() { psql "$DATABASE_URL" -XAtc "$1"; }
STUDENT_ID=$(ask "SELECT user_id FROM learning_sessions ORDER BY cell_executions DESC, user_id LIMIT 1")
NOTEBOOK_ID=$(ask "SELECT notebook_id FROM learning_sessions WHERE user_id = '$STUDENT_ID' LIMIT 1")
export STUDENT_ID NOTEBOOK_ID
ask_postgresql
ask_influxdb
ask_redis
ask_http
echo
if ((wrong)); then
    echo "$wrong of $asked answers differ from the ledger."
    exit 1
fi
echo "$asked statements of the specification, $asked answers equal to the ledger."
