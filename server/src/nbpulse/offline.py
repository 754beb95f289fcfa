"""The stores of a data directory for the length of one command: those that run, else started for it.

Promises: a running class is not disturbed; nothing is started beside a running supervisor, nothing is left running.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nbpulse.directory import hold_directory
from nbpulse.embedded import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey
from nbpulse.errors import StartupError


@contextmanager
def open_database(data_dir: Path, database_url: str | None) -> Iterator[str]:
    """
    The owner's URL: as given, else of the PostgreSQL in `data_dir`, which is ours alone meanwhile.

    Raises StartupError: no data there (NB-3019), a supervisor is at work there (NB-3006), it does not start.
    """
    if database_url:
        yield database_url
        return
    server = EmbeddedPostgres(data_dir)
    if not (server.directory / "data").exists():
        raise StartupError("NB-3019", path=data_dir)
    with hold_directory(data_dir):
        server.start()
        try:
            yield server.url
        finally:
            server.stop()


@contextmanager
def open_stores(
    data_dir: Path, database_url: str | None, redis_url: str | None, *, may_be_new: bool = False
) -> Iterator[tuple[str, str]]:
    """
    The owner's URL and the stream's: as given, else of the servers in `data_dir`, which is ours alone meanwhile.

    Raises StartupError like `open_database`; with `may_be_new` servers are made where none are.
    """
    needed: list[EmbeddedServer] = []
    if not database_url:
        needed.append(EmbeddedPostgres(data_dir))
    if not redis_url:
        needed.append(EmbeddedValkey(data_dir))
    if not may_be_new and not all((server.directory / "data").exists() for server in needed):
        raise StartupError("NB-3019", path=data_dir)
    with ExitStack() as stack:
        if needed:
            stack.enter_context(hold_directory(data_dir))
        for server in needed:
            server.launch()
            stack.callback(server.stop)
        for server in needed:
            server.wait_ready()
        urls = {server.name: server.url for server in needed}
        yield database_url or urls["postgresql"], redis_url or urls["valkey"]
