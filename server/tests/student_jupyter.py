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
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

CAPTURE_DIR = Path(__file__).resolve().parents[2] / "capture"
TOKEN = "of-the-student"


def build_wheel(place: Path) -> Path:
    """Build the wheel of the capture distribution."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place / "dist")]
    subprocess.run(build, cwd=CAPTURE_DIR, check=True, capture_output=True, timeout=120)
    return next((place / "dist").glob("*.whl"))


def install_capture(place: Path) -> Path:
    """Build the wheel and install it with pip into a new venv; gives the venv's interpreter."""
    wheel = build_wheel(place)
    venv.create(place / "venv", with_pip=False, symlinks=True)
    python = place / "venv" / "bin" / "python"
    ours = next((place / "venv" / "lib").glob("python3.*")) / "site-packages"
    jupyter = next(Path(p) for p in sys.path if (Path(p) / "ipykernel").is_dir())
    (ours / "jupyter-of-the-tests.pth").write_text(f"{jupyter}\n", encoding="utf-8")
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
    shown: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What it printed."""
        return "".join(message["content"].get("text", "") for message in self.shown)

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
        self.session_id = ""
        self._session = uuid.uuid4().hex

    async def run(self, cell_id: str, code: str, *, interrupt_after_s: float | None = None) -> Ran:
        """Run one cell and wait for its reply and its idle message."""
        ran = await self.submit(cell_id, code)
        interrupt = asyncio.create_task(self._interrupt(interrupt_after_s)) if interrupt_after_s else None
        await self.wait_for(ran)
        if interrupt:
            await interrupt
        return ran

    async def submit(self, cell_id: str, code: str, *, silent: bool = False, **cell_metadata: Any) -> Ran:
        """Send the request as JupyterLab does: the cell's own metadata, then what it adds."""
        ran = Ran(cell_id, uuid.uuid4().hex)
        content = {"code": code, "silent": silent, "store_history": not silent, "allow_stdin": False}
        content |= {"user_expressions": {}, "stop_on_error": True}
        header = {"msg_id": ran.msg_id, "msg_type": "execute_request", "username": "", "session": self._session}
        header |= {"version": "5.4", "date": ""}
        metadata = cell_metadata | {"trusted": True, "deletedCells": [], "recordTiming": False, "cellId": cell_id}
        message = {"header": header, "parent_header": {}, "metadata": metadata, "content": content, "buffers": []}
        if self._socket.subprotocol:
            parts = [json.dumps(message[name]).encode() for name in ("header", "parent_header", "metadata", "content")]
            await self._socket.send(pack_frame("shell", parts))
        else:
            await self._socket.send(json.dumps(message | {"channel": "shell"}))
        return ran

    async def wait_for(self, *runs: Ran, within_s: float = 60.0) -> None:
        """Until each has its reply and its idle message."""
        async with asyncio.timeout(within_s):
            while any(ran.status == "?" or not ran.idle_s for ran in runs):
                raw = await self._socket.recv()
                message = unpack_frame(raw) if isinstance(raw, bytes) else json.loads(raw)
                for ran in runs:
                    self._note(message, ran)

    def _note(self, message: dict[str, Any], ran: Ran) -> None:
        if message["parent_header"].get("msg_id") != ran.msg_id:
            return
        state = message["content"].get("execution_state")
        if message["msg_type"] == "execute_reply":
            ran.status = message["content"]["status"]
        elif message["msg_type"] in {"stream", "error", "execute_result", "display_data"}:
            ran.shown.append(message)
        elif state == "busy":
            ran.busy_s = time.perf_counter()
            ran.busy_written = message["header"]["date"]
        elif state == "idle":
            ran.idle_s, ran.idle_epoch_s = time.perf_counter(), time.time()
            ran.idle_written = message["header"]["date"]

    async def _interrupt(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await self.ask_kernel("interrupt")

    async def ask_kernel(self, action: str) -> None:
        """`interrupt` or `restart`, as the menu does."""
        (await self._http.post(f"/api/kernels/{self.kernel_id}/{action}")).raise_for_status()

    async def close_socket(self) -> None:
        """The lid is closed, the tab is gone."""
        await self._socket.close()


def pack_frame(channel: str, parts: list[bytes]) -> bytes:
    """A message in the form v1.kernel.websocket.jupyter.org: number of offsets, offsets, channel, parts."""
    pieces = [channel.encode(), *parts]
    offsets = [8 * (len(pieces) + 2)]
    for piece in pieces:
        offsets.append(offsets[-1] + len(piece))
    return b"".join(n.to_bytes(8, "little") for n in (len(offsets), *offsets)) + b"".join(pieces)


def unpack_frame(raw: bytes) -> dict[str, Any]:
    """Header, parent header, metadata and content of such a message."""
    count = int.from_bytes(raw[:8], "little")
    at = [int.from_bytes(raw[8 * n : 8 * n + 8], "little") for n in range(1, count + 1)]
    header, parent, metadata, content = (json.loads(raw[at[n] : at[n + 1]]) for n in range(1, 5))
    names = {"header": header, "parent_header": parent, "metadata": metadata, "content": content}
    return {"msg_type": header["msg_type"], **names}


@dataclass
class Jupyter:
    """A running server: a client that is signed in to it, its process, its log."""

    http: httpx2.AsyncClient
    process: subprocess.Popen[bytes]
    log: Path

    async def kill(self) -> None:
        """SIGKILL, as the system does when memory runs out."""
        self.process.kill()
        await asyncio.to_thread(self.process.wait)


@asynccontextmanager
async def run_jupyterlab(python: Path, root: Path, env: dict[str, str]) -> AsyncIterator[httpx2.AsyncClient]:
    """A real JupyterLab server with the student's own directories; gives a client that is signed in to it."""
    async with open_jupyter(python, root, env, program="jupyterlab") as jupyter:
        yield jupyter.http


@asynccontextmanager
async def open_jupyter(
    python: Path, root: Path, env: dict[str, str], *arguments: str, program: str = "jupyter_server"
) -> AsyncIterator[Jupyter]:
    """The same with its process; a plain Jupyter Server, which is up soonest, unless another program is asked for."""
    home = root.parent / "jupyter-home"
    own = {name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    own["IPYTHONDIR"] = str(home / "ipython")
    own["JUPYTERLAB_DIR"] = str(Path(sys.prefix) / "share" / "jupyter" / "lab")
    home.mkdir(exist_ok=True)
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [
                *(str(python), "-m", program, "--no-browser", "--allow-root"),
                *("--ServerApp.port=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={root}"),
                *arguments,
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
            yield Jupyter(http, server, home / "server.log")
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
async def open_notebook(http: httpx2.AsyncClient, path: str, *, old_form: bool = False) -> AsyncIterator[Notebook]:
    """Start the notebook's session as JupyterLab does and wait until its kernel answers."""
    asked = {"path": path, "name": Path(path).name, "type": "notebook", "kernel": {"name": "python3"}}
    answer = await http.post("/api/sessions", json=asked)
    answer.raise_for_status()
    async with connect_kernel(http, answer.json()["kernel"]["id"], old_form=old_form) as notebook:
        notebook.session_id = answer.json()["id"]
        yield notebook
    await http.delete(f"/api/sessions/{answer.json()['id']}")


@asynccontextmanager
async def connect_kernel(
    http: httpx2.AsyncClient, kernel_id: str, *, old_form: bool = False
) -> AsyncIterator[Notebook]:
    """The websocket to a kernel, as a browser holds it; messages in the form of today's front ends or of older ones."""
    address = str(http.base_url).replace("http", "ws", 1).rstrip("/")
    headers = {"Authorization": http.headers["Authorization"]}
    url = f"{address}/api/kernels/{kernel_id}/channels"
    forms = [] if old_form else [Subprotocol("v1.kernel.websocket.jupyter.org")]
    # The server answers once the kernel has started, which takes a busy machine longer than the client's own 10 s.
    async with connect(
        url, additional_headers=headers, max_size=None, subprotocols=forms or None, open_timeout=60
    ) as socket:
        notebook = Notebook(http, socket, kernel_id)
        async with asyncio.timeout(60):
            while (await http.get(f"/api/kernels/{kernel_id}")).json()["execution_state"] != "idle":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        yield notebook
