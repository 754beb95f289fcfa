"""A course's roster as a CSV file, read leniently: `student_number,name,kana,team,seat`, in any order.

Promises: UTF-8 (with or without BOM), UTF-16 with BOM and Shift_JIS (CP932); comma, semicolon or tab; English or
Japanese column names, others are named and left out. A row that cannot be taken is named with its line and reason and
costs no other row.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from nbpulse.errors import InvalidInput

FILE_BYTES_MAX: Final = 1_048_576
ROWS_MAX: Final = 5_000
_LENGTHS: Final = {"student_number": 64, "name": 200, "kana": 200, "team": 40, "seat": 40}
_NAMES: Final = {
    "student_number": ("student_number", "student number", "number", "学籍番号", "学生番号", "生徒番号"),
    "name": ("name", "氏名", "名前"),
    "kana": ("kana", "フリガナ", "ふりがな", "カナ"),
    "team": ("team", "班", "チーム", "グループ"),
    "seat": ("seat", "座席", "席"),
}
_COLUMN_BY_NAME: Final = {name: column for column, names in _NAMES.items() for name in names}
_DELIMITERS: Final = ",;\t"
_KATAKANA: Final = {letter: letter + 0x60 for letter in range(0x3041, 0x3097)}


class RosterRow(msgspec.Struct, frozen=True):
    """One student."""

    line: int
    student_number: str
    name: str
    kana: str | None = None
    team: str | None = None
    seat: str | None = None


class Problem(NamedTuple):
    """A row that was not taken: its line (from 1) and why, as a code of the catalogue with its facts."""

    line: int
    code: str
    facts: dict[str, object]


class Roster(msgspec.Struct, frozen=True):
    """What the file says. `ignored`: its columns that mean nothing here."""

    encoding: str
    delimiter: str
    rows: list[RosterRow]
    problems: list[Problem]
    ignored: list[str]


def read_roster(content: bytes) -> Roster:
    """
    The roster in a file of at most 1 MB.

    Raises InvalidInput: no text in a known encoding (NB-1150), no header with student_number and name (NB-1151), more
    than 5,000 rows (NB-1152).
    """
    text, encoding = _decode(content)
    header, delimiter = _find_header(text)
    columns = [_COLUMN_BY_NAME.get(_fold(name), "") for name in header]
    rows: dict[str, RosterRow] = {}
    problems: list[Problem] = []
    for line, cells in _read_lines(text, delimiter):
        if line == 1 or not any(cell.strip() for cell in cells):
            continue
        if len(rows) + len(problems) >= ROWS_MAX:
            raise InvalidInput("NB-1152", limit=ROWS_MAX)
        found = _read_row(line, columns, cells)
        if isinstance(found, RosterRow) and (first := rows.get(found.student_number)):
            found = Problem(line, "NB-1155", {"first": first.line})
        if isinstance(found, Problem):
            problems.append(found)
        else:
            rows[found.student_number] = found
    ignored = [name.strip() for name, column in zip(header, columns, strict=True) if not column and name.strip()]
    return Roster(encoding, delimiter, list(rows.values()), problems, ignored)


def clean_number(number: str) -> str:
    """A student number in one spelling: full-width digits are digits."""
    return unicodedata.normalize("NFKC", number).strip()


def is_same_name(typed: str, *known: str | None) -> bool:
    """Whether a typed name is one of these: spaces, capitals, width and hiragana or katakana make no difference."""
    return _fold_name(typed) in {_fold_name(name) for name in known if name} - {""}


def _fold_name(name: str) -> str:
    letters = (
        letter for letter in unicodedata.normalize("NFKC", name).casefold() if letter.isalnum() or letter == "ー"
    )
    return "".join(letters).translate(_KATAKANA)


def _fold(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip().casefold()


def _decode(content: bytes) -> tuple[str, str]:
    tried = ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "cp932")
    for encoding in tried:
        try:
            return content.decode(encoding), encoding
        except UnicodeDecodeError:
            continue
    raise InvalidInput("NB-1150")


def _find_header(text: str) -> tuple[list[str], str]:
    """The first line's cells, by the delimiter that finds the most of our columns in it."""
    best: tuple[int, list[str], str] = (0, [], ",")
    for delimiter in _DELIMITERS:
        _, cells = next(_read_lines(text, delimiter), (1, []))
        columns = {_COLUMN_BY_NAME.get(_fold(cell)) for cell in cells} - {None}
        if len(columns) > best[0]:
            best = len(columns), cells, delimiter
    names = [_COLUMN_BY_NAME.get(_fold(cell)) for cell in best[1]]
    if any(names.count(column) != 1 for column in ("student_number", "name")):
        raise InvalidInput("NB-1151")
    return best[1], best[2]


def _read_lines(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # a field of more than 128 KB: a quote that is never closed
            raise InvalidInput("NB-1151") from error


def _read_row(line: int, columns: list[str], cells: list[str]) -> RosterRow | Problem:
    if len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
        return Problem(line, "NB-1158", {"expected": len(columns), "found": len(cells)})
    values: dict[str, str] = {}
    for column, cell in zip(columns, cells, strict=False):
        value = unicodedata.normalize("NFC", cell).strip()
        if not column or not value:
            continue
        if column == "student_number":
            value = clean_number(value)
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
            return Problem(line, "NB-1157", {"column": column})
        if len(value) > _LENGTHS[column]:
            return Problem(line, "NB-1156", {"column": column, "limit": _LENGTHS[column]})
        values[column] = value
    for column, code in (("student_number", "NB-1153"), ("name", "NB-1154")):
        if column not in values:
            return Problem(line, code, {})
    return RosterRow(line, **values)
