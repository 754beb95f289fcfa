"""Routes of history: those that a replica may answer, and those whose equal questions are answered by one computation.

Two questions are equal when they come at once or within 2 s, of people who see the same and need it as new.

Promises: whether the person may ask is checked for every request, before any answer is looked at; an answer is given
to nobody to whom PostgreSQL would show other rows than to the one it was made for; a request with
`Cache-Control: no-store` is answered anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from nbpulse.api.context import admit, get_context, get_person
from nbpulse.records.people import ANALYST, Person


class HistoryRoute(APIRoute):
    """A route that only reads, what is of the past as it may be some seconds old: freshness.py says how old it is."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.methods != {"GET"}:
            return handle  # what writes is done once, and at the primary

        async def answer(request: Request) -> Response:
            # The route's own dependency admits whoever asks too, but is only run when there is something to make.
            await admit(request)
            need = await get_context(request).freshness.find_need(get_person(request))
            return await self.answer(request, handle, need)

        return answer

    async def answer(self, request: Request, handle: Callable[[Request], Awaitable[Response]], need: int) -> Response:
        """Of who was admitted; `need` as `Freshness.find_need` has it."""
        return await get_context(request).freshness.answer(lambda: handle(request), need)


class FollowingRoute(HistoryRoute):
    """
    One of a page that asks anew when the class says that something has happened: what is committed by the question is
    in its answer, so that a replica is waited for, or passed over.
    """

    async def answer(self, request: Request, handle: Callable[[Request], Awaitable[Response]], need: int) -> Response:
        """As above, of now."""
        history = get_context(request).history_pool
        if history.has_replicas:
            need = max(need, await history.read_written())
        return await super().answer(request, handle, need)


class SharedRoute(HistoryRoute):
    """One whose answer depends on nothing but what one sees as staff, the address with its query, and the data."""

    async def answer(self, request: Request, handle: Callable[[Request], Awaitable[Response]], need: int) -> Response:
        """As above, made once for all who ask the same."""
        # Not no-cache, which browsers send for every fetch that is not to be kept by themselves.
        if "no-store" in request.headers.get("cache-control", ""):
            return await super().answer(request, handle, need)
        key = (
            *(_find_view(get_person(request)), need),
            request.url.path,
            *sorted(request.query_params.multi_items()),
            request.headers.get("if-none-match"),
        )
        # None of these routes' dependencies has anything to close, so the request may be over before this is.
        make = partial(super().answer, request, handle, need)
        return await get_context(request).answers.get_or_make(key, make)


def _find_view(person: Person) -> object:
    """What decides which rows are seen: the courses one teaches, of those seen in part whose teams; those analysed."""
    # A token made for one course does not say which others its owner teaches.
    if person.course_id is not None:
        return person.user_id
    taught = {(course, person.teams.get(course)) for course in person.roles if person.is_staff(course)}
    return frozenset(taught | {(course, ANALYST) for course in person.roles if person.is_analyst(course)})
