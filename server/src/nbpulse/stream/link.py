"""One connection to the stream's server, and its answers in one form."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from nbpulse.errors import Unavailable
from nbpulse.metrics import RedisQuery, redis_query_durations

ANSWER_DEADLINE_S: Final = 2.0
Command = Sequence[bytes | str | int]


class Link:
    """
    One connection of its own: commands out in one write, answers back in order, nothing ever sent twice.

    It opens itself when first used and again after a failure; a server that just failed is left alone for 100 ms.
    """

    def __init__(self, redis: Redis) -> None:
        self._pool = redis.connection_pool
        self._connection: AbstractConnection | None = None
        self._turn = asyncio.Lock()
        self._failed_at = 0.0

    async def call(
        self, commands: Sequence[Command], deadline_s: float = ANSWER_DEADLINE_S, *, query_type: RedisQuery | None
    ) -> list[Any]:
        """
        The answers to `commands`; a refusal (ResponseError) stands in its command's place.

        It is timed as `query_type`; None for one that waits for events, whose length says nothing of the server.
        Raises Unavailable (NB-2001) when not all answers came in time: then what was sent may or may not have happened.
        """
        async with self._turn:
            if time.monotonic() - self._failed_at < 0.1:
                raise Unavailable("NB-2001")
            timing = redis_query_durations[query_type].time() if query_type and commands else nullcontext()
            try:
                with timing:
                    async with asyncio.timeout(deadline_s):
                        return await self._exchange(commands)
            except (RedisError, OSError, TimeoutError) as error:
                self._failed_at = time.monotonic()
                await self._drop()
                raise Unavailable("NB-2001") from error
            except BaseException:
                # Cancelled between question and answer: the next answer on this connection would be another's.
                await self._drop()
                raise

    async def ask(
        self, commands: Sequence[Command], deadline_s: float, *, query_type: RedisQuery, may_refuse: bool
    ) -> list[Any]:
        """The same where a refusal is as no answer (NB-2001), unless it `may_refuse`."""
        answers = await self.call(commands, deadline_s, query_type=query_type)
        for answer in answers:
            if isinstance(answer, Exception) and not may_refuse:
                raise Unavailable("NB-2001") from answer
        return answers

    async def call_one(
        self, *command: bytes | str | int, query_type: RedisQuery | None, deadline_s: float = ANSWER_DEADLINE_S
    ) -> Any:
        """The answer to one command; a refusal is raised as ResponseError."""
        (answer,) = await self.call([command], deadline_s, query_type=query_type)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        """Close the connection; a later call opens it again."""
        async with self._turn:
            await self._drop()

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._connection or await self._open()
        await connection.send_packed_command(_pack(commands), check_health=False)
        return [await self._read_answer(connection) for _ in commands]

    async def _open(self) -> AbstractConnection:
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        connection.retry = Retry(NoBackoff(), 0)
        connection.socket_timeout = None
        self._connection = connection
        await connection.connect()  # type: ignore[no-untyped-call]
        return connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    @staticmethod
    async def _read_answer(connection: AbstractConnection) -> Any:
        try:
            return await connection.read_response(disable_decoding=True)
        except ResponseError as refusal:
            return refusal


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
