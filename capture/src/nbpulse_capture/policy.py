"""What may be recorded of a student: apply_policy(). Pure; the server holds events to the same (docs/privacy.md).

Promises: nothing that a policy forbids leaves apply_policy(), nothing else is changed, and a second time changes
nothing; what the stricter of two policies lets through, either of them lets through. A raised hand is the student's own
word to the teacher: no policy and no pause forbids it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEVELS = ("nothing", "metadata", "source", "output")
OWN_ACTS = frozenset({"help_request", "help_cancel"})
FIELDS = frozenset(
    {
        *("error_name", "error_message", "traceback", "execution_duration_ms", "output_bytes", "tags", "typing"),
        *("source", "output"),
    }
)
_FIELD_LEVELS = {"source": "source", "output": "output"}  # the level from which on it is collected
_PART_OF = {"failing_print": "traceback"}  # goes with it

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Policy:
    """A course's level, and the event types and fields that are left out beside it. Version 0: nobody has said one."""

    version: int = 0
    level: str = "metadata"
    without: frozenset[str] = frozenset()

    def collects(self, event_type: str) -> bool:
        """Whether events of this type are collected at all."""
        return event_type in OWN_ACTS or (self.level != "nothing" and event_type not in self.without)

    def keeps(self, field: str) -> bool:
        """Whether this field of `data` is."""
        field = _PART_OF.get(field, field)
        needed = LEVELS.index(_FIELD_LEVELS.get(field, "nothing"))
        return field not in self.without and LEVELS.index(self.level) >= needed

    def wants(self, field: str) -> bool:
        """Whether it is worth while to look for the source or output of a run."""
        return self.collects("cell_execution") and self.keeps(field)


METADATA = Policy()
"""What the notice that comes with this package tells of: to a student who was shown no other, no more is done."""
OWN_ACTS_ONLY = Policy(level="nothing")


def take_stricter(one: Policy, other: Policy) -> Policy:
    """What both allow, under the version of the first."""
    return Policy(one.version, min(one.level, other.level, key=LEVELS.index), one.without | other.without)


def apply_policy(event: Event, policy: Policy) -> Event | None:
    """The event without what may not be recorded; None where all of it may not."""
    if not policy.collects(event["event_type"]):
        return None
    data: Mapping[str, Any] = event.get("data") or {}
    forbidden = [name for name in (FIELDS | _PART_OF.keys()) & data.keys() if not policy.keeps(name)]
    if not forbidden:
        return event
    return event | {"data": {name: value for name, value in data.items() if name not in forbidden}}


def read_policy(told: object) -> Policy | None:
    """A policy as the server or our own file tells it; None for what is none: then the one known before holds."""
    if not isinstance(told, Mapping):
        return None
    version, level, without = told.get("version"), told.get("level"), told.get("without")
    if not isinstance(version, int) or level not in LEVELS or not isinstance(without, list):
        return None
    return Policy(version, level, frozenset(map(str, without)))
