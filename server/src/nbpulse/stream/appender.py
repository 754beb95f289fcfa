"""Many callers, one write: appends that come while one is on its way share the next, and its fsync."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from redis.exceptions import ResponseError

from nbpulse import metrics
from nbpulse.errors import Unavailable
from nbpulse.stream.link import Link

APPEND_DEADLINE_S: Final = 1.0
_FLUSH_EVENTS_MAX: Final = 2_000
# One command and one answer for a whole flush: a third of the work of a pipeline, on both sides, and all or nothing.
_APPEND: Final = b"for i = 1, #ARGV do redis.call('XADD', KEYS[i], '*', 'e', ARGV[i]) end return #ARGV"

Entry = tuple[bytes, bytes]
"""A stream and the payload to append to it."""


class _Waiting(NamedTuple):
    """One caller; `done` becomes the reason why it may not be told "accepted", or None."""

    entries: Sequence[Entry]
    done: asyncio.Future[Exception | None]


class Appender:
    """Appends entries; what is on its way when the connection dies is never sent again by itself."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: list[_Waiting] = []
        self._flusher: asyncio.Task[None] | None = None

    async def append(self, entries: Sequence[Entry]) -> None:
        """Return once the server has answered. Raises Unavailable (NB-2001) within 1 s: they may be there or not."""
        done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(entries, done))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush_waiting())
        try:
            async with asyncio.timeout(APPEND_DEADLINE_S):
                failure = await done
        except TimeoutError as late:
            failure = late
        if failure is not None:
            raise Unavailable("NB-2001") from failure

    async def close(self) -> None:
        """Stop sending; whoever waits runs into its deadline."""
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)

    async def _flush_waiting(self) -> None:
        while self._waiting:
            callers, size = 0, 0
            while callers < len(self._waiting) and size < _FLUSH_EVENTS_MAX:
                size += len(self._waiting[callers].entries)
                callers += 1
            # Whose deadline has passed is told so already, and is not sent.
            taken = [one for one in self._waiting[:callers] if not one.done.done()]
            del self._waiting[:callers]
            failure = await self._flush([entry for one in taken for entry in one.entries])
            for one in taken:
                if not one.done.done():
                    one.done.set_result(failure)

    async def _flush(self, entries: Sequence[Entry]) -> Exception | None:
        if not entries:
            return None
        keys, payloads = zip(*entries, strict=True)
        command = (b"EVAL", _APPEND, len(keys), *keys, *payloads)
        try:
            with metrics.ingest_append_duration.time():
                await self._link.call_one(*command, query_type="append", deadline_s=APPEND_DEADLINE_S)
        except (Unavailable, ResponseError) as failure:
            return failure
        return None
