"""Which shards a worker reads: all 64 shared out among those at work, each read by one of them at a time.

A worker lives by its beat (one write every 0.5 s, timed by the server's clock); a shard's lease names its reader and
has no end of its own, so that nothing else is written while nobody comes or goes. Promises: who has not beaten for
2.5 s has no shard any more, by its own clock no later than by anybody else's; a shard is taken only where nobody alive
has it, and whoever was silent has to take his own anew, of two who try one; every command names one key. On a cluster
the beat goes to three places and counts where two have it, so that one server that is away, or comes back with less,
neither silences anybody nor has two read one shard; of shards whose server does not answer nothing is concluded. What
two readers store is stored once (the ledger): leases keep the order of a student's events and share the work, nothing
else hangs on them (docs/decisions/0032).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Mapping
from typing import Any, Final

import structlog
from redis.asyncio import Redis

from nbpulse.cluster import Cluster, name_beats
from nbpulse.errors import StartupError, Unavailable
from nbpulse.metrics import RedisQuery, worker_shards
from nbpulse.shards import SHARD_COUNT
from nbpulse.stream.cluster import open_link
from nbpulse.stream.link import ANSWER_DEADLINE_S, REST_S, Command

LEASE_S: Final = 2.5
BEAT_S: Final = 0.5
# Where others answer, one that is silent must cost neither the next beat nor, asked twice in each, the one after it.
_CLUSTER_DEADLINE_S: Final = 0.7
_CLUSTER_REST_S: Final = 1.0

# The server's clock alone decides who is alive. Answers who takes shards, and what was noted under our name before.
_BEAT: Final = b"""
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local before = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], string.format('{"at":%.3f,"lag_ms":%s,"takes":%s,"life":"%s"}',
    now, ARGV[3], ARGV[4], ARGV[2]))
