"""When to try again after the class's server could not be reached."""

from __future__ import annotations

import random
from collections.abc import Callable

BACKOFF_FIRST_S, BACKOFF_CAP_S, BACKOFF_CAP_EARLY_S, EARLY_S = 0.5, 300.0, 5.0, 120.0


class Backoff:
    """Full jitter, doubling from 0.5 s to 5 s in the first two minutes of an outage, then to 5 min."""

    def __init__(self, draw: Callable[[float, float], float] = random.uniform) -> None:
        self._draw = draw
        self.failed_count = 0
        self._since = self._last_at = self._until = float("-inf")
        self._told_to_wait = False

    def succeed(self) -> None:
        """Forget the outage."""
        self.failed_count, self._until, self._told_to_wait = 0, float("-inf"), False

    def fail(self, now: float, retry_after_s: float | None) -> None:
        """Wait as long as the server says, or a random part of the doubled time."""
        if self.failed_count == 0:
            self._since = now
        cap_s = BACKOFF_CAP_EARLY_S if now - self._since < EARLY_S else BACKOFF_CAP_S
        longest_s = min(cap_s, BACKOFF_FIRST_S * 2 ** min(self.failed_count, 20))
        wait_s = retry_after_s if retry_after_s is not None else max(0.2, self._draw(0.0, longest_s))
        self.failed_count += 1
        self._told_to_wait = retry_after_s is not None
        self._last_at, self._until = now, now + min(wait_s, BACKOFF_CAP_S)

    def get_wait_s(self, now: float) -> float:
        """Seconds until the next try; 0 when nothing has failed."""
        return max(0.05, self._until - now) if self.failed_count else 0.0

    def is_over(self, now: float, *, in_haste: bool) -> bool:
        """A new run may cut a long wait short (the lid was opened), but not what the server asked."""
        if now >= self._until:
            return True
        return in_haste and not self._told_to_wait and now - self._last_at > BACKOFF_CAP_EARLY_S
