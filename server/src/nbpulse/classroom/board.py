"""The class as its staff see it: counters, grid, attention list; as snapshots and as what changed since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Final

from nbpulse.classroom.care import Action, fold_actions
from nbpulse.classroom.charts import Charts
from nbpulse.classroom.entries import Alert, Changes, Column, Learner, name_alert, rank_alerts, weigh_finding
from nbpulse.classroom.errorgroups import ErrorGroups, fingerprint_cell
from nbpulse.classroom.figures import PassingTimes
from nbpulse.classroom.learners import CellState, LearnerState
from nbpulse.classroom.pace import HotCell, Times, find_frontier, find_hot, measure_times
from nbpulse.classroom.quantiles import find_quantile
from nbpulse.classroom.rows import Row
from nbpulse.classroom.rules import (
    CONNECTED_MS,
    COOLDOWN_MS,
    DEFAULT_RULES,
    STATUS_OF,
    STATUSES,
    URGENCY,
    AlertRules,
    ClassPace,
    Finding,
    find_alerts,
    find_behind,
)
from nbpulse.classroom.shared import CURRENT_MS, ErrorBoard, SharedError, group_errors, list_muted

_CELL_CHARS: Final = {"running": "2", "ok": "1"}
_MEASURE_EVERY_MS: Final = 1_000


class Classroom:
    """
    One notebook of a course as its staff see it: fed with states, asked for snapshots and changes.

    The same states in any order, with the same `now_ms`, show the same class (but for the memory of hysteresis and
    cooldown, and of who came while somebody watched). Not safe for use from several threads.
    """

    def __init__(
        self,
        course_id: str,
        notebook_id: str | None,
        *,
        rules: AlertRules = DEFAULT_RULES,
        columns: Iterable[Column] = (),
        learners: Iterable[Learner] = (),
    ) -> None:
        self.course_id = course_id
        self.notebook_id = notebook_id
        self.rules = rules
        self._columns: list[Column] = []
        self._places: dict[str, int] = {}
        self._rows: dict[str, Row] = {}
        self._by_index: list[Row] = []
        self._counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
        self._connected = 0
        self._median: float | None = None
        self._errors = ErrorBoard()
        self._has_new_groups = False
        self._times = Times()
        self._measured_ms = 0
        self._watched_ms = 0
        self._now_ms = 0
        self._meeting_since_ms = 0
        self._is_over = False
        self._knows_runs = False
        self._charts = Charts()
        self._changes = Changes()
        self.set_roster(learners)
        self.set_columns(columns)
        self._changes = Changes()

    def set_roster(self, learners: Iterable[Learner]) -> None:
        """Take in new learners and new names; a learner keeps the index `i` for this view's life."""
        for learner in learners:
            row = self._rows.get(learner.user_id)
            if row is None:
                row = Row(len(self._by_index), learner, len(self._columns))
                self._rows[learner.user_id] = row
                self._by_index.append(row)
            elif row.learner == learner:
                continue
            row.learner = learner
            self._changes.students.add(row.i)

    def set_columns(self, columns: Iterable[Column]) -> None:
        """The grid's columns in their order; squares are laid anew."""
        ordered = sorted(columns, key=lambda c: (c.index is None, c.index or 0, c.id))
        if ordered == self._columns:
            return
        self._columns = ordered
        self._places = {column.id: place for place, column in enumerate(ordered)}
        self._changes.columns = True
        for row in self._by_index:
            row.squares = ["0"] * len(ordered)
            for cell in row.cells.values():
                self._lay_square(row, cell)
            self._place_learner(row)
            self._changes.students.add(row.i)
        self._charts.set_columns(ordered)

    @property
    def learner_ids(self) -> Set[str]:
        """Everybody the view has ever been told of."""
        return self._rows.keys()

    def has_learner(self, user_id: str) -> bool:
        """Whether the roster holds this user."""
        return user_id in self._rows

    def get_revision(self, user_id: str) -> int:
        """The newest revision applied for this user; 0 for none."""
        row = self._rows.get(user_id)
        return row.state.revision if row and row.state else 0

    def apply(self, state: LearnerState) -> None:
        """Take a learner's state in; an older one than known changes nothing but cells it is newer on."""
        row = self._rows.get(state.user_id)
        if row is None:
            return
        row.take_state(state, self._errors.groups)
        for cell in state.cells:
            known = row.cells.get(cell.cell_id)
            if cell.notebook_id != self.notebook_id or (known and known.revision >= cell.revision):
                continue
            row.cells[cell.cell_id] = cell
            self._lay_square(row, cell)
            if self._knows_runs:
                before = (known.attempt_count, known.error_count) if known else (0, 0)
                row.way.note_runs(cell.last_at_ms, cell.attempt_count - before[0], cell.error_count - before[1])
        self._place_learner(row)
        row.find_running()

    def set_runs(self, runs: Iterable[tuple[str, int, int, int]], *, counts_on: bool = True) -> None:
        """
        Of the last hour before the first state that is new: (user id, half minute as its start in ms / 30,000, runs,
        errors among them). `counts_on`: from here on runs are counted from the states.
        """
        for user_id, step, count, errors in runs:
            if (row := self._rows.get(user_id)) is not None:
                row.way.runs[step] = count, errors
        self._knows_runs = counts_on
        self._charts.wear()

    def apply_actions(self, actions: Iterable[Action]) -> None:
        """Take in what staff did; what is known already changes nothing."""
        changed: dict[str, Row] = {}
        for action in actions:
            row = self._rows.get(action.user_id)
            if row is not None and action.id not in row.actions:
                row.actions[action.id] = action
                changed[action.user_id] = row
        for row in changed.values():
            row.care = fold_actions(row.actions.values())

    def list_claims(self) -> dict[str, int]:
        """Of staff who are on an alert that is shown: user id -> index of that student, the newest claim's."""
        claims = [
            (claim.at, row.i, claim.by)
            for row in self._by_index
            if row.alerts
            for alert in row.alerts.values()
            if (claim := alert.claim) is not None
        ]
        return {by: i for _, i, by in sorted(claims)}

    def set_groups(self, groups: ErrorGroups) -> None:
        """What staff have settled about error groups; it holds from the next `evaluate` on."""
        if groups == self._errors.groups:
            return
        self._errors.groups = groups
        self._measured_ms, self._has_new_groups = 0, True
        for row in self._by_index:
            row.take_groups(groups)

    def set_mail(self, waiting: Mapping[str, int]) -> None:
        """How many messages of each student (by user id) nobody has answered."""
        for row in self._by_index:
            mail = waiting.get(row.learner.user_id, 0)
            if mail != row.mail:
                row.mail = mail
                self._changes.students.add(row.i)

    def set_meeting(self, started_ms: int, *, is_over: bool) -> None:
        """The newest class meeting: what began before it is no alert but an open hand; after its end nothing is."""
        self._meeting_since_ms, self._is_over = started_ms, is_over

    def hear(self, user_id: str, at_ms: int, presence: str | None = None) -> None:
        """The learner's Jupyter was heard of; `presence` "active" counts as activity, as does a run."""
        row = self._rows.get(user_id)
        if row is not None:
            is_watched = bool(self._watched_ms) and at_ms - self._watched_ms > CONNECTED_MS
            row.hear(at_ms, presence, is_watched=is_watched)

    def evaluate(self, now_ms: int) -> None:
        """Apply the rules as of `now_ms`; what differs from before is in `take_changes`."""
        self._now_ms = now_ms
        self._watched_ms = self._watched_ms or now_ms
        connected = [row for row in self._by_index if self._is_connected(row, now_ms)]
        started = sorted(row.position for row in connected if row.position > 0)
        median = find_quantile(started, 0.5)
        last_runs = sorted(row.state.last_run_ms if row.state else 0 for row in connected)
        median_run_ms = last_runs[len(last_runs) // 2] if last_runs else 0
        self._measure(connected, now_ms)
        passing = PassingTimes([row.way for row in connected], len(self._columns))
        pace = ClassPace(now_ms, median, median_run_ms, passing, self._times.step_ms, self._times.run_ms)
        counts = dict.fromkeys(STATUSES, 0)
        for row in self._by_index:
            counts[self._evaluate_row(row, pace)] += 1
        self._has_new_groups = False
        if (counts, len(connected), median) != (self._counts, self._connected, self._median):
            self._counts, self._connected, self._median = counts, len(connected), median
            self._changes.counters = True
        self._errors.show("errors", self._group_errors(self._by_index, now_ms))
        groups, cells = self._errors.groups, self._name_cells()
        self._errors.show("muted", list_muted((row.errors for row in self._by_index), now_ms, groups, cells))
        self._charts.draw([row.way for row in self._by_index], counts, self._meeting_since_ms, now_ms)

    def _evaluate_row(self, row: Row, pace: ClassPace) -> str:
        """Apply the rules to one learner; their status."""
        now_ms = pace.now_ms
        is_connected = self._is_connected(row, now_ms)
        row.behind_since = find_behind(row.behind_since, row.position, pace, self.rules)
        standing = row.describe_standing(
            is_connected=is_connected, column_count=len(self._columns), meeting_since_ms=self._meeting_since_ms
        )
        findings = (one for one in find_alerts(standing, pace, self.rules) if self._is_of_meeting(one))
        alerts = {one.kind: self._make_alert(row, one) for one in findings}
        has_cleared = row.alerts.keys() - {"help"} and not alerts.keys() - {"help"}
        # What was muted has not cleared: unmuted, it is there again at once.
        if has_cleared and is_connected and not row.care.find_quiet_until(now_ms) and not self._has_new_groups:
            row.calm_until_ms = now_ms + COOLDOWN_MS
        self._note_alerts(row, alerts)
        quiet = "ok" if is_connected else "paused" if self._is_heard(row, now_ms) else "offline"
        kind = next((kind for kind in URGENCY if kind in alerts), None)
        status = STATUS_OF[kind] if kind else quiet
        # Nothing here may depend on when this process looked: every process shows the same class.
        since = alerts[kind].since if kind else row.active_ms if status == "offline" else 0
        if (status, since) != (row.status, row.since):
            row.status, row.since = status, since
            self._changes.statuses.add(row.i)
        doing = row.find_doing(now_ms) if is_connected else ""
        if doing != row.doing:
            row.doing = doing
            self._changes.doings.add(row.i)
        quiet_until = row.care.find_quiet_until(now_ms)
        if quiet_until != row.quiet_until:
            row.quiet_until = quiet_until
            self._changes.students.add(row.i)
        self._mark_stuck(row, next((one for one in alerts.values() if STATUS_OF[one.kind] == "stuck"), None))
        return status

    def describe_team(self, team: str | None, since_ms: int, now_ms: int) -> dict[str, object]:
        """
        The charts and the shared errors of one team (None: of all), of what was run since `since_ms`; 0 for ever. They
        are as the class's own in a snapshot, drawn for who asks.
        """
        rows = [row for row in self._by_index if team is None or row.learner.team == team]
        drawn = self._charts.draw_part([row.way for row in rows], since_ms, self._meeting_since_ms, now_ms)
        return {**drawn, "errors": self._group_errors(rows, now_ms)}

    def _group_errors(self, rows: Iterable[Row], now_ms: int) -> list[SharedError]:
        return [] if self._is_over else group_errors((row.errors for row in rows), now_ms, self._errors.groups)

    def _name_cells(self) -> dict[str, str]:
        """The columns by what they are muted by."""
        if not self._errors.groups.muted:
            return {}
        return {fingerprint_cell(self.notebook_id or "", column.id): column.id for column in self._columns}

    def snapshot(self) -> dict[str, object]:
        """The whole board as of the last `evaluate`."""
        return {
            "counts": self._counts,
            "median": self._median,
            "connected": self._connected,
            "cells": self._describe_columns(),
            "students": [row.describe() for row in self._by_index],
            "alerts": self.list_alerts(),
            **self._errors.snapshot(),
            **self._charts.snapshot(),
        }

    def list_alerts(self) -> list[Alert]:
        """As of the last `evaluate`, the most urgent first."""
        return rank_alerts((alert for row in self._by_index for alert in row.alerts.values()), self._now_ms)

    @property
    def hot(self) -> list[HotCell]:
        """As of the last `evaluate`, in the grid's order."""
        return self._errors.hot

    def take_changes(self) -> dict[str, object]:
        """What differs since the last call, as the body of a frame; empty when nothing does."""
        changes, self._changes = self._changes, Changes()
        body: dict[str, object] = {}
        if changes.counters:
            body.update(counts=self._counts, median=self._median, connected=self._connected)
        if changes.columns:
            body["cells"] = self._describe_columns()
        if changes.students:
            body["students"] = [self._by_index[i].describe() for i in sorted(changes.students)]
        rows = self._by_index
        told = changes.students
        parts: dict[str, list[object]] = {
            "c": [[i, place, int(rows[i].squares[place])] for i, place in sorted(changes.squares) if i not in told],
            "p": [[i, rows[i].position] for i in sorted(changes.positions - told)],
            "st": [[i, rows[i].status, rows[i].since] for i in sorted(changes.statuses - told)],
            "do": [[i, rows[i].doing] for i in sorted(changes.doings - told)],
            "a+": [alert for alert in changes.alerts.values() if alert is not None and alert.id not in changes.known],
            "a~": [alert for alert in changes.alerts.values() if alert is not None and alert.id in changes.known],
            "a-": [alert_id for alert_id, alert in changes.alerts.items() if alert is None],
        }
        body.update((name, part) for name, part in parts.items() if part)
        body.update(self._errors.take_changes())
        body.update(self._charts.take_changes())
        return body

    def _is_heard(self, row: Row, now_ms: int) -> bool:
        return row.heard_ms > 0 and now_ms - row.heard_ms <= CONNECTED_MS

    def _is_connected(self, row: Row, now_ms: int) -> bool:
        """Of a student who has paused recording nothing is known: they neither need help nor count for the class."""
        return self._is_heard(row, now_ms) and row.presence != "paused"

    def _measure(self, connected: list[Row], now_ms: int) -> None:
        """What cells take and which are hot, once a second of `now_ms`."""
        if now_ms - self._measured_ms < _MEASURE_EVERY_MS:
            return
        self._measured_ms = now_ms
        running: dict[str, list[int]] = {}
        for row in connected:
            if row.running is not None:
                running.setdefault(row.running[0], []).append(now_ms - row.running[1])
        rows = self._by_index
        recent = (row.state.recent for row in rows if row.state)
        self._times = measure_times((row.way for row in rows), recent, running)
        since_ms = max(self._meeting_since_ms, now_ms - CURRENT_MS)
        seen = () if self._is_over else ((row.cells, row.muted_cells) for row in rows)
        hot = find_hot(
            *(seen, self._places, since_ms, self.rules, self._errors.hot),
            notebook_id=self.notebook_id or "",
            groups=self._errors.groups,
        )
        self._errors.show("hot", hot)

    def _is_of_meeting(self, finding: Finding) -> bool:
        """Whether the class's meeting is one in which this matters; a hand that is up at its beginning does."""
        return not self._is_over and (finding.kind == "help" or finding.since_ms >= self._meeting_since_ms)

    def _lay_square(self, row: Row, cell: CellState) -> None:
        place = self._places.get(cell.cell_id)
        if place is None:
            return
        square = _CELL_CHARS.get(cell.last_status, "3")
        if row.squares[place] != square:
            row.squares[place] = square
            self._changes.squares.add((row.i, place))

    def _place_learner(self, row: Row) -> None:
        row.way.lay(row.cells.values(), self._places)
        row.take_way()
        row.frontier = find_frontier(row.cells.values(), self._places)
        self._charts.wear()
        position = row.way.position
        if position != row.position:
            row.position = position
            self._changes.positions.add(row.i)

    def _mark_stuck(self, row: Row, alert: Alert | None) -> None:
        """The square of the cell somebody is stuck on shows it, as long as it stands in error."""
        stuck = self._places.get(alert.cell or "") if alert else None
        if stuck is None and "4" not in row.squares:
            return
        for place, square in enumerate(row.squares):
            wanted = "4" if place == stuck and square == "3" else "3" if place != stuck and square == "4" else square
            if wanted != square:
                row.squares[place] = wanted
                self._changes.squares.add((row.i, place))

    def _make_alert(self, row: Row, finding: Finding) -> Alert:
        place = self._places.get(finding.cell_id) if finding.cell_id else None
        alert_id = name_alert(self.course_id, row.learner.user_id, finding)
        weight, ranked_since = weigh_finding(finding)
        return Alert(
            id=alert_id,
            i=row.i,
            kind=finding.kind,
            since=finding.since_ms,
            cell=finding.cell_id,
            idx=self._columns[place].index if place is not None else None,
            label=finding.label,
            n=finding.count,
            text=finding.text,
            typical=finding.typical_ms,
            weight=weight,
            ranked_since=ranked_since,
            claim=row.care.claims.get(alert_id),
        )

    def _note_alerts(self, row: Row, alerts: dict[str, Alert]) -> None:
        for kind in row.alerts.keys() | alerts.keys():
            before, after = row.alerts.get(kind), alerts.get(kind)
            if before == after:
                continue
            if before is not None and (after is None or after.id != before.id):
                self._changes.note_alert(before.id, None, was_known=True)
            if after is not None:
                self._changes.note_alert(after.id, after, was_known=before is not None and before.id == after.id)
        row.alerts = alerts

    def _describe_columns(self) -> list[dict[str, object]]:
        return [
            {
                "id": column.id,
                "idx": place if column.index is None else column.index,
                "title": column.title,
                **({"exercise": column.exercise} if column.exercise else {}),
            }
            for place, column in enumerate(self._columns)
        ]
