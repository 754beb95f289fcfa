"""Signs that what a student's computer reported is not all of it: find_signs(). Pure, over what the ledger holds.

Whoever runs Jupyter can hide or forge their own events, so a sign says "incomplete", never why. Promises: what has a
harmless explanation is no sign (events the outbox reported lost, a restart, a second device, history that came late,
what is still on its way, a few runs of `%nbpulse`); no sign is made of one student's events against another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from statistics import median, quantiles
from typing import Final, Literal
from uuid import UUID

import msgspec

SETTLED_AFTER: Final = timedelta(minutes=2)
"""By then even what a dead kernel's sender held has been sent by another."""
LEAST_RUNS: Final = 5
LEAST_EVENTS: Final = 5
CLOCK_TOLERANCE: Final = timedelta(minutes=2)
STEADY_FOR: Final = timedelta(minutes=10)
STEADY_WITHIN: Final = timedelta(minutes=1)
# After these a kernel counts anew, or what it counted meanwhile was rightly not recorded.
NEW_LIFE: Final = frozenset({"started", "restarted", "died", "paused", "resumed"})

SignKind = Literal["events_missing", "runs_missing", "counts_repeated", "kernel_silent", "clock_wrong"]


class Trace(msgspec.Struct, frozen=True):
    """What the ledger holds of one event, as far as signs need it. `session_id`: its learning session."""

    event_type: str
    occurred_at: datetime
    received_at: datetime
    sequence: int
    session_id: UUID | None
    status: str | None = None
    execution_count: int | None = None
    told_by: str | None = None
    lost_count: int = 0
    clock_ahead_ms: int = 0


class Sign(msgspec.Struct, frozen=True):
    """`count` events or runs are missing, repeated or told by one side only; `off_s`: a clock's, ahead above 0."""

    kind: SignKind
    count: int
    since: datetime
    until: datetime
    off_s: int | None = None


def find_signs(traces: Iterable[Trace], now: datetime) -> list[Sign]:
    """The signs in one student's events of one course, in any order."""
    settled = sorted(
        (one for one in traces if one.received_at <= now - SETTLED_AFTER),
        key=lambda one: (one.occurred_at, one.sequence),
    )
    found = [sign for session in _split_sessions(settled) for sign in _judge_kernel(session)]
    found += _judge_sequence(settled)
    found += _judge_clock(settled)
    return [_sum_up(list(signs)) for _, signs in groupby(sorted(found, key=lambda one: one.kind), lambda one: one.kind)]


def _split_sessions(traces: Sequence[Trace]) -> Iterator[list[Trace]]:
    """
    The sittings that a client began itself, each with its events in order: one kernel on one device.

    Events without a session of the client's share one per day, whatever they come from; nothing follows from those.
    """
    begun = {one.session_id for one in traces if one.event_type == "session_start" and one.session_id}
    sessions: dict[UUID, list[Trace]] = {}
    for one in traces:
        if one.session_id in begun and one.session_id is not None:
            sessions.setdefault(one.session_id, []).append(one)
    yield from sessions.values()


def _judge_sequence(traces: Sequence[Trace]) -> Iterator[Sign]:
    """Numbers that are missing within a sitting; other kernels of the device, and another device, use numbers too."""
    lost_count = sum(one.lost_count for one in traces)
    for session in _split_sessions(traces):
        numbers = [one.sequence for one in session if one.sequence > 0]
        if not numbers:
            continue
        least, most = min(numbers), max(numbers)
        since, until = session[0].occurred_at, session[-1].occurred_at
        early, late = since - timedelta(minutes=1), until + timedelta(minutes=1)
        present = {one.sequence for one in traces if least <= one.sequence <= most and early <= one.occurred_at <= late}
        missing_count = most - least + 1 - len(present)
        told_count = min(lost_count, missing_count)
        lost_count -= told_count
        if missing_count > told_count:
            yield Sign("events_missing", missing_count - told_count, since, until)


def _judge_kernel(session: Sequence[Trace]) -> Iterator[Sign]:
    """Each life of a sitting's kernel for itself: it counts its runs from 1, each number once."""
    begins = [one.occurred_at for one in session if one.event_type == "kernel_status" and one.status in NEW_LIFE]
    runs = [one for one in session if one.event_type == "cell_execution"]
    for _, life in groupby(runs, lambda run: sum(begin < run.occurred_at for begin in begins)):
        told = list(life)
        counts = [run.execution_count for run in told if run.execution_count]
        since, until = told[0].occurred_at, told[-1].occurred_at
        if counts:
            missing_count = max(counts) - min(counts) + 1 - len(set(counts))
            if missing_count >= LEAST_RUNS:
                yield Sign("runs_missing", missing_count, since, until)
            repeated_count = len(counts) - len(set(counts))
            if repeated_count >= LEAST_RUNS:
                yield Sign("counts_repeated", repeated_count, since, until)
        yield from _judge_witnesses(told)


def _judge_witnesses(runs: Sequence[Trace]) -> Iterator[Sign]:
    """The kernel's own extension told of runs and then fell silent, while the server went on seeing them."""
    has_spoken = False
    for told_by, group in groupby((run for run in runs if run.told_by), lambda run: run.told_by):
        same = list(group)
        if told_by == "server" and has_spoken and len(same) >= LEAST_RUNS:
            yield Sign("kernel_silent", len(same), same[0].occurred_at, same[-1].occurred_at)
        has_spoken = has_spoken or told_by == "server+kernel"


def _judge_clock(traces: Sequence[Trace]) -> Iterator[Sign]:
    """
    A clock ahead is seen at acceptance; one behind only as a delay that stays the same for long.

    What waited on the student's disk is late too, but ever less so: it comes all at once.
    """
    ahead = [one for one in traces if one.clock_ahead_ms]
    if len(ahead) >= LEAST_EVENTS:
        off_s = round(median(one.clock_ahead_ms for one in ahead) / 1000)
        yield Sign("clock_wrong", len(ahead), ahead[0].occurred_at, ahead[-1].occurred_at, off_s)
    late = [one for one in traces if one.received_at - one.occurred_at > CLOCK_TOLERANCE]
    if len(late) < LEAST_EVENTS or len(late) < 0.9 * len(traces):
        return
    arrivals = [one.received_at for one in late]
    delays_s = [(one.received_at - one.occurred_at).total_seconds() for one in late]
    tenths = quantiles(delays_s, n=10)
    if max(arrivals) - min(arrivals) >= STEADY_FOR and tenths[-1] - tenths[0] <= STEADY_WITHIN.total_seconds():
        yield Sign("clock_wrong", len(late), late[0].occurred_at, late[-1].occurred_at, -round(median(delays_s)))


def _sum_up(signs: Sequence[Sign]) -> Sign:
    """Signs of one kind as one: how many in all, from the first to the last; of a clock the larger error."""
    return Sign(
        signs[0].kind,
        sum(one.count for one in signs),
        min(one.since for one in signs),
        max(one.until for one in signs),
        max((one.off_s for one in signs if one.off_s is not None), key=abs, default=None),
    )
