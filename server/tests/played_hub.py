"""A JupyterHub as the API asks it, played."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

FULL = ("access:services!service=nbpulse", "custom:nbpulse:write")


class PlayedHub:
    """Answers `GET /hub/api/user` as JupyterHub 6.1 does; the real one is in journey/test_jupyterhub.py."""

    def __init__(self) -> None:
        self.users: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.wait_s = 0.0
        self.says: tuple[int, bytes] | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                token = self.headers.get("Authorization", "").removeprefix("token ")
                hub.asked.append(token)
                time.sleep(hub.wait_s)
                user = hub.users.get(token)
                forbidden = (403, b'{"status": 403, "message": "Forbidden"}')
                found = (200, json.dumps(user).encode()) if user else forbidden
                status, body = hub.says or found
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a question that was given up

        self._server = Server(("127.0.0.1", 0), Handler)
        self.api_url = f"http://127.0.0.1:{self._server.server_address[1]}/hub/api"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def give(self, name: str, *groups: str, scopes: tuple[str, ...] = FULL, **more: Any) -> str:
        """A new token of the user."""
        token = uuid4().hex
        self.users[token] = {"kind": "user", "name": name, "groups": list(groups), "scopes": list(scopes)} | more
        return token
