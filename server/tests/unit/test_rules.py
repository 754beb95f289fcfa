"""The alert rules: what each finds, what it leaves alone, and that none flickers or starves."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classes import START_MS, Class, fail, make
from nbpulse.classroom import DEFAULT_RULES, LIMITS, AlertRules, check_rules
from nbpulse.classroom.entries import Alert, rank_alerts, weigh_finding
from nbpulse.classroom.rules import HEAD_START_MS, KINDS_OFF, STATUS_OF, URGENCY, Finding
from nbpulse.errors import InvalidInput


def check(user: UUID, at_s: float, cell: int, line: str = "assert top(1) == 2") -> Any:
    """An exercise's check that fails, as a kernel words it: without a message."""
    trace = f"Cell In[{int(at_s)}], line 4\n----> 4 {line}"
    return fail(user, at_s, cell, error_name="AssertionError", error_message="", traceback=trace)


def start(user: UUID, at_s: float, cell: int = 0) -> Any:
    return make(user, at_s, "cell_execution_start", cell)


def march(group: Class, until: int, *, each_s: int = 60, but: tuple[int, ...] = ()) -> None:
    """Everybody runs a cell each minute, well, but those."""
    for step in range(until):
        for i, user in enumerate(group.users):
            if i not in but:
                group.happen(make(user, each_s * step + i, cell=step, execution_duration_ms=100))


def find_kind(group: Class, at_s: float, i: int = 0) -> str | None:
    return next((alert.kind for alert in group.look(at_s)["alerts"] if alert.i == i), None)


def test_the_same_mistake_on_three_cells_is_found_until_one_of_them_runs_well() -> None:
    group = Class(1)
    user = group.users[0]
    for at_s, cell in ((0, 1), (40, 2), (80, 1)):
        group.happen(fail(user, at_s, cell))
    [alert] = group.look(90)["alerts"]
    assert (alert.kind, alert.n, alert.label, alert.since, alert.cell) == (
        *("same_error", 3, "NameError df"),
        *(START_MS, "cell-1"),
    )
    group.happen(make(user, 100, cell=2))
    assert group.find_alerts(101) == set()


def test_who_has_left_a_mistake_for_three_other_cells_has_left_it() -> None:
    group = Class(1)
    user = group.users[0]
    for at_s in (0, 40, 80):
        group.happen(fail(user, at_s, 1))
        group.happen(make(user, at_s + 10, cell=5))
    assert find_kind(group, 100) == "same_error"
    for step in (6, 7):
        group.happen(make(user, 100 + step, cell=step))
    assert find_kind(group, 110) is None


def test_a_check_that_fails_again_and_again_is_a_wrong_answer_though_the_function_runs_well_between() -> None:
    group = Class(1)
    user = group.users[0]
    for at_s in (0, 60, 120):
        group.happen(make(user, at_s, cell=1))
        group.happen(check(user, at_s + 5, 2))
    [alert] = group.look(130)["alerts"]
    assert (alert.kind, alert.n, alert.cell) == ("wrong_answer", 3, "cell-2")
    group.happen(check(user, 180, 2, line="assert top(5) == 9"))
    assert group.find_alerts(181) == set(), "another check fails: the first one holds now"


def test_a_run_is_long_beside_the_class_and_never_becomes_shorter() -> None:
    group = Class(8)
    for i, user in enumerate(group.users[1:]):
        group.happen(make(user, i, cell=3, execution_duration_ms=12_000))
    group.happen(start(group.users[0], 10, 3))
    assert find_kind(group, 10 + 119) is None, "ten times what the class needs"
    board = group.look(10 + 121)
    [alert] = board["alerts"]
    assert (alert.kind, alert.cell, alert.typical, alert.since) == ("long_run", "cell-3", 12_000, START_MS + 10_000)
    assert (board["students"][0]["st"], board["students"][0]["do"]) == ("stuck", "running")
    for i, user in enumerate(group.users[1:]):
        group.happen(make(user, 132 + i, cell=3, execution_duration_ms=90_000))
    assert find_kind(group, 145) == "long_run"
    group.happen(make(group.users[0], 150, cell=3, status="interrupted"))
    assert find_kind(group, 151) is None


def test_a_cell_that_runs_long_for_all_is_nobodys_endless_loop() -> None:
    group = Class(8)
    for i, user in enumerate(group.users):
        group.happen(start(user, i, 3))
    assert group.find_alerts(90) == set()


