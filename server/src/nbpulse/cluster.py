"""A Redis or Valkey Cluster as one client: which server holds which key, its connections timed and counted.

Promises: what the client itself follows (MOVED, ASK, a new primary) nobody above it sees; the stream's own connections
(stream/link.py) go by the same map, and say here when it was wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit
from weakref import WeakSet

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.cluster import ClusterNode, ClusterPipeline, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff, NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError

from nbpulse.errors import StartupError
from nbpulse.metrics import PoolFigures, redis_query_durations

SCHEMES: Final = {"redis+cluster": False, "rediss+cluster": True}
"""Of a cluster's URL, each with whether it is spoken to under TLS."""
_ANSWER_LIMIT_S: Final = 1.0
_PORT: Final = 6379

_Item = TypeVar("_Item")


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

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        with redis_query_durations.get(str(args[0]).lower(), redis_query_durations["other"]).time():
            return await super().execute_command(*args, **options)

    def pipeline(self, transaction: Any = None, _: Any = None) -> ClusterPipeline:
        """Many commands at once, each server's together; a transaction only at one server."""
        return _TimedPipeline(self, transaction)  # type: ignore[abstract]

    def find_server(self, key: bytes) -> ClusterNode | None:
        """The primary that holds the key, as far as is known; None before the cluster was first asked."""
        try:
            return self.nodes_manager.get_node_from_slot(key_slot(key))
        except KeyError:
            return None

    async def follow(self, redirection: MovedError | AskError) -> ClusterNode:
        """The server that an answer names; one that is new to us is known from then on."""
        if isinstance(redirection, MovedError):
            await self.nodes_manager.move_slot(redirection)
        found = self.get_node(redirection.host, redirection.port)
        if found is None:
            await self.refresh()
            found = self.get_node(redirection.host, redirection.port)
        return found or ClusterNode(redirection.host, redirection.port, **self.connection_kwargs)

    async def refresh(self, failed: str | None = None) -> None:
        """Read the map anew, last from the server of that name. Raises what the client raises."""
        if self._initialize:
            await self.initialize(last_failed_node_name=failed)
        else:
            await self.nodes_manager.initialize(last_failed_node_name=failed)

    def make_connection(self, server: ClusterNode) -> AbstractConnection:
        """A connection of the caller's own, not opened yet."""
        connection = server.connection_class(**server.connection_kwargs)
        self._made.add(connection)
        return connection

    def open_pubsub(self, server: ClusterNode) -> PubSub:
        """Subscriptions at one server, over a connection of their own that is not opened again by itself."""
        kwargs = {**server.connection_kwargs, "retry": Retry(NoBackoff(), 0), "socket_timeout": None}
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


class _TimedPipeline(ClusterPipeline):
    async def execute(self, raise_on_error: bool = True, allow_redirections: bool = True) -> list[Any]:
        with redis_query_durations["pipeline"].time():
            return await super().execute(raise_on_error, allow_redirections)


def part_by_slot(items: Iterable[_Item], name_key: Callable[[_Item], bytes]) -> list[Sequence[_Item]]:
    """The items in groups whose keys one command may name together."""
    parts: dict[int, list[_Item]] = {}
    for item in items:
        parts.setdefault(key_slot(name_key(item)), []).append(item)
    return list(parts.values())


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
