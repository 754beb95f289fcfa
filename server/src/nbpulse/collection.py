"""What a course collects of its students' work, and what the notice says of it. Pure.

A course's collection has a level, things that are off beside it, and a notice; each change makes a new version, kept
with what it said. Of a student is collected what both the course's newest version and the version that this student was
shown allow: a level that is raised in mid-course waits for the student, one that is lowered holds at once.

Promises: `strip_event` lets nothing through that a policy forbids, changes nothing else, and a second time changes
nothing; what the stricter of two policies lets through, either of them lets through. A raised hand is the student's own
word to the teacher: no level forbids it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Final, Literal, get_args

import msgspec

from nbpulse.errors import InvalidInput
from nbpulse.events import EVENT_TYPES, HELP_EVENT_TYPES, ReceivedEvent

Level = Literal["nothing", "metadata", "source", "output"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
FIELDS: Final = frozenset(
    {
        "error_name",
        "error_message",
        "traceback",
        "execution_duration_ms",
        "output_bytes",
        "tags",
        "typing",
        "source",
        "output",
    }
)
"""Fields of `data` that a course can leave out."""
SWITCHES: Final = FIELDS | (EVENT_TYPES - HELP_EVENT_TYPES)
_FIELD_LEVELS: Final = {"source": "source", "output": "output"}  # the level from which on it is collected
_PART_OF: Final = {"failing_print": "traceback"}  # goes with it
ADDED_CHARS_MAX: Final = 4_000


class Policy(msgspec.Struct, frozen=True):
    """What may be collected. `without`: event types and fields that are left out, sorted."""

    version: int = 1
    level: Level = "metadata"
    without: tuple[str, ...] = ()

    def collects(self, event_type: str) -> bool:
        """Whether events of this type are collected at all."""
        return event_type in HELP_EVENT_TYPES or (self.level != "nothing" and event_type not in self.without)

    def keeps(self, field: str) -> bool:
        """Whether this field of `data` is."""
        field = _PART_OF.get(field, field)
        needed = LEVELS.index(_FIELD_LEVELS.get(field, "nothing"))
        return field not in self.without and LEVELS.index(self.level) >= needed


DEFAULT: Final = Policy()
"""What the notice that is shipped with a client tells of: of a student who was shown no other, no more is collected."""


class Words(msgspec.Struct, frozen=True):
    """One text in both languages."""

    ja: str = ""
    en: str = ""


class Notice(msgspec.Struct, frozen=True):
    """One version of a course's collection with what it tells the students. `added`: the course's own paragraph."""

    version: int
    level: Level
    without: tuple[str, ...]
    added: Words
    notice: Words

    @property
    def policy(self) -> Policy:
        """What this version allows."""
        return Policy(self.version, self.level, self.without)


@cache
def load_texts() -> dict[str, dict[str, str]]:
    """The notice's sentences by key, then by language."""
    texts: dict[str, dict[str, str]] = json.loads(
        resources.files("nbpulse").joinpath("notice_texts.json").read_text(encoding="utf-8")
    )
    return texts


def take_stricter(one: Policy, other: Policy) -> Policy:
    """What both allow, under the version of the first."""
    level = min(one.level, other.level, key=LEVELS.index)
    return Policy(one.version, level, tuple(sorted({*one.without, *other.without})))


def strip_event(event: ReceivedEvent, policy: Policy) -> tuple[ReceivedEvent | None, tuple[str, ...]]:
    """The event without what is not collected, None where all of it is not; and the fields that were dropped."""
    if not policy.collects(event.event_type):
        return None, ()
    dropped = tuple(sorted(name for name in (FIELDS | _PART_OF.keys()) & event.data.keys() if not policy.keeps(name)))
    if not dropped:
        return event, ()
    data = {name: value for name, value in event.data.items() if name not in dropped}
    return msgspec.structs.replace(event, data=data), dropped


def make_notice(version: int, level: Level, without: Iterable[str], added: Words) -> Notice:
    """
    The version with its texts made.

    Raises InvalidInput (NB-1343): something that cannot be left out, or a paragraph that is too long.
    """
    left_out = tuple(sorted(set(without)))
    if unknown := set(left_out) - SWITCHES:
        raise InvalidInput("NB-1343", names=", ".join(sorted(unknown))[:200], known=", ".join(sorted(SWITCHES)))
    if max(len(added.ja), len(added.en)) > ADDED_CHARS_MAX:
        raise InvalidInput("NB-1344", limit=ADDED_CHARS_MAX)
    policy = Policy(version, level, left_out)
    words = Words(_compose(policy, "ja", added.ja), _compose(policy, "en", added.en))
    return Notice(version, level, left_out, added, words)


def _compose(policy: Policy, language: Literal["ja", "en"], added: str) -> str:
    recorded, not_recorded = _sort_lines(policy)
    parts = ["recorded", *recorded, "not_recorded", *not_recorded, "never", "rights"]
    lines = [load_texts()[key][language] for key in parts]
    return "\n".join([*lines, *([added.strip()] if added.strip() else [])])


def list_recorded(policy: Policy) -> dict[str, list[str]]:
    """What is recorded, in words, one entry each: by language."""
    texts = load_texts()
    keys = _sort_lines(policy)[0]
    return {"ja": [texts[key]["ja"] for key in keys], "en": [texts[key]["en"] for key in keys]}


def _sort_lines(policy: Policy) -> tuple[list[str], list[str]]:
    """The lines of the notice: of what is recorded, of what is not."""
    of_runs, keeps, collects = policy.collects("cell_execution"), policy.keeps, policy.collects
    told = {
        "runs": of_runs or collects("cell_execution_start"),
        "errors": of_runs and keeps("error_message"),
        "presence": collects("presence"),
        "cells": any(map(collects, ("cell_focus", "cell_change", "markdown_run"))),
        "notebooks": any(map(collects, ("notebook_open", "notebook_save", "notebook_close"))),
        "source": of_runs and keeps("source"),
        "output": of_runs and keeps("output"),
    }
    recorded = [key for key, is_told in told.items() if is_told]
    return [*recorded, "help"], [key for key, is_told in told.items() if not is_told] or ["nothing_else"]
