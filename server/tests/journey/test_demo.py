"""What a newcomer sees: the demo class alive on a real board, in both languages, at every size.

The pictures go to `.cache/screenshots`; those in the README are copies of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from servers import CHROMIUM_FLAGS, run_demo

SCREENSHOTS = Path(__file__).resolve().parents[3] / ".cache" / "screenshots"
STUDENTS = 200

# How many squares change state while the page is watched, told by the browser itself.
COUNT_CHANGES = """
(ms) => new Promise((done) => {
  let changes = 0;
  const observer = new MutationObserver((notes) => {
    changes += notes.filter((note) => note.target.matches?.("[data-cell]")).length;
  });
  observer.observe(document, {subtree: true, attributes: true, attributeFilter: ["data-state"]});
  setTimeout(() => { observer.disconnect(); done(changes); }, ms);
})
"""


@pytest.fixture(scope="module")
def demo() -> Iterator[dict[str, Any]]:
    """The facts of a running demo."""
    with run_demo(STUDENTS) as facts:
        yield facts


@pytest.fixture(scope="module")
def page(demo: dict[str, Any], chromium_path: str) -> Iterator[Page]:
    """A board, signed in by the teacher's link."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800}, locale="en-US")
        page.goto(demo["teacher_link"])
        yield page
        browser.close()


@pytest.mark.browser
def test_the_demo_class_lives(page: Page) -> None:
    page.wait_for_function(
        "() => document.querySelectorAll('[data-student]').length >= 150"
        " && document.querySelectorAll('[data-alert]').length >= 1",
        timeout=120_000,
    )
    # Three seconds in a row; on a machine that others use too, a stalled second only starts the count again.
    changes: list[int] = []
    while len(changes) < 3 or not all(changes[-3:]):
        assert len(changes) < 15, f"squares changed in each of 15 seconds: {changes}"
        changes.append(page.evaluate(COUNT_CHANGES, 1000))
    assert page.evaluate("() => !location.hash.includes('code')"), "the one-use code stays in the address bar"


@pytest.mark.browser
def test_a_teacher_meets_each_kind_of_trouble_and_sees_who_sits_where(page: Page) -> None:
    kinds = ["help", "stuck", "wrong_answer", "same_error", "long_run", "idle", "not_started", "behind"]
    page.wait_for_function(
        "(kinds) => kinds.every((kind) => document.querySelector(`[data-alert][data-kind=${kind}]`))",
        arg=kinds,
        timeout=120_000,
    )
    assert "T" in page.inner_text("[data-alert] .seat")
    assert page.locator("[data-alert]").count() < STUDENTS / 4, "so many that nobody could look after them"


@pytest.mark.browser
@pytest.mark.parametrize("language", ["ja", "en"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 820, 390])
def test_the_board_fits_and_is_drawn(page: Page, language: str, scheme: str, width: int) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(page.url.split("?")[0] + f"?lang={language}")
    page.wait_for_selector("[data-alert]", timeout=10_000)
    overflow = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0, f"the page is {overflow} px wider than the window"
    assert page.evaluate("() => document.documentElement.lang") == language
    page.screenshot(path=SCREENSHOTS / f"board-{language}-{scheme}-{width}.png")
