"""The durable event stream on Redis or Valkey Streams: one stream per logical shard and lane.

On a cluster a shard's streams are together on one server; what is asked about many streams is parted by shard.
Promises: `append` returns only after the server has answered, with `appendfsync always` that is after its fsync, and
where replicas are promised after that of one of them; nothing is ever sent twice on the quiet (a lost answer is the
caller's Unavailable, its retry the ledger's duplicate);
an entry leaves the stream only after its acknowledgement; helps have streams of their own and never queue behind runs.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from nbpulse import events, metrics
from nbpulse.cluster import Cluster
from nbpulse.errors import Unavailable
from nbpulse.shards import SHARD_COUNT, get_shard_key
from nbpulse.stream.appender import Appender, Entry
from nbpulse.stream.cluster import AnyLink, open_link
from nbpulse.stream.link import ANSWER_DEADLINE_S, Command, Link, pair_answer
from nbpulse.stream.promises import Promise, read_promise
from nbpulse.stream.scripts import ACK, MEASURE, SUSPECT, TRIM

Lane = Literal["events", "help"]

LANES: Final[tuple[Lane, ...]] = ("help", "events")
GROUP: Final = b"nbpulse-workers"
GENERATION_KEY: Final = "nbpulse:generation"
BATCH_EVENTS: Final = 1_000
BACKLOG_AGE_S: Final = 0.5
_LOOK_AGAIN_S: Final = 0.025
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
    the first thing its successor reads. `confirms`: an append is done when a replica has it too.
    """

    def __init__(
        self,
        redis: Redis | Cluster,
        *,
        consumer: str | None = None,
        backlog_limit: int = 500_000,
        confirms: bool = False,
    ) -> None:
        self._consumer = (consumer or f"worker-{secrets.token_hex(4)}").encode()
        self._backlog_limit = backlog_limit
        self._open_appends = partial(open_link, redis, confirms=confirms)
        # One for each server: where one is away, the others' students do not wait for it.
        self._appenders: dict[str, Appender] = {}
        self._control = open_link(redis)
        self._readers: dict[Lane, AnyLink] = {lane: open_link(redis) for lane in LANES}
        # Per lane the streams whose own pending entries are still to be read again, each with the last id seen.
        self._replays: dict[Lane, dict[bytes, bytes]] = {lane: dict.fromkeys(STREAM_KEYS[lane], b"0") for lane in LANES}
        self._touched: set[bytes] = set()
        self._unacknowledged: list[Delivery] = []
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
        for appender in self._appenders.values():
            await appender.close()
        if self._backlog_task is not None:
            self._backlog_task.cancel()
            await asyncio.gather(self._backlog_task, return_exceptions=True)
        for link in (self._control, *self._readers.values()):
            await link.close()

    # --- the API's side -------------------------------------------------------------------------------------------

    async def append(self, received: Sequence[events.ReceivedEvent]) -> None:
        """
        Append events durably; concurrent callers share one write and one fsync.

        Raises Unavailable within 1 s: NB-2002 when the backlog is at its limit (nothing was appended), NB-2001 when a
        server does not answer or refuses, NB-2030 when no replica confirms (they may or may not be there: answer 503,
        the client sends again).
        Raises InvalidEvent when an event cannot be encoded (nothing was appended).
        """
        await self.append_payloads([(get_stream_key(event), events.encode(event)) for event in received])

    async def append_payloads(self, entries: Sequence[Entry]) -> None:
        """`append` for what is encoded already, as (stream, payload): the dead letters' way back."""
        self._watch_backlog()
        if self._backlog >= self._backlog_limit:
            raise Unavailable("NB-2002", backlog=self._backlog, limit=self._backlog_limit)
        places = {self._control.find_place(stream) for stream, _ in entries}
        if len(places) == 1:
            await self._get_appender(places.pop()).append(entries)
        else:
            await self._append_at_many(places, entries)
        self._backlog += len(entries)
        self._appended += len(entries)

    async def _append_at_many(self, places: Iterable[str], entries: Sequence[Entry]) -> None:
        appends = []
        for place in places:
            own = [entry for entry in entries if self._control.find_place(entry[0]) == place]
            appends.append(self._get_appender(place).append(own))
        for end in await asyncio.gather(*appends, return_exceptions=True):
            if end is not None:
                raise end

    def _get_appender(self, place: str) -> Appender:
        appender = self._appenders.get(place)
        if appender is None:
            appender = self._appenders[place] = Appender(self._open_appends())
        return appender

    async def read_promise(self) -> Promise | None:
        """What an accepted event survives as the servers are set now; None: CONFIG is forbidden. Raises Unavailable."""
        return await read_promise(self._control)

    async def measure_backlog(self) -> int:
        """Events appended and not yet acknowledged, over all streams: waiting and pending. Raises Unavailable."""
        entries = await self.count_entries()
        return entries.waiting + entries.pending

    async def count_entries(self) -> Entries:
        """Entries waiting, pending and ever added, at one moment of each server. Raises Unavailable."""
        parts = self._control.part(_ALL_KEYS, bytes)
        scripts: list[Command] = [(b"EVAL", MEASURE, len(keys), *keys, GROUP) for keys in parts]
        *counts, mark = await self._ask([*scripts, (b"GET", GENERATION_KEY)], "measure_backlog")
        waiting, pending, added = (sum(figures) for figures in zip(*counts, strict=True))
        return Entries(waiting, pending, added, (mark or b"").decode())

    async def _ask(self, commands: Sequence[Command], query_type: metrics.RedisQuery) -> list[Any]:
        return await self._control.ask(commands, ANSWER_DEADLINE_S, query_type=query_type, may_refuse=False)

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
        Make every stream and the group on it, read from the beginning; whether each server has done so: where one of a
        cluster is away, `read` makes its groups when it is back. Raises Unavailable: none did.

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
        failures = [one for one in answers if isinstance(one, Exception) and "BUSYGROUP" not in str(one)]
        if failures and (isinstance(self._control, Link) or len(failures) == len(answers)):
            raise Unavailable("NB-2001") from failures[0]
        generation = self._generation if isinstance(answers[1], Exception) else answers[1]
        is_any_new = any(not isinstance(answer, Exception) for answer in answers[2:])
        # Of a cluster one server may have come back empty, and the mark be on another.
        if self._generation is not None and (self._generation != generation or is_any_new):
            metrics.stream_generation_changes.inc()
            _log.error("stream.emptied", code="NB-4004", before=self._generation, now=generation)
        self._generation = generation
        self._touched.update(_ALL_KEYS)  # a worker before us may have acknowledged and died before it trimmed
        return not failures

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
            if not _lacks_group(refusal):
                raise Unavailable("NB-2001") from refusal
            _log.error("stream.group_missing", lane=lane)
            await self.ensure_groups()
            return []

    def replay_pending(self, lane: Lane) -> None:
        """Read this consumer's own pending entries of the lane again before anything new."""
        self._replays[lane] = dict.fromkeys(STREAM_KEYS[lane], b"0")

    async def adopt(self, lane: Lane, shards: Collection[int]) -> set[int]:
        """
        Take over everything that is pending in these shards, whosever it was, and read it before anything new.

        For whoever alone reads them from now on. Gives those whose server (of a cluster) did not do so: not to be read
        yet. Raises Unavailable: none did.
        """
        wanted = {STREAM_KEYS[lane][shard]: shard for shard in shards}
        places = dict.fromkeys(wanted, b"0-0")
        away: set[bytes] = set()
        while places:
            claims = [
                (b"XAUTOCLAIM", key, GROUP, self._consumer, 0, place, b"COUNT", BATCH_EVENTS, b"JUSTID")
                for key, place in places.items()
            ]
            answers = dict(zip(places, await self._readers[lane].call(claims, query_type="claim"), strict=True))
            # No group: `read` sees the same and mends it.
            away.update(key for key, one in answers.items() if isinstance(one, Exception) and not _lacks_group(one))
            ends = {key: one[0] for key, one in answers.items() if not isinstance(one, Exception)}
            places = {key: place for key, place in ends.items() if place != b"0-0"}
        if len(away) == len(wanted):
            raise Unavailable("NB-2001")
        self._replays[lane].update(dict.fromkeys(wanted.keys() - away, b"0"))
        return {wanted[key] for key in away}

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
            if not isinstance(answer, Exception):  # no group, or no answer: `read` sees the same and mends it
                found += [_deliver(key, entry) for entry in answer[1]]
        return await self._count_deliveries(lane, found)

    async def ack(self, deliveries: Iterable[Delivery]) -> None:
        """
        These are done: the group forgets them, and `trim` may remove them.

        Raises Unavailable: the one server did not answer. Where one of a cluster's does not, the others' shards do not
        wait: it is told again with the next `trim`; until then its entries may come again.
        """
        done = list(deliveries)
        if not done:
            return
        ids: dict[bytes, list[bytes]] = {}
        for one in done:
            ids.setdefault(one.stream, []).append(one.entry_id)
        suspects: dict[bytes, list[bytes]] = {}
        for one in done:
            if one.deliveries > 1:
                suspects.setdefault(one.stream, []).append(one.entry_id)
        forgotten: list[Command] = [(b"HDEL", _name_suspects(key), *some) for key, some in suspects.items()]
        parts = self._control.part(list(ids), bytes)
        acks: list[Command] = [
            (b"EVAL", ACK, len(keys), *keys, *(b" ".join(ids[key]) for key in keys), GROUP) for keys in parts
        ]
        answers = (await self._control.call([*forgotten, *acks], query_type="ack"))[len(forgotten) :]
        for keys, answer in zip(parts, answers, strict=True):
            if isinstance(answer, Exception):
                if isinstance(self._control, Link):
                    raise Unavailable("NB-2001") from answer
                self._unacknowledged += [one for one in done if one.stream in keys]
        self._touched.update(ids)

    async def suspect(self, delivery: Delivery) -> int | None:
        """
        Note durably that this entry is tried alone; how often it was before, without an end. Raises Unavailable.

        None: another worker has taken it over (the wait for its turn was long), or it is done; nothing was noted.
        """
        keys = [delivery.stream, _name_suspects(delivery.stream)]
        command: Command = (b"EVAL", SUSPECT, 2, *keys, GROUP, self._consumer, delivery.entry_id)
        (count,) = await self._ask([command], "note_suspect")
        return None if count < 0 else int(count)

    async def trim(self) -> None:
        """
        Remove what every group has acknowledged from the streams touched since the last time; where one server of a
        cluster is away, from its streams later. Raises Unavailable: none did.
        """
        owed, self._unacknowledged = self._unacknowledged, []
        try:
            await self.ack(owed)
        except Unavailable:
            self._unacknowledged += owed
            raise
        if not self._touched:
            return
        parts, self._touched = self._control.part(sorted(self._touched), bytes), set()
        try:
            trims: list[Command] = [(b"EVAL", TRIM, len(part), *part) for part in parts]
            answers = await self._control.call(trims, query_type="trim")
        except Unavailable:
            self._touched.update(*parts)
            raise
        failures = [answer for answer in answers if isinstance(answer, Exception)]
        for part, answer in zip(parts, answers, strict=True):
            self._touched.update(part if isinstance(answer, Exception) else answer)
        if len(failures) == len(answers):
            raise Unavailable("NB-2001") from failures[0]

    async def _read_new(self, lane: Lane, keys: Sequence[bytes], block_ms: int) -> list[Delivery]:
        end, count = time.monotonic() + block_ms / 1000, BATCH_EVENTS // len(keys)
        # One server waits for us; of many streams at many servers none can, so they are looked at again and again.
        can_block = len(self._readers[lane].part(keys, bytes)) == 1
        deliveries, full = await self._read_group(lane, keys, count, block_ms if can_block else None)
        while not deliveries and not can_block and time.monotonic() < end:
            await asyncio.sleep(_LOOK_AGAIN_S)
            deliveries, full = await self._read_group(lane, keys, count, None)
        # COUNT is per stream: a few busy streams are asked again, with what is left of the batch shared among them.
        if full and (count := (BATCH_EVENTS - len(deliveries)) // len(full)):
            more, _ = await self._read_group(lane, full, count, None)
            deliveries += more
        return deliveries

    async def _read_group(
        self, lane: Lane, keys: Sequence[bytes], count: int, block_ms: int | None
    ) -> tuple[list[Delivery], list[bytes]]:
        """New deliveries of `keys`, and those keys that gave all they were asked for."""
        head: list[bytes | str | int] = [b"COUNT", count]
        if block_ms is not None:
            head += [b"BLOCK", block_ms]
        query_type: metrics.RedisQuery | None = "read_new" if block_ms is None else None
        deadline_s = ANSWER_DEADLINE_S + (block_ms or 0) / 1000
        found, lost = await self._read_streams(lane, head, dict.fromkeys(keys, b">"), query_type, deadline_s)
        self._replays[lane].update(dict.fromkeys(lost, b"0"))
        if len(lost) == len(keys):
            raise Unavailable("NB-2001")
        deliveries = [_deliver(key, entry) for key, entries in found for entry in entries]
        return deliveries, [key for key, entries in found if len(entries) >= count]

    async def _replay(self, lane: Lane, keys: Sequence[bytes]) -> list[Delivery]:
        """
        The next of this consumer's own pending entries in `keys`; empty when all that can be read have been read again.
        """
        replays = self._replays[lane]
        replay = {key: replays[key] for key in keys if key in replays}
        head: list[bytes | str | int] = [b"COUNT", BATCH_EVENTS // len(replay)]
        found, lost = await self._read_streams(lane, head, replay, "read_pending", ANSWER_DEADLINE_S)
        for key in replay:
            del replays[key]
        replays |= dict.fromkeys(lost, b"0") | {key: entries[-1][0] for key, entries in found if entries}
        return await self._count_deliveries(lane, [_deliver(key, entry) for key, entries in found for entry in entries])

    async def _read_streams(
        self,
        lane: Lane,
        options: Sequence[bytes | str | int],
        after: Mapping[bytes, bytes],
        query_type: metrics.RedisQuery | None,
        deadline_s: float,
    ) -> tuple[list[tuple[bytes, Any]], list[bytes]]:
        """
        Streams with their entries behind `after`, and those of servers that did not answer, or refused: their entries
        may be in our hand by now. Raises ResponseError (there is no group), Unavailable.
        """
        head = (b"XREADGROUP", b"GROUP", GROUP, self._consumer, *options, b"STREAMS")
        parts = self._readers[lane].part(list(after), bytes)
        replies = await self._readers[lane].call(
            [(*head, *keys, *(after[key] for key in keys)) for keys in parts], deadline_s, query_type=query_type
        )
        found: list[tuple[bytes, Any]] = []
        lost: list[bytes] = []
        for keys, reply in zip(parts, replies, strict=True):
            if isinstance(reply, Exception) and _lacks_group(reply):
                raise reply
            if isinstance(reply, Exception):
                lost += keys
            else:
                found += pair_answer(reply)
        return found, lost

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


def _name_suspects(stream: bytes) -> bytes:
    """The hash of those of its entries that were tried alone, beside the stream."""
    return b"nbpulse:suspects:" + stream.removeprefix(b"nbpulse:")


def _lacks_group(refusal: Exception) -> bool:
    return "NOGROUP" in str(refusal)
