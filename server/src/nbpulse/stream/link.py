"""One connection to the stream's server, and its answers in one form."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final, Protocol, TypeVar

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from nbpulse.errors import Unavailable
from nbpulse.metrics import RedisQuery, redis_query_durations

ANSWER_DEADLINE_S: Final = 2.0
REST_S: Final = 0.1
Command = Sequence[bytes | str | int]
CONFIRMATION_SHARE: Final = 0.8
"""Of the deadline, when a replica's confirmation is given up; so the connection is in step for the next call."""
# A replica that was asked while it still synced tells of that by itself only a second later: it is asked anew instead.
_ASK_REPLICA_AGAIN_MS: Final = 20
_Item = TypeVar("_Item")


class Asking(Protocol):
    """What is asked of a link, whether it leads to one server or to many."""

    async def call(
        self, commands: Sequence[Command], deadline_s: float = ANSWER_DEADLINE_S, *, query_type: RedisQuery | None
    ) -> list[Any]: ...

    async def ask(
        self, commands: Sequence[Command], deadline_s: float, *, query_type: RedisQuery, may_refuse: bool
    ) -> list[Any]:
        """`call` where a refusal is as no answer (NB-2001), unless it `may_refuse`; no answer to one is none to all."""
        answers = await self.call(commands, deadline_s, query_type=query_type)
        for answer in answers:
            if isinstance(answer, Unavailable):
                raise answer
            if isinstance(answer, Exception) and not may_refuse:
                raise Unavailable("NB-2001") from answer
        return answers


class Link(Asking):
    """
    One connection of its own: commands out in one write, answers back in order, nothing ever sent twice.

    It opens itself when first used, again after a failure, and where the server has closed it since the last call (it
    was started anew, or replaced): that costs nobody an answer. A server that just failed is left alone for `rest_s`.
    One that `confirms` has every call confirmed by a replica too: written, and where the server can say so (WAITAOF)
    on its disk.
    """

    def __init__(
        self, make_connection: Callable[[], AbstractConnection], *, confirms: bool = False, rest_s: float = REST_S
    ) -> None:
        self._make_connection = make_connection
        self._confirms = confirms
        self._rest_s = rest_s
        self._knows_waitaof = False
        self._is_demoted = False
        self._connection: AbstractConnection | None = None
        self._turn = asyncio.Lock()
        self._failed_at = 0.0

    async def call(
        self, commands: Sequence[Command], deadline_s: float = ANSWER_DEADLINE_S, *, query_type: RedisQuery | None
    ) -> list[Any]:
        """
        The answers to `commands`; a refusal (ResponseError) stands in its command's place.

        It is timed as `query_type`; None for one that waits for events, whose length says nothing of the server.
        Raises Unavailable when not all answers came in time (NB-2001), or no replica has confirmed them (NB-2030): then
        what was sent may or may not have happened.
        """
        async with self._turn:
            if time.monotonic() - self._failed_at < self._rest_s:
                raise Unavailable("NB-2001")
            started, patience_s = time.monotonic(), deadline_s * CONFIRMATION_SHARE
            timing = redis_query_durations[query_type].time() if query_type and commands else nullcontext()
            try:
                with timing:
                    async with asyncio.timeout(deadline_s):
                        await self._drop_if_closed()
                        answers = await self._exchange(commands)
                        is_confirmed = not self._confirms or await self._await_replica(until=started + patience_s)
            except (RedisError, OSError, TimeoutError) as error:
                self._failed_at = time.monotonic()
                await self._drop()
                raise Unavailable("NB-2001") from error
            except BaseException:
                # Cancelled between question and answer: the next answer on this connection would be another's.
                await self._drop()
                raise
            if self._is_demoted:
                await self._drop()  # whoever is the primary now is found by connecting anew
            if not is_confirmed:
                raise Unavailable("NB-2030")
        return answers

    async def call_everywhere(
        self, commands: Sequence[Command], *, query_type: RedisQuery, deadline_s: float
    ) -> list[list[Any] | Unavailable]:
        """What every server, here the one, answers to commands without a key. Raises Unavailable: it does not."""
        return [await self.call(commands, deadline_s, query_type=query_type)]

    def part(self, items: Sequence[_Item], _: Callable[[_Item], bytes]) -> list[Sequence[_Item]]:
        """`items` in groups whose keys one command may name together: here all of them."""
        return [items] if items else []

    def find_place(self, _: bytes) -> str:
        """A name for the server that holds the key, the same for keys at the same server."""
        return ""

    async def close(self) -> None:
        """Close the connection; a later call opens it again."""
        async with self._turn:
            await self._drop()

    async def _drop_if_closed(self) -> None:
        """Between calls nothing is to be read but its end. Never within one: a new connection confirms nothing."""
        try:
            if self._connection is not None and await self._connection.can_read():
                await self._drop()
        except RedisError:
            await self._drop()

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._connection or await self._open()
        await connection.send_packed_command(_pack(commands), check_health=False)
        return [await self._read_answer(connection) for _ in commands]

    async def _await_replica(self, until: float) -> bool:
        """Whether a replica has all that went over this connection, before the clock says `until`."""
        name: Command = ("WAITAOF", 1, 1) if self._knows_waitaof else ("WAIT", 1)
        while True:
            (answer,) = await self._exchange([(*name, _ASK_REPLICA_AGAIN_MS)])
            if _is_confirmed(answer):
                return True
            if isinstance(answer, Exception) or time.monotonic() >= until:
                return False

    async def _open(self) -> AbstractConnection:
        connection = self._make_connection()
        connection.retry = Retry(NoBackoff(), 0)
        connection.socket_timeout = None
        self._connection, self._is_demoted = connection, False
        await connection.connect()  # type: ignore[no-untyped-call]
        if self._confirms:
            await connection.send_packed_command(_pack([("COMMAND", "INFO", "WAITAOF")]), check_health=False)
            answer = await self._read_answer(connection)
            self._knows_waitaof = isinstance(answer, list) and bool(answer) and answer[0] is not None
        return connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def _read_answer(self, connection: AbstractConnection) -> Any:
        try:
            return await connection.read_response(disable_decoding=True)
        except ResponseError as refusal:
            self._is_demoted = self._is_demoted or isinstance(refusal, ReadOnlyError)
            return refusal


def _is_confirmed(answer: Any) -> bool:
    """WAIT tells how many replicas have it, WAITAOF on how many disks it is: the server's own, its replicas'."""
    if isinstance(answer, list):
        return all(answer)
    return isinstance(answer, int) and answer > 0


def _pack(commands: Sequence[Command]) -> bytes:
    """The commands as bytes; hiredis does it in a quarter of the client's own time."""
    # (Its type hint says a tuple of one.)
    return b"".join(hiredis.pack_command(tuple(command)) for command in commands)  # type: ignore[arg-type]


def pair_answer(reply: Any) -> Iterable[tuple[Any, Any]]:
    """Names with values, whether the connection speaks RESP3 (a map) or RESP2 (a flat list, or a list of pairs)."""
    if reply is None:
        return ()
    if isinstance(reply, Mapping):
        return reply.items()
    if reply and isinstance(reply[0], bytes):
        return zip(reply[::2], reply[1::2], strict=True)
    return ((name, value) for name, value in reply)
