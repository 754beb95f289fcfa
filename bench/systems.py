"""The two systems that are measured side by side: nbpulse as `nbpulse up` runs it, and the specification's own flow.

Promises: each has its own stores of the same build and settings on a fresh directory; what is started here is stopped
here; both are given the same bytes by the same client.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from load import NOTEBOOK_PATH, Student

from nbpulse.embedded import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey

STUDENTS = 200
START_TIMEOUT_S = 60
_PRIORITY = -15
_FLOW_TABLES = """
CREATE TABLE IF NOT EXISTS learning_sessions (
    user_id UUID, notebook_path VARCHAR(500), started_at TIMESTAMPTZ DEFAULT now(), cell_executions INTEGER DEFAULT 0,
    error_count INTEGER DEFAULT 0, PRIMARY KEY (user_id, notebook_path)
);
CREATE TABLE IF NOT EXISTS cell_executions (
    id UUID PRIMARY KEY, user_id UUID, notebook_path VARCHAR(500), cell_index INTEGER, event_type VARCHAR(50),
    execution_duration_ms FLOAT, has_error BOOLEAN, error_message TEXT, time TIMESTAMPTZ,
    recorded_at TIMESTAMPTZ DEFAULT clock_timestamp()
);
"""

# One client plays a whole school and faster than any: each limit is counted as always, and met by nobody.
_LIMITS = ("STUDENT_EVENTS", "COURSE_EVENTS", "TOKEN_REQUESTS", "ADDRESS_REQUESTS", "PERSON_BOARDS")
_LIMITS_NOBODY_MEETS = {f"NBPULSE_LIMIT_{name}": "1000000000" for name in _LIMITS}


class System(ABC):
    """One running system under test."""

    name: str
    port: int
    other_ports: Sequence[int] = ()
    """Of further APIs of the same system."""
    pool: asyncpg.Pool
    students: list[Student]

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="nbpulse-bench-"))
        self.directory.chmod(0o711)  # the stores' own account must be able to pass

    @abstractmethod
    def start(self) -> float:
        """Start on the directory; the seconds until it is ready."""

    @abstractmethod
    def stop(self) -> None:
        """Stop whatever was started; the directory stays."""

    @abstractmethod
    def list_pids(self) -> dict[str, int]:
        """Each part's process; a store's children belong to it."""

    @abstractmethod
    async def connect(self) -> None:
        """Open the database and enrol the students."""

    @abstractmethod
    async def count_quickly(self) -> int:
        """Events stored so far, from the counters."""

    @abstractmethod
    async def count_between(self, start: datetime | None, end: datetime | None) -> int:
        """Rows of the ledger recorded in [start, end) by the database's clock."""

    async def read_clock(self) -> datetime:
        """The database's clock."""
        now: datetime = await self.pool.fetchval("SELECT clock_timestamp()")
        return now

    async def count_now(self) -> tuple[datetime, int]:
        """The database's clock and the rows of the ledger until then."""
        now = await self.read_clock()
        return now, await self.count_between(None, now)

    def remove(self) -> None:
        """Delete the directory."""
        shutil.rmtree(self.directory)


