"""Under a JupyterHub that names a class's server: who it is comes from the environment, and its token stays there."""

from __future__ import annotations

import json
import os
import time
import uuid
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from nbpulse_capture import sender as sender_module
from nbpulse_capture.cli import main
from nbpulse_capture.desk import describe_membership
from nbpulse_capture.doctor import examine
from nbpulse_capture.membership import MembershipFile, get_outbox_file
from nbpulse_capture.outbox import Outbox
from nbpulse_capture.sender import Sender

from .conftest import FakeApi, reply, wait_until

TOKEN = "f00dfeedf00dfeedf00dfeedf00dfeed"


@pytest.fixture
def alice(student: Path, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Her server's environment, as the hub's spawner makes it."""
    monkeypatch.setenv("NBPULSE_URL", f"{api.url}/")
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", TOKEN)
    monkeypatch.setenv("JUPYTERHUB_USER", "alice")
    monkeypatch.delenv("NBPULSE_COURSE", raising=False)
    return student


def read_account() -> str:
    membership = MembershipFile().read()
    assert membership is not None
    return membership.account


def put_event(outbox: Outbox) -> str:
    event_id = str(uuid.uuid4())
    event = {"event_id": event_id, "event_type": "cell_execution", "notebook_path": "a.ipynb", "cell_id": "c"}
    outbox.put(event | {"data": {}}, read_account())
    return event_id


def test_the_environment_is_the_membership(alice: Path, api: FakeApi) -> None:
    membership = MembershipFile().read()
    assert membership is not None
    assert (membership.url, membership.token, membership.hub_user) == (api.url, TOKEN, "alice")
    assert TOKEN not in repr(membership)
    assert TOKEN not in json.dumps(describe_membership(membership))


@pytest.mark.parametrize("missing", ["NBPULSE_URL", "JUPYTERHUB_API_TOKEN", "JUPYTERHUB_USER"])
def test_a_hub_that_names_no_class_leaves_joining_to_the_student(
    alice: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setenv(missing, "")
    assert MembershipFile().read() is None


def test_what_waits_belongs_to_the_user_and_the_course_and_not_to_the_servers_token(
    alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_first = read_account()
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "another")
    assert read_account() == at_first
    monkeypatch.setenv("NBPULSE_COURSE", "cs1")
    of_course = read_account()
    monkeypatch.setenv("JUPYTERHUB_USER", "bob")
    assert len({at_first, of_course, read_account()}) == 3


def test_there_is_nothing_to_join_or_leave(alice: Path, api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["join", api.url, "ABCD", "--name", "花子"], ["leave"]):
        assert main(arguments) == 1
        told = capsys.readouterr().err
        assert told.startswith("NB-7060: ")
        assert "alice" in told
    assert api.joins == []
    assert not (alice / "config").exists()


def test_status_and_doctor_say_through_what_and_as_whom(alice: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    assert "Connected through JupyterHub as alice" in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    told = capsys.readouterr().out
    assert json.loads(told)["hub_user"] == "alice"
    assert TOKEN not in told
    found = {finding.check: finding for finding in examine()}
    assert "Connected through JupyterHub as alice" in str(found["joined"].describe()["found"])
    assert found["token"].state == "ok"


def test_the_doctor_repeats_what_the_class_says_against_the_token(
    alice: Path, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBPULSE_COURSE", "情報 1")
    asked: list[tuple[str, str]] = []

    def refuse(request: BaseHTTPRequestHandler) -> None:
        asked.append((request.path, request.headers["Nbpulse-Course"]))
        reply(request, 403, {"code": "NB-1113", "title": "a student of several courses: cs1, cs2"})

    monkeypatch.setattr(api, "tell", refuse)
    token = next(finding for finding in examine() if finding.check == "token")
    assert (token.state, token.fix) == ("wrong", "NB-7061")
    assert "NB-1113: a student of several courses: cs1, cs2" in str(token.describe()["found"])
    assert asked == [("/api/v1/me/inbox?wait_s=0", "%E6%83%85%E5%A0%B1%201")]


def test_what_is_refused_is_sent_once_the_hub_has_been_set_right(
    alice: Path, api: FakeApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sender_module, "HUB_RETRY_S", 0.5)
    monkeypatch.setenv("NBPULSE_COURSE", "cs1")
    named: list[str] = []

    def refuse(request: BaseHTTPRequestHandler, _: list[dict[str, Any]]) -> bool:
        named.append(request.headers["Nbpulse-Course"])
        reply(request, 403, {"code": "NB-1111", "title": "lacks the scope x", "status": 403})
        return True

    api.plays = [refuse, refuse]
    outbox = Outbox(get_outbox_file())
    sender = Sender(get_outbox_file(), MembershipFile())
    sender.start()
    event_id = put_event(outbox)
    sender.wake()
    wait_until(lambda: bool(outbox.read_notes().get("refused")))
    assert main(["status"]) == 1
    shown = capsys.readouterr().out
    assert "NB-7061: " in shown
    # The front end must not ask to join again.
    assert describe_membership(MembershipFile().read())["server"] == "waiting"
    assert "NB-1111 lacks the scope x" in shown
    wait_until(lambda: event_id in api.stored, 15)
    wait_until(lambda: outbox.read_notes().get("refused") is None)
    sender.stop(1.0)
    outbox.close()
    assert named == ["cs1", "cs1"]
    assert set(api.tokens) == {f"Bearer {TOKEN}"}
    for file in alice.rglob("*"):
        assert file.is_dir() or TOKEN.encode() not in file.read_bytes()


def test_of_who_is_no_student_by_the_hubs_groups_nothing_is_kept_until_it_is_asked_again(
    alice: Path, api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(request: BaseHTTPRequestHandler, _: list[dict[str, Any]]) -> bool:
        reply(request, 403, {"code": "NB-1112", "title": "a student of no course here", "status": 403})
        return True

    api.plays = [refuse]
    outbox, running = Outbox(get_outbox_file()), MembershipFile()
    account = read_account()
    put_event(outbox)
    sender = Sender(get_outbox_file(), MembershipFile())
    sender.start()
    wait_until(lambda: running.read() is None)
    wait_until(lambda: outbox.read_last_events(10) == [])
    assert main(["status"]) == 1
    assert "NB-7062: Nothing is recorded here: by JupyterHub's groups alice" in capsys.readouterr().out
    joined = next(finding for finding in examine() if finding.check == "joined")
    assert (joined.state, joined.fix) == ("wrong", "NB-7062")
    # Joining by a code is open to them: it may be another class.
    assert main(["join", api.url, "ABCD", "--name", "花子"]) == 0
    assert main(["leave"]) == 0
    marker = alice / "config" / f"turned-away-{account}.json"
    os.utime(marker, (time.time() - 301, time.time() - 301))
    assert read_account() == account
    event_id = put_event(outbox)
    sender.wake()
    wait_until(lambda: event_id in api.stored)
    sender.stop(1.0)
    outbox.close()
