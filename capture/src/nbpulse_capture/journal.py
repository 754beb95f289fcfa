"""What a kernel has told and its sender has not stored yet: in memory, and in a file should the kernel be killed.

A line in a file of one's own costs a run a tenth of what the outbox costs (bench/capture_cost.py), and waits for nobody
who writes there. The sender's thread brings what is here into the outbox, before it sends or waits for a server.

Promises: an event is given up here when it is in the outbox, or when its student has left. What a killed kernel has
left is taken over by whoever sends next. Where the file cannot be written (full, gone) events are in memory only; of
those above a limit the oldest are dropped and counted.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from nbpulse_capture.faults import FaultLog
from nbpulse_capture.membership import get_data_dir, make_private_dir
from nbpulse_capture.outbox import Outbox, to_json

MEMORY_LIMIT = 2_000
NAMES = "journal-*"
YOUNG_S = 60.0  # a new file's owner is given this long to lock it


class Entry(NamedTuple):
    """One event, whose it is, and the notebook's file if it is known."""

    event: dict[str, Any]
    account: str
    notebook_file: str | None


class Journal:
    """One kernel's. put() is its main thread's, all else the sender's."""

    def __init__(self, faults: FaultLog) -> None:
        self._faults = faults
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque()
        self.lost_count = 0  # dropped and not yet told of
        self._file: int | None = None
        self._write = _find_write()
        self.path = get_data_dir() / f"journal-{os.getpid()}-{secrets.token_hex(4)}"

    def put(self, event: dict[str, Any], account: str, notebook_file: str | None) -> None:
        """Keep it; never raises."""
        entry = Entry(event, account, notebook_file)
        with self._lock:
            self._entries.append(entry)
            self._drop_what_is_too_much()
            try:
                if self._file is None:
                    self._file = _open_locked(self.path)
                line = f"\n{to_json(entry)}".encode()
                if self._write(self._file, line) < len(line):  # the next line begins anew all the same
                    raise OSError("the disk is full")
            except OSError as error:
                self._faults.note(error, "outbox")

    def store(self, outbox: Outbox, account: str) -> None:
        """Bring all that is here and the account's own into the outbox; raises as it does, and then keeps all."""
        with self._lock:
            taken, self._entries = self._entries, deque()
        try:
            if taken:
                with outbox.together():
                    for entry in taken:
                        if entry.account == account:
                            outbox.put(*entry)
        except BaseException:
            with self._lock:
                self._entries.extendleft(reversed(taken))
                self._drop_what_is_too_much()
            raise
        if taken:
            self._empty_file()

    def discard(self) -> None:
        """Nobody's any more."""
        with self._lock:
            had_some = bool(self._entries)
            self._entries.clear()
        if had_some:
            self._empty_file()

    def take_lost_count(self) -> int:
        """How many were dropped since it was last asked."""
        with self._lock:
            count, self.lost_count = self.lost_count, 0
        return count

    def close(self) -> None:
        """The kernel ends; a file that still holds something stays for whoever sends next."""
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                os.close(file)
                if not self._entries:
                    self.path.unlink(missing_ok=True)

    def _empty_file(self) -> None:
        with self._lock:
            if self._file is not None and not self._entries:
                os.ftruncate(self._file, 0)

    def _drop_what_is_too_much(self) -> None:
        while len(self._entries) > MEMORY_LIMIT:
            self._entries.popleft()
            self.lost_count += 1


def erase_account(outbox: Outbox, account: str) -> int:
    """
    Erase all events of an account that has left, from what killed kernels have left too; how many still waited.

    A kernel that lives discards its own within seconds: its sender sees that the student has left.
    """
    adopt_journals(outbox)
    return outbox.erase_account(account)


def adopt_journals(outbox: Outbox, *, but_not: Journal | None = None) -> None:
    """Bring into the outbox what killed kernels have left; an event that is there already is not stored twice."""
    for path in get_data_dir().glob(NAMES):
        if but_not is not None and path == but_not.path:
            continue
        with suppress(OSError):  # it lives, or somebody else was quicker
            seized, file = _seize(path)
            try:
                _adopt(outbox, seized)
            finally:
                if file is not None:
                    os.close(file)


def _adopt(outbox: Outbox, path: Path) -> None:
    content = path.read_bytes()
    if not content and time.time() - path.stat().st_mtime < YOUNG_S:
        return
    with outbox.together():
        for line in content.splitlines():
            with suppress(ValueError, TypeError):  # cut off in the middle, or empty
                outbox.put(*Entry(*json.loads(line)))
    path.unlink()


def _open_locked(path: Path) -> int:
    """A new file that tells others by its lock that its owner lives; on Windows they cannot take what is open."""
    make_private_dir(path.parent)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    _lock(file)
    return file


def _seize(path: Path) -> tuple[Path, int | None]:
    """Raises OSError where its owner lives. The second closes it."""
    file = os.open(path, os.O_RDWR)
    if _lock(file, raises=True):
        return path, file
    os.close(file)
    taken = path.with_suffix(".taken")
    return path.replace(taken), None


def _lock(file: int, *, raises: bool = False) -> bool:
    """False where this system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if raises:
            os.close(file)
            raise
    return True


def _find_write() -> Callable[[int, bytes], int]:
    """
    os.write(), but the interpreter's lock is kept meanwhile, where that is possible.

    A run begins and ends while ipykernel's IOPub thread has something to send: once that has the lock, a kernel's main
    thread gets it back 0.7 ms later at the 99th percentile, for a write that takes 0.02.
    """
    try:
        import ctypes

        write = ctypes.PyDLL(None, use_errno=True).write
    except (ImportError, OSError, TypeError, AttributeError):  # as on Windows
        return os.write
    write.argtypes, write.restype = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t), ctypes.c_ssize_t

    def write_at_once(file: int, line: bytes) -> int:
        count: int = write(file, line, len(line))
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return count

    return write_at_once
