"""
The PostgreSQL and the Valkey that came with pip, run as ordinary servers on a data directory; where one is wanted, a
replica of the former beside it.

Promises:
- What was acknowledged survives: the durability settings are given anew at every start.
- Nothing outlives its starter for long: a server dies with the thread that started it, and the next start
  stops whatever still runs on the directory before it begins.
- One starter per directory: a second one is refused.
- As root the servers run as the owner of their directory, `nobody` at first.
- Loopback only, with a password kept in a file that only that account and root can read.
"""

import platform

from nbpulse.embedded.postgresql import EmbeddedPostgres, list_postgresql_programs
from nbpulse.embedded.replica import EmbeddedReplica
from nbpulse.embedded.server import EmbeddedServer
from nbpulse.embedded.valkey import EmbeddedValkey, Promise, list_valkey_programs
from nbpulse.errors import StartupError

__all__ = ["EmbeddedPostgres", "EmbeddedReplica", "EmbeddedServer", "EmbeddedValkey", "Promise", "find_obstacle"]


def find_obstacle() -> StartupError | None:
    """Why the embedded servers cannot run on this machine; None when they can."""
    if platform.system() == "Windows":
        return StartupError("NB-3001", server="Valkey", platform="Windows")
    machine = f"{platform.system()} {platform.machine()}"
    if next(list_postgresql_programs(), None) is None:
        return StartupError("NB-3001", server="PostgreSQL", platform=machine)
    if next(list_valkey_programs(), None) is None:
        return StartupError("NB-3001", server="Valkey", platform=machine)
    return None
