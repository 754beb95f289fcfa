"""Runs the application under uvicorn until it is told to stop."""

from __future__ import annotations

import signal
import sys
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import uvicorn

from nbpulse.api.app import Application
from nbpulse.api.waiting import PatientProtocol, Waiting
from nbpulse.network import list_listening, listen

DRAIN_S: Final = 10
_FRAME_BYTES_MAX: Final = 65_536
_DESCRIPTORS_WANTED: Final = 65_536


class Server(uvicorn.Server):
    """uvicorn that does not wait for ever, and tells the application first that it stops: long polls end."""

    def __init__(self, config: uvicorn.Config, application: Application, waiting: Waiting) -> None:
        super().__init__(config)
        self._application = application
        self._waiting = waiting

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % 10 == 0:
            self._waiting.close_late()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came: SIGTERM or SIGINT."""
        if self.started:
            self._application.context.is_stopping = True
        super().handle_exit(sig, frame)


def configure(application: Application, waiting: Waiting, **more: Any) -> uvicorn.Config:
    """How the application is served, wherever it listens."""
    return uvicorn.Config(
        application,
        http=partial(PatientProtocol, waiting=waiting),  # type: ignore[arg-type]  # it is only called
        ws="websockets-sansio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,  # a student's computer compares its clock
        ws_max_size=_FRAME_BYTES_MAX,
        # Frames are small and encoded once for all; compressing would be done for each viewer again.
        ws_per_message_deflate=False,
        ws_ping_interval=15,
        ws_ping_timeout=15,
        timeout_keep_alive=75,
        **more,
    )


def serve(
    application: Application,
    *,
    host: str,
    port: int,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    trusted_proxies: str = "",
    connections_max: int,
) -> None:
    """
    Serve on `host` and on loopback until SIGTERM or SIGINT, then finish what is under way (10 s at most; boards are
    closed with 1012).

    Raises StartupError: it cannot listen (NB-3010, NB-3017), or what `open_resources` raised; SystemExit 0 after a
    signal.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again when it has drained: that is the end, and no failure.
        signal.signal(number, _exit_cleanly)
    sockets = [listen(address, port) for address in list_listening(host)]
    waiting = Waiting(most_open=min(connections_max, raise_descriptor_limit() * 3 // 4))
    config = configure(
        application,
        waiting,
        timeout_graceful_shutdown=DRAIN_S,
        # Whom an address limit counts for. Anybody else's X-Forwarded-For says nothing.
        proxy_headers=True,
        forwarded_allow_ips=trusted_proxies,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
    )
    server = Server(config, application, waiting)
    server.run(sockets)
    if application.failure is not None:
        raise application.failure
    sys.exit(0 if server.started else 1)


def raise_descriptor_limit() -> int:
    """Let this process have as many files and sockets open as it may, up to 65,536; how many that is."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return _DESCRIPTORS_WANTED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS_WANTED)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return most
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def _exit_cleanly(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
