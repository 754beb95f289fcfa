"""The walkthrough's checks: a right answer passes, and every single thing that may be wrong in it is found."""

from __future__ import annotations

import importlib
import json
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest

from servers import ROOT

ANNA, BOB, TEACHER, NOTEBOOK = (UUID(int=number) for number in (1, 2, 3, 9))
SESSIONS = {ANNA: UUID(int=11), BOB: UUID(int=12)}
START = datetime(2026, 11, 25, 10, 0, tzinfo=UTC)

CALLS, POOL = "database_query_duration_seconds_count", "database_connection_pool_size"
HEALTHY = {"status": "healthy", "response_time": 1}
# Check, the lines of its right answer, and pairs of what to replace by what: each makes a wrong one.
CASES: dict[str, tuple[list[str], list[tuple[str, str]]]] = {
    "class_progress": (
        [
            " username | notebook_id | cell_executions | error_count | total_duration_ms ",
            "----------+-------------+-----------------+-------------+-------------------",
            f" bob      | {NOTEBOOK} |               1 |           0 |                   ",
            f" anna     | {NOTEBOOK} |               2 |           1 |                   ",
            "(2 rows)",
        ],
        [
            ("  2 ", "  3 "),
            ("  0 ", "  1 "),
            ("anna", "anne"),
            (str(NOTEBOOK), str(ANNA)),
            ("|          ", "| 5        "),
        ],
    ),
    "one_student": (
        [
            " id | user_id | notebook_id | started_at | ended_at | cell_executions | error_count | total_duration_ms ",
            "----+---------+-------------",
            f" {SESSIONS[ANNA]} | {ANNA} | {NOTEBOOK} | 2026-11-25 10:00:00+00 |  | 2 | 1 | ",
            "(1 row)",
        ],
        [(" 2 |", " 1 |"), (" 1 |", " 0 |"), ("10:00:00+00", "10:00:01+00"), (str(SESSIONS[ANNA]), str(BOB))],
    ),
    "activity": (
        [
            "name,tags,time,avg_duration,execution_count",
            f"cell_executions,user_id={ANNA},2026-11-25T09:50:00Z,,0",
            f"cell_executions,user_id={ANNA},2026-11-25T10:00:00Z,15,2",
            f"cell_executions,user_id={BOB},2026-11-25T10:00:00Z,30,1",
        ],
        [(",15,2", ",15.1,2"), (",15,2", ",15,3"), ("T10:00", "T10:10"), (str(BOB), str(TEACHER)), (",,0", ",7,1")],
    ),
    "error_rate": (
        [
            "name,tags,time,error_count,total_executions_error_count",
            "cell_executions,notebook_path=week1.ipynb,2026-11-25T09:00:00Z,0,0",
            "cell_executions,notebook_path=week1.ipynb,2026-11-25T10:00:00Z,1,3",
        ],
        [
            (",1,3", ",3,3"),
            (",1,3", ",1,4"),
            ("T10", "T11"),
            ("week1.ipynb,2026-11-25T10", "week2.ipynb,2026-11-25T10"),
        ],
    ),
    "last_runs": (
        [
            "name,time,cell_index,event_type,execution_count,execution_duration_ms,has_error,notebook_path,user_id",
            f"cell_executions,2026-11-25T10:00:03.000000001Z,0,cell_execution,1,30,,week1.ipynb,{BOB}",
            f"cell_executions,2026-11-25T10:00:02.000000003Z,1,cell_execution,2,20,true,week1.ipynb,{ANNA}",
        ],
        [
            *((",true,", ",,"), (",30,", ",31,"), ("000001Z", "000002Z"), ("week1", "week2")),
            *((str(BOB), str(ANNA)), ("Z,1,", "Z,2,"), ("tion,2,", "tion,3,")),
        ],
    ),
    "last_progress": (
        [
            "name,tags,time,completed_cells,progress_percentage,session_duration_ms,total_cells",
            f'learning_progress,"notebook_path=week1.ipynb,user_id={ANNA}",2026-11-25T10:00:00.000000009Z,1,50,2000,2',
            f'learning_progress,"notebook_path=week1.ipynb,user_id={BOB}",2026-11-25T10:00:00.000000009Z,1,50,0,2',
        ],
        [(",1,50,2000", ",2,50,2000"), ("50,2000", "99,2000"), (",2000,", ",4000,"), (",0,2", ",0,3"), ("09Z", "08Z")],
    ),
    "performance": (
        [
            "name,time,avg_execution_time,cell_type,error_rate,max_execution_time,notebook_path,user_id",
            f"performance_metrics,2026-11-25T10:00:00.000000009Z,15,code,0.5,20,week1.ipynb,{ANNA}",
            f"performance_metrics,2026-11-25T10:00:00.000000009Z,30,code,0,30,week1.ipynb,{BOB}",
        ],
        [
            *((",15,", ",16,"), (",20,", ",21,"), ("0.5", "0.25"), ("code", "markdown")),
            *(("T10:00", "T10:01"), (str(BOB), str(TEACHER))),
        ],
    ),
    "connections": (
        ["c1", f'{{"user_id":"{TEACHER}","last_activity":%NOW%}}'],
        [(str(TEACHER), str(ANNA)), ("%NOW%", "1"), ("c1", "c0\n{}\nc1")],
    ),
    "session": (
        [f'{{"current_notebook":"{NOTEBOOK}","last_activity":"2026-11-25T10:00:04Z"}}'],
        [(str(NOTEBOOK), str(ANNA)), ("00:04", "00:03")],
    ),
    "summary": (
        ['{"total_students":2,"total_cells":2,"avg_progress":0.5}'],
        [('students":2', 'students":3'), ('cells":2', 'cells":3'), ("0.5", "0.51")],
    ),
    "health": (
        [
            json.dumps(
                {
                    **dict.fromkeys(("postgresql", "influxdb", "redis"), HEALTHY),
                    "status": "healthy",
                    "worker": {"backlog": 0},
                }
            )
        ],
        [
            ('influxdb": {"status": "healthy"', 'influxdb": {"status": "disabled"'),
            ('backlog": 0', 'backlog": 1'),
            (": 1}", ": 0}"),
        ],
    ),
    "metrics": (
        [
            f'{CALLS}{{database="postgresql",query_type="join"}} 2.0',
            f'{CALLS}{{database="influxdb",query_type="check"}} 1.0',
            f'{CALLS}{{database="redis",query_type="get"}} 1.0',
            *(f'{POOL}{{database="{one}"}} 1.0' for one in ("postgresql", "influxdb", "redis")),
            'nbpulse_worker_events_total{outcome="stored"} 5.0',
        ],
        [
            *(("5.0", "4.0"), ("2.0", "1.0"), ('"check"} 1.0', '"check"} 0.0')),
            (POOL + '{database="redis"} 1', POOL + '{database="redis"} 0'),
        ],
    ),
}


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program beside the walkthrough, asked about Anna."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    monkeypatch.setenv("STUDENT_ID", str(ANNA))
    monkeypatch.setenv("NOTEBOOK_ID", str(NOTEBOOK))
    return importlib.import_module("spec_checks")


