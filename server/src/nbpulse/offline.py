"""The database of a data directory for the length of one command: the one that runs, else started for it.

Promises: a running class is not disturbed; nothing is started beside a running supervisor, nothing is left running.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nbpulse.directory import hold_directory
from nbpulse.embedded import EmbeddedPostgres
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
