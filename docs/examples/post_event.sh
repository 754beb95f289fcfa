#!/usr/bin/env bash
# post_event.sh TYPE: sends one event of that type in the specification's flat form, as the student of $STUDENT_TOKEN.
set -euo pipefail
: "${API_URL:?first: eval \"\$(python3 docs/examples/connect.py DATA)\"}" "${STUDENT_TOKEN:?join first: docs/specification.md says how}"
event='{"event_type": "%s", "notebook_path": "week1.ipynb", "cell_index": 3, "duration": 12.5, "has_error": false,
 "execution_count": 1, "timestamp": "%s"}'
# shellcheck disable=SC2059 # the format is ours
printf "$event" "${1:?which event_type?}" "$(python3 -c 'import datetime as d; print(d.datetime.now(d.timezone.utc).isoformat())')" |
    curl -fsS "$API_URL/api/v1/events" -H "Authorization: Bearer $STUDENT_TOKEN" -H 'Content-Type: application/json' -d @-
