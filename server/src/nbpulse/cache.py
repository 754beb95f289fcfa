"""What may be lost without harm: who was heard of, one-use tickets, sign-ins under way, the list of open connections.

Promises: every call answers or raises Unavailable within 1 s; nothing here is the only copy of anything but a
ticket and a sign-in under way: whoever loses those begins anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from nbpulse.classroom import Action
from nbpulse.cluster import Cluster, Member, name_beats
from nbpulse.errors import Unavailable
from nbpulse.providers import Flow

ACCESS_CHANNEL: Final = "nbpulse:access"
TICKET_LIFE_S: Final = 30
FLOW_LIFE_S: Final = 600
PRESENCE_LIFE_S: Final = 60
CONNECTIONS_KEY: Final = "websocket_connections"
CONNECTION_STALE_S: Final = 40
WORKER_STALE_S: Final = 5
_DEADLINE_S: Final = 1.0
_MAKING_S: Final = 2.0

_encode = msgspec.json.Encoder().encode


class Heard(NamedTuple):
    """Somebody's Jupyter was heard of."""

    course_id: UUID
    user_id: UUID
    at_ms: int
    state: str


class Ticket(msgspec.Struct, frozen=True):
    """What a one-use ticket stands for: a token that was proved when it was made, and one course."""

    token_id: UUID
    course_id: UUID


class _Connection(msgspec.Struct, frozen=True):
    user_id: str
    last_activity: float


class _AtWork(msgspec.Struct, frozen=True):
    at: float
    lag_ms: int


_decode_at_work = msgspec.json.Decoder(_AtWork).decode
_decode_flow = msgspec.json.Decoder(Flow).decode
_decode_ticket = msgspec.json.Decoder(Ticket).decode
_decode_connection = msgspec.json.Decoder(_Connection).decode


@asynccontextmanager
async def _deadline() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_DEADLINE_S):
            yield
    except (RedisError, OSError, TimeoutError) as error:
        raise Unavailable("NB-2001") from error


