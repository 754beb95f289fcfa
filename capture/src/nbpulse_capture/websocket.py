"""The requests that a front end sends to its kernel, as they cross the server's websocket: read_request().

Two forms exist: frames of JSON parts (v1.kernel.websocket.jupyter.org) and one JSON object. Only an
`execute_request` is read further than its header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nbpulse_capture.notebook import locate_vscode, parse_id

V1_PROTOCOL = "v1.kernel.websocket.jupyter.org"
TAG_LIMIT, TAG_CHARS = 10, 50


@dataclass(frozen=True, slots=True)
class Request:
    """One request to run a cell; `cell` is None where it is none of a student's (silent, no history, blank, ours)."""

    msg_id: str
    cell: dict[str, Any] | None
    marks: dict[str, Any]


def read_request(raw: str | bytes, subprotocol: str | None) -> Request | None:
    """The request to run something, or None for every other message. Raises ValueError for what is no message."""
    if subprotocol == V1_PROTOCOL:
        if not isinstance(raw, bytes):
            raise ValueError("not a frame")
        return _read_frame(raw)
    if isinstance(raw, bytes):  # the old form for messages with buffers; a request to run a cell has none
        return None
    if '"execute_request"' not in raw:
        return None
    message = json.loads(raw)
    return _describe(message["header"], message.get("metadata") or {}, message["content"])


def _read_frame(raw: bytes) -> Request | None:
    """Layout: the number of offsets, the offsets, then channel, header, parent header, metadata, content, buffers."""
    count = int.from_bytes(raw[:8], "little")
    if not 6 <= count <= 1_000:
        raise ValueError("not a frame")
    at = [int.from_bytes(raw[8 * n : 8 * n + 8], "little") for n in range(1, 7)]
    header = raw[at[1] : at[2]]
    if b'"execute_request"' not in header:
        return None
    return _describe(json.loads(header), json.loads(raw[at[3] : at[4]]), json.loads(raw[at[4] : at[5]]))


def _describe(header: Mapping[str, Any], metadata: Mapping[str, Any], content: Mapping[str, Any]) -> Request | None:
    if header.get("msg_type") != "execute_request":
        return None
    silent, kept = bool(content.get("silent")), bool(content.get("store_history", True))
    counts = not silent and kept and is_students_code(str(content.get("code", "")))
    cell_id = metadata.get("cellId")
    known_id = cell_id if isinstance(cell_id, str) else None
    cell = describe_cell(known_id, metadata) if counts else None
    return Request(str(header["msg_id"]), cell, describe_marks(metadata) if counts else {})


def is_students_code(code: str) -> bool:
    """Neither blank nor a word to us: asking for help is not a run of a cell."""
    return bool(code.strip()) and not is_our_magic(code)


def is_our_magic(source: str) -> bool:
    """`%nbpulse ...`"""
    return source.lstrip().startswith("%nbpulse")


def describe_cell(cell_id: str | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The cell's part of the envelope. VS Code's ids are addresses: the fragment names the cell."""
    ours, grader = (metadata.get(name) for name in ("nbpulse", "nbgrader"))
    exercise_id = ours.get("exercise_id") if isinstance(ours, dict) else None
    if exercise_id is None and isinstance(grader, dict):
        exercise_id = grader.get("grade_id")
    described: dict[str, Any] = {"cell_id": cell_id, "cell_index": None, "cell_type": "code"}
    described["exercise_id"] = str(exercise_id)[:200] if exercise_id is not None else None
    if isinstance(ours, dict) and (notebook_id := parse_id(ours.get("notebook_id"))):
        described["notebook_id"] = notebook_id
    if cell_id and (place := locate_vscode(cell_id)) is not None:
        described["cell_id"] = cell_id.partition("#")[2] or None
        described["notebook_path"] = place.path
    return described


def describe_marks(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What else the teacher has written into the cell: its tags, and the id of the cell it is a copy of."""
    marks: dict[str, Any] = {}
    tags = metadata.get("tags")
    if isinstance(tags, list) and (words := [t[:TAG_CHARS] for t in tags if isinstance(t, str)][:TAG_LIMIT]):
        marks["tags"] = words
    ours = metadata.get("nbpulse")
    if isinstance(ours, dict) and isinstance(ours.get("cell_id"), str):
        marks["original_cell_id"] = ours["cell_id"][:256]
    return marks
