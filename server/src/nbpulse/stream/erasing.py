"""Entries of a person or a course taken out of the streams, and the streams' files written anew.

Promises: only entries that name what was erased go; what the group has not acknowledged is given to the caller first,
so that it can be counted before it is gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis

from nbpulse.cluster import Cluster
from nbpulse.errors import Unavailable
from nbpulse.stream import GROUP, STREAM_KEYS
from nbpulse.stream.cluster import open_link
from nbpulse.stream.copying import StreamCopy
from nbpulse.stream.link import Command, pair_answer

_DEADLINE_S: Final = 30.0
_CONSUMER: Final = b"erasure"
_KEYS: Final = tuple(key for keys in STREAM_KEYS.values() for key in keys)


class FoundEntry(NamedTuple):
    """An entry that names what is looked for: it waits, or a worker has it in hand, or neither."""

    stream: bytes
    entry_id: bytes
    is_waiting: bool
    is_pending: bool

    @property
    def entry(self) -> tuple[str, str]:
        """Where it stands, as text (stream, id)."""
        return self.stream.decode(), self.entry_id.decode()


class StreamErasure:
    """Works on whole streams over a connection of its own. Every method raises Unavailable (NB-2001)."""

    def __init__(self, redis: Redis | Cluster) -> None:
        self._link = open_link(redis)
        self._copy = StreamCopy(redis)

    async def close(self) -> None:
        """Close the connections."""
        await self._link.close()
        await self._copy.close()

    async def find(self, needles: Sequence[bytes]) -> list[FoundEntry]:
        """Every entry whose payload holds one of `needles`, whether it can be decoded or not."""
        found = []
        async for batch in self._copy.read():
            for one in batch:
                payload = b" ".join(one.fields)
                if any(needle in payload for needle in needles):
                    found.append(one.place)
        if not found:
            return []
        delivered = await self._find_delivered()
        answers = await self._ask(
            [(b"XPENDING", stream, GROUP, entry_id, entry_id, 1) for stream, entry_id in found], may_refuse=True
        )
        return [
            FoundEntry(
                *place,
                is_waiting=place[0] in delivered and _order(place[1]) > _order(delivered[place[0]]),
                is_pending=isinstance(answer, list) and bool(answer),
            )
            for place, answer in zip(found, answers, strict=True)
        ]

    async def read_payloads(self, needles: Sequence[bytes]) -> AsyncIterator[bytes]:
        """What the streams hold with one of `needles` in it, as it was sent."""
        async for batch in self._copy.read():
            for one in batch:
                payload = b" ".join(one.fields[1::2])
                if any(needle in payload for needle in needles):
                    yield payload

    async def take(self, entries: Iterable[FoundEntry]) -> None:
        """
        Have these, which wait, and what waits beside them, in hand; workers that come take over what is left of it.
        (A waiting entry that is deleted makes the server count wrongly what waits.)
        """
        for stream in {one.stream for one in entries}:
            await self._ask([(b"XREADGROUP", b"GROUP", GROUP, _CONSUMER, b"STREAMS", stream, b">")])

    async def remove(self, entries: Sequence[FoundEntry]) -> None:
        """Acknowledge and delete them; none of them waits."""
        for command in (b"XACK", b"XDEL"):
            group = (GROUP,) if command == b"XACK" else ()
            await self._ask([(command, one.stream, *group, one.entry_id) for one in entries], may_refuse=True)

    async def rewrite_files(self) -> None:
        """
        Begin to write the server's files anew without what is gone; where it writes none, nothing happens. Raises
        Unavailable: a server of several is away, and keeps it.
        """
        await self._ask_everywhere((b"BGREWRITEAOF",))

    async def is_rewriting(self) -> bool:
        """Whether the files are still being written. Raises Unavailable, as above."""
        answers = await self._ask_everywhere((b"INFO", b"persistence"))
        for answer in answers:
            if isinstance(answer, Exception):
                raise Unavailable("NB-2001") from answer
        return any(b"aof_rewrite_in_progress:1" in one or b"aof_rewrite_scheduled:1" in one for one in answers)

    async def _ask_everywhere(self, command: Command) -> list[Any]:
        """Each server's answer, or refusal."""
        found = []
        for given in await self._link.call_everywhere([command], query_type="erase_entries", deadline_s=_DEADLINE_S):
            if isinstance(given, Unavailable):
                raise given
            found += given
        return found

    async def _find_delivered(self) -> dict[bytes, bytes]:
        """Up to which entry our group has been handed each stream."""
        answers = await self._ask([(b"XINFO", b"GROUPS", key) for key in _KEYS], may_refuse=True)
        groups = [
            (key, dict(pair_answer(group)))
            for key, answer in zip(_KEYS, answers, strict=True)
            if not isinstance(answer, Exception)
            for group in answer
        ]
        return {key: group[b"last-delivered-id"] for key, group in groups if group[b"name"] == GROUP}

    async def _ask(self, commands: Sequence[Sequence[bytes | str | int]], *, may_refuse: bool = False) -> list[Any]:
        """The answers; `may_refuse` where a stream or its group need not be there."""
        return await self._link.ask(commands, _DEADLINE_S, query_type="erase_entries", may_refuse=may_refuse)


def _order(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)
