"""A Redis or Valkey Cluster as one client: which server holds which key, its connections timed and counted.

Promises: what the client itself follows (MOVED, ASK, a new primary) nobody above it sees; a server that is away costs
the answers of its own keys alone, and is told as one server's loss is (the client's own errors of a cluster are none of
RedisError); the stream's own connections (stream/link.py) go by the same map, and say here when it was wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit
from weakref import WeakSet

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.cluster import ClusterNode, ClusterPipeline, PipelineCommand, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff, NoBackoff
from redis.cluster import PRIMARY
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisClusterException, RedisError, TryAgainError
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as LateAnswer

from nbpulse.errors import StartupError
from nbpulse.metrics import PoolFigures, redis_query_durations

SCHEMES: Final = {"redis+cluster": False, "rediss+cluster": True}
"""Of a cluster's URL, each with whether it is spoken to under TLS."""
_BEATS: Final = (b"nbpulse:workers", b"nbpulse:workers:one", b"nbpulse:workers:two")
_ANSWER_LIMIT_S: Final = 1.0
_EXAMINE_LIMIT_S: Final = 0.4
_DESCRIBERS_MAX: Final = 3
_PORT: Final = 6379

_Item = TypeVar("_Item")
_Class = TypeVar("_Class", bound=AbstractConnection)


class Member(NamedTuple):
    """A server of a cluster as it was just now; `replicas`: how many follow a primary, None: it does not answer."""

    name: str
    is_primary: bool
    replicas: int | None


