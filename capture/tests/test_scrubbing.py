from __future__ import annotations

import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nbpulse_capture.scrubbing import MASK, find_secret_values, mask_secrets

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nabc\n-----END RSA PRIVATE KEY-----"
SECRETS = [
    ("could not connect: postgresql://taro:hunter2@db.example.ac.jp/lab", "hunter2"),
    ("password=hunter2 was refused", "hunter2"),
    ("{'user': 'taro', 'password': 'hun ter2'}", "hun ter2"),
    ('{"apiKey": "abc-def-123"}', "abc-def-123"),
    ("DB_PASSWORD: hunter2;", "hunter2"),
    ("PASSWORD := hunter2", "hunter2"),
    ("401 for Authorization: Bearer abc.def-123", "abc.def-123"),
    ("Incorrect API key provided: sk-proj-A1b2C3d4E5f6G7h8I9j0", "sk-proj-A1b2C3d4E5f6G7h8I9j0"),
    ("bad credentials ghp_16C7e42F292c6912E7710c838347Ae178B4a", "ghp_16C7e42F292c6912E7710c838347Ae178B4a"),
    ("InvalidAccessKeyId AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ("AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY is not valid", "AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4", "eyJzdWIiOiIxMjM0In0"),
    ("no user hanako.sato+lab@example.ac.jp here", "hanako.sato+lab@example.ac.jp"),
    (f"cannot read {KEY}", "MIIEpAIBAAKCAQEA"),
    ("digest 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b"),
    ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEX4MP13K3Y5 is wrong", "wJalrXUtnFEMI"),
    ("https://api.example.com/v1?token=abc123&x=1", "abc123"),
    ("xoxb-12345678-abcdefgh refused", "xoxb-12345678-abcdefgh"),
]
HARMLESS = [
    "name 'df' is not defined",
    "division by zero",
    "unsupported operand type(s) for +: 'int' and 'str'",
    "'DataFrame' object has no attribute 'pssword'",
    "invalid syntax (line 3)",
    "[Errno 2] No such file or directory: '授業/data/week01_measurements_of_temperature_2026.csv'",
    "Cell In[12], line 3, in <module>",
    "pandas/core/indexes/base.py, line 3812, in get_loc",
    "expected 3 tokens, got 5",
    "index 10 is out of bounds for axis 0 with size 10",
    "unexpected token '}'",
    "could not broadcast input array from shape (3,4) into shape (2,2)",
    "6f1c1c9e-58a4-4f0b-9d57-0f6f7a1d2c3b is no notebook",
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_what_looks_secret_is_masked(text: str, secret: str) -> None:
    masked = mask_secrets(text)
    assert secret not in masked
    assert MASK in masked


@pytest.mark.parametrize("text", HARMLESS)
def test_what_students_errors_say_every_day_stays_readable(text: str) -> None:
    assert mask_secrets(text) == text


@given(st.text(max_size=60), st.text(max_size=60), st.sampled_from(SECRETS))
def test_a_secret_is_masked_wherever_it_stands(before: str, after: str, example: tuple[str, str]) -> None:
    text, secret = example
    assume(secret not in before and secret not in after)
    assert secret not in mask_secrets(f"{before}\n{text}\n{after}")


@given(st.text(st.sampled_from("abAB01 =:'\"@./-_\n" + MASK), max_size=200))
def test_masking_twice_changes_nothing_more(text: str) -> None:
    once = mask_secrets(text)
    assert mask_secrets(once) == once


@given(st.text(st.characters(categories=["L", "N"]), min_size=6, max_size=40), st.text(max_size=40))
def test_the_value_of_a_secret_variable_never_passes(value: str, around: str) -> None:
    values = find_secret_values({"OPENAI_API_KEY": value, "HOME": "/home/taro", "DEBUG_TOKEN": "1"})
    assert values == [value]
    masked = mask_secrets(f"{around}{value}{around}", values)
    assert value not in masked or value in MASK


def test_a_long_text_is_masked_in_no_time() -> None:
    for unit in ("password=", "a", "aA1", "-----BEGIN PRIVATE KEY-----", "x@", "eyJa.", "a.b@c.", "http://a:", "=" * 9):
        began_s = time.perf_counter()
        mask_secrets(unit * (10_000 // len(unit)))
        assert time.perf_counter() - began_s < 1.0, unit