local noted, taking = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #noted, 2 do
    local at = tonumber(string.match(noted[i + 1], '"at":([%d.]+)'))
    if not at or now - at > tonumber(ARGV[5]) then
        redis.call('HDEL', KEYS[1], noted[i])
    elseif string.find(noted[i + 1], '"takes":true', 1, true) then
        taking[#taking + 1] = noted[i]
    end
end
return {before and string.match(before, '"life":"(%w+)"') or '', taking}
"""
# Only as it was seen (nobody's: ''): since then somebody may have come, or come back, whom our beat did not see.
_TAKE: Final = b"""
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
return 1
"""
_GIVE: Final = b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
_SHARDS: Final = range(SHARD_COUNT)
_log = structlog.get_logger(__name__)


def name_lease(shard: int) -> bytes:
    """Where the name of a shard's reader stands, beside its streams; `read_owner` reads it."""
    return f"nbpulse:lease:{{shard_{shard}}}".encode()


def read_owner(lease: bytes | None) -> str:
    """The worker whose name a lease bears, before what sets this holding apart from his earlier ones; "": nobody's."""
    return (lease or b"").rpartition(b" ")[0].decode()


def share(worker: str, workers: Collection[str]) -> int:
    """How many of the shards are one worker's: all alike, the first by name one more where they do not divide."""
    ranks = sorted({*workers, worker})
    each, rest = divmod(SHARD_COUNT, len(ranks))
    return each + (ranks.index(worker) < rest)


class Leases:
    """One worker's shards. `renew` every 0.5 s keeps them, takes what is free and gives back what is too much."""

    def __init__(self, redis: Redis | Cluster, worker: str) -> None:
        is_cluster = isinstance(redis, Cluster)
        self._link = open_link(redis, rest_s=_CLUSTER_REST_S if is_cluster else REST_S)
        self._beats = name_beats(redis)
        self._deadline_s = _CLUSTER_DEADLINE_S if is_cluster else ANSWER_DEADLINE_S
        self._worker = worker
        # Of two lives under one name the later one ends (NB-3105).
        self._life = f"{time.time_ns():020d}{secrets.token_hex(4)}"
        self._is_known = False
        self._valid_until = float("-inf")
        self._takings = 0
        self._held: dict[int, int] = {}
        self._leaving: set[int] = set()
        self._forget()

    @property
    def reading(self) -> Mapping[int, int]:
        """The shards to read from now on, each with the number of its taking: another number, another's in between."""
        if time.monotonic() >= self._valid_until:
            return {}
        return {shard: taking for shard, taking in self._held.items() if shard not in self._leaving}

    async def renew(self, in_hand: Collection[int] = (), *, is_stuck: bool = False, lag_ms: int = 0) -> None:
        """
        One beat, and whatever shards come or go by it.

        `in_hand`: shards not to be given away yet. `is_stuck`: what is in hand does not end; where there is another
        worker, it shall have everything.

        Raises Unavailable; StartupError (NB-3105): another worker that was there first has this one's name.
        """
        # Owners first: whoever has one of these shards and is not seen by the beat after it is not alive any more.
        answers = await self._call([("GET", name_lease(shard)) for shard in _SHARDS], "read_leases")
        others = await self._beat(is_stuck=is_stuck, lag_ms=lag_ms)
        wanted = 0 if is_stuck and others else share(self._worker, others)
        owners = {shard: answer for shard, answer in enumerate(answers) if not isinstance(answer, Exception)}
        names = {shard: read_owner(lease) for shard, lease in owners.items()}
        for shard in [shard for shard in self._held if owners.get(shard, self._lease) != self._lease]:
            del self._held[shard]
        kept = sorted(self._held)[:wanted]
        for shard in self._leaving.intersection(kept):
            self._note_taking(shard)  # what was read of it and given up meanwhile is to be read again
        self._leaving = set(self._held) - set(kept)
        busy = set() if is_stuck else set(in_hand)
        given = self._leaving - busy
        await self._give(dict.fromkeys(given, self._lease))
        if len(kept) < wanted and not is_stuck:
            free = [shard for shard in owners if shard not in self._held and names[shard] not in others]
            # Whom we succeed under this name may have had more than we shall: ours first, and the rest is given back.
            free.sort(key=lambda shard: names[shard] != self._worker)
            await self._take([(shard, owners[shard] or b"") for shard in free], wanted - len(kept))
        ours = {shard for shard, name in names.items() if name == self._worker}
        await self._give({shard: owners[shard] for shard in ours - self._held.keys() - given - busy})
        worker_shards.set(len(self._held) - len(self._leaving))

    async def leave(self) -> None:
        """
        Give everything back and be gone: others take it with their next beat.

        Raises Unavailable: what a server did not hear of lapses.
        """
        self._valid_until = float("-inf")
        self._leaving.clear()
        await self._give(dict.fromkeys(self._held, self._lease))
        worker_shards.set(0)
        for answer in await self._call([("HDEL", key, self._worker) for key in self._beats], "leave"):
            if isinstance(answer, Exception):
                raise Unavailable("NB-2001") from answer

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()

    async def _beat(self, *, is_stuck: bool, lag_ms: int) -> set[str]:
        """Who else takes shards; what we held is forgotten where we were too late. Raises Unavailable: no majority."""
        sent_at = time.monotonic()
        said = (self._worker, self._life, lag_ms, "false" if is_stuck else "true", str(LEASE_S))
        answers = await self._call([("EVAL", _BEAT, 1, key, *said) for key in self._beats], "beat")
        given = [answer for answer in answers if not isinstance(answer, Exception)]
        if len(given) <= len(self._beats) // 2:
            raise Unavailable("NB-2001")
        lives = [life.decode() for life, _ in given if life]
        strangers = [life for life in lives if life != self._life]
        if self._is_known and len(strangers) > len(self._beats) // 2:
            # Once it may be whom we succeed; now it has beaten since.
            error = StartupError("NB-3105", worker=self._worker)
            if min(strangers) < self._life:
                raise error
            _log.warning("leases.namesake", code=error.code, title=error.title("en"))
        elif len(lives) <= len(self._beats) // 2 or sent_at >= self._valid_until:
            self._forget()  # others may have found us silent
        self._is_known = True
        self._valid_until = sent_at + LEASE_S
        return {worker.decode() for _, taking in given for worker in taking} - {self._worker}

    def _forget(self) -> None:
        """Have no shard. Who saw our leases as they are until now finds them changed once we take them again."""
        self._held.clear()
        self._leaving.clear()
        self._lease = f"{self._worker} {secrets.token_hex(8)}".encode()

    async def _take(self, free: list[tuple[int, bytes]], count: int) -> None:
        """Of these shards and the leases seen of them, `count` that are still so."""
        while free and count > 0:
            tried, free = free[:count], free[count:]
            commands: list[Command] = [
                ("EVAL", _TAKE, 1, name_lease(shard), self._lease, lease) for shard, lease in tried
            ]
            for (shard, _), is_taken in zip(tried, await self._call(commands, "take_leases"), strict=True):
                if is_taken == 1:
                    self._note_taking(shard)
                    count -= 1

    def _note_taking(self, shard: int) -> None:
        self._takings += 1
        self._held[shard] = self._takings

    async def _give(self, leases: Mapping[int, bytes]) -> None:
        """These shards, where their leases are still so."""
        for shard in leases:
            self._held.pop(shard, None)
            self._leaving.discard(shard)
        commands: list[Command] = [("EVAL", _GIVE, 1, name_lease(shard), lease) for shard, lease in leases.items()]
        await self._call(commands, "give_leases")

    async def _call(self, commands: list[Command], query_type: RedisQuery) -> list[Any]:
        """The answers; a failure stands in its command's place. Raises Unavailable: no server answered."""
        answers = await self._link.call(commands, self._deadline_s, query_type=query_type)
        failures = [answer for answer in answers if isinstance(answer, Exception)]
        if failures and len(failures) == len(answers):
            raise Unavailable("NB-2001") from failures[0]
        return answers
