"""How much may be asked for: the limits with their defaults, and the allowance that keeps one of them.

Promises: an allowance costs about a microsecond and never waits; what is refused says when it would pass; memory goes
with the keys of the last minute. It is kept by each process for itself (docs/decisions/0019).
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Hashable
from typing import Final

import msgspec

_WINDOW_S: Final = 60.0
_SWEPT_FROM: Final = 1_000


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one process lets pass; all but `person_boards`, which are open at once, are so many a minute."""

    student_events: int = 1_200
    course_events: int = 120_000
    token_requests: int = 1_200
    address_requests: int = 60_000
    address_refusals: int = 600
    person_boards: int = 20


DEFAULT: Final = Limits()


class Allowance:
    """So much a minute for each key, coming evenly; what was left unused for up to a minute may be used at once."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._step_s = _WINDOW_S / per_minute
        self._clock = clock
        # When each key's allowance is whole again.
        self._whole_at: dict[Hashable, float] = {}
        self._sweep_above = _SWEPT_FROM

    def take(self, key: Hashable, cost: int = 1) -> float:
        """
        0.0 when `cost` was there, and is used; else the seconds until it is, and nothing is used.

        What costs more than a whole minute's is let pass by a whole one.
        """
        now = self._clock()
        whole_at = max(self._whole_at.get(key, now), now) + min(cost, self.per_minute) * self._step_s
        # A part of a step is the floats' own error.
        if (wait_s := whole_at - now - _WINDOW_S) > self._step_s / 1_000:
            return wait_s
        self._whole_at[key] = whole_at
        if len(self._whole_at) > self._sweep_above:
            self._sweep(now)
        return 0.0

    def charge(self, key: Hashable, cost: int) -> None:
        """Use up `cost` whether it is there or not: what is missing is waited for later."""
        now = self._clock()
        self._whole_at[key] = max(self._whole_at.get(key, now), now) + cost * self._step_s

    def measure_wait(self, key: Hashable) -> float:
        """Seconds until one would be let pass, 0.0 now; nothing is used."""
        now = self._clock()
        return max(0.0, self._whole_at.get(key, now) + self._step_s * 0.999 - now - _WINDOW_S)

    def __len__(self) -> int:
        """How many keys it remembers."""
        return len(self._whole_at)

    def _sweep(self, now: float) -> None:
        """Forget who has a whole allowance; again when there are twice as many, so it costs each call little."""
        self._whole_at = {key: whole_at for key, whole_at in self._whole_at.items() if whole_at > now}
        self._sweep_above = max(_SWEPT_FROM, 2 * len(self._whole_at))


def group_address(host: str) -> str:
    """Whom an address counts for: itself, or an IPv6 address's /64, of which one house has as many as it likes."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
