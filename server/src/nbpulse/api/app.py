"""The application: every route with its rule, every error with its answer.

`create_app` gives plain ASGI: the hot route and the headers stand before the framework, the rest is FastAPI.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import structlog
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nbpulse import __version__
from nbpulse.api import (
    actions,
    classrooms,
    collections,
    courses,
    errorgroups,
    health,
    inbox,
    ingest,
    invitations,
    joining,
    maps,
    meetings,
    members,
    own_audit,
    own_export,
    own_page,
    own_tokens,
    pages,
    providing,
    queries,
    rehearsals,
    replays,
    reports,
    rules,
    signing_in,
    sockets,
    work,
)
from nbpulse.api.access import check_rules
from nbpulse.api.catalogue import describe_problems, show_errors
from nbpulse.api.context import ApiOptions, Context, Parts, admit, make_context
from nbpulse.api.headers import Headers
from nbpulse.api.limits import find_address
from nbpulse.api.problems import find_framework_error, make_problem, read_language
from nbpulse.errors import InvalidInput, NbpulseError, TooMuch

__all__ = ["ApiOptions", "Application", "create_app"]

_OPENAPI_PATH: Final = "/api/v1/openapi.json"

_log = structlog.get_logger(__name__)


class Application:
    """ASGI: the hot route first, then everything else; every answer with the headers that keep it to itself."""

    context: Context
    """The running API's context; there from start-up on."""
    failure: NbpulseError | None = None
    """Why the resources could not be opened."""

    def __init__(self, web: FastAPI, public_url: str | None) -> None:
        self.web = web
        self._headers = Headers(self._route, public_url)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._headers(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == ingest.PATH:
            await self.context.ingest(scope, receive, send)
        else:
            await self._ask_web(scope, receive, send)

    async def _ask_web(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http":
                self.context.limits.meet_address(find_address(scope))
        except TooMuch as error:
            await make_problem(error, read_language(scope))(scope, receive, send)
        else:
            if scope["type"] == "http":
                send = self.context.freshness.noting(scope, send)
            await self.web(scope, receive, send)


def create_app(
    open_resources: Callable[[], AbstractAsyncContextManager[Parts]], options: ApiOptions | None = None
) -> Application:
    """
    The API over resources that are opened at its start and closed at its end.

    Raises RuntimeError when a route has no access rule.
    """

    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        try:
            async with open_resources() as parts, parts.hub.running():
                application.context = app.state.context = make_context(parts, options or ApiOptions())
                async with application.context.trail.running():
                    # What is alive now stays: leave it out of collection, and collect the rest in larger steps.
                    gc.collect()
                    gc.freeze()
                    gc.set_threshold(20_000, 20, 50)
                    yield
        except NbpulseError as error:
            application.failure = error
            raise

    app = FastAPI(
        title="nbpulse",
        version=__version__,
        lifespan=live,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(_admit)],
        responses=describe_problems(),
        redirect_slashes=False,
    )
    for router in (
        joining.router,
        signing_in.router,
        providing.router,
        classrooms.router,
        actions.router,
        inbox.router,
        classrooms.shared,
        queries.router,
        work.router,
        errorgroups.router,
        meetings.router,
        replays.router,
        reports.shared,
        reports.router,
        collections.router,
        rules.router,
        courses.router,
        members.router,
        invitations.router,
        maps.router,
        own_audit.router,
        own_tokens.router,
        own_export.router,
        own_page.router,
        rehearsals.router,
        health.router,
        pages.router,
    ):
        app.include_router(router)
    app.include_router(sockets.router)
    app.add_api_route("/api/v1/errors", show_errors, methods=["GET"])
    app.add_api_route(_OPENAPI_PATH, _show_openapi, methods=["GET"], include_in_schema=False)
    for kind in (NbpulseError, HTTPException, RequestValidationError, ClientDisconnect):
        app.add_exception_handler(kind, _answer_error)
    check_rules({*_list_routes(app.routes), f"POST {ingest.PATH}"})
    application = Application(app, (options or ApiOptions()).public_url)
    return application


def _list_routes(routes: Iterable[object]) -> Iterator[str]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield from (f"{method} {route.path}" for method in route.methods or ())
        elif isinstance(route, APIWebSocketRoute):
            yield f"WS {route.path}"
        elif isinstance(included := getattr(route, "original_router", None), APIRouter):
            yield from _list_routes(included.routes)
        else:
            yield f"? {type(route).__name__}"  # nobody has said who may


async def _admit(connection: HTTPConnection) -> None:
    """Every route's first dependency: its rule. A WebSocket's is FIRST_MESSAGE, kept in sockets.py."""
    if isinstance(connection, Request):
        await admit(connection)


async def _answer_error(request: Request, error: Exception) -> Response:
    """The way of every error to its answer."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)  # nobody reads it
    if isinstance(error, HTTPException):
        error = find_framework_error(error.status_code)
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        error = InvalidInput("NB-1007", detail=f"{place}: {first['msg']}"[:300])
    assert isinstance(error, NbpulseError)  # noqa: S101 - these are all that is registered
    request.app.state.context.trail.note_refusal(error, request)
    return make_problem(error, request.headers.get("accept-language"))


async def _show_openapi(request: Request) -> Response:
    """The API's description; the hot route is not FastAPI's, so its part is added."""
    schema: dict[str, Any] = request.app.openapi()
    schema["paths"].setdefault(ingest.PATH, {"post": ingest.describe()})
    return joining.answer(schema)
