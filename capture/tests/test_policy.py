"""What may be recorded: no policy lets through what it forbids, and the server holds events to the same."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from nbpulse.collection import FIELDS as SERVER_FIELDS
from nbpulse.collection import SWITCHES, strip_event
from nbpulse.collection import Policy as ServerPolicy
from nbpulse.events import EVENT_TYPES, ReceivedEvent
from nbpulse_capture.policy import FIELDS, LEVELS, OWN_ACTS, Policy, apply_policy, read_policy, take_stricter

Event = dict[str, Any]
RANKS = {"nothing": 0, "metadata": 1, "source": 2, "output": 3}

NAMES = [*sorted(FIELDS), "failing_print", "status", "message", "state"]

policies = st.builds(
    Policy,
    version=st.integers(0, 9),
    level=st.sampled_from(LEVELS),
    without=st.frozensets(st.sampled_from(sorted(SWITCHES)), max_size=6),
)
events = st.fixed_dictionaries(
    {
        "event_type": st.sampled_from(sorted(EVENT_TYPES)),
        "cell_id": st.just("a1"),
        "data": st.dictionaries(st.sampled_from(NAMES), st.text(max_size=5)),
    }
)


@given(events, policies)
def test_nothing_that_is_forbidden_gets_through_and_nothing_else_is_changed(event: Event, policy: Policy) -> None:
    kept = apply_policy(event, policy)
    if event["event_type"] in OWN_ACTS:
        assert kept is not None
    elif policy.level == "nothing" or event["event_type"] in policy.without:
        assert kept is None
        return
    assert kept is not None
    assert {name: value for name, value in kept.items() if name != "data"} == {
        name: value for name, value in event.items() if name != "data"
    }
    for name, value in event["data"].items():
        is_too_much = {"source": 2, "output": 3}.get(name, 0) > RANKS[policy.level]
        switch = "traceback" if name == "failing_print" else name
        assert (name not in kept["data"]) == (switch in policy.without or is_too_much)
        assert kept["data"].get(name, value) == value


@given(events, policies)
def test_a_second_time_changes_nothing(event: Event, policy: Policy) -> None:
    once = apply_policy(event, policy)
    assert once is None or apply_policy(once, policy) == once


@given(events, policies, policies)
def test_what_the_stricter_lets_through_either_of_them_lets_through(event: Event, one: Policy, other: Policy) -> None:
    kept = apply_policy(event, take_stricter(one, other))
    for policy in (one, other):
        alone = apply_policy(event, policy)
        if kept is None:
            continue
        assert alone is not None
        assert kept["data"].items() <= alone["data"].items()
    first = apply_policy(event, one)
    assert kept == (apply_policy(first, other) if first is not None else None)


@given(events, policies)
def test_the_server_lets_through_exactly_the_same(event: Event, policy: Policy) -> None:
    now = datetime.now(UTC)
    received = ReceivedEvent(
        event_id=uuid4(),
        event_type=event["event_type"],
        occurred_at=now,
        received_at=now,
        user_id=uuid4(),
        course_id=uuid4(),
        data=event["data"],
    )
    server_policy = ServerPolicy(policy.version, policy.level, tuple(sorted(policy.without)))  # type: ignore[arg-type]
    theirs, dropped = strip_event(received, server_policy)
    ours = apply_policy(event, policy)
    assert (theirs is None) == (ours is None)
    if theirs is not None and ours is not None:
        assert theirs.data == ours["data"]
        assert set(dropped) == event["data"].keys() - ours["data"].keys()


def test_both_sides_know_the_same_fields() -> None:
    assert FIELDS == SERVER_FIELDS


def test_what_is_no_policy_is_none() -> None:
    told = {"version": 3, "level": "source", "without": ["cell_focus"]}
    assert read_policy(told) == Policy(3, "source", frozenset({"cell_focus"}))
    for wrong in (None, [], {}, told | {"level": "everything"}, told | {"version": "3"}, told | {"without": None}):
        assert read_policy(wrong) is None, wrong
