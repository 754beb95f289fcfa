"""The data directory: whose it is now, and what runs on it.

Promises: one `up` per directory at a time; `running.json` (0600) says what runs while it runs, so that other commands
find it; a dead `up` never blocks the next one, since its lock ends with it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nbpulse.errors import StartupError
from nbpulse.supervisor import end_leftovers

_RUNNING_FILE = "running.json"
_DISK_FREE_MIN_BYTES = 200_000_000


@contextmanager
def hold_directory(data_dir: Path) -> Iterator[None]:
    """
    The data directory is ours alone meanwhile.

    Raises StartupError: another supervisor lives on it (NB-3006), it cannot be written (NB-3014), disk full (NB-3015).
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StartupError("NB-3014", path=data_dir, reason=error.strerror) from error
    try:
        try:
            _lock(descriptor)
        except OSError as error:
            holder = os.pread(descriptor, 20, 0).decode() or "?"
            raise StartupError("NB-3006", path=data_dir, pid=holder) from error
        free_bytes = shutil.disk_usage(data_dir).free
        if free_bytes < _DISK_FREE_MIN_BYTES:
            raise StartupError("NB-3015", path=data_dir, free_mb=free_bytes // 1_000_000)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Until the descriptor is closed or this process ends. Raises OSError when somebody else has it."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 1_000, os.SEEK_SET)  # beyond the text, which others must be able to read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def read_running(data_dir: Path) -> dict[str, Any] | None:
    """What runs on the directory now, as its supervisor wrote it; None when nothing does."""
    try:
        descriptor = os.open(data_dir / "lock", os.O_RDWR)
    except OSError:
        return None
    try:
        _lock(descriptor)
    except OSError:  # somebody is there
        try:
            found: dict[str, Any] = json.loads((data_dir / _RUNNING_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # not yet ready, or about to go
        return found
    finally:
        os.close(descriptor)
    return None


def write_running(data_dir: Path, running: dict[str, Any]) -> None:
    """What `read_running` will give, whole or not at all."""
    path = data_dir / _RUNNING_FILE
    draft = path.with_name(f"{_RUNNING_FILE}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(running, file)
    draft.replace(path)


def forget_running(data_dir: Path) -> None:
    """Nothing runs on the directory any more."""
    (data_dir / _RUNNING_FILE).unlink(missing_ok=True)


def end_previous(data_dir: Path) -> None:
    """End what a killed `up` left running on the directory; the lock must be ours."""
    try:
        found = json.loads((data_dir / _RUNNING_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    end_leftovers([(int(pid), float(started_s)) for pid, started_s in found.get("processes", [])])
    (data_dir / _RUNNING_FILE).unlink(missing_ok=True)
