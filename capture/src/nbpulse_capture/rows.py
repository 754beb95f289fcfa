"""What goes between the outbox, the writer and the sender: waiting events, and what the server said of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class Row:
    """
    One waiting event; `notebook_file` is set until its place in that file has been looked up.

    `is_as_written`: these are the very words that are on disk.
    """

    sequence: int
    event: dict[str, Any]
    notebook_file: str | None
    is_as_written: bool = True

    def get_new_words(self) -> dict[str, Any] | None:
        """The event, if the disk has it otherwise."""
        return None if self.is_as_written else self.event


class Leased(NamedTuple):
    """One that has just been written, and until when it is only its writer's to send."""

    account: str
    until: float
    sequence: int
    event: dict[str, Any]
    notebook_file: str | None

    def make_row(self) -> Row:
        """As take_batch() would give it; left to the sender's thread."""
        return Row(self.sequence, self.event | {"sequence": self.sequence}, self.notebook_file)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the server said of one event: accepted, duplicate or rejected (with its code and reason)."""

    event_id: str
    status: str
    reason: str = ""
