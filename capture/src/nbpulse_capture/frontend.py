"""What the front end tells, in the observer's words: the desk's recorder in a Jupyter server.

Called from the threads of the desk; what it reads of the observer is only ever replaced, never half changed.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from nbpulse_capture.execution import describe_event

# A front end speaks every 20 s while it lives; after three of these in vain it is gone.
PRESENCE_GOOD_FOR_S = 60.0

Event = dict[str, Any]


class Watcher(Protocol):
    """The observer, as far as it is needed here."""

    def describe_work(self, path: str) -> Event:
        """The learning session and the last cell of the kernel at that notebook; empty where there is none."""

    def put(self, event: Event, file: str | None) -> None:
        """Store an event, if somebody has joined."""

    def wake(self) -> None:
        """There is something to send."""

    def give_up(self, kernel_id: str, error: BaseException) -> None:
        """A fault of ours, at that kernel ("": at none)."""


class FrontEndError(Exception):
    """Something of ours broke in the student's browser; only its words arrive here."""


class FrontEnd:
    """One per Jupyter server; `desk.Recorder`."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._presence: tuple[float, Event, Event] = (float("-inf"), {}, {})

    def put(self, event_type: str, common: Event, data: Event) -> str:
        """Store an event; what the front end does not know of its place, the kernel there does."""
        work = self._watcher.describe_work(str(common.get("notebook_path")))
        known = {name: value for name, value in common.items() if value is not None}
        event = describe_event(event_type, work | known, data)
        self._watcher.put(event, None)
        return str(event["event_id"])

    def note_presence(self, common: Event, data: Event) -> None:
        """Sent at once: it means "now"."""
        self._presence = (time.monotonic(), common, data)
        self._watcher.wake()

    def note_fault(self, words: str) -> None:
        """Counted with the other faults."""
        self._watcher.give_up("", FrontEndError(words))

    def describe_presence(self, state_of_kernels: str | None) -> Event | None:
        """
        What the front end last said, where it still speaks; a run is a sign of life that it may not have seen.

        None: nobody knows better than the kernels.
        """
        said_at, common, data = self._presence
        if time.monotonic() - said_at > PRESENCE_GOOD_FOR_S:
            return None
        if data.get("state") == "idle" and state_of_kernels == "active":
            data = data | {"state": "active"}
        session_id = self._watcher.describe_work(str(common.get("notebook_path"))).get("session_id")
        return describe_event("presence", common | {"session_id": session_id}, data)