class Cache:
    """The cache on Redis or Valkey. Every method raises Unavailable (NB-2001) when it does not answer."""

    def __init__(self, redis: Redis | Cluster) -> None:
        self._redis = redis

    async def check(self, *, has_replicas: bool = False) -> list[Member]:
        """One round trip; the servers of a cluster, some of which answer, or the one that is to have replicas."""
        async with _deadline():
            if isinstance(self._redis, Cluster):
                return await self._redis.examine()
            if has_replicas:
                facts, place = await self._redis.info("replication"), self._redis.connection_pool.connection_kwargs
                name = f"{place.get('host')}:{place.get('port')}"
                return [Member(name, facts["role"] == "master", int(facts.get("connected_slaves", 0)))]
            await self._redis.exists("nbpulse:generation")
            return []

    async def hear(self, heard: Sequence[Heard]) -> None:
        """Note who was heard of, and tell the boards."""
        async with _deadline():
            pipe = self._redis.pipeline(transaction=False)
            for one in heard:
                key = _name_presence(one.course_id)
                pipe.zadd(key, {str(one.user_id): one.at_ms}, gt=True)
                pipe.expire(key, PRESENCE_LIFE_S * 2)
                message = {"t": "presence", "user_id": one.user_id, "state": one.state, "at": one.at_ms}
                pipe.spublish(f"nbpulse:live:{one.course_id}", _encode(message))
            await pipe.execute()

    async def announce_roster(self, course_id: UUID) -> None:
        """Tell the boards that somebody joined or changed."""
        await self._tell(course_id, {"t": "roster"})

    async def announce_access(self, user_id: UUID) -> None:
        """Tell every API process that what this person may do has changed: a token, a role, a team."""
        async with _deadline():
            await self._redis.spublish(ACCESS_CHANNEL, str(user_id))

    async def note_written(self, user_id: UUID, place: int, life_s: float) -> None:
        """How far the database's log was written when this person had last changed something."""
        async with _deadline():
            await self._redis.set(_name_written(user_id), place, px=round(life_s * 1000))

    async def read_written(self, user_id: UUID) -> int:
        """What `note_written` noted; 0 where it is long past."""
        async with _deadline():
            return int(await self._redis.get(_name_written(user_id)) or 0)

    async def announce_actions(self, course_id: UUID, actions: Sequence[Action]) -> None:
        """Tell the boards, and those students' inboxes, what staff have just done."""
        await self._tell(course_id, {"t": "actions", "actions": actions})

    async def announce_inboxes(self, course_id: UUID, user_ids: Sequence[str]) -> None:
        """Wake who waits for the news of these students."""
        await self._tell(course_id, {"t": "inbox", "user_ids": user_ids})

    async def announce_mail(self, course_id: UUID) -> None:
        """Tell the boards that a student wrote, or was answered."""
        await self._tell(course_id, {"t": "mail"})

    async def announce_lesson(self, course_id: UUID) -> None:
        """Tell the boards that the class is at another cell."""
        await self._tell(course_id, {"t": "lesson"})

    async def announce_groups(self, course_id: UUID) -> None:
        """Tell the boards that staff have settled something about an error group."""
        await self._tell(course_id, {"t": "groups"})

    async def announce_staff(self, course_id: UUID, user_id: UUID, name: str) -> None:
        """Tell the boards that this member of staff has one open."""
        message = {"t": "staff", "user_id": str(user_id), "name": name, "at": round(time.time() * 1000)}
        await self._tell(course_id, message)

    async def _tell(self, course_id: UUID, message: Mapping[str, object]) -> None:
        async with _deadline():
            await self._redis.spublish(f"nbpulse:live:{course_id}", _encode(message))

    async def read_presence(self, course_id: UUID) -> dict[str, int]:
        """Who was heard of in the last minute: user id -> when, in ms. Older entries are removed on the way."""
        oldest_ms = round((time.time() - PRESENCE_LIFE_S) * 1000)
        key = _name_presence(course_id)
        async with _deadline():
            pipe = self._redis.pipeline(transaction=False)
            pipe.zremrangebyscore(key, "-inf", f"({oldest_ms}")
            pipe.zrange(key, 0, -1, withscores=True)
            _, heard = await pipe.execute()
        return {member.decode(): int(score) for member, score in heard}

    async def forget(self, course_ids: Sequence[UUID], user_ids: Sequence[UUID], keys: Sequence[str]) -> None:
        """Forget these people in these courses, and what is cached under `keys`; the boards look again."""
        async with _deadline():
            pipe = self._redis.pipeline(transaction=False)
            for course_id in course_ids:
                if user_ids:
                    pipe.zrem(_name_presence(course_id), *map(str, user_ids))
                pipe.spublish(f"nbpulse:live:{course_id}", _encode({"t": "roster"}))
            for key in (*keys, *map(_name_written, user_ids)):
                pipe.delete(key)
            await pipe.execute()

    async def take_turn(self, key: str, life_s: int) -> bool:
        """Whether nobody has taken a turn under `key` in the last `life_s`; it is taken now."""
        async with _deadline():
            return bool(await self._redis.set(key, b"1", nx=True, ex=life_s))

    async def create_ticket(self, ticket: Ticket) -> str:
        """A secret that opens one WebSocket within 30 s."""
        secret = secrets.token_urlsafe(32)
        async with _deadline():
            await self._redis.set(f"nbpulse:ticket:{secret}", _encode(ticket), ex=TICKET_LIFE_S)
        return secret

    async def use_ticket(self, secret: str) -> Ticket | None:
        """What the ticket stands for; None when it was used, is too old or never was."""
        async with _deadline():
            stored = await self._redis.getdel(f"nbpulse:ticket:{secret[:100]}")
        return _decode_ticket(stored) if stored else None

    async def keep_flow(self, state: str, browser: str, flow: Flow) -> None:
        """A sign-in at a provider has begun: found by its state, in the browser that holds that secret, for 10 min."""
        async with _deadline():
            await self._redis.set(_name_flow(state, browser), _encode(flow), ex=FLOW_LIFE_S)

    async def take_flow(self, state: str, browser: str) -> Flow | None:
        """The sign-in that began so, once; None when it was taken, is too old, never was or is another browser's."""
        async with _deadline():
            stored = await self._redis.getdel(_name_flow(state, browser))
        return _decode_flow(stored) if stored else None

    async def note_connection(self, connection_id: str, user_id: UUID) -> None:
        """Enter a board's WebSocket in the specification's hash, or renew its last activity."""
        async with _deadline():
            entry = _encode(_Connection(str(user_id), time.time()))
            await self._redis.hset(CONNECTIONS_KEY, connection_id, entry)

    async def forget_connection(self, connection_id: str) -> None:
        """A WebSocket is closed."""
        async with _deadline():
            await self._redis.hdel(CONNECTIONS_KEY, connection_id)

    async def read_workers(self) -> dict[str, int]:
        """Workers that beat in the last 5 s (stream/leases.py): name -> lag in ms, from receipt to storing."""
        async with _deadline():
            pipe = self._redis.pipeline(transaction=False)
            for key in name_beats(self._redis):
                pipe.hgetall(key)
            answers = await pipe.execute(raise_on_error=isinstance(self._redis, Redis))
        noted = [answer for answer in answers if not isinstance(answer, Exception)]
        if not noted:
            raise Unavailable("NB-2001") from answers[0]
        found: dict[str, _AtWork] = {}
        for name, entry in (one for entries in noted for one in entries.items()):
            at_work = _decode_at_work(entry)
            found[name.decode()] = max(at_work, found.get(name.decode(), at_work), key=lambda one: one.at)
        oldest = time.time() - WORKER_STALE_S
        return {name: one.lag_ms for name, one in found.items() if one.at >= oldest}

    async def get_or_make(self, key: str, life_s: int, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """
        What is cached under `key`, else what `make` makes, kept for `life_s`. Raises what `make` raises.

        Of many who miss at once one makes it and the others wait for up to 2 s. Without the server, everybody makes it
        for themselves: it is a cache.
        """
        lock, made = f"{key}:lock", None
        try:
            deadline = time.monotonic() + _MAKING_S
            while time.monotonic() < deadline:
                async with _deadline():
                    cached = await self._redis.get(key)
                    if cached is not None:
                        return bytes(cached)  # type: ignore[arg-type]
                    if await self._redis.set(lock, b"1", nx=True, px=round(_MAKING_S * 1000)):
                        # Another may have made it and let go between our look and our lock.
                        cached = await self._redis.get(key)
                        if cached is None:
                            break
                        await self._redis.delete(lock)
                        return bytes(cached)  # type: ignore[arg-type]
                await asyncio.sleep(0.02)
            made = await make()
            async with _deadline():
                pipe = self._redis.pipeline(transaction=False)
                pipe.set(key, made, ex=life_s)
                pipe.delete(lock)
                await pipe.execute()
        except Unavailable as error:
            if error.code != "NB-2001":
                raise
        return await make() if made is None else made

    async def sweep_connections(self) -> int:
        """Remove the connections of API processes that died; how many."""
        async with _deadline():
            entries = await self._redis.hgetall(CONNECTIONS_KEY)
            oldest = time.time() - CONNECTION_STALE_S
            stale = [name for name, entry in entries.items() if _decode_connection(entry).last_activity < oldest]
            if stale:
                await self._redis.hdel(CONNECTIONS_KEY, *stale)
        return len(stale)


def _name_flow(state: str, browser: str) -> str:
    # Hashed: whoever can list the server's keys must not be able to end somebody's sign-in.
    return f"nbpulse:sign_in:{hashlib.sha256(f'{browser} {state}'.encode()).hexdigest()}"


def _name_written(user_id: UUID) -> str:
    return f"nbpulse:written:{user_id}"


def _name_presence(course_id: UUID) -> str:
    return f"nbpulse:presence:{course_id}"
