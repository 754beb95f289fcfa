"""How a worker waits for what is away, and when it stops because too much fails."""

from __future__ import annotations

import asyncio
from collections import deque

import structlog

from nbpulse.errors import NbpulseError, Unavailable

_log = structlog.get_logger(__name__)


class Backoff:
    """Waits 0.1 s to 2 s between tries at something that is away; says so once, and once that it is back."""

    def __init__(self, part: str) -> None:
        self._part = part
        self._delay_s = 0.0

    def reset(self) -> None:
        """It answered."""
        if self._delay_s:
            _log.info("worker.back", part=self._part)
            self._delay_s = 0.0

    async def wait(self, error: Unavailable, stop: asyncio.Event) -> None:
        """It did not: wait before the next try, not longer than until `stop`."""
        if not self._delay_s:
            cause = error.__cause__ or error
            detail = f"{type(cause).__name__}: {cause}"[:200]
            _log.warning("worker.waiting", part=self._part, code=error.code, detail=detail)
        self._delay_s = min(2.0, self._delay_s * 2 or 0.1)
        await sleep_until(self._delay_s, stop)


class Breaker:
    """Opens when so many entries fail that the fault must be ours: 50 in a row, or over 10 % of the last 100..1,000."""

    def __init__(self) -> None:
        self._failures: deque[bool] = deque(maxlen=1_000)
        self._in_row = 0
        self.is_open = False

    def note(self, count: int, *, failed: bool) -> None:
        """`count` entries ended well, or did not."""
        self._failures.extend([failed] * min(count, 1_000))
        self._in_row = self._in_row + count if failed else 0
        seen, failures = len(self._failures), sum(self._failures)
        if not self.is_open and (self._in_row >= 50 or (seen >= 100 and failures > seen * 0.1)):
            self.is_open = True
            error = NbpulseError("NB-4003", failed=failures, seen=seen)
            _log.error("worker.breaker_open", code=error.code, title=error.title("en"), todo=error.todo("en"))


async def sleep_until(delay_s: float, stop: asyncio.Event) -> bool:
    """Sleep, but not longer than until `stop`; whether it is set."""
    try:
        async with asyncio.timeout(delay_s):
            await stop.wait()
    except TimeoutError:
        return False
    return True
