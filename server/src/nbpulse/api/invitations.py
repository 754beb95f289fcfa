"""Staff invited by a link, shown once: accepted by who is signed in, or by who becomes somebody by it."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from nbpulse.api.bodies import decode_body, read_request_body
from nbpulse.api.context import describe_body, get_context, parse_id
from nbpulse.api.joining import answer, clean_line
from nbpulse.api.signing_in import begin_session, find_present
from nbpulse.errors import AccessDenied, InvalidInput
from nbpulse.records import invitations
from nbpulse.records.accounts import clean_username
from nbpulse.records.invitations import Newcomer

router = APIRouter(prefix="/api/v1")

Code = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class InvitationRequest(msgspec.Struct):
    """As what somebody is invited, to which teams (an assistant's), and for how many days."""

    role: invitations.StaffRole
    teams: Annotated[list[Annotated[str, msgspec.Meta(max_length=40)]], msgspec.Meta(max_length=100)] = []
    days: Annotated[int, msgspec.Meta(ge=1, le=30)] = 7


class CodeRequest(msgspec.Struct):
    """The code of an invitation's link."""

    code: Code


class AcceptRequest(msgspec.Struct):
    """The code; and, of who has no account, the name to sign in with and the one to be called by."""

    code: Code
    username: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = None
    display_name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None


@router.post("/courses/{course_id}/invitations", status_code=201, openapi_extra=describe_body(InvitationRequest))
async def create_invitation(request: Request, course_id: str) -> Response:
    """An invitation to the staff. `code` is told this once: the link is the board's address with `#invite=CODE`."""
    wanted = decode_body(await read_request_body(request), InvitationRequest)
    teams = [one for team in wanted.teams if (one := clean_line(team, "teams"))]
    made, code = await invitations.invite(
        get_context(request).people, parse_id(course_id), wanted.role, teams, timedelta(days=wanted.days)
    )
    return answer({**msgspec.structs.asdict(made), "code": code}, 201)


@router.delete("/courses/{course_id}/invitations/{invitation_id}", status_code=204)
async def revoke_invitation(request: Request, course_id: str, invitation_id: str) -> Response:
    """Take an invitation back."""
    await invitations.revoke_invitation(get_context(request).people, parse_id(course_id), parse_id(invitation_id))
    return Response(status_code=204)


@router.post("/invitations/describe", openapi_extra=describe_body(CodeRequest))
async def describe_invitation(request: Request) -> Response:
    """To which course an invitation leads, and as what. It stays good."""
    code = decode_body(await read_request_body(request), CodeRequest).code
    title, role = await invitations.describe_invitation(get_context(request).people, code)
    return answer({"course_title": title, "role": role})


@router.post("/invitations/accept", openapi_extra=describe_body(AcceptRequest))
async def accept_invitation(request: Request) -> Response:
    """
    Take the role, as who is signed in at the board; nobody becomes a new user by it and is signed in (then the link's
    rights hold: a first password may be set). The invitation is used up.
    """
    context = get_context(request)
    wanted = decode_body(await read_request_body(request), AcceptRequest)
    present, newcomer = await find_present(request), None
    if present is not None and not context.gate.is_own_origin(request):
        raise AccessDenied("NB-1107")
    if present is None:
        username, name = clean_line(wanted.username, "username"), clean_line(wanted.display_name, "display_name")
        if not username or not name:
            raise InvalidInput("NB-1007", detail="username, display_name: who is not signed in gives both")
        newcomer = Newcomer(clean_username(username), name)
    accepted = await invitations.accept_invitation(
        context.people, wanted.code, present.user_id if present else None, newcomer
    )
    if accepted.session is not None:
        return await begin_session(request, accepted.session)
    await context.announce_access(accepted.user_id)
    return answer({"user_id": accepted.user_id, "course_id": accepted.course_id})
