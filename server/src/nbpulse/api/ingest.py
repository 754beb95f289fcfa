"""POST /api/v1/events: what students' Jupyters deliver.

Promises: "accepted" is said only after the stream has the event durably; one bad event never fails its neighbours;
"duplicate" is said only of an event whose own append was confirmed before. The one route that is hot, so it is plain
ASGI: no framework, one token look-up, one decode, one append per request.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec
import structlog
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import Receive, Scope, Send

from nbpulse import collection, deliveries, events, metrics
from nbpulse.api.access import Gate
from nbpulse.api.bodies import read_body
from nbpulse.api.hub_access import COURSE_HEADER
from nbpulse.api.limits import RequestLimits, find_address
from nbpulse.api.problems import make_problem
from nbpulse.api.trail import AuditTrail
from nbpulse.cache import Cache, Heard
from nbpulse.errors import InvalidEvent, InvalidInput, NbpulseError, NotFound, Unavailable
from nbpulse.events import ReceivedEvent
from nbpulse.records.people import Person
from nbpulse.stream import get_stream_key

PATH: Final = "/api/v1/events"
COLLECTION_HEADER: Final = b"nbpulse-collection-version"
_REMEMBERED_EVENTS: Final = 10_000
_COURSE_HEADER: Final = COURSE_HEADER.encode()
_HEARD_EVERY_S: Final = 10.0
_NOTE_AFTER_S: Final = 0.25
_HEADERS: Final = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]

_COUNTERS: Final = {
    result: metrics.ingest_events.labels(result) for result in ("accepted", "duplicate", "rejected", "refused")
}

_log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode
_Encoded = tuple[ReceivedEvent, bytes]


class Stream(Protocol):
    """Where accepted events go (stream.py)."""

    async def append_payloads(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Returns once all (stream, payload) are durable. Raises Unavailable."""


class Result(msgspec.Struct, omit_defaults=True):
    """What is said of one event of a batch."""

    event_id: str | None
    status: str
    code: str | None = None
    reason: str | None = None


class _Durable:
    """The newest 10,000 to 20,000 ids this process has seen confirmed: in two sets, the older dropped whole."""

    def __init__(self) -> None:
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()

    def __contains__(self, key: bytes) -> bool:
        return key in self._young or key in self._old

    def add(self, keys: Sequence[bytes]) -> None:
        self._young.update(keys)
        if len(self._young) > _REMEMBERED_EVENTS:
            self._old, self._young = self._young, set()


