"""How new an answer of history has to be for whoever asks, and how an answer says of when it is.

Promises: who has changed something through any API process finds it in every answer from then on; a change of what
somebody may do holds for what they are shown as soon as it does at the door; an answer that may be older than its
question says so: in the header NBPULSE-As-Of, and as `as_of` where it is a JSON object.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog
from starlette.responses import Response
from starlette.types import Message, Scope, Send

from nbpulse.api.coverage import add_first, cover
from nbpulse.cache import Cache
from nbpulse.errors import Unavailable
from nbpulse.records.people import Person
from nbpulse.replicas import ONLY_PRIMARY, HistoryPool

HEADER: Final = "NBPULSE-As-Of"
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# A replica further behind than the bound is not read from: what was written so much earlier it shows anyway.
_MARGIN_S: Final = 10.0

_log = structlog.get_logger(__name__)


class Freshness:
    """Who has to be shown at least what; where there is no replica nothing is noted and nothing asked."""

    def __init__(self, history: HistoryPool, cache: Cache) -> None:
        self._history = history
        self._cache = cache
        self._life_s = history.lag_max_s + _MARGIN_S
        self._only_primary: dict[UUID, float] = {}
        """Until when these people are answered by the primary alone."""

    def distrust(self, user_id: UUID) -> None:
        """What the person may do is another now: what replicas still know of it is out of date."""
        if self._history.has_replicas:
            now = time.monotonic()
            self._only_primary = {one: until for one, until in self._only_primary.items() if until > now}
            self._only_primary[user_id] = now + self._life_s

    def noting(self, scope: Scope, send: Send) -> Send:
        """`send`, which notes that a request may have written before its answer leaves."""
        if not self._history.has_replicas or scope["method"] in _SAFE_METHODS:
            return send
        state = scope.setdefault("state", {})

        async def send_noted(message: Message) -> None:
            person: Person | None = state.get("person")
            if person is not None and message["type"] == "http.response.start" and message["status"] < 400:
                await self._note_written(person.user_id)
            await send(message)

        return send_noted

    async def _note_written(self, user_id: UUID) -> None:
        try:
            await self._cache.note_written(user_id, await self._history.read_written(), self._life_s)
        except Unavailable as error:
            _log.warning("freshness.not_noted", code=error.code)
            self.distrust(user_id)  # of this process at least

    async def find_need(self, person: Person | None) -> int:
        """The place in the primary's log that an answer for them must show; 0 where any will do."""
        if person is None or not self._history.has_replicas:
            return 0
        if self._only_primary.get(person.user_id, 0) > time.monotonic():
            return ONLY_PRIMARY
        try:
            return await self._cache.read_written(person.user_id)
        except Unavailable:
            return ONLY_PRIMARY

    async def answer(self, make: Callable[[], Awaitable[Response]], need: int) -> Response:
        """What `make` makes of a replica or the primary, with its time where that is not now, and as `cover` does."""
        response, as_of = await self._history.read(lambda: cover(make), need)
        return response if as_of is None else _say_as_of(response, as_of)


def _say_as_of(response: Response, as_of: datetime) -> Response:
    moment = as_of.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    response.headers[HEADER] = moment
    add_first(response, "as_of", moment)
    return response
