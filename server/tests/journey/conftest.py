"""The board's files as a browser test gets them: served as they are, without an API."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Test output is for failures."""


@pytest.fixture(scope="module")
def web_url() -> Iterator[str]:
    """The board's files on a free port, as they are."""
    handler = functools.partial(QuietHandler, directory=str(files("nbpulse") / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)
