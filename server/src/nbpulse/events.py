"""The words of the wire: what a Jupyter client may say, and how it is checked.

One flat, versioned envelope (docs/events.md); the specification's own flat form is understood too. Parsing happens
once, here: behind `receive` every event is typed, bounded and belongs to somebody.

Promises: one bad event never fails its neighbours; every refusal names the field, the limit and what to do; an event
without an id gets one made from its content, so that sending it again is still the same event.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from nbpulse.errors import InvalidEvent, PoisonEvent

SCHEMA_VERSION: Final = 1
BODY_BYTES_MAX: Final = 1_000_000
EVENT_BYTES_MAX: Final = 32_768
DEPTH_MAX: Final = 20
CLOCK_AHEAD_MAX: Final = timedelta(hours=24)
CLOCK_AHEAD_NOTED: Final = timedelta(minutes=2)
OCCURRED_AT_MIN: Final = datetime(2000, 1, 1, tzinfo=UTC)
LATE_AFTER: Final = timedelta(minutes=15)  # then it changes rows, never an alert: last week's spool raises no hand

NOTEBOOK_EVENT_TYPES: Final = frozenset(
    {
        "session_start",
        "session_end",
        "notebook_open",
        "notebook_save",
        "notebook_close",
        "cell_execution_start",
        "cell_execution",
        "markdown_run",
        "cell_focus",
        "cell_change",
    }
)
FREE_EVENT_TYPES: Final = frozenset({"presence", "kernel_status", "help_request", "help_cancel"})
EVENT_TYPES: Final = NOTEBOOK_EVENT_TYPES | FREE_EVENT_TYPES
HELP_EVENT_TYPES: Final = frozenset({"help_request", "help_cancel"})
CLASS_ENDED: Final = "class_ended"  # `data.reason` of the help_cancel that we make, never a client's
EXECUTION_STATUSES: Final = frozenset({"ok", "error", "interrupted", "aborted", "kernel_died", "unknown"})
PRESENCE_STATES: Final = frozenset({"active", "idle", "hidden", "paused"})

_Text500 = Annotated[str, msgspec.Meta(max_length=500)]
_Text256 = Annotated[str, msgspec.Meta(max_length=256)]
_Text200 = Annotated[str, msgspec.Meta(max_length=200)]
_Text8000 = Annotated[str, msgspec.Meta(max_length=8_000)]
_Text30000 = Annotated[str, msgspec.Meta(max_length=30_000)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_DurationMs = Annotated[float, msgspec.Meta(ge=0, le=7 * 86_400_000)]


class _Envelope(msgspec.Struct):
    """Every field of both forms; which of them must be there is `_check`'s business."""

    event_type: str
    schema_version: int = SCHEMA_VERSION
    event_id: UUID | None = None
    occurred_at: datetime | None = None
    sequence: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    session_id: UUID | None = None
    notebook_path: _Text500 | None = None
    notebook_id: UUID | None = None
    cell_id: _Text256 | None = None
    cell_index: Annotated[int, msgspec.Meta(ge=0, le=100_000)] | None = None
    cell_type: _Text256 | None = None
    exercise_id: _Text200 | None = None
    cell_prints: Annotated[str, msgspec.Meta(max_length=384)] | None = None
    data: dict[str, Any] | None = None
    user_id: UUID | None = None
    # The specification's flat form.
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    timestamp: datetime | None = None
    duration: _DurationMs | None = None
    has_error: bool | None = None
    error_message: _Text8000 | None = None
    execution_count: _Count | None = None


class _ExecutionData(msgspec.Struct):
    """`data` of a cell_execution; further fields are kept as they are."""

    status: str | None = None
    execution_duration_ms: _DurationMs | None = None
    has_error: bool | None = None
    error_name: _Text200 | None = None
    error_message: _Text8000 | None = None
    traceback: _Text30000 | None = None
    failing_print: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")] | None = None
    execution_count: _Count | None = None
    output_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    source: _Text30000 | None = None
    output: _Text30000 | None = None


