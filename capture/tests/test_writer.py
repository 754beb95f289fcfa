from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from nbpulse_capture.faults import FaultLog
from nbpulse_capture.membership import get_outbox_file
from nbpulse_capture.outbox import Outbox
from nbpulse_capture.writer import Writer

from .conftest import wait_until


@pytest.fixture
def faults() -> FaultLog:
    return FaultLog()


@pytest.fixture
def writer(student: Path, faults: FaultLog) -> Iterator[Writer]:
    found = Writer(faults, lambda _: None)
    found.start()
    yield found
    found.stop(5)


def put(name: str, outbox: Outbox) -> None:
    outbox.put({"event_id": name, "event_type": "x", "data": {}}, "a")


def read_names() -> list[str]:
    if not get_outbox_file().exists():
        return []
    outbox = Outbox(get_outbox_file())
    try:
        return [event["event_id"] for _, event, _ in outbox.read_last_events(100)]
    finally:
        outbox.close()


def test_what_is_handed_over_is_written_in_that_order(writer: Writer) -> None:
    names = [f"e{n}" for n in range(50)]
    for name in names:
        writer.hand_over(partial(put, name))
    wait_until(lambda: len(read_names()) == 50)
    assert read_names() == names


def test_a_locked_file_is_waited_for_and_nothing_is_lost_or_doubled(writer: Writer, faults: FaultLog) -> None:
    writer.hand_over(partial(put, "before"))
    wait_until(lambda: read_names() == ["before"])
    holder = sqlite3.connect(get_outbox_file(), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    for n in range(5):
        writer.hand_over(partial(put, f"e{n}"))
    wait_until(lambda: faults.total > 0)
    holder.execute("ROLLBACK")
    holder.close()
    wait_until(lambda: len(read_names()) == 6)
    assert read_names() == ["before", *(f"e{n}" for n in range(5))]


def test_what_can_never_be_written_does_not_stand_in_the_way_and_is_counted(writer: Writer, faults: FaultLog) -> None:
    def fail(_: Outbox) -> None:
        raise TypeError("injected")

    for work in (partial(put, "first"), fail, partial(put, "last")):
        writer.hand_over(work)
    wait_until(lambda: read_names() == ["first", "last"])
    outbox = Outbox(get_outbox_file())
    wait_until(lambda: bool(outbox.read_notes().get("fault_count")))
    notes = outbox.read_notes()
    outbox.close()
    assert (notes["dropped"], notes["fault_count"]) == (1, 1)
    assert notes["last_faults"] == ["outbox: TypeError: injected"]


def test_what_waits_is_written_before_the_end(student: Path, faults: FaultLog) -> None:
    writer = Writer(faults, lambda _: None)
    writer.start()
    writer.hand_over(partial(put, "last"))
    writer.stop(5)
    assert read_names() == ["last"]
    assert not writer.is_alive()
