"""A real Valkey Cluster on free loopback ports: three primaries, a replica for each, and what happens to them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import key_slot
from redis.exceptions import RedisError

from nbpulse.embedded import EmbeddedValkey
from nbpulse.network import find_free_port
from servers import make_data_dir

PASSWORD = "cluster-of-the-tests"
SLOTS = 16_384
NODE_TIMEOUT_MS = 1_000


class ClusterServer(EmbeddedValkey):
    """One of a cluster's servers."""

    def _read_password(self) -> str:
        return PASSWORD  # one for all: they speak to each other with it

    def _list_settings(self, data: Path) -> dict[str, Any]:
        return super()._list_settings(data) | {
            "masterauth": PASSWORD,
            "cluster-enabled": "yes",
            "cluster-port": find_free_port(),
            "cluster-node-timeout": NODE_TIMEOUT_MS,
            "cluster-replica-validity-factor": 0,  # a paused replica may stand for election however late it is
            "cluster-require-full-coverage": "no",
            "min-replicas-to-write": 1,
            "repl-diskless-sync-delay": 0,
        }

    def connect(self) -> Redis:
        """A client of this server alone."""
        return Redis(port=self.port, password=PASSWORD, protocol=2, socket_timeout=20, socket_connect_timeout=20)

    @property
    def name_in_cluster(self) -> str:
        """As redirections and `CLUSTER NODES` have it."""
        return f"127.0.0.1:{self.port}"


class ValkeyCluster:
    """Six servers; the first three were made primaries, what they are now `find_primaries` says."""

    def __init__(self, servers: list[ClusterServer]) -> None:
        self.servers = servers

    @property
    def url(self) -> str:
        """For NBPULSE_REDIS_URL."""
        return f"redis+cluster://:{PASSWORD}@{','.join(one.name_in_cluster for one in self.servers)}"

    async def form(self) -> None:
        """Have them meet, give the slots to the first three and make the others their replicas."""
        for number, server in enumerate(self.servers):
            await ask(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, server in enumerate(self.servers[:3]):
            slots = number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1
            await ask(server, "CLUSTER", "ADDSLOTSRANGE", *slots)
        for other in self.servers[1:]:
            _, bus_port = await ask(other, "CONFIG", "GET", "cluster-port")
            await ask(self.servers[0], "CLUSTER", "MEET", "127.0.0.1", other.port, bus_port)
        for primary, replica in zip(self.servers[:3], self.servers[3:], strict=True):
            primary_id = await ask(primary, "CLUSTER", "MYID")
            await until(lambda: _knows(replica, primary_id))  # noqa: B023 - awaited at once
            await ask(replica, "CLUSTER", "REPLICATE", primary_id)
        await until(self.is_whole)

    async def is_whole(self) -> bool:
        """Every server says that all slots are served, and every primary has a replica that follows."""
        for server in self.servers:
            if server.poll() is not None:
                continue
            if "cluster_state:ok" not in (await ask(server, "CLUSTER", "INFO")).decode():
                return False
            role, *rest = await ask(server, "ROLE")
            if (role == b"master" and not rest[1]) or (role == b"slave" and rest[2] != b"connected"):
                return False
        return len(await self.find_primaries()) == 3

    async def find_primaries(self) -> list[ClusterServer]:
        """Those that run and are primaries with slots, as one of the running servers knows."""
        nodes = await self._list_nodes()
        serving = {place for place, flags, slots in nodes if "master" in flags and "fail" not in flags and slots}
        return [server for server in self.servers if server.poll() is None and server.name_in_cluster in serving]

    async def find_replica(self, primary: ClusterServer) -> ClusterServer:
        """Its replica."""
        _, _, replicas = await ask(primary, "ROLE")
        return next(server for server in self.servers if server.port == int(replicas[0][1]))

    async def _list_nodes(self) -> list[tuple[str, str, list[str]]]:
        asked = next(server for server in self.servers if server.poll() is None)
        lines = (await ask(asked, "CLUSTER", "NODES")).decode().splitlines()
        fields = [line.split() for line in lines]
        return [(one[1].partition("@")[0], one[2], one[8:]) for one in fields]

    async def find_owner(self, key: bytes) -> ClusterServer:
        """The primary that serves the key now, as it says itself."""
        for server in await self.find_primaries():
            ranges = await ask(server, "CLUSTER", "SLOTS")
            for first, last, owner, *_ in ranges:
                if first <= key_slot(key) <= last and int(owner[1]) == server.port:
                    return server
        raise AssertionError(f"nobody serves {key!r}")

    async def move_slot(self, key: bytes, target: ClusterServer, pause_s: float = 0) -> None:
        """Move the slot of the key, its keys one by one as an operator's tool does, `pause_s` between any two steps."""
        slot, source = key_slot(key), await self.find_owner(key)
        source_id, target_id = await ask(source, "CLUSTER", "MYID"), await ask(target, "CLUSTER", "MYID")
        await ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        await ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        await asyncio.sleep(pause_s)
        while keys := await ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 1):
            await ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 20_000, "AUTH", PASSWORD, "KEYS", *keys)
            await asyncio.sleep(pause_s)
        for server in (target, source, *(await self.find_primaries())):
            await ask(server, "CLUSTER", "SETSLOT", slot, "NODE", target_id)

    async def await_successor(self, replica: ClusterServer) -> None:
        """Until it serves what its dead primary served."""

        async def has_taken_over() -> bool:
            return replica in await self.find_primaries()

        await until(has_taken_over)

    async def bring_back(self, server: ClusterServer) -> None:
        """Start a killed one again, as its machine's supervisor would, and wait until the cluster is whole."""
        server.launch()
        await until(self.is_whole)