class _HelpData(msgspec.Struct):
    message: Annotated[str, msgspec.Meta(max_length=500)] | None = None


class _PresenceData(msgspec.Struct):
    state: str = "active"


class ReceivedEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    One event that belongs to somebody: what the stream carries and the worker reads.

    `occurred_at` is the client's clock, never later than `received_at`, which is ours; both aware UTC. `entry`
    (stream, id) is where the worker read it; the stream does not carry it.
    """

    event_id: UUID
    event_type: str
    occurred_at: datetime
    received_at: datetime
    user_id: UUID
    course_id: UUID
    notebook_path: str | None = None
    notebook_id: UUID | None = None
    session_id: UUID | None = None
    cell_id: str | None = None
    cell_index: int | None = None
    cell_type: str | None = None
    exercise_id: str | None = None
    cell_prints: str | None = None
    sequence: int = 0
    data: dict[str, Any] = {}
    entry: tuple[str, str] | None = None

    @property
    def is_late(self) -> bool:
        """True when it is history by the time it came."""
        return self.received_at - self.occurred_at > LATE_AFTER


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_received = msgspec.json.Decoder(ReceivedEvent).decode
_encode = msgspec.json.Encoder().encode


def receive(raw: bytes, *, user_id: UUID, course_id: UUID, received_at: datetime) -> ReceivedEvent:
    """
    One event as sent, checked and given to the person whose token brought it.

    Raises InvalidEvent with the field, the limit and a short reason; nothing is kept of a refused event.
    """
    if len(raw) > EVENT_BYTES_MAX:
        raise InvalidEvent("NB-1010", "too_large", bytes=len(raw), limit=EVENT_BYTES_MAX)
    try:
        envelope = _decode_envelope(raw)
    except msgspec.ValidationError as error:
        raise InvalidEvent("NB-1011", "invalid_field", detail=str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidEvent("NB-1012", "not_json", detail=str(error)) from error
    except RecursionError as error:
        raise InvalidEvent("NB-1013", "too_deep", limit=DEPTH_MAX) from error
    _check_text(raw, envelope)
    if envelope.user_id is not None and envelope.user_id != user_id:
        raise InvalidEvent("NB-1102", "user_mismatch")
    event_id, occurred_at = _identify(envelope, raw, user_id)
    return ReceivedEvent(
        event_id=event_id,
        event_type=envelope.event_type,
        occurred_at=_check_clock(occurred_at, received_at),
        received_at=received_at,
        user_id=user_id,
        course_id=course_id,
        notebook_path=_check_path(envelope),
        notebook_id=envelope.notebook_id,
        session_id=envelope.session_id,
        cell_id=envelope.cell_id,
        cell_index=envelope.cell_index,
        cell_type=envelope.cell_type,
        exercise_id=envelope.exercise_id,
        cell_prints=envelope.cell_prints,
        sequence=envelope.sequence or 0,
        data=_check_data(envelope) | _note_ahead(occurred_at, received_at),
    )


def find_event_id(raw: bytes) -> str | None:
    """The id a refused event bears, for the answer; None where it has none that can be read."""
    match = re.search(rb'"(?:event_)?id"\s*:\s*"([0-9A-Za-z_.:-]{1,200})"', raw)
    return match.group(1).decode() if match else None


def encode(event: ReceivedEvent) -> bytes:
    """The event as the stream carries it. Raises InvalidEvent (NB-1011) for a number JSON cannot hold."""
    try:
        return _encode(event)
    except (OverflowError, ValueError, UnicodeEncodeError) as error:
        raise InvalidEvent("NB-1011", "invalid_field", detail=str(error)) from error


def decode(payload: bytes, entry: tuple[str, str] | None = None) -> ReceivedEvent:
    """What `encode` made, as read from `entry`. Raises PoisonEvent (NB-4001) for anything else."""
    try:
        event = _decode_received(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise PoisonEvent("NB-4001", detail=type(error).__name__) from error
    if event.event_type not in EVENT_TYPES or (b"\\u0000" in payload and _holds_nul(event.data)):
        raise PoisonEvent("NB-4001", detail="unknown event_type or NUL")
    return msgspec.structs.replace(event, entry=entry)


def _check_text(raw: bytes, envelope: _Envelope) -> None:
    """No NUL anywhere (PostgreSQL holds none) and no nesting beyond the limit."""
    if b"\\u0000" in raw and _holds_nul(msgspec.to_builtins(envelope)):
        raise InvalidEvent("NB-1014", "nul_character")
    if raw.count(b"{") + raw.count(b"[") > DEPTH_MAX and _measure_depth(envelope.data) + 1 > DEPTH_MAX:
        raise InvalidEvent("NB-1013", "too_deep", limit=DEPTH_MAX)


def _holds_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        return any(_holds_nul(key) or _holds_nul(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return any(_holds_nul(one) for one in value)
    return False


def _measure_depth(value: object) -> int:
    """Levels of nesting, walked without recursion: the input decides how deep it is."""
    deepest, open_values = 0, [(value, 1)]
    while open_values:
        one, depth = open_values.pop()
        if isinstance(one, dict | list):
            deepest = max(deepest, depth)
            children = one.values() if isinstance(one, dict) else one
            open_values.extend((child, depth + 1) for child in children)
    return deepest


def _identify(envelope: _Envelope, raw: bytes, user_id: UUID) -> tuple[UUID, datetime]:
    """The event's id and time in either form; an id made from the content where there is none."""
    occurred_at = envelope.occurred_at or envelope.timestamp
    if occurred_at is None:
        raise InvalidEvent("NB-1015", "missing_field", field="occurred_at")
    if occurred_at.tzinfo is None:
        raise InvalidEvent("NB-1016", "no_time_zone", field="occurred_at")
    if envelope.event_id is not None:
        return envelope.event_id, occurred_at
    if envelope.id is None:
        return uuid5(NAMESPACE_URL, f"nbpulse:content:{user_id}:{raw.decode('utf-8', 'replace')}"), occurred_at
    try:
        return UUID(envelope.id), occurred_at
    except ValueError:
        return uuid5(NAMESPACE_URL, f"nbpulse:id:{user_id}:{envelope.id}"), occurred_at


