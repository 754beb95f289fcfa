"""What a board is told of: learners, columns, alerts, and what happened to them since it was last told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID, uuid5

import msgspec

from nbpulse.classroom.care import Claim
from nbpulse.classroom.rules import HEAD_START_MS, URGENCY, Finding

_ALERT_NAMESPACE: Final = UUID("0d2f7a58-52c5-4a7a-9f43-2c6d1c9b0e11")


class Learner(msgspec.Struct, frozen=True):
    """Somebody on the roster, as staff see them."""

    user_id: str
    name: str
    number: str
    seat: str | None = None
    team: str | None = None
    same_as: str | None = None
    """The user who may be the same person: joined again with the same number, without the resume code."""


class Column(msgspec.Struct, frozen=True):
    """One column of the grid: a cell of the course's notebook."""

    id: str
    index: int | None
    title: str | None = None
    """Of the section it stands in."""
    exercise: str | None = None
    """The exercise it belongs to."""


class Alert(msgspec.Struct, frozen=True):
    """
    Somebody needs attention. The same id in every API process. How urgent it is at a time: `weight` x (time -
    `ranked_since`), in ms; the more, the sooner (docs/decisions/0036).
    """

    id: str
    i: int
    kind: str
    since: int
    cell: str | None = None
    idx: int | None = None
    label: str | None = None
    n: int | None = None
    text: str | None = None
    typical: int | None = None
    """What the class takes for the same, in ms, where that is known."""
    weight: int = 1
    ranked_since: int = 0
    claim: Claim | None = None


def name_alert(course_id: str, user_id: str, finding: Finding) -> str:
    """The alert's id: the same in every process, for as long as the same thing is wrong."""
    return str(uuid5(_ALERT_NAMESPACE, f"{course_id}:{user_id}:{finding.kind}:{finding.cell_id}:{finding.since_ms}"))


def rank_alerts(alerts: Iterable[Alert], now_ms: int) -> list[Alert]:
    """
    The most urgent first: who has waited longest, each kind's waiting by its weight (an accumulating priority queue,
    Kleinrock 1964). So a new entry of any kind passes only who has waited less than four times as long: nobody starves.
    """
    return sorted(alerts, key=lambda one: (one.weight * (one.ranked_since - now_ms), one.since, one.id))


def weigh_finding(finding: Finding) -> tuple[int, int]:
    """`weight` and `ranked_since` of its alert."""
    return URGENCY[finding.kind], finding.since_ms - HEAD_START_MS * (finding.kind == "help")


class Changes:
    """What happened to a Classroom since it was last asked."""

    def __init__(self) -> None:
        self.counters = False
        self.columns = False
        self.students: set[int] = set()
        self.squares: set[tuple[int, int]] = set()
        self.positions: set[int] = set()
        self.statuses: set[int] = set()
        self.doings: set[int] = set()
        self.alerts: dict[str, Alert | None] = {}
        self.known: set[str] = set()

    def note_alert(self, alert_id: str, alert: Alert | None, *, was_known: bool) -> None:
        """Keep the last word on an alert, and whether boards had heard of it before."""
        if alert_id not in self.alerts and was_known:
            self.known.add(alert_id)
        if alert is None and alert_id not in self.known:
            self.alerts.pop(alert_id, None)
            return
        self.alerts[alert_id] = alert
