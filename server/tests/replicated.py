"""A PostgreSQL and its streaming replica, the embedded ones, and the faults a replica can have."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from nbpulse.embedded import EmbeddedPostgres, EmbeddedReplica
from nbpulse.records.owner import open_owner
from nbpulse.records.replication import LOGIN, SLOT, ensure_login, renew_slot
from stores import connect
from working import until

PASSWORD = "replica-of-the-tests"


class Pair:
    """The primary runs; the replica from `start_replica` on."""

    def __init__(self, data_dir: Path) -> None:
        self.primary = EmbeddedPostgres(data_dir)
        self.data_dir = data_dir
        self.replica: EmbeddedReplica | None = None

    def start_replica(self) -> EmbeddedReplica:
        """Copied where there is no copy yet, on the same port as before."""

        async def prepare() -> None:
            async with open_owner(self.primary.url) as owner:
                await ensure_login(owner, PASSWORD)
            await renew_slot(f"postgresql://{LOGIN}:{PASSWORD}@127.0.0.1:{self.primary.port}/nbpulse")

        if self.replica is None:
            self.replica = EmbeddedReplica(
                *(self.data_dir,), primary_port=self.primary.port, login=LOGIN, password=PASSWORD, slot=SLOT
            )
        if not self.replica.is_copied:
            asyncio.run(prepare())
        self.replica.start()
        return self.replica

    @property
    def standby(self) -> EmbeddedReplica:
        assert self.replica is not None
        return self.replica

    def find_replica(self, url: str) -> str:
        """The same login and database at the replica."""
        return url.replace(f":{self.primary.port}/", f":{self.standby.port}/")

    async def ask_replica(self, statement: str) -> object:
        async with connect(self.standby.url) as connection:
            return await connection.fetchval(statement)

    async def pause(self) -> None:
        """It receives and does not replay: it shows what it showed."""
        await self.ask_replica("SELECT pg_wal_replay_pause()")
        await until(lambda: self.ask_replica("SELECT pg_get_wal_replay_pause_state() = 'paused'"))

    async def resume(self) -> None:
        await self.ask_replica("SELECT pg_wal_replay_resume()")

    async def until_same(self) -> None:
        """It shows all that is committed at the primary by now."""
        async with connect(self.primary.url) as connection:
            lsn = await connection.fetchval("SELECT pg_current_wal_flush_lsn()::text")
        await until(lambda: self.ask_replica(f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn"))

    def kill(self, server: EmbeddedPostgres) -> None:
        """The postmaster and all below it at once, as a machine that goes."""
        signal_family(server, signal.SIGKILL)
        server.stop()


def signal_family(server: EmbeddedPostgres, number: signal.Signals) -> None:
    """To the postmaster and everything below it."""
    parent = psutil.Process(server.pid)
    for one in (parent, *parent.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            os.kill(one.pid, number)


@contextmanager
def run_pair(data_dir: Path) -> Iterator[Pair]:
    """Both run; whatever happens, none of them stays."""
    pair = Pair(data_dir)
    try:
        pair.primary.start()
        pair.start_replica()
        yield pair
    finally:
        for server in (pair.replica, pair.primary):
            if server is not None and server.poll() is None and (server.directory / "launched").exists():
                signal_family(server, signal.SIGCONT)
                os.kill(server.pid, signal.SIGQUIT)  # its directory goes too: no checkpoint
                server.stop()
