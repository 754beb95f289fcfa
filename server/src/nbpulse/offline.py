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
    """The owner's URL: as given, else of the PostgreSQL in `data_dir`. Raises StartupError like `open_stores`."""
    if database_url:
        yield database_url
        return
    with _hold_data(data_dir), run_server(EmbeddedPostgres(data_dir)) as url:
        yield url


@contextmanager
def open_stores(data_dir: Path, database_url: str | None, redis_url: str | None) -> Iterator[tuple[str, str]]:
    """
    The URLs of database and stream; what is not given is started from `data_dir`, which is ours alone meanwhile.

    Raises StartupError: no data there (NB-3019), a supervisor is at work there (NB-3006), a server does not start.
    """
    with ExitStack() as stack:
        if not (database_url and redis_url):
            stack.enter_context(_hold_data(data_dir))
        yield (
            database_url or stack.enter_context(run_server(EmbeddedPostgres(data_dir))),
            redis_url or stack.enter_context(run_server(EmbeddedValkey(data_dir))),
        )


@contextmanager
def run_server(server: EmbeddedServer) -> Iterator[str]:
    """The server's URL while it runs."""
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


@contextmanager
def _hold_data(data_dir: Path) -> Iterator[None]:
    if not (data_dir / EmbeddedPostgres.name / "data").exists():
        raise StartupError("NB-3019", path=data_dir)
    with hold_directory(data_dir):
        yield