class Ingest:
    """The hot route with what it remembers between requests."""

    def __init__(self, gate: Gate, limits: RequestLimits, stream: Stream, cache: Cache, trail: AuditTrail) -> None:
        self._gate = gate
        self._limits = limits
        self._stream = stream
        self._cache = cache
        self._trail = trail
        self._durable = _Durable()
        self._heard_at: dict[UUID, float] = {}
        self._to_note: dict[UUID, Heard] = {}
        self._noting: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.perf_counter()
        authorization = content_type = content_encoding = language = course = ""
        learner: Person | None = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value.decode("latin-1")
            elif name == b"content-type":
                content_type = value.decode("latin-1")
            elif name == b"content-encoding":
                content_encoding = value.decode("latin-1")
            elif name == b"accept-language":
                language = value.decode("latin-1")
            elif name == _COURSE_HEADER:
                course = value.decode("latin-1")
        try:
            if scope["method"] != "POST":
                raise NotFound("NB-1203")
            address = find_address(scope)
            self._limits.meet_address(address)
            learner = await self._gate.find_learner(authorization, address, course)
            self._limits.check_delivery(learner)
            body = await read_body(receive, content_type=content_type, content_encoding=content_encoding)
            status, answer = await self.receive_events(body, learner)
            version = str(learner.collection.version).encode()
        except NbpulseError as error:
            _COUNTERS["refused"].inc()
            if learner is not None and isinstance(error, InvalidInput) and not isinstance(error, InvalidEvent):
                self._limits.charge_bad_body(learner)
            self._trail.note_refusal(error, HTTPConnection(scope), learner)
            await make_problem(error, language)(scope, receive, send)
            return
        except ClientDisconnect:
            return
        encoded = _encode(answer)
        headers = [*_HEADERS, (b"content-length", str(len(encoded)).encode()), (COLLECTION_HEADER, version)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": encoded})
        metrics.ingest_ack_duration.observe(time.perf_counter() - started)

    async def receive_events(self, body: bytes, learner: Person) -> tuple[int, dict[str, Any]]:
        """
        Status and answer for a body of events, all that could be accepted being durable.

        Raises InvalidInput for a body that is none, InvalidEvent for one event alone, TooMuch (NB-1170, NB-1171),
        Unavailable (nothing promised).
        """
        parts, is_batch = deliveries.split_batch(body)
        self._limits.meet_delivery(learner, len(parts))
        received_at = datetime.now(UTC)
        if not is_batch:
            event = _receive(parts[0], learner, received_at)
            await self._keep([(event, events.encode(event))], learner)
            _COUNTERS["accepted"].inc()
            return 202, {"status": "received", "event_id": event.event_id}
        results: list[Result] = []
        accepted: dict[bytes, _Encoded] = {}
        for part in parts:
            try:
                event = _receive(part, learner, received_at)
                payload = events.encode(event)
            except InvalidEvent as error:
                results.append(Result(events.find_event_id(part), "rejected", error.code, error.reason))
                if error.code == "NB-1102":
                    self._trail.count_refusals(error.code, learner, learner.course_id, 1)
                continue
            key = event.event_id.bytes
            is_known = key in accepted or learner.user_id.bytes + key in self._durable
            results.append(Result(str(event.event_id), "duplicate" if is_known else "accepted"))
            if not is_known:
                accepted[key] = (event, payload)
        await self._keep(list(accepted.values()), learner)
        for status, count in Counter(result.status for result in results).items():
            _COUNTERS[status].inc(count)
        is_any_taken = any(result.status != "rejected" for result in results)
        return 202 if is_any_taken else 422, {"results": results}

    async def _keep(self, accepted: Sequence[_Encoded], learner: Person) -> None:
        """Make them durable; presence goes to the cache alone. Afterwards, not before, their ids are remembered."""
        durable = [one for one in accepted if one[0].event_type != "presence"]
        if durable:
            await self._stream.append_payloads([(get_stream_key(event), payload) for event, payload in durable])
            self._durable.add([learner.user_id.bytes + event.event_id.bytes for event, _ in durable])
        presence = [event for event, _ in accepted if event.event_type == "presence"]
        if presence:
            newest = max(presence, key=lambda event: event.occurred_at)
            try:
                await self._cache.hear([_hear(learner, str(newest.data.get("state", "active")))])
                self._heard_at[learner.user_id] = time.monotonic()
            except Unavailable:
                if not durable:  # what is durable is accepted, wherever presence is kept
                    raise
        elif durable and time.monotonic() - self._heard_at.get(learner.user_id, 0.0) > _HEARD_EVERY_S:
            self._heard_at[learner.user_id] = time.monotonic()
            self._to_note[learner.user_id] = _hear(learner, "")  # there, and no word of what they do
            if self._noting is None or self._noting.done():
                self._noting = asyncio.create_task(self._note_heard())

    async def _note_heard(self) -> None:
        """Whoever delivers is there, said for many at once. Lost when the cache is away: the next delivery says it."""
        while self._to_note:
            await asyncio.sleep(_NOTE_AFTER_S)
            heard, self._to_note = self._to_note, {}
            try:
                await self._cache.hear(list(heard.values()))
            except Unavailable as error:
                for user_id in heard:
                    self._heard_at.pop(user_id, None)
                _log.debug("ingest.presence_not_noted", code=error.code)


def _receive(raw: bytes, learner: Person, received_at: datetime) -> ReceivedEvent:
    """
    The event, without what the course does not collect of this learner.

    Raises InvalidEvent as events.receive(), and NB-1341: the course collects nothing of it.
    """
    assert learner.course_id is not None  # noqa: S101 - the gate saw to it
    event = events.receive(raw, user_id=learner.user_id, course_id=learner.course_id, received_at=received_at)
    kept, dropped = collection.strip_event(event, learner.collection)
    for name in dropped:
        metrics.ingest_stripped_fields.labels(name).inc()
    if kept is None:
        raise InvalidEvent("NB-1341", "not_collected", event_type=event.event_type)
    return kept


def _hear(learner: Person, state: str) -> Heard:
    assert learner.course_id is not None  # noqa: S101
    return Heard(learner.course_id, learner.user_id, round(time.time() * 1000), state)


def describe() -> dict[str, Any]:
    """The route for OpenAPI, with the events' schema."""
    event = events.describe_schema()
    problem = {"application/problem+json": {"schema": {"type": "object", "required": ["code", "title", "todo"]}}}
    refusals = (400, 401, 403, 413, 415, 422, 429, 503)
    return {
        "summary": "Deliver events",
        "operationId": "receive_events",
        "security": [{"token": []}],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "anyOf": [
                            event,
                            {"type": "array", "items": event, "minItems": 1, "maxItems": deliveries.BATCH_EVENTS_MAX},
                        ]
                    }
                }
            },
        },
        "responses": {
            "202": {
                "description": "Durable: the event, or at least one of the batch",
                "content": {"application/json": {}},
            },
            **{str(status): {"description": "Refused", "content": problem} for status in refusals},
        },
    }
