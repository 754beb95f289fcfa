"""The processes: one API, one worker, the preparation, the simulated class; alone or under the supervisor.

Under the supervisor a part imports first and is given its settings afterwards, so that its imports run while the
stores start.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from nbpulse.errors import NbpulseError
from nbpulse.network import find_machine_address
from nbpulse.supervisor import await_settings, tie_to_supervisor
from nbpulse.terminal import answer, describe_error, say

if TYPE_CHECKING:
    from nbpulse.resources import Resources
    from nbpulse.settings import Settings

Answer = TypeVar("Answer")
API_POOL_SIZE: Final = 8
WORKER_POOL_SIZE: Final = 8
# A store that is being started again itself answers soon; waiting beats dying and being counted as failing.
PATIENCE_S: Final = 30.0
_PASSING: Final = frozenset({"NB-3053", "NB-3054", "NB-2001", "NB-2003"})


def run_part(name: str, *options: str) -> None:
    """A part under the supervisor, from its first line to its exit code. `prepare new` expects a new database."""
    tie_to_supervisor()
    # structlog imports rich wherever it finds it, to colour tracebacks: 0.2 s of a start, for a log in a file.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    serve = PARTS[name]
    gc.disable()  # imports only add; looking through them again and again is a sixth of their time
    for module in [*_IMPORTED_EARLY[name], *(["nbpulse.migrations"] if options else [])]:
        importlib.import_module(module)
    gc.enable()
    await_settings()
    from nbpulse.settings import read_settings

    try:
        serve(read_settings())
    except NbpulseError as error:
        say(describe_error(error).replace("\n        ", " "))
        if name == "prepare":
            answer(json.dumps({"code": error.code, "facts": {key: str(fact) for key, fact in error.facts.items()}}))
        sys.exit(1)


def serve_api(settings: Settings) -> None:
    """One API process until SIGTERM. Raises StartupError when a store does not let it start."""
    from nbpulse.api.app import create_app
    from nbpulse.api.context import ApiOptions
    from nbpulse.api.serving import serve

    application = create_app(
        lambda: open_patiently(settings, "nbpulse_api", API_POOL_SIZE), ApiOptions(public_url=settings.public_url)
    )
    serve(
        application,
        host=find_machine_address() if settings.host == "lan" else settings.host,
        port=settings.port,
        tls_cert=settings.tls_cert,
        tls_key=settings.tls_key,
    )


def run_worker(settings: Settings) -> None:
    """One worker process until SIGTERM."""
    _run(_work(settings))


def _run(work: Coroutine[object, object, Answer]) -> Answer:
    """On the faster loop where there is one (not on Windows)."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)


async def _work(settings: Settings) -> None:
    from nbpulse import worker

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_patiently(settings, "nbpulse_worker", WORKER_POOL_SIZE) as resources:
        await worker.run(resources, stop, claim_idle_s=settings.claim_idle_s, metrics_port=settings.metrics_port)


@asynccontextmanager
async def open_patiently(settings: Settings, login: str, pool_size: int) -> AsyncIterator[Resources]:
    """`open_resources`, waiting up to 30 s for a store that does not answer yet."""
    from nbpulse.resources import open_resources

    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        opening = open_resources(settings, login=login, pool_size=pool_size)
        try:
            resources = await opening.__aenter__()
            break
        except NbpulseError as error:
            if error.code not in _PASSING or time.monotonic() > deadline_s:
                raise
            await asyncio.sleep(0.1)
    try:
        yield resources
    finally:
        await opening.__aexit__(None, None, None)


def _prepare(settings: Settings) -> None:
    from nbpulse.preparation import prepare

    found = asyncio.run(prepare(settings, is_demo="NBPULSE_DEMO" in os.environ))
    answer(json.dumps(found))


def _simulate(_settings: Settings) -> None:
    from nbpulse.simulator import run_class

    run_class(json.loads(os.environ["NBPULSE_DEMO_CLASS"]))


PARTS: Final[dict[str, Callable[[Settings], None]]] = {
    "api": serve_api,
    "worker": run_worker,
    "prepare": _prepare,
    "simulate": _simulate,
}
_IMPORTED_EARLY: Final = {
    "api": ("nbpulse.settings", "nbpulse.resources", "nbpulse.api.serving"),
    "worker": ("nbpulse.settings", "nbpulse.resources", "nbpulse.worker"),
    "prepare": ("nbpulse.settings", "nbpulse.preparation"),
    "simulate": ("nbpulse.settings", "nbpulse.simulator"),
}
