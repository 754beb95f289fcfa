"""The thread that brings a Jupyter server's events to disk, so that its event loop never waits for a file.

Promises: what is handed over is written in that order, within milliseconds; what the disk will not have now
(locked, full, gone) is kept in memory up to a limit and tried again every second, what is beyond that is dropped,
oldest first, and counted. Nothing is ever raised to whoever hands over.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Literal

from nbpulse_capture.faults import FaultLog
from nbpulse_capture.membership import get_outbox_file
from nbpulse_capture.outbox import Outbox
from nbpulse_capture.rows import Leased

RETRY_S = 1.0
WAITING_LIMIT = 5_000
LOST: Final = "lost"

Work = Callable[[Outbox], Leased | None]


class Writer(threading.Thread):
    """One per server process; `after_writing` gets what may be sent, once it is on disk."""

    def __init__(self, faults: FaultLog, after_writing: Callable[[list[Leased]], None]) -> None:
        super().__init__(name="nbpulse-capture-disk", daemon=True)
        self._faults = faults
        self._after_writing = after_writing
        self._handed_over: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._waiting: deque[Work] = deque()
        self._outbox: Outbox | None = None
        self._dropped_count = 0
        self._noted_faults = 0

    def hand_over(self, work: Work) -> None:
        """To be done with the outbox, as soon as may be; takes a microsecond."""
        self._handed_over.put(work)

    def stop(self, within_s: float) -> None:
        """Write what there is and end."""
        self._handed_over.put(None)
        if self.is_alive():
            self.join(within_s)

    def run(self) -> None:
        """Until stop()."""
        is_open = True
        while is_open:
            is_open = self._collect()
            if self._waiting:
                self._write()
        if self._outbox is not None:
            self._outbox.close()

    def _collect(self) -> bool:
        """Wait for work and take all there is; False at the end."""
        try:
            work = self._handed_over.get(timeout=RETRY_S if self._waiting else None)
            while work is not None:
                self._waiting.append(work)
                work = self._handed_over.get_nowait()
        except queue.Empty:
            return True
        finally:
            while len(self._waiting) > WAITING_LIMIT:
                self._waiting.popleft()
                self._dropped_count += 1
        return False

    def _write(self) -> None:
        """Do what waits; where the disk will not, it goes on waiting; what can never be done is counted as lost."""
        written: list[Leased] = []
        try:
            if self._outbox is None:
                self._outbox = Outbox(get_outbox_file(), busy_wait_s=1.0)
            batch = list(self._waiting)
            with self._outbox.together():
                done = [self._do(work, self._outbox) for work in batch]
                lost_count = self._dropped_count + done.count(LOST)
                fault_count = self._faults.total
                self._note_troubles(self._outbox, lost_count, fault_count - self._noted_faults)
            # Only now: a note whose transaction fails, as on a full disk, was not made.
            self._dropped_count, self._noted_faults = 0, fault_count
            for _ in batch:
                self._waiting.popleft()
            written = [one for one in done if isinstance(one, Leased)]
        except Exception as error:  # noqa: BLE001 - this thread must go on: the events wait in memory
            self._faults.note(error, "outbox")
        self._after_writing(written)

    def _do(self, work: Work, outbox: Outbox) -> Leased | Literal["lost"] | None:
        """LOST for what can never be done."""
        try:
            return work(outbox)
        except (OSError, sqlite3.OperationalError):
            raise
        except Exception as error:  # noqa: BLE001 - it must not stand in the way of those behind it
            self._faults.note(error, "outbox")
            return LOST

    def _note_troubles(self, outbox: Outbox, lost_count: int, fault_count: int) -> None:
        """Leave our own losses and faults where the sender and `nbpulse-capture status` find them."""
        if lost_count:
            outbox.add_to_count("dropped", lost_count)
        if fault_count:
            outbox.add_to_count("fault_count", fault_count)
            outbox.write_notes(last_faults=list(self._faults))
