"""What leaves for the boards and for the specification's channels."""

import json
from uuid import UUID

from nbpulse.classroom import LearnerState
from nbpulse.live import _encode_events, _encode_states
from stores import make_error, make_event

USER, COURSE = UUID(int=1), UUID(int=2)


def test_the_specified_channels_carry_the_specified_form_and_no_free_text() -> None:
    secret = {"error_message": "himitsu", "traceback": "himitsu", "source": "himitsu", "output": "himitsu"}
    error = make_error(USER, COURSE)
    error.data.update(secret)
    start = make_event(USER, COURSE, "session_start")
    help_request = make_event(USER, COURSE, "help_request", data={"message": "himitsu"})
    channels = _encode_events([error, start, help_request])
    assert b"himitsu" not in b"".join(message for messages in channels.values() for message in messages)
    progress = [json.loads(message) for message in channels["progress_events"]]
    assert [set(message) for message in progress] == [{"event_type", "user_id", "data"}] * 3
    assert [message["event_type"] for message in progress] == ["cell_execution", "session_start", "help_request"]
    (failed,) = [json.loads(message) for message in channels["error_events"]]
    assert (failed["event_type"], failed["user_id"]) == ("execution_error", str(USER))
    assert failed["data"] | {"error_name": "NameError", "has_error": True, "status": "error"} == failed["data"]
    assert [json.loads(message)["event_type"] for message in channels["session_events"]] == ["session_start"]


def test_an_interrupted_run_is_no_error_event() -> None:
    interrupted = make_event(USER, COURSE, data={"status": "interrupted", "has_error": False})
    assert _encode_events([interrupted])["error_events"] == []


def test_each_course_gets_its_own_states_with_the_time_of_the_newest_event() -> None:
    events = [make_event(USER, COURSE) for _ in range(3)]
    states = [LearnerState(str(USER), str(COURSE), revision=4), LearnerState(str(USER), "other", revision=1)]
    messages = {course: json.loads(message) for course, message in _encode_states(events, states).items()}
    assert set(messages) == {str(COURSE), "other"}
    assert messages[str(COURSE)]["states"][0]["revision"] == 4
    assert messages["other"]["received_ms"] == round(max(e.received_at for e in events).timestamp() * 1000)
