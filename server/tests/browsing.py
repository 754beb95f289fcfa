"""Pages of the board in a real browser: signed in, watched for failures, checked for barriers, photographed."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page

from stage import Stage

SCREENSHOTS = Path(__file__).resolve().parents[2] / ".cache" / "screenshots"
"""Pictures for people; those in the documents are copies of them."""
_IS_FULL = os.environ.get("NBPULSE_TEST_SCALE") == "full"
_WIDTHS = (1280, 820, 390)
_WAYS = (("light", "en-US"), ("dark", "ja-JP"), ("light", "ja-JP"), ("dark", "en-US"))


def choose_looks(turn: int) -> list[dict[str, Any]]:
    """
    Ways to look at a page: each width, scheme and language. Which go together turns with `turn`, so that four pages in
    a row have all twelve; in `make prove` every page has.
    """
    chosen = (
        product(_WIDTHS, _WAYS)
        if _IS_FULL
        else [(width, _WAYS[(turn + place) % len(_WAYS)]) for place, width in enumerate(_WIDTHS)]
    )
    return [
        {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, "locale": locale}
        for width, (scheme, locale) in chosen
    ]


LOOKS = choose_looks(0)
"""How a page with its own furniture is looked at; `journey/test_board_pages.py` looks at every page of a demo too."""

VIEWS = Path(str(files("nbpulse") / "web" / "js" / "views"))
PRESSED = ".sheet button, dialog button, .acts button, .note button"


@asynccontextmanager
async def open_page(browser: Browser, **options: Any) -> AsyncIterator[Page]:
    """A browser of its own, in which no script fails, no message is missing and no policy is violated."""
    context = await browser.new_context(**({"viewport": {"width": 1280, "height": 800}, "locale": "en-US"} | options))
    page = await context.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on(
        "console",
        lambda said: (
            said.type == "error"
            and any(word in said.text for word in ("no message", "Content Security"))
            and failures.append(said.text)
        ),
    )
    try:
        yield page
        assert failures == []
    finally:
        await context.close()


@asynccontextmanager
async def open_as_teacher(stage: Stage, browser: Browser, path: str = "", **options: Any) -> AsyncIterator[Page]:
    """A page of the stage's course, by its address after the course ("", "/people"), as its instructor."""
    code = await stage.people.create_link(stage.teacher_id)
    async with open_page(browser, **options) as page:
        await page.goto(f"{stage.url}/courses/{stage.course.id}{path}#code={code}")
        yield page


async def find_barriers(page: Page) -> list[str]:
    """What axe finds serious or critical, what is too small for a finger, and a page wider than its window."""
    # Half a megabyte of script: once into each document.
    axe = Axe("") if await page.evaluate("'axe' in window") else Axe()
    found = await axe.run(page)
    worst = [one for one in found.response["violations"] if one["impact"] in ("serious", "critical")]
    barriers = [f"{one['id']}: {node['html'][:200]}" for one in worst for node in one["nodes"]]
    least = 24 if (page.viewport_size or {"width": 0})["width"] >= 900 else 44
    for button in await page.locator(f"{PRESSED}:visible").all():
        box = await button.bounding_box()
        if box and min(box["width"], box["height"]) < least:
            barriers.append(f"less than {least} px: {await button.text_content()}")
    if not await page.evaluate("document.documentElement.scrollWidth <= innerWidth"):
        barriers.append("wider than the window")
    return barriers


async def photograph(page: Page, name: str, look: dict[str, Any] | None = None) -> None:
    """A picture of the whole page, named after what it shows and how it was looked at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    if look:
        name = f"{name}-{look['locale'][:2]}-{look['color_scheme']}-{look['viewport']['width']}"
    await page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def list_course_pages() -> list[str]:
    """The pages of a course as the board itself lists them, so that none is forgotten: by their word in the address."""
    table = re.search(
        r"COURSE_PAGES = \{\n(.*?)\n\};", (VIEWS.parent / "main.js").read_text(encoding="utf-8"), re.DOTALL
    )
    assert table
    return re.findall(r"^  (\w+): async \(\) =>", table[1], re.MULTILINE)


def find_item(name: str, board: dict[str, Any]) -> str:
    """What a page is opened of ("" for the whole course), from a snapshot of the live page."""
    items = {
        "students": lambda: board["students"][0]["id"],
        "cells": lambda: f"{board['notebook']['id']}/{board['cells'][0]['id']}",
        "errors": lambda: board["errors"][0]["fp"],
        "replay": lambda: board["meeting"]["id"],
    }
    return f"/{items[name]()}" if name in items else ""
