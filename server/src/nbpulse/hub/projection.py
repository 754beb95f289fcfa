"""What a view shows on projectors: the class without anybody in it, whole in each frame, at most one a second."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from nbpulse.classroom import project

EVERY_S: Final = 1.0
_FROM_COURSE: Final = ("title", "join_code", "is_demo")

_encode = msgspec.json.Encoder().encode


class Frame(msgspec.Struct, frozen=True):
    """One encoded change."""

    seq: int
    made_at: float
    text: str


class Projection:
    """
    The one frame that all projectors of a view show; the newest says everything, so no older one is kept.

    `announcements` are staff's to the whole class, the newest first: {"at": ms, "text": text or one per language}.
    """

    def __init__(self, epoch: str, course: Mapping[str, Any]) -> None:
        self.seq = 0
        self.announcements: Sequence[Mapping[str, Any]] = ()
        self._epoch = epoch
        self.set_course(course)
        self._body: dict[str, Any] = {}
        self._frame = Frame(0, 0.0, "")

    def set_course(self, course: Mapping[str, Any]) -> None:
        """What is told of the course, from the next frame on."""
        self._course = {name: course[name] for name in _FROM_COURSE}

    def is_due(self) -> bool:
        """Whether the newest frame is old enough to be replaced."""
        return time.monotonic() - self._frame.made_at >= EVERY_S

    def show(self, board: Mapping[str, Any], now_ms: int) -> bool:
        """Take in the class's snapshot; True when that makes a new frame."""
        body = {"course": self._course, **project(board), "announcements": list(self.announcements)}
        if body == self._body:
            return False
        self._body, self.seq = body, self.seq + 1
        text = _encode({"t": "d", "epoch": self._epoch, "seq": self.seq, "at": now_ms, **body}).decode()
        self._frame = Frame(self.seq, time.monotonic(), text)
        return True

    def frames_after(self, seq: int) -> list[Frame]:
        """The newest frame, for whoever has not seen it."""
        return [] if seq == self.seq else [self._frame]

    def encode_snapshot(self) -> bytes:
        """The same as a frame; frames go on from its `seq`."""
        return self._frame.text.encode()
