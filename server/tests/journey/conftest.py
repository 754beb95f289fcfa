"""A student's Python; the board's files as a browser test gets them: served as they are, without an API."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from student_jupyter import install_capture


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


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a student's venv that has the built wheel by pip, and Jupyter from the venv of the tests."""
    return install_capture(tmp_path_factory.mktemp("student-venv"))