def test_a_kernel_that_was_restarted_runs_nothing_and_one_that_died_is_told() -> None:
    group = Class(1)
    group.happen(start(group.users[0], 0))
    group.happen(make(group.users[0], 20, "kernel_status", status="died"))
    board = group.look(100)
    assert (board["alerts"], board["students"][0]["do"]) == ([], "kernel_dead")
    group.happen(make(group.users[0], 101, "kernel_status", status="restarted"))
    assert group.look(102)["students"][0]["do"] == "thinking"


def test_thinking_away_and_silence_are_told_apart() -> None:
    group = Class(3)
    for user in group.users:
        group.happen(make(user, 0))
    rooms = [str(user) for user in group.users]
    for at_s in range(20, 181, 20):
        group.room.hear(rooms[0], START_MS + at_s * 1000, "active")
        group.room.hear(rooms[1], START_MS + at_s * 1000, "hidden")
        group.room.hear(rooms[2], START_MS + at_s * 1000, "idle")
    assert [row["do"] for row in group.look(181)["students"]] == ["thinking", "away", ""]
    group.room.hear(rooms[0], START_MS + 185_000, "paused")
    assert group.look(186)["students"][0]["do"] == ""


def test_no_progress_counts_from_the_classs_first_step_without_them() -> None:
    group = Class(9)
    march(group, 3)
    for user in group.users[1:]:
        group.happen(make(user, 600, cell=3))
        group.happen(make(user, 660, cell=4))
    for n in range(2):
        group.happen(fail(group.users[0], 610 + n, 3, error_message=f"name 'x{n}' is not defined"))
    keep_trying(group, 620, 1070)
    assert find_kind(group, 1075) is None, "while the class listened nobody was late"
    keep_trying(group, 1070, 1090)
    [alert] = group.look(1095)["alerts"]
    assert (alert.kind, alert.i, alert.since) == ("no_progress", 0, START_MS + 120_000)
    group.happen(make(group.users[0], 1100, cell=3))
    assert find_kind(group, 1101) is None


def keep_trying(group: Class, from_s: int, until_s: int) -> None:
    """The first student types all the time."""
    for at_s in range(from_s, until_s, 20):
        group.room.hear(str(group.users[0]), START_MS + at_s * 1000, "active")


def test_who_is_done_with_the_notebook_is_left_alone() -> None:
    group = Class(9, columns=5)
    for step in range(5):
        group.happen(make(group.users[0], 10 * step, cell=step))
    march(group, 5, each_s=240, but=(0,))
    for at_s in range(60, 1200, 60):
        keep_trying(group, at_s - 60, at_s)
        assert find_kind(group, at_s) is None, at_s


def test_who_has_not_begun_is_found_and_who_comes_late_has_time() -> None:
    group = Class(9)
    march(group, 3, but=(0, 1))
    group.look(1, away={1})
    for at_s in range(60, 420, 30):
        kinds = {kind for i, kind in ((a.i, a.kind) for a in group.look(at_s, away={1})["alerts"]) if i == 0}
        assert kinds == ({"not_started"} if at_s > 306 else set()), at_s
    group.room.hear(str(group.users[1]), START_MS + 1000)
    assert find_kind(group, 430, 1) is None, "has come in just now"
    for at_s in range(460, 730, 30):
        group.look(at_s)
    assert find_kind(group, 735, 1) == "not_started"
    group.happen(make(group.users[1], 740))
    assert find_kind(group, 741, 1) != "not_started"


def test_a_cell_is_hot_from_a_fifth_on_and_until_a_tenth() -> None:
    group = Class(10)
    for i, user in enumerate(group.users):
        group.happen(make(user, i, cell=1) if i > 1 else fail(user, i, 1))
    [hot] = group.look(15)["hot"]
    assert (hot.cell, hot.failed, hot.tried, hot.since) == ("cell-1", 2, 10, START_MS)
    assert group.room.take_changes()["hot"] == [hot]
    group.happen(make(group.users[0], 20, cell=1))
    assert [one.failed for one in group.look(21)["hot"]] == [1], "a tenth still is"
    group.happen(make(group.users[1], 30, cell=1))
    assert group.look(31)["hot"] == []
    group.happen(fail(group.users[1], 40, 1))
    assert group.look(41)["hot"] == [], "a tenth is not enough to begin"


def test_too_few_make_no_cell_hot_and_neither_does_the_class_before() -> None:
    group = Class(7)
    for user in group.users:
        group.happen(fail(user, 0, 1))
    assert group.look(5)["hot"] == []
    more = Class(8)
    for user in more.users:
        more.happen(fail(user, 0, 1))
    more.room.set_meeting(START_MS + 10_000, is_over=False)
    assert more.look(20)["hot"] == []


