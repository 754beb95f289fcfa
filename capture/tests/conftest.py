"""A server that plays the API, and a Python of its own into which the built wheel has been installed."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nbformat
import pytest

from servers import chromium_path  # noqa: F401
from student_jupyter import Jupyter, install_capture, open_jupyter

from .recorded import Event, Recorded

Open = Callable[..., AbstractAsyncContextManager[Jupyter]]
Play = Callable[[BaseHTTPRequestHandler, list[Event]], bool]
CELL_COUNT = 60


class FakeApi:
    """Accepts events as contract §1 says, unless `plays` holds something else to do for the next requests."""

    def __init__(self, port: int = 0) -> None:
        self.batches: list[list[Event]] = []
        self.arrived_at_s: dict[str, float] = {}
        self.stored: dict[str, Event] = {}
        self.presence: list[Event] = []
        self.tokens: list[str] = []
        self.joins: list[dict[str, str]] = []
        self.plays: list[Play] = []
        self.inbox: dict[str, Any] = {"messages": [], "help": None, "after": 0}
        self.inbox_asked: list[str] = []
        self.told: list[tuple[str, str, dict[str, Any]]] = []  # method, path, body of what a student says
        self.tell_answers: list[tuple[int, dict[str, Any]]] = []  # for the next of these; then 201 or 204
        self.request_count = 0
        self.tells_who = True
        self.clock_off_s = 0.0
        # What the course collects, as the server tells it; None: a server of before there were notices.
        self.collection: dict[str, Any] | None = None
        self.shown: dict[str, Any] | None = None
        self.consents: list[dict[str, Any]] = []
        self.consent_refusal: dict[str, Any] | None = None
        self.collection_asked = 0
        self.audit: list[dict[str, Any]] | None = None  # None: a server of before there was a log
        self.own_page_url = ""  # of a server of before it said where browsers reach it
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                api.handle(self)

            def do_PUT(self) -> None:
                api.handle(self)

            def do_GET(self) -> None:
                api.tell(self)

            def date_time_string(self, timestamp: float | None = None) -> str:
                return super().date_time_string(time.time() + api.clock_off_s if timestamp is None else timestamp)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that was killed

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def tell(self, request: BaseHTTPRequestHandler) -> None:
        if request.path.startswith("/api/v1/me/inbox"):
            self.inbox_asked.append(request.path)
            reply(request, 200, self.inbox)
            return
        if request.path.startswith(("/api/v1/me/collection", "/api/v1/join/notice")):
            self.tell_collection(request)
            return
        if request.path.startswith("/api/v1/me/audit") and self.audit is not None:
            reply(request, 200, {"entries": self.audit, "next": None})
            return
        known = self.tells_who and request.headers.get("Authorization") == "Bearer tok-1"
        content = {"user_id": "u-1"} if known else {"code": "NB-1101", "title": "no such token"}
        reply(request, 200 if known else 401, content)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        content = json.loads(body)
        if request.path == "/api/v1/join":
            self.joins.append(content)
            if content["join_code"] == "WRONG":
                problem = {"title": "no such join code", "status": 404, "code": "NB-1202"}
                reply(request, 404, problem)
                return
            given = {"token": "tok-1", "user_id": "u-1", "course_id": "c-1", "username": "cs-1"}
            given |= {"collection": self.collection} if self.collection else {}
            reply(request, 201, given | {"resume_code": "R-77", "course_title": "情報基礎"})
            return
        if request.path.startswith("/api/v1/me/messages"):
            self.told.append((request.command, request.path, content))
            status, problem = self.tell_answers.pop(0) if self.tell_answers else (201, {})
            reply(request, status, problem)
            return
        if request.path == "/api/v1/me/link":
            known = request.headers.get("Authorization") == "Bearer tok-1"
            made = {"code": "nbp_link_1"} | ({"url": self.own_page_url} if self.own_page_url else {})
            reply(request, 201 if known else 401, made if known else {"code": "NB-1101"})
            return
        if request.path == "/api/v1/me/consent":
            self.take_consent(request, content)
            return
        self.request_count += 1
        self.tokens.append(request.headers.get("Authorization", ""))
        if self.plays:
            if self.plays.pop(0)(request, content):
                return
        else:
            self.batches.append(content)
        version = {"NBPULSE_Collection_Version": str(self.collection["version"])} if self.collection else {}
        reply(request, 202, {"results": [self.store(event) for event in content]}, **version)

    def set_collection(self, version: int, level: str, *without: str, added: str = "") -> None:
        """The course's newest version from now on."""
        words = {language: f"{level} notice {version} in {language} {added}".strip() for language in ("ja", "en")}
        self.collection = {"version": version, "level": level, "without": list(without), "notice": words}
        self.collection["added"] = {"ja": added, "en": added}

    def tell_collection(self, request: BaseHTTPRequestHandler) -> None:
        self.collection_asked += 1
        if self.collection is None:
            reply(request, 404, {"code": "NB-1201", "title": "no such page"})
        elif request.path.startswith("/api/v1/join/notice"):
            reply(request, 200, self.collection | {"course_title": "情報基礎"})
        else:
            reply(request, 200, {"current": self.collection, "shown": self.shown, "history": []})

    def take_consent(self, request: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
        if self.consent_refusal is not None:
            reply(request, 403, self.consent_refusal)
            return
        self.consents.append(content)
        self.shown = self.collection if content["action"] == "accept" else None
        answer = {"current": self.collection, "shown": self.shown, "history": []}
        reply(request, 200, answer | {"text": {"en": "what was recorded stays", "ja": "これまでの記録は残ります"}})

    def store(self, event: Event) -> dict[str, Any]:
        event_id = event["event_id"]
        if event["event_type"] == "presence":
            self.presence.append(event)
            return {"event_id": event_id, "status": "accepted"}
        self.arrived_at_s.setdefault(event_id, time.time())
        if event_id in self.stored:
            return {"event_id": event_id, "status": "duplicate"}
        self.stored[event_id] = event
        return {"event_id": event_id, "status": "accepted"}

    def of_type(self, *event_types: str) -> list[Event]:
        found = [e for e in self.stored.values() if e["event_type"] in event_types]
        return sorted(found, key=lambda e: int(e["sequence"]))

    def wait_for(self, count: int, *event_types: str, timeout_s: float = 20.0) -> list[Event]:
        wait_until(lambda: len(self.of_type(*event_types)) >= count, timeout_s)
        return self.of_type(*event_types)


def reply(request: BaseHTTPRequestHandler, status: int, content: object, **headers: str) -> None:
    raw = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(raw)))
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(raw)


