"""Every entry of the streams, to be kept in a backup and put back into an empty server under its old id.

Promises: what is read is everything the server holds, acknowledged or not, so what is missing was processed before;
putting the same entries back twice is putting them back once; a server that was used is left alone; on its way an entry
is sealed.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis

from nbpulse.cluster import Cluster
from nbpulse.crypto import EncryptedField, SealBroken
from nbpulse.errors import StartupError
from nbpulse.stream import GROUP, LANES, STREAM_KEYS
from nbpulse.stream.cluster import open_link
from nbpulse.stream.link import pair_answer

_BATCH: Final = 1_000
_DEADLINE_S: Final = 30.0
_ENTRY_ID: Final = re.compile(rb"\d+-\d+")
_KEYS: Final = tuple(key for lane in LANES for key in STREAM_KEYS[lane])


class StoredEntry(NamedTuple):
    """An entry as the server keeps it; `fields` are names and values in turn."""

    stream: bytes
    entry_id: bytes
    fields: Sequence[bytes]

    @property
    def place(self) -> tuple[bytes, bytes]:
        """What no two entries share."""
        return self.stream, self.entry_id

    def encode(self, seal: EncryptedField) -> bytes:
        """One line of text, its end included. Sealed, since students' own words stand in an entry as they were sent."""
        fields = b" ".join(map(base64.b64encode, self.fields)).decode()
        return b" ".join((self.stream, self.entry_id, seal.encrypt(fields).encode())) + b"\n"


def read_place(line: bytes) -> tuple[bytes, bytes]:
    """Where the entry of a line belongs. Raises StartupError (NB-3072): that is no line of ours."""
    stream, entry_id, *rest = line.split(b" ")
    if stream not in _KEYS or len(rest) != 1 or not _ENTRY_ID.fullmatch(entry_id):
        raise StartupError("NB-3072", path="stream", detail="line")
    return stream, entry_id


def decode_entry(line: bytes, seal: EncryptedField) -> StoredEntry:
    """What `encode` wrote, without its end. Raises StartupError (NB-3060): under other keys."""
    place = read_place(line)
    try:
        fields = seal.decrypt(line.rpartition(b" ")[2].decode()).split(" ")
    except SealBroken as broken:
        raise StartupError("NB-3060") from broken
    return StoredEntry(*place, [base64.b64decode(field) for field in fields])


class StreamCopy:
    """Reads and writes whole streams over a connection of its own. Every method raises Unavailable (NB-2001)."""

    def __init__(self, redis: Redis | Cluster) -> None:
        self._link = open_link(redis)

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()

    async def count(self) -> int:
        """Entries there now."""
        return sum(await self._ask([(b"XLEN", key) for key in _KEYS]))

    async def read(self) -> AsyncIterator[list[StoredEntry]]:
        """Every entry that is there when its stream's turn comes, in batches."""
        for key in _KEYS:
            after = b"-"
            while True:
                (found,) = await self._ask([(b"XRANGE", key, after, b"+", b"COUNT", _BATCH)])
                if not found:
                    break
                yield [StoredEntry(key, entry_id, fields) for entry_id, fields in found]
                after = b"(" + found[-1][0]

    async def find_present(self, places: Collection[tuple[bytes, bytes]]) -> set[tuple[bytes, bytes]]:
        """
        Those of `places` that are there already, from an earlier try.

        Raises StartupError (NB-3074) when the server holds, or ever held, anything else.
        """
        present = {entry.place async for batch in self.read() for entry in batch}
        newest = dict.fromkeys(_KEYS, b"0-0") | dict(sorted(present, key=_order))
        answers = await self._ask([(b"XINFO", b"STREAM", key) for key in _KEYS], may_refuse=True)
        for key, answer in zip(_KEYS, answers, strict=True):
            # A stream that is empty now but was not always takes no entry older than its last one.
            last_id = b"0-0" if isinstance(answer, Exception) else dict(pair_answer(answer))[b"last-generated-id"]
            if last_id != newest[key]:
                raise StartupError("NB-3074", place=f"stream {key.decode()}")
        if not present.issubset(places):
            raise StartupError("NB-3074", place="stream")
        return present

    async def write(self, entries: Iterable[StoredEntry]) -> None:
        """Append them under their ids; on disk, as the server promises, before it returns."""
        await self._ask([(b"XADD", one.stream, one.entry_id, *one.fields) for one in entries])

    async def add(self, entries: Iterable[StoredEntry]) -> None:
        """Append them behind what is there, under new ids; done twice they are there twice."""
        await self._ask([(b"XADD", one.stream, b"*", *one.fields) for one in entries])

    async def rewind(self) -> None:
        """Have the workers read again all that is still there: the ledger they had written to is another now."""
        await self._ask([(b"XGROUP", b"SETID", key, GROUP, b"0") for key in _KEYS], may_refuse=True)

    async def _ask(self, commands: Sequence[Sequence[bytes | str | int]], *, may_refuse: bool = False) -> list[Any]:
        """The answers; `may_refuse` where a stream or its group need not be there."""
        return await self._link.ask(commands, _DEADLINE_S, query_type="copy_entries", may_refuse=may_refuse)


def _order(place: tuple[bytes, bytes]) -> tuple[bytes, int, int]:
    milliseconds, _, number = place[1].partition(b"-")
    return place[0], int(milliseconds), int(number)