def test_what_is_off_is_not_raised_and_the_next_that_holds_is() -> None:
    group = Class(1)
    group.room.rules = AlertRules(off=("stuck",))
    for at_s in (0, 10, 20):
        group.happen(fail(group.users[0], at_s))
    assert find_kind(group, 90) == "same_error"
    group.room.rules = AlertRules(off=("stuck", "same_error"))
    assert find_kind(group, 91) is None


def test_one_student_has_one_alert_beside_a_raised_hand() -> None:
    group = Class(9)
    march(group, 9, but=(0,))
    group.happen(make(group.users[0], 0, cell=0))
    for at_s in (10, 40, 80):
        group.happen(fail(group.users[0], at_s, 1))
    group.happen(make(group.users[0], 90, "help_request"))
    assert {kind for i, kind in group.find_alerts(900) if i == 0} == {"help", "stuck"}


WORDS = ("help_request", "help_cancel", "ok", "ok", "fail", "fail", "fail", "check", "start", "nothing")


def play(rng: random.Random, group: Class, at_s: int, users: list[UUID] | None = None) -> None:
    """Something happens to somebody (of `users`)."""
    user, word, cell = rng.choice(users or group.users), rng.choice(WORDS), rng.randrange(8)
    if word == "ok":
        group.happen(make(user, at_s, cell=cell, execution_duration_ms=rng.randrange(20_000)))
    elif word == "fail":
        group.happen(fail(user, at_s, rng.randrange(3)))
    elif word == "check":
        group.happen(check(user, at_s, 3))
    elif word == "start":
        group.happen(start(user, at_s, cell))
    elif word != "nothing":
        group.happen(make(user, at_s, word))


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_while_nothing_happens_alerts_come_and_none_goes_or_changes(seed: int) -> None:
    rng = random.Random(seed)
    group = Class(8, columns=8)
    at_s = 0
    for _ in range(rng.randrange(1, 60)):
        at_s += rng.randrange(1, 40)
        play(rng, group, at_s)
        group.look(at_s)
    before = group.look(at_s)["alerts"]
    for _ in range(30):
        at_s += 45
        after = group.look(at_s)["alerts"]
        students = {(alert.i, STATUS_OF[alert.kind] == "help") for alert in before}
        assert students <= {(alert.i, STATUS_OF[alert.kind] == "help") for alert in after}, "who needed help still does"
        before = after


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_nobody_comes_into_the_list_twice_within_a_minute(seed: int) -> None:
    """But by a raised hand, which its student moves. Runs come as fast as people press the keys."""
    rng = random.Random(seed)
    group = Class(6, columns=8)
    came_s: dict[int, int] = {}
    held: set[int] = set()
    for at_s in range(0, 900, 5):
        if rng.random() < 0.8:
            play(rng, group, at_s)
        now = {alert.i for alert in group.look(at_s)["alerts"] if alert.kind != "help"}
        for i in now - held:
            assert at_s - came_s.get(i, -60) >= 60, (i, at_s)
            came_s[i] = at_s
        held = now


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_who_fails_on_and_on_is_in_the_list_whatever_the_others_do(seed: int, every_s: int) -> None:
    """From the third error and a minute and a half on, but for the minute after another alert of theirs has gone."""
    rng = random.Random(seed)
    group = Class(8, columns=8)
    stubborn, others = group.users[0], group.users[1:]
    began_s, fails = rng.randrange(95, 150, 5), 0
    for at_s in range(0, 900, 5):
        for _ in range(rng.randrange(3)):
            play(rng, group, at_s, others)
        if at_s in (0, 40, 90):
            group.happen(fail(stubborn, at_s, 6))
        elif at_s == began_s:
            group.happen(make(stubborn, at_s, cell=6))  # what they were stuck on they have got past
        elif at_s > began_s and (at_s - began_s) // every_s >= fails:
            group.happen(fail(stubborn, at_s, 7))
            fails += 1
        alerts = group.look(at_s)["alerts"]
        if fails >= 3 and at_s - began_s >= max(90, 3 * (every_s + 5)) + 65:
            assert 0 in {alert.i for alert in alerts}, at_s


def keep_failing(group: Class, *, runs: int, is_looked_at: bool, well: tuple[int, ...] = ()) -> Any:
    """The alert, after so many wrong answers on cell 5 in half a minute each; between them `well` run well."""
    user = group.users[0]
    for step in range(runs):
        for place, cell in enumerate(well):
            group.happen(make(user, 30 * step + place, cell=cell))
        group.happen(check(user, 30 * step + 20, 5))
        if is_looked_at:
            group.look(30 * step + 25)
    [alert] = group.look(30 * runs)["alerts"]
    return alert


