"""Answers kept for two seconds, each made once however many ask for it meanwhile.

Promises: the data of an answer is at most 2 s older than the question; a failure is told to those who wait and not
kept; what is kept is bounded in bytes. One process's answers: another one makes its own.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple

from starlette.responses import Response

LIFE_S: Final = 2.0
# Asked again after this, it is made anew while the one at hand is still given: nobody waits for what many ask for.
_REFRESH_AFTER_S: Final = 1.0
_BYTES_MAX: Final = 32_000_000

Key = tuple[object, ...]


class _Kept(NamedTuple):
    answer: Response
    begun_at: float


class _Flight(NamedTuple):
    making: asyncio.Task[Response]
    begun_at: float


class Answers:
    """What one API process has just answered, and what it is about to."""

    def __init__(self, *, bytes_max: int = _BYTES_MAX, clock: Callable[[], float] = time.monotonic) -> None:
        self._bytes_max = bytes_max
        self._clock = clock
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self._flights: dict[Key, _Flight] = {}
        self.kept_bytes = 0

    async def get_or_make(self, key: Key, make: Callable[[], Coroutine[Any, Any, Response]]) -> Response:
        """The answer under `key`, made by `make` where none is young enough. Raises what `make` raises."""
        now = self._clock()
        kept = self._kept.get(key)
        if kept is not None and now - kept.begun_at < _REFRESH_AFTER_S:
            return kept.answer
        flight = self._flights.get(key)
        if flight is None or now - flight.begun_at >= LIFE_S:
            # A task of its own: whoever asked first may leave while others wait.
            flight = self._flights[key] = _Flight(asyncio.create_task(make()), now)
            begun = flight
            flight.making.add_done_callback(lambda _: self._land(key, begun))
        if kept is not None and now - kept.begun_at < LIFE_S:
            return kept.answer
        return await asyncio.shield(flight.making)

    def _land(self, key: Key, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.making.cancelled() or flight.making.exception() is not None:
            return  # whoever waits has it; nothing is kept of it
        kept = self._kept.get(key)
        if kept is not None and kept.begun_at > flight.begun_at:
            return  # one that began later was faster
        self._drop(key)
        answer = flight.making.result()
        if len(answer.body) <= self._bytes_max // 8:
            self._kept[key] = _Kept(answer, flight.begun_at)
            self.kept_bytes += len(answer.body)
        oldest = self._clock() - LIFE_S
        while self._kept:
            first = next(iter(self._kept))
            if self._kept[first].begun_at > oldest and self.kept_bytes <= self._bytes_max:
                break
            self._drop(first)

    def _drop(self, key: Key) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            self.kept_bytes -= len(kept.answer.body)
