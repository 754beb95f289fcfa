"""One kernel as a Jupyter server watches it: what is seen of it becomes events.

Everything here runs on the server's event loop, one observation after the other; what is to be stored is handed to
the writer. A kernel whose notebook is not known yet (the front end has not said so) tells all the same: its events
are on disk and are held back for some seconds, until the notebook is known or the time is over.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from nbpulse_capture.execution import (
    MESSAGE_CAP_CHARS,
    TRACEBACK_CAP_CHARS,
    clean_text,
    describe_event,
    describe_shown_error,
    format_time,
    make_event_id,
    scrub_text,
)
from nbpulse_capture.notebook import NotebookPlace
from nbpulse_capture.places import Work
from nbpulse_capture.runs import Ended, Ending, KernelRuns, SeenRun
from nbpulse_capture.sitting import Sitting
from nbpulse_capture.websocket import describe_cell

HELD_FOR_S = 10.0
UNKNOWN_NOTEBOOK = "unknown"
ERROR_FIELDS = {"error_name", "error_message", "phase", "traceback", "failing_print"}

Event = dict[str, Any]


class EventStore(Protocol):
    """Where events go; tells nothing back and never waits."""

    def put(self, event: Event, file: str | None, *, held_s: float = 0.0, end: Event | None = None) -> None:
        """Store an event; with a run's start comes what its `end` says otherwise should nobody else tell one."""

    def amend(self, event_id: str, end_id: str, path: str, file: str | None) -> None:
        """The notebook of a held event is known, or will not be."""


