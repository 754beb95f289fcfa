"""Where a cell stands in the saved notebook, and which notebook it is.

No kernel message says it, so it is read from the file, by the sender's thread and never while a student
waits. Unknown (not saved yet, not JSON, too large) is None, never a guess. Of a notebook without an id of ours the
prints of its cells' ids are told (docs/events.md): by these the server knows a copy of the course's notebook.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import unquote, urlsplit

LARGEST_FILE_BYTES = 20_000_000
PRINT_CHARS, PRINTS_MAX = 6, 64
VSCODE_SCHEME = "vscode-notebook-cell:"
_PurePath = PureWindowsPath if sys.platform == "win32" else PurePosixPath


@dataclass(frozen=True, slots=True)
class SavedNotebook:
    """The order of the cells of one saved notebook."""

    notebook_id: str | None = None
    cell_index: dict[str, int] = field(default_factory=dict)
    cell_type: dict[str, str] = field(default_factory=dict)
    cell_prints: str = ""


class NotebookShelf:
    """The last few notebooks read, each read again only when its file has changed."""

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._kept: OrderedDict[str, tuple[tuple[int, int], SavedNotebook]] = OrderedDict()

    def place(self, event: Mapping[str, Any], file: str) -> dict[str, Any]:
        """The event with its cell's place and its notebook's id; what the file does not know stays as it was."""
        notebook = self.read(file)
        placed = dict(event)
        if notebook.notebook_id is not None:
            placed["notebook_id"] = notebook.notebook_id
        elif notebook.cell_prints:  # the file decides, not a prepared cell that was pasted into it
            placed |= {"notebook_id": None, "cell_prints": notebook.cell_prints}
        cell_id = event.get("cell_id")
        if cell_id is not None:
            placed["cell_index"] = notebook.cell_index.get(cell_id, event.get("cell_index"))
            placed["cell_type"] = notebook.cell_type.get(cell_id, event.get("cell_type"))
        return placed

    def read(self, file: str) -> SavedNotebook:
        """The notebook as last saved; an empty one when it cannot be known."""
        try:
            found = os.stat(file)  # noqa: PTH116 - once per event; Path costs ten times as much
            stamp = (found.st_mtime_ns, found.st_size)
            if (kept := self._kept.get(file)) and kept[0] == stamp:
                return kept[1]
            if found.st_size > LARGEST_FILE_BYTES:
                return SavedNotebook()
            notebook = _parse(Path(file).read_bytes())
        except (OSError, ValueError, RecursionError):
            return SavedNotebook()
        self._kept[file] = (stamp, notebook)
        self._kept.move_to_end(file)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return notebook


def _parse(raw: bytes) -> SavedNotebook:
    """Raises ValueError for what is no notebook."""
    content = json.loads(raw)
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        return SavedNotebook()
    index: dict[str, int] = {}
    types: dict[str, str] = {}
    for position, cell in enumerate(content["cells"]):
        cell_id = cell.get("id") if isinstance(cell, dict) else None
        if isinstance(cell_id, str) and cell_id not in index:
            index[cell_id] = position
            types[cell_id] = str(cell.get("cell_type"))
    metadata = content.get("metadata")
    ours = metadata.get("nbpulse") if isinstance(metadata, dict) else None
    notebook_id = ours.get("notebook_id") if isinstance(ours, dict) else None
    return SavedNotebook(parse_id(notebook_id), index, types, print_cells(index))


def print_cells(cell_ids: Iterable[str]) -> str:
    """The prints of a notebook's cells: 6 hexadecimal digits of each id's SHA-1, the 64 smallest in a row."""
    hashes = (hashlib.sha1(one.encode("utf-8", "replace"), usedforsecurity=False).hexdigest() for one in cell_ids)
    return "".join(sorted({one[:PRINT_CHARS] for one in hashes})[:PRINTS_MAX])


def parse_id(value: object) -> str | None:
    """The server takes UUIDs only; another tool's idea of an id must not make it refuse the run."""
    try:
        return str(uuid.UUID(value)) if isinstance(value, str) else None
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class NotebookPlace:
    """A notebook's file on this machine, and the path under which it is reported."""

    path: str
    file: str | None


def locate_notebook(session_name: str, connection_file: str, parent_pid: str | None) -> NotebookPlace:
    """
    The notebook of a kernel from its JPY_SESSION_NAME.

    The reported path is relative to the Jupyter server's root directory, which the server writes into its own
    runtime file beside the kernel's connection file. Without that only the file name is reported: an absolute
    path would tell the student's account and folders.
    """
    root = _read_server_root(connection_file, parent_pid)
    session = _PurePath(session_name)
    if session.is_absolute():
        path = session.relative_to(root).as_posix() if root and session.is_relative_to(root) else session.name
        return NotebookPlace(path, session_name)
    file = _PurePath(root, session) if root else _PurePath(Path.cwd(), session.name)
    return NotebookPlace(session.as_posix(), str(file))


def locate_vscode(cell_id: str) -> NotebookPlace | None:
    """
    The notebook of a cell that VS Code names (`vscode-notebook-cell:/home/taro/week1.ipynb#W0sZmlsZQ%3D%3D`); only the
    file's name is reported. None where the address names no file.
    """
    if not cell_id.startswith(VSCODE_SCHEME):
        return None
    try:
        path = unquote(urlsplit(cell_id).path)  # a remote kernel's host stands before it; the file is on that side
    except ValueError:
        return None
    if not path.strip("/"):
        return None
    name = path.rstrip("/").rsplit("/", 1)[-1]
    if not path.startswith("/"):  # never saved: there is no file
        return NotebookPlace(name, None)
    is_windows = path[2:3] == ":" and path[1].isalpha()
    return NotebookPlace(name, path[1:] if is_windows else path)


def _read_server_root(connection_file: str, parent_pid: str | None) -> str | None:
    if not parent_pid or not connection_file:
        return None
    try:
        described = json.loads((Path(connection_file).parent / f"jpserver-{int(parent_pid)}.json").read_bytes())
        root = described.get("root_dir")
    except (OSError, ValueError, AttributeError):
        return None
    return root if isinstance(root, str) and _PurePath(root).is_absolute() else None
