"""Answers kept for two seconds: made once, never older, never a failure, never more than there is room for."""

import asyncio

import pytest
from starlette.responses import Response

from nbpulse.api.answers import LIFE_S, Answers
from nbpulse.errors import Unavailable


class Source:
    """Makes answers that count up, each when it is let."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.made = 0
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.failure: Exception | None = None
        self.size = 1

    async def make(self) -> Response:
        self.made += 1
        number = self.made
        await self.may_go.wait()
        if self.failure:
            raise self.failure
        return Response(f"{number}".ljust(self.size))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_of_many_who_ask_at_once_one_has_it_made_and_all_get_it() -> None:
    source = Source()
    answers = Answers(clock=lambda: source.now_s)
    source.may_go.clear()
    asking = [asyncio.create_task(answers.get_or_make(("a",), source.make)) for _ in range(20)]
    other = asyncio.create_task(answers.get_or_make(("b",), source.make))
    await settle()
    source.may_go.set()
    assert {(await one).body for one in asking} == {b"1"}
    assert (await other).body == b"2"


async def test_an_answer_is_given_for_two_seconds_from_when_its_making_began_and_made_anew_in_the_second() -> None:
    source = Source()
    answers = Answers(clock=lambda: source.now_s)
    found = []
    for now_s in (0.0, 0.99, 1.0, 1.01, 2.9, 6.0):
        source.now_s = now_s
        found.append(int((await answers.get_or_make(("a",), source.make)).body))
        await settle()
    assert found == [1, 1, 1, 2, 2, 4], "at 1.0 and at 2.9 the old one is given while the next is made"


async def test_nobody_joins_a_making_that_began_longer_ago_than_an_answer_lives() -> None:
    source = Source()
    answers = Answers(clock=lambda: source.now_s)
    source.may_go.clear()
    slow = asyncio.create_task(answers.get_or_make(("a",), source.make))
    await settle()
    source.now_s = LIFE_S
    fresh = asyncio.create_task(answers.get_or_make(("a",), source.make))
    await settle()
    source.may_go.set()
    assert ((await slow).body, (await fresh).body) == (b"1", b"2")


async def test_a_making_that_ends_late_does_not_take_the_place_of_a_later_one() -> None:
    source = Source()
    answers = Answers(clock=lambda: source.now_s)
    source.may_go.clear()
    slow_may_go, source.may_go = source.may_go, asyncio.Event()

    async def make_slowly() -> Response:
        await slow_may_go.wait()
        return Response("old")

    slow = asyncio.create_task(answers.get_or_make(("a",), make_slowly))
    await settle()
    source.now_s = LIFE_S
    source.may_go.set()
    assert (await answers.get_or_make(("a",), source.make)).body == b"1"
    await settle()
    slow_may_go.set()
    assert (await slow).body == b"old"
    await settle()
    assert (await answers.get_or_make(("a",), source.make)).body == b"1"


async def test_a_failure_is_told_to_all_who_wait_and_not_kept() -> None:
    source = Source()
    answers = Answers(clock=lambda: source.now_s)
    source.failure = Unavailable("NB-2003")
    found = await asyncio.gather(*(answers.get_or_make(("a",), source.make) for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in found] == [Unavailable] * 3
    source.failure = None
    assert (await answers.get_or_make(("a",), source.make)).body == b"2"
    source.now_s, source.failure = 1.5, Unavailable("NB-2003")
    assert (await answers.get_or_make(("a",), source.make)).body == b"2", "a renewal that failed harms nobody"
    await settle()
    source.now_s = 2.0
    with pytest.raises(Unavailable):
        await answers.get_or_make(("a",), source.make)


async def test_who_asked_first_may_leave_while_others_wait() -> None:
    source = Source()
    answers = Answers(clock=lambda: source.now_s)
    source.may_go.clear()
    first, second = (asyncio.create_task(answers.get_or_make(("a",), source.make)) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    source.may_go.set()
    assert (await second).body == b"1"
    assert first.cancelled()


async def test_what_is_kept_stays_within_its_bounds_and_goes_when_it_is_old() -> None:
    source = Source()
    answers = Answers(bytes_max=8_000, clock=lambda: source.now_s)
    source.size = 900
    for number in range(50):
        await answers.get_or_make((number,), source.make)
        await settle()
        assert answers.kept_bytes <= 8_000
    assert answers.kept_bytes == 7_200
    made = source.made
    assert (await answers.get_or_make((49,), source.make)).body.strip() == b"50"
    assert source.made == made
    source.now_s, source.size = 10.0, 1_001
    await answers.get_or_make(("large",), source.make)
    await settle()
    assert answers.kept_bytes == 0, "more than an eighth of the room is not kept, and the old ones went"
