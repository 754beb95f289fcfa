"""The start scripts of compose.yaml's services, run as the images run them, on Debian's programs, no containers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from nbpulse.embedded.programs import Programs, bring_within_reach, choose_account
from nbpulse.network import find_free_port
from servers import ROOT, find_libraries, get_debian_programs

SCRIPTS = ROOT / "ops" / "containers"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SECRETS = tuple(COMPOSE["secrets"])


class Room:
    """One machine's worth of services: a directory, the account they run as, scripts and secrets it can read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.account = choose_account(directory)  # PostgreSQL refuses root
        self.scripts = directory / "containers"
        shutil.copytree(SCRIPTS, self.scripts, ignore=shutil.ignore_patterns("__pycache__"))
        self.secrets = directory / "secrets"
        subprocess.run([self.scripts / "make-secrets.sh", self.secrets], check=True, timeout=20)
        if self.account:  # in the images each file is mounted by itself, past the closed directory
            self.secrets.chmod(0o711)

    def read_secret(self, name: str) -> str:
        return (self.secrets / name).read_text()

    def make_directory(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir(mode=0o700)
        if self.account:
            os.chown(path, self.account.uid, self.account.gid)
        return path

    def find_programs(self, programs: Programs) -> dict[str, str]:
        """PATH and libraries of Debian's programs, within the account's reach."""
        bin_dir = bring_within_reach(programs, self.account, self.directory)
        return {"PATH": f"{bin_dir}:{os.defpath}", "LD_LIBRARY_PATH": find_libraries(programs, bin_dir)}

    def compose_options(self, environment: Mapping[str, str]) -> dict[str, Any]:
        options: dict[str, Any] = {"env": dict(environment), "cwd": self.directory, "stdin": subprocess.DEVNULL}
        if self.account:
            options |= {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}
        return options

    def run(
        self, command: Sequence[str | Path], environment: Mapping[str, str], *, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """To its end, as the account. Raises AssertionError with what it said when it failed and `check`."""
        options = self.compose_options(environment)
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, **options)
        assert not (check and done.returncode), f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


class Service:
    """A script that stays; `log` is all it and its server ever said."""

    def __init__(
        self,
        room: Room,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        stop: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.room, self._command, self.environment, self._stop = room, command, dict(environment), stop
        self._log = room.directory / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, **self.compose_options())

    def compose_options(self) -> dict[str, Any]:
        """What subprocess is told beside the command."""
        return self.room.compose_options(self.environment)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def check_running(self) -> None:
        assert self.process is not None
        assert self.process.poll() is None, self.log[-3_000:]

    def kill(self) -> None:
        """As a container dies: the process and all below it at once, by SIGKILL."""
        assert self.process is not None
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for one in family:
            one.kill()
        psutil.wait_procs(family[1:], timeout=20)
        self.process.wait(20)

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(self._stop)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class Postgres:
    """A PostgreSQL of this room: the primary, or with `primary` its replica."""

    def __init__(self, room: Room, name: str, primary: Postgres | None = None) -> None:
        self.room, self.port, self.primary = room, find_free_port(), primary
        self.volume = room.make_directory(name)
        self.data = self.volume / "cluster"
        packages = ["postgresql-15", "postgresql-client-15", "libpq5"]
        programs = get_debian_programs("postgresql-replication", "usr/lib/postgresql/15/bin", packages)
        self.environment = room.find_programs(programs) | {
            "LC_ALL": "C",
            "PGDATA": str(self.data),
            "REPLICATION_PASSWORD_FILE": str(room.secrets / "replication_password"),
        }
        self.options = ["-c", f"port={self.port}", "-c", "listen_addresses=127.0.0.1"]
        self.options += ["-c", f"unix_socket_directories={self.volume}", "-c", "shared_buffers=16MB"]
        command: list[str | Path] = ["postgres", "-D", self.data]
        if primary is not None:
            command = [room.scripts / "replica-start.sh"]
            self.environment |= {"PRIMARY_HOST": "127.0.0.1", "PRIMARY_PORT": str(primary.port)}
        self.service = Service(room, name, [*command, *self.options], self.environment, signal.SIGINT)

    def make_url(self, database: str = "nbpulse") -> str:
        password = self.room.read_secret("postgres_password")
        return f"postgresql://postgres:{password}@127.0.0.1:{self.port}/{database}"

    def initialise(self) -> None:
        """What the image does with an empty volume: initdb as compose.yaml says, a server for the scripts, its end."""
        secret = self.room.secrets / "postgres_password"
        given = COMPOSE["services"]["postgres-primary"]["environment"]
        self._run("initdb", "-U", "postgres", f"--pwfile={secret}", *given["POSTGRES_INITDB_ARGS"].split())
        # initdb lets this machine replicate. In the containers the replica comes from another, so here too our script's
        # line must be the one that lets it in; the image's own line for everybody says nothing of replication.
        rules = (self.data / "pg_hba.conf").read_text().splitlines()
        kept = [rule for rule in rules if rule.split()[:2] != ["host", "replication"]]
        assert len(kept) == len(rules) - 2
        (self.data / "pg_hba.conf").write_text("\n".join([*kept, "host all all all scram-sha-256", ""]))
        local = " ".join([*self.options, "-c", "listen_addresses=''"])
        self._run("pg_ctl", "-w", "-t", "60", "-o", local, "-l", str(self.volume / "initialising.log"), "start")
        try:
            self.ask(f"CREATE DATABASE {given['POSTGRES_DB']}", "postgres")
            self.prepare_replication()
        finally:
            self._run("pg_ctl", "-w", "-t", "60", "-m", "fast", "stop")

    def prepare_replication(self) -> None:
        """Our script, by the server's socket, as in the image."""
        self._run(self.room.scripts / "primary-init.sh", PGHOST=str(self.volume), PGPORT=str(self.port))

    def ask(self, statement: str, database: str = "nbpulse") -> str:
        """psql's answer as the superuser, by the socket."""
        command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h", str(self.volume)]
        return self._run(*command, "-p", str(self.port), "-d", database, "-c", statement).strip()

    def is_ready(self) -> bool:
        self.service.check_running()
        command = ["pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return self.room.run(command, self.environment, check=False).returncode == 0

    def _run(self, *command: str | Path, **environment: str) -> str:
        return self.room.run(command, self.environment | environment).stdout


@contextmanager
def stopping(*services: Service) -> Iterator[None]:
    """Whatever happens, none of them stays."""
    with ExitStack() as stack:
        for service in services:
            stack.callback(service.stop)
        yield


def make_redis(room: Room) -> tuple[Service, str]:
    """Redis by its script, not yet started, and its URL."""
    port, volume = find_free_port(), room.make_directory("redis")
    environment = room.find_programs(get_debian_programs("redis", "usr/bin", ["redis-server", "redis-tools"]))
    environment["REDIS_PASSWORD_FILE"] = str(room.secrets / "redis_password")
    command = [room.scripts / "redis-start.sh", "--dir", volume, "--port", str(port), "--bind", "127.0.0.1"]
    service = Service(room, "redis", command, environment)
    return service, f"redis://:{room.read_secret('redis_password')}@127.0.0.1:{port}/0"


def make_influxdb(room: Room) -> tuple[Service, str]:
    """InfluxDB by its script, not yet started, and its address."""
    port, volume = find_free_port(), room.make_directory("influxdb")
    environment = room.find_programs(get_debian_programs("influxdb", "usr/bin", ["influxdb", "influxdb-client"]))
    environment |= {
        "HOME": str(volume),
        "INFLUXDB_ADMIN_PASSWORD_FILE": str(room.secrets / "influxdb_password"),
        "INFLUXDB_PORT": str(port),
        "INFLUXDB_MARK": str(volume / "nbpulse-prepared"),
        "INFLUXDB_HTTP_BIND_ADDRESS": f"127.0.0.1:{port}",
        "INFLUXDB_BIND_ADDRESS": f"127.0.0.1:{find_free_port()}",
        "INFLUXDB_CONFIG_PATH": "/dev/null",
        "INFLUXDB_META_DIR": str(volume / "meta"),
        "INFLUXDB_DATA_DIR": str(volume / "data"),
        "INFLUXDB_DATA_WAL_DIR": str(volume / "wal"),
        "INFLUXDB_REPORTING_DISABLED": "true",
    }
    service = Service(room, "influxdb", [room.scripts / "influxdb-start.sh"], environment)
    return service, f"http://127.0.0.1:{port}"
