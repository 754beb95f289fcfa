from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from nbpulse_capture.openruns import amend, end_forgotten_runs, keep_open
from nbpulse_capture.outbox import LEASE_S, SCHEMA, Outbox
from nbpulse_capture.rows import Verdict


def make_event(**more: Any) -> dict[str, Any]:
    return {"event_id": str(uuid.uuid4()), "event_type": "cell_execution", "data": {}} | more


@pytest.fixture
def outbox(tmp_path: Path) -> Any:
    box = Outbox(tmp_path / "box" / "outbox.sqlite3")
    yield box
    box.close()


def test_events_come_out_oldest_first_with_a_gapless_sequence(outbox: Outbox) -> None:
    events = [make_event() for _ in range(5)]
    for event in events:
        outbox.put(event, "a")
    rows = outbox.take_batch("a", 3)
    assert [row.event["event_id"] for row in rows] == [e["event_id"] for e in events[:3]]
    assert [row.event["sequence"] for row in rows] == [1, 2, 3]


def test_a_leased_event_is_not_handed_out_again_until_the_lease_ends(outbox: Outbox) -> None:
    outbox.put(make_event(), "a")
    assert len(outbox.take_batch("a", 10, now=1000.0)) == 1
    assert outbox.take_batch("a", 10, now=1000.0 + LEASE_S - 1) == []
    assert len(outbox.take_batch("a", 10, now=1000.0 + LEASE_S + 1)) == 1


def test_released_events_are_handed_out_again_with_the_same_id_and_sequence(outbox: Outbox) -> None:
    outbox.put(make_event(), "a")
    first = outbox.take_batch("a", 10)
    outbox.release(first)
    assert outbox.take_batch("a", 10) == first


def test_settled_events_are_done_and_rejected_ones_are_set_aside_with_the_reason(outbox: Outbox) -> None:
    events = [make_event() for _ in range(4)]
    for event in events:
        outbox.put(event, "a")
    rows = outbox.take_batch("a", 10)
    ids = [e["event_id"] for e in events]
    verdicts = [
        Verdict(ids[0], "accepted"),
        Verdict(ids[1], "duplicate"),
        Verdict(ids[2], "rejected", "NB-1004 bad cell_id"),
    ]
    assert outbox.settle(rows, verdicts) == rows[3:], "nothing was said of the last one"
    assert outbox.count_events("a") == {"waiting": 1, "set_aside": 1}
    assert [(s, r) for s, _, r in outbox.read_last_events(10)] == [
        ("sent", None),
        ("sent", None),
        ("set_aside", "NB-1004 bad cell_id"),
        ("waiting", None),
    ]


def test_another_students_events_never_go_out_with_this_token(outbox: Outbox) -> None:
    outbox.put(make_event(), "alice")
    assert outbox.take_batch("bob", 10) == []
    assert outbox.erase_account("alice") == 1


def test_the_sequence_goes_on_after_everything_has_been_erased(outbox: Outbox) -> None:
    outbox.put(make_event(), "a")
    outbox.erase_account("a")
    outbox.put(make_event(), "a")
    assert outbox.take_batch("a", 1)[0].sequence == 2


def test_only_the_last_hundred_sent_events_are_kept(outbox: Outbox) -> None:
    for _ in range(250):
        outbox.put(make_event(), "a")
    rows = outbox.take_batch("a", 500)
    outbox.settle(rows, [Verdict(row.event["event_id"], "accepted") for row in rows])
    assert len(outbox.read_last_events(1000)) == 100


