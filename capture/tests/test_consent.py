"""The course's notice, the pause, and the end of recording: what is kept, sent, erased."""

from __future__ import annotations

import json
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from nbpulse_capture import consent, notices
from nbpulse_capture.cli import main
from nbpulse_capture.consent import ConsentFile, Standing
from nbpulse_capture.desk import Desk
from nbpulse_capture.membership import Membership, MembershipFile, get_outbox_file
from nbpulse_capture.messages import RefusedError
from nbpulse_capture.outbox import Outbox
from nbpulse_capture.policy import OWN_ACTS_ONLY, Policy
from nbpulse_capture.sender import Sender

from .conftest import FakeApi, reply, wait_until
from .test_desk import Recorder

Event = dict[str, Any]


def make_run(**data: Any) -> Event:
    envelope = {"event_id": str(uuid.uuid4()), "event_type": "cell_execution", "notebook_path": "a.ipynb"}
    return envelope | {"cell_id": "c1", "data": {"status": "ok"} | data}


def join(api: FakeApi) -> Membership:
    assert main(["join", api.url, "ABCD", "--name", "花子"]) == 0
    membership = MembershipFile().read()
    assert membership is not None
    return membership


def put(*events: Event) -> None:
    membership = MembershipFile().read()
    assert membership is not None
    outbox = Outbox(get_outbox_file())
    for event in events:
        outbox.put(event, membership.account)
    outbox.close()


def find_in_files(student: Path, text: str) -> list[str]:
    """The files of the outbox that hold the text, also where SQLite no longer looks."""
    return [path.name for path in (student / "data").iterdir() if text.encode() in path.read_bytes()]


def read_kept() -> list[tuple[str, Event, str | None]]:
    outbox = Outbox(get_outbox_file())
    try:
        return outbox.read_last_events(100)
    finally:
        outbox.close()


@pytest.fixture
def start_sender(student: Path) -> Iterator[Callable[..., Sender]]:
    started: list[Sender] = []

    def start(presence: Callable[[], Event | None] = lambda: None) -> Sender:
        started.append(Sender(get_outbox_file(), MembershipFile(), describe_presence=presence))
        started[-1].start()
        started[-1].wake()
        return started[-1]

    yield start
    for one in started:
        one.stop(1.0)


# --- the notice -------------------------------------------------------------------------------------------------------


