"""A link to every server of a cluster: each command goes where its key is, and follows when that moves.

Promises as of one link: nothing is sent twice on the quiet. A command that was redirected (MOVED, ASK, TRYAGAIN) was
not run, so it goes on to where it was sent to; one whose answer was lost is its caller's to repeat. A server that is
away costs the answers of its own keys alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, TryAgainError

from nbpulse.cluster import Cluster, part_by_slot
from nbpulse.errors import Unavailable
from nbpulse.metrics import RedisQuery
from nbpulse.stream.link import ANSWER_DEADLINE_S, REST_S, Asking, Command, Link

_REFRESH_S: Final = 0.2
_TRY_AGAIN_S: Final = 0.02
_KEY_AT_2: Final = frozenset({b"XINFO", b"XGROUP"})
_ASKING: Final[Command] = (b"ASKING",)
_Item = TypeVar("_Item")


class ClusterLink(Asking):
    """
    What `Link` is for one server. Of many commands some may be answered and some not: an Unavailable then stands in its
    command's place, as a refusal does.
    """

    def __init__(self, cluster: Cluster, *, confirms: bool = False, rest_s: float = REST_S) -> None:
        self._cluster = cluster
        self._make_link = partial(Link, confirms=confirms, rest_s=rest_s)
        self._links: dict[str, Link] = {}
        self._refresh_at = 0.0
        self._refreshing: asyncio.Task[None] | None = None

    async def call(
        self, commands: Sequence[Command], deadline_s: float = ANSWER_DEADLINE_S, *, query_type: RedisQuery | None
    ) -> list[Any]:
        """The answers to `commands`, each of which names keys of one slot. Raises Unavailable: no server is known."""
        loop = asyncio.get_running_loop()
        end_at = loop.time() + deadline_s
        answers: list[Any] = [None] * len(commands)
        await self._ensure_map(deadline_s)
        # By the place of each command: the server that an answer has sent it to, and whether it has to say ASKING.
        waiting: dict[int, tuple[ClusterNode | None, bool]] = dict.fromkeys(range(len(commands)), (None, False))
        while waiting:
            groups: dict[ClusterNode, list[tuple[int, bool]]] = {}
            for place, (server, asks) in waiting.items():
                found = server or self._cluster.find_server(_find_key(commands[place]))
                if found is None:
                    answers[place] = Unavailable("NB-2001")
                else:
                    groups.setdefault(found, []).append((place, asks))
            left_s = end_at - loop.time()
            asked = [self._ask_server(server, group, commands, left_s, query_type) for server, group in groups.items()]
            given = {place: answer for one in await asyncio.gather(*asked) for place, answer in one.items()}
            for place, answer in given.items():
                answers[place] = answer
            waiting = await self._redirect(given) if loop.time() + 2 * _TRY_AGAIN_S < end_at else {}
        return answers

    async def call_everywhere(
        self, commands: Sequence[Command], *, query_type: RedisQuery, deadline_s: float
    ) -> list[list[Any] | Unavailable]:
        """
        What every known server, replicas too, answers to commands without a key; an Unavailable where it does not.

        Raises Unavailable: none does.
        """
        await self._ensure_map(deadline_s)

        async def ask(server: ClusterNode) -> list[Any] | Unavailable:
            try:
                return await self._open(server).call(commands, deadline_s, query_type=query_type)
            except Unavailable as error:
                return error

        given = await asyncio.gather(*map(ask, self._cluster.get_nodes()))
        if all(isinstance(one, Unavailable) for one in given):
            raise Unavailable("NB-2001")
        return given

    def part(self, items: Sequence[_Item], name_key: Callable[[_Item], bytes]) -> list[Sequence[_Item]]:
        """`items` in groups whose keys one command may name together."""
        return part_by_slot(items, name_key)

    def find_place(self, key: bytes) -> str:
        """A name for the server that holds the key, as far as is known."""
        server = self._cluster.find_server(key)
        return "" if server is None else str(server.name)

    async def close(self) -> None:
        """Close every connection."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        for link in self._links.values():
            await link.close()

    def _open(self, server: ClusterNode) -> Link:
        link = self._links.get(server.name)
        if link is None:
            link = self._make_link(partial(self._cluster.make_connection, server))
            self._links[server.name] = link
        return link

    async def _ensure_map(self, deadline_s: float) -> None:
        if self._cluster.nodes_manager.slots_cache:
            return
        try:
            async with asyncio.timeout(deadline_s):
                await self._cluster.refresh()
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable("NB-2001") from error

    async def _ask_server(
        self,
        server: ClusterNode,
        group: Sequence[tuple[int, bool]],
        commands: Sequence[Command],
        deadline_s: float,
        query_type: RedisQuery | None,
    ) -> dict[int, Any]:
        """One server's answers, by their commands' places."""
        sent: list[Command] = []
        for place, asks in group:
            sent += [_ASKING, commands[place]] if asks else [commands[place]]
        try:
            given = await self._open(server).call(sent, deadline_s, query_type=query_type)
        except Unavailable as error:
            self._note_failure(server)
            return dict.fromkeys((place for place, _ in group), error)
        answers = (answer for command, answer in zip(sent, given, strict=True) if command is not _ASKING)
        return dict(zip((place for place, _ in group), answers, strict=True))

    async def _redirect(self, answers: Mapping[int, Any]) -> dict[int, tuple[ClusterNode | None, bool]]:
        """What was not run where it was asked, and where to ask it instead."""
        redirected = {
            place: answer for place, answer in answers.items() if isinstance(answer, AskError | TryAgainError)
        }
        if any(isinstance(answer, ClusterDownError) for answer in answers.values()):
            self._note_failure(None)
        if any(isinstance(answer, TryAgainError) for answer in redirected.values()):
            await asyncio.sleep(_TRY_AGAIN_S)
        try:
            return {
                # The client makes MOVED a kind of ASK; but only the latter is to say ASKING.
                place: (None, False)
                if isinstance(answer, TryAgainError)
                else (await self._cluster.follow(answer), not isinstance(answer, MovedError))
                for place, answer in redirected.items()
            }
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable("NB-2001") from error

    def _note_failure(self, server: ClusterNode | None) -> None:
        """Look, not too often, whether another serves its keys now."""
        is_running = self._refreshing is not None and not self._refreshing.done()
        if not is_running and time.monotonic() - self._refresh_at > _REFRESH_S:
            self._refresh_at = time.monotonic()
            self._refreshing = asyncio.create_task(self._refresh(None if server is None else server.name))

    async def _refresh(self, failed: str | None) -> None:
        with contextlib.suppress(RedisError, OSError, TimeoutError):  # the next failure looks again
            await self._cluster.refresh(failed)


AnyLink = Link | ClusterLink


def open_link(redis: Redis | Cluster, *, confirms: bool = False, rest_s: float = REST_S) -> AnyLink:
    """
    A link to what the client speaks to; `confirms`: also to a replica, before anything is called done; `rest_s`: how
    long a server that failed is left alone.
    """
    if isinstance(redis, Cluster):
        return ClusterLink(redis, confirms=confirms, rest_s=rest_s)
    return Link(redis.connection_pool.make_connection, confirms=confirms, rest_s=rest_s)


def _find_key(command: Command) -> bytes:
    """The first key of a command as this room sends them."""
    name = _encode(command[0])
    if name == b"EVAL":
        return _encode(command[3])
    if name == b"XREADGROUP":
        return _encode(command[list(command).index(b"STREAMS") + 1])
    return _encode(command[2 if name in _KEY_AT_2 else 1])


def _encode(word: bytes | str | int) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()
