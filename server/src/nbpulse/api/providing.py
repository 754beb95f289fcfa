"""Signing in at the board through another system: to it with an address, back from it with a code.

Promises: the way back is good once, within 10 minutes, in the browser that began it. It always ends at the board's own
page, whatever the request says: there is nowhere else to be sent. Whoever comes is found by what the provider says they
are, for good; somebody new is made a user without courses, or with those that a hub's groups say.
"""

from __future__ import annotations

import secrets
from typing import Final
from uuid import UUID

import structlog
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from nbpulse.api.context import Context, get_context
from nbpulse.api.cookies import SIGN_IN
from nbpulse.api.hub_access import PROVIDER as HUB
from nbpulse.api.hub_access import read_groups
from nbpulse.api.joining import answer
from nbpulse.api.signing_in import end_present_session
from nbpulse.errors import AccessDenied, NbpulseError, NotFound
from nbpulse.providers import Flow, Proved, Provider, make_flow
from nbpulse.records.identities import enter_by_identity
from nbpulse.records.tokens import PROVIDED_LIFE

router = APIRouter(prefix="/api/v1")
_log = structlog.get_logger(__name__)
_PAGE: Final = "/"
_CODE_MAX: Final = 4_000


@router.get("/sign-in")
async def list_providers(request: Request) -> Response:
    """The ways to sign in beside link and password: `id`, and the `label` of its button."""
    providers = get_context(request).providers
    return answer({"providers": [{"id": name, "label": one.label} for name, one in providers.items()]})


@router.post("/sign-in/{provider}")
async def begin(request: Request, provider: str) -> Response:
    """Begin to sign in at a provider: the `url` for the browser to go to. A session that it has ends."""
    context = get_context(request)
    flow = make_flow(provider, f"{_find_own_url(request)}/api/v1/sign-in/{provider}/callback")
    state, browser = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    url = await _find_provider(context, provider).compose_url(flow, state)
    await end_present_session(request)  # on the way back no browser sends its cookie
    await context.cache.keep_flow(state, browser, flow)
    response = answer({"url": url})
    context.cookies.set_sign_in(request, response, browser)
    return response


@router.get("/sign-in/{provider}/callback")
async def finish(request: Request, provider: str) -> Response:
    """Where a provider sends the browser back to; it goes on to the board, signed in, or told why not."""
    context, query = get_context(request), request.query_params
    try:
        flow = await _take_flow(request, provider)
        if "error" in query or "code" not in query:
            raise AccessDenied("NB-1128", reason=query.get("error", "code")[:60])
        found = _find_provider(context, provider)
        # RFC 9207: the code is another's, and must not reach this one.
        if query.get("iss", found.issuer) != found.issuer:
            raise AccessDenied("NB-1129", reason="iss")
        user_id = await _enter(context, await found.prove(flow, query["code"][:_CODE_MAX]))
        token = await context.accounts.open_session(user_id, provider, life=PROVIDED_LIFE)
    except NbpulseError as refusal:
        _log.warning(
            "signing_in.refused", provider=provider[:40], code=refusal.code, reason=refusal.facts.get("reason")
        )
        context.trail.note_refusal(refusal, request)
        response = RedirectResponse(f"{_PAGE}#refused={refusal.code}", 303)
    else:
        response = RedirectResponse(_PAGE, 303)
        context.cookies.set_session(request, response, token)
    context.cookies.delete(request, response, SIGN_IN)
    return response


async def _take_flow(request: Request, provider: str) -> Flow:
    """The sign-in under way that comes back here. Raises AccessDenied (NB-1127)."""
    context = get_context(request)
    state, browser = request.query_params.get("state"), context.cookies.read(request, SIGN_IN)
    flow = await context.cache.take_flow(state, browser) if state and browser else None
    if flow is None or flow.provider != provider:
        raise AccessDenied("NB-1127")
    return flow


async def _enter(context: Context, proved: Proved) -> UUID:
    """The user here; of a hub, enrolled as its groups say. Raises AccessDenied (NB-1125)."""
    if proved.provider == HUB:
        entered = await enter_by_identity(context.people, HUB, proved.subject, read_groups(proved.groups))
        if entered is not None:
            return entered.user_id
    return await context.accounts.enter(proved.provider, proved.subject, proved.username, proved.display_name)


def _find_provider(context: Context, name: str) -> Provider:
    """Raises NotFound (NB-1126)."""
    found = context.providers.get(name)
    if found is None:
        raise NotFound("NB-1126")
    return found


def _find_own_url(request: Request) -> str:
    """The board's address as this browser knows it; a provider sends browsers to addresses it was told before only."""
    public_url = get_context(request).options.public_url
    return public_url.rstrip("/") if public_url else f"{request.url.scheme}://{request.url.netloc}"
