"""The wire: what is taken, what is refused and why, and that one bad event never fails its neighbours."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpulse import deliveries, events
from nbpulse.errors import InvalidEvent, InvalidInput, PoisonEvent, load_catalogue

USER, COURSE = uuid4(), uuid4()
NOW = datetime(2026, 11, 23, 1, 30, tzinfo=UTC)


def make(**changes: Any) -> dict[str, Any]:
    event = {
        "schema_version": 1,
        "event_id": "5f0f1e5e-9a57-4a0e-9f0b-6d1c7a0d8b11",
        "event_type": "cell_execution",
        "occurred_at": "2026-11-23T01:02:03.456Z",
        "notebook_path": "week1.ipynb",
        "cell_id": "a1b2",
        "data": {"status": "ok", "execution_duration_ms": 12.5},
    }
    event.update(changes)
    return {name: value for name, value in event.items() if value is not ...}


def receive(event: dict[str, Any] | bytes) -> events.ReceivedEvent:
    raw = event if isinstance(event, bytes) else json.dumps(event).encode()
    return events.receive(raw, user_id=USER, course_id=COURSE, received_at=NOW)


def test_an_event_belongs_to_the_token_and_keeps_what_was_sent() -> None:
    event = receive(make())
    assert (event.user_id, event.course_id, event.received_at) == (USER, COURSE, NOW)
    assert event.occurred_at == datetime(2026, 11, 23, 1, 2, 3, 456000, tzinfo=UTC)
    assert event.data == {"status": "ok", "execution_duration_ms": 12.5, "has_error": False}


def test_what_the_stream_carries_is_what_was_received() -> None:
    event = receive(make(session_id=str(uuid4()), sequence=17, cell_index=3, exercise_id="ex-1"))
    assert events.decode(events.encode(event)) == event


def test_the_specifications_flat_form_is_understood() -> None:
    event = receive(
        {
            "id": "run-17",
            "event_type": "cell_execution",
            "user_id": str(USER),
            "notebook_path": "week1.ipynb",
            "cell_index": 3,
            "duration": 40,
            "has_error": True,
            "error_message": "boom",
            "execution_count": 2,
            "timestamp": "2026-11-23T01:02:03Z",
        }
    )
    assert event.data == {
        "status": "error",
        "has_error": True,
        "execution_duration_ms": 40,
        "error_message": "boom",
        "execution_count": 2,
    }
    assert event.cell_index == 3


def test_an_event_without_an_id_gets_the_same_one_each_time_and_another_for_another_student() -> None:
    flat = json.dumps({"event_type": "help_request", "timestamp": "2026-11-23T01:02:03Z"}).encode()
    assert receive(flat).event_id == receive(flat).event_id
    other = events.receive(flat, user_id=uuid4(), course_id=COURSE, received_at=NOW)
    assert other.event_id != receive(flat).event_id


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (make(event_type="cell_explosion"), "NB-1020"),
        (make(event_type=...), "NB-1011"),
        (make(event_id="not-a-uuid"), "NB-1011"),
        (make(occurred_at=...), "NB-1015"),
        (make(occurred_at="2026-11-23T01:02:03"), "NB-1016"),
        (make(occurred_at="2026-11-25T01:02:03Z"), "NB-1017"),
        (make(occurred_at="1999-12-31T23:59:59Z"), "NB-1018"),
        (make(occurred_at="0001-01-01T00:00:00+10:00"), "NB-1018"),
        (make(occurred_at="9999-12-31T23:59:59-10:00"), "NB-1017"),
        (make(notebook_path=...), "NB-1015"),
        (make(notebook_path="x" * 501), "NB-1011"),
        (make(notebook_path="./"), "NB-1015"),
        (make(schema_version=2), "NB-1019"),
        (make(cell_index=-1), "NB-1011"),
        (make(cell_index="three"), "NB-1011"),
        (make(sequence=2**63), "NB-1011"),
        (make(user_id=str(uuid4())), "NB-1102"),
        (make(data={"status": "exploded"}), "NB-1011"),
        (make(data={"status": 7}), "NB-1011"),
        (make(data={"execution_duration_ms": -1}), "NB-1011"),
        (make(data={"execution_count": 2**31}), "NB-1011"),
        (make(data=[1]), "NB-1011"),
        (make(data={"note": "\x00"}), "NB-1014"),
        (make(cell_id="a\x00b"), "NB-1014"),
        (make(data={"note": "x" * events.EVENT_BYTES_MAX}), "NB-1010"),
        (make(event_type="presence", data={"state": "asleep"}), "NB-1011"),
        (make(event_type="help_request", data={"message": "x" * 501}), "NB-1011"),
    ],
)
def test_a_bad_field_is_refused_by_its_name(event: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidEvent) as refused:
        receive(event)
    assert refused.value.code == code
    for language in ("en", "ja"):
        assert not re.search(r"<\w+>", refused.value.title(language)), "a placeholder was not filled"
        assert refused.value.todo(language)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b'{"event_type": "presence", "occurred_at": NaN}', "NB-1012"),
        (b'{"event_type": "presence", "data": {"x": Infinity}}', "NB-1012"),
        (b'{"event_type": "\\ud800"}', "NB-1012"),
        (b'{"event_type": "presence", "data": {"x": 1e400}}', "NB-1011"),
        (b'"text"', "NB-1011"),
        (b'{"event_type":"presence","data":' + b'{"a":' * 30 + b"1" + b"}" * 31, "NB-1013"),
        (b'{"event_type":"presence","data":' + b'{"a":' * 5000 + b"1" + b"}" * 5001, "NB-1013"),
    ],
)
def test_what_is_no_json_or_too_deep_is_refused(raw: bytes, code: str) -> None:
    with pytest.raises(InvalidEvent) as refused:
        receive(raw)
    assert refused.value.code == code


@pytest.mark.parametrize("digits", [30, 5000])
def test_a_number_of_any_length_is_refused_or_comes_through_unchanged(digits: int) -> None:
    raw = json.dumps(make()).replace("12.5", '12.5, "huge": ' + "7" * digits).encode()
    try:
        event = receive(raw)
    except InvalidEvent as refused:
        assert refused.code == "NB-1011"
    else:
        assert events.decode(events.encode(event)) == event


def test_depth_within_the_limit_and_brackets_in_text_pass() -> None:
    deep: Any = 1
    for _ in range(events.DEPTH_MAX - 2):
        deep = {"a": deep}
    assert receive(make(data={"x": deep})).data["x"] == deep
    assert receive(make(data={"note": "[{" * 100})).data["note"] == "[{" * 100


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    assert receive(make(data={"note": "\\u0000"})).data["note"] == "\\u0000"


def test_a_clock_that_is_a_little_ahead_is_brought_back_to_ours() -> None:
    assert receive(make(occurred_at="2026-11-23T02:00:00Z")).occurred_at == NOW


def test_paths_come_in_one_spelling() -> None:
    decomposed = "か\u3099/../week1.ipynb"
    assert receive(make(notebook_path=decomposed)).notebook_path == "が/../week1.ipynb"
    assert receive(make(notebook_path=".\\lessons\\week1.ipynb")).notebook_path == "lessons/week1.ipynb"


def test_old_events_are_history_and_recent_ones_are_not() -> None:
    late = (NOW - events.LATE_AFTER - timedelta(seconds=1)).isoformat()
    assert receive(make(occurred_at=late)).is_late
    assert not receive(make(occurred_at=(NOW - timedelta(minutes=14)).isoformat())).is_late


def test_a_batch_with_broken_elements_is_split_so_that_the_good_ones_survive() -> None:
    good = json.dumps(make()).encode()
    broken = [b'{"a":NaN}', b'"\\ud800"', b"[" * 2000 + b"]" * 2000, b'{"text": "],{\\"" }']
    parts, is_batch = deliveries.split_batch(b"[" + b" , ".join([good, *broken, good]) + b"]")
    assert is_batch
    assert parts == [good, *broken, good]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "NB-1001"),
        (b"hello", "NB-1001"),
        (b"[", "NB-1001"),
        (b"[{]", "NB-1001"),
        (b"[] []", "NB-1001"),
        (b"[]", "NB-1002"),
        (b"[" + b",".join([b"{}"] * 501) + b"]", "NB-1003"),
    ],
)
def test_a_body_that_is_no_batch_is_refused_as_a_whole(body: bytes, code: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        deliveries.split_batch(body)
    assert refused.value.code == code


@given(st.binary(max_size=200))
def test_no_bytes_whatever_break_the_door(body: bytes) -> None:
    try:
        parts, _ = deliveries.split_batch(body)
    except InvalidInput:
        return
    for part in parts:
        try:
            receive(part)
        except InvalidEvent as refused:
            assert refused.code in load_catalogue()


@given(st.binary(max_size=200))
def test_garbage_in_the_stream_is_poison_and_nothing_else(payload: bytes) -> None:
    with pytest.raises(PoisonEvent):
        events.decode(payload)


def test_the_id_of_a_refused_event_is_told_where_it_can_be_read() -> None:
    assert events.find_event_id(b'{"event_id": "abc-1", "x":') == "abc-1"
    assert events.find_event_id(b"{}") is None
    assert UUID(str(events.find_event_id(json.dumps(make()).encode())))
