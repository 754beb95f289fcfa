"""
Error groups: which errors are the same mistake (fingerprint version 1), what may be said of them openly, and what a
course's staff have settled about them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final

import msgspec

FINGERPRINT_VERSION: Final = 1

# In these the quoted name is the lesson itself ("which name is not defined?"), so it stays.
_NAME_MATTERS = frozenset(
    {"NameError", "UnboundLocalError", "KeyError", "AttributeError", "ModuleNotFoundError", "ImportError"}
)
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_IDENTIFIER = re.compile(r"[^\W\d]\w{0,39}(?:\.\w{1,40}){0,3}\Z")
_MASKS = (
    (re.compile(r"0x[0-9a-fA-F]+"), "<hex>"),
    (re.compile(r"(?:[A-Za-z]:)?(?:[/\\][\w .~-]+){2,}"), "<path>"),
    (re.compile(r"\d+(?:\.\d+)?"), "<n>"),
)


def normalise_message(error_name: str, message: str) -> str:
    """`message` (at most 200 characters) with literals, numbers and paths masked: what may leave the sealed text."""
    first_line = message.strip().split("\n", 1)[0][:1000]
    keeps_names = error_name in _NAME_MATTERS

    def mask(match: re.Match[str]) -> str:
        text = match.group(1) if match.group(1) is not None else match.group(2)
        return f"'{text}'" if keeps_names and _IDENTIFIER.match(text) else "<…>"

    masked = _QUOTED.sub(mask, first_line)
    if not keeps_names:
        for pattern, word in _MASKS:
            masked = pattern.sub(word, masked)
    return masked[:200]


def label_error(data: dict[str, object]) -> str:
    """A few words for the list, as `NameError df`: the class, and the name that matters where there is one."""
    name = str(data.get("error_name") or "Error")[:60]
    if name not in _NAME_MATTERS:
        return name
    quoted = [one or other for one, other in _QUOTED.findall(str(data.get("error_message") or "")[:1000])]
    names = [text for text in quoted if _IDENTIFIER.match(text)]
    if not names:
        return name
    # "'DataFrame' object has no attribute 'colums'": there the last name is the mistake, elsewhere the first.
    return f"{name} {names[-1] if name == 'AttributeError' else names[0]}"


# Begun at the first dash of a row alone: a row without an arrow is looked at once, not once for each dash.
_FAILING_LINE = re.compile(r"(?<!-)-++>\s*\d*\s*(.*)")


def fingerprint_error(notebook_id: str, cell_id: str, data: dict[str, object]) -> str:
    """
    The group of an error, version 1: notebook, cell, class, normalised message; 16 hex digits.

    A message that says nothing (a wrong answer is an AssertionError without one) is told apart by the failing line, as
    its print (16 hex digits of the SHA-256 of the line without blanks) or the traceback quotes it: it survives a moved
    line or another cell number.
    """
    return _hash(notebook_id, cell_id, *_describe(data))


def fingerprint_mistake(data: dict[str, object]) -> str:
    """The same mistake on whatever cell: as `fingerprint_error` without the place."""
    return _hash(*_describe(data))


def fingerprint_cell(notebook_id: str, cell_id: str) -> str:
    """The group of whatever fails on a cell: it is muted as an error's group is, and has no errors of its own."""
    return _hash(notebook_id, cell_id)


class ErrorGroup(msgspec.Struct, frozen=True):
    """What staff have settled about one group: their own name for it, the group it is one with, whether it is muted."""

    fingerprint: str
    title: str | None = None
    merged_into: str | None = None
    is_muted: bool = False


class ErrorGroups:
    """All that a course's staff have settled. A group that is merged into another has nothing of its own any more."""

    def __init__(self, settled: Iterable[ErrorGroup] = ()) -> None:
        self._settled = {one.fingerprint: one for one in settled}
        self._roots = {fingerprint: self._follow(fingerprint) for fingerprint in self._settled}
        self.muted = frozenset(
            one.fingerprint for one in self._settled.values() if one.is_muted and not one.merged_into
        )
        """The groups that are muted, without those merged into them."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ErrorGroups) and self._settled == other._settled

    __hash__ = None  # type: ignore[assignment]

    def find(self, fingerprint: str) -> str:
        """The group that it belongs to: itself where it is merged into none."""
        return self._roots.get(fingerprint, fingerprint)

    def get(self, fingerprint: str) -> ErrorGroup:
        """What is settled about that very group."""
        return self._settled.get(fingerprint) or ErrorGroup(fingerprint)

    def is_muted(self, fingerprint: str) -> bool:
        """Whether errors of that fingerprint are muted."""
        return self.find(fingerprint) in self.muted

    def list_members(self, fingerprint: str) -> list[str]:
        """The group's own fingerprint, then those that are merged into it, directly or not."""
        merged = (one for one, root in self._roots.items() if root == fingerprint != one)
        return [fingerprint, *sorted(merged)]

    def _follow(self, fingerprint: str) -> str:
        for _ in self._settled:  # as many steps as there are: a ring, which nobody can make, would end too
            one = self._settled.get(fingerprint)
            if one is None or one.merged_into is None:
                break
            fingerprint = one.merged_into
        return fingerprint


NO_GROUPS: Final = ErrorGroups()


def _describe(data: dict[str, object]) -> tuple[str, str]:
    name = str(data.get("error_name") or "")
    message = normalise_message(name, str(data.get("error_message") or ""))
    if not message:
        message = str(data.get("failing_print") or "") or _print_failing_line(str(data.get("traceback") or ""))
    return name, message


def _print_failing_line(traceback: str) -> str:
    """As capture makes it."""
    lines = _FAILING_LINE.findall(traceback)
    line = "".join(lines[-1].split())[:1_000] if lines else ""
    return hashlib.sha256(line.encode("utf-8", "replace")).hexdigest()[:16] if line else ""


def _hash(*parts: str) -> str:
    text = "\x1f".join((str(FINGERPRINT_VERSION), *parts))
    return hashlib.sha1(text.encode("utf-8", "replace"), usedforsecurity=False).hexdigest()[:16]
