"""What of the API needs no server: statuses, languages, bodies, origins."""

import asyncio
import gzip
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpulse.allowances import Limits
from nbpulse.api.access import Gate, check_staff
from nbpulse.api.bodies import decode_body, read_body
from nbpulse.api.limits import RequestLimits
from nbpulse.api.problems import choose_language, find_status, make_problem
from nbpulse.errors import AccessDenied, InvalidInput, NotFound, Unavailable
from nbpulse.records.people import Person
from nbpulse.records.tokens import clean_code, make_code


@pytest.mark.parametrize(
    ("header", "language"),
    [
        (None, "en"),
        ("", "en"),
        ("ja", "ja"),
        ("ja-JP,ja;q=0.9,en;q=0.8", "ja"),
        ("en,ja;q=0.9", "en"),
        ("de, ja;q=0.2", "ja"),
        ("ja;q=nonsense", "en"),
        ("*", "en"),
    ],
)
def test_the_reader_gets_the_language_they_like_better(header: str | None, language: str) -> None:
    assert choose_language(header) == language


def test_not_now_always_says_when_and_not_for_all_alike() -> None:
    answers = [make_problem(Unavailable("NB-2001"), None) for _ in range(50)]
    waits = {answer.headers["retry-after"] for answer in answers}
    assert waits <= {"1", "2", "3", "4", "5"}
    assert len(waits) > 1
    assert find_status(Unavailable("NB-2003")) == 503


def make_receive(*chunks: bytes) -> Any:
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    iterator = iter(messages)

    async def receive() -> Any:
        return next(iterator)

    return receive


@given(body=st.binary(max_size=3000), pieces=st.integers(1, 7), is_gzip=st.booleans())
async def test_a_body_comes_through_whole_or_is_too_large(body: bytes, pieces: int, is_gzip: bool) -> None:
    sent = gzip.compress(body) if is_gzip else body
    step = max(1, len(sent) // pieces)
    chunks = [sent[start : start + step] for start in range(0, len(sent), step)]
    encoding = "gzip" if is_gzip else ""
    reading = read_body(
        make_receive(*chunks), content_type="application/json; charset=utf-8", content_encoding=encoding, limit=2000
    )
    if max(len(body), len(sent)) <= 2000:
        assert await reading == body
    else:
        with pytest.raises(InvalidInput, match="NB-1004"):
            await reading


class Wanted(msgspec.Struct):
    """Something to decode."""

    code: str


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"", "NB-1001"), (b"{", "NB-1001"), (b'{"code": 1}', "NB-1007"), (b'{"code": "\xff"}', "NB-1001")],
)
def test_a_small_body_is_what_was_asked_for_or_refused(body: bytes, code: str) -> None:
    with pytest.raises(InvalidInput, match=code):
        decode_body(body, Wanted)


@pytest.mark.parametrize("kind", ["staff", "session", "student", "link", "resume"])
@pytest.mark.parametrize("role", ["instructor", "assistant", "student", None])
def test_only_staff_by_a_token_for_staff_see_a_class(kind: str, role: str | None) -> None:
    course = uuid4()
    person = Person(uuid4(), kind, uuid4(), None, frozenset(), {course: role} if role else {})
    if kind in ("staff", "session") and role in ("instructor", "assistant"):
        check_staff(person, course)
        check_staff(person, str(course).upper())
    else:
        with pytest.raises(AccessDenied if role else NotFound):
            check_staff(person, course)
    with pytest.raises(NotFound):
        check_staff(person, uuid4())
    with pytest.raises(NotFound):
        check_staff(person, "no id")


def test_a_code_is_read_out_loud_without_doubt_and_typed_in_any_way() -> None:
    codes = {make_code(6) for _ in range(500)}
    assert len(codes) > 490
    assert not set("".join(codes)) & set("0O1ILU")
    for code in codes:
        assert clean_code(f" {code[:3].lower()}-{code[3:]} ") == code


class SlowPeople:
    """Knows one person, and answers when it is let."""

    def __init__(self, person: Person) -> None:
        self.person, self.may_answer = person, asyncio.Event()

    async def find_person(self, token: str) -> Person:
        read = self.person  # as a statement's snapshot: what is changed from here on it does not see
        await self.may_answer.wait()
        return read


@pytest.mark.parametrize("of_course", [True, False])
async def test_who_was_looked_up_before_a_change_is_not_remembered_after_it(of_course: bool) -> None:
    course = uuid4()
    before = Person(uuid4(), "student", uuid4(), course, frozenset({"events:write"}), {course: "student"})
    people: Any = SlowPeople(before)
    gate = Gate(people, RequestLimits(Limits()), None)
    asked = asyncio.create_task(gate.find_person("nbp_token", "10.0.0.1"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    people.person = after = msgspec.structs.replace(before, roles={})
    if of_course:
        gate.forget_students(course, before.user_id)
    else:
        gate.forget_person(before.user_id)
    people.may_answer.set()
    assert await asked == before, "it was asked before"
    assert await gate.find_person("nbp_token", "10.0.0.1") == after