def test_joining_shows_the_course_s_own_notice_before_it_asks_to_join(
    student: Path, api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.set_collection(4, "source", "cell_focus")
    membership = join(api)
    shown = capsys.readouterr().out
    assert shown.index("source notice 4 in en") < shown.index("Joined")
    assert api.joins[0]["notice_version"] == 4  # type: ignore[comparison-overlap]
    standing = ConsentFile().read(membership)
    assert standing.policy == Policy(4, "source", frozenset({"cell_focus"}))
    assert not standing.is_notice_due
    assert stat.S_IMODE((student / "config" / "collection.json").stat().st_mode) == 0o600


def test_who_says_no_has_not_joined(
    student: Path, api: FakeApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nbpulse_capture import cli

    monkeypatch.setattr(cli, "can_ask", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: "")
    api.set_collection(1, "metadata")
    assert main(["join", api.url, "ABCD", "--name", "花子"]) == 1
    assert (api.joins, MembershipFile().read()) == ([], None)
    assert main(["join", api.url, "ABCD", "--name", "花子", "--yes"]) == 0
    assert "metadata notice 1" in capsys.readouterr().out


def test_a_raised_level_waits_for_the_student_and_a_lowered_one_holds_at_once(
    student: Path, api: FakeApi, capsys: pytest.CaptureFixture[str], start_sender: Callable[..., Sender]
) -> None:
    api.set_collection(1, "metadata")
    membership = join(api)
    api.shown = api.collection
    api.set_collection(2, "source", "traceback")
    put(make_run(traceback="t"))
    sender = start_sender()
    wait_until(lambda: ConsentFile().read(membership).is_notice_due)
    policy = ConsentFile().read(membership).policy
    assert (policy.level, policy.keeps("traceback")) == ("metadata", False)
    put(make_run(source="x = 1", traceback="t"))
    sender.wake()
    wait_until(lambda: len(api.stored) == 2)
    assert not any({"source"} & event["data"].keys() for event in api.stored.values())
    assert main(["status"]) == 0
    assert "NB-7085" in capsys.readouterr().out
    assert main(["notice"]) == 1  # nobody at a terminal has said yes
    assert main(["notice", "--accept"]) == 0
    assert api.consents == [{"version": 2, "action": "accept"}]
    assert ConsentFile().read(membership).policy.level == "source"


def test_what_was_recorded_and_is_not_collected_any_more_is_not_sent_and_not_kept(
    student: Path, api: FakeApi, start_sender: Callable[..., Sender]
) -> None:
    api.set_collection(2, "source")
    membership = join(api)
    api.shown = api.collection
    api.set_collection(3, "metadata", "cell_focus")
    notices.write_collection(membership, {"current": api.collection, "shown": api.shown}, time.time())
    focus = make_run() | {"event_type": "cell_focus"}
    run = make_run(source="SOURCE-CANARY")
    put(focus, run)
    start_sender()
    wait_until(lambda: bool(api.stored))
    wait_until(lambda: all(state == "sent" for state, _, _ in read_kept()))
    assert list(api.stored) == [run["event_id"]]
    assert "SOURCE-CANARY" not in json.dumps([api.batches, read_kept()])
    assert find_in_files(student, "SOURCE-CANARY") == []


def test_nothing_is_sent_before_the_server_has_said_what_it_collects(
    student: Path, api: FakeApi, monkeypatch: pytest.MonkeyPatch, start_sender: Callable[..., Sender]
) -> None:
    monkeypatch.setenv("NBPULSE_CAPTURE_URL", api.url)
    monkeypatch.setenv("NBPULSE_CAPTURE_TOKEN", "t")
    asked: list[str] = []

    def refuse(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        if len(asked) == 1:
            reply(request, 503, {"code": "NB-2003", "title": "not now"}, Retry_After="0.3")
        else:
            reply(request, 200, {"current": api.collection, "shown": None})

    api.set_collection(1, "nothing")
    monkeypatch.setattr(api, "tell_collection", refuse)
    hand = {"event_id": str(uuid.uuid4()), "event_type": "help_request", "data": {"message": "?"}}
    put(make_run(), hand)
    start_sender()
    wait_until(lambda: bool(api.stored))
    assert len(asked) == 2
    assert list(api.stored) == [hand["event_id"]]
    assert [event["event_type"] for _, event, _ in read_kept()] == ["help_request"]


def test_what_the_server_does_not_collect_is_not_kept_for_ever(
    student: Path, api: FakeApi, start_sender: Callable[..., Sender]
) -> None:
    join(api)

    def refuse(request: BaseHTTPRequestHandler, events: list[Event]) -> bool:
        results = [{"event_id": e["event_id"], "status": "rejected", "code": "NB-1341", "reason": "-"} for e in events]
        reply(request, 422, {"results": results})
        return True

    api.plays = [refuse]
    put(make_run())
    start_sender()
    wait_until(lambda: read_kept() == [])
    time.sleep(0.5)
    assert api.request_count == 1


def test_the_front_end_is_shown_a_notice_that_says_more_before_it_joins(student: Path, api: FakeApi) -> None:
    api.set_collection(2, "output")
    desk = Desk(Recorder())
    asked = {"url": api.url, "code": "ABCD", "name": "花子"}
    with pytest.raises(RefusedError) as refused:
        desk.join(asked)
    assert (refused.value.code, refused.value.facts["version"]) == ("NB-7081", 2)
    assert refused.value.facts["ja"] == "output notice 2 in ja"
    assert (api.joins, MembershipFile().read()) == ([], None)
    desk.join(asked | {"notice_version": 2})
    assert desk.wait_for_state(-1, 0)["notice"] == {
        "version": 2,
        "text": {"ja": "output notice 2 in ja", "en": "output notice 2 in en"},
        "due": False,
    }
    desk.close()


@pytest.mark.parametrize(("theirs", "ours"), [("NB-1342", "NB-7082"), ("NB-1340", "NB-7084"), ("NB-1101", "NB-7084")])
def test_an_answer_that_the_server_does_not_take_is_told_and_changes_nothing(
    student: Path, api: FakeApi, capsys: pytest.CaptureFixture[str], theirs: str, ours: str
) -> None:
    api.set_collection(1, "metadata")
    membership = join(api)
    api.shown = api.collection
    api.set_collection(2, "output")
    api.consent_refusal = {"code": theirs, "title": "no"}
    assert main(["notice", "--accept"]) == 1
    assert capsys.readouterr().err.startswith(f"{ours}: ")
    standing = ConsentFile().read(membership)
    assert (standing.is_notice_due, standing.policy.level) == (True, "metadata")


def test_presence_of_a_course_whose_terms_are_not_known_yet_waits_for_them(
    student: Path, api: FakeApi, monkeypatch: pytest.MonkeyPatch, start_sender: Callable[..., Sender]
) -> None:
    monkeypatch.setenv("NBPULSE_CAPTURE_URL", api.url)
    monkeypatch.setenv("NBPULSE_CAPTURE_TOKEN", "t")
    api.set_collection(1, "metadata", "presence")
    start_sender(lambda: {"event_id": "1", "event_type": "presence", "data": {"state": "active"}})
    wait_until(lambda: api.collection_asked > 0)
    time.sleep(0.3)
    assert api.request_count == 0


# --- pause ------------------------------------------------------------------------------------------------------------


def test_a_pause_lets_nothing_but_a_raised_hand_through_and_ends_by_itself(
    student: Path, api: FakeApi, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["pause"]) == 1
    assert "NB-7001" in capsys.readouterr().err
    membership = join(api)
    file = ConsentFile()
    assert main(["pause", "--minutes", "5"]) == 0
    assert file.find_policy(membership) == OWN_ACTS_ONLY
    assert main(["status"]) == 0
    assert "5 more minutes" in capsys.readouterr().out
    later_s = time.time() + 301
    monkeypatch.setattr(time, "time", lambda: later_s)
    assert file.find_policy(membership).level == "metadata"
    assert main(["pause"]) == 0
    assert file.is_paused()
    assert main(["resume"]) == 0
    assert not file.is_paused()
    assert main(["pause", "--minutes", "0"]) != 0


def test_a_damaged_file_of_the_pause_is_a_pause(student: Path, api: FakeApi) -> None:
    membership = join(api)
    (student / "config" / "pause.json").write_text("{")
    assert ConsentFile().find_policy(membership) == OWN_ACTS_ONLY


def test_of_who_has_paused_the_class_hears_that_and_no_more(
    student: Path, api: FakeApi, start_sender: Callable[..., Sender]
) -> None:
    api.set_collection(1, "metadata")
    join(api)
    consent.pause(None)
    where = {"event_id": str(uuid.uuid4()), "event_type": "presence", "notebook_path": "secret.ipynb"}
    start_sender(lambda: where | {"data": {"state": "active", "typing": True}})
    wait_until(lambda: bool(api.presence))
    (said,) = api.presence
    assert said["data"] == {"state": "paused"}
    assert "secret" not in json.dumps(said)


def test_a_course_without_presence_hears_nothing_of_a_pause(
    student: Path, api: FakeApi, start_sender: Callable[..., Sender]
) -> None:
    api.set_collection(1, "metadata", "presence")
    join(api)
    consent.pause(None)
    put(make_run())
    start_sender(lambda: {"event_id": "1", "event_type": "presence", "data": {"state": "active"}})
    wait_until(lambda: bool(api.stored))
    assert api.presence == []


# --- the end ----------------------------------------------------------------------------------------------------------


def test_withdrawing_tells_the_server_erases_what_waits_and_says_what_stays(
    student: Path, api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.set_collection(3, "metadata")
    join(api)
    other = Outbox(get_outbox_file())  # a Jupyter server that goes on
    put(*(make_run(error_message="CANARY") for _ in range(50)))
    assert find_in_files(student, "CANARY") != []
    assert main(["withdraw", "--yes"]) == 0
    assert find_in_files(student, "CANARY") == []
    other.close()
    assert api.consents == [{"version": 3, "action": "withdraw"}]
    assert "what was recorded stays" in capsys.readouterr().out
    assert MembershipFile().read() is None
    assert read_kept() == []
    assert {path.name for path in (student / "config").iterdir()} == set()


def test_while_the_server_cannot_be_told_recording_is_paused_and_what_waited_is_gone(
    student: Path, api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    membership = join(api)
    put(make_run())
    port = api.port
    api.close()
    assert main(["withdraw", "--yes"]) == 1
    assert "NB-7080" in capsys.readouterr().err
    assert MembershipFile().read() == membership
    assert ConsentFile().is_paused()
    assert read_kept() == []
    again = FakeApi(port)
    try:
        assert main(["withdraw", "--yes"]) == 0
        assert MembershipFile().read() is None
        assert not ConsentFile().is_paused()
    finally:
        again.close()
    api._thread = again._thread  # the fixture closes a server that is closed


@pytest.mark.parametrize(("is_given", "code"), [(False, "NB-1340"), (True, "NB-1340"), (False, "NB-1345")])
def test_who_has_withdrawn_elsewhere_or_was_erased_keeps_nothing_here_and_asks_no_more(  # noqa: PLR0917 - fixtures
    student: Path,
    api: FakeApi,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    start_sender: Callable[..., Sender],
    is_given: bool,
    code: str,
) -> None:
    if is_given:
        monkeypatch.setenv("NBPULSE_CAPTURE_URL", api.url)
        monkeypatch.setenv("NBPULSE_CAPTURE_TOKEN", "t")
    else:
        join(api)
    membership = MembershipFile().read()
    assert membership is not None

    def refuse(request: BaseHTTPRequestHandler, _: list[Event]) -> bool:
        reply(request, 403, {"code": code, "title": "Nothing more is taken", "status": 403})
        return True

    api.plays = [refuse] * 5
    put(make_run(), make_run())
    sender = start_sender()
    wait_until(lambda: read_kept() == [])
    sender.wake()
    time.sleep(1.0)
    assert api.request_count == 1
    if is_given:
        assert ConsentFile().find_policy(membership).level == "nothing"
        return
    assert MembershipFile().read() is None
    capsys.readouterr()
    assert main(["status"]) == 1
    assert ("erased" in "".join(capsys.readouterr())) == (code == "NB-1345")


def test_one_student_s_terms_are_not_the_next_one_s(student: Path, api: FakeApi) -> None:
    api.set_collection(2, "output")
    membership = join(api)
    assert ConsentFile().read(membership).policy.level == "output"
    other = Membership(url=api.url, token="other", user_id="u-2", course_id="c-1")
    assert ConsentFile().read(other) == Standing()
    assert ConsentFile().find_policy(other).level == "metadata"
