"""What staff do about an alert: claims, quiet and undoing, folded in any order; and what the board shows of it."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classes import START_MS, Class, fail
from nbpulse import classroom
from nbpulse.classroom import Action, LearnerState, fold_actions
from nbpulse.classroom.attempts import find_streak
from nbpulse.classroom.care import QUIET_MS, UNDO_MS, decide, list_effective
from nbpulse.classroom.learners import HelpRequest
from nbpulse.classroom.rules import AlertRules, ClassPace, Standing, find_alerts
from nbpulse.errors import Conflict

ALERTS = ("alert-1", "alert-2")
STAFF = ("tanaka", "suzuki", "sato")
MINUTE = 60_000


def act(action: str, at_ms: int = 0, staff: str = "tanaka", alert: str = ALERTS[0], **changes: Any) -> Action:
    until = at_ms + QUIET_MS if action in ("helped", "snooze") else 0
    fields: dict[str, Any] = {
        "id": f"{action}-{at_ms}-{staff}-{alert}",
        "user_id": "student",
        "alert_id": alert,
        "action": action,
        "staff_id": staff,
        "staff_name": staff.title(),
        "at_ms": at_ms,
        "revision": at_ms,
        "until_ms": until,
    }
    return Action(**fields | changes)


def live_through(seed: int) -> list[Action]:
    """A lesson's actions as the database would have let them in, one after the other."""
    chance, known, now = random.Random(seed), list[Action](), 1_000
    for _ in range(chance.randrange(40)):
        now += chance.choice([1, 500, 4_000, UNDO_MS + 1, QUIET_MS])
        name = chance.choice(["claim", "claim", "release", "helped", "snooze", "undo"])
        hand = chance.choice(["", "hand-1", "hand-2"])
        wanted = act(name, now, chance.choice(STAFF), chance.choice(ALERTS), hand_id=hand)
        try:
            decided = decide(wanted, known)
        except Conflict as refused:
            assert refused.code in ("NB-1331", "NB-1332")
            continue
        if decided is not None:
            known.append(decided)
    return known


