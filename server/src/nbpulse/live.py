"""The way from the worker to the boards: Pub/Sub, absolute states, safe to repeat and safe to lose.

A class's channel is a sharded one: on a cluster its messages stay with one server, where the specification's three
channels go to all of them.

Promises: what is published carries revisions, never increments, so a repeat changes nothing and a loss is healed by the
next state or by the hub's look at PostgreSQL; the specification's channels carry no free text.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import structlog
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.cluster import ClusterPipeline
from redis.exceptions import RedisError

from nbpulse.classroom import LearnerState
from nbpulse.cluster import Cluster
from nbpulse.errors import Unavailable
from nbpulse.events import ReceivedEvent

PROGRESS_CHANNEL: Final = "progress_events"
ERROR_CHANNEL: Final = "error_events"
SESSION_CHANNEL: Final = "session_events"
SESSION_EVENT_TYPES: Final = frozenset({"session_start", "session_end"})
_CHANNEL_DATA: Final = ("status", "execution_duration_ms", "has_error", "error_name", "execution_count")
# One command and one argument per channel instead of one per event: 500 events cost the worker 1 ms, not 10.
_PUBLISH: Final = "for _, one in ipairs(cmsgpack.unpack(ARGV[2])) do redis.call('PUBLISH', ARGV[1], one) end return 1"

# The specification's two caches (cache.py reads them and makes them anew): value and expiry in one step.
SESSION_LIFE_S: Final = 3_600
SUMMARY_LIFE_S: Final = 300
_NOTE_SESSIONS: Final = (
    "for _, one in ipairs(cmsgpack.unpack(ARGV[1])) do redis.call('SET', one[1], one[2], 'EX', ARGV[2]) end return 1"
)
SUMMARY_STALE_S: Final = 5.0

_log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode


def name_live_channel(course_id: str) -> str:
    """The channel on which a course's states go to the API processes."""
    return f"nbpulse:live:{course_id}"


def name_session(user_id: str) -> str:
    """The specification's `session:<user_id>`."""
    return f"session:{user_id}"


def name_summary(notebook_id: str) -> str:
    """The specification's `class_summary:<notebook_id>`."""
    return f"class_summary:{notebook_id}"


def encode_session(notebook_id: str | None, last_activity_ms: int | None) -> bytes:
    """The value of `session:<user_id>`; None, None for somebody who has not begun."""
    last_activity = None if last_activity_ms is None else datetime.fromtimestamp(last_activity_ms / 1000, UTC)
    return _encode({"current_notebook": notebook_id, "last_activity": last_activity})


class LivePublisher:
    """Publishes what a batch changed, as `pipeline.Publisher`."""

    def __init__(self, redis: Redis | Cluster) -> None:
        self._redis = redis
        # When each notebook's summary was last thrown away: in a busy class not with every batch.
        self._summaries: dict[str, float] = {}

    async def publish(self, events: Sequence[ReceivedEvent], states: Sequence[LearnerState]) -> None:
        """
        Tell the boards the new states and the specification's channels each event.

        Raises Unavailable (NB-2001): nobody was told. What a server of a cluster that is away was to be told is not
        waited for: boards look at PostgreSQL every 2 s, and what it has cached ends by itself.
        """
        pipe = self._redis.pipeline(transaction=False)
        for course_id, message in _encode_states(events, states).items():
            pipe.spublish(name_live_channel(course_id), message)
        for channel, messages in _encode_events(events).items():
            if messages:
                pipe.eval(_PUBLISH, 0, channel, _pack([one.decode() for one in messages]))
        if states:
            self._note_sessions(pipe, states)
        stale, young = self._sort_summaries(states)
        for name in stale:
            pipe.delete(name)
        for name in young:
            # This change may be the last for an hour: what was made anew since must not tell of before for longer.
            pipe.expire(name, round(SUMMARY_STALE_S), lt=True)
        try:
            answers = await pipe.execute(raise_on_error=isinstance(self._redis, Redis))
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable("NB-2001") from error
        failures = [answer for answer in answers if isinstance(answer, Exception)]
        if failures and len(failures) == len(answers):
            raise Unavailable("NB-2001") from failures[0]
        if failures:
            _log.warning("live.not_all_told", count=len(failures), error=type(failures[0]).__name__)

    def _note_sessions(self, pipe: Pipeline | ClusterPipeline, states: Sequence[LearnerState]) -> None:
        sessions = [
            (name_session(one.user_id), encode_session(one.notebook_id, one.last_activity_ms).decode())
            for one in states
        ]
        if isinstance(self._redis, Redis):
            pipe.eval(_NOTE_SESSIONS, 0, _pack(sessions), SESSION_LIFE_S)
            return
        for name, session in sessions:  # a script may only touch what is on its server
            pipe.set(name, session, ex=SESSION_LIFE_S)

    def _sort_summaries(self, states: Iterable[LearnerState]) -> tuple[list[str], list[str]]:
        """Keys of the summaries these states change: those to throw away, those thrown away in the last 5 s."""
        now = time.monotonic()
        self._summaries = {name: at for name, at in self._summaries.items() if now - at < SUMMARY_STALE_S}
        changed = {cell.notebook_id for state in states for cell in state.cells}
        young = changed & self._summaries.keys()
        self._summaries |= dict.fromkeys(changed - young, now)
        return [name_summary(one) for one in changed - young], [name_summary(one) for one in young]


def _encode_states(events: Sequence[ReceivedEvent], states: Sequence[LearnerState]) -> dict[str, bytes]:
    by_course: dict[str, list[LearnerState]] = {}
    for state in states:
        by_course.setdefault(state.course_id, []).append(state)
    newest = max((event.received_at for event in events), default=None)
    received_ms = round(newest.timestamp() * 1000) if newest else 0
    return {
        course_id: _encode({"t": "states", "received_ms": received_ms, "states": changed})
        for course_id, changed in by_course.items()
    }


def _encode_events(events: Sequence[ReceivedEvent]) -> dict[str, list[bytes]]:
    """Each channel's messages in the specification's form {"event_type", "user_id", "data"}."""
    channels: dict[str, list[bytes]] = {PROGRESS_CHANNEL: [], ERROR_CHANNEL: [], SESSION_CHANNEL: []}
    for event in events:
        message = {"event_type": event.event_type, "user_id": event.user_id, "data": _describe(event)}
        encoded = _encode(message)
        channels[PROGRESS_CHANNEL].append(encoded)
        if event.event_type in SESSION_EVENT_TYPES:
            channels[SESSION_CHANNEL].append(encoded)
        elif event.event_type == "cell_execution" and event.data.get("status") == "error":
            channels[ERROR_CHANNEL].append(_encode({**message, "event_type": "execution_error"}))
    return channels


def _describe(event: ReceivedEvent) -> dict[str, Any]:
    """What a subscriber may know of an event: no message, no source, no output."""
    data = event.data
    return {
        "event_id": event.event_id,
        "course_id": event.course_id,
        "occurred_at": event.occurred_at,
        "notebook_path": event.notebook_path,
        "cell_index": event.cell_index,
        "cell_id": event.cell_id,
        **{name: data[name] for name in _CHANNEL_DATA if name in data},
    }
