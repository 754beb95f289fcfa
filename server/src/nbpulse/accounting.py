"""The conservation of events: what the stream was given is stored, a duplicate, set aside, dropped, or still in hand.

The stream's server and PostgreSQL cannot be read at one instant. While batches are in hand the figures only bound each
other: what lies outside the bounds is wrong for certain, what lies inside is known only in a quiet moment, of which a
working day has several every second.
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

    async def begin(self) -> None:
        """Before this process takes anything in hand: a stream server nobody knows is noted. Raises Unavailable."""
        await self._compare()

    async def audit(self) -> int | None:
        """
        Look once; the figure, None where there was none yet. It stays as it was where no moment is quiet and nothing is
        wrong for certain.

        Raises Unavailable.
        """
        if time.monotonic() >= self._recount_at:
            started = time.monotonic()
            counted = await self._accounts.count_missing_rows()
            self._missing_rows = self._missing_rows if counted is None else counted
            now = time.monotonic()
            self._recount_at = now + max(_RECOUNT_S, _RECOUNT_SHARE * (now - started))
        for _ in range(_TRIES):
            if await self._compare():
                break
            await asyncio.sleep(_TRY_S)
        return None if self._lost_entries is None else self._add(self._lost_entries)

    async def _compare(self) -> bool:
        """
        Whether the figure is new. Between the two readings of PostgreSQL lies the stream's: what it then had
        acknowledged was counted by the second, and what the first had counted it had acknowledged or pending.
        """
        total = await self._accounts.read_total()
        seen = await self._stream.count_entries()
        total_after = await self._accounts.read_total()
        acknowledged = seen.added - seen.waiting - seen.pending
        is_quiet = total == total_after and not seen.pending
        base = await self._accounts.find_base(seen.generation)
        if base is None:
            if not is_quiet or not seen.generation:
                return False
            base = total - acknowledged  # nothing is known of before: taken as it stands
            await self._accounts.make_base(seen.generation, base)
        most, least = total_after - base, total - base - seen.pending
        if least <= acknowledged <= most and not is_quiet:
            return False
        lost = acknowledged - max(least, min(acknowledged, most))
        if lost != (self._lost_entries or 0):
            _log.error("worker.unaccounted", lost_entries=lost, missing_rows=self._missing_rows)
        self._lost_entries = lost
        unaccounted_events.set(self._add(lost))
        return True

    def _add(self, lost: int) -> int:
        """Both together; where one is below 0 and one above, neither hides the other."""
        both = (lost, self._missing_rows)
        return sum(both) if lost * self._missing_rows >= 0 else max(both, key=abs)
