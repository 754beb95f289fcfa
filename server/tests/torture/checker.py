"""The set with duplicates: what clients were told, compared with what is stored, id by id, and with every counter.

Lost: told "accepted" or "duplicate" and not in the ledger. Doubled: in the ledger, the dedup rows, a counter or the
time series more than once. Unasked: in the ledger and never sent.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
from redis.asyncio import Redis

STREAMS = [f"nbpulse:{lane}:{{shard_{number}}}" for lane in ("events", "help") for number in range(64)]
_GROUP = "nbpulse-workers"


class Sent(NamedTuple):
    """What one event was."""

    user_id: str
    event_type: str
    cell_id: str
    status: str


@dataclass
class History:
    """All clients' files, read."""

    sent: dict[str, Sent] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    rejected: dict[str, str] = field(default_factory=dict)
    words: Counter[str] = field(default_factory=Counter)


@dataclass
class Verdict:
    """What the comparison found; `problems` is empty when all is well."""

    acknowledged: int
    stored: int
    lost: list[str]
    doubled: list[str]
    problems: list[str]

    @property
    def loss_bound(self) -> float:
        """With none of n lost, the 95 % upper bound of the loss rate: the rule of three."""
        return 3 / max(1, self.acknowledged)


def read_journals(paths: Iterable[Path]) -> History:
    """Every client's file. A last line cut short by a kill is none."""
    history = History()
    for path in paths:
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            kind, event_id, *rest = line.split(" ")
            if kind == "new":
                history.sent[event_id] = Sent(*rest)
            elif kind == "ok":
                history.acknowledged.add(event_id)
                history.words[rest[0]] += 1
            else:
                history.rejected[event_id] = rest[0]
    return history


async def count_unfinished(redis_url: str) -> int:
    """Entries of all streams that are waiting or pending. Raises OSError or RedisError when the server is away."""
    async with Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=2) as redis:
        pipe = redis.pipeline(transaction=False)
        for stream in STREAMS:
            pipe.xinfo_groups(stream)
            pipe.xinfo_stream(stream)
        answers = await pipe.execute(raise_on_error=False)
        unfinished = 0
        for place, stream in enumerate(STREAMS):
            groups, facts = answers[2 * place], answers[2 * place + 1]
            if isinstance(facts, Exception):
                if "no such key" not in str(facts):
                    raise facts
                continue
            group = next((g for g in groups if g["name"] in {_GROUP, _GROUP.encode()}), None)
            if group is None:
                unfinished += facts["length"]
                continue
            unfinished += group["pending"]
            if group["last-delivered-id"] != facts["last-generated-id"]:
                unfinished += len(await redis.xrange(stream, b"(" + group["last-delivered-id"], "+") or ())
    return unfinished


async def await_drained(redis_url: str, within_s: float) -> float:
    """Seconds until nothing was waiting or pending. Raises AssertionError when that took too long."""
    started_s = time.monotonic()
    unfinished: int | str = "?"
    while time.monotonic() - started_s < within_s:
        try:
            unfinished = await count_unfinished(redis_url)
        except Exception as error:  # noqa: BLE001 - it may be on its way up; told when time is over
            unfinished = f"{type(error).__name__}: {error}"
        if unfinished == 0:
            return time.monotonic() - started_s
        await asyncio.sleep(0.1)
    raise AssertionError(f"unfinished entries after {within_s} s: {unfinished}")


async def await_debts_paid(database_url: str, within_s: float = 30) -> None:
    """Until the time series owes nothing."""
    connection = await asyncpg.connect(database_url, timeout=10)
    try:
        deadline_s = time.monotonic() + within_s
        while owed := await connection.fetchval("SELECT count(*) FROM series_debt"):
            assert time.monotonic() < deadline_s, f"{owed} batches are still not in the time series"
            await asyncio.sleep(0.25)
    finally:
        await connection.close()


async def check(database_url: str, redis_url: str, history: History, *, dead_letters: int = 0) -> Verdict:
    """Compare; the streams must be drained and the debts paid. `dead_letters` = how many were provoked."""
    connection = await asyncpg.connect(database_url, timeout=10)
    try:
        verdict = await check_ledger(connection, history)
        letters = await connection.fetchval("SELECT count(*) FROM dead_letters WHERE replayed_at IS NULL")
        if letters != dead_letters:
            verdict.problems.append(f"{letters} dead letters, {dead_letters} were provoked")
        verdict.problems += await _check_accounts(connection, redis_url)
        return verdict
    finally:
        await connection.close()


