"""Messages both ways: what the student says and decides arrives once, whatever the class's server does meanwhile."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpulse_capture import talk as module
from nbpulse_capture.cli import RefusedError
from nbpulse_capture.membership import Membership
from nbpulse_capture.talk import RANK, Talk, describe_message

from .conftest import FakeApi, wait_until

THREAD = "6e0b7a52-0000-4000-8000-000000000001"
OFFER = {"notebook_path": "week1.ipynb", "notebook_id": None, "cell_id": "a1", "source": "x = 1\n"}


class Class:
    """A talk with its threads, whose state anybody may read."""

    def __init__(self, url: str) -> None:
        self.membership: Membership | None = Membership(url=url, token="tok-1", user_id="u-1", course_id="c-1")
        self.changed = threading.Condition()
        self.faults: list[str] = []
        self.talk = Talk(lambda: self.membership, self.changed, lambda: None, self.faults.append)
        works = (self.talk.send_answers, lambda: self.talk.follow_inbox(lambda: True))
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self.talk.close()
        for thread in self._threads:
            thread.join(5)

    def say(self, text: object, thread_id: str | None = None) -> str:
        assert self.membership is not None
        with self.changed:
            return self.talk.say(self.membership, text, thread_id)

    def decide(self, message_id: str, state: str) -> None:
        assert self.membership is not None
        with self.changed:
            self.talk.decide(self.membership, message_id, state)

    def find(self, message_id: str) -> dict[str, Any]:
        with self.changed:
            return next((one for one in self.talk.list_messages() if one["id"] == message_id), {})

    def describe(self) -> dict[str, Any]:
        with self.changed:
            self.talk.note_time()
            return self.talk.describe()


@pytest.fixture
def of_class(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Iterator[Class]:
    monkeypatch.setattr(module, "RETRY_S", 0.05)
    one = Class(api.url)
    yield one
    one.close()


def compose(message_id: str, kind: str = "message", **given: Any) -> dict[str, Any]:
    told = {"id": message_id, "kind": kind, "at": 1_000, "from": "田中", "is_mine": False, "text": "どうですか"}
    return told | {"thread_id": THREAD, "state": "sent", "offer": OFFER if kind == "offer" else None} | given


def hear(of_class: Class, api: FakeApi, *messages: dict[str, Any]) -> None:
    """The class says it, and it has been heard."""
    api.inbox = {"messages": list(messages), "help": None, "after": api.inbox["after"] + 1}
    wait_until(lambda: any(f"after={api.inbox['after']}&" in path for path in api.inbox_asked))


def test_an_answer_waits_for_a_class_that_is_away_and_arrives_once(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.05)
    api.close()
    of_class = Class(api.url)
    first, second = of_class.say(" 図が出ません ", THREAD), of_class.say("動きました")
    time.sleep(0.3)
    assert of_class.find(first)["is_waiting"]
    back = FakeApi(api.port)
    try:
        wait_until(lambda: not of_class.find(second)["is_waiting"])
        path = "/api/v1/me/messages"
        assert back.told == [
            ("POST", path, {"id": first, "thread_id": THREAD, "text": "図が出ません"}),
            ("POST", path, {"id": second, "thread_id": None, "text": "動きました"}),
        ]
        assert of_class.find(first)["problem"] is None
    finally:
        of_class.close()
        back.close()


def test_a_class_that_is_busy_is_asked_again_with_the_same_id(api: FakeApi, of_class: Class) -> None:
    api.tell_answers = [(503, {}), (429, {}), (200, {})]
    said = of_class.say("はい")
    wait_until(lambda: not of_class.find(said)["is_waiting"])
    assert [content["id"] for _, _, content in api.told] == [said] * 3


def test_what_the_class_refuses_is_shown_with_its_words_and_not_said_again(api: FakeApi, of_class: Class) -> None:
    api.tell_answers = [(422, {"code": "NB-1007", "title": "Not allowed now"})]
    refused, taken = of_class.say("1"), of_class.say("2")
    wait_until(lambda: not of_class.find(taken)["is_waiting"])
    assert of_class.find(refused)["problem"] == "NB-1007 Not allowed now"
    assert [content["text"] for _, _, content in api.told] == ["1", "2"]


def test_nobody_waits_while_the_class_is_silent(api: FakeApi, of_class: Class) -> None:
    answering = threading.Event()
    handle = api.handle
    api.handle = lambda request: answering.wait(10) and handle(request)  # type: ignore[method-assign]
    began_s = time.monotonic()
    said = [of_class.say(str(n)) for n in range(50)]
    assert of_class.find(said[-1])["is_waiting"]
    assert time.monotonic() - began_s < 5  # a client's time limit would be 10 s for each
    answering.set()
    wait_until(lambda: not of_class.find(said[-1])["is_waiting"])
    assert [content["id"] for _, _, content in api.told] == said


@pytest.mark.parametrize("text", ["", "  ", None, "あ" * 501])
def test_an_answer_is_neither_empty_nor_too_long(api: FakeApi, of_class: Class, text: object) -> None:
    with pytest.raises(RefusedError, match="NB-7071"):
        of_class.say(text)
    assert api.told == []


def test_each_message_is_kept_once_and_the_newer_word_of_the_class_holds(api: FakeApi, of_class: Class) -> None:
    mine, theirs = str(uuid.uuid4()), str(uuid.uuid4())
    hear(of_class, api, compose(theirs), compose(mine, is_mine=True, at=900, **{"from": None}))
    hear(of_class, api, compose(theirs, state="shown"))
    with of_class.changed:
        assert [one["id"] for one in of_class.talk.list_messages()] == [mine, theirs]
    assert of_class.find(theirs)["state"] == "shown"
    assert of_class.describe()["unread"] == 0


def test_a_decision_is_told_to_the_class_and_outlives_its_older_word(api: FakeApi, of_class: Class) -> None:
    offered = str(uuid.uuid4())
    hear(of_class, api, compose(offered, "offer"))
    assert of_class.find(offered)["offer"] == OFFER
    assert of_class.describe()["unread"] == 1
    of_class.decide(offered, "shown")
    of_class.decide(offered, "accepted")
    of_class.decide(offered, "accepted")
    of_class.decide(offered, "shown")
    hear(of_class, api, compose(offered, "offer", state="shown"))
    assert of_class.find(offered)["state"] == "accepted"
    path = f"/api/v1/me/messages/{offered}/state"
    wait_until(lambda: ("PUT", path, {"state": "accepted"}) in api.told)
    with pytest.raises(RefusedError, match="NB-7072"):
        of_class.decide(offered, "never")
    assert [one for one in api.told if one[2]["state"] != "shown"] == [("PUT", path, {"state": "accepted"})]


def test_what_is_put_off_comes_back_and_may_be_put_off_again(
    api: FakeApi, of_class: Class, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = str(uuid.uuid4())
    hear(of_class, api, compose(offered, "offer"))
    of_class.decide(offered, "later")
    described = of_class.describe()
    assert (described["unread"], described["later"]) == (0, 1)
    assert not of_class.find(offered)["is_due"]
    monkeypatch.setattr(module, "LATER_MS", -1)
    of_class.decide(offered, "later")
    described = of_class.describe()
    assert (described["unread"], described["later"]) == (1, 1)
    assert of_class.find(offered)["is_due"]
    monkeypatch.setattr(module, "LATER_MS", 600_000)
    of_class.decide(offered, "later")
    assert not of_class.find(offered)["is_due"]
    of_class.decide(offered, "never")
    assert of_class.describe()["later"] == 0


def test_what_was_put_off_before_jupyter_was_started_comes_back_too(api: FakeApi, of_class: Class) -> None:
    offered = str(uuid.uuid4())
    hear(of_class, api, compose(offered, "offer", state="later"))
    assert (of_class.describe()["unread"], of_class.describe()["later"]) == (0, 1)


@pytest.mark.parametrize("message_id", ["unknown", "mine"])
def test_only_what_the_class_has_said_can_be_decided(api: FakeApi, of_class: Class, message_id: str) -> None:
    if message_id == "mine":
        message_id = of_class.say("?")
    with pytest.raises(RefusedError, match="NB-7072"):
        of_class.decide(message_id, "accepted")
    hear(of_class, api, compose("m"))
    with pytest.raises(RefusedError, match="NB-7072"):
        of_class.decide("m", "sent")


def test_who_comes_and_at_which_place_one_stands_is_passed_on(api: FakeApi, of_class: Class) -> None:
    standing = {"open": True, "since": 5, "coming": {"name": "Tanaka", "at": 9}, "place": None}
    api.inbox |= {"help": standing}
    wait_until(lambda: of_class.describe()["help"] == standing)


def test_nothing_goes_to_another_class_than_the_one_it_was_meant_for(api: FakeApi, of_class: Class) -> None:
    api.tell_answers = [(503, {})] * 3
    of_class.say("for the first class")
    wait_until(lambda: bool(api.told))
    of_class.membership = Membership(url=api.url, token="tok-2", user_id="u-1", course_id="c-2")
    with of_class.changed:
        of_class.talk.forget()
    before = len(api.told)
    said = of_class.say("for the second")
    wait_until(lambda: any(content["id"] == said for _, _, content in api.told))
    time.sleep(0.3)
    of_first = [content for _, _, content in api.told if content["text"] == "for the first class"]
    assert len(of_first) <= before + 1, "one may have been on its way already"


def test_an_inbox_that_says_nonsense_is_a_fault_that_is_counted(api: FakeApi, of_class: Class) -> None:
    api.inbox = {"messages": [17], "after": 0}
    wait_until(lambda: bool(of_class.faults))
    hear(of_class, api := _mend(api), compose("m"))
    assert of_class.find("m")["text"] == "どうですか"


def _mend(api: FakeApi) -> FakeApi:
    api.inbox = {"messages": [], "help": None, "after": 0}
    return api


@given(st.lists(st.tuples(st.sampled_from(["hear", "decide"]), st.sampled_from(list(RANK))), max_size=12))
def test_however_decisions_and_the_classs_word_cross_nothing_goes_back(steps: list[tuple[str, str]]) -> None:
    membership = Membership(url="http://127.0.0.1:9", token="t", user_id="u", course_id="c")
    talk = Talk(lambda: membership, threading.Condition(), lambda: None, lambda _: None)
    talk._hear(describe_message(compose("m", "offer")))
    ranks = [0]
    for who, state in steps:
        if who == "hear":
            talk._hear(describe_message(compose("m", "offer", state=state)))
        else:
            try:
                talk.decide(membership, "m", state)
            except RefusedError as refused:
                assert refused.code == "NB-7072"
        (message,) = talk.list_messages()
        ranks.append(RANK[message["state"]])
        assert len([one for one in talk._errands if one.message_id == "m"]) <= 1
    assert ranks == sorted(ranks)
