"""A student's own Jupyter: a venv that got the capture wheel by pip, a JupyterLab server in it, and its notebook.

Jupyter itself comes from the venv of the tests through a .pth file; everything else (configuration, runtime files,
kernels' prefix) is the student's own, so that the wheel's configuration file is what loads the extension.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
import venv
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil
from websockets.asyncio.client import ClientConnection, connect

CAPTURE_DIR = Path(__file__).resolve().parents[2] / "capture"
TOKEN = "of-the-student"


def install_capture(place: Path) -> Path:
    """Build the wheel and install it with pip into a new venv; gives the venv's interpreter."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place / "dist")]
    subprocess.run(build, cwd=CAPTURE_DIR, check=True, capture_output=True, timeout=120)
    venv.create(place / "venv", with_pip=False, symlinks=True)
    python = place / "venv" / "bin" / "python"
    ours = next((place / "venv" / "lib").glob("python3.*")) / "site-packages"
    jupyter = next(Path(p) for p in sys.path if (Path(p) / "ipykernel").is_dir())
    (ours / "jupyter-of-the-tests.pth").write_text(f"{jupyter}\n", encoding="utf-8")
    wheel = next((place / "dist").glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q"]
    subprocess.run([*pip, "--force-reinstall", str(wheel)], check=True, capture_output=True, timeout=120)
    return python


@dataclass
class Ran:
    """
    What the notebook's client saw of one run: the reply, and busy and idle, twice: when they arrived, and the time the
    kernel wrote on them (which a machine that is busy with other things does not delay).
    """

    cell_id: str
    msg_id: str
    busy_s: float = 0.0
    idle_s: float = 0.0
    idle_epoch_s: float = 0.0
    busy_written: str = ""
    idle_written: str = ""
    status: str = "?"

    def measure_distance_ms(self, duration_ms: float) -> float:
        """How far a duration is from busy -> idle, by the closer of the two ways to take it."""
        arrived_ms = (self.idle_s - self.busy_s) * 1000
        busy, idle = (datetime.fromisoformat(written) for written in (self.busy_written, self.idle_written))
        written_ms = (idle - busy).total_seconds() * 1000
        return min(abs(arrived_ms - duration_ms), abs(written_ms - duration_ms))


class Notebook:
    """An open notebook: a session of the server and the websocket to its kernel, as a browser holds them."""

    def __init__(self, http: httpx2.AsyncClient, socket: ClientConnection, kernel_id: str) -> None:
        self._http = http
        self._socket = socket
        self.kernel_id = kernel_id
        self._session = uuid.uuid4().hex

    async def run(self, cell_id: str, code: str, *, interrupt_after_s: float | None = None) -> Ran:
        """Run one cell and wait for its reply and its idle message."""
        ran = Ran(cell_id, uuid.uuid4().hex)
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        content |= {"user_expressions": {}, "stop_on_error": True}
        header = {"msg_id": ran.msg_id, "msg_type": "execute_request", "username": "", "session": self._session}
        header |= {"version": "5.4", "date": ""}
        metadata = {"cellId": cell_id, "trusted": True, "deletedCells": [], "recordTiming": False}
        message = {"header": header, "parent_header": {}, "metadata": metadata, "content": content, "buffers": []}
        await self._socket.send(json.dumps(message | {"channel": "shell"}))
        interrupt = asyncio.create_task(self._interrupt(interrupt_after_s)) if interrupt_after_s else None
        async with asyncio.timeout(60):
            while ran.status == "?" or not ran.idle_s:
                self._note(json.loads(await self._socket.recv()), ran)
        if interrupt:
            await interrupt
        return ran

    def _note(self, message: dict[str, Any], ran: Ran) -> None:
        if message["parent_header"].get("msg_id") != ran.msg_id:
            return
        state = message["content"].get("execution_state")
        if message["msg_type"] == "execute_reply":
            ran.status = message["content"]["status"]
        elif state == "busy":
            ran.busy_s = time.perf_counter()
            ran.busy_written = message["header"]["date"]
        elif state == "idle":
            ran.idle_s, ran.idle_epoch_s = time.perf_counter(), time.time()
            ran.idle_written = message["header"]["date"]

    async def _interrupt(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        (await self._http.post(f"/api/kernels/{self.kernel_id}/interrupt")).raise_for_status()


@asynccontextmanager
async def run_jupyterlab(python: Path, root: Path, env: dict[str, str]) -> AsyncIterator[httpx2.AsyncClient]:
    """A real JupyterLab server with the student's own directories; gives a client that is signed in to it."""
    home = root.parent / "jupyter-home"
    own = {name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    own["IPYTHONDIR"] = str(home / "ipython")
    app_dir = Path(sys.prefix) / "share" / "jupyter" / "lab"
    home.mkdir()
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [
                *(str(python), "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.port=0"),
                *(f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={root}", f"--LabApp.app_dir={app_dir}"),
            ],
            env=os.environ | own | env,
            cwd=root,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        described = Path(own["JUPYTER_RUNTIME_DIR"]) / f"jpserver-{server.pid}.json"
        async with asyncio.timeout(60):
            while not described.exists():
                assert server.poll() is None, (home / "server.log").read_text()[-3000:]
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.2)
        url = json.loads(described.read_text())["url"]
        headers = {"Authorization": f"token {TOKEN}"}
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=30) as http:
            yield http
    finally:
        kernels = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        for kernel in kernels:
            if kernel.is_running():
                kernel.kill()


@asynccontextmanager
async def open_notebook(http: httpx2.AsyncClient, path: str) -> AsyncIterator[Notebook]:
    """Start the notebook's session as JupyterLab does and wait until its kernel answers."""
    asked = {"path": path, "name": Path(path).name, "type": "notebook", "kernel": {"name": "python3"}}
    answer = await http.post("/api/sessions", json=asked)
    answer.raise_for_status()
    kernel_id = answer.json()["kernel"]["id"]
    address = str(http.base_url).replace("http", "ws", 1).rstrip("/")
    headers = {"Authorization": f"token {TOKEN}"}
    url = f"{address}/api/kernels/{kernel_id}/channels"
    async with connect(url, additional_headers=headers, max_size=None) as socket:
        notebook = Notebook(http, socket, kernel_id)
        async with asyncio.timeout(60):
            while (await http.get(f"/api/kernels/{kernel_id}")).json()["execution_state"] != "idle":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        yield notebook
    await http.delete(f"/api/sessions/{answer.json()['id']}")
