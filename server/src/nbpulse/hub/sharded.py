"""Sharded Pub/Sub of a cluster as one subscriber: each channel is heard at the server that holds its slot.

Promises: a server that is away costs the news of its own channels alone, and no longer than until another holds their
slots; one that has gone silent is found out by asking, since its connection would stay open for hours.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, Self

import structlog
from redis.asyncio.client import PubSub
from redis.asyncio.cluster import ClusterNode
from redis.crc import key_slot
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import MovedError, RedisError

from nbpulse.cluster import Cluster

_SILENCE_S: Final = 2.0
_AGAIN_S: Final = 0.25
_MOVED_S: Final = 0.02  # the server that is named may not know of it yet, and name the one that has named it
_log = structlog.get_logger(__name__)


class ShardedSubscriber:
    """
    What the hub uses of the client's own `PubSub`, over all servers.

    A channel whose server holds it no more, or is away, is given as "sunsubscribe" by `get_message`, and as
    "ssubscribe" once it is heard again: what was published in between is lost.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._messages: asyncio.Queue[dict[str, Any] | Exception] = asyncio.Queue()
        self._wanted: set[bytes] = set()
        self._unheard: set[bytes] = set()
        self._is_any_unheard = asyncio.Event()
        self._places: dict[str, PubSub] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        if not self._cluster.get_nodes():
            await self._cluster.refresh()
        self._start(self._seek())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def ssubscribe(self, *channels: str) -> None:
        """Hear these; each is confirmed by a message of its own once its server has answered."""
        names = [channel.encode() for channel in channels]
        self._wanted.update(names)
        self._note_unheard(names)

    async def sunsubscribe(self, channel: str) -> None:
        """Hear this one no longer. Raises what the client raises."""
        name = channel.encode()
        self._wanted.discard(name)
        self._unheard.discard(name)
        for pubsub in list(self._places.values()):
            if name in pubsub.shard_channels:
                await pubsub.sunsubscribe(channel)

    async def get_message(self, timeout: float) -> dict[str, Any] | None:  # noqa: ASYNC109 - as the client's own
        """The next message of any server, None when none came in time."""
        try:
            async with asyncio.timeout(timeout):
                message = await self._messages.get()
        except TimeoutError:
            return None
        if isinstance(message, Exception):
            raise message
        return message

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Any) -> None:
        try:
            await work
        except Exception as fault:  # noqa: BLE001 - ours, not a server's: raised where the messages are read
            self._messages.put_nowait(fault)

    def _note_unheard(self, channels: Iterable[bytes]) -> None:
        self._unheard.update(self._wanted.intersection(channels))
        if self._unheard:
            self._is_any_unheard.set()

    async def _seek(self) -> None:
        """Subscribe to what is to be heard and is not, wherever it is by now."""
        while True:
            await self._is_any_unheard.wait()
            self._is_any_unheard.clear()
            away: set[str] = set()
            for channel in list(self._unheard):
                server = self._cluster.find_server(channel)
                if server is None or server.name in away:
                    away.add(server.name if server else "")
                    continue
                self._unheard.discard(channel)  # what its server says of it comes later, and may be that it moved
                try:
                    await self._subscribe(server, channel)
                except (RedisError, OSError, TimeoutError) as error:
                    away.add(server.name)
                    self._unheard.update(self._wanted.intersection([channel]))
                    _log.warning("hub.server_away", server=server.name, error=type(error).__name__)
            if away:
                with contextlib.suppress(RedisError, OSError, TimeoutError):
                    await self._cluster.refresh(next(iter(away)))
                await asyncio.sleep(_AGAIN_S)
                self._note_unheard(self._unheard)

    async def _subscribe(self, server: ClusterNode, channel: bytes) -> None:
        pubsub = self._places.get(server.name)
        if pubsub is None:
            pubsub = self._cluster.open_pubsub(server)
            await pubsub.connect()  # type: ignore[no-untyped-call]
            self._places[server.name] = pubsub
            self._start(self._listen(server, pubsub))
        await pubsub.ssubscribe(channel)

    async def _listen(self, server: ClusterNode, pubsub: PubSub) -> None:
        """Pass on what one server says, until it is away."""
        try:
            is_asked = False
            while True:
                try:
                    message = await pubsub.get_message(timeout=_SILENCE_S)
                except MovedError as moved:  # the answer to a subscription
                    await asyncio.sleep(_MOVED_S)
                    await self._cluster.follow(moved)
                    self._lose(pubsub, [one for one in self._wanted if key_slot(one) == moved.slot_id])
                    continue
                if message is None:
                    if is_asked:
                        raise LostConnection("silent")
                    await pubsub.ping()
                elif message["type"] == "sunsubscribe":
                    # Its slot has moved (whoever held it knows where to: MOVED), or we wanted it no more.
                    self._lose(pubsub, [message["channel"]])
                elif message["type"] != "pong":
                    self._messages.put_nowait(message)
                is_asked = message is None
        except (RedisError, OSError, TimeoutError) as error:
            _log.warning("hub.wire_lost", server=server.name, error=type(error).__name__)
        finally:
            del self._places[server.name]
            self._lose(pubsub, list(pubsub.shard_channels))
            await pubsub.aclose()  # type: ignore[no-untyped-call]

    def _lose(self, pubsub: PubSub, channels: Iterable[bytes]) -> None:
        for channel in channels:
            pubsub.shard_channels.pop(channel, None)
            if channel in self._wanted:
                self._messages.put_nowait({"type": "sunsubscribe", "channel": channel, "data": None})
        self._note_unheard(channels)
