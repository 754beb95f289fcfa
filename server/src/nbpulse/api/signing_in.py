"""Signing in at the board, by a link or a name and password; one's sessions and password.

Promises: who signs in gets a new session, and the one this browser had ends; the answer to a wrong name is that to a
wrong password. What a browser does with the session's cookie has to come from our own pages (access.py).
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from nbpulse.api.bodies import decode_body, read_request_body
from nbpulse.api.context import describe_body, get_context, get_person
from nbpulse.api.cookies import SESSION
from nbpulse.api.joining import answer
from nbpulse.api.limits import find_address
from nbpulse.errors import AccessDenied
from nbpulse.identity import ask_as
from nbpulse.passwords import LENGTH_MAX, LENGTH_MIN
from nbpulse.records.accounts import clean_username
from nbpulse.records.people import Person

router = APIRouter(prefix="/api/v1")
# Longer than any password that is accepted, counted before its spelling is made one.
_Password = Annotated[str, msgspec.Meta(min_length=1, max_length=4 * LENGTH_MAX)]


class LinkRequest(msgspec.Struct):
    """What the page sends that a sign-in link opened."""

    code: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class PasswordRequest(msgspec.Struct):
    """What the page of signing in sends."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    password: _Password


class NewPasswordRequest(msgspec.Struct):
    """A new password; the present one may be left out for 15 minutes after a link was opened."""

    new: _Password
    present: _Password | None = None


@router.post("/sign-in", openapi_extra=describe_body(LinkRequest))
async def sign_in_by_link(request: Request) -> Response:
    """Exchange a link's one-use code for a session cookie."""
    code = decode_body(await read_request_body(request), LinkRequest).code
    context = get_context(request)
    async with context.guesses.guarding(find_address(request.scope)):
        _, token = await context.people.use_link(code)
    return await begin_session(request, token)


@router.post("/sign-in/password", openapi_extra=describe_body(PasswordRequest))
async def sign_in_by_password(request: Request) -> Response:
    """Exchange a name and password for a session cookie."""
    wanted = decode_body(await read_request_body(request), PasswordRequest)
    context = get_context(request)
    async with context.guesses.guarding(find_address(request.scope), f"password {clean_username(wanted.name)}"):
        user_id = await context.accounts.check_password(wanted.name, wanted.password)
    return await begin_session(request, await context.accounts.open_session(user_id, "password"))


@router.post("/sign-out", status_code=204)
async def sign_out(request: Request) -> Response:
    """End the session the request came with."""
    context, person = get_context(request), get_person(request)
    if person.kind == "session":
        await context.people.revoke_token(person.token_id)
        await context.announce_access(person.user_id)
    response = Response(status_code=204)
    context.cookies.delete(request, response, SESSION)
    return response


@router.post("/sign-out/everywhere")
async def sign_out_everywhere(request: Request) -> Response:
    """End every session of who asks (`sessions`: how many); their open boards close."""
    context, person = get_context(request), _get_signed_in(request)
    count = await context.accounts.close_sessions(person.user_id)
    await context.announce_access(person.user_id)
    response = answer({"sessions": count})
    context.cookies.delete(request, response, SESSION)
    return response


@router.get("/me/account")
async def show_account(request: Request) -> Response:
    """The account of who is signed in: its `name`, and what a new password needs."""
    account = await get_context(request).accounts.describe(_get_signed_in(request))
    return answer({**msgspec.structs.asdict(account), "least": LENGTH_MIN, "most": LENGTH_MAX})


@router.put("/me/password", openapi_extra=describe_body(NewPasswordRequest))
async def set_password(request: Request) -> Response:
    """Set or change one's password; every other session of theirs ends, and this one goes on under a new cookie."""
    context, person = get_context(request), _get_signed_in(request)
    wanted = decode_body(await read_request_body(request), NewPasswordRequest)
    async with context.guesses.guarding(find_address(request.scope), f"own {person.user_id}"):
        token = await context.accounts.set_password(person, wanted.present, wanted.new)
    await context.announce_access(person.user_id)
    return await begin_session(request, token)


def _get_signed_in(request: Request) -> Person:
    """Who is signed in at the board. Raises AccessDenied (NB-1124) for a token: it must not take the whole account."""
    person = get_person(request)
    if person.kind != "session":
        raise AccessDenied("NB-1124")
    return person


async def begin_session(request: Request, token: str) -> Response:
    """The answer to a sign-in: who it is, in which courses, and the session's cookie."""
    context = get_context(request)
    await end_present_session(request)
    person = await context.gate.find_person(token, find_address(request.scope))
    ask_as(person.user_id)
    _, courses = await context.people.describe_person(person)
    response = answer({"user_id": person.user_id, "courses": courses})
    context.cookies.set_session(request, response, token)
    return response


async def end_present_session(request: Request) -> None:
    """Who signs in anew leaves no second session in this browser."""
    context, person = get_context(request), await find_present(request)
    if person is None:
        return
    ask_as(person.user_id)
    await context.people.revoke_token(person.token_id)
    await context.announce_access(person.user_id)


async def find_present(request: Request) -> Person | None:
    """Who is signed in in this browser, on a route that anybody may use."""
    context = get_context(request)
    token = context.cookies.read(request, SESSION)
    if not token:
        return None
    try:
        person = await context.gate.find_person(token, find_address(request.scope))
    except AccessDenied:
        return None  # it has ended already
    return person if person.kind == "session" else None
