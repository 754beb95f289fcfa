"""What staff do for their students: be on it, have helped, say something; and what became of it.

The order is PostgreSQL's; every board and every waiting inbox is told afterwards, and finds out by itself where that
telling is lost.
"""

from __future__ import annotations

import unicodedata
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
import structlog
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from nbpulse.api.bodies import NO_NUL, decode_body, read_request_body
from nbpulse.api.context import describe_body, get_context, get_person, parse_id
from nbpulse.api.joining import answer
from nbpulse.errors import InvalidInput, Unavailable
from nbpulse.records.interventions import Wanted
from nbpulse.records.messages import Dispatch, Offer

# 20,000 characters of source as JSON may write them (\uXXXX each), the ids of a large class, and some room.
_DISPATCH_BYTES_MAX: Final = 262_144

router = APIRouter(prefix="/api/v1/courses/{course_id}")
_log = structlog.get_logger(__name__)

Text1000 = Annotated[str, msgspec.Meta(min_length=1, max_length=1_000)]


class ActionRequest(msgspec.Struct):
    """
    An action on a student's alert; `id` is made once by who asks.

    `rule` and `cell` as the alert has them, for the log; `text` is a note's, `minutes` a snooze's.
    """

    id: UUID
    user_id: UUID
    rule: Annotated[str, msgspec.Meta(max_length=20, pattern=NO_NUL)] | None = None
    cell: Annotated[str, msgspec.Meta(max_length=256, pattern=NO_NUL)] | None = None
    text: Text1000 | None = None
    minutes: Annotated[int, msgspec.Meta(ge=1, le=120)] = 5


class Recipients(msgspec.Struct):
    """Exactly one of the three."""

    user_ids: Annotated[list[UUID], msgspec.Meta(min_length=1, max_length=2_000)] | None = None
    error_fingerprint: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")] | None = None
    all: bool = False


class OfferRequest(msgspec.Struct):
    """A cell's new text with a word to it."""

    notebook_id: UUID
    cell_id: Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=NO_NUL)]
    source: Annotated[str, msgspec.Meta(max_length=20_000)]
    text: Text1000


class MessageRequest(msgspec.Struct):
    """A message, in one text or one per language, or an offer; `id` is made once by who asks."""

    id: UUID
    to: Recipients
    text: Text1000 | dict[Literal["ja", "en"], Text1000] | None = None
    offer: OfferRequest | None = None
    thread_id: UUID | None = None


@router.post("/alerts/{alert_id}/{action}", openapi_extra=describe_body(ActionRequest))
async def act_on_alert(
    request: Request,
    course_id: str,
    alert_id: str,
    action: Literal["claim", "release", "helped", "snooze", "undo", "note"],
) -> Response:
    """
    Do it, once per `id`; the alert's standing. 409 (NB-1331): another is on it, `claim` says who.

    `helped` takes down a raised hand and keeps the student's alerts quiet for 5 minutes; `undo` takes one's own
    `helped` or `snooze` back for 10 s.
    """
    context, course, person = get_context(request), parse_id(course_id), get_person(request)
    wanted = decode_body(await read_request_body(request), ActionRequest)
    if (action == "note") != (wanted.text is not None):
        raise InvalidInput("NB-1007", detail="text: a note has one, nothing else does")
    standing, done = await context.interventions.act(
        course,
        person.user_id,
        Wanted(
            id=wanted.id,
            user_id=wanted.user_id,
            action=action,
            alert_id=parse_id(alert_id),
            rule=wanted.rule,
            cell_id=wanted.cell,
            note=clean_text(wanted.text, "text") if wanted.text else None,
            **({"quiet_ms": wanted.minutes * 60_000} if action == "snooze" else {}),
        ),
    )
    if done is not None:
        try:
            await context.cache.announce_actions(course, [done])
        except Unavailable as error:
            _log.warning("actions.not_announced", code=error.code)  # boards look every 2 s anyway
    return answer(standing)


