from __future__ import annotations

import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nbpulse_capture import sender as sender_module
from nbpulse_capture.backoff import Backoff
from nbpulse_capture.membership import MembershipFile
from nbpulse_capture.outbox import Outbox
from nbpulse_capture.sender import Sender

from .conftest import FakeApi, reply, wait_until

Event = dict[str, Any]


def make_event(**more: Any) -> Event:
    envelope = {"event_id": str(uuid.uuid4()), "event_type": "cell_execution", "notebook_path": "a.ipynb"}
    return envelope | {"cell_id": "c1", "data": {}} | more


class Rig:
    """An outbox and a sender joined to the fake API."""

    def __init__(self, directory: Path, presence: Callable[[], Event | None]) -> None:
        self.file = directory / "data" / "outbox.sqlite3"
        self.outbox = Outbox(self.file)
        membership = MembershipFile().read()
        assert membership is not None
        self.account = membership.account
        self.sender = Sender(self.file, MembershipFile(), describe_presence=presence)

    def put(self, *events: Event) -> None:
        for event in events:
            self.outbox.put(event, self.account)
        self.sender.wake()

    def count_waiting(self) -> int:
        return self.outbox.count_events(self.account)["waiting"]

    def wait_until_sent(self, timeout_s: float = 15.0) -> None:
        wait_until(lambda: self.count_waiting() == 0, timeout_s)

    def close(self) -> None:
        self.sender.stop(1.0)
        assert not self.sender.is_alive()
        self.outbox.close()