def test_beyond_the_size_cap_the_oldest_are_dropped_and_counted(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite3", size_cap_bytes=2_000_000)
    for _ in range(1700):
        outbox.put(make_event(data={"error_message": "x" * 1000}), "a")
    dropped_count = outbox.trim()
    assert dropped_count >= 500
    assert outbox.read_notes()["dropped"] == dropped_count
    rows = outbox.take_batch("a", 5000)
    assert [row.sequence for row in rows] == list(range(dropped_count + 1, 1701)), "the newest stay"
    outbox.close()


def test_a_full_outbox_raises_and_takes_events_again_after_a_trim(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite3", size_cap_bytes=1_000_000)

    def fill() -> None:
        for _ in range(3000):
            outbox.put(make_event(data={"error_message": "x" * 1000}), "a")

    with pytest.raises(sqlite3.OperationalError, match="full"):
        fill()
    outbox.trim()
    outbox.put(make_event(), "a")
    outbox.close()


def test_files_can_be_read_by_their_owner_only(outbox: Outbox, tmp_path: Path) -> None:
    outbox.put(make_event(), "a")
    assert stat.S_IMODE((tmp_path / "box").stat().st_mode) == 0o700
    modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in (tmp_path / "box").iterdir()}
    assert set(modes.values()) == {0o600}, modes
    assert len(modes) == 3


def test_a_damaged_file_is_kept_aside_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite3"
    path.write_bytes(b"this is not a database" * 100)
    outbox = Outbox(path)
    outbox.put(make_event(), "a")
    assert outbox.read_notes()["damaged_files"] == 1
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1
    outbox.close()


def test_what_was_put_before_kill_9_is_there_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite3"
    program = (
        "import os, signal, sys, uuid\nfrom pathlib import Path\nfrom nbpulse_capture.outbox import Outbox\n"
        "box = Outbox(Path(sys.argv[1]))\n"
        "for n in range(50):\n    box.put({'event_id': str(uuid.uuid4()), 'n': n}, 'a')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(path)], timeout=30, check=False)
    assert ended.returncode == -9
    outbox = Outbox(path)
    assert [row.event["n"] for row in outbox.take_batch("a", 100)] == list(range(50))
    outbox.close()


def test_eight_writers_at_once_lose_nothing_and_share_one_sequence(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite3"
    Outbox(path).close()

    def write() -> None:
        box = Outbox(path)
        for _ in range(50):
            box.put(make_event(), "a")
        box.close()

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    outbox = Outbox(path)
    assert [row.sequence for row in outbox.take_batch("a", 1000)] == list(range(1, 401))
    outbox.close()


def test_two_senders_never_hold_the_same_event(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite3"
    box = Outbox(path)
    for _ in range(200):
        box.put(make_event(), "a")
    taken: list[list[int]] = [[], []]

    def take(which: int) -> None:
        mine = Outbox(path)
        while rows := mine.take_batch("a", 7):
            taken[which] += [row.sequence for row in rows]
        mine.close()

    threads = [threading.Thread(target=take, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    box.close()
    assert sorted(taken[0] + taken[1]) == list(range(1, 201))


def test_what_one_process_writes_another_sees_whoever_else_opens_and_closes_the_file(tmp_path: Path) -> None:
    """Closing any descriptor of a file drops a process's POSIX locks on it; a stranger then deleted the log in use."""
    file = tmp_path / "box" / "outbox.sqlite3"
    first, second = Outbox(file), Outbox(file)  # as a kernel's callbacks and its sender
    program = (
        "import sys, pathlib; from nbpulse_capture.outbox import Outbox;"
        "box = Outbox(pathlib.Path(sys.argv[1])); print(len(box.read_last_events(99))); box.close()"
    )
    for count in (1, 2, 3):
        first.put(make_event(), "a")
        seen = subprocess.run([sys.executable, "-c", program, str(file)], check=True, capture_output=True, text=True)
        assert int(seen.stdout) == count
    first.close()
    second.close()


def test_an_event_that_two_observers_tell_is_stored_once(outbox: Outbox) -> None:
    outbox.put(make_event(event_id="e1", by="server"), "a")
    outbox.put(make_event(event_id="e1", by="kernel"), "a")
    outbox.put(make_event(event_id="e2"), "a")
    assert [(row.sequence, row.event.get("by")) for row in outbox.take_batch("a", 10)] == [(1, "server"), (2, None)]


def test_a_held_event_waits_until_it_is_amended(outbox: Outbox) -> None:
    outbox.put(make_event(event_id="e1", notebook_path="unknown"), "a", held_until=2_000_000_000.0)
    assert outbox.take_batch("a", 10, now=1_999_999_999.0) == []
    amend(outbox, "e1", "", {"notebook_path": "授業/week1.ipynb"}, "/f")
    [row] = outbox.take_batch("a", 10, now=1_999_999_999.0)
    assert (row.event["notebook_path"], row.notebook_file) == ("授業/week1.ipynb", "/f")


def test_a_run_left_open_by_a_dead_server_ends_once_and_only_where_nobody_ended_it(outbox: Outbox) -> None:
    ends = {n: make_event(event_id=f"end-{n}", occurred_at="2026-11-25T01:00:00.000Z") for n in (1, 2, 3)}
    for n, owner in ((1, "dead"), (2, "dead"), (3, "alive")):
        keep_open(outbox, ends[n], "a", None, owner)
    outbox.put(make_event(event_id="end-1", by="kernel"), "a")
    find_end = {"dead": "2026-11-25T02:00:00.000Z", "alive": None}.get
    assert [end_forgotten_runs(outbox, find_end) for _ in range(2)] == [1, 0]
    told = {row.event["event_id"]: row.event for row in outbox.take_batch("a", 10)}
    assert set(told) == {"end-1", "end-2"}
    assert told["end-1"]["by"] == "kernel"
    assert told["end-2"]["occurred_at"] == "2026-11-25T02:00:00.000Z"
    keep_open(outbox, ends[1], "a", None, "dead")
    assert end_forgotten_runs(outbox, find_end) == 0, "the end was there before the start was told"


def test_of_a_run_that_begins_and_ends_in_one_transaction_nothing_is_kept_open(outbox: Outbox) -> None:
    starts, ends = ([make_event(event_id=f"{phase}-{n}") for n in range(2)] for phase in ("start", "end"))
    with outbox.together():
        for start, end in zip(starts, ends, strict=True):
            outbox.put(start, "a")
            keep_open(outbox, end, "a", None, "owner")
            amend(outbox, start["event_id"], end["event_id"], {"notebook_path": "week1.ipynb"}, "/f")
        outbox.put(ends[0], "a")
    kept = outbox.execute("SELECT end_id, payload ->> '$.notebook_path', notebook_file FROM open_runs")
    assert kept == [("end-1", "week1.ipynb", "/f")], "what was amended meanwhile is kept as amended"


def test_what_is_put_for_its_own_sender_is_nobody_elses_until_the_lease_ends(outbox: Outbox) -> None:
    event = make_event()
    leased = outbox.put_leased(event, "a")
    assert leased is not None
    assert outbox.put_leased(event, "a") is None, "it is there already, and somebody else's to send"
    assert outbox.take_batch("a", 10, now=leased.until - 1) == []
    assert outbox.take_batch("a", 10, now=leased.until + 1) == [leased.make_row()]
    outbox.settle([leased.make_row()], [Verdict(event["event_id"], "accepted")])
    assert outbox.count_events("a")["waiting"] == 0
    assert [(state, told) for state, told, _ in outbox.read_last_events(10)] == [("sent", event | {"sequence": 1})]


def test_an_outbox_of_the_first_version_is_taken_over_with_its_events(tmp_path: Path) -> None:
    file = tmp_path / "outbox.sqlite3"
    old = sqlite3.connect(file)
    old.executescript(SCHEMA + "PRAGMA user_version = 1;")
    rows = [("e1", "a"), ("e1", "a"), ("", ""), ("e2", "a")]
    old.executemany("INSERT INTO events (event_id, account, payload) VALUES (?, ?, '{}')", rows)
    old.commit()
    old.close()
    outbox = Outbox(file)
    assert [row.sequence for row in outbox.take_batch("a", 10)] == [1, 4]
    outbox.close()
