"""Passwords: which are taken, how they are kept, and how many are looked at at once."""

import asyncio
import re

import pytest

from nbpulse.errors import InvalidInput, TooMuch
from nbpulse.passwords import AT_ONCE, LENGTH_MAX, LENGTH_MIN, Hasher, check_rules

GOOD = "correct horse battery staple"


@pytest.fixture
def hasher() -> Hasher:
    return Hasher()


@pytest.mark.parametrize(
    "password",
    [
        GOOD,
        "馬 電池 ホチキス 正しい 夕焼け 港",
        "xK9#mQ2$vL7pR4z",
        "a b c d e f g h i j k l m",
        "z" * 3 + "unrelated words here",
        "sixty four characters are no more than what has to be possible!!",
        "tanaka and some other words",
    ],
)
def test_what_is_long_and_not_obvious_is_taken_without_rules_of_composition(password: str) -> None:
    check_rules(password, "tanaka")


@pytest.mark.parametrize(
    ("password", "code"),
    [
        ("x" * (LENGTH_MIN - 1), "NB-1121"),
        ("".join(chr(ord("a") + number % 26) for number in range(LENGTH_MAX + 1)), "NB-1121"),
        ("ﬁ" * 7 + "x" * 0, "NB-1121"),  # 14 letters once their spelling is one
        ("aaaaaaaaaaaaaaaaaaaa", "NB-1122"),
        ("abababababababababab", "NB-1122"),
        ("123456789012345", "NB-1122"),
        ("qwertyuiopasdfghjkl", "NB-1122"),
        ("0987654321abcdefghijklmnop", "NB-1122"),
        ("passwordpasswordpassword", "NB-1122"),
        ("PasswordTanaka2026", "NB-1122"),
        ("nbpulse nbpulse 1", "NB-1122"),
        ("パスワードパスワードパスワード", "NB-1122"),
    ],
)
def test_what_is_short_or_tried_first_is_refused_and_says_why(password: str, code: str) -> None:
    with pytest.raises(InvalidInput, match=code):
        check_rules(password, "tanaka")


async def test_what_is_kept_is_argon2id_salted_and_fits_that_password_alone(hasher: Hasher) -> None:
    kept, again = await hasher.hash(GOOD), await hasher.hash(GOOD)
    assert re.fullmatch(r"\$argon2id\$v=19\$m=19456,t=2,p=1\$[\w+/]{22}\$[\w+/]{43}", kept)
    assert kept != again
    assert await hasher.verify(kept, GOOD)
    assert not await hasher.verify(kept, GOOD + " ")
    assert not await hasher.verify(None, GOOD)
    assert not await hasher.verify("no hash at all", GOOD)


async def test_different_keyboards_may_spell_it_differently(hasher: Hasher) -> None:
    kept = await hasher.hash("ｶﾞｯｺｳ の はし ﾊﾅ mado 12")
    assert await hasher.verify(kept, "ガッコウ の はし ハナ mado 12")


async def test_a_hash_of_other_parameters_is_outdated(hasher: Hasher) -> None:
    other = await Hasher(memory_kib=8_192, passes=1).hash(GOOD)
    assert await hasher.verify(other, GOOD)
    assert hasher.is_outdated(other)
    assert not hasher.is_outdated(await hasher.hash(GOOD))


async def test_no_such_account_is_computed_like_one_that_is(hasher: Hasher, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    verify = hasher._verify

    def note(kept: str, password: str) -> bool:
        seen.append(kept)
        return verify(kept, password)

    monkeypatch.setattr(hasher, "_verify", note)
    await hasher.verify(await hasher.hash(GOOD), "something else")
    await hasher.verify(None, "something else")
    shapes = {re.sub(r"\$[\w+/]+\$[\w+/]+$", "", kept) for kept in seen}
    assert len(seen) == 2
    assert shapes == {"$argon2id$v=19$m=19456,t=2,p=1"}
    assert len({len(kept) for kept in seen}) == 1


async def test_few_are_looked_at_at_once_and_a_flood_is_turned_away(
    hasher: Hasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, running, most = await hasher.hash(GOOD), 0, 0
    verify = hasher._verify

    def count(hash_: str, password: str) -> bool:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return verify(hash_, password)
        finally:
            running -= 1

    monkeypatch.setattr(hasher, "_verify", count)
    answers = await asyncio.gather(*(hasher.verify(kept, GOOD) for _ in range(80)), return_exceptions=True)
    assert most == AT_ONCE
    assert answers.count(True) == 50
    refused = [one for one in answers if isinstance(one, TooMuch)]
    assert len(refused) == 30
    assert {one.code for one in refused} == {"NB-1130"}
    assert await hasher.verify(kept, GOOD)