class Cluster(RedisCluster):
    """The client of a cluster; `pool_size` bounds its connections to each server."""

    def __init__(self, url: str, pool_size: int) -> None:
        """
        `url`: `redis+cluster://[[user]:password@]host:port[,host:port ...]`, any of the cluster's servers; nothing is
        asked of them yet. Raises StartupError (NB-3100): it is no such address.
        """
        scheme, _, rest = url.partition("://")
        login, _, hosts = rest.rpartition("@")
        user, _, password = login.partition(":")
        super().__init__(
            startup_nodes=[_read_seed(host) for host in hosts.partition("/")[0].split(",")],
            username=unquote(user) or None,
            password=unquote(password) or None,
            ssl=SCHEMES[scheme],
            max_connections=pool_size,
            socket_connect_timeout=_ANSWER_LIMIT_S,
            socket_timeout=_ANSWER_LIMIT_S,
            # Whoever asks has a deadline of its own, within which a new primary may come up.
            retry=Retry(ConstantBackoff(0.1), 5),
            reinitialize_steps=0,  # a moved slot is noted by itself; the whole map is read when a server fails
        )
        self._made: WeakSet[AbstractConnection] = WeakSet()
        told = tell_of_loss(self.connection_kwargs["connection_class"])
        self.connection_kwargs["connection_class"] = told
        for server in self.startup_nodes:
            server.connection_class = told

    async def initialize(
        self,
        additional_startup_nodes_info: list[tuple[str, int]] | None = None,
        last_failed_node_name: str | None = None,
    ) -> Cluster:
        """Read the map, and from its first primary what commands there are; where that one is away, from the next."""
        for tries_left in reversed(range(_DESCRIBERS_MAX)):
            try:
                await super().initialize(additional_startup_nodes_info, last_failed_node_name)
                break
            except (LostConnection, LateAnswer):
                if not tries_left or not self.get_primaries():
                    raise
                self.nodes_manager.move_node_to_end_of_cached_nodes(self.get_primaries()[0].name)
        return self

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        with redis_query_durations.get(str(args[0]).lower(), redis_query_durations["other"]).time(), _as_lost():
            return await super().execute_command(*args, **options)

    def pipeline(self, transaction: Any = None, _: Any = None) -> ClusterPipeline:  # noqa: ARG002
        """Many commands at once, each server's together; never a transaction."""
        return _Pipeline(self)  # type: ignore[abstract]

    def find_server(self, key: bytes) -> ClusterNode | None:
        """The primary that holds the key, as far as is known; None where none is."""
        try:
            return self.nodes_manager.get_node_from_slot(key_slot(key))
        except (KeyError, RedisClusterException):
            return None

    async def follow(self, redirection: MovedError | AskError) -> ClusterNode:
        """The server that an answer names; one that is new to us is known from then on. Raises RedisError."""
        if isinstance(redirection, MovedError) and redirection.slot_id in self.nodes_manager.slots_cache:
            await self.nodes_manager.move_slot(redirection)
        found = self.get_node(redirection.host, redirection.port)
        if found is None:
            await self.refresh()
            found = self.get_node(redirection.host, redirection.port)
        return found or ClusterNode(redirection.host, redirection.port, **self.connection_kwargs)

    async def refresh(self, failed: str | None = None) -> None:
        """Read the map anew, last from the server of that name. Raises RedisError, OSError."""
        with _as_lost():
            if self._initialize:
                await self.initialize(last_failed_node_name=failed)
            else:
                await self.nodes_manager.initialize(last_failed_node_name=failed)

    async def examine(self) -> list[Member]:
        """Every known server, primaries first, each asked now, within 1 s. Raises RedisError, OSError: none answers."""
        if not self.get_nodes():
            await self.refresh()
        servers = sorted(self.get_nodes(), key=lambda one: (one.server_type != PRIMARY, one.host, one.port))
        members = await asyncio.gather(*map(_examine, servers))
        if lost := next((one.name for one in members if one.replicas is None), None):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EXAMINE_LIMIT_S):
                    await self.refresh(lost)  # it may have been replaced long ago
        return members

    def make_connection(self, server: ClusterNode) -> AbstractConnection:
        """A connection of the caller's own, not opened yet."""
        connection = server.connection_class(**server.connection_kwargs)
        self._made.add(connection)
        return connection

    def open_pubsub(self, server: ClusterNode) -> PubSub:
        """Subscriptions at one server, over a connection of their own that is not opened again by itself."""
        kwargs = {**server.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
        return Redis.from_pool(ConnectionPool(connection_class=server.connection_class, **kwargs)).pubsub()

    def measure(self) -> PoolFigures:
        """Connections now, those included that the stream keeps to itself."""
        servers = self.get_nodes()
        # (The client does not say it itself.)
        connected = [one for server in servers for one in server._connections if one.is_connected]  # noqa: SLF001
        idle = [one for server in servers for one in server._free if one.is_connected]  # noqa: SLF001
        reserved = [one for one in self._made if one.is_connected]
        limit = sum(server.max_connections for server in servers)
        return PoolFigures(len(connected) + len(reserved), len(idle), limit + len(reserved))


class _Pipeline(ClusterPipeline):
    """
    Each server's commands in one write, and each answered for itself.

    The client's own closes every connection to all servers when one is away, those in use too, and asks anew for up to
    half a minute; here the others' commands have run, and those of the one that is away are tried once more by the map
    as it is then.
    """

    def __init__(self, client: Cluster) -> None:
        super().__init__(client)
        self._client = client
        self._commands: list[PipelineCommand] = []

    def execute_command(self, *args: Any, **options: Any) -> ClusterPipeline:
        self._commands.append(PipelineCommand(len(self._commands), *args, **options))
        return self

    async def execute(self, raise_on_error: bool = True, allow_redirections: bool = True) -> list[Any]:
        """The answers; a failure is raised, or (not `raise_on_error`) stands in its command's place."""
        commands, self._commands = self._commands, []
        with redis_query_durations["pipeline"].time(), _as_lost():
            away = await self._ask(commands, frozenset())
            lost = [one for one in commands if isinstance(one.result, LostConnection | LateAnswer | ClusterDownError)]
            if lost:
                await self._client.refresh(next(iter(away), None))
                await self._ask(lost, away)
            for one in commands:
                if allow_redirections and isinstance(one.result, AskError | TryAgainError):
                    try:
                        one.result = await self._client.execute_command(*one.args, **one.kwargs)
                    except (RedisError, OSError) as error:
                        one.result = error
        failures = [one.result for one in commands if isinstance(one.result, Exception)]
        if failures and raise_on_error:
            raise failures[0]
        return [one.result for one in commands]

    async def _ask(self, commands: Sequence[PipelineCommand], away: frozenset[str]) -> frozenset[str]:
        """Put each server's answers into its commands; the names of servers that did not answer."""
        if not self._client.get_primaries():
            await self._client.refresh()
        any_server = random.choice(  # noqa: S311 - what names no key is asked of any
            [one for one in self._client.get_primaries() if one.name not in away] or self._client.get_primaries()
        )
        groups: dict[ClusterNode, list[PipelineCommand]] = {}
        for one in commands:
            key = _find_key(one.args)
            groups.setdefault((self._client.find_server(key) if key else None) or any_server, []).append(one)
        asked = [server.execute_pipeline(group) for server, group in groups.items()]
        failed = set()
        for (server, group), end in zip(
            groups.items(), await asyncio.gather(*asked, return_exceptions=True), strict=True
        ):
            if isinstance(end, RedisError | OSError):
                failed.add(server.name)
                for one in group:
                    one.result = end
            elif isinstance(end, BaseException):
                raise end
        return frozenset(failed)


async def _examine(server: ClusterNode) -> Member:
    replicas = None
    with contextlib.suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(_EXAMINE_LIMIT_S):
            replicas = int((await server.execute_command("INFO", "replication")).get("connected_slaves", 0))
    return Member(server.name, server.server_type == PRIMARY, replicas)


def tell_of_loss(connection_class: type[_Class]) -> type[_Class]:
    """
    Connections of that class whose writes raise LostConnection where the server has just reset them.

    On the standard loop the next read says so; uvloop's write raises a RuntimeError, which no client takes for a loss.
    """

    class ToldConnection(connection_class):  # type: ignore[valid-type, misc]
        async def send_packed_command(self, *args: Any, **options: Any) -> None:
            try:
                await super().send_packed_command(*args, **options)
            except RuntimeError as error:
                if "handler is closed" not in str(error):
                    raise
                raise LostConnection(str(error)) from error

    return ToldConnection


@contextmanager
def _as_lost() -> Iterator[None]:
    """The client's errors of a cluster as a whole as what they are: no answer."""
    try:
        yield
    except (RedisClusterException, KeyError) as error:  # (a slot that its map does not know is a KeyError)
        raise LostConnection(f"{type(error).__name__}: {error}") from error


def _find_key(command: Sequence[Any]) -> bytes | None:
    """The first key of a command of a pipeline; None: it names none."""
    if command[0] == "EVAL" and not int(command[2]):
        return None
    key = command[3 if command[0] == "EVAL" else 1]
    return key if isinstance(key, bytes) else str(key).encode()


def part_by_slot(items: Iterable[_Item], name_key: Callable[[_Item], bytes]) -> list[Sequence[_Item]]:
    """The items in groups whose keys one command may name together."""
    parts: dict[int, list[_Item]] = {}
    for item in items:
        parts.setdefault(key_slot(name_key(item)), []).append(item)
    return list(parts.values())


def name_beats(redis: Redis | Cluster) -> Sequence[bytes]:
    """
    Where workers note that they live (stream/leases.py): on a cluster in three places, each in another third of
    the slots, so that three servers have them as long as slots are dealt out in turn.
    """
    return _BEATS if isinstance(redis, Cluster) else _BEATS[:1]


def is_cluster(url: str) -> bool:
    """Whether the URL names a cluster."""
    return url.partition("://")[0] in SCHEMES


def _read_seed(place: str) -> ClusterNode:
    try:
        found = urlsplit(f"//{place}")
        if not found.hostname:
            raise ValueError("no host")
        return ClusterNode(found.hostname, found.port or _PORT)
    except (ValueError, OSError) as error:
        raise StartupError("NB-3100", detail=f"{place or 'no host'}: {error}") from error
