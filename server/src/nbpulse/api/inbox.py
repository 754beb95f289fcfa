"""A student's inbox: whether their hand is seen, who comes, and what their teachers write; and their answers.

Promises: nothing is missed between two questions; an answer's `after` only rises; a message told twice bears the same
id both times.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Final
from uuid import UUID, uuid5

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from nbpulse.api.actions import clean_text, tell_inboxes
from nbpulse.api.bodies import decode_body, read_request_body
from nbpulse.api.context import admit, describe_body, get_context, get_person, parse_id
from nbpulse.api.joining import answer
from nbpulse.classroom import Care, HelpRequest, fold_actions
from nbpulse.errors import AccessDenied
from nbpulse.events import CLASS_ENDED
from nbpulse.records.inboxes import Inbox, InboxMessage, MessageState
from nbpulse.records.people import Person

# The word to a student whose hand was up when the class ended.
_CLASS_ENDED_TEXT: Final = {
    "en": "The class has ended, so your raised hand was taken down. Ask again next time, or ask your teacher directly.",
    "ja": "授業が終了したため、挙手を取り下げました。次回もう一度手を挙げるか、先生に直接聞いてください。",
}
_LOOK_EVERY_S: Final = 2.0
"""With a raised hand: others' hands go down without a word to this student, and their place in the queue changes."""
_CLASS_ENDED_LIFE_MS: Final = 86_400_000

router = APIRouter(prefix="/api/v1/me")


class WriteRequest(msgspec.Struct):
    """A student's message; `id` is made once by who asks. Without a thread it begins one."""

    id: UUID
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
    thread_id: UUID | None = None


class StateRequest(msgspec.Struct):
    """What became of a message."""

    state: MessageState


@router.get("/inbox")
async def read_inbox(
    request: Request,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    wait_s: Annotated[float, Query(ge=0, le=30)] = 25,
) -> Response:
    """
    The raised hand as it stands, who comes and the place in the queue; and the messages that are newer than `after` or
    have changed since (0: the last 50 of the last 24 hours). Answers at once where there is any news since `after`,
    else when there is some, or the wait is over.
    """
    context, person = get_context(request), get_person(request)
    user_id, course_id = person.user_id, _course_of(person)
    deadline = time.monotonic() + wait_s
    async with context.hub.listening(course_id, user_id) as listener:
        inbox = await context.inboxes.read(user_id, course_id, after)
        known, read_at = _describe_help(inbox), time.monotonic()
        while (left_s := deadline - time.monotonic()) > 0 and inbox.revision <= after:
            if context.is_stopping or await request.is_disconnected():
                break
            listener.known = inbox.help
            # In short spans: a server that stops or a client that left is noticed soon.
            is_woken = await listener.wait(min(left_s, 1.0))
            if is_woken:
                await admit(request)  # the news may be that the token works no more
            if is_woken or (inbox.help.is_open and time.monotonic() - read_at >= _LOOK_EVERY_S):
                inbox, read_at = await context.inboxes.read(user_id, course_id, after), time.monotonic()
                if _describe_help(inbox) != known:
                    break
    return answer(_describe_inbox(inbox, after))


@router.post("/messages", status_code=201, openapi_extra=describe_body(WriteRequest))
async def write_message(request: Request) -> Response:
    """Write to the course's staff (200: written before)."""
    person = get_person(request)
    wanted = decode_body(await read_request_body(request), WriteRequest)
    course_id = _course_of(person)
    text = clean_text(wanted.text, "text")
    inboxes = get_context(request).inboxes
    is_new = await inboxes.write(person.user_id, course_id, wanted.id, wanted.thread_id, text)
    if is_new:
        await tell_inboxes(request, course_id, [str(person.user_id)])
    return answer({"id": wanted.id, "thread_id": wanted.thread_id or wanted.id}, 201 if is_new else 200)


@router.put("/messages/{message_id}/state", status_code=204, openapi_extra=describe_body(StateRequest))
async def set_state(request: Request, message_id: str) -> Response:
    """Say what became of a message: seen, or what was done with an offer. `accepted` and `never` are final."""
    person = get_person(request)
    wanted = decode_body(await read_request_body(request), StateRequest)
    course_id = _course_of(person)
    inboxes = get_context(request).inboxes
    if await inboxes.set_state(person.user_id, course_id, parse_id(message_id), wanted.state):
        await tell_inboxes(request, course_id, [str(person.user_id)], is_mail=False)
    return Response(status_code=204)


def _course_of(person: Person) -> UUID:
    if person.course_id is None:
        raise AccessDenied("NB-1103")
    return person.course_id


def _describe_inbox(inbox: Inbox, after: int) -> dict[str, Any]:
    messages = [_describe_message(one) for one in inbox.messages]
    if inbox.hand_revision > after and (ended := _describe_class_ended(inbox.help)) is not None:
        messages.append(ended)
    return {"after": max(after, inbox.revision), "help": _describe_help(inbox), "messages": messages}


def _describe_help(inbox: Inbox) -> dict[str, Any] | None:
    hand = inbox.help
    if hand.opened_ms == 0:
        return None
    care: Care = fold_actions(inbox.actions)
    is_open = hand.is_open and hand.request_id not in care.answered
    coming = care.coming.get(hand.request_id) if is_open else None
    return {
        "open": is_open,
        "since": hand.opened_ms,
        "coming": {"name": coming.name, "at": coming.at} if coming else None,
        "place": inbox.place if is_open else None,
    }


def _describe_message(one: InboxMessage) -> dict[str, Any]:
    return {
        "id": one.id,
        "kind": one.kind,
        "at": one.at,
        "from": one.sender if one.is_from_staff else None,
        "is_mine": not one.is_from_staff,
        "text": one.text,
        "thread_id": one.thread_id,
        "state": one.state,
        "offer": one.offer,
    }


def _describe_class_ended(hand: HelpRequest) -> dict[str, Any] | None:
    was_ended = hand.opened_ms > 0 and not hand.is_open and hand.closed_reason == CLASS_ENDED
    if not was_ended or hand.closed_ms < time.time() * 1000 - _CLASS_ENDED_LIFE_MS:
        return None
    message_id = uuid5(UUID(hand.request_id), CLASS_ENDED)
    return {
        "id": message_id,
        "kind": CLASS_ENDED,
        "at": hand.closed_ms,
        "from": None,
        "is_mine": False,
        "text": _CLASS_ENDED_TEXT,
        "thread_id": message_id,
        "state": "sent",
        "offer": None,
    }
