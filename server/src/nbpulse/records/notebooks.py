"""Which course notebook an event belongs to.

A student's copy maps to the course's notebook by the notebook id in its metadata, else by its path. A notebook nobody
registered is learned from the first event that names it.
"""

from __future__ import annotations

from uuid import UUID

import asyncpg
import msgspec

from nbpulse.events import ReceivedEvent

_CACHE_MAX = 20_000
_LEARN = """
INSERT INTO notebooks (course_id, path, title) VALUES ($1, $2, $3)
ON CONFLICT (course_id, path) DO UPDATE SET path = excluded.path RETURNING id, path
"""


class CourseNotebook(msgspec.Struct, frozen=True):
    """The course's own notebook: its id, and the path that stands for it in the time series."""

    id: UUID
    path: str


class NotebookDirectory:
    """Finds course notebooks, remembering what it found; one per process."""

    def __init__(self) -> None:
        self._by_path: dict[tuple[UUID, str], CourseNotebook] = {}
        self._by_id: dict[tuple[UUID, UUID], CourseNotebook | None] = {}

    def forget(self) -> None:
        """Drop what is remembered: after a database error a remembered row may not exist."""
        self._by_path.clear()
        self._by_id.clear()

    async def resolve(self, connection: asyncpg.Connection, event: ReceivedEvent) -> CourseNotebook | None:
        """The event's course notebook, made when it is new; None for an event without a notebook."""
        if event.notebook_id is not None:
            key = (event.course_id, event.notebook_id)
            if key not in self._by_id:
                row = await connection.fetchrow("SELECT id, path FROM notebooks WHERE course_id = $1 AND id = $2", *key)
                self._make_room()
                self._by_id[key] = CourseNotebook(row["id"], row["path"]) if row else None
            if (found := self._by_id[key]) is not None:
                return found
        if event.notebook_path is None:
            return None
        return await self._resolve_path(connection, event.course_id, event.notebook_path)

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

    def _make_room(self) -> None:
        if len(self._by_path) + len(self._by_id) >= _CACHE_MAX:
            self.forget()
