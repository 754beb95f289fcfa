"""`nbpulse erase-user`, `erase-course`: everything of a person or a course, out of every store.

Promises: killed anywhere, the next erasing command finishes what was begun; doing it twice is doing it once; the class
that runs goes on meanwhile. What comes late of the erased is refused by tombstones, whose marks are also kept beside
the keys (`DATA/tombstones`): they are applied again to what a restore brings back.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from nbpulse.crypto import EncryptedField
from nbpulse.live import name_session, name_summary
from nbpulse.records import accounting, erasing, tombstones
from nbpulse.records.moves import hold_all_still
from nbpulse.records.owner import OwnerPool, open_owners
from nbpulse.records.tombstones import Leftover
from nbpulse.resources import OuterStores, open_outer_stores
from nbpulse.settings import Settings
from nbpulse.shards import MAIN
from nbpulse.timeseries import Erasure
from nbpulse.tombstones import Marker

SETTLE_S: Final = 11.0
"""A worker that had a point in hand when its student's rows went has written it by then, or given up (10 s)."""
_WORKER_S: Final = 20.0
Report = Callable[[int, int], None]


def _ignore(_done: int, _total: int) -> None:
    pass


@dataclass
class Eraser:
    """Erases in the stores it was opened on. `can_erase_series`: False once a server has said that it cannot."""

    pool: OwnerPool
    seal: EncryptedField
    marker: Marker
    stores: OuterStores
    marks_file: Path
    settle_s: float = SETTLE_S
    can_erase_series: bool = True
    others: Sequence[OwnerPool] = ()
    """Further databases with students' rows."""

    async def describe_user(self, name: str) -> erasing.Held | None:
        """Who bears that username or id, and what is held of them."""
        found = await erasing.find_people(self.pool, self.seal, name)
        return await self._add_elsewhere(found[0]) if found else None

    async def list_left(self, short_name: str) -> list[erasing.Held] | None:
        """Who has left the course and is in no other one; None: there is no such course."""
        people = await erasing.list_left(self.pool, self.seal, short_name)
        return people and [await self._add_elsewhere(one) for one in people]

    async def _add_elsewhere(self, person: erasing.Held) -> erasing.Held:
        rows, user_ids = dict(person.rows), await erasing.find_ids(self.pool, person.user_id)
        for pool in self.others:
            held = await erasing.count_rows(pool, user_ids)
            _add(rows, {table: count for table, count in held.items() if table not in erasing.SHOWN_BY_DIRECTORY})
        return person._replace(rows=rows)

    async def describe_course(self, short_name: str) -> erasing.HeldCourse | None:
        """What a course holds."""
        return await erasing.find_course(self.pool, short_name, others=self.others)

    async def readmit(self, provider: str, subject: str) -> bool:
        """Let somebody who was erased come in again from another system; False where they were not kept out."""
        return await tombstones.remove(self.pool, self.marker.mark_identity(provider, subject))

    async def erase_user(self, user_id: UUID) -> dict[str, int]:
        """Rows removed, by table. The rest is done by `finish_all`. Raises Unavailable."""
        needles = [str(one).encode() for one in await erasing.find_ids(self.pool, user_id)]
        erased = await erasing.erase_user(
            self.pool, self.seal, self.marker, user_id, lambda: self._find_in_hand(needles), others=self.others
        )
        await self._keep_marks()
        return _add(erased.rows, await self._erase_elsewhere(erased.leftover))

    async def _erase_elsewhere(self, leftover: Leftover) -> dict[str, int]:
        """What further databases have of people or a course gone from the directory; rows by table."""
        needles, rows = _list_needles(leftover), dict[str, int]()

        async def find() -> list[tuple[str, str]]:
            return await self._find_in_hand(needles)

        for pool in self.others:
            if leftover.user_ids:
                more = await erasing.erase_elsewhere(
                    *(pool, self.seal, leftover.user_ids, find), directory=self.pool, others=self.others
                )
                _add(rows, more)
            if leftover.course_id:
                _add(rows, await erasing.clear_course(pool, self.seal, leftover, find))
        return rows

    async def erase_course(self, course_id: UUID, report: Report = _ignore) -> dict[str, int]:
        """The students who are in no other course, one after the other, then the course. As `erase_user`."""
        student_ids = await erasing.list_only_here(self.pool, course_id)
        total: dict[str, int] = {}
        for number, student_id in enumerate(student_ids):
            _add(total, await self.erase_user(student_id))
            report(number + 1, len(student_ids) + 1)
        needles = [str(course_id).encode()]
        erased = await erasing.erase_course(
            self.pool, self.seal, self.marker, course_id, lambda: self._find_in_hand(needles)
        )
        await self._keep_marks()
        _add(total, await self._erase_elsewhere(erased.leftover))
        report(len(student_ids) + 1, len(student_ids) + 1)
        return _add(total, erased.rows)

    async def finish_all(self, report: Report = _ignore) -> int:
        """Remove what is left outside of the tables of every erasure that was begun; how many. Raises Unavailable."""
        unfinished = await tombstones.list_unfinished(self.pool)
        for _, leftover in unfinished:
            await self._erase_elsewhere(leftover)  # nothing, but for one that was killed
        if unfinished:
            await asyncio.sleep(self.settle_s)
        for number, (mark, leftover) in enumerate(unfinished):
            await self._finish(leftover)
            await tombstones.finish(self.pool, mark)
            report(number + 1, len(unfinished))
        await self._keep_marks()
        return len(unfinished)

    async def erase_again(self) -> int:
        """Erase whom a restore has brought back though there is a tombstone of theirs; how many people and courses."""
        kept = set(self._read_marks())
        people = await erasing.list_ids(self.pool, "users")
        marks = kept | await tombstones.list_marks(self.pool, "user")
        again = [one for one in people if self.marker.mark_user(one) in marks]
        courses = await erasing.list_ids(self.pool, "courses")
        marks = kept | await tombstones.list_marks(self.pool, "course")
        again_courses = [one for one in courses if self.marker.mark_course(one) in marks]
        for user_id in again:
            await self.erase_user(user_id)
        for course_id in again_courses:
            await self.erase_course(course_id)
        return len(again) + len(again_courses)

    async def _find_in_hand(self, needles: list[bytes]) -> list[tuple[str, str]]:
        return [one.entry for one in await self.stores.stream.find(needles) if one.is_waiting or one.is_pending]

    async def _finish(self, leftover: Leftover) -> None:
        erasure = Erasure(leftover.user_ids, leftover.course_id, leftover.member_ids, leftover.paths)
        for series in self.stores.series:
            if not await series.erase_points(erasure):
                self.can_erase_series = False
        await self._clear_stream(_list_needles(leftover))
        keys = [name_session(str(one)) for one in (*leftover.user_ids, *leftover.member_ids)]
        keys += [name_summary(str(one)) for one in leftover.notebook_ids]
        await self.stores.cache.forget(leftover.course_ids, leftover.user_ids, keys)

    async def _clear_stream(self, needles: list[bytes]) -> None:
        """What waits is dropped by a worker that is at work; where there is none, or it takes long, here."""
        stream, until_s = self.stores.stream, time.monotonic() + _WORKER_S
        while waiting := [one for one in await stream.find(needles) if one.is_waiting]:
            if time.monotonic() > until_s or not await self.stores.cache.read_workers():
                await stream.take(waiting)
                break
            await asyncio.sleep(0.2)
        entries = [one for one in await stream.find(needles) if not one.is_waiting]
        await accounting.count_dropped_entries(self.pool, [one.entry for one in entries if one.is_pending])
        await stream.remove(entries)

    async def _keep_marks(self) -> None:
        """Beside the keys, since a backup of before an erasure does not know of it."""
        kinds = [await tombstones.list_marks(self.pool, kind) for kind in ("user", "course")]
        known = set(self._read_marks())
        fresh = sorted(set().union(*kinds) - known)
        if not fresh:
            return
        descriptor = os.open(self.marks_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(b"".join(mark.hex().encode() + b"\n" for mark in fresh))
            file.flush()
            os.fsync(file.fileno())

    def _read_marks(self) -> list[bytes]:
        if not self.marks_file.exists():
            return []
        return [bytes.fromhex(line) for line in self.marks_file.read_text(encoding="ascii").split()]


@asynccontextmanager
async def open_eraser(
    settings: Settings, database_url: str, redis_url: str, *, settle_s: float | None = None
) -> AsyncIterator[Eraser]:
    """
    On the stores of these URLs, and InfluxDB where the settings name it; no shard moves meanwhile. Raises StartupError.
    """
    async with (
        open_owners(database_url) as pools,
        hold_all_still(pools),
        open_outer_stores(settings, pools[MAIN], redis_url) as stores,
    ):
        pool, *others = pools.values()
        yield Eraser(
            pool,
            EncryptedField(settings.read_encryption_keys()),
            Marker(settings.make_tombstone_key),
            stores,
            settings.data_dir / "tombstones",
            SETTLE_S if settle_s is None else settle_s,
            others=others,
        )


def _list_needles(leftover: Leftover) -> list[bytes]:
    return [str(one).encode() for one in (*leftover.user_ids, leftover.course_id) if one]


def _add(total: dict[str, int], more: dict[str, Any]) -> dict[str, int]:
    for table, count in more.items():
        total[table] = total.get(table, 0) + count
    return total
