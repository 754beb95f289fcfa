"""Our own faults: counted, the last few kept in words for `nbpulse-capture status`, never shown in a notebook."""

from __future__ import annotations

import threading
from collections import deque


class FaultLog(deque[str]):
    """The last five, and how many there were. Any thread may add."""

    def __init__(self) -> None:
        super().__init__(maxlen=5)
        self.total = 0
        self._guard = threading.Lock()

    def note(self, error: BaseException | str, where: str = "") -> None:
        """One more."""
        words = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        with self._guard:
            self.total += 1
            self.append(f"{where + ': ' if where else ''}{words}"[:300])
