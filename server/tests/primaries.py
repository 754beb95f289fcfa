"""Several real PostgreSQL primaries on this machine: a directory and shard databases, set up by the command itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from typer.testing import CliRunner

from nbpulse import cli
from nbpulse.api.app import ApiOptions, create_app
from nbpulse.embedded import EmbeddedPostgres
from nbpulse.events import ReceivedEvent
from nbpulse.preparation import make_passwords
from nbpulse.records.owner import open_owner, set_passwords
from nbpulse.resources import Resources, open_resources
from nbpulse.settings import Settings
from nbpulse.shards import SHARD_COUNT
from servers import ROOT, make_data_dir
from stage import serve_app
from stores import KEY, connect, create_database

SHARD_TABLES = (
    *("event_ids", "events", "event_contents", "learning_sessions", "learner_states", "learner_cells", "help_requests"),
)


def keep_figures(name: str, figures: dict[str, Any]) -> None:
    """What a full run measured, as bench/results/<name>.json."""
    path = ROOT / "bench" / "results" / f"{name}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")


class LogicalPostgres(EmbeddedPostgres):
    """The embedded server as an operator sets it up for several primaries."""

    def _compose_command(self) -> list[str]:
        # The second: how soon a follower tries again after the other was away; 5 s by itself.
        return [*super()._compose_command(), "-c", "wal_level=logical", "-c", "wal_retrieve_retry_interval=200ms"]

    def revive(self) -> None:
        """Start again what was killed; it ends with the thread that does so."""
        assert self._process is not None
        self._process.wait(20)
        self._spawn(self._compose_command())
        self.wait_ready()


class Primaries(NamedTuple):
    """A directory and its shard databases by name, `main` the first; servers are in the same order."""

    directory: Path
    urls: dict[str, str]
    servers: dict[str, LogicalPostgres]

    def make_settings(self, redis_url: str, worker: str = "worker-1", **more: Any) -> Settings:
        return Settings(
            data_dir=self.directory,
            database_url=self.urls["main"],
            redis_url=redis_url,
            encryption_keys=KEY,
            worker_name=worker,
            promise="memory",
            **more,
        )

    @asynccontextmanager
    async def open_worker(self, redis_url: str, worker: str = "worker-1") -> AsyncIterator[Resources]:
        """As a worker process opens its stores, under its own login everywhere."""
        async with open_resources(
            self.make_settings(redis_url, worker), login="nbpulse_worker", pool_size=8
        ) as resources:
            yield resources

    @asynccontextmanager
    async def serve_api(self, redis_url: str, **more: Any) -> AsyncIterator[tuple[str, Resources]]:
        """An API process on them (`more`: settings): its URL, and its stores, each under the API's own login."""
        opened: list[Resources] = []

        @asynccontextmanager
        async def open_noted() -> AsyncIterator[Resources]:
            async with self.open_api(redis_url, **more) as resources:
                opened.append(resources)
                yield resources

        async with serve_app(create_app(open_noted, ApiOptions())) as url:
            yield url, opened[0]

    @asynccontextmanager
    async def open_api(self, redis_url: str, **more: Any) -> AsyncIterator[Resources]:
        """As an API process opens its stores."""
        settings = self.make_settings(redis_url, **more)
        async with open_resources(settings, login="nbpulse_api", pool_size=6) as resources:
            yield resources

    def make_environment(self, redis_url: str = "") -> dict[str, str]:
        return {
            "NBPULSE_DATA_DIR": str(self.directory),
            "NBPULSE_DATABASE_URL": self.urls["main"],
            "NBPULSE_REDIS_URL": redis_url,
            "NBPULSE_ENCRYPTION_KEYS": KEY,
            "PGPASSFILE": str(self.directory / "pgpass"),
        }

    def run(self, *arguments: str) -> str:
        """`nbpulse shard ...` in this process; what it printed. Raises what it raised."""
        return self.invoke("shard", *arguments)

    def invoke(self, *arguments: str, redis_url: str = "", **more: str) -> str:
        """`nbpulse ...` as above; `more`: settings beside its own."""
        done = CliRunner().invoke(cli.app, list(arguments), env=self.make_environment(redis_url) | more)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    async def add_alone(self) -> Primaries:
        """A site of one database, another one of the directory's server."""
        alone = self._replace(urls={"main": await create_database(self.servers["main"].url)})
        await set_logins(self)  # the server's, as they are here
        return alone

    async def assign(self, shards: Mapping[int, str]) -> None:
        """Empty shards to other databases, without a move."""
        for shard, name in shards.items():
            async with connect(self.urls["main"]) as directory, connect(self.urls[name]) as there:
                await directory.execute("UPDATE shard_owners SET is_here = FALSE WHERE shard = $1", shard)
                await there.execute("UPDATE shard_owners SET is_here = TRUE, epoch = 2 WHERE shard = $1", shard)
                await directory.execute("UPDATE shard_map SET database = $2, epoch = 2 WHERE shard = $1", shard, name)

    async def count(self, table: str, where: str = "true") -> dict[str, int]:
        """Rows of a table in each database."""
        counts = {}
        for name, url in self.urls.items():
            async with connect(url) as connection:
                counts[name] = await connection.fetchval(f"SELECT count(*) FROM {table} WHERE {where}")
        return counts


