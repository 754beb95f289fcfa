"""A student's browser at their own Jupyter, JupyterLab or Notebook 7, in a language and a theme of their choice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, async_playwright

from servers import CHROMIUM_FLAGS
from student_jupyter import TOKEN, Jupyter, open_jupyter

STATE, HAND, TALK = ".nbpulse-state", ".nbpulse-hand", "#nbpulse-talk"
PROGRAMS = ("jupyterlab", "notebook")
SCREENSHOTS = Path(__file__).resolve().parents[2] / ".cache" / "screenshots"
Prepare = Callable[[Page], Awaitable[None]]
both_front_ends = pytest.mark.parametrize("program", PROGRAMS)


@dataclass
class Desk:
    """An open notebook of a student, as seen in the browser."""

    page: Page
    jupyter: Jupyter
    program: str
    env: dict[str, str]

    async def says(self, selector: str, text: str, within_s: float = 15) -> None:
        """Waits until that part of the page says so."""
        await self.page.wait_for_function(
            "([selector, text]) => document.querySelector(selector)?.innerText.includes(text)",
            arg=[selector, text],
            timeout=within_s * 1000,
        )

    async def wait_for_kernel(self) -> None:
        """The front ends run nothing, and do not say so, before the kernel is there; at first they call that "idle"."""
        async with asyncio.timeout(60):
            while not await self._has_connected():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
        await self.page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000)

    async def _has_connected(self) -> bool:
        answer = await self.jupyter.http.get("/api/kernels")  # 404: one went while they were listed
        return answer.status_code == 200 and any(one["connections"] for one in answer.json())

    async def examine(self, selector: str) -> list[str]:
        """What axe finds serious or critical there."""
        found = await Axe().run(self.page, context=selector)
        return [
            f"{one['id']}: {one['nodes'][0]['html'][:200]} {one['nodes'][0].get('failureSummary', '')[:200]}"
            for one in found.response["violations"]
            if one["impact"] in ("serious", "critical")
        ]

    async def picture(self, name: str) -> None:
        """To `.cache/screenshots`, for people."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=SCREENSHOTS / f"student-{name}.png")


def write_notebook(work: Path, name: str = "week1.ipynb", **prepared: str) -> None:
    """A title and two cells; `prepared` is what the teacher's tool has written into its metadata."""
    cells = [
        nbformat.v4.new_markdown_cell("# 第1回", id="title"),
        nbformat.v4.new_code_cell("1 / 0", id="broken"),
        nbformat.v4.new_code_cell("values = [1, 2]\nprint(values)", id="second"),
    ]
    metadata: dict[str, Any] = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    metadata |= {"nbpulse": prepared} if prepared else {}
    work.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), work / name)


def write_settings(place: Path, language: str, theme: str) -> None:
    """The application's own settings, as its menus write them; no question about news."""
    settings = {
        "translation-extension/plugin": {"locale": "ja_JP" if language == "ja" else "default"},
        "apputils-extension/themes": {"theme": "JupyterLab Dark" if theme == "dark" else "JupyterLab Light"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    for name, values in settings.items():
        file = place / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")


@asynccontextmanager
async def open_desk(
    python: Path,
    place: Path,
    chromium_path: str,
    program: str,
    *,
    language: str = "en",
    theme: str = "light",
    path: str = "week1.ipynb",
    prepare: Prepare | None = None,
    sign: str = STATE,
    env: dict[str, str] | None = None,
) -> AsyncIterator[Desk]:
    """The program with a notebook of `place/授業` open; `prepare` has the page first, `sign` shows that it is there."""
    write_settings(place / "settings", language, theme)
    own = {"NBPULSE_CAPTURE_DIR": str(place / "data"), "NBPULSE_CAPTURE_CONFIG": str(place / "config")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(place / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(place / "workspaces")}
    own |= env or {}
    front = {"jupyterlab": f"lab/tree/{path}", "notebook": f"notebooks/{path}" if path else "tree"}[program]
    async with (
        open_jupyter(python, place / "授業", own, program=program) as jupyter,
        async_playwright() as playwright,
    ):
        browser = await playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_FLAGS)
        page = await browser.new_page(viewport={"width": 1280, "height": 800})
        if prepare is not None:
            await prepare(page)
        await page.goto(f"{str(jupyter.http.base_url).rstrip('/')}/{front}?token={TOKEN}")
        await page.wait_for_selector(sign, timeout=60_000)
        yield Desk(page, jupyter, program, own)
        await browser.close()
