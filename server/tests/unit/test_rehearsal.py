"""What a rehearsal says of the promises, given what was measured."""

from __future__ import annotations

import pytest

from nbpulse.rehearsal import Verdict, _judge, _Probe
from nbpulse.simulator import Tally


def judge(*, sent: int, accepted: int, stored: int) -> Verdict:
    """The verdict on "stored, once"."""
    probe = _Probe("http://127.0.0.1:1", "", {})
    probe.tally.sent = 2
    verdicts = _judge(Tally(sent=sent - 2, ack_ms=[1.0]), probe, accepted, stored, 0.1)
    return verdicts[1]


@pytest.mark.parametrize(
    ("sent", "accepted", "stored", "has_passed"),
    [
        (100, 100, 100, True),
        (100, 98, 100, True),  # two were on their way when the class ended: stored, and nobody there to hear of it
        (100, 98, 98, True),  # or they were not taken
        (100, 98, 97, False),
        (100, 98, 101, False),
        (100, 0, 0, False),
    ],
)
def test_nothing_accepted_is_lost_and_nothing_is_stored_twice(
    sent: int, accepted: int, stored: int, has_passed: bool
) -> None:
    assert judge(sent=sent, accepted=accepted, stored=stored).has_passed is has_passed
