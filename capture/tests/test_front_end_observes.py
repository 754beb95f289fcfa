"""What a front end sees of a student's work, and that none of its own faults ever reaches the notebook."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, Request, Route

from nbpulse_capture.cli import describe_status
from student_browser import STATE, Desk, both_front_ends, open_desk, write_notebook

from .recorded import Recorded

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

JOINED = {"NBPULSE_CAPTURE_URL": "http://127.0.0.1:9", "NBPULSE_CAPTURE_TOKEN": "t"}
HIDE = """
(hidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}
"""
FIRST_LINE = "const result = action(...given);"


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch, student: Path) -> Path:
    """A student who has joined a class that cannot be reached, so that everything stays here."""
    for name, value in JOINED.items():
        monkeypatch.setenv(name, value)
    write_notebook(student / "授業")
    return student


class Told:
    """What the front end has told its server extension."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    async def listen(self, page: Page) -> None:
        page.context.on("request", self._note)

    def _note(self, request: Request) -> None:
        if "/nbpulse-capture/observed" in request.url:
            self.events += json.loads(request.post_data or "[]")

    def has(self, event_type: str, **wanted: Any) -> bool:
        return any(
            one["event_type"] == event_type and wanted.items() <= (one | one["data"]).items() for one in self.events
        )


async def press(page: Page, *keys: str) -> None:
    for key in keys:
        await page.keyboard.press(key)


@both_front_ends
async def test_presence_typing_focus_and_the_cells_order_are_seen_and_never_what_is_typed(
    installed_python: Path, joined: Path, recorded: Recorded, chromium_path: str, program: str
) -> None:
    told = Told()
    async with open_desk(installed_python, joined, chromium_path, program, prepare=told.listen) as desk:
        page = desk.page

        async def sees(event_type: str, **wanted: Any) -> None:
            await recorded.wait_until(lambda: told.has(event_type, path="week1.ipynb", **wanted))

        await sees("notebook_open")
        await sees("presence", state="active", typing=False)
        await page.click(".jp-CodeCell >> nth=1 >> .cm-content")
        await sees("cell_focus", cell_id="second", cell_index=2, cell_type="code")
        await page.keyboard.type("geheim = 1")
        await sees("presence", state="active", typing=True)
        await press(page, "Escape", "b")
        await sees("cell_change", change="added", cell_index=3)
        await press(page, "d", "d")
        await sees("cell_change", change="removed", cell_index=3)
        await press(page, "ArrowUp", "ArrowUp", "Control+Shift+ArrowDown")
        await sees("cell_change", change="moved")
        await press(page, "ArrowUp", "ArrowUp")
        await page.click(".jp-MarkdownCell")
        await press(page, "Control+Enter")
        await sees("markdown_run", cell_id="title", cell_type="markdown")
        await page.evaluate(HIDE, True)
        await sees("presence", state="hidden")
        await page.evaluate(HIDE, False)
        assert "geheim" not in str(told.events)

        await page.goto("about:blank")
        await recorded.wait_until(lambda: recorded.of("notebook_close"))
        kinds = {event["event_type"] for event in recorded.read()}
        assert {"notebook_open", "cell_focus", "cell_change", "markdown_run", "notebook_close"} <= kinds
        assert "presence" not in kinds, "it means now, and is not kept"


async def test_a_tab_closed_inside_jupyterlab_is_a_notebook_closed(
    installed_python: Path, joined: Path, recorded: Recorded, chromium_path: str
) -> None:
    async with open_desk(installed_python, joined, chromium_path, "jupyterlab") as desk:
        await recorded.wait_until(lambda: recorded.of("notebook_open"))
        await desk.wait_for_kernel()
        await desk.page.click(".jp-CodeCell >> nth=1 >> .cm-content")
        await press(desk.page, "Control+s")  # else it asks
        await desk.page.wait_for_selector(".lm-DockPanel-tabBar .lm-mod-current:not(.jp-mod-dirty)")
        await desk.page.hover(".lm-DockPanel-tabBar .lm-mod-current")
        await desk.page.click(".lm-DockPanel-tabBar .lm-mod-current .lm-TabBar-tabCloseIcon")
        await recorded.wait_until(lambda: recorded.of("notebook_close"))
        assert [one["notebook_path"] for one in recorded.of("notebook_close")] == ["week1.ipynb"]


def change_room(name: str, change: Callable[[str], str]) -> Callable[[Page], Any]:
    """The front end with one of its files changed on the way to the browser."""

    async def answer(route: Route) -> None:
        original = await route.fetch()
        await route.fulfill(response=original, body=change(await original.text()))

    async def prepare(page: Page) -> None:
        await page.route(f"**/nbpulse-capture/static/{name}*", answer)

    return prepare


def plant(source: str) -> str:
    """From `window.planted` on, every callback fails as soon as it is called."""
    assert FIRST_LINE in source
    return source.replace(FIRST_LINE, f'if (window.planted) throw new Error("planted"); {FIRST_LINE}')


async def use_notebook(desk: Desk, faults: list[str]) -> None:
    """What a student does looks as it always does."""
    page = desk.page
    page.on("pageerror", lambda error: faults.append(str(error)))
    await desk.wait_for_kernel()
    await page.click(".jp-CodeCell >> nth=1 >> .cm-content")
    await press(page, "Control+Enter")
    await desk.says(".jp-CodeCell .jp-OutputArea-output pre", "[1, 2]")
    await press(page, "Escape", "b")
    await page.wait_for_function("document.querySelectorAll('.jp-CodeCell').length === 3")
    await press(page, "d", "d")
    await page.wait_for_function("document.querySelectorAll('.jp-CodeCell').length === 2")
    await page.evaluate(HIDE, True)
    await page.evaluate(HIDE, False)
    assert await page.locator(".jp-Dialog").count() == 0


@both_front_ends
async def test_a_fault_in_every_callback_is_counted_and_the_notebook_does_not_notice(
    installed_python: Path, joined: Path, recorded: Recorded, chromium_path: str, program: str
) -> None:
    faults: list[str] = []
    prepare = change_room("guard.js", plant)
    async with open_desk(installed_python, joined, chromium_path, program, prepare=prepare) as desk:
        await desk.page.evaluate("window.planted = true")
        await desk.page.click(STATE)
        await use_notebook(desk, faults)
        await recorded.wait_until(lambda: describe_status()["fault_count"] > 0)
        assert any("planted" in one for one in describe_status()["faults"])
    assert faults == []


@pytest.mark.parametrize(
    "broken",
    ["plugin.js", pytest.param("talk.js", marks=pytest.mark.slow), pytest.param("diff.js", marks=pytest.mark.slow)],
)
async def test_a_front_end_that_cannot_even_be_loaded_leaves_jupyterlab_as_it_is(
    installed_python: Path, joined: Path, chromium_path: str, broken: str
) -> None:
    faults: list[str] = []
    prepare = change_room(broken, lambda source: source + "\n}}} this is no JavaScript")
    async with open_desk(
        installed_python, joined, chromium_path, "jupyterlab", prepare=prepare, sign=".jp-Notebook"
    ) as desk:
        await use_notebook(desk, faults)
        assert await desk.page.locator(STATE).count() == 0
    assert faults == []
