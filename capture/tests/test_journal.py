"""What lies between a kernel and the outbox, and what is left of it when the kernel is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbpulse_capture import journal as journal_module
from nbpulse_capture.faults import FaultLog
from nbpulse_capture.journal import NAMES, YOUNG_S, Journal, adopt_journals, erase_account
from nbpulse_capture.membership import get_outbox_file
from nbpulse_capture.outbox import Outbox

from .conftest import wait_until

DIE = """
import os, signal, sys
from nbpulse_capture.faults import FaultLog
from nbpulse_capture.journal import Journal
journal = Journal(FaultLog())
for event_id in sys.argv[1:]:
    journal.put({"event_id": event_id, "data": {"名": "花子"}}, "me", None)
print("put", flush=True)
sys.stdin.read()
"""


def make_event() -> dict[str, Any]:
    return {"event_id": str(uuid.uuid4()), "data": {}}


def read_ids(outbox: Outbox) -> list[str]:
    return [event["event_id"] for _, event, _ in outbox.read_last_events(100)]


@pytest.fixture
def outbox(student: Path) -> Iterator[Outbox]:
    opened = Outbox(get_outbox_file())
    yield opened
    opened.close()


@pytest.fixture
def journal(student: Path) -> Iterator[Journal]:
    opened = Journal(FaultLog())
    yield opened
    opened.close()


@pytest.fixture
def another(student: Path) -> Iterator[Any]:
    """Starts a process that puts events of these ids into a journal of its own and lives on."""
    started: list[subprocess.Popen[str]] = []

    def start(*event_ids: str) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(process := subprocess.Popen([sys.executable, "-c", DIE, *event_ids], **pipes))
        assert process.stdout is not None
        assert process.stdout.readline() == "put\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_what_is_put_is_on_disk_at_once_and_goes_when_it_is_in_the_outbox(journal: Journal, outbox: Outbox) -> None:
    events = [make_event() for _ in range(3)]
    for event in events:
        journal.put(event, "me", "/home/me/week1.ipynb")
    content = journal.path.read_text()
    assert all(event["event_id"] in content for event in events)
    assert journal.path.stat().st_mode & 0o077 == 0
    journal.store(outbox, "me")
    assert read_ids(outbox) == [event["event_id"] for event in events]
    assert journal.path.read_bytes() == b""
    journal.close()
    assert not journal.path.exists()


def test_nothing_of_who_has_left_reaches_the_outbox(journal: Journal, outbox: Outbox) -> None:
    journal.put(make_event(), "who has left", None)
    journal.put(mine := make_event(), "me", None)
    journal.store(outbox, "me")
    assert read_ids(outbox) == [mine["event_id"]]
    journal.put(make_event(), "me", None)
    journal.discard()
    assert journal.path.read_bytes() == b""
    journal.store(outbox, "me")
    assert read_ids(outbox) == [mine["event_id"]]


def test_an_outbox_that_cannot_be_written_leaves_all_where_it_was(journal: Journal, outbox: Outbox) -> None:
    first, second = make_event(), make_event()
    journal.put(first, "me", None)
    outbox.close()
    with pytest.raises(Exception, match="closed"):
        journal.store(outbox, "me")
    journal.put(second, "me", None)
    opened = Outbox(get_outbox_file())
    journal.store(opened, "me")
    assert read_ids(opened) == [first["event_id"], second["event_id"]]
    opened.close()


def test_where_no_file_can_be_written_memory_holds_the_newest_and_the_rest_is_counted(
    student: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MEMORY_LIMIT", 2)
    faults = FaultLog()
    journal = Journal(faults)
    journal.path.mkdir()
    events = [make_event() for _ in range(5)]
    for event in events:
        journal.put(event, "me", None)
    assert (journal.take_lost_count(), journal.take_lost_count(), faults.total) == (3, 0, 5)
    journal.store(outbox, "me")
    assert read_ids(outbox) == [event["event_id"] for event in events[3:]]
    journal.path.rmdir()


def test_what_a_killed_kernel_left_is_taken_over_once_and_a_living_ones_is_not(
    journal: Journal, outbox: Outbox, another: Any
) -> None:
    ids = [str(uuid.uuid4()) for _ in range(3)]
    outbox.put({"event_id": ids[0], "data": {}}, "me")  # it was killed between storing and forgetting
    process = another(*ids)
    adopt_journals(outbox, but_not=journal)
    assert read_ids(outbox) == ids[:1]
    process.kill()
    process.wait()
    wait_until(lambda: adopt_journals(outbox, but_not=journal) is None and read_ids(outbox) == ids)
    assert list(get_outbox_file().parent.glob(NAMES)) == []


def test_a_line_that_was_cut_off_harms_no_other(journal: Journal, outbox: Outbox) -> None:
    whole, after = make_event(), make_event()
    left = get_outbox_file().parent / "journal-1-dead"
    with left.open("w") as file:
        for event in (whole, after):
            file.write(f'\n[{{"event_id": "{event["event_id"]}", "data": {{}}}}, "me", null]\n[{{"event_id": "cut o')
    adopt_journals(outbox)
    assert read_ids(outbox) == [whole["event_id"], after["event_id"]]


def test_an_empty_file_is_its_owners_while_it_is_young(outbox: Outbox) -> None:
    left = get_outbox_file().parent / "journal-1-new"
    left.touch()
    adopt_journals(outbox)
    assert left.exists(), "its owner may be about to lock it"
    os.utime(left, (time.time() - YOUNG_S - 1,) * 2)
    adopt_journals(outbox)
    assert not left.exists()


def test_who_leaves_leaves_nothing_in_what_a_killed_kernel_has_left(outbox: Outbox, another: Any) -> None:
    process = another(str(uuid.uuid4()))
    process.kill()
    process.wait()
    wait_until(lambda: erase_account(outbox, "me") == 1)
    assert read_ids(outbox) == []
    assert not any(
        "花子".encode() in path.read_bytes() for path in get_outbox_file().parent.iterdir() if path.is_file()
    )