async def check_ledger(connection: Any, history: History) -> Verdict:
    """`check` of the rows and counters alone."""
    users = sorted({UUID(sent.user_id) for sent in history.sent.values()})
    rows = await connection.fetch("SELECT user_id, event_id, ordinal FROM events WHERE user_id = ANY($1)", users)
    copies = Counter(str(row["event_id"]) for row in rows)
    stored = set(copies)
    doubled = [event_id for event_id, count in copies.items() if count > 1]
    lost = sorted(history.acknowledged - stored)
    problems = [f"lost: {event_id} {history.sent.get(event_id)}" for event_id in lost[:20]]
    problems += [f"doubled: {event_id}" for event_id in doubled[:20]]
    problems += [f"unasked: {event_id}" for event_id in sorted(stored - set(history.sent))[:20]]
    problems += [f"rejected and stored: {event_id}" for event_id in sorted(stored & set(history.rejected))[:20]]
    ordinals = Counter((row["user_id"], row["ordinal"]) for row in rows)
    problems += [f"two events bear one number: {key}" for key, count in ordinals.items() if count > 1][:20]
    dedup_rows = await connection.fetchval("SELECT count(*) FROM event_ids WHERE user_id = ANY($1)", users)
    if dedup_rows != len(rows):
        problems.append(f"{dedup_rows} dedup rows for {len(rows)} ledger rows")
    problems += await _check_counters(connection, users, [history.sent[i] for i in stored & set(history.sent)])
    return Verdict(len(history.acknowledged), len(stored), lost, doubled, problems)


async def _check_accounts(connection: Any, redis_url: str) -> list[str]:
    """Every entry the drained stream was ever given was counted once, and every row that was stored is there."""
    async with Redis.from_url(redis_url, socket_timeout=5) as redis:
        added = sum([(await redis.xinfo_stream(stream))["entries-added"] for stream in STREAMS])
        generation = (await redis.get("nbpulse:generation")).decode()
    query = (
        "SELECT sum(stored + duplicate + quarantined + dropped)::int AS counted, sum(stored - removed)::int AS rows,"
        " (SELECT base FROM stream_bases WHERE generation = $1) AS base, (SELECT count(*) FROM events) AS found"
        " FROM event_counts"
    )
    row = await connection.fetchrow(query, generation)
    problems = [] if row["rows"] == row["found"] else [f"{row['rows']} ledger rows counted, {row['found']} there"]
    if row["counted"] - (row["base"] or 0) != added:  # none: no worker had a quiet moment yet
        problems.append(f"{added} entries given, {row['counted']} counted (from {row['base']} on)")
    return problems


async def _check_counters(connection: Any, users: list[UUID], stored: list[Sent]) -> list[str]:
    """Every counter equals the fold of the ledger."""
    runs = [sent for sent in stored if sent.event_type == "cell_execution"]
    attempts = Counter((sent.user_id, sent.cell_id) for sent in runs)
    errors = Counter((sent.user_id, sent.cell_id) for sent in runs if sent.status == "error")
    by_user = Counter(sent.user_id for sent in runs)
    errors_by_user = Counter(sent.user_id for sent in runs if sent.status == "error")
    by_cell = (
        "SELECT user_id::text || ' ' || cell_id, sum({})::int FROM learner_cells WHERE user_id = ANY($1) GROUP BY 1"
    )
    by_session = "SELECT user_id::text, sum({})::int FROM learning_sessions WHERE user_id = ANY($1) GROUP BY 1"
    by_point = "SELECT user_id::text, {}::int FROM timeseries.cell_executions WHERE user_id = ANY($1) GROUP BY 1"
    checks = {
        "attempts in learner_cells": (by_cell.format("attempt_count"), join_keys(attempts)),
        "errors in learner_cells": (by_cell.format("error_count"), join_keys(errors)),
        "runs in learning_sessions": (by_session.format("cell_executions"), dict(by_user)),
        "errors in learning_sessions": (by_session.format("error_count"), dict(errors_by_user)),
        "points in the time series": (by_point.format("count(*)"), dict(by_user)),
        "errors in the time series": (by_point.format("count(*) FILTER (WHERE has_error)"), dict(errors_by_user)),
    }
    problems = []
    for name, (query, expected) in checks.items():
        found = {key: count for key, count in await connection.fetch(query, users) if count}
        problems += [
            f"{name} of {key}: {found.get(key, 0)} instead of {expected.get(key, 0)}"
            for key in sorted(found.keys() | expected.keys())
            if found.get(key, 0) != expected.get(key, 0)
        ]
    return problems[:40]


def join_keys(counts: Counter[tuple[str, str]]) -> dict[str, int]:
    """(user, cell) as the queries name it."""
    return {f"{user} {cell}": count for (user, cell), count in counts.items()}
