"""What is missing in a student's data is seen; what has a harmless reason is not. Each sign beside its look-alikes."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nbpulse.classroom import Sign, Trace, find_signs

BEGIN = datetime(2026, 11, 26, 1, 0, tzinfo=UTC)
NOW = BEGIN + timedelta(hours=5)


def work(
    run_count: int = 30, *, start: int = 1, at: datetime = BEGIN, told_by: str | None = "server+kernel"
) -> list[Trace]:
    """A sitting of an honest student: its start, then a start and an end for each run, numbered without a gap."""
    session = uuid4()

    def tell(n: int, event_type: str, **fields: Any) -> Trace:
        occurred_at = at + timedelta(seconds=n * 10)
        return Trace(event_type, occurred_at, occurred_at + timedelta(milliseconds=80), start + n, session, **fields)

    events = [tell(0, "session_start")]
    for n in range(run_count):
        events.append(tell(2 * n + 1, "cell_execution_start"))
        end = {"status": "ok", "execution_count": n + 1, "told_by": told_by}
        events.append(tell(2 * n + 2, "cell_execution", **end))
    return events


def is_run(one: Trace) -> bool:
    return one.event_type == "cell_execution"


def change(events: list[Trace], picked: Callable[[Trace], bool], skip: int = 0, **fields: Any) -> list[Trace]:
    """The same events, the picked ones otherwise; `skip`: the kernel's count goes on from elsewhere."""
    return [
        replace(one, **fields, **({"execution_count": (one.execution_count or 0) + skip} if skip else {}))
        if picked(one)
        else one
        for one in events
    ]


def restart(events: list[Trace], after: int, status: str = "restarted") -> list[Trace]:
    """The kernel restarts after its `after`-th run and counts anew."""
    moment = [one for one in events if is_run(one)][after - 1].occurred_at
    told = Trace("kernel_status", moment, moment, 2 * after + 2, events[0].session_id, status=status)
    later = [replace(one, sequence=one.sequence + 1) for one in events if one.occurred_at > moment]
    earlier = [one for one in events if one.occurred_at <= moment]
    return [*earlier, told, *change(later, is_run, skip=-after)]


def kinds(events: list[Trace]) -> dict[str, int]:
    return {sign.kind: sign.count for sign in find_signs(events, NOW)}


# --- planted ----------------------------------------------------------------------------------------------------------


def test_events_that_were_taken_out_are_missing() -> None:
    assert kinds([one for one in work() if not 20 <= one.sequence < 27]) == {"events_missing": 7}


def test_runs_that_never_reached_the_outbox_are_missing_in_the_kernels_count() -> None:
    events = work(10) + change(work(5, start=22, at=BEGIN + timedelta(minutes=9)), is_run, skip=40)
    session = events[0].session_id
    assert kinds([replace(one, session_id=session) for one in events]) == {"runs_missing": 40 - 10}


def test_a_count_that_falls_without_a_restart_repeats_its_numbers() -> None:
    events = work()
    assert kinds(events[:41] + change(events[41:], is_run, skip=-20)) == {"counts_repeated": 10}


def test_a_kernel_that_fell_silent_is_seen_by_the_server_alone() -> None:
    events = change(work(), lambda one: (one.execution_count or 0) > 12, told_by="server")
    assert kinds(events) == {"kernel_silent": 18}


@pytest.mark.parametrize("off", [timedelta(minutes=40), timedelta(minutes=-40)])
def test_a_wrong_clock_is_told_with_how_far_it_is_off(off: timedelta) -> None:
    if off > timedelta(0):
        ahead_ms = round(off.total_seconds() * 1000)
        events = change(work(), lambda one: True, clock_ahead_ms=ahead_ms)
    else:
        events = [replace(one, received_at=one.received_at - off) for one in work(60)]
    [sign] = find_signs(events, NOW)
    assert (sign.kind, sign.off_s) == ("clock_wrong", pytest.approx(off.total_seconds(), abs=1))


# --- harmless ---------------------------------------------------------------------------------------------------------


