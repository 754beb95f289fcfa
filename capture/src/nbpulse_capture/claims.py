"""Who tells of a kernel: the Jupyter server that has claimed it, else the kernel itself.

A server makes a directory of its own, named by its process id and the moment of its start, and names it to its
kernels by an environment variable. In it lies one file for each kernel that it is really observing, touched every
few seconds. A kernel keeps silent only while that file is there and fresh and its parent is still the process that
started it. So a server without the extension, one that has died or hangs, and one whose observing has failed
silence nobody; nor does one that merely passed the variable on (a terminal, a nested kernel). Both telling at once
does no harm: they agree on the ids.

That a server lives is told by a lock on a file in its directory, which no crash leaves behind and no process id can
fake; SQLite's, since that is the same on every system.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path

from nbpulse_capture.execution import format_time
from nbpulse_capture.membership import get_data_dir, make_private_dir, make_private_file

SERVER_VARIABLE = "NBPULSE_CAPTURE_SERVER"
BEAT_EVERY_S = 2.0
STALE_AFTER_S = 10.0
FORGOTTEN_AFTER_S = 30 * 86_400.0


class ServerClaims:
    """What this server observes. Nothing is written before the first claim."""

    def __init__(self) -> None:
        self.owner = f"{os.getpid()}-{int(time.time() * 1000)}"
        self.directory = get_servers_dir() / self.owner
        self._lock: sqlite3.Connection | None = None
        self._beaten_at_s = float("-inf")
        self.kernel_ids: set[str] = set()

    def claim(self, kernel_id: str) -> None:
        """From now on this server tells of that kernel. Raises OSError or sqlite3.Error."""
        if self._lock is None:
            make_private_dir(get_data_dir())
            make_private_dir(self.directory)
            self._lock = _lock(self.directory)
        self._touch(kernel_id)
        self.kernel_ids.add(kernel_id)

    def release(self, kernel_id: str) -> None:
        """The kernel may tell of itself again."""
        self.kernel_ids.discard(kernel_id)
        (self.directory / kernel_id).unlink(missing_ok=True)

    def beat(self) -> None:
        """Say that the claims still hold; to be called more often than needed."""
        if time.monotonic() - self._beaten_at_s < BEAT_EVERY_S:
            return
        self._beaten_at_s = time.monotonic()
        for kernel_id in self.kernel_ids:
            self._touch(kernel_id)
        if self._lock is not None:
            os.utime(self.directory / "alive")

    def _touch(self, kernel_id: str) -> None:
        os.close(os.open(self.directory / kernel_id, os.O_WRONLY | os.O_CREAT, 0o600))
        os.utime(self.directory / kernel_id)

    def close(self) -> None:
        """The server ends in good order."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        shutil.rmtree(self.directory, ignore_errors=True)


class KernelClaim:
    """The same seen from inside a kernel."""

    def __init__(self, kernel_id: str) -> None:
        directory = os.environ.get(SERVER_VARIABLE)
        self._file = os.path.join(directory, kernel_id) if directory else None  # noqa: PTH118 - as below
        self._parent_pid = os.getppid()

    def is_held(self) -> bool:
        """Whether a server tells of this kernel now; costs one `stat` (about 2 us)."""
        if self._file is None or os.getppid() != self._parent_pid:
            return False
        try:
            beaten_at_s = os.stat(self._file).st_mtime  # noqa: PTH116 - twice per run; Path costs ten times as much
        except OSError:
            return False
        return abs(time.time() - beaten_at_s) < STALE_AFTER_S


def get_servers_dir() -> Path:
    """One directory in it for each Jupyter server of this user."""
    return get_data_dir() / "servers"


def find_death(owner: str) -> str | None:
    """When a server was last known to live (as the wire writes times); None while it does."""
    directory = get_servers_dir() / owner
    alive = directory / "alive"
    try:
        beaten_at_s = alive.stat().st_mtime
    except OSError:
        started_ms = owner.rpartition("-")[2]
        return format_time(datetime.fromtimestamp(int(started_ms) / 1000, UTC)) if started_ms.isdigit() else ""
    try:
        _lock(directory).close()
    except sqlite3.OperationalError:
        return None
    return format_time(datetime.fromtimestamp(beaten_at_s, UTC))


def remove_dead_servers() -> None:
    """Clear away the directories of servers that live no more."""
    for directory in get_servers_dir().glob("*-*"):
        if find_death(directory.name) is not None:
            shutil.rmtree(directory, ignore_errors=True)


def _lock(directory: Path) -> sqlite3.Connection:
    """Hold the directory's lock while the connection is open; raises sqlite3.OperationalError where another does."""
    make_private_file(directory / "alive")
    db = sqlite3.connect(directory / "alive", timeout=0, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = MEMORY")
        db.execute("BEGIN EXCLUSIVE")
    except BaseException:
        db.close()
        raise
    return db
