"""Many callers, one write: appends that come while one is on its way share the next, and its fsync."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from nbpulse import metrics
from nbpulse.errors import Unavailable
from nbpulse.stream.cluster import AnyLink
from nbpulse.stream.link import Command

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
    """Appends entries over a link of its own; what is on its way when that dies is never sent again by itself."""

    def __init__(self, link: AnyLink) -> None:
        self._link = link
        self._waiting: list[_Waiting] = []
        self._flusher: asyncio.Task[None] | None = None

    async def append(self, entries: Sequence[Entry]) -> None:
        """Return once the server has answered. Raises Unavailable within 1 s: they may be there or not."""
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
            raise Unavailable(getattr(failure, "code", "NB-2001")) from failure

    async def close(self) -> None:
        """Stop sending, and close the link; whoever waits runs into its deadline."""
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)
        await self._link.close()

    async def _flush_waiting(self) -> None:
        while self._waiting:
            callers, size = 0, 0
            while callers < len(self._waiting) and size < _FLUSH_EVENTS_MAX:
                size += len(self._waiting[callers].entries)
                callers += 1
            # Whose deadline has passed is told so already, and is not sent.
            taken = [one for one in self._waiting[:callers] if not one.done.done()]
            del self._waiting[:callers]
            for one, failure in zip(taken, await self._flush(taken), strict=True):
                if not one.done.done():
                    one.done.set_result(failure)

    async def _flush(self, callers: Sequence[_Waiting]) -> list[Exception | None]:
        """Each caller's failure. What one command may hold is there wholly or not at all; of a student that is all."""
        entries = [entry for one in callers for entry in one.entries]
        if not entries:
            return [None] * len(callers)
        parts = self._link.part(entries, _name_stream)
        try:
            with metrics.ingest_append_duration.time():
                answers = await self._link.call(
                    [_make_command(part) for part in parts], APPEND_DEADLINE_S, query_type="append"
                )
        except Unavailable as failure:
            return [failure] * len(callers)
        failures = {
            stream: answer
            for part, answer in zip(parts, answers, strict=True)
            if isinstance(answer, Exception)
            for stream, _ in part
        }
        if not failures:
            return [None] * len(callers)
        return [next((failures[stream] for stream, _ in one.entries if stream in failures), None) for one in callers]


def _name_stream(entry: Entry) -> bytes:
    return entry[0]


def _make_command(entries: Sequence[Entry]) -> Command:
    streams, payloads = zip(*entries, strict=True)
    return b"EVAL", _APPEND, len(streams), *streams, *payloads
