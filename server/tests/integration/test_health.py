"""/health on real servers, each of which is stopped and made to hang in turn."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from nbpulse.embedded import EmbeddedPostgres, EmbeddedValkey
from servers import InfluxServer, make_data_dir, make_influx
from stage import Stage, serve_api
from stores import create_database, open_stores
from working import until, work

STORES = ("postgresql", "influxdb", "redis")
SEEN_IN = {
    "postgresql": {
        "nbpulse_dead_letters",
        *("nbpulse_series_debt_batches", "nbpulse_series_debt_oldest_seconds"),
        *("nbpulse_series_marks", "nbpulse_series_marks_oldest_seconds"),
    },
    "redis": {"nbpulse_workers", "nbpulse_stream_backlog_events"},
}


@dataclass
class Servers:
    """Servers of this module's own, so that nobody else misses them."""

    postgresql: EmbeddedPostgres
    redis: EmbeddedValkey
    influxdb: InfluxServer
    database_url: str

    def find_pid(self, name: str) -> int:
        if name == "influxdb":
            assert self.influxdb.process is not None
            return self.influxdb.process.pid
        found: int = getattr(self, name).pid
        return found


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with make_data_dir() as directory, make_influx() as influx:
        postgresql, redis = EmbeddedPostgres(Path(directory)), EmbeddedValkey(Path(directory))
        postgresql.start()
        redis.start()
        influx.start()
        try:
            yield Servers(postgresql, redis, influx, asyncio.run(create_database(postgresql.url)))
        finally:
            redis.stop()
            postgresql.stop()


@asynccontextmanager
async def open_http(servers: Servers) -> AsyncIterator[httpx2.AsyncClient]:
    async with (
        serve_api(servers.database_url, servers.redis.url, influx_url=servers.influxdb.url) as (url, _),
        httpx2.AsyncClient(base_url=url, timeout=10, trust_env=False) as http,
    ):
        yield http


async def ask(http: httpx2.AsyncClient, path: str = "/health") -> dict[str, Any]:
    started_s = time.monotonic()
    answer = await http.get(path)
    assert time.monotonic() - started_s < 3, "bounded, whatever hangs"
    body: dict[str, Any] = answer.json()
    return body | {"http": answer.status_code}


async def list_unknown(http: httpx2.AsyncClient) -> set[str]:
    """The metrics whose figure is NaN."""
    answer = await http.get("/metrics")
    assert answer.status_code == 200
    return {line.split()[0] for line in answer.text.splitlines() if line.endswith(" NaN")}


async def test_every_store_tells_its_response_time_and_the_worker_its_lag(servers: Servers) -> None:
    async with open_stores(servers.database_url, servers.redis.url) as stores, open_http(servers) as http:
        async with work(stores):

            async def is_seen() -> bool:
                return bool((await ask(http))["worker"].get("count"))

            await until(is_seen, 10)
            health = await ask(http)
        assert health["status"] == "healthy"
        for name in STORES:
            assert health[name]["status"] == "healthy"
            assert 0 < health[name]["response_time"] < 1_000
        assert health["worker"] == {"status": "healthy", "count": 1, "lag_ms": 0, "backlog": 0}
        told = str(health)
        for secret in (servers.postgresql.password, servers.redis.password, str(servers.postgresql.port), "18."):
            assert secret not in told


async def test_without_a_worker_that_is_said(stage: Stage) -> None:
    await stage.parts.cache._redis.delete("nbpulse:workers")
    health = (await stage.http.get("/health")).json()
    assert (health["status"], health["worker"]["error"]) == ("degraded", "NB-2006")
    assert health["influxdb"] == {"status": "disabled"}


@pytest.mark.parametrize("name", STORES)
async def test_a_server_that_hangs_is_unhealthy_within_the_limit_and_well_again_afterwards(
    servers: Servers, name: str
) -> None:
    async with open_http(servers) as http:
        assert (await ask(http))[name]["status"] == "healthy"
        signal_all(servers, name, signal.SIGSTOP)
        try:
            health = await ask(http)
            assert health["status"] == "degraded"
            assert health[name]["status"] == "unhealthy"
            assert health[name]["error"].startswith("NB-200")
            for other in set(STORES) - {name}:
                assert health[other]["status"] == "healthy"
            assert await list_unknown(http) == SEEN_IN.get(name, set()), "no old figure passes for a new one"
            assert (await ask(http, "/health/live"))["http"] == 200
            assert (await ask(http, "/health/ready"))["http"] == (503 if name == "redis" else 200)
        finally:
            signal_all(servers, name, signal.SIGCONT)

        async def is_well() -> bool:
            return bool((await ask(http))[name]["status"] == "healthy")

        await until(is_well, 20)


@pytest.mark.parametrize("name", STORES)
async def test_a_server_that_is_gone_is_unhealthy_and_well_again_once_it_is_back(servers: Servers, name: str) -> None:
    server = getattr(servers, name)
    async with open_http(servers) as http:
        server.stop()
        try:
            health = await ask(http)
        finally:
            server.start()
        assert health[name]["status"] == "unhealthy"

        async def is_well() -> bool:
            return bool((await ask(http))[name]["status"] == "healthy")

        await until(is_well, 20)


def signal_all(servers: Servers, name: str, number: signal.Signals) -> None:
    """The server and its children: PostgreSQL answers through those."""
    server = psutil.Process(servers.find_pid(name))
    for process in (server, *server.children(recursive=True)):
        process.send_signal(number)