def make_two_devices() -> list[Trace]:
    return work(start=5_000) + work(start=1, at=BEGIN + timedelta(minutes=3))


def make_two_kernels_of_one_device() -> list[Trace]:
    events = work() + work(at=BEGIN + timedelta(seconds=5))
    ordered = sorted(events, key=lambda one: one.occurred_at)
    return [replace(one, sequence=n) for n, one in enumerate(ordered, 1)]


def make_a_loss_that_was_reported() -> list[Trace]:
    kept = [one for one in work(told_by=None) if not 20 <= one.sequence < 27]
    lost = Trace("kernel_status", BEGIN, BEGIN, 62, None, status="events_lost", lost_count=7)
    return [*change(kept, lambda one: True, execution_count=None), lost]


def make_a_spool_of_three_days() -> list[Trace]:
    arrival = NOW - timedelta(minutes=30)
    events = [one for day in range(3) for one in work(start=1 + 1_000 * day, at=BEGIN - timedelta(days=3 - day))]
    return [replace(one, received_at=arrival + timedelta(milliseconds=20 * n)) for n, one in enumerate(events)]


def make_a_day_without_sessions() -> list[Trace]:
    """Another client: no session of its own, numbers by the thousand, or none at all."""
    events = [one for one in work() if one.event_type != "session_start"]
    return [replace(one, sequence=n * 1_000 * (n % 2)) for n, one in enumerate(events)]


def make_magics() -> list[Trace]:
    """`%nbpulse help` is a run to the kernel and none to us."""
    events = work()
    return events[:41] + change(events[41:], is_run, skip=4)


HARMLESS: dict[str, Callable[[], list[Trace]]] = {
    "an honest student": work,
    "somebody who ran one cell": lambda: work(1),
    "nobody": list,
    "a restart": lambda: restart(work(), 12),
    "a death and Jupyter's own restart": lambda: restart(work(), 12, status="died"),
    "a pause": lambda: restart(work(), 12, status="resumed"),
    "two devices at once": make_two_devices,
    "two kernels of one device": make_two_kernels_of_one_device,
    "a loss that was reported": make_a_loss_that_was_reported,
    "three days of spool": make_a_spool_of_three_days,
    "a client without sessions": make_a_day_without_sessions,
    "a few magics": make_magics,
    "a kernel without our extension": lambda: work(told_by="server"),
    "a kernel that tells alone": lambda: work(told_by=None),
    "a kernel's word that came too late once": lambda: change(
        work(), lambda one: one.execution_count in {7, 8}, told_by="server"
    ),
    "a clock a few seconds ahead": lambda: change(work(), lambda one: True, received_at=BEGIN),
    "a slow network": lambda: [
        replace(one, received_at=one.occurred_at + timedelta(seconds=n % 100)) for n, one in enumerate(work())
    ],
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_has_a_harmless_reason_is_no_sign(name: str) -> None:
    assert find_signs(HARMLESS[name](), NOW) == []


def test_what_is_still_on_its_way_is_not_missed_yet() -> None:
    events = [one for one in work() if one.sequence != 40]
    assert kinds(events) == {"events_missing": 1}
    assert find_signs(change(events, lambda one: one.sequence > 38, received_at=NOW), NOW) == []


@given(seed=st.integers(), cut=st.integers(0, 60))
def test_the_order_of_events_changes_nothing(seed: int, cut: int) -> None:
    events = work()[:cut] + work(5, start=200, at=BEGIN + timedelta(hours=1))
    events = [one for one in events if one.sequence % 11]
    shuffled = random.Random(seed).sample(events, len(events))
    assert find_signs(shuffled, NOW) == find_signs(events, NOW)


def test_signs_of_several_sittings_are_added_up() -> None:
    first = [one for one in work() if one.sequence != 9]
    second = [one for one in work(start=500, at=BEGIN + timedelta(hours=2)) if one.sequence not in {510, 511}]
    [sign] = find_signs(first + second, NOW)
    assert isinstance(sign, Sign)
    assert (sign.kind, sign.count) == ("events_missing", 3)
    assert sign.since == BEGIN
