from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from nbpulse_capture.notebook import NotebookPlace
from nbpulse_capture.places import Work
from nbpulse_capture.watched import HELD_FOR_S, WatchedKernel, read_told

NOW = datetime(2026, 11, 25, 1, 2, 3, tzinfo=UTC)


class Store:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.held: list[str] = []
        self.amended: dict[str, str] = {}

    def put(self, event: dict[str, Any], file: str | None, *, held_s: float = 0.0, end: Any = None) -> None:
        self.events.append(event)
        if held_s:
            self.held.append(event["event_id"])

    def amend(self, event_id: str, end_id: str, path: str, file: str | None) -> None:
        self.amended[event_id] = path

    def list_ends(self) -> list[tuple[str | None, str]]:
        return [(e["cell_id"], e["data"]["status"]) for e in self.events if e["event_type"] == "cell_execution"]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def kernel(store: Store) -> WatchedKernel:
    found = WatchedKernel(str(uuid.uuid4()), store, is_new=True)
    found.look(Work(NotebookPlace("week1.ipynb", None)))
    return found


def test_a_kernel_that_dies_before_its_last_words_arrive_still_died_of_what_was_asked_first(
    kernel: WatchedKernel, store: Store
) -> None:
    kernel.runs.submit("m1", {"cell_id": "fatal"}, {})
    kernel.runs.submit("m2", {"cell_id": "queued"}, {})
    kernel.note_death()
    kernel.note_death()
    assert store.list_ends() == [("fatal", "kernel_died"), ("queued", "aborted")]
    assert [e["cell_id"] for e in store.events if e["event_type"] == "cell_execution_start"] == ["fatal"]
    assert [e["data"]["status"] for e in store.events if e["event_type"] == "kernel_status"] == ["started", "died"]


def test_a_run_whose_beginning_was_published_before_anybody_listened_is_told_by_its_end(
    kernel: WatchedKernel, store: Store
) -> None:
    kernel.runs.submit("m1", {"cell_id": "first"}, {})
    kernel.runs.submit("m2", {"cell_id": "shown"}, {})
    kernel.runs.submit("m3", {"cell_id": "never"}, {})
    kernel.note_told("m1", {"run": {"status": "ok", "execution_duration_ms": 1_500, "execution_count": 1}})
    for msg_id, output_bytes in (("m1", 0), ("m2", 12), ("m3", 0)):
        kernel.note_end(msg_id, NOW, output_bytes)
    assert store.list_ends() == [("first", "ok"), ("shown", "ok"), ("never", "aborted")]
    starts = {e["cell_id"]: e["occurred_at"] for e in store.events if e["event_type"] == "cell_execution_start"}
    assert starts == {"first": "2026-11-25T01:02:01.500Z", "shown": "2026-11-25T01:02:03.000Z"}
    (first,) = (e for e in store.events if e["event_type"] == "cell_execution" and e["cell_id"] == "first")
    assert (first["data"]["execution_count"], first["data"]["execution_duration_ms"]) == (1, 1_500.0)


def test_cells_that_the_server_runs_get_the_ids_it_told_in_order(kernel: WatchedKernel, store: Store) -> None:
    for cell_id, msg_id in (("a", "m1"), ("b", "m2")):
        kernel.expect_cell(cell_id)
        kernel.note_start(msg_id, NOW, {"execution_count": 1}, is_students=True)
        kernel.note_end(msg_id, NOW, 0)
        kernel.forget_cell(cell_id)
    kernel.note_start("m3", NOW, {}, is_students=True)
    kernel.note_end("m3", NOW, 0)
    assert store.list_ends() == [("a", "ok"), ("b", "ok"), (None, "ok")]


def test_events_of_an_unknown_notebook_are_held_until_it_is_known_or_the_time_is_over(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = WatchedKernel(str(uuid.uuid4()), store, is_new=False)
    now_s = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    kernel.runs.submit("m1", {"cell_id": "a"}, {})
    kernel.note_start("m1", NOW, {}, is_students=True)
    kernel.look(None)
    assert len(store.held) == len(store.events) == 2, "the session's start and the run's"
    assert store.amended == {}
    now_s[0] += HELD_FOR_S + 1
    kernel.look(None)
    assert store.amended == dict.fromkeys(store.held, "unknown")
    kernel.note_end("m1", NOW, 0)
    kernel.look(Work(NotebookPlace("week1.ipynb", None)))
    assert store.amended[store.held[2]] == "week1.ipynb"


def test_a_batch_run_and_a_console_are_not_told(store: Store) -> None:
    batch = WatchedKernel(str(uuid.uuid4()), store, is_new=True)
    batch.note_start("m1", NOW, {}, is_students=True)
    console = WatchedKernel(str(uuid.uuid4()), store, is_new=True)
    console.look(Work(None))
    console.runs.submit("m2", {"cell_id": "x"}, {})
    console.note_start("m2", NOW, {}, is_students=True)
    for kernel in (batch, console):
        kernel.note_interrupt()
        kernel.note_stop()
    assert store.events == []


@pytest.mark.parametrize("told", [{"execution_duration_ms": "x"}, {"status": 3}, {"traceback": ["a"]}, {"extra": {}}])
def test_nonsense_from_a_kernel_is_left_out(told: dict[str, Any]) -> None:
    assert read_told(told) == {}


def test_what_a_kernel_says_is_masked_and_bounded_again() -> None:
    read = read_told({"error_message": "password=hunter2 " + "x" * 9000, "execution_duration_ms": 1.5})
    assert read["error_message"].startswith("password=[masked] x")
    assert len(read["error_message"]) == 2000
    assert read["execution_duration_ms"] == 1.5
