"""What a class meeting came to, from its runs in the order of time: pure, one pass, memory of students times cells.

Promises: only what the ledger and the log of staff hold, nothing guessed; the same rows give the same figures, however
they are cut into pieces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from nbpulse.classroom.entries import Column
from nbpulse.classroom.errorgroups import NO_GROUPS, ErrorGroups
from nbpulse.classroom.learners import FINISHED_STATUSES
from nbpulse.classroom.quantiles import find_quantile
from nbpulse.classroom.rules import DEFAULT_RULES, AlertRules

BREAK_MS: Final = 600_000
"""Longer gaps between two runs are a break or a talk to the class: nobody can say that they were time on a cell."""

Place = tuple[UUID, str]
"""(notebook_id, cell_id)"""


class PastRun(NamedTuple):
    """
    One finished run: who, when (ms since 1970), where, and how it ended; `error`: (group, class) of one. One that staff
    have muted (`is_muted`) is in no trouble and no commonest error.
    """

    user_id: UUID
    at_ms: int
    place: Place
    status: str
    error: tuple[str, str] | None = None
    is_muted: bool = False


class Trouble(msgspec.Struct, frozen=True):
    """
    Somebody needed help: `kind` "stuck" (the board's rule held) or "help" (a hand was up), shown from `since` to
    `until`, ms since 1970. `passed`: the cell was run well since, within the meeting; None: it was about no cell.
    """

    user_id: UUID
    kind: str
    since: int
    until: int
    place: Place | None
    passed: bool | None = None
    reached_at: int | None = None
    """When the first of the staff turned to this student meanwhile."""


class CommonError(msgspec.Struct, frozen=True):
    """The error that most students met on a cell. `label`: a few words, as the board shows it; `title`: staff's own."""

    fingerprint: str
    name: str
    students: int
    label: str = ""
    title: str | None = None


class CellFigures(msgspec.Struct, frozen=True):
    """
    One column of the grid in one meeting. `reached`, `ok` (last run went well) and `failed` (at least one error) count
    students; `median_ms`, `p90_ms`: their time on it, of `timed` students.
    """

    notebook_id: UUID
    cell_id: str
    cell_index: int | None
    title: str | None
    reached: int | None
    ok: int | None
    failed: int | None
    runs: int | None
    errors: int | None
    timed: int = 0
    median_ms: float | None = None
    p90_ms: float | None = None
    error: CommonError | None = None


class Progress(msgspec.Struct, frozen=True):
    """How far the students came in the notebook of most runs: least, quartiles and most of their last positions."""

    notebook_id: UUID
    columns: int
    students: int
    quartiles: list[float | None]


class Figures(msgspec.Struct, frozen=True):
    """
    A meeting in numbers; what counts students is None where it is withheld. `troubled`: students who were stuck or had
    a hand up; `unreached`: those of them to whom nobody of the staff turned meanwhile; `unpassed`: of these, who did
    not get past it. Waits are from when the board showed it to the first who turned to the student.
    """

    students: int | None
    came: int | None
    runs: int
    errors: int
    stuck: int | None
    hands: int | None
    troubled: int | None
    unreached: int | None
    unpassed: int | None
    waits: int
    wait_median_ms: float | None
    wait_worst_ms: float | None


class _Streak:
    """Consecutive errors of one student on one cell, as `rules.find_streak` sees them run by run."""

    __slots__ = ("count", "place", "shown_ms", "since_ms")

    def __init__(self, place: Place, since_ms: int) -> None:
        self.place, self.since_ms, self.count, self.shown_ms = place, since_ms, 0, 0


class MeetingFold:
    """Takes in a meeting's runs in the order of time; `close` says what trouble there was."""

    def __init__(self, rules: AlertRules = DEFAULT_RULES) -> None:
        self._rules = rules
        self.present: set[UUID] = set()
        """Of whom there was any event."""
        self.runs: Counter[Place] = Counter()
        self.errors: Counter[Place] = Counter()
        self._last: dict[Place, dict[UUID, str]] = {}
        self._failed: dict[Place, set[UUID]] = {}
        self._passed_ms: dict[tuple[UUID, Place], int] = {}
        self._time_ms: dict[Place, dict[UUID, int]] = {}
        self._kinds: dict[Place, dict[tuple[str, str], set[UUID]]] = {}
        self._previous_ms: dict[UUID, int] = {}
        self._streaks: dict[UUID, _Streak] = {}
        self._troubles: list[Trouble] = []

    def take(self, run: PastRun) -> None:
        """The next run; one that never started (aborted) is none."""
        user, place = run.user_id, run.place
        if run.status not in FINISHED_STATUSES:
            return
        self.runs[place] += 1
        self._last.setdefault(place, {})[user] = run.status
        gap_ms = run.at_ms - self._previous_ms.get(user, run.at_ms)
        self._previous_ms[user] = run.at_ms
        if 0 < gap_ms <= BREAK_MS:
            times = self._time_ms.setdefault(place, {})
            times[user] = times.get(user, 0) + gap_ms
        if run.status == "error":
            self.errors[place] += 1
            self._failed.setdefault(place, set()).add(user)
            if run.error and not run.is_muted:
                self._kinds.setdefault(place, {}).setdefault(run.error, set()).add(user)
        elif run.status == "ok":
            self._passed_ms[user, place] = run.at_ms
        if run.status != "interrupted" and not run.is_muted:
            self._follow_streak(run)

    def close(self, end_ms: int, hands: Iterable[Trouble], touches: Iterable[tuple[UUID, int]]) -> list[Trouble]:
        """
        Everybody's troubles in the order of time, with whether and when the staff turned to the student meanwhile.

        `touches`: (user_id, when) of each claim, "helped" and message to one student.
        """
        for user in list(self._streaks):
            self._end_streak(user, end_ms)
        by_user: dict[UUID, list[int]] = {}
        for user, at_ms in sorted(touches, key=lambda touch: touch[1]):
            by_user.setdefault(user, []).append(at_ms)
        found = sorted((*self._troubles, *hands), key=lambda one: (one.since, one.user_id, one.kind))
        return [
            msgspec.structs.replace(
                one,
                passed=self._has_passed(one),
                reached_at=next((at for at in by_user.get(one.user_id, ()) if one.since <= at <= one.until), None),
            )
            for one in found
        ]

    def describe_cells(self, notebook_id: UUID, columns: Iterable[Column]) -> list[CellFigures]:
        """The notebook's columns, also those that nobody reached."""
        return [self._describe_cell((notebook_id, column.id), column) for column in columns]

    def measure_progress(self, notebook_id: UUID, columns: Sequence[Column]) -> Progress:
        """Of the students who ran one of the columns: the place (1..columns) of the last one each reached."""
        furthest: dict[UUID, int] = {}
        for place, column in enumerate(columns, 1):
            furthest.update(dict.fromkeys(self._last.get((notebook_id, column.id), ()), place))
        ordered = sorted(furthest.values())
        quartiles = [find_quantile(ordered, part / 4) for part in range(5)]
        return Progress(notebook_id, len(columns), len(ordered), quartiles)

    def _describe_cell(self, place: Place, column: Column) -> CellFigures:
        times = sorted(self._time_ms.get(place, {}).values())
        kinds = self._kinds.get(place, {})
        commonest = max(kinds, key=lambda kind: (len(kinds[kind]), kind), default=None)
        last = self._last.get(place, {})
        return CellFigures(
            notebook_id=place[0],
            cell_id=place[1],
            cell_index=column.index,
            title=column.title,
            reached=len(last),
            ok=sum(status == "ok" for status in last.values()),
            failed=len(self._failed.get(place, ())),
            runs=self.runs[place],
            errors=self.errors[place],
            timed=len(times),
            median_ms=find_quantile(times, 0.5),
            p90_ms=find_quantile(times, 0.9),
            error=CommonError(*commonest, len(kinds[commonest])) if commonest else None,
        )

    def _has_passed(self, trouble: Trouble) -> bool | None:
        if trouble.place is None:
            return None
        return self._passed_ms.get((trouble.user_id, trouble.place), 0) >= trouble.since

    def _follow_streak(self, run: PastRun) -> None:
        streak = self._streaks.get(run.user_id)
        if run.status != "error" or (streak is not None and streak.place != run.place):
            self._end_streak(run.user_id, run.at_ms)
            streak = None
        if run.status != "error":
            return
        if streak is None:
            streak = self._streaks[run.user_id] = _Streak(run.place, run.at_ms)
        streak.count += 1
        if streak.count == self._rules.stuck_error_count:
            streak.shown_ms = max(run.at_ms, streak.since_ms + self._rules.stuck_after_ms)

    def _end_streak(self, user: UUID, end_ms: int) -> None:
        streak = self._streaks.pop(user, None)
        if streak is not None and 0 < streak.shown_ms < end_ms:
            self._troubles.append(Trouble(user, "stuck", streak.shown_ms, end_ms, streak.place))


def make_figures(fold: MeetingFold, students: Iterable[UUID], troubles: Iterable[Trouble]) -> Figures:
    """The meeting of these students in numbers."""
    whole, troubles = set(students), list(troubles)
    reached = {one.user_id for one in troubles if one.reached_at is not None}
    unreached = {one.user_id for one in troubles} - reached
    waits = sorted(one.reached_at - one.since for one in troubles if one.reached_at is not None)
    return Figures(
        students=len(whole),
        came=len(whole & fold.present),
        runs=fold.runs.total(),
        errors=fold.errors.total(),
        stuck=len({one.user_id for one in troubles if one.kind == "stuck"}),
        hands=len({one.user_id for one in troubles if one.kind == "help"}),
        troubled=len({one.user_id for one in troubles}),
        unreached=len(unreached),
        unpassed=len({one.user_id for one in troubles if one.user_id in unreached and one.passed is False}),
        waits=len(waits),
        wait_median_ms=find_quantile(waits, 0.5),
        wait_worst_ms=waits[-1] if waits else None,
    )


def name_errors(
    cells: Iterable[CellFigures], labels: Mapping[str, str], groups: ErrorGroups = NO_GROUPS
) -> list[CellFigures]:
    """The cells with their errors' labels, by fingerprint, and what staff call them."""

    def name(error: CommonError) -> CommonError:
        label, title = labels.get(error.fingerprint, error.name), groups.get(error.fingerprint).title
        return msgspec.structs.replace(error, label=label, title=title)

    return [msgspec.structs.replace(cell, error=name(cell.error)) if cell.error else cell for cell in cells]
