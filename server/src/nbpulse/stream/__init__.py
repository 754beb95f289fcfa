"""The durable event stream on Redis or Valkey Streams: one stream per logical shard and lane.

Promises: `append` returns only after the server has answered, with `appendfsync always` that is after its fsync;
nothing is ever sent twice on the quiet (a lost answer is the caller's Unavailable, its retry the ledger's duplicate);
an entry leaves the stream only after its acknowledgement; helps have streams of their own and never queue behind runs.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from nbpulse import events, metrics
from nbpulse.errors import Unavailable
from nbpulse.shards import SHARD_COUNT, get_shard_key
from nbpulse.stream.appender import Appender, Entry
from nbpulse.stream.link import ANSWER_DEADLINE_S, Command, Link, pair_answer
from nbpulse.stream.scripts import ACK, MEASURE, SUSPECT, TRIM

Lane = Literal["events", "help"]
Promise = Literal["power", "process", "memory"]

LANES: Final[tuple[Lane, ...]] = ("help", "events")
GROUP: Final = b"nbpulse-workers"
GENERATION_KEY: Final = "nbpulse:generation"
SUSPECTS_KEY: Final = b"nbpulse:suspects"
BATCH_EVENTS: Final = 1_000
BACKLOG_AGE_S: Final = 0.5
STREAM_KEYS: Final[dict[Lane, tuple[bytes, ...]]] = {
    lane: tuple(f"nbpulse:{lane}:{{shard_{number}}}".encode() for number in range(SHARD_COUNT)) for lane in LANES
}
_ALL_KEYS: Final = tuple(key for lane in LANES for key in STREAM_KEYS[lane])
_ALL_SHARDS: Final = range(SHARD_COUNT)
_log = structlog.get_logger(__name__)


class Entries(NamedTuple):
    """All streams of one server at one moment; `generation` is its mark, empty where no worker was there yet."""

    waiting: int
    pending: int
    added: int
    generation: str


class Delivery(msgspec.Struct, frozen=True):
    """One entry handed to this worker. `deliveries` counts how often it was handed to anybody, this time included."""

    stream: bytes
    entry_id: bytes
    payload: bytes
    deliveries: int = 1

    @property
    def entry(self) -> tuple[str, str]:
        """Where it stands, as text (stream, id)."""
        return self.stream.decode(), self.entry_id.decode()


class EventStream:
    """
    The streams of all shards, for the API (append) and for workers (read, acknowledge, trim).

    `consumer` is this worker's name in the group: stable over restarts, so that what a killed process had in hand is
    the first thing its successor reads.
    """

    def __init__(self, redis: Redis, *, consumer: str | None = None, backlog_limit: int = 500_000) -> None:
        self._consumer = (consumer or f"worker-{secrets.token_hex(4)}").encode()
        self._backlog_limit = backlog_limit
        self._appends = Link(redis)
        self._appender = Appender(self._appends)
        self._control = Link(redis)
        self._readers: dict[Lane, Link] = {lane: Link(redis) for lane in LANES}
        # Per lane the streams whose own pending entries are still to be read again, each with the last id seen.
        self._replays: dict[Lane, dict[bytes, bytes]] = {lane: dict.fromkeys(STREAM_KEYS[lane], b"0") for lane in LANES}
        self._touched: set[bytes] = set()
        self._backlog = 0
        self._appended = 0
        self._backlog_at = float("-inf")
        self._backlog_task: asyncio.Task[None] | None = None
        self._generation: bytes | None = None

    @property
    def consumer(self) -> str:
        """This process's name in the group."""
        return self._consumer.decode()

    async def close(self) -> None:
        """Close every connection; entries in hand stay pending for this consumer."""
        await self._appender.close()
        if self._backlog_task is not None:
            self._backlog_task.cancel()
            await asyncio.gather(self._backlog_task, return_exceptions=True)
        for link in (self._appends, self._control, *self._readers.values()):
            await link.close()

    # --- the API's side -------------------------------------------------------------------------------------------

    async def append(self, received: Sequence[events.ReceivedEvent]) -> None:
        """
        Append events durably; concurrent callers share one write and one fsync.

        Raises Unavailable within 1 s: NB-2002 when the backlog is at its limit (nothing was appended), NB-2001 when the
        server does not answer or refuses (they may or may not be there: answer 503, the client sends again).
        Raises InvalidEvent when an event cannot be encoded (nothing was appended).
        """
        await self.append_payloads([(get_stream_key(event), events.encode(event)) for event in received])

    async def append_payloads(self, entries: Sequence[Entry]) -> None:
        """`append` for what is encoded already, as (stream, payload): the dead letters' way back."""
        self._watch_backlog()
        if self._backlog >= self._backlog_limit:
            raise Unavailable("NB-2002", backlog=self._backlog, limit=self._backlog_limit)
        await self._appender.append(entries)
        self._backlog += len(entries)
        self._appended += len(entries)

    async def read_promise(self) -> Promise | None:
        """
        What an accepted event survives with the server as it is set now; None where CONFIG is forbidden.

        "power": a power cut. "process": the death of the server process. "memory": nothing. Raises Unavailable.
        """
        names = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy")
        try:
            answer = await self._control.call_one("CONFIG", "GET", *names, query_type="read_settings")
        except ResponseError:
            return None
        settings = {name.decode(): value.decode() for name, value in pair_answer(answer)}
        if settings.get("appendonly") != "yes" or settings.get("maxmemory-policy") != "noeviction":
            return "memory"
        if settings.get("appendfsync") == "always" and settings.get("no-appendfsync-on-rewrite") == "no":
            return "power"
        return "memory" if settings.get("appendfsync") == "no" else "process"

    async def measure_backlog(self) -> int:
        """Events appended and not yet acknowledged, over all streams: waiting and pending. Raises Unavailable."""
        entries = await self.count_entries()
        return entries.waiting + entries.pending

    async def count_entries(self) -> Entries:
        """Entries waiting, pending and ever added, at one moment. Raises Unavailable."""
        arguments = [GROUP, GENERATION_KEY.encode()]
        waiting, pending, added, mark = await self._run_script("measure_backlog", MEASURE, _ALL_KEYS, arguments)
        return Entries(waiting, pending, added, mark.decode())

    async def _run_script(
        self, query_type: metrics.RedisQuery, script: bytes, keys: Sequence[bytes], arguments: Sequence[bytes]
    ) -> Any:
        try:
            return await self._control.call_one(b"EVAL", script, len(keys), *keys, *arguments, query_type=query_type)
        except ResponseError as refusal:
            raise Unavailable("NB-2001") from refusal

    def _watch_backlog(self) -> None:
        """Measure again in the background when the last figure is old; callers never wait for it."""
        is_running = self._backlog_task is not None and not self._backlog_task.done()
        if not is_running and time.monotonic() - self._backlog_at > BACKLOG_AGE_S:
            self._backlog_task = asyncio.create_task(self._refresh_backlog())

    async def _refresh_backlog(self) -> None:
        self._backlog_at = time.monotonic()
        before = self._appended
        try:
            measured = await self.measure_backlog()
        except Unavailable:
            return  # `append` says so itself, to somebody who can act on it
        # What was appended meanwhile may have come after the server counted: rather counted twice than not at all.
        self._backlog = measured + self._appended - before
        metrics.stream_backlog_events.set(self._backlog)

    # --- the worker's side ----------------------------------------------------------------------------------------

    async def ensure_groups(self) -> bool:
        """
        Make every stream and the group on it, read from the beginning; True when this server had none of them.

        A server that was known and has lost its mark is another one or an emptied one: said aloud, and counted.
        """
        answers = await self._control.call(
            [
                ("SET", GENERATION_KEY, secrets.token_hex(8), "NX"),
                ("GET", GENERATION_KEY),
                *(("XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM") for key in _ALL_KEYS),
            ],
            query_type="make_groups",
        )
        for answer in answers:
            if isinstance(answer, Exception) and "BUSYGROUP" not in str(answer):
                raise Unavailable("NB-2001") from answer
        generation = answers[1]
        if self._generation not in (None, generation):
            metrics.stream_generation_changes.inc()
            _log.error("stream.emptied", code="NB-4004", before=self._generation, now=generation)
        self._generation = generation
        self._touched.update(_ALL_KEYS)  # a worker before us may have acknowledged and died before it trimmed
        return not any(isinstance(answer, Exception) for answer in answers[2:])

    async def read(self, lane: Lane, shards: Collection[int] = _ALL_SHARDS, *, block_ms: int = 500) -> list[Delivery]:
        """
        The next deliveries of a lane's `shards`, at most 1,000; empty when none came within `block_ms`.

        What this consumer has in hand from before a restart or a lost connection comes first, and again until it is
        acknowledged. Raises Unavailable.
        """
        keys = [STREAM_KEYS[lane][shard] for shard in shards]
        try:
            if any(key in self._replays[lane] for key in keys):
                deliveries = await self._replay(lane, keys)
                if deliveries:
                    return deliveries
            return await self._read_new(lane, keys, block_ms)
        except Unavailable:
            # Answers may have been lost on the way: their entries are ours and pending.
            self.replay_pending(lane)
            raise
        except ResponseError as refusal:
            if "NOGROUP" not in str(refusal):
                raise Unavailable("NB-2001") from refusal
            _log.error("stream.group_missing", lane=lane)
            await self.ensure_groups()
            return []

    def replay_pending(self, lane: Lane) -> None:
        """Read this consumer's own pending entries of the lane again before anything new."""
        self._replays[lane] = dict.fromkeys(STREAM_KEYS[lane], b"0")

    async def adopt(self, lane: Lane, shards: Collection[int]) -> None:
        """
        Take over everything that is pending in these shards, whosever it was, and read it before anything new.

        For whoever alone reads them from now on. Raises Unavailable: then do it again.
        """
        places = dict.fromkeys((STREAM_KEYS[lane][shard] for shard in shards), b"0-0")
        adopted = list(places)
        while places:
            claims = [
                (b"XAUTOCLAIM", key, GROUP, self._consumer, 0, place, b"COUNT", BATCH_EVENTS, b"JUSTID")
                for key, place in places.items()
            ]
            answers = await self._readers[lane].call(claims, query_type="claim")
            # No group: `read` sees the same and mends it.
            ends = {key: one[0] for key, one in zip(places, answers, strict=True) if not isinstance(one, Exception)}
            places = {key: place for key, place in ends.items() if place != b"0-0"}
        self._replays[lane].update(dict.fromkeys(adopted, b"0"))

    async def reclaim(self, lane: Lane, idle_ms: int, shards: Collection[int] = _ALL_SHARDS) -> list[Delivery]:
        """
        Take over entries whose worker has not acknowledged them for `idle_ms`, at most 1,000.

        Their first worker may still be alive and finish them too: storing twice changes nothing.
        """
        keys = [STREAM_KEYS[lane][shard] for shard in shards]
        claims = [
            (b"XAUTOCLAIM", key, GROUP, self._consumer, idle_ms, b"0", b"COUNT", BATCH_EVENTS // len(keys))
            for key in keys
        ]
        answers = await self._readers[lane].call(claims, query_type="claim")
        found = []
        for key, answer in zip(keys, answers, strict=True):
            if isinstance(answer, Exception):
                return []  # no group: `read` sees the same and mends it
            found += [_deliver(key, entry) for entry in answer[1]]
        return await self._count_deliveries(lane, found)

    async def ack(self, deliveries: Iterable[Delivery]) -> None:
        """These are done: the group forgets them, and `trim` may remove them. Raises Unavailable."""
        done = list(deliveries)
        if not done:
            return
        if suspects := [_name_suspect(one) for one in done if one.deliveries > 1]:
            await self._control.call_one(b"HDEL", SUSPECTS_KEY, *suspects, query_type="forget_suspects")
        ids: dict[bytes, list[bytes]] = {}
        for one in done:
            ids.setdefault(one.stream, []).append(one.entry_id)
        await self._run_script("ack", ACK, list(ids), [*(b" ".join(some) for some in ids.values()), GROUP])
        self._touched.update(ids)

    async def suspect(self, delivery: Delivery) -> int | None:
        """
        Note durably that this entry is tried alone; how often it was before, without an end. Raises Unavailable.

        None: another worker has taken it over (the wait for its turn was long), or it is done; nothing was noted.
        """
        arguments = [GROUP, self._consumer, delivery.entry_id, _name_suspect(delivery)]
        count: int = await self._run_script("note_suspect", SUSPECT, [delivery.stream, SUSPECTS_KEY], arguments)
        return None if count < 0 else count

    async def trim(self) -> None:
        """Remove what every group has acknowledged from the streams touched since the last time. Raises Unavailable."""
        if not self._touched:
            return
        keys, self._touched = sorted(self._touched), set()
        try:
            self._touched.update(await self._run_script("trim", TRIM, keys, []))
        except Unavailable:
            self._touched.update(keys)
            raise

    async def _read_new(self, lane: Lane, keys: Sequence[bytes], block_ms: int) -> list[Delivery]:
        deliveries, full = await self._read_group(lane, keys, BATCH_EVENTS // len(keys), block_ms)
        # COUNT is per stream: a few busy streams are asked again, with what is left of the batch shared among them.
        if full and (count := (BATCH_EVENTS - len(deliveries)) // len(full)):
            more, _ = await self._read_group(lane, full, count, None)
            deliveries += more
        return deliveries

    async def _read_group(
        self, lane: Lane, keys: Sequence[bytes], count: int, block_ms: int | None
    ) -> tuple[list[Delivery], list[bytes]]:
        """New deliveries of `keys`, and those keys that gave all they were asked for."""
        head: list[bytes | str | int] = [b"XREADGROUP", b"GROUP", GROUP, self._consumer, b"COUNT", count]
        if block_ms is not None:
            head += [b"BLOCK", block_ms]
        deadline_s = ANSWER_DEADLINE_S + (block_ms or 0) / 1000
        reply = await self._readers[lane].call_one(
            *(*head, b"STREAMS", *keys, *([b">"] * len(keys))),
            query_type="read_new" if block_ms is None else None,
            deadline_s=deadline_s,
        )
        deliveries: list[Delivery] = []
        full = []
        for key, entries in pair_answer(reply):
            deliveries += [_deliver(key, entry) for entry in entries]
            if len(entries) >= count:
                full.append(key)
        return deliveries, full

    async def _replay(self, lane: Lane, keys: Sequence[bytes]) -> list[Delivery]:
        """The next of this consumer's own pending entries in `keys`; empty when all have been read again."""
        replays = self._replays[lane]
        replay = {key: replays[key] for key in keys if key in replays}
        found: list[Delivery] = []
        count = BATCH_EVENTS // len(replay)
        head: Command = (b"XREADGROUP", b"GROUP", GROUP, self._consumer, b"COUNT", count, b"STREAMS")
        reply = await self._readers[lane].call_one(*head, *replay, *replay.values(), query_type="read_pending")
        for key in replay:
            del replays[key]
        for key, entries in pair_answer(reply):
            if entries:
                replays[key] = entries[-1][0]
                found += [_deliver(key, entry) for entry in entries]
        return await self._count_deliveries(lane, found)

    async def _count_deliveries(self, lane: Lane, found: Sequence[Delivery]) -> list[Delivery]:
        """`found` with how often each was delivered; taking them over has just counted once more."""
        spans: dict[bytes, list[bytes]] = {}
        for delivery in found:
            spans.setdefault(delivery.stream, []).append(delivery.entry_id)
        asked = [(b"XPENDING", key, GROUP, ids[0], ids[-1], 10 * len(ids)) for key, ids in spans.items()]
        counts: dict[tuple[bytes, bytes], int] = {}
        for key, answer in zip(
            spans, await self._readers[lane].call(asked, query_type="count_deliveries"), strict=True
        ):
            if not isinstance(answer, Exception):
                counts.update(((key, row[0]), row[3]) for row in answer)
        metrics.worker_redeliveries.inc(len(found))
        return [
            Delivery(one.stream, one.entry_id, one.payload, max(2, counts.get((one.stream, one.entry_id), 2)))
            for one in found
        ]


@lru_cache(maxsize=100_000)
def _get_keys(user_id: UUID) -> tuple[bytes, bytes]:
    shard = get_shard_key(str(user_id))
    return f"nbpulse:events:{{{shard}}}".encode(), f"nbpulse:help:{{{shard}}}".encode()


def get_stream_key(event: events.ReceivedEvent) -> bytes:
    """The stream an event belongs to."""
    return _get_keys(event.user_id)[event.event_type in events.HELP_EVENT_TYPES]


def _deliver(key: bytes, entry: Sequence[Any]) -> Delivery:
    """An entry as the server sent it; one with other fields than ours is a payload nobody can decode."""
    entry_id, fields = entry
    if fields and len(fields) == 2 and fields[0] == b"e":
        return Delivery(key, entry_id, fields[1])
    return Delivery(key, entry_id, b" ".join(fields or ()))


def _name_suspect(delivery: Delivery) -> bytes:
    return delivery.stream + b" " + delivery.entry_id
