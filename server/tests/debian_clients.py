"""What a person types at a running stack: psql, redis-cli, influx and influxd from Debian's packages, on a PATH."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from servers import find_libraries, get_debian_programs

_PACKAGES = (
    (
        "postgresql-replication",
        "usr/lib/postgresql/15/bin",
        ["postgresql-15", "postgresql-client-15", "libpq5"],
        ["psql"],
    ),
    ("redis", "usr/bin", ["redis-server", "redis-tools"], ["redis-cli"]),
    ("influxdb", "usr/bin", ["influxdb", "influxdb-client"], ["influx", "influxd"]),
)


def make_clients(directory: Path) -> str:
    """A PATH with them and this Python first; each finds its own libraries, and no other program is given them."""
    directory.mkdir(exist_ok=True)
    for name, bin_dir, packages, programs in _PACKAGES:
        unpacked = get_debian_programs(name, bin_dir, packages)
        folder = unpacked.root / unpacked.bin_dir
        for program in programs:
            libraries, path = shlex.quote(find_libraries(unpacked, folder)), shlex.quote(str(folder / program))
            write_program(directory / program, f'LD_LIBRARY_PATH={libraries} exec {path} "$@"')
    return f"{directory}:{Path(sys.executable).parent}:{os.environ['PATH']}"


def write_program(path: Path, line: str) -> None:
    """A program of one line of shell."""
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
