"""The open WebSockets of one process: how many, whose, and word to them that somebody's rights are others now.

Promises: who has not proved who they are holds few places, for 5 s each; nobody has more boards than `of_person`; of
a change of rights that is announced each of their boards hears at once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from nbpulse.errors import TooMuch
from nbpulse.metrics import limited_requests

UNPROVED_MAX: Final = 400
UNPROVED_OF_ADDRESS_MAX: Final = 100
_UNPROVED_S: Final = 5
_BOARD_RETRY_S: Final = 30


class OpenBoards:
    """Counts them in and out."""

    def __init__(self, of_person: int) -> None:
        self._of_person = of_person
        self._unproved: Counter[str] = Counter()
        self._boards: dict[UUID, set[asyncio.Event]] = {}

    @contextmanager
    def proving(self, address: str) -> Iterator[None]:
        """While it is not known whose a WebSocket is. Raises TooMuch (NB-1177)."""
        if self._unproved[address] >= UNPROVED_OF_ADDRESS_MAX or self._unproved.total() >= UNPROVED_MAX:
            limited_requests.labels("unproved_sockets").inc()
            limit = UNPROVED_OF_ADDRESS_MAX
            raise TooMuch("NB-1177", policy="unproved_sockets", limit=limit, retry_after_s=_UNPROVED_S, who=address)
        self._unproved[address] += 1
        try:
            yield
        finally:
            self._unproved[address] -= 1
            if not self._unproved[address]:
                del self._unproved[address]

    def check_room(self, user_id: UUID) -> None:
        """Whether the person may open one more. Raises TooMuch (NB-1178)."""
        if len(self._boards.get(user_id, ())) >= self._of_person:
            limited_requests.labels("person_boards").inc()
            raise TooMuch("NB-1178", policy="person_boards", limit=self._of_person, retry_after_s=_BOARD_RETRY_S)

    @contextmanager
    def watching(self, user_id: UUID) -> Iterator[asyncio.Event]:
        """While a board of theirs is open; the event is set when their rights may be others. Raises TooMuch."""
        self.check_room(user_id)
        changed = asyncio.Event()
        boards = self._boards.setdefault(user_id, set())
        boards.add(changed)
        try:
            yield changed
        finally:
            boards.discard(changed)
            if not boards:
                self._boards.pop(user_id, None)

    def tell(self, user_id: UUID) -> None:
        """Their rights are others now."""
        for changed in self._boards.get(user_id, ()):
            changed.set()
