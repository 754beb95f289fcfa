"""The processes: one API, one worker, the simulated class; alone or under the supervisor."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nbpulse.errors import NbpulseError
from nbpulse.network import find_machine_address
from nbpulse.terminal import describe_error, say

if TYPE_CHECKING:
    from nbpulse.resources import Resources
    from nbpulse.settings import Settings

Answer = TypeVar("Answer")
API_POOL_SIZE: Final = 8
WORKER_POOL_SIZE: Final = 8
# A store that is being started again itself answers soon; waiting beats dying and being counted as failing.
PATIENCE_S: Final = 30.0
_PASSING: Final = frozenset({"NB-3053", "NB-3054", "NB-2001", "NB-2003"})


def import_parts(*, is_new: bool) -> None:
    """
    Import, once for all parts, what they need; `is_new`: what migrating a new database needs too.

    Meant for a thread of its own beside the start of the stores. Garbage collection is off afterwards until a part
    runs: imports only add, and what is never looked through stays shared between the processes.
    """
    gc.disable()
    # structlog imports rich wherever it finds it, to colour tracebacks: 0.2 s of a start, for a log in a file.
    sys.modules["rich"] = None  # type: ignore[assignment]
    for module in (*_IMPORTED_EARLY, *(["nbpulse.migrations"] if is_new else [])):
        importlib.import_module(module)
    del sys.modules["rich"]
    gc.freeze()


def prepare_database(given: Mapping[str, str], *, is_demo: bool, has_replica: bool | None = None) -> dict[str, Any]:
    """`preparation.prepare` with these settings (NBPULSE_* -> value)."""
    from nbpulse.preparation import prepare
    from nbpulse.settings import read_settings

    return asyncio.run(prepare(read_settings({**os.environ, **given}), is_demo=is_demo, has_replica=has_replica))


def run_part(name: str, environment: Mapping[str, str]) -> None:
    """A part under the supervisor until it ends. Raises SystemExit, its error said in the log."""
    from nbpulse.settings import read_settings

    try:
        PARTS[name](read_settings(environment))
    except NbpulseError as error:
        say(describe_error(error).replace("\n        ", " "))
        sys.exit(1)


def serve_api(settings: Settings) -> None:
    """One API process until SIGTERM. Raises StartupError when a store does not let it start."""
    from nbpulse.api.app import create_app
    from nbpulse.api.context import ApiOptions
    from nbpulse.api.serving import serve
    from nbpulse.records.retention import Retention

    retention = Retention(settings.retention_days, settings.session_retention_days)
    application = create_app(
        lambda: open_patiently(settings, "nbpulse_api", API_POOL_SIZE),
        ApiOptions(public_url=settings.public_url, limits=settings.read_limits(), retention=retention),
    )
    serve(
        application,
        host=find_machine_address() if settings.host == "lan" else settings.host,
        port=settings.port,
        tls_cert=settings.tls_cert,
        tls_key=settings.tls_key,
        trusted_proxies=settings.trusted_proxies,
        connections_max=settings.connections_max,
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
    from nbpulse.records.retention import Retention

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_patiently(settings, "nbpulse_worker", WORKER_POOL_SIZE) as resources:
        await worker.run(
            resources,
            stop,
            claim_idle_s=settings.claim_idle_s,
            metrics_port=settings.metrics_port,
            retention=Retention(settings.retention_days, settings.session_retention_days),
        )


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


def _keep_replica(_settings: Settings) -> None:
    import msgspec

    from nbpulse.standby import Plan, run_standby

    run_standby(msgspec.json.decode(os.environ["NBPULSE_REPLICA_PLAN"], type=Plan))


def _simulate(settings: Settings) -> None:
    from nbpulse.simulator import run_class

    run_class(**json.loads(os.environ["NBPULSE_DEMO_CLASS"]), data_dir=settings.data_dir)


PARTS: Final[dict[str, Callable[[Settings], None]]] = {
    "api": serve_api,
    "worker": run_worker,
    "demo": _simulate,
    "replica": _keep_replica,
}
_IMPORTED_EARLY: Final = (
    "nbpulse.settings",
    "nbpulse.resources",
    "nbpulse.api.serving",
    "nbpulse.worker",
    "nbpulse.preparation",
)
