"""One learner's line of the board: what is known of them, and what follows from it."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from nbpulse.classroom.attempts import Repeat, Streak, find_repeats, find_streak, may_reach_back
from nbpulse.classroom.care import NO_CARE, Action
from nbpulse.classroom.entries import Alert, Learner
from nbpulse.classroom.errorgroups import ErrorGroups
from nbpulse.classroom.figures import Way
from nbpulse.classroom.learners import CellState, LearnerState, Run
from nbpulse.classroom.pace import find_running, is_kernel_dead
from nbpulse.classroom.quantiles import find_quantile
from nbpulse.classroom.rules import CONNECTED_MS, Standing
from nbpulse.classroom.shared import list_errors

Found = TypeVar("Found", Repeat, Streak)

_OWN_STEPS_MIN: Final = 3
_RUNNING_SHOWN_MS: Final = 10_000
_AT_WORK_MS: Final = 60_000


class Row:
    """One learner's line, kept by the board. `squares`: a character per column."""

    def __init__(self, i: int, learner: Learner, column_count: int) -> None:
        self.i = i
        self.learner = learner
        self.state: LearnerState | None = None
        self.streak: Streak | None = None
        self.repeats: tuple[Repeat, ...] = ()
        self.running: tuple[str, int] | None = None
        self.frontier = (0, 0)
        self.own_step_ms = 0.0
        self.cells: dict[str, CellState] = {}
        self.squares = ["0"] * column_count
        self.position = 0
        self.heard_ms = 0
        self.active_ms = 0
        self.connected_ms = 0
        self.presence = ""
        self.doing = ""
        self.behind_since = 0
        self.calm_until_ms = 0
        self.status = "offline"
        self.since = 0
        self.alerts: dict[str, Alert] = {}
        self.actions: dict[str, Action] = {}
        self.care = NO_CARE
        self.quiet_until = 0
        self.errors: dict[str, Run] = {}
        self.muted_cells: set[str] = set()
        self.mail = 0
        self.way = Way()

    def take_state(self, state: LearnerState, groups: ErrorGroups) -> None:
        """The learner's state, its cells apart; an older one than known changes nothing."""
        if self.state is not None and state.revision < self.state.revision:
            return
        self.state = state
        self.active_ms = max(self.active_ms, state.last_activity_ms)
        self.take_groups(groups)

    def take_groups(self, groups: ErrorGroups) -> None:
        """What staff have settled about error groups: a run that failed in a muted one is in no alert."""
        recent = self.state.recent if self.state is not None else ()
        self.errors = list_errors(recent)
        self.muted_cells = {run.cell_id for one, run in self.errors.items() if groups.is_muted(one)}
        heard = [run for run in recent if not groups.is_muted(run.fingerprint)] if groups.muted else recent
        self.streak = find_streak(heard)
        self.repeats = find_repeats(heard)

    def take_way(self) -> None:
        """Their own pace: the median of the times on their cells, of three or more."""
        spent = sorted(spent_s for _, _, _, spent_s in self.way.passages if spent_s is not None)
        self.own_step_ms = (find_quantile(spent, 0.5) or 0.0) * 1000 if len(spent) >= _OWN_STEPS_MIN else 0.0

    def find_running(self) -> None:
        """Which cell runs, by the state and the cells as they are."""
        self.running = find_running(self.state, self.cells.values()) if self.state is not None else None

    def hear(self, at_ms: int, presence: str | None, *, is_watched: bool) -> None:
        """Their Jupyter was heard of. Who was silent while somebody watched (`is_watched`) is connected from now on."""
        self.presence = presence or self.presence
        if is_watched and at_ms - self.heard_ms > CONNECTED_MS:
            self.connected_ms = at_ms
        self.heard_ms = max(self.heard_ms, at_ms)
        if presence == "active":
            self.active_ms = max(self.active_ms, at_ms)

    def describe_standing(self, *, is_connected: bool, column_count: int, meeting_since_ms: int) -> Standing:
        """What the rules look at; `column_count`: how many cells there are to do."""
        return Standing(
            state=self.state,
            streak=self.streak and self._reach_back(self.streak, meeting_since_ms),
            is_connected=is_connected,
            active_ms=self.active_ms,
            behind_since=self.behind_since,
            care=self.care,
            repeats=tuple(self._reach_back(one, meeting_since_ms) for one in self.repeats),
            running=self.running,
            position=self.position,
            is_done=0 < column_count == self.frontier[0],
            own_step_ms=self.own_step_ms,
            frontier=self.frontier,
            connected_ms=self.connected_ms,
            held=frozenset((alert.kind, alert.since, alert.cell) for alert in self.alerts.values()),
            calm_until_ms=self.calm_until_ms,
        )

    def _reach_back(self, found: Found, meeting_since_ms: int) -> Found:
        """
        `found`, from when its cell was first run in this meeting where that is known to belong to it: the last runs do
        not reach so far back, and the cell has never done anything but fail.
        """
        cell = self.cells.get(found.cell_id)
        if self.state is None or cell is None or cell.error_count < cell.attempt_count:
            return found
        first_ms = cell.first_finished_ms or 0
        if not meeting_since_ms <= first_ms < found.since_ms or not may_reach_back(self.state.recent, found.since_ms):
            return found
        return msgspec.structs.replace(found, since_ms=first_ms)

    def find_doing(self, now_ms: int) -> str:
        """
        What they do, being connected: `kernel_dead`, `running` (a cell, for 10 s or more), `thinking` (there, typing or
        scrolling, without a run for a minute), `away` (the notebook is not in sight); "" where the data does not say.
        """
        if self.state is not None and is_kernel_dead(self.state):
            return "kernel_dead"
        if self.running is not None and now_ms - self.running[1] >= _RUNNING_SHOWN_MS:
            return "running"
        if now_ms - self.active_ms > _AT_WORK_MS:
            return "away" if self.presence == "hidden" else ""
        is_between_runs = self.state is None or now_ms - self.state.last_run_ms > _AT_WORK_MS
        return "thinking" if is_between_runs else ""

    def describe(self) -> dict[str, object]:
        """The line as boards are told it."""
        learner = self.learner
        return {
            "i": self.i,
            "id": learner.user_id,
            "name": learner.name,
            "num": learner.number,
            "seat": learner.seat,
            "team": learner.team,
            "same": learner.same_as,
            "s": "".join(self.squares),
            "pos": self.position,
            "st": self.status,
            "since": self.since,
            "do": self.doing,
            "quiet": self.quiet_until,
            "mail": self.mail,
        }