def wait_until(is_true: Callable[[], bool], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < end, "it did not become true in time"
        time.sleep(0.01)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    server = FakeApi()
    yield server
    server.close()


@pytest.fixture
def student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directories of a student nobody else uses; English texts."""
    for name in ("NBPULSE_CAPTURE_URL", "NBPULSE_CAPTURE_TOKEN", "JPY_SESSION_NAME", "JPY_PARENT_PID", "LC_ALL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NBPULSE_CAPTURE_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("NBPULSE_CAPTURE_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("LANG", "en_US.UTF-8")
    return tmp_path


@pytest.fixture(scope="session")
def installed_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a venv that has the built wheel by pip, and Jupyter from the venv of the tests."""
    return install_capture(tmp_path_factory.mktemp("student-venv"))


@pytest.fixture
def recorded(student: Path) -> Recorded:
    """What this student's outbox holds."""
    return Recorded(student)


@pytest.fixture
def work(student: Path) -> Path:
    """The folder of a Jupyter server, with two notebooks of sixty cells."""
    place = student / "授業"
    place.mkdir()
    cells = [nbformat.v4.new_markdown_cell("text", id="intro")]
    cells += [nbformat.v4.new_code_cell("1", id=f"c{n}") for n in range(CELL_COUNT)]
    for name in ("week1.ipynb", "week2.ipynb"):
        nbformat.write(nbformat.v4.new_notebook(cells=cells), place / name)
    return place


@pytest.fixture
def jupyter_of(installed_python: Path, work: Path) -> Open:
    """Starts a Jupyter server; its student has joined a class that cannot be reached, so everything stays here."""
    joined = {"NBPULSE_CAPTURE_URL": "http://127.0.0.1:9", "NBPULSE_CAPTURE_TOKEN": "t"}

    @asynccontextmanager
    async def open_it(*arguments: str, env: dict[str, str] = joined) -> AsyncIterator[Jupyter]:
        async with open_jupyter(installed_python, work, env, *arguments) as jupyter:
            yield jupyter

    return open_it