class Nbpulse(System):
    """
    nbpulse as `nbpulse up` runs it, with `settings` as its environment: one API, one worker, embedded stores,
    `appendfsync always`.
    """

    name = "nbpulse"
    STORED = "SELECT coalesce(sum(last_ordinal), 0) FROM learner_states WHERE course_id = $1"

    def __init__(self, **settings: str) -> None:
        super().__init__()
        self._environment = os.environ | _LIMITS_NOBODY_MEETS | settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        started = time.perf_counter()
        command = [sys.executable, "-m", "nbpulse", "up", "--data", str(self.directory), "--port", str(_find_port())]
        with (self.directory / "up.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--json"], stdout=subprocess.PIPE, stderr=log, env=self._environment
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        ready_s = time.perf_counter() - started
        if not line:
            raise RuntimeError(f"up did not start: {(self.directory / 'up.log').read_text()[-2000:]}")
        self.described: dict[str, Any] = json.loads(line)
        self.port = int(self.described["url"].rsplit(":", 1)[1])
        return ready_s

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)

    def list_pids(self) -> dict[str, int]:
        """As in log/: the first API is `api`, the second `api-2`. A store of somebody else's is left out."""
        pids = self.described["pids"]
        stores = {"postgresql": pids["postgresql"], "valkey": pids["redis"]}
        programs = {
            f"{part}-{number}" if number > 1 else part: pid
            for part in ("api", "worker")
            for number, pid in enumerate(pids[part], start=1)
        }
        return {"supervisor": pids["supervisor"]} | programs | {name: pid for name, pid in stores.items() if pid}

    async def connect(self) -> None:
        self.pool = await asyncpg.create_pool(self.described["database_url"], min_size=1, max_size=2)
        self._course_id = uuid.UUID(self.described["course_id"])
        self.students = []
        for number in range(STUDENTS):
            wanted = {"join_code": self.described["join_code"], "display_name": f"Student {number:03d}"}
            joined = await asyncio.to_thread(
                ask, self.port, "POST", "/api/v1/join", body=wanted | {"student_number": f"B{number:04d}"}
            )
            self.students.append(Student(joined["user_id"], joined["token"], str(uuid.uuid4())))

    async def count_quickly(self) -> int:
        return int(await self.pool.fetchval(self.STORED, self._course_id))

    async def count_between(self, start: datetime | None, end: datetime | None) -> int:
        return int(
            await self.pool.fetchval(
                "SELECT count(*) FROM events WHERE course_id = $1"
                " AND recorded_at >= coalesce($2::timestamptz, '-infinity')"
                " AND recorded_at < coalesce($3::timestamptz, 'infinity')",
                self._course_id,
                start,
                end,
            )
        )

    @property
    def owner_url(self) -> str:
        """The database's address under the login that owns all; `database_url` of `up --json` only reads."""
        password = (self.directory / "postgresql" / "password").read_text(encoding="ascii").strip()
        return f"postgresql://postgres:{password}@{self.described['database_url'].rpartition('@')[2]}"

    def read_class(self) -> dict[str, Any]:
        """The board's snapshot."""
        path = f"/api/v1/courses/{self._course_id}/live"
        return ask(self.port, "GET", path, token=self.described["teacher_token"])


class SpecificationFlow(System):
    """The specification's flow: its API and its one subscriber, on embedded stores of its own."""

    name = "specification"

    def __init__(self) -> None:
        super().__init__()
        self._stores: list[EmbeddedServer] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> float:
        started = time.perf_counter()
        self._stores = [EmbeddedValkey(self.directory), EmbeddedPostgres(self.directory)]
        self.port = _find_port()
        for store in self._stores:
            store.launch()
        for store in self._stores:
            store.wait_ready()
        redis_url, self._database_url = (store.url for store in self._stores)
        asyncio.run(self._make_tables())
        environment = os.environ | {"REDIS_URL": redis_url, "DATABASE_URL": self._database_url}
        # As nbpulse serves its API, see server/src/nbpulse/api/.
        server = [
            "uvicorn",
            "specification_flow:app",
            "--port",
            str(self.port),
            "--loop",
            "uvloop",
            "--http",
            "httptools",
        ]
        api = [sys.executable, "-m", *server, "--ws", "websockets-sansio", "--no-access-log", "--log-level", "critical"]
        work = "import asyncio, specification_flow; asyncio.run(specification_flow.process_events())"
        worker = [sys.executable, "-c", work]
        here = Path(__file__).parent
        self._processes = [subprocess.Popen(one, env=environment, cwd=here) for one in (api, worker)]
        while not _answers(self.port):
            if self._processes[0].poll() is not None or time.perf_counter() - started > START_TIMEOUT_S:
                raise RuntimeError("the specification's API did not start")
            time.sleep(0.01)
        return time.perf_counter() - started

    async def _make_tables(self) -> None:
        connection = await asyncpg.connect(self._database_url)
        await connection.execute(_FLOW_TABLES)
        await connection.close()

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for store in self._stores:
            store.stop()

    def list_pids(self) -> dict[str, int]:
        valkey, postgresql = self._stores
        api, worker = self._processes
        return {"api": api.pid, "worker": worker.pid, "postgresql": postgresql.pid, "valkey": valkey.pid}

    async def connect(self) -> None:
        self.pool = await asyncpg.create_pool(self._database_url, min_size=1, max_size=2)
        ids = [str(uuid.uuid4()) for _ in range(STUDENTS)]
        self.students = [Student(user_id, "none", str(uuid.uuid4())) for user_id in ids]

    async def count_quickly(self) -> int:
        return int(
            await self.pool.fetchval(
                "SELECT coalesce(sum(cell_executions), 0) FROM learning_sessions WHERE notebook_path = $1",
                NOTEBOOK_PATH,
            )
        )

    async def count_between(self, start: datetime | None, end: datetime | None) -> int:
        return int(
            await self.pool.fetchval(
                "SELECT count(*) FROM cell_executions WHERE recorded_at >= coalesce($1::timestamptz, '-infinity')"
                " AND recorded_at < coalesce($2::timestamptz, 'infinity')",
                start,
                end,
            )
        )


