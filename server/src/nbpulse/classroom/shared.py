"""
Errors that several students have now: not those who have run the cell well since, or stopped trying an hour ago; and
what the board keeps of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from nbpulse.classroom.errorgroups import NO_GROUPS, ErrorGroups
from nbpulse.classroom.learners import Run
from nbpulse.classroom.pace import HotCell

CURRENT_MS: Final = 3_600_000
SHARED_BY_MIN: Final = 2
SHOWN_MAX: Final = 10


class SharedError(msgspec.Struct, frozen=True):
    """
    One group of errors: its fingerprint, a few words, the cell, how many students, and since when in ms. `title`: what
    staff call it; `merged`: how many other groups are one with it.
    """

    fp: str
    label: str
    cell: str
    n: int
    since: int
    title: str | None = None
    merged: int = 0


class MutedGroup(msgspec.Struct, frozen=True):
    """
    A group that staff have muted, and how many have it now. `label` and `cell` are None where nobody has it; of a
    muted cell there is no label.
    """

    fp: str
    n: int
    label: str | None = None
    cell: str | None = None
    title: str | None = None


def list_errors(recent: Iterable[Run]) -> dict[str, Run]:
    """The errors a learner's cells stand in, by fingerprint; an interrupt is no answer to one."""
    newest: dict[tuple[str, str], Run] = {}
    for run in recent:
        if run.status != "interrupted":
            place = run.notebook_id, run.cell_id
            newest[place] = max(run, newest.get(place, run))
    return {run.fingerprint: run for run in newest.values() if run.status == "error"}


def is_current(run: Run, now_ms: int) -> bool:
    """Whether somebody who failed this way is thought to be at it still."""
    return now_ms - run.at_ms < CURRENT_MS


def group_errors(
    learners: Iterable[Mapping[str, Run]], now_ms: int, groups: ErrorGroups = NO_GROUPS
) -> list[SharedError]:
    """
    What at least 2 of the learners (each by `list_errors`) have now and is not muted: the most widespread first, at
    most 10.
    """
    shared = [
        SharedError(
            fingerprint,
            *_describe(fingerprint, own),
            len(own),
            min(run.at_ms for runs in own for run in runs),
            groups.get(fingerprint).title,
            len(groups.list_members(fingerprint)) - 1,
        )
        for fingerprint, own in _collect(learners, now_ms, groups).items()
        if len(own) >= SHARED_BY_MIN and fingerprint not in groups.muted
    ]
    return sorted(shared, key=lambda one: (-one.n, one.since, one.fp))[:SHOWN_MAX]


def list_muted(
    learners: Iterable[Mapping[str, Run]], now_ms: int, groups: ErrorGroups, cells: Mapping[str, str]
) -> list[MutedGroup]:
    """All that is muted; `cells`: the grid's cells by `fingerprint_cell`."""
    if not groups.muted:
        return []
    found = _collect(learners, now_ms, groups)
    muted = []
    for fingerprint in sorted(groups.muted):
        own = found.get(fingerprint, [])
        label, cell = _describe(fingerprint, own) if own else (None, cells.get(fingerprint))
        muted.append(MutedGroup(fingerprint, len(own), label, cell, groups.get(fingerprint).title))
    return muted


def _collect(learners: Iterable[Mapping[str, Run]], now_ms: int, groups: ErrorGroups) -> dict[str, list[list[Run]]]:
    """By group, of each learner who has it now the runs that failed this way."""
    found: dict[str, list[list[Run]]] = {}
    for errors in learners:
        mine: dict[str, list[Run]] = {}
        for fingerprint, run in errors.items():
            if is_current(run, now_ms):
                mine.setdefault(groups.find(fingerprint), []).append(run)
        for fingerprint, runs in mine.items():
            found.setdefault(fingerprint, []).append(runs)
    return found


def _describe(fingerprint: str, own: list[list[Run]]) -> tuple[str, str]:
    """Label and cell: the group's own before those of one that is merged into it."""
    runs = [run for of_one in own for run in of_one]
    run = next((one for one in runs if one.fingerprint == fingerprint), runs[0])
    return run.label, run.cell_id


class ErrorBoard:
    """What the board shows of a class's errors: those that are shared, cells that fail for many, what is muted."""

    def __init__(self) -> None:
        self.groups = NO_GROUPS
        self._shown: dict[str, list[Any]] = {"errors": [], "hot": [], "muted": []}
        self._changed: set[str] = set()

    @property
    def hot(self) -> list[HotCell]:
        """In the grid's order."""
        return self._shown["hot"]

    def show(self, part: str, now: list[Any]) -> None:
        """Take in one of "errors", "hot" and "muted" as it is now."""
        if now != self._shown[part]:
            self._shown[part] = now
            self._changed.add(part)

    def snapshot(self) -> dict[str, object]:
        """All three."""
        return dict(self._shown)

    def take_changes(self) -> dict[str, object]:
        """Those that differ since the last call."""
        changed, self._changed = sorted(self._changed), set()
        return {part: self._shown[part] for part in changed}
