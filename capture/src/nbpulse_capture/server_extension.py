"""The Jupyter Server extension: where the observer is hooked into a running server.

Enabled by the wheel's `etc/jupyter/jupyter_server_config.d/nbpulse_capture.json`. The class that carries websocket
messages is wrapped, whichever the server is configured to use, and never replaced: other extensions replace it, and
only one can. The front end's routes live under `/nbpulse-capture/` (routes.py).

Promise: whatever breaks in here, Jupyter does not notice. Each hook catches everything and calls what it has
wrapped. Listeners take whatever arguments they are given: one that cannot be called makes the server refuse to start a
kernel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial, wraps
from typing import Any

from jupyter_server.extension.application import ExtensionApp

from nbpulse_capture.desk import Desk
from nbpulse_capture.observer import ServerObserver
from nbpulse_capture.routes import add_routes
from nbpulse_capture.serverside import hook_into_nbmodel, make_path_finder

KERNEL_ACTIONS = "https://events.jupyter.org/jupyter_server/kernel_actions/v1"
CONTENTS = "https://events.jupyter.org/jupyter_server/contents_service/v1"

Listener = Callable[..., Coroutine[Any, Any, None]]


class CaptureExtension(ExtensionApp):  # type: ignore[misc, unused-ignore]
    """What Jupyter Server loads."""

    name = "nbpulse_capture"
    observer: ServerObserver | None = None
    desk: Desk | None = None

    def initialize_settings(self) -> None:
        """Hook in before the first kernel; begin when the event loop runs."""
        try:
            app: Any = self.serverapp
            self.observer = ServerObserver(app.kernel_manager, app.session_manager, app.contents_manager)
            self.observer.announce()
            hook_in(app, self.observer)
            self.desk = Desk(self.observer.front_end)
            add_routes(app.web_app, self.desk)
            app.io_loop.add_callback(self._begin)
        except Exception as error:  # noqa: BLE001 - a server must start, with us or without
            self._tell_log(error)

    def _begin(self) -> None:
        try:
            if self.observer is not None:
                self.observer.start()
        except Exception as error:  # noqa: BLE001 - as above
            self._tell_log(error)

    async def stop_extension(self) -> None:
        """The server ends in good order."""
        try:
            if self.desk is not None:
                await asyncio.get_running_loop().run_in_executor(None, self.desk.close)
            if self.observer is not None:
                await self.observer.stop()
        except Exception as error:  # noqa: BLE001 - as above
            self._tell_log(error)

    def _tell_log(self, error: Exception) -> None:
        """The server's log is not the student's notebook."""
        self.log.warning("nbpulse-capture: %s: %s", type(error).__name__, error)
        if self.observer is not None:
            self.observer.faults.note(error, "server")


def hook_in(app: Any, observer: ServerObserver) -> None:
    """Be told of requests, kernels and files."""
    wrap_websocket(app.kernel_websocket_connection_class, observer)
    app.event_logger.add_listener(schema_id=KERNEL_ACTIONS, listener=make_kernel_listener(observer))
    app.event_logger.add_listener(schema_id=CONTENTS, listener=make_contents_listener(observer))
    find_path = make_path_finder(app.web_app.settings)
    hook_into_nbmodel(find_path, observer.note_server_side, partial(observer.give_up, ""))


def wrap_websocket(kind: type[Any], observer: ServerObserver) -> None:
    """Each message on its way to a kernel is looked at first, and then goes its way."""
    original = kind.handle_incoming_message

    @wraps(original)
    def handle_incoming_message(self: Any, incoming_msg: Any) -> Any:
        kernel_id = ""
        try:
            kernel_id = str(self.kernel_id)
            observer.note_request(kernel_id, incoming_msg, self.websocket_handler.selected_subprotocol)
        except Exception as error:  # noqa: BLE001 - the promise
            observer.give_up(kernel_id, error)
        return original(self, incoming_msg)

    kind.handle_incoming_message = handle_incoming_message


def make_kernel_listener(observer: ServerObserver) -> Listener:
    """For the server's own words about its kernels."""

    async def listen(*_: Any, **given: Any) -> None:
        kernel_id = ""
        try:
            data = given["data"]
            kernel_id = str(data.get("kernel_id") or "")
            if data.get("status") == "success" and kernel_id:
                observer.note_kernel_action(kernel_id, str(data["action"]))
        except Exception as error:  # noqa: BLE001 - the promise
            observer.give_up(kernel_id, error)

    return listen


def make_contents_listener(observer: ServerObserver) -> Listener:
    """For what happens to files; `get` is left out, front ends ask all the time."""

    async def listen(*_: Any, **given: Any) -> None:
        try:
            data = given["data"]
            if data.get("action") != "get":
                observer.note_contents(str(data["action"]), str(data["path"]), str(data.get("source_path") or ""))
        except Exception as error:  # noqa: BLE001 - the promise
            observer.give_up("", error)

    return listen
