"""/api/v1/me/tokens: what works in the name of whoever asks, tokens for their scripts, and their end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from nbpulse.api.access import check_staff
from nbpulse.api.bodies import decode_body, read_request_body
from nbpulse.api.context import describe_body, get_context, get_person, parse_id
from nbpulse.api.joining import answer
from nbpulse.errors import AccessDenied

LIFE_DAYS: Final = 90
LIFE_DAYS_MAX: Final = 400

router = APIRouter(prefix="/api/v1/me/tokens")


class TokenRequest(msgspec.Struct):
    """A token for a script: what it is for, how far it reaches, and for how many days."""

    label: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")]
    scopes: Annotated[list[Literal["course:read", "course:write"]], msgspec.Meta(min_length=1, max_length=2)]
    course_id: UUID | None = None
    days: Annotated[int, msgspec.Meta(ge=1, le=LIFE_DAYS_MAX)] = LIFE_DAYS


@router.get("")
async def list_tokens(request: Request) -> Response:
    """Every token and session that works in one's name; `is_this` is the one that asks."""
    person = get_person(request)
    rows = await get_context(request).own_tokens.list_all(person.user_id)
    return answer([{**msgspec.structs.asdict(row), "is_this": row.id == person.token_id} for row in rows])


@router.post("", status_code=201, openapi_extra=describe_body(TokenRequest))
async def create_token(request: Request) -> Response:
    """A token with one's own rights, or fewer, in one course or in all; `token` is shown this once."""
    wanted = decode_body(await read_request_body(request), TokenRequest)
    person, scopes = get_person(request), tuple(sorted(set(wanted.scopes)))
    for scope in scopes:
        if not person.may(scope):
            raise AccessDenied("NB-1182", scope=scope)
    if wanted.course_id is not None:
        check_staff(person, wanted.course_id)
    elif person.course_id is not None:
        wanted.course_id = person.course_id  # of a token that reaches one course comes none that reaches more
    life = timedelta(days=wanted.days)
    own = get_context(request).own_tokens
    token_id, token = await own.create(person.user_id, wanted.label, scopes, wanted.course_id, life)
    told = {"id": token_id, "token": token, "scopes": scopes, "course_id": wanted.course_id}
    return answer({**told, "label": wanted.label, "expires_at": datetime.now(UTC) + life}, 201)


@router.delete("/{token_id}", status_code=204)
async def revoke_token(request: Request, token_id: str) -> Response:
    """End one of one's own tokens or sessions, in every process at once."""
    context, person = get_context(request), get_person(request)
    await context.own_tokens.revoke(person.user_id, parse_id(token_id))
    await context.announce_access(person.user_id)
    return Response(status_code=204)