def make_ledger() -> Any:
    """Anna starts, runs a cell well, another badly, a third not at all; Bob runs the first."""
    module = importlib.import_module("spec_ledger")

    def make(user_id: UUID, second: int, ordinal: int, event_type: str = "cell_execution", **data: Any) -> Any:
        row = {
            "event_id": UUID(int=100 + 10 * user_id.int + ordinal),
            "user_id": user_id,
            "ordinal": ordinal,
            "occurred_at": START + timedelta(seconds=second),
            "event_type": event_type,
            "learning_session_id": SESSIONS[user_id],
            "notebook_id": NOTEBOOK,
            "course_path": "week1.ipynb",
            "cell_id": f"c{data.get('cell', 0)}",
            "cell_index": data.pop("cell", 0),
            "cell_type": "code",
            "exercise_id": None,
        }
        return module.Event(row, data)

    events = [
        make(ANNA, 0, 1, "session_start"),
        make(ANNA, 1, 2, status="ok", execution_duration_ms=10, execution_count=1),
        make(ANNA, 2, 3, cell=1, status="error", execution_duration_ms=20, execution_count=2),
        make(BOB, 3, 1, status="ok", execution_duration_ms=30, execution_count=1),
        make(ANNA, 4, 4, cell=2, status="aborted"),
    ]
    roles = {str(ANNA): "student", str(BOB): "student", str(TEACHER): "instructor"}
    return module.Ledger(events, {ANNA: "anna", BOB: "bob"}, roles, {})


def finish(answer: str) -> str:
    return answer.replace("%NOW%", str(datetime.now(UTC).timestamp()))


def write_answer(name: str) -> str:
    return "\n".join([*CASES[name][0], ""])


@pytest.mark.parametrize("name", CASES)
def test_a_right_answer_passes(checks: ModuleType, name: str) -> None:
    assert checks.CHECKS[name](make_ledger(), finish(write_answer(name)))


@pytest.mark.parametrize(
    ("name", "before", "after"), [(name, *pair) for name, (_, pairs) in CASES.items() for pair in pairs]
)
def test_a_wrong_answer_is_found(checks: ModuleType, name: str, before: str, after: str) -> None:
    answer = write_answer(name)
    assert before in answer
    with pytest.raises((checks.Differs, KeyError, ValueError)):
        checks.CHECKS[name](make_ledger(), finish(answer.replace(before, after, 1)))


def test_a_message_that_was_not_heard_is_found(checks: ModuleType) -> None:
    ledger = make_ledger()
    lines = [line for event in ledger.events for line in describe("progress_events", event, event.event_type)]
    lines += describe("error_events", ledger.events[2], "execution_error")
    lines += describe("session_events", ledger.events[0], "session_start")
    whole = "\n".join(lines)
    assert len(checks.check_channels(ledger, whole)) == 3
    for lost in range(0, len(lines), 3):
        with pytest.raises(checks.Differs):
            checks.check_channels(ledger, "\n".join(lines[:lost] + lines[lost + 3 :]))


def describe(channel: str, event: Any, event_type: str) -> list[str]:
    message = f'{{"event_type":"{event_type}","user_id":"{event.user_id}","data":{{"event_id":"{event.event_id}"}}}}'
    return ["message", channel, message]


def test_every_tag_and_field_of_the_specification_is_asked_for(checks: ModuleType) -> None:
    answers = importlib.import_module("spec_answers")
    tags = [f"{name},{tag}" for name, keys in answers.TAGS.items() for tag in keys]
    fields = [f"{name},{field},{kind}" for name, keys in answers.FIELDS.items() for field, kind in keys.items()]
    for check, head, lines in (
        (checks.check_tag_keys, "name,tagKey", tags),
        (checks.check_field_keys, "name,fieldKey,fieldType", fields),
    ):
        assert check(None, "\n".join([head, *lines]))
        for place, line in enumerate(lines):
            for wrong in ([], [line.replace("float", "string") if "float" in line else f"{line}x"]):
                with pytest.raises(checks.Differs):
                    check(None, "\n".join([head, *lines[:place], *wrong, *lines[place + 1 :]]))


def test_no_check_is_left_untried(checks: ModuleType) -> None:
    assert set(checks.CHECKS) == {*CASES, "channels", "tag_keys", "field_keys"}
