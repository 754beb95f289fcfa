"""The line diff of an offered cell, in real Chromium: it tells the truth and marks as few lines as can be."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, sync_playwright

from servers import CHROMIUM_FLAGS

pytestmark = pytest.mark.browser

ROOMS = Path(__file__).resolve().parents[1] / "labextension" / "static"
DIFF = "async (pairs) => { const { diffLines } = await import('/diff.js'); return pairs.map((p) => diffLines(...p)); }"

Marks = list[dict[str, str]]


@pytest.fixture(scope="module")
def page(chromium_path: str) -> Iterator[Page]:
    def answer(route: Route) -> None:
        route.fulfill(path=ROOMS / route.request.url.rpartition("/")[2])

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_FLAGS)
        page = browser.new_page()
        page.route("http://student.test/*", answer)
        page.goto("http://student.test/nbpulse.css")
        yield page
        browser.close()


def read(marks: Marks, sign: str) -> str:
    return "\n".join(one["line"] for one in marks if one["sign"] in (" ", sign))


def measure_common(old: list[str], now: list[str]) -> int:
    lengths = [0] * (len(now) + 1)
    for line in old:
        before = lengths[:]
        for n, other in enumerate(now):
            lengths[n + 1] = before[n] + 1 if line == other else max(before[n + 1], lengths[n])
    return lengths[-1]


def test_both_versions_can_be_read_off_and_no_line_is_marked_in_vain(page: Page) -> None:
    draw = random.Random(7)
    lines = ["x = 1", "", "  return", "print(x)", "<b>"]

    def make() -> str:
        return "\n".join(draw.choice(lines) for _ in range(draw.randint(0, 12)))

    pairs = [[make(), make()] for _ in range(400)] + [["", ""], ["a", "a"], ["a\n", "a"], ["a\r\nb", "a\nb"]]
    for (old, now), marks in zip(pairs, page.evaluate(DIFF, pairs), strict=True):
        assert (read(marks, "-"), read(marks, "+")) == (old, now)
        kept = sum(one["sign"] == " " for one in marks)
        assert kept == measure_common(old.split("\n"), now.split("\n")), (old, now)


def test_a_very_long_cell_is_compared_too(page: Page) -> None:
    old = "\n".join(f"line {n}" for n in range(3000))
    now = "\n".join(f"line {n}" if n < 10 or n > 2990 else f"other {n}" for n in range(3000))
    (marks,) = page.evaluate(DIFF, [[old, now]])
    assert (read(marks, "-"), read(marks, "+")) == (old, now)
    assert sum(one["sign"] == " " for one in marks) == 19