def _check_clock(occurred_at: datetime, received_at: datetime) -> datetime:
    """The time in UTC, never after our own clock; a clock a day or more wrong is refused aloud."""
    if occurred_at - received_at > CLOCK_AHEAD_MAX:
        raise InvalidEvent("NB-1017", "clock_ahead", limit_hours=24)
    if occurred_at < OCCURRED_AT_MIN:
        raise InvalidEvent("NB-1018", "clock_behind")
    # Not before: what is hours from the first or last year there is has no time in UTC.
    return min(occurred_at.astimezone(UTC), received_at)


def _note_ahead(occurred_at: datetime, received_at: datetime) -> dict[str, int]:
    """How far a clock is ahead that is minutes wrong: the time brought back to ours no longer tells."""
    ahead = occurred_at - received_at
    return {"clock_ahead_ms": round(ahead / timedelta(milliseconds=1))} if ahead > CLOCK_AHEAD_NOTED else {}


def _check_path(envelope: _Envelope) -> str | None:
    """The path in one spelling (NFC, `/`): macOS and Windows write the same Japanese name in other bytes."""
    if envelope.notebook_path is None:
        if envelope.event_type in NOTEBOOK_EVENT_TYPES:
            raise InvalidEvent("NB-1015", "missing_field", field="notebook_path")
        return None
    path = unicodedata.normalize("NFC", envelope.notebook_path).replace("\\", "/").removeprefix("./").lstrip("/")
    if not path:
        raise InvalidEvent("NB-1015", "missing_field", field="notebook_path")
    if len(path) > 500:
        raise InvalidEvent("NB-1011", "invalid_field", detail="notebook_path: at most 500 characters")
    return path


