"""Errors that several students have now: not those who have run the cell well since, or stopped trying an hour ago."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from nbpulse.classroom.learners import Run

CURRENT_MS: Final = 3_600_000
SHARED_BY_MIN: Final = 2
SHOWN_MAX: Final = 10


class SharedError(msgspec.Struct, frozen=True):
    """One group of errors: its fingerprint, a few words, the cell, how many students, and since when in ms."""

    fp: str
    label: str
    cell: str
    n: int
    since: int


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


def group_errors(learners: Iterable[Mapping[str, Run]], now_ms: int) -> list[SharedError]:
    """What at least 2 of the learners (each by `list_errors`) have now: the most widespread first, at most 10."""
    groups: dict[str, list[Run]] = {}
    for errors in learners:
        for fingerprint, run in errors.items():
            if is_current(run, now_ms):
                groups.setdefault(fingerprint, []).append(run)
    shared = [
        SharedError(fingerprint, runs[0].label, runs[0].cell_id, len(runs), min(run.at_ms for run in runs))
        for fingerprint, runs in groups.items()
        if len(runs) >= SHARED_BY_MIN
    ]
    return sorted(shared, key=lambda one: (-one.n, one.since, one.fp))[:SHOWN_MAX]