class PairedServer(EmbeddedValkey):
    """A server, and without a cluster its replica, which is told of it: `follows` is the primary's port."""

    def __init__(self, data_dir: Path, follows: int | None = None) -> None:
        super().__init__(data_dir)
        self.follows = follows

    def _read_password(self) -> str:
        return PASSWORD

    def _list_settings(self, data: Path) -> dict[str, Any]:
        found = super()._list_settings(data)
        found |= {"masterauth": PASSWORD, "min-replicas-to-write": 1, "repl-diskless-sync-delay": 0}
        return found | ({"replicaof": f"127.0.0.1 {self.follows}"} if self.follows else {})

    def connect(self) -> Redis:
        """A client."""
        return Redis(port=self.port, password=PASSWORD, protocol=2, socket_timeout=20, socket_connect_timeout=20)


@contextmanager
def run_pair() -> Iterator[tuple[PairedServer, PairedServer]]:
    """A primary and its replica, no cluster, promise `failover`."""
    with make_data_dir() as directory, ExitStack() as stack:
        servers: list[PairedServer] = []
        for number in range(2):
            (directory / str(number)).mkdir(mode=0o711)
            servers.append(PairedServer(directory / str(number), servers[0].port if servers else None))
            servers[-1].start()
            stack.callback(kill, servers[-1])
        yield servers[0], servers[1]


def kill(server: ClusterServer | PairedServer) -> None:
    """kill -9."""
    if server.poll() is None:
        os.kill(server.pid, signal.SIGKILL)
    server.stop()


async def ask(server: ClusterServer | PairedServer, *command: Any) -> Any:
    """One command to this server alone; the answer as it came."""
    async with server.connect() as client:
        connection = await client.connection_pool.get_connection()
        try:
            await connection.send_command(*command)
            return await connection.read_response(disable_decoding=True)
        finally:
            await client.connection_pool.release(connection)


async def until(holds: Callable[[], Awaitable[bool]], within_s: float = 60) -> None:
    """Wait for it; a server that does not answer yet is asked again."""
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            if await holds():
                return
        except (RedisError, OSError):
            pass
        assert time.monotonic() < deadline_s, "the cluster did not become so in time"
        await asyncio.sleep(0.05)


async def _knows(server: ClusterServer, node_id: bytes) -> bool:
    return node_id in await ask(server, "CLUSTER", "NODES")


@contextmanager
def run_servers(count: int = 6) -> Iterator[list[ClusterServer]]:
    """So many servers that know nothing of each other yet."""
    with make_data_dir() as directory, ExitStack() as stack:
        servers = []
        for number in range(count):
            server = ClusterServer(directory / str(number))
            server.data_dir.mkdir(mode=0o711)
            server.launch()
            stack.callback(kill, server)
            servers.append(server)
        for server in servers:
            server.wait_ready()
        yield servers


@contextmanager
def run_cluster() -> Iterator[ValkeyCluster]:
    """A cluster of three primaries with a replica each."""
    with run_servers() as servers:
        cluster = ValkeyCluster(servers)
        with ThreadPoolExecutor(1) as thread:  # a fixture may be asked for from within a loop
            thread.submit(asyncio.run, cluster.form()).result()
        yield cluster


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[str]:
    """The URL of a cluster, promise `failover`."""
    with run_cluster() as cluster:
        yield cluster.url
