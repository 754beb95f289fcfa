"""A streaming replica of the embedded PostgreSQL, beside it: copied once, then it follows. Nothing is lost with it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final

from nbpulse.embedded.postgresql import EmbeddedPostgres
from nbpulse.embedded.server import make_tie_to_parent
from nbpulse.errors import StartupError

_PROGRESS: Final = re.compile(r"(\d+)/(\d+) kB \(")


class EmbeddedReplica(EmbeddedPostgres):
    """
    Follows the primary of the same data directory through a replication slot, which the caller keeps.

    `start` first copies the primary where there is nothing here yet, or what is here is of another database; `tell`
    hears how far the copy is, as bytes done and bytes in all.
    """

    name: ClassVar[str] = "postgresql-replica"

    def __init__(
        self,
        data_dir: Path,
        *,
        primary_port: int,
        login: str,
        password: str,
        slot: str,
        port: int = 0,
        tell: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        super().__init__(data_dir, port=port)
        self._primary_port = primary_port
        self._login = login
        self._login_password = password
        self._slot = slot
        self._tell = tell

    @property
    def is_copied(self) -> bool:
        """Whether there is a copy of the primary to go on from."""
        return self._cluster.exists() and _read_system(self._cluster) == _read_system(self._primary_cluster)

    @property
    def _primary_cluster(self) -> Path:
        return self.data_dir / EmbeddedPostgres.name / "data"

    @property
    def _password_file(self) -> Path:
        """The form that libpq reads, so that the password stands on no command line."""
        return self.directory / "primary.pgpass"

    def discard(self) -> None:
        """Forget the copy: it can follow no longer. The server must be stopped."""
        shutil.rmtree(self._cluster, ignore_errors=True)

    def _read_password(self) -> str:
        """The primary's: roles are copied too."""
        self._write_secret(self._password_file, f"*:*:*:{self._login}:{self._login_password}\n")
        return (self.data_dir / EmbeddedPostgres.name / "password").read_text()

    def _read_version(self) -> int:
        return int((self._primary_cluster / "PG_VERSION").read_text())

    def _compose_command(self) -> list[str]:
        if not self.is_copied:
            self.discard()
        command = super()._compose_command()
        conninfo = f"{self._compose_conninfo()} application_name={self._slot}"
        following = {
            "primary_conninfo": conninfo,
            "primary_slot_name": self._slot,
            # A question that is being answered here is not broken off for a row that is cleared away there meanwhile.
            "hot_standby_feedback": "on",
        }
        return [*command, *(part for name, value in following.items() for part in ("-c", f"{name}={value}"))]

    def _compose_conninfo(self) -> str:
        path = str(self._password_file).replace("\\", "\\\\").replace("'", "\\'")
        return f"host=127.0.0.1 port={self._primary_port} user={self._login} passfile='{path}'"

    def _make_cluster(self, bin_dir: Path) -> None:
        """Under another name until it is whole, as the primary's."""
        unfinished = self.directory / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        if not (bin_dir / "pg_basebackup").exists():
            raise StartupError("NB-3114")
        command: list[str | Path] = [
            bin_dir / "pg_basebackup",
            "-d",
            self._compose_conninfo(),
            "-D",
            unfinished,
            "-S",
            self._slot,
        ]
        command += ["-X", "stream", "-c", "fast", "-w", "-P"]
        process: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=make_tie_to_parent(self._stop_signals[0]),  # noqa: PLW1509 - as the server itself
            **self._process_options(),
        )
        assert process.stderr is not None  # noqa: S101 - a pipe
        with self.log_path.open("ab") as log, process.stderr:
            for line in process.stderr:
                if found := _PROGRESS.search(line.decode(errors="replace")):
                    self._tell(int(found[1]) * 1024, int(found[2]) * 1024)
                else:
                    log.write(line)
        if code := process.wait():
            raise StartupError("NB-3112", exit_code=code, log=self.log_path)
        self._write_secret(unfinished / "standby.signal", "")
        unfinished.rename(self._cluster)


def _read_system(cluster: Path) -> bytes:
    """The number that a database and its copies share: the first eight bytes of its control file."""
    with (cluster / "global" / "pg_control").open("rb") as file:
        return file.read(8)