def _check_data(envelope: _Envelope) -> dict[str, Any]:
    """`data` of the event's type, with the flat form's fields moved into it."""
    if envelope.schema_version != SCHEMA_VERSION:
        raise InvalidEvent("NB-1019", "schema_version", version=envelope.schema_version)
    event_type, data = envelope.event_type, envelope.data or {}
    if event_type not in EVENT_TYPES:
        raise InvalidEvent("NB-1020", "unknown_type", event_type=event_type[:60])
    try:
        if event_type == "cell_execution":
            return _check_execution(envelope, dict(data))
        if event_type == "help_request":
            msgspec.convert(data, _HelpData)
        if event_type == "help_cancel":
            data = {name: value for name, value in data.items() if name != "reason"}  # ours to say
        if event_type == "presence" and msgspec.convert(data, _PresenceData).state not in PRESENCE_STATES:
            raise InvalidEvent("NB-1011", "invalid_field", detail="data.state: active, idle, hidden, paused")
    except msgspec.ValidationError as error:
        raise InvalidEvent("NB-1011", "invalid_field", detail=f"data: {error}") from error
    return data


def _check_execution(envelope: _Envelope, data: dict[str, Any]) -> dict[str, Any]:
    flat = {
        "execution_duration_ms": envelope.duration,
        "has_error": envelope.has_error,
        "error_message": envelope.error_message,
        "execution_count": envelope.execution_count,
    }
    data.update((name, value) for name, value in flat.items() if value is not None and name not in data)
    known = msgspec.convert(data, _ExecutionData)
    status = known.status or ("error" if known.has_error else "ok")
    if status not in EXECUTION_STATUSES:
        raise InvalidEvent(
            "NB-1011", "invalid_field", detail=f"data.status: one of {', '.join(sorted(EXECUTION_STATUSES))}"
        )
    data["status"] = status
    data["has_error"] = status == "error"
    return data


def describe_schema() -> dict[str, Any]:
    """The wire contract as JSON Schema (2020-12): docs/events.schema.json, and the hot route's part of OpenAPI."""
    kinds = (_ExecutionData, _HelpData, _PresenceData)
    parts = {kind: msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"] for kind in kinds}
    envelope = msgspec.json.schema(_Envelope)["$defs"]["_Envelope"]["properties"]
    for name in ("id", "timestamp", "duration", "has_error", "error_message", "execution_count", "user_id"):
        del envelope[name]
    envelope |= {
        "event_id": {"type": "string", "format": "uuid"},
        "occurred_at": {"type": "string", "format": "date-time"},
        "schema_version": {"const": SCHEMA_VERSION},
    }
    parts[_ExecutionData]["status"] = {"enum": sorted(EXECUTION_STATUSES)}
    parts[_PresenceData]["state"] = {"enum": sorted(PRESENCE_STATES)}
    groups: list[tuple[list[str], Any]] = [
        (["cell_execution"], _ExecutionData),
        (sorted(NOTEBOOK_EVENT_TYPES - {"cell_execution"}), None),
        (["help_request"], _HelpData),
        (["presence"], _PresenceData),
        (["help_cancel", "kernel_status"], None),
    ]
    variants = []
    for names, kind in groups:
        data = {"type": "object", "properties": parts[kind]} if kind else {"type": "object"}
        properties = envelope | {"event_type": {"enum": names}, "data": data}
        required = ["event_id", "event_type", "occurred_at"]
        if NOTEBOOK_EVENT_TYPES.issuperset(names):
            properties["notebook_path"] = {"type": "string", "minLength": 1, "maxLength": 500}
            required.append("notebook_path")
        variants.append({"type": "object", "required": required, "properties": properties})
    return {"title": "nbpulse event", "description": "One learning event; see docs/events.md.", "oneOf": variants}
