"""What an accepted event survives, read from the servers' own settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from nbpulse.errors import StartupError, Unavailable
from nbpulse.stream.cluster import AnyLink
from nbpulse.stream.link import ANSWER_DEADLINE_S, Link, pair_answer

Promise = Literal["failover", "power", "process", "memory"]
"""What an event survives: its server's loss for good, a power cut, the death of a process, nothing."""

RANKS: Final[dict[str, int]] = {"memory": 0, "process": 1, "power": 2, "failover": 3}
_SETTINGS: Final = (
    "appendonly",
    "appendfsync",
    "no-appendfsync-on-rewrite",
    "maxmemory-policy",
    "min-replicas-to-write",
    "cluster-enabled",
)


async def read_promise(link: AnyLink) -> Promise | None:
    """
    The least that any of the servers keeps, of a cluster those that answer; None where CONFIG is forbidden. `failover`
    says that they can keep it: it is kept by appends that are confirmed.

    Raises Unavailable, StartupError (NB-3101): the server is one of a cluster, and was named as if it were not.
    """
    questions = ("CONFIG", "GET", *_SETTINGS), ("INFO", "replication")
    given = await link.call_everywhere(questions, query_type="read_settings", deadline_s=ANSWER_DEADLINE_S)
    answers = [one for one in given if not isinstance(one, Unavailable)]
    if any(isinstance(answer, Exception) for answer, _ in answers):
        return None
    settings = [{name.decode(): value.decode() for name, value in pair_answer(answer)} for answer, _ in answers]
    facts = [_read_info(answer) for _, answer in answers]
    if isinstance(link, Link) and settings[0].get("cluster-enabled") == "yes":
        raise StartupError("NB-3101")
    # A cluster's primary may have just lost its replica, or have been it: its appends are refused until it has another.
    has_replica = any(int(one.get("connected_slaves", 0)) > 0 for one in facts)
    kept = [_read_one(*one, has_replica=has_replica) for one in zip(settings, facts, strict=True)]
    return min(kept, key=RANKS.__getitem__)


def _read_one(settings: Mapping[str, str], facts: Mapping[str, str], *, has_replica: bool) -> Promise:
    if settings.get("appendonly") != "yes" or settings.get("maxmemory-policy") != "noeviction":
        return "memory"
    if settings.get("appendfsync") != "always" or settings.get("no-appendfsync-on-rewrite") != "no":
        return "memory" if settings.get("appendfsync") == "no" else "process"
    if facts.get("role") == "slave":
        return "failover"  # it stands in for a primary, which is counted by itself
    return "failover" if has_replica and int(settings.get("min-replicas-to-write", 0)) > 0 else "power"


def _read_info(answer: Any) -> dict[str, str]:
    """INFO's lines; empty where it is forbidden."""
    if not isinstance(answer, bytes):
        return {}
    return dict(line.split(":", 1) for line in answer.decode().split("\r\n") if ":" in line)
