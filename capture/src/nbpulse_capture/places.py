"""Which notebook a kernel works for, as the Jupyter server knows it now: SessionPlaces.

Never remembered from the kernel's start: a front end first opens a session under a made-up path and corrects it, a
file is renamed while its kernel runs, and a kernel may run something before its session is there. A rename by the
file browser reaches the session later or never, so renames are followed here too.
"""

from __future__ import annotations

import re
import sqlite3
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from nbpulse_capture.notebook import NotebookPlace

RENAMES_REMEMBERED = 500
HOPS_LIMIT = 50
_MADE_UP = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_DRIVE = re.compile(r"^[A-Za-z]{2,20}:(?!/)")  # "RTC:week1.ipynb", a drive of the front end's


@dataclass(frozen=True, slots=True)
class Work:
    """What a kernel is used for; `place` is None where that is no notebook (a console)."""

    place: NotebookPlace | None


class Renames:
    """Old path -> new path, for files and folders. Pure."""

    def __init__(self) -> None:
        self._moved: OrderedDict[str, str] = OrderedDict()
        self.revision = 0

    def note(self, old: str, new: str) -> None:
        """`old` is called `new` from now on."""
        old, new = old.strip("/"), new.strip("/")
        if not old or f"{new}/".startswith(f"{old}/"):
            return
        self._moved.pop(new, None)
        self._moved[old] = new
        self.revision += 1
        while len(self._moved) > RENAMES_REMEMBERED:
            self._moved.popitem(last=False)

    def forget(self, path: str) -> None:
        """There is a file of that name again."""
        if self._moved.pop(path.strip("/"), None) is not None:
            self.revision += 1

    def follow(self, path: str) -> str:
        """What the file is called now."""
        for _ in range(HOPS_LIMIT):  # renames cannot form a ring, but what is not seen cannot be known
            for end in [len(path), *(n for n in range(len(path) - 1, 0, -1) if path[n] == "/")]:
                if (new := self._moved.get(path[:end])) is not None:
                    path = new + path[end:]
                    break
            else:
                return path
        return path


class SessionPlaces:
    """The sessions of one server, read again before each use, unless it can be seen that they are the same."""

    def __init__(self, session_manager: Any, contents_manager: Any) -> None:
        self._session_manager = session_manager
        self._contents_manager = contents_manager
        self._works: dict[str, Work] = {}
        self._stamp: tuple[int, int] | None = None
        self.renames = Renames()

    def is_current(self) -> bool:
        """Whether it can be seen that nothing has changed since the sessions were read."""
        return self._stamp is not None and self._stamp == self._read_stamp()

    async def refresh(self) -> None:
        """Read the sessions as they are now."""
        if self.is_current():
            return
        stamp = self._read_stamp()
        works: dict[str, Work] = {}
        for session in await self._session_manager.list_sessions():
            kernel_id, work = str((session.get("kernel") or {}).get("id")), self._read_session(session)
            if work is not None and (works.get(kernel_id) is None or work.place is not None):
                works[kernel_id] = work  # a console that shares a notebook's kernel does not hide the notebook
        self._works, self._stamp = works, stamp

    def _read_stamp(self) -> tuple[int, int] | None:
        """What changes with the sessions: Jupyter's own manager keeps them in a database. None for any other's."""
        from jupyter_server.services.sessions.sessionmanager import SessionManager

        for name in ("list_sessions", "row_to_model"):
            method = getattr(self._session_manager, name, None)
            if getattr(method, "__func__", None) is not getattr(SessionManager, name):
                return None
        try:
            return self._session_manager.connection.total_changes, self.renames.revision
        except (AttributeError, sqlite3.Error):
            return None

    def find(self, kernel_id: str) -> Work | None:
        """What the kernel is used for; None while that is not known."""
        return self._works.get(kernel_id)

    def locate(self, path: str) -> NotebookPlace:
        """A path of the contents service, and its file where the service keeps plain files."""
        path = self.renames.follow(_DRIVE.sub("", path).strip("/"))
        root = getattr(self._contents_manager, "root_dir", None)
        if not root or not hasattr(self._contents_manager, "_get_os_path"):
            return NotebookPlace(path, None)
        from jupyter_server.utils import ApiPath, to_os_path

        return NotebookPlace(path, to_os_path(ApiPath(path), root))

    def _read_session(self, session: dict[str, Any]) -> Work | None:
        path = str(session.get("path") or "")
        is_notebook = path.endswith(".ipynb") or session.get("type") == "notebook"
        if not is_notebook:
            return Work(None)
        if not path or (_MADE_UP.search(path.rsplit("/", 1)[-1]) and not path.endswith(".ipynb")):
            return None
        return Work(self.locate(path))