def ask(port: int, method: str, path: str, *, token: str | None = None, body: Any = None) -> dict[str, Any]:
    """The JSON answer to one request. Raises RuntimeError for anything but 2xx."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    if response.status // 100 != 2:
        raise RuntimeError(f"{method} {path}: {response.status} {text[:300]!r}")
    answer: dict[str, Any] = json.loads(text)
    return answer


def measure_pss(pids: dict[str, int]) -> dict[str, float]:
    """Proportional set size in MB of each part with its children (shared pages counted once in all)."""
    found = {}
    for name, pid in pids.items():
        process = psutil.Process(pid)
        # The supervisor's children are parts of their own.
        family = [process] if name == "supervisor" else [process, *process.children(recursive=True)]
        found[name] = round(sum(_read_pss_kb(one.pid) for one in family) / 1000, 1)
    return found


def measure_cpu_s(pids: dict[str, int]) -> dict[str, float]:
    """Processor seconds of each part with its children so far. Raises psutil.NoSuchProcess when a part is gone."""
    return {name: _read_cpu_s(psutil.Process(pid), is_alone=name == "supervisor") for name, pid in pids.items()}


def _read_cpu_s(parent: psutil.Process, *, is_alone: bool) -> float:
    # Children that ended are in their parent's account; the supervisor's are other parts.
    if is_alone:
        return float(sum(parent.cpu_times()[:2]))
    while True:
        # A child that ends before its turn (autovacuum's come and go) is in an account that was read before: once more.
        own_s = sum(parent.cpu_times()[:4])
        with contextlib.suppress(psutil.NoSuchProcess):
            return float(own_s + sum(sum(one.cpu_times()[:4]) for one in parent.children(recursive=True)))


def go_first() -> None:
    """From now on this process and all that it starts get the processor before everything else (root, Linux)."""
    threading.Thread(target=_keep_first, daemon=True).start()


def _keep_first() -> None:
    while True:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                os.setpriority(os.PRIO_PROCESS, process.pid, _PRIORITY)
                # Where each session is weighed as one, its own weight counts.
                Path(f"/proc/{process.pid}/autogroup").write_text(f"{_PRIORITY}", encoding="ascii")
        time.sleep(2)  # what has been started meanwhile


def measure_busy_cores(seconds: float) -> float:
    """How many cores are busy while we wait."""
    neighbours = Neighbours([])
    time.sleep(seconds)
    return neighbours.measure_cores()


class Neighbours:
    """How many of the machine's cores were busy with something else than these systems and this client."""

    def __init__(self, systems: Sequence[System]) -> None:
        self._systems = systems
        self._started, self._before = time.perf_counter(), self._read()

    def _read(self) -> float:
        busy_s = sum(map(int, Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:4]))
        ours_s = sum(sum(measure_cpu_s(system.list_pids()).values()) for system in self._systems)
        return busy_s / os.sysconf("SC_CLK_TCK") - ours_s - time.process_time()

    def measure_cores(self) -> float:
        """Since this was made."""
        return round(max(0.0, self._read() - self._before) / (time.perf_counter() - self._started), 2)


def _read_pss_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has just ended
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1])


def _find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
