"""Every page of a course, as its list in main.js has it, on a real demo: each width, scheme and language.

A page that is added there is opened here too. The pictures go to `.cache/screenshots` as `page-<name>-…`.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from operator import itemgetter
from typing import Any

import httpx2
import pytest
from playwright.async_api import Browser, Page, expect

from browsing import VIEWS, choose_looks, find_barriers, find_item, list_course_pages, open_page, photograph
from servers import run_demo

pytestmark = pytest.mark.browser

STUDENTS = 40
PAGES = ["", *list_course_pages()]
# What a page that could not be shown bears.
WRONG = ":is([data-page=failed], [data-page=refused], [data-page=no-page], [data-page=sign-in], .problem[data-code])"
TAB_STOPS = """
() => {
  const all = document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]');
  const seen = [...all].filter((one) => one.checkVisibility({visibilityProperty: true}) && one.tabIndex >= 0
    && !one.disabled && one.type !== "radio" && !one.closest("[inert], dialog:not([open])"));
  seen.forEach((one, i) => { one.dataset.stop = String(i); });
  return seen.length;
}
"""


@pytest.fixture(scope="module")
def demo() -> Iterator[dict[str, Any]]:
    """The facts of a running demo."""
    with run_demo(STUDENTS) as facts:
        yield facts


@pytest.fixture(scope="module")
def teacher(demo: dict[str, Any]) -> dict[str, Any]:
    """The teacher's session as a browser keeps it: the link is good once."""
    base, code = demo["teacher_link"].split("/courses/")[0], demo["teacher_link"].rpartition("code=")[2]
    with httpx2.Client(base_url=base, headers={"Origin": base}) as client:
        answer = client.post("/api/v1/sign-in", json={"code": code})
        assert answer.status_code == 200, answer.text
        cookies = [
            {"name": name, "value": value, "url": base, "httpOnly": True, "sameSite": "Strict"}
            for name, value in client.cookies.items()
        ]
    return {"base": base, "cookies": cookies}


def read_board(demo: dict[str, Any]) -> dict[str, Any]:
    base, course = demo["teacher_link"].split("#")[0].split("/courses/")
    url = f"{base}/api/v1/courses/{course}/live"
    answer = httpx2.get(url, headers={"Authorization": f"Bearer {demo['teacher_token']}"}, timeout=30)
    assert answer.status_code == 200, answer.text
    board: dict[str, Any] = answer.json()
    return board


@pytest.fixture(scope="module")
def board(demo: dict[str, Any]) -> dict[str, Any]:
    """
    The class once there was something of everything to open. Seen once: whoever is stuck now may be helped, or the
    class over, by the time the last page is opened, and what a page is opened of stays.
    """
    until_s = time.monotonic() + 150
    while time.monotonic() < until_s:
        seen = read_board(demo)
        if seen["alerts"] and seen["errors"] and seen["cells"]:
            return seen
        time.sleep(0.25)
    raise AssertionError("the demo's class got into no trouble")


@asynccontextmanager
async def open_course_page(browser: Browser, teacher: dict[str, Any], path: str, **options: Any) -> AsyncIterator[Page]:
    async with open_page(browser, **options) as page:
        await page.context.add_cookies(teacher["cookies"])
        await show(page, teacher["base"] + path)
        yield page


async def show(page: Page, address: str) -> None:
    """Go there and wait until it is there; then nothing may be wrong."""
    await page.goto(address)
    shown = ":is(.board main, [data-page]:not([data-page=connecting]) main)"
    await page.wait_for_selector(shown, timeout=60_000)
    await page.wait_for_load_state("networkidle")
    await expect(page.locator(WRONG)).to_have_count(0)
    await expect(page.locator("main")).not_to_be_empty()


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_looks_right_everywhere(
    board: dict[str, Any], teacher: dict[str, Any], browser: Browser, name: str
) -> None:
    path = f"/courses/{board['course']['id']}" + (f"/{name}{find_item(name, board)}" if name else "")
    wrong: list[str] = []
    async with open_page(browser) as page:
        await page.context.add_cookies(teacher["cookies"])
        language = ""
        for look in sorted(choose_looks(PAGES.index(name)), key=itemgetter("locale")):
            width = look["viewport"]["width"]
            await page.emulate_media(color_scheme=look["color_scheme"])
            await page.set_viewport_size(look["viewport"])
            if language != look["locale"][:2]:
                language = look["locale"][:2]
                await show(page, f"{teacher['base']}{path}?lang={language}")
                assert await page.evaluate("document.documentElement.lang") == language
            await page.wait_for_function("(width) => innerWidth === width", arg=width)
            wrong += [f"{language} {look['color_scheme']} {width}: {one}" for one in await find_barriers(page)]
            await photograph(page, f"page-{name or 'live'}", look)
    assert wrong == []


@pytest.mark.parametrize("name", list_course_pages())
async def test_everything_on_a_page_is_reached_with_the_keyboard(
    board: dict[str, Any], teacher: dict[str, Any], browser: Browser, name: str
) -> None:
    path = f"/courses/{board['course']['id']}/{name}{find_item(name, board)}"
    async with open_course_page(browser, teacher, path, locale="en-US") as page:
        stops = await page.evaluate(TAB_STOPS)
        reached: set[str] = set()
        for _ in range(stops + 20):
            await page.keyboard.press("Tab")
            stop = await page.evaluate("document.activeElement?.dataset.stop ?? null")
            if stop is not None:
                reached.add(stop)
            if len(reached) == stops:
                break
        missing = sorted({str(one) for one in range(stops)} - reached, key=int)
        told = "(all, missing) => missing.map((one) => all[Number(one)].outerHTML.slice(0, 200))"
        assert await page.locator("[data-stop]").evaluate_all(told, missing) == []


async def test_the_keys_list_opens_on_every_page_and_names_every_key(
    board: dict[str, Any], teacher: dict[str, Any], browser: Browser
) -> None:
    sources = {source.name: source.read_text("utf-8") for source in VIEWS.glob("*.js")}
    handled = {key for text in sources.values() for key in re.findall(r'event\.key [!=]== "(.)"', text)}
    table = re.search(r"const action = \{(.*?)\}\[event\.key\]", sources["board.js"], re.DOTALL)
    assert table
    handled |= set(re.findall(r'(?:^|[\s,{])"?([^\s"])"?: ', table[1]))
    for name in ["", *list_course_pages()]:
        if name in ("projector", "join"):
            continue  # the class looks at it; a key stands on its button
        path = f"/courses/{board['course']['id']}" + (f"/{name}{find_item(name, board)}" if name else "")
        async with open_course_page(browser, teacher, path, locale="en-US") as page:
            await page.locator("h1").first.click()
            await page.keyboard.press("?")
            await expect(page.locator("dialog.help[open] kbd").first).to_be_visible(timeout=20_000)
            listed = set(await page.locator("dialog.help[open] kbd").all_text_contents())
            assert {"?", "a", "/"} <= listed, name
            named = {"Space" if key == " " else key for key in handled}
            assert named <= listed, sorted(named - listed)
