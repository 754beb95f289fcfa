"""Students who are real: a real IPython kernel each, running a real notebook file through nbpulse-capture."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from nbpulse.errors import StartupError
from nbpulse.simulator.lesson import NOTEBOOK_NAME, Cell, load_lesson, read_notebook
from nbpulse.simulator.schoolroom import ClassOptions
from nbpulse.simulator.wire import Wire, join

if TYPE_CHECKING:
    from jupyter_client.asynchronous.client import AsyncKernelClient

_RUN_TIMEOUT_S = 60.0


def check_real_kernels() -> None:
    """Raises StartupError (NB-3022) when this Python cannot run real kernels with the capture package."""
    missing = [name for name in ("ipykernel", "jupyter_client", "nbpulse_capture") if find_spec(name) is None]
    if missing:
        raise StartupError("NB-3022", missing=", ".join(missing).replace("_", "-"))


async def run_real_pupil(options: ClassOptions, number: int) -> None:
    """
    Join, start a kernel with the capture extension, work through the notebook again and again.

    Raises StartupError: not let in (NB-3021), or the kernel does not start (NB-3012).
    """
    from jupyter_client.manager import AsyncKernelManager

    wire = Wire(options.url)
    joined = await join(wire, options.url, options.join_code, f"Real kernel {number}", f"REAL{number}")
    wire.close()
    directory = Path(tempfile.mkdtemp(prefix="nbpulse-real-"))
    manager = AsyncKernelManager(connection_file=str(directory / f"kernel-{uuid4()}.json"))
    try:
        notebook = directory / NOTEBOOK_NAME
        notebook.write_text(read_notebook(), encoding="utf-8")
        environment = {
            "NBPULSE_CAPTURE_URL": options.url,
            "NBPULSE_CAPTURE_TOKEN": joined["token"],
            "NBPULSE_CAPTURE_DIR": str(directory / "outbox"),
            "JPY_SESSION_NAME": str(notebook),
        }
        await manager.start_kernel(
            cwd=str(directory),
            env=os.environ | environment,
            extra_arguments=["--IPKernelApp.extra_extensions=nbpulse_capture.kernel"],
        )
        client = manager.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=_RUN_TIMEOUT_S)
        except RuntimeError as error:
            raise StartupError("NB-3012", part=f"kernel {number}", reason=str(error), log=directory) from error
        try:
            await _work(client, random.Random(f"{options.seed}:real:{number}"), options.speed)  # noqa: S311
        finally:
            client.stop_channels()
    finally:
        if manager.has_kernel:
            await manager.shutdown_kernel(now=True)
        shutil.rmtree(directory, ignore_errors=True)


async def _work(client: AsyncKernelClient, draw: random.Random, speed: float) -> None:
    """Cell after cell as a person would; now and then a name is mistyped, and the kernel itself says what is wrong."""
    while True:
        for cell in load_lesson():
            tries = 1 + int(draw.expovariate(1)) if draw.random() < cell.difficulty else 0
            for _ in range(tries):
                await asyncio.sleep(cell.think_s * 0.12 * draw.lognormvariate(0, 0.4) / speed)
                await _run_cell(client, cell, mistype(cell.source))
            await asyncio.sleep(cell.think_s * 0.15 * draw.lognormvariate(0, 0.4) / speed)
            await _run_cell(client, cell, cell.source)


def mistype(source: str) -> str:
    """The last line's first word, misspelt: an honest NameError or SyntaxError."""
    lines = source.splitlines()
    lines[-1] = lines[-1].replace(lines[-1].lstrip(), "typo_" + lines[-1].lstrip())
    return "\n".join(lines)


async def _run_cell(client: AsyncKernelClient, cell: Cell, source: str) -> dict[str, Any]:
    """One execute request as JupyterLab sends it, the cell's id in its metadata; waits for the reply."""
    content = {
        "code": source,
        "silent": False,
        "store_history": True,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": True,
    }
    message = client.session.msg("execute_request", content, metadata={"cellId": cell.id})
    client.shell_channel.send(message)
    while True:
        reply: dict[str, Any] = await client.get_shell_msg(timeout=_RUN_TIMEOUT_S)
        if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
            return reply
