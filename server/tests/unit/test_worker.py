"""When the worker stops reading, how it waits, and what it says of a failure."""

import asyncio

import pytest

from nbpulse.errors import Unavailable
from nbpulse.patience import Backoff, Breaker
from nbpulse.stream import Delivery
from nbpulse.worker.lane import _describe, _sort


def test_a_few_bad_entries_among_many_good_ones_keep_the_breaker_closed() -> None:
    breaker = Breaker()
    for _ in range(100):
        breaker.note(10, failed=False)
        breaker.note(1, failed=True)
    assert not breaker.is_open


def test_fifty_bad_entries_in_a_row_open_it_however_many_were_good_before() -> None:
    breaker = Breaker()
    breaker.note(5_000, failed=False)
    for _ in range(49):
        breaker.note(1, failed=True)
    assert not breaker.is_open
    breaker.note(1, failed=True)
    assert breaker.is_open


def test_more_than_a_tenth_of_at_least_a_hundred_opens_it() -> None:
    breaker = Breaker()
    for _ in range(9):
        breaker.note(8, failed=False)
        breaker.note(2, failed=True)
    assert not breaker.is_open, "90 entries are too few to judge by"
    breaker.note(8, failed=False)
    breaker.note(2, failed=True)
    assert breaker.is_open


async def test_waiting_grows_from_a_tenth_of_a_second_to_two_and_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def note(delay_s: float, stop: asyncio.Event) -> bool:
        waits.append(delay_s)
        return False

    monkeypatch.setattr("nbpulse.patience.sleep_until", note)
    backoff, stop = Backoff("events lane"), asyncio.Event()
    for _ in range(7):
        await backoff.wait(Unavailable("NB-2003"), stop)
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    backoff.reset()
    await backoff.wait(Unavailable("NB-2003"), stop)
    assert waits[-1] == 0.1


async def test_waiting_ends_when_the_worker_is_to_stop() -> None:
    stop = asyncio.Event()
    stop.set()
    backoff = Backoff("events lane")
    async with asyncio.timeout(1):
        for _ in range(20):
            await backoff.wait(Unavailable("NB-2003"), stop)


def test_a_failure_is_described_without_its_text() -> None:
    secret = "name 'takahashi' is not defined"
    try:
        raise ValueError(secret)
    except ValueError as error:
        assert _describe(error) == "ValueError"
    try:
        _sort([Delivery(b"s", b"1-0", None)])  # type: ignore[arg-type]
    except TypeError as error:
        assert _describe(error).startswith("TypeError at ")


def test_what_nobody_can_decode_and_what_came_too_often_are_set_apart() -> None:
    event = (
        b'{"event_id":"7f6d5c7e-7a0e-4d3b-8f0e-0d9d0d6f1a11","event_type":"kernel_status",'
        b'"occurred_at":"2026-11-23T01:02:03Z","received_at":"2026-11-23T01:02:03Z",'
        b'"user_id":"7f6d5c7e-7a0e-4d3b-8f0e-0d9d0d6f1a12","course_id":"7f6d5c7e-7a0e-4d3b-8f0e-0d9d0d6f1a13"}'
    )
    deliveries = [
        Delivery(b"s", b"1-0", event),
        Delivery(b"s", b"2-0", b"{"),
        Delivery(b"s", b"3-0", event, deliveries=3),
        Delivery(b"s", b"4-0", event, deliveries=2),
    ]
    fresh, suspects, unreadable = _sort(deliveries)
    assert [delivery.entry_id for delivery, _ in fresh] == [b"1-0", b"4-0"]
    assert [delivery.entry_id for delivery, _ in suspects] == [b"3-0"]
    assert [delivery.entry_id for delivery, _ in unreadable] == [b"2-0"]