@pytest.mark.parametrize("well", [(), (1,), (1, 2)])
def test_a_process_that_comes_later_knows_as_well_when_it_began(well: tuple[int, ...]) -> None:
    watched = keep_failing(Class(1), runs=40, is_looked_at=True, well=well)
    later = keep_failing(Class(1), runs=40, is_looked_at=False, well=well)
    assert (later.kind, later.since) == (watched.kind, watched.since) == ("wrong_answer", START_MS + 20_000)


def test_what_was_left_began_when_it_was_taken_up_again() -> None:
    group = Class(1)
    user = group.users[0]
    group.happen(check(user, 0, 5))
    for step in range(30):
        group.happen(make(user, 10 + step, cell=step % 4))
    for step in range(6):
        group.happen(check(user, 600 + 60 * step, 5))
    [alert] = group.look(1_000)["alerts"]
    assert (alert.kind, alert.since) == ("wrong_answer", START_MS + 600_000)


def test_what_began_in_an_earlier_meeting_counts_from_what_is_known_of_this_one() -> None:
    group = Class(1)
    group.room.set_meeting(START_MS + 300_000, is_over=False)
    alert = keep_failing(group, runs=40, is_looked_at=False)
    assert alert.since == START_MS + 620_000  # the first of the last 20 runs


@given(
    st.sampled_from(sorted(URGENCY)),
    st.integers(600, 7_200),
    st.lists(st.tuples(st.sampled_from(sorted(URGENCY)), st.floats(0, 0.999)), max_size=8),
)
def test_nobody_starves_who_waits_four_times_as_long_comes_first(
    kind: str, waits_s: int, others: list[tuple[str, float]]
) -> None:
    shorter_ms = 250 * waits_s - HEAD_START_MS
    newer = [find_alert(f"{at}", other, START_MS - int(share * shorter_ms)) for at, (other, share) in enumerate(others)]
    patient = find_alert("patient", kind, START_MS - 1_000 * waits_s)
    assert rank_alerts([*newer, patient], START_MS)[0] is patient


@given(st.lists(st.tuples(st.sampled_from(sorted(URGENCY)), st.integers(0, 7_200)), min_size=2, max_size=2))
def test_two_change_places_once_at_most(told: list[tuple[str, int]]) -> None:
    one, other = (find_alert(kind, kind, START_MS + 1_000 * since_s) for kind, since_s in told)
    first = [rank_alerts([one, other], START_MS + at_ms)[0] is one for at_ms in range(7_200_000, 40_000_000, 100_000)]
    assert sum(before != after for before, after in pairwise(first)) <= 1


def test_a_hand_counts_four_times_stuck_twice_and_a_new_hand_as_waiting_for_two_minutes() -> None:
    def order(*waits: tuple[str, float]) -> list[str]:
        alerts = [find_alert(kind, kind, START_MS - round(60_000 * minutes)) for kind, minutes in waits]
        return [alert.kind for alert in rank_alerts(alerts, START_MS)]

    assert order(("idle", 7.9), ("stuck", 3.9), ("help", 0)) == ["help", "idle", "stuck"]
    assert order(("idle", 8.1), ("stuck", 4.1), ("help", 0)) == ["stuck", "idle", "help"]
    assert order(("not_started", 15), ("stuck", 7), ("help", 2)) == ["help", "not_started", "stuck"]


def find_alert(name: str, kind: str, since_ms: int) -> Alert:
    weight, ranked_since = weigh_finding(Finding(kind, since_ms))
    return Alert(name, 0, kind, since_ms, weight=weight, ranked_since=ranked_since)


def test_the_defaults_are_within_their_limits_and_every_number_has_some() -> None:
    assert check_rules(DEFAULT_RULES) == DEFAULT_RULES
    assert LIMITS.keys() == {name for name in AlertRules.__struct_fields__ if name != "off"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"stuck_error_count": 1}, "NB-1250"),
        ({"idle_after_ms": 10**9}, "NB-1250"),
        ({"behind_ratio": float("nan")}, "NB-1250"),
        ({"off": ("help",)}, "NB-1251"),
        ({"behind_clear_ratio": 0.4}, "NB-1252"),
        ({"hot_clear_ratio": 0.3}, "NB-1252"),
    ],
)
def test_rules_that_make_no_sense_are_refused_by_name(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_rules(msgspec.structs.replace(DEFAULT_RULES, **changes))
    assert refused.value.code == code


def test_what_is_off_is_kept_once_and_in_order() -> None:
    rules = check_rules(AlertRules(off=("stuck", "idle", "stuck")))
    assert rules.off == ("idle", "stuck")
    assert set(rules.off) <= KINDS_OFF
