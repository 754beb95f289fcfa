"""
Makes this interpreter as poor as Windows' before our package is imported, then runs what `sys.argv[1]` names.

What cannot be played on Linux: the path classes of `os` and `pathlib`, files that cannot be replaced while open.
"""

from __future__ import annotations

import asyncio  # noqa: F401 - the standard library's own Windows halves must not be looked for
import os
import runpy
import signal
import socket  # noqa: F401
import sqlite3  # noqa: F401
import ssl  # noqa: F401
import subprocess  # noqa: F401
import sys

import ipykernel.kernelapp  # noqa: F401
import jupyter_server.serverapp  # noqa: F401
import tornado.web  # noqa: F401
import zmq  # noqa: F401

POSIX_MODULES = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty")
POSIX_CALLS = (
    *("fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "getpgid", "setsid", "chown", "fchmod", "fchown"),
    *("killpg", "uname", "sched_getaffinity", "mkfifo", "statvfs", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"),
)
SIGNALS = ("SIGKILL", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGSTOP", "SIGCONT")

for name in POSIX_MODULES:
    sys.modules[name] = None  # type: ignore[assignment]
for name in POSIX_CALLS:
    delattr(os, name)
for name in SIGNALS:
    delattr(signal, name)
os.chmod = lambda path, mode, **_: None  # type: ignore[assignment]
os.umask(0)
_open = os.open
os.open = lambda path, flags, mode=0o777, **more: _open(path, flags, 0o666, **more)  # type: ignore[assignment]
sys.platform = "win32"

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
