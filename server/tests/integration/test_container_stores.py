"""Redis and InfluxDB by the start scripts of compose.yaml: closed to strangers, and they keep what was promised."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError

from container_scripts import Room, Service, make_influxdb, make_redis, stopping
from nbpulse.stream import EventStream
from servers import make_data_dir
from working import until

ADMIN = "nbpulse"


@pytest.fixture
def room() -> Iterator[Room]:
    with make_data_dir() as directory:
        yield Room(directory)


async def start_redis(service: Service, url: str) -> None:
    service.start()

    async def answers() -> bool:
        service.check_running()
        async with Redis.from_url(url) as client:
            with contextlib.suppress(RedisConnectionError):
                return bool(await client.ping())
        return False

    await until(answers)


async def start_influxdb(service: Service, address: str, password: str) -> None:
    """Until it is prepared and the server that stays answers."""
    service.start()

    async def lets_in() -> bool:
        service.check_running()
        if not find_mark(service).exists():
            return False
        with contextlib.suppress(httpx2.TransportError):
            return await show_databases(address, password) == 200
        return False

    await until(lets_in)


def find_mark(service: Service) -> Path:
    return Path(service.environment["INFLUXDB_MARK"])


async def show_databases(address: str, password: str | None) -> int:
    auth = httpx2.BasicAuth(ADMIN, password) if password else None
    async with httpx2.AsyncClient(base_url=address, auth=auth, trust_env=False) as http:
        return (await http.post("/query", data={"q": "SHOW DATABASES"})).status_code


@pytest.mark.parametrize("password", [None, 'a "quoted\\" one'])
async def test_redis_keeps_the_promise_behind_its_password_over_a_kill(room: Room, password: str | None) -> None:
    if password is not None:
        secret = room.secrets / "redis_password"
        secret.chmod(0o644)
        secret.write_text(password + "\n")
    service, url = make_redis(room)
    if password is not None:
        url = f"redis://127.0.0.1:{url.rpartition(':')[2]}?password={password.replace(' ', '%20')}"
    with stopping(service):
        await start_redis(service, url)
        async with Redis.from_url(url) as client:
            stream = EventStream(client)
            assert await stream.read_promise() == "power"
            await stream.close()
            await client.set("kept", "yes")
            port = client.connection_pool.connection_kwargs["port"]
        async with Redis(host="127.0.0.1", port=port) as stranger:
            with pytest.raises(AuthenticationError):
                await stranger.ping()
        service.kill()
        await start_redis(service, url)
        async with Redis.from_url(url, decode_responses=True) as client:
            assert await client.get("kept") == "yes"


@pytest.mark.parametrize("password", [None, "it's a \\ one"])
async def test_influxdb_lets_in_its_administrator_only(room: Room, password: str | None) -> None:
    secret = room.secrets / "influxdb_password"
    if password is not None:
        secret.chmod(0o644)
        secret.write_text(password + "\n")
    service, address = make_influxdb(room)
    with stopping(service):
        await start_influxdb(service, address, password or secret.read_text())
        assert await show_databases(address, None) == 401
        assert await show_databases(address, uuid4().hex) == 401


async def test_influxdb_prepared_half_way_is_prepared_to_the_end(room: Room) -> None:
    service, address = make_influxdb(room)
    password = room.read_secret("influxdb_password")
    with stopping(service):
        await start_influxdb(service, address, password)
        service.kill()
        find_mark(service).unlink()  # the user was made, the mark was not: as if it had died in between
        await start_influxdb(service, address, password)
        assert await show_databases(address, None) == 401


async def test_an_empty_password_starts_nothing(room: Room) -> None:
    for name, make in {"redis_password": make_redis, "influxdb_password": make_influxdb}.items():
        secret = room.secrets / name
        service, _ = make(room)
        secret.chmod(0o644)
        secret.write_text("")
        service.start()
        assert service.process is not None
        assert service.process.wait(30) == 1
        assert "no password in" in service.log