@given(st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_any_order_and_any_repeat_ends_in_the_same_standing(seed: int, order: random.Random) -> None:
    actions = live_through(seed)
    shuffled = [*actions, *order.choices(actions, k=len(actions))] if actions else []
    order.shuffle(shuffled)
    assert fold_actions(shuffled) == fold_actions(actions)


@given(st.integers(0, 2**32))
def test_a_claim_is_held_by_one_until_released_or_dealt_with(seed: int) -> None:
    actions = live_through(seed)
    for length in range(len(actions)):
        before, action = fold_actions(actions[:length]), actions[length]
        after = fold_actions(actions[: length + 1])
        for alert_id, claim in before.claims.items():
            if alert_id != action.alert_id or action.action == "claim":
                assert after.claims[alert_id] == claim


@given(st.integers(0, 2**32))
def test_what_was_undone_never_was(seed: int) -> None:
    actions = live_through(seed)
    undone = {one.undoes for one in actions if one.action == "undo"}
    kept = [one for one in actions if one.action != "undo" and one.id not in undone]
    assert fold_actions(actions) == fold_actions(kept)
    assert list_effective(actions) == kept


def test_of_two_who_claim_the_first_holds_it_and_the_second_is_told_who() -> None:
    first = decide(act("claim", 1_000), [])
    assert first is not None
    with pytest.raises(Conflict) as refused:
        decide(act("claim", 1_001, "suzuki"), [first])
    assert refused.value.code == "NB-1331"
    assert refused.value.members == {"claim": classroom.Claim("tanaka", "Tanaka", 1_000)}
    assert "Tanaka" not in str(refused.value), "a name reaches no log"
    assert decide(act("claim", 2_000), [first]) is None, "claiming what one holds changes nothing"
    released = decide(act("release", 3_000, "sato"), [first])
    assert released is not None
    assert decide(act("claim", 4_000, "suzuki"), [first, released]) is not None


def test_one_s_own_helping_can_be_undone_for_ten_seconds() -> None:
    claimed, helped = act("claim", 500), act("helped", 1_000, hand_id="hand-1")
    known = [claimed, helped]
    undo = decide(act("undo", 1_000 + UNDO_MS), known)
    assert undo is not None
    assert undo.undoes == helped.id
    care = fold_actions([*known, undo])
    assert (care.helped, care.quiets, care.answered) == ({}, (), frozenset())
    assert care.claims[ALERTS[0]].by == "tanaka", "who was on it is on it again"
    for too_late in (act("undo", 1_001 + UNDO_MS), act("undo", 2_000, "suzuki"), act("undo", 2_000, alert=ALERTS[1])):
        with pytest.raises(Conflict, match="NB-1332"):
            decide(too_late, known)
    with pytest.raises(Conflict, match="NB-1332"):
        decide(act("undo", 2_000), [*known, undo])


@given(
    st.integers(0, 20 * MINUTE),
    st.sampled_from(["helped", "snooze"]),
    st.booleans(),
)
def test_no_alert_while_it_is_quiet_and_the_same_alert_after(passed_ms: int, name: str, is_hand_up: bool) -> None:
    acted_ms = START_MS
    streak_runs = tuple(
        classroom.Run(START_MS - 120_000 + n, n, f"{n:032x}", "n", "cell-1", "error", "E", "f") for n in range(3)
    )
    hand = HelpRequest(opened_ms=START_MS - 5_000, request_id="hand-1") if is_hand_up else HelpRequest()
    state = LearnerState("student", "course", recent=streak_runs, help=hand)
    care = fold_actions([act(name, acted_ms, hand_id="hand-1" if is_hand_up else "")])

    def find(now_ms: int, of_care: classroom.Care, of_state: LearnerState = state) -> set[str]:
        standing = Standing(of_state, find_streak(streak_runs), True, 0, 0, of_care)
        pace = ClassPace(now_ms, None, 0, [])
        return {one.kind for one in find_alerts(standing, pace, AlertRules())}

    now_ms = acted_ms + passed_ms
    is_quiet = passed_ms < QUIET_MS
    assert find(now_ms, classroom.Care()) == ({"stuck", "help"} if is_hand_up else {"stuck"})
    expected = set() if is_quiet else {"stuck"}
    if is_hand_up and name == "snooze" and not is_quiet:
        expected |= {"help"}  # a hand whose student was helped stays down
    assert find(now_ms, care) == expected
    raised_again = msgspec.structs.replace(state, help=HelpRequest(opened_ms=now_ms, request_id="hand-2"))
    assert "help" in find(now_ms, care, raised_again), "a hand raised since is always shown"


def find_alert(snapshot: dict[str, Any], kind: str) -> Any:
    return next((alert for alert in snapshot["alerts"] if alert.kind == kind), None)


def test_the_board_shows_who_is_on_it_and_nothing_while_it_is_quiet() -> None:
    room = Class(2)
    room.room.rules = AlertRules(stuck_after_ms=60_000)
    user = room.users[0]
    for second in (0, 30, 61):
        room.happen(fail(user, second))
    alert = find_alert(room.look(70), "stuck")
    assert alert is not None
    assert alert.claim is None
    room.room.take_changes()
    claimed = act("claim", START_MS + 71_000, user_id=str(user), alert=alert.id)
    room.room.apply_actions([claimed, claimed])
    room.look(72)
    (changed,) = room.room.take_changes()["a~"]  # type: ignore[misc]
    assert changed.claim == classroom.Claim("tanaka", "Tanaka", START_MS + 71_000)

    helped_ms = START_MS + 80_000
    room.room.apply_actions([act("helped", helped_ms, user_id=str(user), alert=alert.id)])
    shown = room.look(81)
    assert (shown["alerts"], shown["students"][0]["st"]) == ([], "ok")
    assert shown["students"][0]["quiet"] == helped_ms + QUIET_MS
    assert room.room.take_changes()["a-"] == [alert.id]
    again = room.look(81 + QUIET_MS / 1000)
    assert find_alert(again, "stuck").id == alert.id
    assert find_alert(again, "stuck").claim is None
    assert again["students"][0]["quiet"] == 0
