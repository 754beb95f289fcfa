"""The example proxies before two real APIs: the way through, what they keep out, and restarts that nobody notices."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import get_args

import asyncpg
import pytest

from proxies import Kind, make_proxy_environment, run_proxy, write_config
from rolling import restart_all
from servers import make_data_dir
from torture.connections import Connection, get
from torture.systems import System, find_free_port

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with make_data_dir() as one:
        yield one


@pytest.fixture
async def system(directory: Path) -> AsyncIterator[System]:
    """Two APIs and two workers; started on the same data by each test."""
    async with System(directory / "data", api_count=2, worker_count=2) as one:
        yield one


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_example_is_one_that_the_proxy_takes(kind: Kind, directory: Path) -> None:
    place = directory / f"checked-{kind}"
    place.mkdir()
    urls = ["http://127.0.0.1:8643", "http://127.0.0.1:8644"]
    command = write_config(kind, place, urls, find_free_port(), find_free_port())
    check = "-t" if kind == "nginx" else "-c"
    done = subprocess.run(
        [*command, check], env=make_proxy_environment(kind), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower(), done.stderr


@pytest.mark.parametrize("kind", get_args(Kind))
async def test_everything_restarts_one_after_the_other_and_every_board_shows_the_class(
    kind: Kind, directory: Path, system: System
) -> None:
    with run_proxy(kind, directory / kind, system.api_urls) as (url, plain_url):
        redirect = await get(f"{plain_url}/courses/x")
        assert (redirect.status, redirect.headers["location"][:8]) == (308, "https://")
        assert (await get(f"{url}/metrics")).status == 404
        ready = await get(f"{url}/health/ready", deadline_s=20)
        assert ready.status == 200
        await lie_about_address(url)
        seen = await restart_all(system, url, directory / f"{kind}.journal", seed=len(kind))
    assert await read_refused_networks(system) == {"127.0.0.0/24"}, "what a client says of itself is not believed"
    print(f"\n{kind}: boards were away for {seen.absences_s} s, {seen.connects} connects")  # noqa: T201
    assert seen.verdict.problems == []
    assert seen.answered
    assert seen.gaps == []
    assert seen.connects > len(seen.absences_s), "some board was served by another process than before"


async def lie_about_address(url: str) -> None:
    """Be refused, and say that one is somebody else."""
    connection = Connection(url)
    lie = "X-Forwarded-For: 203.0.113.9\r\n"
    answer = await connection.request("GET", "/api/v1/me", token="nbp_wrong", headers=lie)
    connection.close()
    assert answer.status == 401


async def read_refused_networks(system: System) -> set[str]:
    """From where people were refused whom nobody knows, by the audit log."""
    owner = await asyncpg.connect(system.read_running()["admin_database_url"])
    try:
        rows = await owner.fetch("SELECT DISTINCT facts->>'network' AS network FROM audit_log WHERE facts ? 'network'")
    finally:
        await owner.close()
    return {row["network"] for row in rows}
