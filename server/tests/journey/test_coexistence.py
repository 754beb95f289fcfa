"""Two other ways of watching a class, installed beside ours in one JupyterLab: each hears of every run, once.

The others are jupyterlab-pioneer 1.7.3 and EPFL's telemetry 5.1.1, from PyPI (80 kB). Without a network the test is
skipped; in CI it fails then.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nbformat
import pytest
from playwright.async_api import Page, async_playwright

from nbpulse_capture.outbox import Outbox
from servers import CHROMIUM_FLAGS, give_up
from student_jupyter import TOKEN, Jupyter, install_capture, open_jupyter

OTHERS = ("jupyterlab-pioneer==1.7.3", "jupyterlab-unianalytics-telemetry==5.1.1")
CELLS = {"good": "40 + 2", "loud": "print('hello')", "bad": "1 / 0"}
PIONEER = """
c.JupyterLabPioneerApp.activeEvents = [{{"name": "CellExecuteEvent", "logWholeNotebook": False}}]
c.JupyterLabPioneerApp.exporters = [{{"type": "file_exporter", "args": {{"path": {path!r}}}}}]
"""
SETTINGS = {
    "jupyterlab_unianalytics_telemetry/settings": {"SendExtension": True},
    "jupyterlab_unianalytics_telemetry/dialogShownSettings": {"DialogShown": True},
    "@jupyterlab/notebook-extension/tracker": {"recordTiming": True},  # EPFL's reads a run's times from the cell
}


class Backend:
    """Where EPFL's telemetry sends to; what it got, by path."""

    def __init__(self) -> None:
        self.got: list[tuple[str, Any]] = []
        backend = self

        class Handler(BaseHTTPRequestHandler):
            def do_OPTIONS(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                backend.got.append((self.path, json.loads(body) if body.startswith(b"{") else None))
                self.answer()

            def answer(self) -> None:
                self.send_response(200)
                for name in ("Origin", "Headers", "Methods"):
                    self.send_header(f"Access-Control-Allow-{name}", "*")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def list_runs(self) -> list[str]:
        return [content["cell_id"] for path, content in [*self.got] if "/exec/code" in path and content]


@pytest.fixture
def backend() -> Iterator[Backend]:
    opened = Backend()
    yield opened
    opened.close()


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A student's venv with all three."""
    interpreter = install_capture(tmp_path)
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "-q", "--no-deps", *OTHERS]
    done = subprocess.run(pip, check=False, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        give_up(f"the others cannot be installed: {done.stderr[-300:]}")
    return interpreter


def prepare_home(tmp_path: Path, backend: Backend) -> Path:
    """The others' own settings, so that they are at work; the notebook, which EPFL's must know."""
    config = tmp_path / "jupyter-home" / "jupyter_config_dir"
    settings = config / "lab" / "user-settings"
    values = SETTINGS | {"jupyterlab_unianalytics_telemetry/endpoint": {"backendEndpoint": backend.url}}
    for name, value in values.items():
        file = settings / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value), encoding="utf-8")
    (config / "jupyter_server_config.py").write_text(
        PIONEER.format(path=str(tmp_path / "pioneer.json")), encoding="utf-8"
    )
    work = tmp_path / "work"
    work.mkdir()
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "unianalytics_notebook_id": "week1",
        "unianalytics_cell_mapping": [[cell_id, cell_id] for cell_id in CELLS],
    }
    cells = [nbformat.v4.new_code_cell(code, id=cell_id) for cell_id, code in CELLS.items()]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), work / "week1.ipynb")
    return work


def read_ours(file: Path) -> list[tuple[str, str]]:
    """Cell and status of each run that our outbox holds."""
    if not file.exists():
        return []
    outbox = Outbox(file)
    try:
        events = [event for _, event, _ in outbox.read_last_events(1000)]
    finally:
        outbox.close()
    return [(one["cell_id"], one["data"]["status"]) for one in events if one["event_type"] == "cell_execution"]


def read_pioneer(file: Path) -> int:
    """How many runs pioneer wrote down."""
    return file.read_text(encoding="utf-8").count('"CellExecuteEvent"') if file.exists() else 0


async def run_cells(page: Page, jupyter: Jupyter) -> None:
    await page.goto(f"{str(jupyter.http.base_url).rstrip('/')}/lab/tree/week1.ipynb?token={TOKEN}")
    await page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    await page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000)
    await asyncio.sleep(2)
    await page.locator(".lm-MenuBar-item", has_text="Run").click()
    await page.locator("li[data-command='runmenu:run-all']").click()


@pytest.mark.browser
@pytest.mark.timeout(300)
async def test_three_watchers_of_one_jupyterlab_disturb_nobody(
    tmp_path: Path, python: Path, backend: Backend, chromium_path: str
) -> None:
    work, ours, pioneers = (
        prepare_home(tmp_path, backend),
        tmp_path / "outbox" / "outbox.sqlite3",
        tmp_path / "pioneer.json",
    )
    env = {"NBPULSE_CAPTURE_DIR": str(ours.parent), "NBPULSE_CAPTURE_CONFIG": str(tmp_path / "config")}
    env |= {"NBPULSE_CAPTURE_URL": "http://127.0.0.1:9", "NBPULSE_CAPTURE_TOKEN": "t", "HOME": str(tmp_path)}
    said: list[str] = []
    async with open_jupyter(python, work, env, program="jupyterlab") as jupyter, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_FLAGS)
        page = await browser.new_page(viewport={"width": 1400, "height": 900})
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"pageerror: {error}"))
        await run_cells(page, jupyter)
        async with asyncio.timeout(60):
            while len(read_ours(ours)) < 3 or len(backend.list_runs()) < 3 or not read_pioneer(pioneers):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        await asyncio.sleep(2)  # what would come twice would come by now
        shown = await page.locator(".jp-Notebook").inner_text()
        has_toolbar = await page.locator(".nbpulse-state").count()
        await browser.close()
    assert read_ours(ours) == [("good", "ok"), ("loud", "ok"), ("bad", "error")]
    assert sorted(backend.list_runs()) == sorted(CELLS)
    assert read_pioneer(pioneers) == 3
    assert has_toolbar == 1
    assert "ZeroDivisionError" in shown
    log = jupyter.log.read_text(encoding="utf-8")
    for name in ("nbpulse_capture", "jupyterlab_pioneer", "jupyterlab_unianalytics_telemetry"):
        assert re.search(rf"{name} \| extension was successfully loaded", log), log
    assert not re.search(r"Traceback|\[E ", log), log
    assert not [one for one in said if one.startswith("pageerror") or "nbpulse" in one], said
