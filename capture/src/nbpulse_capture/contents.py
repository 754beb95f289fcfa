"""The source and output of a run, where the course collects them: masked, and cut so that the event stays deliverable.

A text is cut at its limit in UTF-8 as JSON writes it, with a mark. The source comes first;
the output gets what is left of the event's size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from nbpulse_capture.execution import scrub_text

OUTPUT_TYPES = frozenset({"stream", "display_data", "update_display_data", "execute_result"})
TEXT_CAP_BYTES = 20_000
EVENT_CAP_BYTES = 31_000  # the server's limit is 32,768
TEXT_CAP_CHARS = 20_000
SMALLEST_BYTES = 200
MARK = "\n[cut here]"
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")  # colours, titles

Event = dict[str, Any]


def fit_contents(event: Event) -> Event:
    """The event as it may touch the disk: its `source` and `output`, raw until now, masked and cut."""
    texts = {name: event["data"][name] for name in ("source", "output") if event["data"].get(name)}
    if not texts:
        return event
    data = {name: value for name, value in event["data"].items() if name not in ("source", "output")}
    for name, text in texts.items():
        left_bytes = EVENT_CAP_BYTES - measure(event | {"data": data | {name: ""}})
        if left_bytes > SMALLEST_BYTES:
            # Masked before it is cut: a cut leaves no half of a secret.
            masked = scrub_text(_CONTROLS.sub("", str(text)), TEXT_CAP_CHARS * 2)
            data[name] = cut(masked, min(TEXT_CAP_BYTES, left_bytes))
    return event | {"data": data}


def cut(text: str, cap_bytes: int) -> str:
    """The text, or so much of its beginning that it and the mark stay under the cap."""
    if measure(text) <= cap_bytes and len(text) <= TEXT_CAP_CHARS:
        return text
    low, high = 0, min(len(text), TEXT_CAP_CHARS)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if measure(text[:middle]) + len(MARK) + 3 <= cap_bytes else (low, middle - 1)
    return text[:low] + MARK


def measure(value: object) -> int:
    """How many bytes it takes on the wire."""
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace"))


class OutputText:
    """What a run shows, as text, up to a little more than is kept; a flood costs no more than that."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._left_chars = TEXT_CAP_CHARS * 2

    @property
    def is_full(self) -> bool:
        """Nothing more is taken in."""
        return self._left_chars <= 0

    def take(self, msg_type: str, content: Mapping[str, Any]) -> None:
        """One message of the kernel that shows something."""
        text = content.get("text") if msg_type == "stream" else (content.get("data") or {}).get("text/plain")
        if self.is_full or not isinstance(text, str):
            return
        self._parts.append(text[: self._left_chars] + ("" if msg_type == "stream" else "\n"))
        self._left_chars -= len(text)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._parts)
