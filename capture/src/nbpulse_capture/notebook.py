"""Where a cell stands in the saved notebook, and which notebook it is.

No kernel message says it, so it is read from the file, by the sender's thread and never while a student
waits. Unknown (not saved yet, not JSON, too large) is None, never a guess.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

LARGEST_FILE_BYTES = 20_000_000


@dataclass(frozen=True, slots=True)
class SavedNotebook:
    """The order of the cells of one saved notebook."""

    notebook_id: str | None = None
    cell_index: dict[str, int] = field(default_factory=dict)
    cell_type: dict[str, str] = field(default_factory=dict)


class NotebookShelf:
    """The last few notebooks read, each read again only when its file has changed."""

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._kept: OrderedDict[str, tuple[tuple[int, int], SavedNotebook]] = OrderedDict()

    def place(self, event: Mapping[str, Any], file: str) -> dict[str, Any]:
        """The event with its cell's place and its notebook's id; what the file does not know stays as it was."""
        notebook = self.read(file)
        placed = dict(event) | {"notebook_id": notebook.notebook_id or event.get("notebook_id")}
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
    return SavedNotebook(parse_id(notebook_id), index, types)


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
    if Path(session_name).is_absolute():
        path = Path(session_name).name
        if root and Path(session_name).is_relative_to(root):
            path = Path(session_name).relative_to(root).as_posix()
        return NotebookPlace(path, session_name)
    path = PureWindowsPath(session_name).as_posix() if os.name == "nt" else session_name
    file = Path(root, session_name) if root else Path.cwd() / PurePosixPath(path).name
    return NotebookPlace(path, str(file))


def _read_server_root(connection_file: str, parent_pid: str | None) -> str | None:
    if not parent_pid or not connection_file:
        return None
    try:
        described = json.loads((Path(connection_file).parent / f"jpserver-{int(parent_pid)}.json").read_bytes())
        root = described.get("root_dir")
    except (OSError, ValueError, AttributeError):
        return None
    return root if isinstance(root, str) and Path(root).is_absolute() else None
