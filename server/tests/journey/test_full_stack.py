"""The services of compose.yaml as processes: its commands, environment and scripts; other addresses, no containers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import psutil
import pytest

import nbpulse
from container_scripts import COMPOSE, SCRIPTS, Postgres, Room, Service, make_influxdb, make_redis, stopping
from nbpulse.network import find_free_port
from servers import make_data_dir
from stage import make_run
from stores import count_rows
from working import until

MEASUREMENTS = {
    "cell_executions": "execution_duration_ms",
    "learning_progress": "completed_cells",
    "performance_metrics": "error_rate",
}


class OurService(Service):
    """A process of our image."""

    def compose_options(self) -> dict[str, Any]:
        return {"env": self.environment, "cwd": self.room.directory, "stdin": subprocess.DEVNULL}


class Stack:
    """The stores by their scripts, and what compose.yaml would tell our image's services."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.primary = Postgres(room, "primary")
        self.primary.initialise()
        self.replica = Postgres(room, "replica", self.primary)
        self.redis, redis_url = make_redis(room)
        self.influxdb, self.influx_address = make_influxdb(room)
        self.ports = {"8000": find_free_port(), "9100": find_free_port()}
        self._addresses = {
            "postgres-primary:5432": f"127.0.0.1:{self.primary.port}",
            "postgres-replica:5432": f"127.0.0.1:{self.replica.port}",
            "redis:6379": redis_url.rpartition("@")[2].partition("/")[0],
            "influxdb:8086": self.influx_address.removeprefix("http://"),
            "0.0.0.0": "127.0.0.1",
            **{port: str(free) for port, free in self.ports.items()},
        }

    def make_environment(self, name: str) -> dict[str, str]:
        """The service's variables with this machine's addresses; unset ones of the operator's take their defaults."""
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(nbpulse.__file__).parents[1])}
        for variable, given in COMPOSE["services"][name]["environment"].items():
            value = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", given)
            for theirs, here in self._addresses.items():
                value = value.replace(theirs, here)
            environment[variable] = value
        data_dir = self.room.directory / "nbpulse"
        return environment | {"NBPULSE_DATA_DIR": str(data_dir), "SECRETS_DIR": str(self.room.secrets)}

    def make_service(self, name: str) -> Service:
        """Not yet started. As whoever runs the tests: the account of the stores cannot read this Python."""
        command = [sys.executable, SCRIPTS / "start.py", *COMPOSE["services"][name]["command"]]
        return OurService(self.room, name, command, self.make_environment(name))

    async def run(self, *command: str | Path, environment: Mapping[str, str]) -> tuple[int, str, str]:
        """A short process of our image: exit code, stdout, stderr."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=dict(environment)
        )
        async with asyncio.timeout(90):
            said, complained = await process.communicate()
        assert process.returncode is not None
        return process.returncode, said.decode(), complained.decode()

    async def run_migrate(self, *arguments: str) -> str:
        """`docker compose run --rm migrate ARGUMENTS`; what it printed."""
        code, said, complained = await self.run(
            SCRIPTS / "start.py", *arguments, environment=self.make_environment("migrate")
        )
        assert code == 0, complained
        return said

    async def is_healthy(self, service: Service, *arguments: str) -> bool:
        """By the image's health check."""
        check = SCRIPTS / "check_health.py"
        return (await self.run(check, *arguments, environment=service.environment))[0] == 0

    async def start_healthy(self, service: Service, *arguments: str) -> None:
        """Started, and healthy from then on; not healthy before."""
        assert not await self.is_healthy(service, *arguments)
        service.start()

        async def is_healthy() -> bool:
            service.check_running()
            return await self.is_healthy(service, *arguments)

        await until(is_healthy)

    async def count_points(self, measurement: str, field: str) -> int:
        """Points in InfluxDB."""
        auth = httpx2.BasicAuth("nbpulse", self.room.read_secret("influxdb_password"))
        query = {"db": "nbpulse", "q": f'SELECT count("{field}") FROM "{measurement}"'}
        async with httpx2.AsyncClient(base_url=self.influx_address, auth=auth, trust_env=False) as http:
            results = (await http.post("/query", data=query)).json()["results"]
        return int(results[0]["series"][0]["values"][0][1]) if "series" in results[0] else 0


