"""Keeps the parts of nbpulse running on one data directory: stores, API, worker, simulated class.

Promises: one supervisor per directory; a part that dies is started again on the same data and ports; a part that
keeps dying is given up aloud, after which everything stops; a stop drains API first, then worker, then stores; if the
supervisor itself is killed its parts die with it (Linux) or are ended by the next start.

Parts that are our own programs are started early and wait for their settings on stdin, so that their imports run
while the stores start, and no secret stands in a command line or an environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, Protocol

from nbpulse.errors import StartupError
from nbpulse.terminal import get_text, say

SUPERVISOR_VARIABLE = "NBPULSE_SUPERVISOR_PID"
BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 5.0
DEATHS_WINDOW_S = 60.0
# Killed from outside (kill -9, out of memory) is no failing of the part, unless it hardly lived.
SHORT_LIFE_S = 2.5
_TICK_S = 0.05
_LOG_KEPT_BYTES = 10_000_000


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
    """`nbpulse <arguments>` in a process of its own, in a session of its own so that Ctrl-C reaches us alone."""

    _output: int | None = None

    def __init__(self, name: str, arguments: Sequence[str], *, log_path: Path) -> None:
        self.name = name
        self.arguments = [*arguments]
        self._log_path = log_path
        self._settings: dict[str, str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_waiting = False

    @property
    def pid(self) -> int:
        """The process started last."""
        if self._process is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """Everything it prints."""
        return self._log_path

    def launch(self) -> None:
        """Start it; it waits for `give` unless its settings are known from before."""
        if self._log_path.exists() and self._log_path.stat().st_size > _LOG_KEPT_BYTES:
            self._log_path.replace(self._log_path.with_name(self._log_path.name + ".1"))
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                # -P: a file `queue.py` in the teacher's directory must not be taken for the library's.
                [sys.executable, "-P", "-m", "nbpulse", *self.arguments],
                stdin=subprocess.PIPE,
                stdout=self._output or log,
                stderr=log,
                start_new_session=True,
                env=_inherit_environment(),
            )
        self._is_waiting = True
        if self._settings is not None:
            self.give(self._settings)

    def give(self, settings: Mapping[str, str]) -> None:
        """Its settings (NBPULSE_* -> value), now and after every restart: with them it goes on."""
        self._settings = dict(settings)
        if self._process is None or not self._is_waiting or self._process.stdin is None:
            return
        self._is_waiting = False
        with contextlib.suppress(BrokenPipeError):  # it died: the poll says so
            self._process.stdin.write(json.dumps(self._settings).encode() + b"\n")
            self._process.stdin.close()

    def poll(self) -> int | None:
        """None while it runs, else its exit code."""
        return None if self._process is None else self._process.poll()

    def stop(self, timeout_s: float = 12) -> None:
        """SIGTERM, then SIGKILL."""
        if self._process is None:
            return
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._process.send_signal(number)
            try:
                self._process.wait(timeout_s)
                break
            except subprocess.TimeoutExpired:
                continue


def _inherit_environment() -> dict[str, str]:
    """Ours, without the database owner's login: only the preparation is given that."""
    inherited = {name: value for name, value in os.environ.items() if name != "NBPULSE_DATABASE_URL"}
    return inherited | {SUPERVISOR_VARIABLE: str(os.getpid()), "PYTHONUNBUFFERED": "1"}


class Errand(Program):
    """A program that does one thing and answers with one JSON line on stdout."""

    _output: int | None = subprocess.PIPE

    def read_answer(self, timeout_s: float = 120) -> dict[str, str]:
        """Its answer. Raises StartupError with the tail of its log when it fails."""
        if self._process is None or self._process.stdout is None:
            raise RuntimeError(f"{self.name} has not been started")
        self._process.stdin = None  # given and closed; communicate would flush it again
        try:
            output, _ = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            self.stop(1)
            raise StartupError("NB-3013", part=self.name, log=self.log_path, timeout_s=timeout_s) from error
        lines = output.decode().strip().splitlines()
        if self._process.returncode and lines:
            refusal = json.loads(lines[-1])  # the error itself, as parts.py says it
            raise StartupError(refusal["code"], **refusal["facts"])
        if self._process.returncode or not lines:
            raise StartupError("NB-3012", part=self.name, reason=read_last_line(self.log_path), log=self.log_path)
        found: dict[str, str] = json.loads(lines[-1])
        return found


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


def tie_to_supervisor() -> None:
    """
    In a part, before anything slow: die when the supervisor does (Linux).

    Outside Linux the part goes on until the next start ends it.
    """
    supervisor_pid = int(os.environ[SUPERVISOR_VARIABLE])
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != supervisor_pid:
        raise SystemExit(1)


def await_settings() -> None:
    """In a part, after its imports: take the settings the supervisor gives into the environment, then go on."""
    line = sys.stdin.readline()
    if not line:  # the supervisor thought better of it
        raise SystemExit(0)
    os.environ.update(json.loads(line))
