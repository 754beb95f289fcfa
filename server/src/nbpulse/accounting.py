"""The conservation of events: what the stream was given is stored, a duplicate, set aside, dropped, or still in hand.

The stream's server and PostgreSQL cannot be read at one instant, so the two are compared in a moment in which nothing
was in a worker's hand before and after; on a working day there are several every second.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from nbpulse.metrics import unaccounted_events
from nbpulse.records.accounting import Accounts
from nbpulse.stream import EventStream

_TRIES: Final = 10
_TRY_S: Final = 0.05
# Counting every row of the ledger takes a second for some ten million: never more than 1/200 of the time.
_RECOUNT_S: Final = 10.0
_RECOUNT_SHARE: Final = 200
_log = structlog.get_logger(__name__)


class Auditor:
    """Keeps `nbpulse_unaccounted_events` for one process."""

    def __init__(self, stream: EventStream, accounts: Accounts) -> None:
        self._stream = stream
        self._accounts = accounts
        self._lost_entries: int | None = None
        self._missing_rows = 0
        self._recount_at = 0.0

    async def audit(self) -> int | None:
        """
        Look once; the figure, None where there was none yet. Where no moment is quiet, it stays as it was.

        Raises Unavailable.
        """
        if time.monotonic() >= self._recount_at:
            started = time.monotonic()
            self._missing_rows = await self._accounts.count_missing_rows()
            now = time.monotonic()
            self._recount_at = now + max(_RECOUNT_S, _RECOUNT_SHARE * (now - started))
        for _ in range(_TRIES):
            if await self._compare():
                break
            await asyncio.sleep(_TRY_S)
        return None if self._lost_entries is None else self._lost_entries + self._missing_rows

    async def _compare(self) -> bool:
        """Whether the moment was quiet, so that the figure is new."""
        before = await self._stream.count_entries()
        if before.pending or not before.generation:
            return False
        total = await self._accounts.read_total()
        if await self._stream.count_entries() != before:
            return False
        lost = await self._accounts.compare(before.generation, before.added - before.waiting, total)
        if lost != (self._lost_entries or 0):
            _log.error("worker.unaccounted", lost_entries=lost, missing_rows=self._missing_rows)
        self._lost_entries = lost
        unaccounted_events.set(lost + self._missing_rows)
        return True
