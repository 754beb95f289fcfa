"""What each answer in spec_walkthrough.sh should be, by the ledger.

    python3 docs/examples/spec_checks.py CHECK < ANSWER

Prints "equals the ledger: 412 = 412 runs ..." and exits 0, or says where the answer differs and exits 1. The ledger
(table `events` at $DATABASE_URL) is all that is believed: no other store is asked here.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import spec_answers as answers
from spec_ledger import Ledger, find_percentage, fold_sessions, group, read_ledger, sum_active_ms

SLOT_NS, MINUTE_NS = 10_000_000_000, 60_000_000_000


class Differs(Exception):
    """The answer is not what the ledger says."""


def equal(what: str, found: Any, wanted: Any) -> str:
    """`412 = 412 runs`. Raises Differs."""
    is_same = math.isclose(found, wanted, rel_tol=1e-9) if isinstance(wanted, float) else found == wanted
    if not is_same:
        raise Differs(f"{what}: the answer says {found!r} where it should be {wanted!r}")
    return f"{found:g} = {wanted:g} {what}" if isinstance(wanted, int | float) else f"{what} alike"


def equal_rows(what: str, found: dict[Any, dict[str, Any]], wanted: dict[Any, dict[str, Any]]) -> str:
    """The same keys, and every value of each. Raises Differs at the first."""
    if found.keys() != wanted.keys():
        unknown, missing = sorted(found.keys() - wanted.keys())[:3], sorted(wanted.keys() - found.keys())[:3]
        raise Differs(f"{what}: {len(found)} instead of {len(wanted)}; unknown {unknown}, missing {missing}")
    for key, values in wanted.items():
        for name, value in values.items():
            equal(f"{what} {key}: {name}", found[key].get(name), value)
    return f"{len(found)} = {len(wanted)} {what}"


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


def check_class_progress(ledger: Ledger, answer: str) -> list[str]:
    """Query 1: every session of the last day, newest first."""
    columns = ("username", "notebook_id", "cell_executions", "error_count", "total_duration_ms")
    sessions = sorted(fold_sessions(ledger).values(), key=lambda one: one["started_at"], reverse=True)
    found = answers.read_psql(answer)
    wanted = [{name: session[name] for name in columns} for session in sessions]
    starts = {session["username"]: session["started_at"] for session in sessions}
    order = [starts[row["username"]] for row in found if row["username"] in starts]
    if order != sorted(order, reverse=True):
        raise Differs("the sessions are not the newest first")

    def key(row: dict[str, Any]) -> tuple[Any, Any]:
        return row["username"], row["notebook_id"]

    return [
        equal_rows("sessions", {key(row): row for row in found}, {key(row): row for row in wanted}),
        equal("runs", sum(row["cell_executions"] for row in found), len(ledger.runs)),
        equal("errors", sum(row["error_count"] for row in found), sum(run.is_error for run in ledger.runs)),
    ]


def check_one_student(ledger: Ledger, answer: str) -> list[str]:
    """Query 2: one student's sessions in one notebook."""
    student, notebook = os.environ["STUDENT_ID"], os.environ["NOTEBOOK_ID"]
    wanted = {
        session_id: {name: value for name, value in session.items() if name != "username"}
        for session_id, session in fold_sessions(ledger).items()
        if (session["user_id"], session["notebook_id"]) == (student, notebook)
    }
    found = {row["id"]: row for row in answers.read_psql(answer)}
    runs = sum(row["cell_executions"] for row in found.values())
    mine = [run for run in ledger.runs if str(run.user_id) == student]
    return [equal_rows("sessions", found, wanted), equal("runs of this student", runs, len(mine))]


# --- InfluxDB -------------------------------------------------------------------------------------------------------


