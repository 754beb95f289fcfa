"""Sharded Pub/Sub of a cluster as one subscriber: each channel is heard at the server that holds its slot."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as LostConnection

from nbpulse.cluster import Cluster


class ShardedSubscriber:
    """
    What the hub uses of the client's own `PubSub`, over all servers.

    A channel whose slot moves is heard at its new server; `get_message` then gives "ssubscribe" again. Whatever else
    happens to one of the servers is raised there: its channels have to be subscribed anew, with a new subscriber.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._messages: asyncio.Queue[dict[str, Any] | BaseException] = asyncio.Queue()
        self._wanted: set[bytes] = set()
        self._places: dict[str, tuple[PubSub, asyncio.Task[None]]] = {}
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        # What was true of the servers when the one before us failed need not be true now.
        await self._cluster.refresh()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pubsub, listening in self._places.values():
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await pubsub.aclose()  # type: ignore[no-untyped-call]

    async def ssubscribe(self, *channels: str) -> None:
        """Hear these; each is confirmed by a message of its own. Raises what the client raises."""
        for channel in channels:
            self._wanted.add(channel.encode())
            await self._subscribe(channel.encode())

    async def sunsubscribe(self, channel: str) -> None:
        """Hear this one no longer. Raises what the client raises."""
        self._wanted.discard(channel.encode())
        for pubsub, _ in self._places.values():
            if channel.encode() in pubsub.shard_channels:
                await pubsub.sunsubscribe(channel)

    async def get_message(self, timeout: float) -> dict[str, Any] | None:  # noqa: ASYNC109 - as the client's own
        """The next message of any server, None when none came in time. Raises what ended the listening to one."""
        try:
            async with asyncio.timeout(timeout):
                message = await self._messages.get()
        except TimeoutError:
            return None
        if isinstance(message, BaseException):
            raise message
        if message["type"] == "sunsubscribe" and message["channel"] in self._wanted:
            # Its slot has moved: the server ends the subscriptions of what it no longer holds.
            await self._cluster.refresh()
            await self._subscribe(message["channel"])
        return message

    async def _subscribe(self, channel: bytes) -> None:
        server = self._cluster.find_server(channel)
        if server is None:
            raise LostConnection("no server is known for this channel")
        async with self._turn:
            pubsub = self._places[server.name][0] if server.name in self._places else None
            if pubsub is not None:
                await pubsub.ssubscribe(channel)
                return
            pubsub = self._cluster.open_pubsub(server)
            await pubsub.ssubscribe(channel)
            self._places[server.name] = pubsub, asyncio.create_task(self._listen(pubsub))

    async def _listen(self, pubsub: PubSub) -> None:
        try:
            while True:
                message = await pubsub.get_message(timeout=None)
                if message is not None:
                    self._messages.put_nowait(message)
        except Exception as error:  # noqa: BLE001 - whatever it was is raised where the messages are read
            self._messages.put_nowait(error)
