"""Students' answers to one cell beside each other: which are the same code, and what differs from the teacher's. Pure.

Promises: the order in which answers come changes nothing; texts of any length and content are compared in bounded time.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

LINES_MAX: Final = 400
"""Of either side of a difference: comparing costs the square of it at worst."""
_BLANKS: Final = re.compile(r"\s+")
_NEEDLESS_BLANK: Final = re.compile(r"(?<!\w) | (?!\w)")


class DiffLine(msgspec.Struct, frozen=True, array_like=True):
    """One line of a difference: in both (`=`), the teacher's only (`-`), the students' only (`+`)."""

    sign: Literal["=", "-", "+"]
    text: str


class SourceGroup(msgspec.Struct, frozen=True):
    """Answers that are one code: as most of them spell it, and whose they are, sorted."""

    source: str
    user_ids: list[str]


def normalise_source(source: str) -> str:
    """
    The code as it is compared: without blank lines, line ends' blanks, and blanks that separate no two words.

    A line's indentation stays, a tab counting to the next multiple of 8, as Python reads it. Blanks within a text count
    as any other: two codes that differ in nothing else are taken for one.
    """
    lines = []
    for line in source.splitlines():
        if words := line.strip():
            width = len(line[: len(line) - len(line.lstrip())].expandtabs(8))
            lines.append(" " * width + _NEEDLESS_BLANK.sub("", _BLANKS.sub(" ", words)))
    return "\n".join(lines)


def group_sources(sources: Mapping[str, str]) -> list[SourceGroup]:
    """Answers by user, grouped by equal code: the largest group first, of equal ones that of the first user."""
    groups: dict[str, list[str]] = {}
    for user_id in sorted(sources):
        groups.setdefault(normalise_source(sources[user_id]), []).append(user_id)
    found = [SourceGroup(_choose_spelling([sources[one] for one in ids]), ids) for ids in groups.values()]
    return sorted(found, key=lambda group: (-len(group.user_ids), group.user_ids[0]))


def _choose_spelling(sources: list[str]) -> str:
    counts = Counter(sources)
    return min(counts, key=lambda source: (-counts[source], source))


def compare_lines(original: str, source: str) -> list[DiffLine]:
    """What became of the teacher's lines, at most the first 400 of each."""
    ours, theirs = (text.splitlines()[:LINES_MAX] for text in (original, source))
    lines: list[DiffLine] = []
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, ours, theirs).get_opcodes():
        if tag == "equal":
            lines += [DiffLine("=", line) for line in ours[i1:i2]]
        else:
            lines += [DiffLine("-", line) for line in ours[i1:i2]]
            lines += [DiffLine("+", line) for line in theirs[j1:j2]]
    return lines