def check_activity(ledger: Ledger, answer: str) -> list[str]:
    """Mean and count of the durations by student and 10 minutes."""
    timed = [run for run in ledger.runs if run.duration_ms is not None]
    folded = group(timed, lambda run: (str(run.user_id), run.time_ns // (60 * SLOT_NS) * (60 * SLOT_NS)))
    wanted = {
        key: {"avg_duration": sum(run.duration_ms for run in runs) / len(runs), "execution_count": len(runs)}
        for key, runs in folded.items()
    }
    found = {(row["user_id"], row["time"]): row for row in answers.read_influx(answer) if row.get("execution_count")}
    total = sum(row["execution_count"] for row in found.values())
    return [equal_rows("students in 10 minutes", found, wanted), equal("runs", total, len(timed))]


def check_error_rate(ledger: Ledger, answer: str) -> list[str]:
    """Errors and runs by notebook and hour."""
    hour_ns = 60 * MINUTE_NS
    wanted = {
        key: {"error_count": sum(run.is_error for run in runs), "total_executions_error_count": len(runs)}
        for key, runs in group(ledger.runs, lambda run: (run.course_path, run.time_ns // hour_ns * hour_ns)).items()
    }
    rows = answers.read_influx(answer)
    found = {(row["notebook_path"], row["time"]): row for row in rows if row.get("total_executions_error_count")}
    errors = sum(row["error_count"] for row in found.values())
    return [
        equal_rows("notebook hours", found, wanted),
        equal("errors", errors, sum(run.is_error for run in ledger.runs)),
        equal("runs", sum(row["total_executions_error_count"] for row in found.values()), len(ledger.runs)),
    ]


def check_last_runs(ledger: Ledger, answer: str) -> list[str]:
    """The last points of `cell_executions`."""
    found = {(row["user_id"], row["time"]): row for row in answers.read_influx(answer)}
    newest = sorted(ledger.runs, key=lambda run: run.time_ns)[-len(found) :]
    equal("times of the last runs", sorted(time for _, time in found), [run.time_ns for run in newest])
    wanted = {
        (str(run.user_id), run.time_ns): {
            "notebook_path": run.course_path,
            "cell_index": run.cell_index,
            "event_type": "cell_execution",
            "execution_duration_ms": float(run.duration_ms),
            "execution_count": run.data.get("execution_count"),
            "has_error": True if run.is_error else None,
        }
        for run in ledger.runs
        if (str(run.user_id), run.time_ns) in found
    }
    return [equal_rows("last runs", found, wanted)]


def check_last_progress(ledger: Ledger, answer: str) -> list[str]:
    """The last point of `learning_progress` of each student: the state after the last run."""
    wanted = {}
    for (user_id, notebook_id), runs in group(ledger.runs, lambda run: (run.user_id, run.notebook_id)).items():
        items, last = ledger.list_items(notebook_id), runs[-1]
        total, completed = len(set(items.values())), ledger.count_completed(runs, items)
        session = [one for one in ledger.events if one.learning_session_id == last.learning_session_id]
        wanted[str(user_id), last.course_path] = {
            "time": last.at_ms * 1_000_000 // SLOT_NS * SLOT_NS + notebook_id.int % 1_000_000,
            "completed_cells": completed,
            "total_cells": total,
            "progress_percentage": find_percentage(completed, total),
            "session_duration_ms": sum_active_ms([one for one in session if one.at_ms <= last.at_ms]),
        }
    found = {(row["user_id"], row["notebook_path"]): row for row in answers.read_influx(answer)}
    completed = sum(row["completed_cells"] for row in found.values())
    return [
        equal_rows("students' progress", found, wanted),
        equal("completed cells", completed, sum(one["completed_cells"] for one in wanted.values())),
    ]


def check_performance(ledger: Ledger, answer: str) -> list[str]:
    """Every point of `performance_metrics`: by student, notebook, cell type and minute."""
    wanted = {}
    groups = group(
        ledger.runs, lambda run: (run.user_id, run.notebook_id, run.cell_type or "code", run.time_ns // MINUTE_NS)
    )
    for (user_id, notebook_id, cell_type, minute), runs in groups.items():
        durations = [float(run.duration_ms) for run in runs if run.duration_ms is not None]
        key = (str(user_id), cell_type, minute * MINUTE_NS + notebook_id.int % 1_000_000)
        wanted[key] = {
            "notebook_path": runs[0].course_path,
            "avg_execution_time": sum(durations) / len(durations),
            "max_execution_time": max(durations),
            "error_rate": sum(run.is_error for run in runs) / len(runs),
        }
    found = {(row["user_id"], row["cell_type"], row["time"]): row for row in answers.read_influx(answer)}
    return [equal_rows("students' minutes", found, wanted)]


# --- Redis, HTTP ----------------------------------------------------------------------------------------------------


def check_channels(ledger: Ledger, answer: str) -> list[str]:
    """What a subscriber of all three channels heard during the whole class."""
    heard = answers.read_messages(answer)
    wanted = {
        "progress_events": ledger.events,
        "error_events": [event for event in ledger.events if event.is_error],
        "session_events": [event for event in ledger.events if event.event_type in {"session_start", "session_end"}],
    }
    said = []
    for channel, events in wanted.items():
        found = {
            one["data"]["event_id"]: {"event_type": one["event_type"], "user_id": one["user_id"]}
            for one in heard.get(channel, [])
        }
        kind = "execution_error" if channel == "error_events" else None
        by_id = {
            str(event.event_id): {"event_type": kind or event.event_type, "user_id": str(event.user_id)}
            for event in events
        }
        said.append(equal_rows(channel, found, by_id))
    return said


def check_connections(ledger: Ledger, answer: str) -> list[str]:
    """One board is open, the instructor's, heard of within a minute."""
    found = [json.loads(value) for value in answer.split("\n")[1::2] if value]
    now = datetime.now(UTC).timestamp()
    said = equal("open board", len(found), 1)
    equal("its owner's role", ledger.roles.get(found[0]["user_id"]), "instructor")
    equal("heard of within a minute", 0 <= now - found[0]["last_activity"] < 60, True)
    return [said]


def check_session(ledger: Ledger, answer: str) -> list[str]:
    """Where a student works and when they were last active."""
    mine = [event for event in ledger.events if str(event.user_id) == os.environ["STUDENT_ID"]]
    found = json.loads(answer)
    return [
        equal("current_notebook", found["current_notebook"], str(mine[-1].notebook_id)),
        equal("last_activity", datetime.fromisoformat(found["last_activity"]), mine[-1].occurred_at),
    ]


def check_summary(ledger: Ledger, answer: str) -> list[str]:
    """The class of one notebook in numbers. A cell that is being run again is not complete until that ends."""
    here = [event for event in ledger.events if str(event.notebook_id) == os.environ["NOTEBOOK_ID"]]
    runs = [event for event in here if event.is_run or event.event_type == "cell_execution_start"]
    items = ledger.list_items(runs[0].notebook_id)
    completed = sum(ledger.count_completed(mine, items) for mine in group(runs, lambda run: run.user_id).values())
    found, total = json.loads(answer), len(set(items.values()))
    progress = round(completed / (len(ledger.students) * total), 4)
    return [
        equal("total_students", found["total_students"], len(ledger.students)),
        equal("total_cells", found["total_cells"], total),
        equal("avg_progress", found["avg_progress"], progress),
    ]


def check_health(_: Ledger, answer: str) -> list[str]:
    """Every store answers, and nothing that was accepted still waits."""
    found = json.loads(answer)
    for store in ("postgresql", "influxdb", "redis"):
        equal(store, found[store]["status"], "healthy")
        equal(f"{store}: response_time is measured", found[store]["response_time"] > 0, True)
    return [equal("status", found["status"], "healthy"), equal("events waiting", found["worker"]["backlog"], 0)]


def check_metrics(ledger: Ledger, answer: str) -> list[str]:
    """The worker stored what the ledger holds; every student joined through a timed call to PostgreSQL."""
    found = answers.read_metrics(answer)
    for database in ("postgresql", "influxdb", "redis"):
        calls = sum(
            value
            for name, value in found.items()
            if name.startswith("database_query_duration_seconds_count") and f'database="{database}"' in name
        )
        equal(f"{database} was asked", calls > 0, True)
        pool = found.get(f'database_connection_pool_size{{database="{database}"}}', 0)
        equal(f"{database} has connections", pool > 0, True)
    joins = found.get('database_query_duration_seconds_count{database="postgresql",query_type="join"}', 0)
    stored = found.get('nbpulse_worker_events_total{outcome="stored"}', 0)
    return [equal("events stored", stored, len(ledger.events)), equal("students joined", joins, len(ledger.students))]


def check_tag_keys(_: Ledger, answer: str) -> list[str]:
    """The specification's, no other."""
    return answers.compare_keys(answer, "tagKey", equal)


def check_field_keys(_: Ledger, answer: str) -> list[str]:
    """The specification's; `error_count` beside them, for `sum()`."""
    return answers.compare_keys(answer, "fieldKey", equal)


CHECKS: dict[str, Callable[[Ledger, str], list[str]]] = {
    name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")
}


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in CHECKS:
        print(f"{__doc__}\nCHECK is one of: {' '.join(CHECKS)}", file=sys.stderr)
        return 2
    answer = sys.stdin.read()
    try:
        said = CHECKS[arguments[0]](asyncio.run(read_ledger()), answer)
    except (Differs, KeyError, IndexError, ValueError, TypeError) as error:
        print(f"× differs from the ledger: {error if isinstance(error, Differs) else f'no such answer ({error!r})'}")
        return 1
    print(f"✓ equals the ledger: {', '.join(said)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