@pytest.fixture
def rig(student: Path, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setenv("NBPULSE_CAPTURE_URL", api.url)
    monkeypatch.setenv("NBPULSE_CAPTURE_TOKEN", "secret-token")
    made = Rig(student, lambda: None)
    made.sender.start()
    yield made
    made.close()


def test_the_first_event_of_a_quiet_time_goes_at_once_with_the_token(rig: Rig, api: FakeApi) -> None:
    rig.put(make_event())
    rig.wait_until_sent()  # the imports of the first request are paid here
    latencies_ms = []
    for _ in range(5):
        time.sleep(0.3)
        event = make_event()
        began_s = time.time()
        rig.put(event)
        wait_until(lambda event=event: event["event_id"] in api.stored)
        latencies_ms.append((api.arrived_at_s[event["event_id"]] - began_s) * 1000)
    assert sorted(latencies_ms)[2] < 50, latencies_ms
    assert set(api.tokens) == {"Bearer secret-token"}


def test_a_run_has_a_tenth_of_a_second_for_itself_and_no_more(
    student: Path, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBPULSE_CAPTURE_URL", api.url)
    monkeypatch.setenv("NBPULSE_CAPTURE_TOKEN", "t")
    quiet = threading.Event()
    quiet.set()
    made = Rig(student, lambda: None)
    made.sender = Sender(made.file, MembershipFile(), quiet=quiet)
    made.sender.start()
    made.put(make_event())
    made.wait_until_sent()
    time.sleep(0.3)  # it sleeps again
    quiet.clear()
    began_s = time.time()
    made.put(event := make_event())
    wait_until(lambda: event["event_id"] in api.stored)
    assert api.arrived_at_s[event["event_id"]] - began_s > 0.1
    made.close()


def test_what_is_offered_is_sent_once_and_done(rig: Rig, api: FakeApi) -> None:
    events = [make_event() for _ in range(3)]
    leased = [rig.outbox.put_leased(event, rig.account) for event in events]
    rig.sender.offer(one for one in leased if one)
    rig.wait_until_sent()
    assert [e["event_id"] for batch in api.batches for e in batch] == [e["event_id"] for e in events]


def test_what_is_offered_too_late_or_of_another_student_is_left_to_the_lease(rig: Rig, api: FakeApi) -> None:
    mine, others = (rig.outbox.put_leased(make_event(), account) for account in (rig.account, "another"))
    assert mine is not None
    assert others is not None
    rig.sender.offer([mine._replace(until=time.time() + 1.0), others])
    rig.put(fresh := make_event())
    wait_until(lambda: rig.count_waiting() == 1)
    assert list(api.stored) == [fresh["event_id"]]
    assert [row.event for row in rig.outbox.take_batch(rig.account, 10, now=mine.until + 1)] == [mine.make_row().event]
    assert rig.outbox.count_events("another")["waiting"] == 1


def test_what_was_offered_in_an_outage_arrives_once_afterwards(rig: Rig, api: FakeApi) -> None:
    def hang_up(request: BaseHTTPRequestHandler, _: list[Event]) -> bool:
        request.close_connection = True
        return True

    api.plays = [hang_up] * 4
    leased = [rig.outbox.put_leased(make_event(), rig.account) for _ in range(5)]
    for one in leased:
        rig.sender.offer([one] if one else [])
    rig.wait_until_sent()
    assert len(api.stored) == 5
    assert sorted(e["event_id"] for batch in api.batches for e in batch) == sorted(api.stored), "each once"


def test_a_storm_goes_in_few_large_batches_and_in_order(rig: Rig, api: FakeApi) -> None:
    events = [make_event() for _ in range(950)]
    rig.put(*events)
    rig.wait_until_sent()
    assert [e["event_id"] for e in api.of_type("cell_execution")] == [e["event_id"] for e in events]
    assert max(len(batch) for batch in api.batches) <= 100
    assert len(api.batches) <= 25, "at most eight at once and four a second"


def test_503_keeps_everything_and_waits_as_long_as_the_server_says(rig: Rig, api: FakeApi) -> None:
    asked_at_s: list[float] = []

    def refuse(request: BaseHTTPRequestHandler, _: list[Event]) -> bool:
        asked_at_s.append(time.monotonic())
        reply(request, 503, {"code": "NB-2001", "title": "not now", "status": 503}, Retry_After="1.5")
        return True

    def note(_: BaseHTTPRequestHandler, __: list[Event]) -> bool:
        asked_at_s.append(time.monotonic())
        return False

    api.plays = [refuse, refuse, note]
    rig.put(make_event(), make_event())
    rig.wait_until_sent()
    assert len(api.of_type("cell_execution")) == 2
    assert all(b - a >= 1.45 for a, b in pairwise(asked_at_s)), asked_at_s
    assert "NB-2001" in rig.outbox.read_notes()["last_error"]["what"]


def test_who_is_not_let_in_yet_keeps_everything_and_asks_as_often_as_the_server_says(rig: Rig, api: FakeApi) -> None:
    asked_at_s: list[float] = []

    def refuse(request: BaseHTTPRequestHandler, _: list[Event]) -> bool:
        asked_at_s.append(time.monotonic())
        reply(request, 409, {"code": "NB-1140", "title": "not yet", "status": 409}, Retry_After="1.5")
        return True

    api.plays = [refuse, refuse]
    rig.put(make_event(), make_event())
    wait_until(lambda: bool(rig.outbox.read_notes().get("last_error")))
    assert rig.outbox.read_notes()["last_error"]["what"].startswith("NB-7016 HTTP 409 NB-1140")
    assert not rig.outbox.read_notes().get("refused")
    rig.wait_until_sent()
    assert len(api.of_type("cell_execution")) == 2
    assert all(b - a >= 1.45 for a, b in pairwise(asked_at_s)), asked_at_s


def test_a_server_away_only_delays(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("NBPULSE_CAPTURE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NBPULSE_CAPTURE_TOKEN", "t")
    rig = Rig(student, lambda: None)
    rig.sender.start()
    events = [make_event() for _ in range(3)]
    rig.put(*events)
    wait_until(lambda: "NB-7010" in str(rig.outbox.read_notes().get("last_error")))
    assert rig.count_waiting() == 3
    api = FakeApi(port)
    try:
        rig.wait_until_sent(12)
        assert {e["event_id"] for e in api.of_type("cell_execution")} == {e["event_id"] for e in events}
    finally:
        rig.close()
        api.close()


def test_a_lost_response_sends_the_same_ids_again_and_they_are_stored_once(rig: Rig, api: FakeApi) -> None:
    seen: list[list[str]] = []

    def store_and_hang_up(request: BaseHTTPRequestHandler, events: list[Event]) -> bool:
        seen.append([e["event_id"] for e in events])
        for event in events:
            api.store(event)
        request.close_connection = True
        return True

    api.plays = [store_and_hang_up]
    events = [make_event() for _ in range(3)]
    rig.put(*events)
    rig.wait_until_sent()
    assert len(seen) == 1
    # What was put in meanwhile may follow in the same request.
    assert [e["event_id"] for e in api.batches[0]][: len(seen[0])] == seen[0]
    assert set(api.stored) == {e["event_id"] for e in events}


def test_401_stops_until_the_student_joins_again(rig: Rig, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: BaseHTTPRequestHandler, _: list[Event]) -> bool:
        reply(request, 401, {"code": "NB-1101", "title": "unknown token", "status": 401})
        return True

    api.plays = [refuse] * 50
    rig.put(make_event())
    wait_until(lambda: bool(rig.outbox.read_notes().get("refused")))
    rig.put(make_event(), make_event())
    time.sleep(1.0)
    assert api.request_count == 1, "it goes on knocking"
    assert rig.count_waiting() == 3


def test_rejected_events_are_set_aside_and_their_neighbours_go_through(rig: Rig, api: FakeApi) -> None:
    good, bad = make_event(), make_event()

    def judge(request: BaseHTTPRequestHandler, events: list[Event]) -> bool:
        results = [
            {"event_id": e["event_id"], "status": "rejected", "code": "NB-1004", "reason": "cell_id too long"}
            if e["event_id"] == bad["event_id"]
            else api.store(e)
            for e in events
        ]
        reply(request, 202, {"results": results})
        return True

    api.plays = [judge, judge]
    rig.put(good, bad)
    wait_until(lambda: rig.outbox.count_events(rig.account) == {"waiting": 0, "set_aside": 1})
    assert list(api.stored) == [good["event_id"]]
    reasons = [reason for state, _, reason in rig.outbox.read_last_events(9) if state == "set_aside"]
    assert reasons == ["NB-1004 cell_id too long"]


def test_a_422_with_results_is_settled_by_them(rig: Rig, api: FakeApi) -> None:
    def refuse(request: BaseHTTPRequestHandler, events: list[Event]) -> bool:
        results = [{"event_id": e["event_id"], "status": "rejected", "code": "NB-1001"} for e in events]
        reply(request, 422, {"results": results})
        return True

    api.plays = [refuse, refuse]
    rig.put(make_event())
    wait_until(lambda: rig.outbox.count_events(rig.account) == {"waiting": 0, "set_aside": 1})


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_one_event_that_cannot_be_taken_is_found_by_halving(rig: Rig, api: FakeApi, status: int) -> None:
    events = [make_event() for _ in range(10)]
    poison = events[6]["event_id"]

    def refuse_poison(request: BaseHTTPRequestHandler, sent: list[Event]) -> bool:
        if poison in {e["event_id"] for e in sent}:
            reply(request, status, {"code": "NB-1001", "title": "cannot be read", "status": status})
            return True
        return False

    api.plays = [refuse_poison] * 60
    for event in events:
        rig.outbox.put(event, rig.account)
    rig.sender.wake()
    wait_until(lambda: rig.outbox.count_events(rig.account) == {"waiting": 0, "set_aside": 1})
    assert set(api.stored) == {e["event_id"] for e in events} - {poison}


@pytest.mark.parametrize(
    ("status", "body"), [(200, "<html>please log in</html>"), (202, "[]"), (302, ""), (404, "nothing"), (502, "x")]
)
def test_what_is_not_our_servers_answer_loses_nothing(rig: Rig, api: FakeApi, status: int, body: str) -> None:
    def portal(request: BaseHTTPRequestHandler, _: list[Event]) -> bool:
        reply(request, status, body)
        return True

    api.plays = [portal]
    event = make_event()
    rig.put(event)
    rig.wait_until_sent()
    assert list(api.stored) == [event["event_id"]]
    assert rig.outbox.count_events(rig.account)["set_aside"] == 0


def test_an_event_without_a_verdict_is_sent_again(rig: Rig, api: FakeApi) -> None:
    def forget_one(request: BaseHTTPRequestHandler, events: list[Event]) -> bool:
        reply(request, 202, {"results": [api.store(e) for e in events[1:]]})
        return True

    events = [make_event() for _ in range(2)]
    for event in events:
        rig.outbox.put(event, rig.account)
    api.plays = [forget_one]
    rig.sender.wake()
    rig.wait_until_sent()
    assert set(api.stored) == {e["event_id"] for e in events}


def test_large_bodies_are_compressed(rig: Rig, api: FakeApi) -> None:
    encodings: list[str | None] = []

    def note(request: BaseHTTPRequestHandler, _: list[Event]) -> bool:
        encodings.append(request.headers.get("Content-Encoding"))
        return False

    api.plays = [note]
    event = make_event(data={"error_message": "long " * 3000})
    rig.put(event)
    rig.wait_until_sent()
    assert encodings == ["gzip"]
    assert api.stored[event["event_id"]]["data"] == event["data"]


def test_what_a_dead_kernel_left_is_sent_by_the_next(rig: Rig, api: FakeApi) -> None:
    left = make_event()
    other = Outbox(rig.file)
    other.put(left, rig.account)  # and nobody wakes our sender
    other.close()
    api_has_it = lambda: left["event_id"] in api.stored  # noqa: E731
    wait_until(api_has_it, 8)


def test_the_cells_place_is_read_from_the_saved_notebook_before_the_first_sending(
    rig: Rig, api: FakeApi, student: Path
) -> None:
    notebook = student / "week1.ipynb"
    notebook.write_text(
        '{"metadata": {"nbpulse": {"notebook_id": "0b8e6c6e-6f5e-4f0e-9a7e-0d8f0c3f7a11"}}, "cells":'
        ' [{"id": "intro", "cell_type": "markdown"}, {"id": "c1", "cell_type": "code"}]}',
        encoding="utf-8",
    )
    known, unknown = make_event(), make_event(cell_id="not-saved-yet")
    for event in (known, unknown):
        rig.outbox.put(event, rig.account, str(notebook))
    rig.sender.wake()
    rig.wait_until_sent()
    assert api.stored[known["event_id"]]["cell_index"] == 1
    assert api.stored[known["event_id"]]["notebook_id"] == "0b8e6c6e-6f5e-4f0e-9a7e-0d8f0c3f7a11"
    assert api.stored[unknown["event_id"]]["cell_index"] is None


def test_presence_is_sent_and_never_stored(student: Path, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "PRESENCE_EVERY_S", 1.0)
    monkeypatch.setenv("NBPULSE_CAPTURE_URL", api.url)
    monkeypatch.setenv("NBPULSE_CAPTURE_TOKEN", "t")
    rig = Rig(student, lambda: make_event(event_type="presence", data={"state": "idle"}))
    rig.sender.start()
    wait_until(lambda: len(api.presence) >= 3, 6)
    assert rig.outbox.read_last_events(10) == []
    rig.close()


def test_a_long_outage_never_fills_the_disk(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBPULSE_CAPTURE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NBPULSE_CAPTURE_TOKEN", "t")
    small = partial(Outbox, size_cap_bytes=1_000_000)
    monkeypatch.setattr(sender_module, "Outbox", small)
    rig = Rig(student, lambda: None)
    for _ in range(1000):
        rig.outbox.put(make_event(data={"error_message": "x" * 1000}), rig.account)
    rig.sender.start()
    wait_until(lambda: rig.outbox.read_notes().get("dropped_told", 0) > 0)
    told = [event["data"] for _, event, _ in rig.outbox.read_last_events(5) if event["event_type"] == "kernel_status"]
    assert told == [{"status": "events_lost", "event_count": rig.outbox.read_notes()["dropped"]}]
    assert rig.count_waiting() - len(told) + rig.outbox.read_notes()["dropped"] == 1000
    rig.close()


def test_nothing_is_sent_before_joining(student: Path, api: FakeApi) -> None:
    file = student / "data" / "outbox.sqlite3"
    sender = Sender(file, MembershipFile())
    sender.start()
    sender.wake()
    time.sleep(0.3)
    sender.stop(1.0)
    assert not file.exists()


def test_what_waits_is_sent_when_the_kernel_ends(student: Path, api: FakeApi, monkeypatch: Any) -> None:
    monkeypatch.setenv("NBPULSE_CAPTURE_URL", api.url)
    monkeypatch.setenv("NBPULSE_CAPTURE_TOKEN", "t")
    rig = Rig(student, lambda: None)
    rig.sender.start()
    for _ in range(150):
        rig.outbox.put(make_event(), rig.account)
    rig.close()
    assert len(api.stored) == 150


class TestBackoff:
    def draw_longest(self, _low: float, high: float) -> float:
        return high

    def test_waits_double_then_stay_at_five_seconds_in_the_first_two_minutes(self) -> None:
        backoff, now, waits = Backoff(self.draw_longest), 0.0, []
        for _ in range(7):
            backoff.fail(now, None)
            waits.append(backoff.get_wait_s(now))
            now += waits[-1]
        assert waits == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]

    def test_a_long_outage_is_asked_about_every_five_minutes_at_most(self) -> None:
        backoff, now = Backoff(self.draw_longest), 0.0
        for _ in range(60):
            backoff.fail(now, None)
            now += backoff.get_wait_s(now)
        assert backoff.get_wait_s(now - 300) == pytest.approx(300)

    def test_jitter_is_full(self) -> None:
        waits = set()
        for _ in range(200):
            backoff = Backoff()
            for _ in range(5):
                backoff.fail(0.0, None)
            waits.add(round(backoff.get_wait_s(0.0), 1))
        assert min(waits) < 1.0
        assert max(waits) > 4.0

    def test_a_new_run_cuts_a_long_wait_short_but_not_the_servers_word(self) -> None:
        backoff = Backoff(self.draw_longest)
        for now in (0.0, 200.0):
            for _ in range(12):
                backoff.fail(now, None)
        assert not backoff.is_over(203.0, in_haste=True)
        assert backoff.is_over(206.0, in_haste=True)
        assert not backoff.is_over(206.0, in_haste=False)
        backoff.fail(300.0, 60.0)
        assert not backoff.is_over(350.0, in_haste=True)
        assert backoff.is_over(360.5, in_haste=False)