class WatchedKernel:
    """What is known of one kernel, and what is told of it."""

    def __init__(self, kernel_id: str, store: EventStore, *, is_new: bool) -> None:
        self.kernel_id = kernel_id
        self.runs = KernelRuns()
        self.is_given_up = False
        self._uuid = uuid.UUID(kernel_id)
        self._store = store
        self._sitting = Sitting(time.time())
        self._work: Work | None = None
        self._last_cell: Event = {}
        self._held: list[tuple[float, str, str]] = []
        self._unsaid_start: str | None = format_time() if is_new else None
        self._is_dead = False
        self._expected_cells: deque[str] = deque(maxlen=1_000)

    # -- where it works --------------------------------------------------------------------------------------

    def look(self, work: Work | None) -> None:
        """What the server says of the kernel's session now; what waited for it is told."""
        self._work = work or self._work
        if self._place is not None and self._unsaid_start is not None:
            self._tell_status("started", occurred_at=self._unsaid_start)
            self._unsaid_start = None
        if self._held and (self._work is not None or self._held[0][0] < time.monotonic()):
            path, file = (self._place.path, self._place.file) if self._place else (UNKNOWN_NOTEBOOK, None)
            for _, event_id, end_id in self._held:
                self._store.amend(event_id, end_id, path, file)
            self._held.clear()

    @property
    def is_placed(self) -> bool:
        """Whether it is known what the kernel is used for."""
        return self._work is not None

    @property
    def _place(self) -> NotebookPlace | None:
        return self._work.place if self._work is not None else None

    def describe_place(self) -> Event:
        """The notebook's part of the envelope, and the learning session."""
        path = self._place.path if self._place else UNKNOWN_NOTEBOOK
        return {"notebook_path": path, "notebook_id": None, "session_id": self._sitting.session_id}

    def describe_work(self) -> Event:
        """The same, with the cell that was run last."""
        return self.describe_place() | self._last_cell

    def is_at(self, path: str) -> bool:
        """Whether this is the kernel of that notebook."""
        return self._place is not None and self._place.path == path

    # -- runs ------------------------------------------------------------------------------------------------

    def note_start(
        self, msg_id: str, at: datetime, content: Mapping[str, Any], *, is_students: bool, source: str = ""
    ) -> None:
        """The kernel begins a run; not counted where no websocket asked for it and no notebook is there (a batch)."""
        if not self.runs.has(msg_id) and self._expected_cells:
            self.runs.submit(msg_id, describe_cell(self._expected_cells.popleft(), {}), {})
        is_batch = not self.runs.has(msg_id) and self._place is None
        is_console = self._work is not None and self._place is None
        if is_batch or is_console or not is_students:
            self.runs.ignore(msg_id)
            return
        count = content.get("execution_count")
        for started in self.runs.begin(msg_id, at, count if isinstance(count, int) else None):
            started.run.source = source
            self._tell_start(started.run, at)

    def expect_cell(self, cell_id: str) -> None:
        """The server is about to run this cell itself; the next run that no websocket asked for is its."""
        self._expected_cells.append(cell_id)

    def forget_cell(self, cell_id: str) -> None:
        """It has run; it is expected no more, if it ever began."""
        if cell_id in self._expected_cells:
            self._expected_cells.remove(cell_id)

    def note_error(self, msg_id: str, content: Mapping[str, Any]) -> None:
        """The kernel shows an error."""
        if self.runs.has(msg_id):
            self.runs.note_error(msg_id, describe_shown_error(content))

    def note_told(self, msg_id: str, content: Mapping[str, Any]) -> None:
        """Our extension inside the kernel says how a run went, or asks for help in the student's name."""
        told = content.get("run")
        if isinstance(told, dict):
            self.runs.note_told(msg_id, read_told(told))
        event = content.get("event")
        if isinstance(event, dict) and event.get("event_type") in {"help_request", "help_cancel"}:
            data = event.get("data") if isinstance(event.get("data"), dict) else {}
            self._put(describe_event(str(event["event_type"]), self.describe_place() | self._last_cell, data or {}))

    def note_end(self, msg_id: str, at: datetime, output_bytes: int, shown: str = "") -> None:
        """The kernel has done with a request."""
        self.runs.note_output(msg_id, output_bytes, shown)
        for started in self.runs.begin_late(msg_id, at):
            self._tell_start(started.run, started.run.started_at or at)
        for ended in self.runs.finish(msg_id, at):
            self._tell_end(ended)

    def _tell_start(self, run: SeenRun, at: datetime) -> None:
        session_id, is_new = self._sitting.keep(time.time(), others_run=self.runs.open_count > 1)
        place = self.describe_place()
        if is_new:
            self._put(describe_event("session_start", place, {}))
        # What the request says of the notebook comes first: a copy of the teacher's notebook knows its own id.
        run.cell = {"cell_id": None, "cell_type": "code"} | run.cell | {"session_id": session_id}
        self._last_cell = run.cell
        common = place | run.cell | {"event_id": self._make_id(run, "start"), "occurred_at": format_time(at)}
        end_data: Event = {"status": "unknown", "has_error": False, "execution_count": run.execution_count} | run.marks
        end = {"event_id": self._make_id(run, "end"), "event_type": "cell_execution", "data": end_data}
        self._put(describe_event("cell_execution_start", common, run.marks), end)

    def _tell_end(self, ended: Ended) -> None:
        run = ended.run
        self._sitting.active_at_s = time.time()
        data: Event = {"status": ended.status, "has_error": ended.status == "error"}
        if ended.duration_ms is not None:
            data["execution_duration_ms"] = ended.duration_ms
        if ended.status == "error":
            data |= {name: value for name, value in (run.error | run.told_by_kernel).items() if name in ERROR_FIELDS}
        if run.execution_count is not None and ended.status != "aborted":
            data["execution_count"] = run.execution_count
        if run.output_bytes:
            data["output_bytes"] = run.output_bytes
        if ended.status in {"ok", "error"}:  # the others end without the kernel's word
            data["told_by"] = "server+kernel" if run.told_by_kernel else "server"
        data |= {name: text for name, text in (("source", run.source), ("output", run.output)) if text}
        ids = {"event_id": self._make_id(run, "end"), "occurred_at": format_time(ended.at)}
        self._put(describe_event("cell_execution", self.describe_place() | run.cell | ids, data | run.marks))

    def _make_id(self, run: SeenRun, phase: str) -> str:
        return make_event_id(self._uuid, run.msg_id, phase)

    # -- the kernel itself -----------------------------------------------------------------------------------

    def note_interrupt(self) -> None:
        """The student asked the kernel to stop."""
        self.runs.note_interrupt()
        self._tell_status("interrupted")

    def note_death(self) -> None:
        """The kernel's process is gone, and nobody asked for that. Told once, whoever notices."""
        if self._is_dead:
            return
        self._is_dead = True
        now, first_id = datetime.now(UTC), self.runs.first_id
        if first_id is not None and not self.runs.is_running:  # what a dying kernel says last does not always arrive
            for started in self.runs.begin(first_id, now, None):
                self._tell_start(started.run, now)
        self._close_runs("kernel_died")
        self._tell_status("died")

    def note_restart(self) -> None:
        """There is a new process: the student asked for it, or Jupyter did after a death."""
        self._close_runs("interrupted")
        self._tell_status("restarted", automatic=self._is_dead)
        self._is_dead = False

    def begin_anew(self) -> None:
        """Another student, another course, or a pause: the next run begins a sitting of its own."""
        self._sitting.session_id = None

    def note_stop(self) -> None:
        """The kernel has been shut down, or the server ends."""
        self._close_runs("interrupted")
        if self._sitting.session_id is not None:
            self._put(describe_event("session_end", self.describe_place(), {}))
            self._sitting.session_id = None
        self._tell_status("stopped")

    def _close_runs(self, ending: Ending) -> None:
        self._expected_cells.clear()
        for ended in self.runs.close(ending, datetime.now(UTC)):
            self._tell_end(ended)

    def _tell_status(self, status: str, *, occurred_at: str | None = None, **data: Any) -> None:
        """A kernel that is no notebook's is not told of."""
        if self._place is None:
            return
        when = {"occurred_at": occurred_at} if occurred_at else {}
        self._put(describe_event("kernel_status", self.describe_place() | when, {"status": status} | data))

    def _put(self, event: Event, end: Event | None = None) -> None:
        if self._work is not None:
            self._store.put(event, self._place.file if self._place else None, end=end)
            return
        self._held.append((time.monotonic() + HELD_FOR_S, event["event_id"], end["event_id"] if end else ""))
        self._store.put(event, None, held_s=HELD_FOR_S + 1.0, end=end)

    # -- presence --------------------------------------------------------------------------------------------

    def judge_presence(self, now_s: float) -> tuple[str, float] | None:
        """The state, and when the student last did something here; None where nobody is."""
        if self._place is None and self._sitting.session_id is None:
            return None
        state = self._sitting.judge_presence(now_s, is_running=self.runs.is_running)
        return (state, self._sitting.active_at_s) if state else None


def read_told(told: Mapping[str, Any]) -> Event:
    """What the kernel's extension says of a run, held to the wire's names and limits: a kernel may say anything."""
    read: Event = {}
    if isinstance(duration_ms := told.get("execution_duration_ms"), int | float) and 0 <= duration_ms < 7 * 86_400_000:
        read["execution_duration_ms"] = duration_ms
    if type(count := told.get("execution_count")) is int and 0 <= count < 2**31:
        read["execution_count"] = count
    for name, cap_chars in (("status", 20), ("phase", 20), ("error_name", 200), ("failing_print", 16)):
        if isinstance(told.get(name), str):
            read[name] = clean_text(told[name], cap_chars)
    for name, cap_chars in (("error_message", MESSAGE_CAP_CHARS), ("traceback", TRACEBACK_CAP_CHARS)):
        if isinstance(told.get(name), str):
            read[name] = scrub_text(told[name], cap_chars)
    return read
