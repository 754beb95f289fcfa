"""How much is let pass: by a clock that the test turns."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpulse.allowances import Allowance, group_address


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_minutes_worth_passes_at_once_and_then_as_fast_as_it_comes() -> None:
    clock = Clock()
    allowance = Allowance(60, clock)
    assert [allowance.take("a") for _ in range(60)] == [0.0] * 60
    assert allowance.take("a") == pytest.approx(1.0)
    assert allowance.take("a", 5) == pytest.approx(5.0)
    assert allowance.take("b") == 0.0  # another's is their own
    clock.now += 1
    assert allowance.take("a") == 0.0
    assert allowance.take("a") > 0
    clock.now += 3_600
    assert [allowance.take("a") for _ in range(61)].count(0.0) == 60


@given(
    st.integers(1, 500),
    st.lists(st.tuples(st.integers(1, 700), st.floats(0, 30)), max_size=60),
)
def test_no_minute_lets_pass_more_than_two_minutes_worth_and_who_waits_as_told_passes(
    per_minute: int, asked: list[tuple[int, float]]
) -> None:
    clock = Clock()
    allowance = Allowance(per_minute, clock)
    passed: list[tuple[float, int]] = []
    for cost, pause_s in asked:
        clock.now += pause_s
        wait_s = allowance.take("a", cost)
        if wait_s:
            clock.now += wait_s
            assert allowance.take("a", cost) == 0.0
        passed.append((clock.now, min(cost, per_minute)))
    for start, end in itertools.combinations_with_replacement(range(len(passed)), 2):
        spent = sum(cost for _, cost in passed[start : end + 1])
        lasted_s = passed[end][0] - passed[start][0]
        assert spent <= per_minute * (1 + lasted_s / 60) * 1.001 + 1


def test_looking_uses_nothing() -> None:
    clock = Clock()
    allowance = Allowance(2, clock)
    assert [allowance.measure_wait("a") for _ in range(9)] == [0.0] * 9
    allowance.take("a", 2)
    assert allowance.measure_wait("a") == pytest.approx(30, rel=0.01)
    clock.now += 31
    assert allowance.measure_wait("a") == 0.0


def test_who_has_not_come_for_a_minute_is_forgotten() -> None:
    clock = Clock()
    allowance = Allowance(60, clock)
    for number in range(100_000):
        allowance.take(number)
        clock.now += 0.1
    assert len(allowance) < 2_000  # ten new ones a second, one second of allowance each


@pytest.mark.parametrize(
    ("host", "counted_for"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("not:an:address", "not:an:address"),
        ("", ""),
    ],
)
def test_an_address_counts_for_itself_and_ipv6_for_its_network(host: str, counted_for: str) -> None:
    assert group_address(host) == counted_for
