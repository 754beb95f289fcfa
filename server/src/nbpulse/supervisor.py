"""Keeps the parts of nbpulse running on one data directory: stores, API, worker, simulated class.

Promises: one supervisor per directory; a part that dies is started again on the same data and ports; a part that
keeps dying is given up aloud, after which everything stops; a stop drains API first, then worker, then stores; if the
supervisor itself is killed its parts die with it (Linux) or are ended by the next start.

No secret stands in a command line or in the environment a process was started with.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn, Protocol

from setproctitle import setproctitle

from nbpulse.errors import StartupError
from nbpulse.terminal import get_text, say

BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 5.0
DEATHS_WINDOW_S = 60.0
# Killed from outside (kill -9, out of memory) is no failing of the part, unless it hardly lived.
SHORT_LIFE_S = 2.5
_TICK_S = 0.05
_LOG_KEPT_BYTES = 10_000_000
_PR_SET_PDEATHSIG = 1
_IS_FORKED = sys.platform.startswith("linux")
_processes = multiprocessing.get_context("fork" if _IS_FORKED else "spawn")


class Part(Protocol):
    """Something that runs in a process of its own; the embedded servers are such already."""

    @property
    def name(self) -> str: ...

    @property
    def pid(self) -> int: ...

    @property
    def log_path(self) -> Path: ...

    def launch(self) -> None:
        """Start it; returns before it is ready."""

    def poll(self) -> int | None:
        """None while it runs, else its exit code."""

    def stop(self, timeout_s: float) -> None:
        """Ask it to end, then make it."""


class Program:
    """
    One of our own parts in a process of its own, in a session of its own so that Ctrl-C reaches us alone.

    On Linux it is forked from us, who have imported what it needs: it starts, and starts again, at once. Elsewhere,
    where forking is not safe, a new interpreter imports for itself.
    """

    def __init__(self, name: str, serve: Callable[[Mapping[str, str]], None], *, log_path: Path) -> None:
        self.name = name
        self.settings: dict[str, str] = {}
        self._serve = serve
        self._log_path = log_path
        self._process: BaseProcess | None = None

    @property
    def pid(self) -> int:
        """The process started last."""
        if self._process is None or self._process.pid is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """Everything it prints."""
        return self._log_path

    def launch(self) -> None:
        """Start it with `settings` (NBPULSE_* -> value)."""
        if self._log_path.exists() and self._log_path.stat().st_size > _LOG_KEPT_BYTES:
            self._log_path.replace(self._log_path.with_name(self._log_path.name + ".1"))
        self._process = _processes.Process(  # type: ignore[attr-defined]
            target=_run_part,
            args=(self.name, self._serve, self.settings, self._log_path, os.getpid()),
            daemon=True,  # whatever ends us in order ends it too
        )
        self._process.start()

    def poll(self) -> int | None:
        """None while it runs, else its exit code."""
        return None if self._process is None else self._process.exitcode

    def stop(self, timeout_s: float = 12) -> None:
        """SIGTERM, then SIGKILL."""
        if self._process is None:
            return
        for ask in (self._process.terminate, self._process.kill):
            ask()
            self._process.join(timeout_s)
            if self._process.exitcode is not None:
                break


def _run_part(
    name: str, serve: Callable[[Mapping[str, str]], None], settings: Mapping[str, str], log_path: Path, parent_pid: int
) -> None:
    """What a new process does first: it lets go of everything that is its supervisor's."""
    _tie_to_supervisor(parent_pid)
    setproctitle(f"nbpulse {name}")  # its command line, as if it had been started by hand
    if _IS_FORKED:
        os.setsid()
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # the locks on the directories among them
        gc.enable()
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, signal.SIG_DFL)
    os.environ.pop("NBPULSE_DATABASE_URL", None)  # the owner's login is for the preparation alone
    os.environ.update(settings)
    serve(os.environ)


def _tie_to_supervisor(supervisor_pid: int) -> None:
    """Die when the supervisor does (Linux); elsewhere the part goes on until the next start ends it."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != supervisor_pid:
        raise SystemExit(1)


class _Watch:
    """One part's record: when it started, when it died, when it may start again."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.started_s = 0.0
        self.deaths_s: deque[float] = deque()
        self.restart_at_s: float | None = None

    def note_death(self, code: int, now_s: float) -> float:
        """Counts the death; gives the pause before the next start in seconds."""
        while self.deaths_s and now_s - self.deaths_s[0] > DEATHS_WINDOW_S:
            self.deaths_s.popleft()
        if code != -signal.SIGKILL or now_s - self.started_s < SHORT_LIFE_S:
            self.deaths_s.append(now_s)
        pause_s: float = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** max(0, len(self.deaths_s) - 1))
        self.restart_at_s = now_s + pause_s
        return pause_s


class Supervisor:
    """Watches parts; `stop` ends them in the opposite order."""

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        deaths_limit: int,
        note_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watches = [_Watch(part) for part in parts]
        self._deaths_limit = deaths_limit
        self._note_change = note_change
        self._clock = clock

    def run(self, look_further: Callable[[], None] = lambda: None) -> NoReturn:
        """
        Until a signal raises; `look_further` is called at each look.

        Raises StartupError (NB-3011) when a part keeps dying; `stop` is the caller's.
        """
        for watch in self._watches:
            watch.started_s = self._clock()
        while True:
            self.check()
            look_further()
            time.sleep(_TICK_S)

    def check(self) -> None:
        """One look at every part: note deaths, start again what may."""
        now_s = self._clock()
        for watch in self._watches:
            if watch.restart_at_s is None:
                code = watch.part.poll()
                if code is not None:
                    self._note_death(watch, code, now_s)
            elif now_s >= watch.restart_at_s:
                self._start_again(watch)

    def _note_death(self, watch: _Watch, code: int, now_s: float) -> None:
        part = watch.part
        pause_s = watch.note_death(code, now_s)
        if len(watch.deaths_s) >= self._deaths_limit:
            raise StartupError(
                "NB-3011",
                part=part.name,
                deaths=len(watch.deaths_s),
                reason=read_last_line(part.log_path),
                log=part.log_path,
            )
        say(get_text("part_died", part=part.name, how=describe_exit(code), pause_s=f"{pause_s:.1f}"))

    def _start_again(self, watch: _Watch) -> None:
        watch.started_s = self._clock()
        try:
            watch.part.launch()
        except StartupError:  # counted and said like a death; the last one's reason is in its log
            self._note_death(watch, 1, watch.started_s)
            return
        watch.restart_at_s = None
        self._note_change()

    def stop(self) -> None:
        """End everything: the last of the parts drains first."""
        for watch in reversed(self._watches):
            watch.part.stop(12)


def describe_exit(code: int) -> str:
    """How a process ended, as `exit code 1` or `SIGKILL`."""
    if code >= 0:
        return get_text("exit_code", code=code)
    try:
        return signal.Signals(-code).name
    except ValueError:
        return get_text("exit_code", code=code)


def read_last_line(log_path: Path) -> str:
    """The last line of a log that says anything, cut to 300 characters."""
    try:
        with log_path.open("rb") as log:
            log.seek(max(0, log_path.stat().st_size - 4_000))
            lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
    except OSError:
        return ""
    return next((line[:300] for line in reversed(lines) if line), "")


def end_leftovers(processes: Iterable[tuple[int, float]]) -> None:
    """End our own programs that a killed supervisor left running, known by id and start time."""
    import psutil

    found = []
    for pid, started_s in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if abs(process.create_time() - started_s) < 0.5:
                found.append(process)
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                ask(process)
        _, found = psutil.wait_procs(found, timeout=5)
