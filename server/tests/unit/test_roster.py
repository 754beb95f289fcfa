"""Roster files as schools really have them."""

from __future__ import annotations

import pytest

from nbpulse.errors import InvalidInput
from nbpulse.roster import RosterRow, clean_number, is_same_name, read_roster

PLAIN = "student_number,name,kana,team,seat\n1001,山田 太郎,ヤマダ タロウ,A,1-1\n1002,佐藤 花子,,B,\n"
ROWS = [
    RosterRow(2, "1001", "山田 太郎", "ヤマダ タロウ", "A", "1-1"),
    RosterRow(3, "1002", "佐藤 花子", None, "B", None),
]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("cp932"),
        PLAIN.encode("utf-16"),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", "\t").encode("cp932"),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace("\n", "\r").encode(),
        PLAIN.replace("student_number,name,kana,team,seat", "学籍番号,氏名,フリガナ,班,座席").encode("cp932"),
        PLAIN.replace("student_number", " Student_Number ").replace("1001", '"１００１"').encode(),
    ],
)
def test_one_roster_in_every_form_it_comes_in(content: bytes) -> None:
    roster = read_roster(content)
    assert (roster.rows, roster.problems, roster.ignored) == (ROWS, [], [])


def test_columns_in_any_order_and_those_that_mean_nothing_are_named() -> None:
    roster = read_roster("組,氏名,備考,学籍番号\n1,山田,見学,7\n".encode())
    assert roster.rows == [RosterRow(2, "7", "山田")]
    assert roster.ignored == ["組", "備考"]


def test_bad_rows_are_named_with_line_and_reason_and_cost_no_other() -> None:
    text = (
        'student_number,name,kana,team,seat\n,nobody,,,\n2,,,,\n3,"two\nlines",,,\n4,ok,,,\n\n4,again,,,\n'
        f'5,long,,{"t" * 41},\n6,"a, b",,,\n8,last,,,\n'
    )
    roster = read_roster(text.encode())
    assert [(row.line, row.student_number) for row in roster.rows] == [(6, "4"), (10, "6"), (11, "8")]
    assert [(one.line, one.code) for one in roster.problems] == [
        (2, "NB-1153"),
        (3, "NB-1154"),
        (4, "NB-1157"),
        (8, "NB-1155"),
        (9, "NB-1156"),
    ]
    assert roster.problems[3].facts == {"first": 6}


def test_a_cell_too_many_is_a_comma_nobody_quoted() -> None:
    roster = read_roster(b"student_number,name\n7,Doe, Jane\n8,Roe\n")
    assert [(one.line, one.code) for one in roster.problems] == [(2, "NB-1158")]
    assert [row.student_number for row in roster.rows] == ["8"]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "NB-1151"),
        (b"name,seat\nx,1\n", "NB-1151"),
        (b"student_number,name,name\n1,a,b\n", "NB-1151"),
        (b"1001,Yamada\n", "NB-1151"),
        (b'student_number,name\n1,"' + b"x" * 200_000, "NB-1151"),
        (b"student_number,name\n\xff\xfe\x00\x81", "NB-1150"),
        (b"\xff\xfe\x00\xd8\x00", "NB-1150"),
        (b"student_number,name\n" + b"".join(b"%d,x\n" % number for number in range(5_001)), "NB-1152"),
    ],
)
def test_a_file_that_is_no_roster_is_refused_with_what_to_do(content: bytes, code: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_roster(content)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("typed", "is_same"),
    [
        ("山田太郎", True),
        ("山田　太郎", True),
        ("やまだ たろう", True),
        ("ﾔﾏﾀﾞ ﾀﾛｳ", True),
        ("山田 次郎", False),
        ("山田", False),
        ("", False),
    ],
)
def test_a_typed_name_is_compared_as_people_read_it(typed: str, is_same: bool) -> None:
    assert is_same_name(typed, "山田 太郎", "ヤマダ タロウ") is is_same
    assert not is_same_name(typed, None)
    assert not is_same_name("・", "・")


def test_full_width_digits_are_digits() -> None:
    assert clean_number(" １２ａ ") == "12a"
