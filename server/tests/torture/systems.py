"""A whole nbpulse as a child of the test: started by its own command, known by the line it prints, stopped by pid."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from redis.asyncio import Redis
from redis.exceptions import RedisError

from torture.connections import UnansweredError, get


def find_free_port() -> int:
    """A port that is free now, drawn from those below the ones outgoing connections take."""
    for port in random.sample(range(20_000, 32_000), 1_000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise AssertionError("no free port")


def make_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without anybody's NBPULSE_* settings, and with these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NBPULSE_")}
    return {**kept, "LANG": "C.UTF-8", **settings}


def _make_tie() -> Callable[[], None] | None:
    """What asks the kernel to end the child when this process dies, so that a killed test leaves nothing running."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda: prctl(1, int(signal.SIGTERM), 0, 0, 0)  # PR_SET_PDEATHSIG


def read_age_s(pid: int) -> float:
    """How long a process has lived. (psutil's start time is off by up to a second: the kernel cuts the boot time.)"""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


class System:
    """`nbpulse up --json` on a data directory; may be killed and started again on the same data and port."""

    def __init__(
        self,
        data_dir: Path,
        *,
        api_count: int = 1,
        worker_count: int = 2,
        settings: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.data_dir = data_dir
        self.facts: dict[str, Any] = {}
        self._arguments = ["--api", str(api_count), "--workers", str(worker_count), "--port", str(find_free_port())]
        self._arguments += options
        self._settings = settings or {}
        self._process: asyncio.subprocess.Process | None = None
        self._drain: asyncio.Task[bytes] | None = None

    async def __aenter__(self) -> System:
        await self.start()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        await self.stop()
        if kind is not None:
            print(self.read_logs())  # noqa: T201 - the directory goes, the reason must not

    @property
    def url(self) -> str:
        """The first API's address; the same after every start."""
        return str(self.facts["url"])

    @property
    def api_urls(self) -> list[str]:
        """Every API's address."""
        urls: list[str] = self.facts["api_urls"]
        return urls

    @property
    def log_path(self) -> Path:
        """What the supervisor says."""
        return self.data_dir / "up.log"

    async def start(self) -> None:
        """Start and wait for the line. Raises AssertionError with the log's end when none comes."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "nbpulse", "up", "--json", "--data", str(self.data_dir), *self._arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=make_environment(self._settings),
                limit=1 << 20,
                preexec_fn=_make_tie(),
            )
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), 90)
            self.facts = json.loads(line)
        except (TimeoutError, ValueError) as error:
            await self.stop()
            raise AssertionError(f"nbpulse up did not start:\n{self.read_log()}") from error
        self._drain = asyncio.create_task(self._process.stdout.read())

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL to whatever is left of it after 30 s."""
        if self._process is None:
            return
        descendants = self._list_processes()
        if self._process.returncode is None:
            self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), 30)
        for process in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await self._process.wait()
        if self._drain:
            await self._drain

    def _list_processes(self) -> list[psutil.Process]:
        if self._process is None or self._process.returncode is not None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            return [*root.children(recursive=True), root]
        return []

    def read_log(self) -> str:
        """The end of what the supervisor said."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")[-4_000:]

    def read_logs(self) -> str:
        """The end of what every part said."""
        paths = [self.log_path, *sorted(self.data_dir.glob("log/*.log"))]
        ends = [path.read_text(encoding="utf-8", errors="replace")[-6_000:] for path in paths]
        return "\n".join(f"--- {path.name}\n{end}" for path, end in zip(paths, ends, strict=True))

    def read_running(self) -> dict[str, Any]:
        """What runs now, as the supervisor has noted it."""
        found: dict[str, Any] = json.loads((self.data_dir / "running.json").read_text(encoding="utf-8"))
        return found

    def read_pids(self, part: str) -> list[int]:
        """The processes of `api`, `worker`, `redis` or `postgresql` as they are now."""
        found = self.read_running()["pids"][part]
        return found if isinstance(found, list) else [found]

    async def kill_part(self, part: str, place: int = 0, *, is_exact: bool = False) -> float:
        """
        kill -9 one process of a part, and wait until its successor answers; the seconds that took.

        One that has just been started is left to live 2.6 s first, since the supervisor counts early deaths as
        failures; `is_exact` says that the moment matters and was chosen by the caller.
        """
        pid = self.read_pids(part)[place]
        if not is_exact:
            pid = await self.await_age(part, place)
        os.kill(pid, signal.SIGKILL)
        started_s = time.monotonic()
        await self.await_successor(part, place, pid)
        return time.monotonic() - started_s

    async def await_age(self, part: str, place: int = 0, age_s: float = 2.7) -> int:
        """Until the process is that old; its pid."""
        while True:
            pid = self.read_pids(part)[place]
            lived_s = read_age_s(pid)
            if lived_s >= age_s:
                return pid
            await asyncio.sleep(age_s - lived_s + 0.01)

    async def await_successor(self, part: str, place: int, pid: int, within_s: float = 30) -> None:
        """Until another process than `pid` serves the part and answers."""
        deadline_s = time.monotonic() + within_s
        while True:
            self.assert_alive()
            with contextlib.suppress(OSError, ValueError, IndexError):
                if self.read_pids(part)[place] != pid and await self._is_answering(part, place):
                    return
            assert time.monotonic() < deadline_s, f"{part} did not come back within {within_s} s:\n{self.read_log()}"
            await asyncio.sleep(0.05)

    def assert_alive(self) -> None:
        """The supervisor still runs."""
        assert self._process is not None
        assert self._process.returncode is None, f"the supervisor has given up:\n{self.read_log()}"

    async def _is_answering(self, part: str, place: int) -> bool:
        if part == "api":
            url = f"{self.api_urls[place]}/health/ready"
        elif part == "worker":
            url = self.facts["metrics_urls"][len(self.api_urls) + place].replace("/metrics", "/health")
        else:
            return await self._is_store_answering(part)
        try:
            return (await get(url, deadline_s=2)).status == 200
        except UnansweredError:
            return False

    async def _is_store_answering(self, part: str) -> bool:
        try:
            if part == "redis":
                async with Redis.from_url(self.facts["redis_url"], socket_timeout=2) as redis:
                    return bool(await redis.ping())
            await (await asyncpg.connect(self.facts["database_url"], timeout=2)).close()
        except (RedisError, OSError, TimeoutError, asyncpg.PostgresError):
            return False
        return True

    async def kill_supervisor(self) -> float:
        """kill -9 the supervisor and start another on the same data; the seconds until that was ready."""
        await self.kill_supervisor_for_good()
        started_s = time.monotonic()
        await self.start()
        return time.monotonic() - started_s

    async def kill_supervisor_for_good(self) -> None:
        """kill -9 the supervisor; everything it started goes with it."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()
        if self._drain:
            await self._drain

    async def read_metric(self, name: str, *, worker: int | None = None) -> float:
        """The sum of a metric (all labels) over every process that answers now, or over one worker."""
        total = 0.0
        urls = self.facts["metrics_urls"]
        for url in urls if worker is None else [urls[len(self.api_urls) + worker]]:
            with contextlib.suppress(UnansweredError):
                answer = await get(url, deadline_s=2)
                for line in answer.body.decode().splitlines():
                    if line.startswith(name) and line[len(name)] in " {":
                        total += float(line.rsplit(" ", 1)[1])
        return total