@pytest.fixture
def stack() -> Iterator[Stack]:
    """Its stores started."""
    with make_data_dir() as directory:
        built = Stack(Room(directory))
        stores = (built.primary.service, built.replica.service, built.redis, built.influxdb)
        with stopping(*stores):
            for store in stores:
                store.start()
            yield built


@asynccontextmanager
async def run_ours(stack: Stack) -> AsyncIterator[tuple[Service, Service]]:
    """API and worker in compose.yaml's order: the primary answers, migrate ends well, then they."""
    await until(lambda: asyncio.to_thread(stack.primary.is_ready))
    await stack.run_migrate("migrate")
    api, worker = stack.make_service("api"), stack.make_service("worker")
    with stopping(api, worker):
        await stack.start_healthy(api)
        await stack.start_healthy(worker, "worker")
        yield api, worker


async def test_an_event_reaches_the_primary_the_replica_and_influxdb(stack: Stack) -> None:
    url = f"http://127.0.0.1:{stack.ports['8000']}"
    async with run_ours(stack) as (api, worker), httpx2.AsyncClient(base_url=url, timeout=10, trust_env=False) as http:
        linked = json.loads(await stack.run_migrate("link", "--json"))
        public_url, _, code = linked["teacher_link"].partition("/#code=")
        assert public_url == stack.make_environment("api")["NBPULSE_PUBLIC_URL"]
        signed_in = await http.post("/api/v1/sign-in", json={"code": code})
        assert [course["id"] for course in signed_in.json()["courses"]] == [linked["course_id"]]

        joining = {"join_code": linked["join_code"], "display_name": "鈴木 大翔"}
        token = (await http.post("/api/v1/join", json=joining)).json()["token"]
        run = make_run()
        taken = await http.post("/api/v1/events", json=run, headers={"Authorization": f"Bearer {token}"})
        assert (taken.status_code, taken.json()["status"]) == (202, "received")

        for server in (stack.primary, stack.replica):
            await until(partial(is_stored, server.make_url()))
        for measurement, field in MEASUREMENTS.items():
            await until(partial(stack.count_points, measurement, field))

        async def is_whole() -> bool:  # a worker says that it works a second after its start
            health = (await http.get("/health")).json()
            parts = {health[part]["status"] for part in ("postgresql", "replicas", "influxdb", "redis", "worker")}
            return (health["status"], health["promise"], parts) == ("healthy", "power", {"healthy"})

        await until(is_whole)

        async def is_read_from_the_replica() -> bool:
            answer = await http.get(f"/api/v1/courses/{linked['course_id']}/sessions")
            assert answer.status_code == 200, answer.text
            return "NBPULSE-As-Of" in answer.headers and len(answer.json()["sessions"]) == 1

        await until(is_read_from_the_replica)
        await asyncio.to_thread(worker.stop)
        await asyncio.to_thread(api.stop)
        assert [one.process.returncode for one in (api, worker) if one.process] == [0, 0]
        assert not await stack.is_healthy(api)


async def is_stored(database_url: str) -> bool:
    try:
        return await count_rows(database_url, "events") == [1]
    except (OSError, asyncpg.CannotConnectNowError, asyncpg.UndefinedTableError, asyncpg.InvalidCatalogNameError):
        return False  # the replica is still being made


async def test_api_and_worker_know_no_password_of_the_owner(stack: Stack) -> None:
    async with run_ours(stack) as ours:
        for service in ours:
            assert service.process is not None
            given = "\n".join(psutil.Process(service.process.pid).environ().values())
            assert stack.room.read_secret("redis_password") in given
            assert stack.room.read_secret("postgres_password") not in given
            assert stack.room.read_secret("replication_password") not in given
        asked = "SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name = 'nbpulse' ORDER BY 1"
        assert stack.primary.ask(asked).split() == ["nbpulse_api", "nbpulse_worker"]
