"""What a teacher hands out is understood in each form in which it is copied."""

from __future__ import annotations

import pytest

from nbpulse_capture.cli import RefusedError
from nbpulse_capture.invitation import parse_invitation


@pytest.mark.parametrize(
    "text",
    [
        "ABCD-EFGH@10.0.0.5:8888",
        "  ABCD-EFGH@http://10.0.0.5:8888/ ",
        "http://10.0.0.5:8888/#join=ABCD-EFGH",
        "http://10.0.0.5:8888/courses/7?join=ABCD-EFGH",
        "10.0.0.5:8888 ABCD-EFGH",
        "http://10.0.0.5:8888  ABCD-EFGH",
        "nbpulse-capture join http://10.0.0.5:8888 ABCD-EFGH",
        "%nbpulse join http://10.0.0.5:8888 ABCD-EFGH --name 花子",
        "!nbpulse-capture join http://10.0.0.5:8888 ABCD-EFGH",
    ],
)
def test_each_form_gives_the_address_and_the_code(text: str) -> None:
    assert parse_invitation(text) == ("http://10.0.0.5:8888", "ABCD-EFGH")


def test_https_stays_https() -> None:
    assert parse_invitation("AB-CD@https://class.example.ac.jp")[0] == "https://class.example.ac.jp"


def test_a_code_alone_belongs_to_the_address_that_is_known() -> None:
    assert parse_invitation("ABCD-EFGH", "https://class.example") == ("https://class.example", "ABCD-EFGH")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "NB-7070"),
        ("ABCD-EFGH", "NB-7070"),
        ("http://10.0.0.5:8888/", "NB-7070"),
        ("@10.0.0.5", "NB-7070"),
        ("ABCD@", "NB-7070"),
        ("see the blackboard", "NB-7070"),
        ("ABCD@ftp://10.0.0.5", "NB-7002"),
        ("ABCD@host:notaport", "NB-7002"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_guessed(text: str, code: str) -> None:
    with pytest.raises(RefusedError) as refused:
        parse_invitation(text)
    assert refused.value.code == code
