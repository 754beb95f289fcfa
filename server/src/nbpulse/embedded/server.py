"""One server process on one directory: its account, lock, password, leftovers, start and stop."""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from typing import Any, ClassVar

import psutil

from nbpulse.embedded.programs import Account, choose_account, is_reachable
from nbpulse.errors import StartupError

_SERVER_PROGRAMS = frozenset({"postgres", "valkey-server", "redis-server"})
_LOG_KEPT_BYTES = 10_000_000
_PR_SET_PDEATHSIG = 1


class EmbeddedServer(ABC):
    """
    One server process on `data_dir / name`.

    `start` returns when the server answers; after `poll` has reported its death, `start` again brings it back
    on the same port and data. All methods belong to the main thread.
    """

    name: ClassVar[str]
    _stop_signals: ClassVar[Sequence[signal.Signals]]

    def __init__(self, data_dir: Path, *, port: int = 0) -> None:
        self.data_dir = data_dir.absolute()
        self.directory = self.data_dir / self.name
        self._port = port
        self.password = ""
        self._account: Account | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None

    @property
    def port(self) -> int:
        """
        The given one, else one that is drawn when it is first asked for: as late as can be, since until the server
        listens another program may draw the same.
        """
        self._port = self._port or _find_free_port()
        return self._port

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect, password included; known after `launch`."""

    @property
    def pid(self) -> int:
        """The process id of the server launched last."""
        if self._process is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """What the server itself says."""
        return self.directory / "log"

    def poll(self) -> int | None:
        """None while the server runs, else its exit code."""
        return None if self._process is None else self._process.poll()

    def start(self, timeout_s: float = 60) -> None:
        """Starts the server and waits until it answers. Raises StartupError, and then it is not running."""
        self.launch()
        self.wait_ready(timeout_s)

    def launch(self) -> None:
        """Starts the server; `wait_ready` must follow. Several launched, then awaited, start side by side."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("embedded servers die with the thread that starts them: use the main thread")
        self._take_directory()
        try:
            self._stop_leftovers()
            self.password = self._read_password()
            self._spawn(self._compose_command())
        except BaseException:
            self._let_directory_go()
            raise

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Returns when the launched server answers. Raises StartupError, and then it has been stopped."""
        deadline = time.monotonic() + timeout_s
        while not self._is_ready():
            code = self.poll()
            if code is None and time.monotonic() < deadline:
                time.sleep(0.005)
                continue
            self.stop()
            if code is None:
                raise StartupError("NB-3003", server=self.name, timeout_s=timeout_s, log=self.log_path)
            raise StartupError("NB-3002", server=self.name, exit_code=code, log=self.log_path)

    def stop(self, timeout_s: float = 20) -> None:
        """Stops the server, politely first, and lets the directory go. Stopping twice is no error."""
        if self._process is not None:
            for number in self._stop_signals:
                self._process.send_signal(number)
                try:
                    self._process.wait(timeout_s)
                    break
                except subprocess.TimeoutExpired:
                    continue
        self._let_directory_go()

    @abstractmethod
    def _compose_command(self) -> list[str]:
        """The command that runs the server in the foreground, its data and configuration made ready."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether the server launched last answers its clients."""

    def _spawn(self, command: list[str]) -> None:
        if self.log_path.exists() and self.log_path.stat().st_size > _LOG_KEPT_BYTES:
            self.log_path.replace(self.directory / "log.1")
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # It makes one system call and takes no lock, so other threads do not matter.
                preexec_fn=make_tie_to_parent(self._stop_signals[0]),  # noqa: PLW1509
                **self._process_options(),
            )
        started = psutil.Process(self._process.pid).create_time()
        self._write_secret(self.directory / "launched", f"{self._process.pid} {started}")

    def _process_options(self) -> dict[str, Any]:
        # A session of its own: Ctrl-C in the terminal reaches the supervisor, which drains first.
        options: dict[str, Any] = {"cwd": self.directory, "start_new_session": True}
        options["env"] = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        if self._account:
            options |= {"user": self._account.uid, "group": self._account.gid, "extra_groups": []}
        return options

    def _take_directory(self) -> None:
        """Makes the directory, settles whose it is, and locks it for the life of this process."""
        if sys.platform == "win32":
            raise StartupError("NB-3001", server=self.name, platform="Windows")
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._account = choose_account(self.directory)
        if self._account and not is_reachable(self.data_dir, self._account):
            raise StartupError("NB-3004", path=self.data_dir, user=self._account.name)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        if not self._account and self.directory.stat().st_uid != os.geteuid():
            raise StartupError("NB-3005", path=self.directory)
        self._own(self.directory)
        if self._lock is None:
            self._lock = _lock_file(self.directory / "lock")

    def _let_directory_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _stop_leftovers(self) -> None:
        """Stops what a killed starter left running here; the lock is ours, so nobody needs it any more."""
        for number in self._stop_signals:
            for process in self._find_leftovers():
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            deadline = time.monotonic() + 5
            while self._find_leftovers() and time.monotonic() < deadline:
                time.sleep(0.02)
        if leftovers := self._find_leftovers():
            raise StartupError("NB-3007", server=self.name, pid=leftovers[0].pid)

    def _find_leftovers(self) -> list[psutil.Process]:
        """
        The servers that work in this directory.

        Where we may not ask for a process's directory (root in a container without SYS_PTRACE), the process
        launched last is known by its id and start time.
        """
        launched = self.directory / "launched"
        last_pid, last_started = launched.read_text().split() if launched.exists() else ("0", "0")
        found = []
        for process in psutil.process_iter():
            try:
                if process.name() not in _SERVER_PROGRAMS or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                is_last = process.pid == int(last_pid) and abs(process.create_time() - float(last_started)) < 2
                if is_last or Path(process.cwd()).is_relative_to(self.directory.resolve()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def _read_password(self) -> str:
        path = self.directory / "password"
        if not path.exists():
            self._write_secret(path, secrets.token_urlsafe(24))
        return path.read_text()

    def _write_secret(self, path: Path, text: str) -> None:
        """Whole or not at all, readable by the servers' account and root only."""
        unfinished = path.with_name(path.name + ".new")
        unfinished.unlink(missing_ok=True)
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.fsencode(text))
            file.flush()
            os.fsync(file.fileno())
        self._own(unfinished)
        unfinished.replace(path)

    def _own(self, path: Path) -> None:
        if self._account:
            os.chown(path, self._account.uid, self._account.gid)


def _lock_file(path: Path) -> int:
    """A descriptor that holds the lock until it is closed or this process ends; no child inherits it."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 20, 0).decode() or "?"
        os.close(descriptor)
        raise StartupError("NB-3006", path=path.parent, pid=holder) from error
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def make_tie_to_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    """
    What a child runs before it becomes the server: ask the kernel for `death_signal` when its starter dies.

    It runs after the change of user, which would undo the request. Outside Linux the next start cleans up.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # it died before the request
            os._exit(1)

    return tie


def _find_free_port() -> int:
    """
    A free port below those that outgoing connections take (32768 and up on Linux).

    Otherwise clients that try to reconnect while the server restarts can take its port, even by connecting to
    themselves.
    """
    random = SystemRandom()
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
