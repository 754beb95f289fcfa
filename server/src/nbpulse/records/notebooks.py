"""Which course notebook an event belongs to.

A student's copy is known by the notebook id in its metadata (`nbpulse prepare`), else by its cells' ids; only where the
event tells neither, by its path. Where the path is an original's and the cells or the id are not, it is a notebook of
its own (`unknown/...`), never that original. A notebook nobody registered is learned from the first event that names
it.

What is known of originals is at most 10 s old; a prepared notebook takes over the row of the path it was learned by,
so events read meanwhile are not lost to it.
"""

from __future__ import annotations

import time
from uuid import UUID

import asyncpg
import msgspec

from nbpulse.classroom import Original, make_original, read_prints, recognise
from nbpulse.events import ReceivedEvent

UNKNOWN_FOLDER = "unknown/"
ORIGINALS_LIFE_S = 10.0
_CACHE_MAX = 20_000
_LEARN = """
INSERT INTO notebooks (course_id, path, title) VALUES ($1, $2, $3)
ON CONFLICT (course_id, path) DO UPDATE SET path = excluded.path RETURNING id, path
"""
_ORIGINALS = """
SELECT n.id, n.path, array_agg(c.cell_id) AS cell_ids FROM notebooks n JOIN notebook_cells c ON c.notebook_id = n.id
WHERE n.course_id = $1 AND c.is_registered GROUP BY n.id ORDER BY n.id
"""


class CourseNotebook(msgspec.Struct, frozen=True):
    """The course's own notebook: its id, and the path that stands for it in the time series."""

    id: UUID
    path: str


class _Originals:
    """A course's registered notebooks as last read, and ids that were none of the course's by then."""

    def __init__(self, originals: list[Original]) -> None:
        self.known = originals
        self.by_id = {one.notebook_id: one for one in originals}
        self.paths = {one.path for one in originals}
        self.foreign_ids: set[UUID] = set()
        self.read_at_s = time.monotonic()


class NotebookDirectory:
    """Finds course notebooks, remembering what it found; one per process."""

    def __init__(self) -> None:
        self._by_path: dict[tuple[UUID, str], CourseNotebook] = {}
        self._by_id: dict[tuple[UUID, UUID], CourseNotebook] = {}
        self._originals: dict[UUID, _Originals] = {}

    def forget(self) -> None:
        """Drop what is remembered: after a database error a remembered row may not exist."""
        self._by_path.clear()
        self._by_id.clear()
        self._originals.clear()

    async def resolve(
        self, connection: asyncpg.Connection, event: ReceivedEvent
    ) -> tuple[ReceivedEvent, CourseNotebook | None]:
        """
        The event's course notebook, made when it is new (None for an event without one), and the event with the
        original's cell where it ran a copy of that.
        """
        if event.notebook_id is None and event.notebook_path is None:
            return event, None
        originals = await self._read_originals(connection, event.course_id)
        notebook = await self._find(connection, event, originals)
        original = originals.by_id.get(notebook.id) if notebook else None
        return (_name_cell(event, original) if original else event), notebook

    async def _find(
        self, connection: asyncpg.Connection, event: ReceivedEvent, originals: _Originals
    ) -> CourseNotebook | None:
        if event.notebook_id is not None:
            found = await self._find_id(connection, event.course_id, event.notebook_id, originals)
            if found is not None:
                return found
        prints = read_prints(event.cell_prints)
        if (original := recognise(originals.known, prints)) is not None:
            return CourseNotebook(original.notebook_id, original.path)
        path = event.notebook_path
        if path is None:
            return None
        if path in originals.paths and (prints or event.notebook_id is not None):
            path = (UNKNOWN_FOLDER + path)[:500]
        return await self._resolve_path(connection, event.course_id, path)

    async def _find_id(
        self, connection: asyncpg.Connection, course_id: UUID, notebook_id: UUID, originals: _Originals
    ) -> CourseNotebook | None:
        key = (course_id, notebook_id)
        if (found := self._by_id.get(key)) is not None or notebook_id in originals.foreign_ids:
            return found
        row = await connection.fetchrow("SELECT id, path FROM notebooks WHERE course_id = $1 AND id = $2", *key)
        if row is None:
            originals.foreign_ids.add(notebook_id)
            return None
        self._make_room()
        self._by_id[key] = CourseNotebook(row["id"], row["path"])
        return self._by_id[key]

    async def _resolve_path(self, connection: asyncpg.Connection, course_id: UUID, path: str) -> CourseNotebook:
        if (found := self._by_path.get((course_id, path))) is not None:
            return found
        title = path.rsplit("/", 1)[-1].removesuffix(".ipynb")[:200]
        row = await connection.fetchrow(
            "SELECT id, path FROM notebooks WHERE course_id = $1 AND path = $2", course_id, path
        ) or await connection.fetchrow(_LEARN, course_id, path, title)
        self._make_room()
        notebook = CourseNotebook(row["id"], row["path"])
        self._by_path[course_id, path] = notebook
        return notebook

    async def _read_originals(self, connection: asyncpg.Connection, course_id: UUID) -> _Originals:
        found = self._originals.get(course_id)
        if found is None or time.monotonic() - found.read_at_s > ORIGINALS_LIFE_S:
            rows = await connection.fetch(_ORIGINALS, course_id)
            found = _Originals([make_original(row["id"], row["path"], row["cell_ids"]) for row in rows])
            self._originals[course_id] = found
        return found

    def _make_room(self) -> None:
        if len(self._by_path) + len(self._by_id) >= _CACHE_MAX:
            self.forget()


def _name_cell(event: ReceivedEvent, original: Original) -> ReceivedEvent:
    """A copied cell has another id, and some tools give all of them new ones; the metadata names the original's."""
    copied_id = event.data.get("original_cell_id")
    if event.cell_id in original.cell_ids or not isinstance(copied_id, str) or copied_id not in original.cell_ids:
        return event
    return msgspec.structs.replace(event, cell_id=copied_id)