@contextmanager
def run_primaries(names: Sequence[str]) -> Iterator[Primaries]:
    """A migrated directory `main` and empty databases of these names, each on a server of its own, none added yet."""

    with make_data_dir() as directory, ExitStack() as stack:
        servers: dict[str, LogicalPostgres] = {}
        for name in ("main", *names):
            server = servers[name] = LogicalPostgres(directory / name)
            server.data_dir.mkdir(mode=0o711)
            server.start()
            stack.callback(_stop, server)
        urls = {name: server.url for name, server in servers.items()}
        urls["main"] = asyncio.run(create_database(servers["main"].url))
        primaries = Primaries(directory, urls, servers)
        asyncio.run(set_logins(primaries))
        (directory / "pgpass").touch(mode=0o600)
        (directory / "pgpass").write_text(
            "".join(
                f"{parts.hostname}:{parts.port}:*:{parts.username}:{parts.password}\n"
                for parts in map(urlsplit, urls.values())
            )
        )
        yield primaries


@contextmanager
def run_site(names: Sequence[str]) -> Iterator[Primaries]:
    """As `run_primaries`, all added; the shards lie by turns at `main` and at these."""
    with run_primaries(names) as started:
        for name in names:
            started.run("add", name, "--url", started.urls[name])
        homes = {number: ("main", *names)[number % (len(names) + 1)] for number in range(SHARD_COUNT)}
        asyncio.run(started.assign({number: name for number, name in homes.items() if name != "main"}))
        yield started


async def store(worker: Resources, events: Sequence[ReceivedEvent]) -> None:
    """Until all of it is in the ledger, and every point that is owed in the time series."""
    left = list(events)
    async with asyncio.timeout(60):
        while left:
            recorded = await worker.ledger.record_events(left)
            left = [one for one in left if (one.user_id, one.event_id) in recorded.postponed]
            await asyncio.sleep(0.02 if left else 0)
    for debt in await worker.ledger.find_debts(older_than_s=0, limit=1_000):
        await worker.series.write_points(debt.points)
        await worker.ledger.settle_debt(debt.debt_id)  # type: ignore[arg-type]


async def set_logins(primaries: Primaries) -> None:
    """Give the directory's server the passwords that the data directory stands for."""
    async with open_owner(primaries.urls["main"]) as pool:
        await set_passwords(pool, make_passwords(primaries.make_settings("")))


def _stop(server: LogicalPostgres) -> None:
    try:
        os.kill(server.pid, signal.SIGQUIT)  # its directory goes too
    finally:
        server.stop()