@router.get("/interventions")
async def list_interventions(
    request: Request,
    course_id: str,
    before: datetime | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    student: str | None = None,
) -> Response:
    """What was done (for `student`), newest first; `got_past`: since then they have run the alert's cell well."""
    if before is not None and before.tzinfo is None:
        raise InvalidInput("NB-1007", detail="before: no time zone")
    student_id = parse_id(student) if student else None
    log = await get_context(request).interventions.list_log(parse_id(course_id), before, limit, student_id)
    return answer({"interventions": log})


@router.post("/messages", status_code=201, openapi_extra=describe_body(MessageRequest))
async def send_message(request: Request, course_id: str) -> Response:
    """
    Write to some students, to all who have an error now, or to the class: whom it reached (200: sent before).

    `unknown` names who is no student of the course; the others get it.
    """
    context, course = get_context(request), parse_id(course_id)
    body = await read_request_body(request, limit=_DISPATCH_BYTES_MAX)
    dispatch = _make_dispatch(decode_body(body, MessageRequest))
    sent = await context.messages.send(course, get_person(request).user_id, dispatch)
    if sent.is_new:
        await tell_inboxes(request, course, [str(user_id) for user_id in sent.recipients])
    told = {"batch_id": sent.batch_id, "recipients": len(sent.recipients), "unknown": sent.unknown}
    return answer(told, 201 if sent.is_new else 200)


@router.get("/messages")
async def list_messages(
    request: Request, course_id: str, student: str | None = None, batch: str | None = None
) -> Response:
    """
    A student's threads; or what became of one batch, or of those of the last 24 hours: how many were shown it, took it,
    put it off or refused it, and how many have got past the cell it was about.
    """
    context, course = get_context(request), parse_id(course_id)
    if student is not None:
        return answer({"threads": await context.messages.list_threads(course, parse_id(student))})
    return answer({"batches": await context.messages.list_batches(course, parse_id(batch) if batch else None)})


async def tell_inboxes(request: Request, course_id: UUID, user_ids: list[str], *, is_mail: bool = True) -> None:
    """
    Wake whoever waits for these students' news; without it they ask again within half a minute. `is_mail`: something
    was written, which boards show too.
    """
    cache = get_context(request).cache
    try:
        await cache.announce_inboxes(course_id, user_ids)
        if is_mail:
            await cache.announce_mail(course_id)
    except Unavailable as error:
        _log.warning("inboxes.not_announced", code=error.code)


def clean_text(text: str, field: str) -> str:
    """Text of a person's in one spelling (NFC), without control characters but tabs and line ends. Raises NB-1007."""
    text = unicodedata.normalize("NFC", text)
    if any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\r\t" for letter in text):
        raise InvalidInput("NB-1007", detail=f"{field}: no control characters")
    if not text.strip():
        raise InvalidInput("NB-1007", detail=f"{field}: at least 1 character")
    return text


def _make_dispatch(wanted: MessageRequest) -> Dispatch:
    to, offer = wanted.to, wanted.offer
    if [to.user_ids is not None, to.error_fingerprint is not None, to.all].count(True) != 1:
        raise InvalidInput("NB-1007", detail="to: exactly one of user_ids, error_fingerprint, all")
    if (wanted.text is None) == (offer is None):
        raise InvalidInput("NB-1007", detail="exactly one of text, offer")
    if wanted.thread_id is not None and (to.user_ids is None or len(to.user_ids) != 1):
        raise InvalidInput("NB-1007", detail="thread_id: an answer goes to one student")
    text: Any = offer.text if offer else wanted.text
    if isinstance(text, dict):
        if text.keys() != {"ja", "en"}:
            raise InvalidInput("NB-1007", detail="text: both ja and en")
        text = {language: clean_text(one, f"text.{language}") for language, one in text.items()}
    else:
        text = clean_text(text, "text")
    return Dispatch(
        id=wanted.id,
        text=text,
        user_ids=list(dict.fromkeys(to.user_ids)) if to.user_ids is not None else None,
        error_fingerprint=to.error_fingerprint,
        offer=Offer(offer.notebook_id, offer.cell_id, offer.source) if offer else None,
        thread_id=wanted.thread_id,
    )
