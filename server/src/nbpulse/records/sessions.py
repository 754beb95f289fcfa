"""Learning sessions: one student's sitting at one notebook, right in whatever order its events come.

A session is (user, notebook, `session_id`); the UTC date stands in where the client sent none. `started_at` = the
earliest event, `last_activity_at` = the latest, counters add once per ledger row. When it has ended (a `session_end`,
or 30 idle minutes) `ended_at` = last activity and `total_duration_ms` = active time; both are computed anew from the
ledger when something arrives later. Rows are only touched under the student's lock (`ledger.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from uuid import UUID, uuid5

import asyncpg
import msgspec

from nbpulse.events import ReceivedEvent
from nbpulse.shards import get_shard_number

IDLE_LIMIT_S = 1800
_NAMESPACE = UUID("5f0f1e5e-9a57-4a0e-9f0b-6d1c7a0d8b11")
_JOB_LOCK = 6_622_002


class _Fold(msgspec.Struct):
    """What the new events of one session add up to."""

    course_id: UUID
    notebook_id: UUID
    started_at: datetime
    last_activity_at: datetime
    has_end: bool = False
    executions: int = 0
    errors: int = 0


_FIND = """
SELECT s.user_id, s.id, s.ended_at IS NOT NULL AS has_ended, s.has_end FROM learning_sessions s
JOIN unnest($1::uuid[], $2::smallint[], $3::uuid[]) AS k(user_id, shard, id) USING (user_id, shard, id)
"""
# RETURNING: without it Citus would COPY the rows to their nodes, which row-level security refuses.
_INSERT = """
INSERT INTO learning_sessions (user_id, shard, id, course_id, notebook_id, started_at, last_activity_at, has_end,
    cell_executions, error_count)
SELECT * FROM unnest($1::uuid[], $2::smallint[], $3::uuid[], $4::uuid[], $5::uuid[], $6::timestamptz[],
    $7::timestamptz[], $8::boolean[], $9::int[], $10::int[])
RETURNING 1
"""
# started_at is the partition key: an earlier event moves the row to its month, which UPDATE does by itself.
_UPDATE = """
UPDATE learning_sessions s SET
    started_at = least(s.started_at, k.started_at),
    last_activity_at = greatest(s.last_activity_at, k.last_activity_at),
    has_end = s.has_end OR k.has_end,
    cell_executions = s.cell_executions + k.executions,
    error_count = s.error_count + k.errors
FROM unnest($1::uuid[], $2::smallint[], $3::uuid[], $4::uuid[], $5::uuid[], $6::timestamptz[], $7::timestamptz[],
    $8::boolean[], $9::int[], $10::int[])
    AS k(user_id, shard, id, course_id, notebook_id, started_at, last_activity_at, has_end, executions, errors)
WHERE (s.user_id, s.shard, s.id) = (k.user_id, k.shard, k.id)
"""
# Active time: the sum of the gaps between the session's events, those over the idle limit left out.
_CLOSE = """
WITH ended AS (
    SELECT s.user_id, s.shard, s.id, s.last_activity_at FROM learning_sessions s
    JOIN unnest($1::uuid[], $2::uuid[]) AS k(user_id, id) USING (user_id, id)
), gaps AS (
    SELECT e.user_id, e.learning_session_id AS id,
        extract(epoch FROM e.occurred_at - lag(e.occurred_at)
            OVER (PARTITION BY e.user_id, e.learning_session_id ORDER BY e.occurred_at)) AS gap_s
    FROM events e JOIN ended ON e.user_id = ended.user_id AND e.learning_session_id = ended.id
), active AS (
    SELECT user_id, id, coalesce(sum(gap_s) FILTER (WHERE gap_s <= $3), 0) AS active_s FROM gaps GROUP BY user_id, id
)
UPDATE learning_sessions s SET ended_at = s.last_activity_at, total_duration_ms = round(active.active_s * 1000)
FROM active WHERE s.user_id = active.user_id AND s.id = active.id
"""


@lru_cache(maxsize=20_000)
def _make_id(user_id: UUID, notebook_id: UUID, key: str) -> UUID:
    return uuid5(_NAMESPACE, f"{user_id}:{notebook_id}:{key}")


def make_session_id(event: ReceivedEvent, notebook_id: UUID) -> UUID:
    """`learning_sessions.id`: the same for every event of one sitting, on every machine."""
    key = str(event.session_id) if event.session_id else event.occurred_at.date().isoformat()
    return _make_id(event.user_id, notebook_id, key)


async def update_session_stats(
    connection: asyncpg.Connection, news: Iterable[tuple[ReceivedEvent, UUID | None, UUID | None]]
) -> None:
    """
    Fold new events, each with its notebook's and session's id, into their sessions; they stand in the ledger already.

    A help request or kernel status without a notebook belongs to no session.
    """
    folds: dict[tuple[UUID, UUID], _Fold] = {}
    for event, notebook_id, session_id in news:
        if notebook_id is None or session_id is None:
            continue
        fold = folds.get((event.user_id, session_id))
        if fold is None:
            fold = _Fold(event.course_id, notebook_id, event.occurred_at, event.occurred_at)
            folds[event.user_id, session_id] = fold
        fold.started_at = min(fold.started_at, event.occurred_at)
        fold.last_activity_at = max(fold.last_activity_at, event.occurred_at)
        fold.has_end = fold.has_end or event.event_type == "session_end"
        if event.event_type == "cell_execution" and event.data.get("status") != "aborted":
            fold.executions += 1
            fold.errors += event.data.get("status") == "error"
    if folds:
        await _store(connection, folds)


async def _store(connection: asyncpg.Connection, folds: dict[tuple[UUID, UUID], _Fold]) -> None:
    keys = list(folds)  # in any order: their students are locked already
    rows = await connection.fetch(
        _FIND, [key[0] for key in keys], [get_shard_number(key[0]) for key in keys], [key[1] for key in keys]
    )
    known = {(row["user_id"], row["id"]) for row in rows}
    ended = {(row["user_id"], row["id"]) for row in rows if row["has_ended"] or row["has_end"]}
    for statement, part in (
        (_UPDATE, [key for key in keys if key in known]),
        (_INSERT, [key for key in keys if key not in known]),
    ):
        if part:
            await connection.execute(statement, *_make_columns(part, folds))
    ended |= {key for key in keys if folds[key].has_end}
    if ended:
        await _close(connection, sorted(ended))


def _make_columns(keys: Sequence[tuple[UUID, UUID]], folds: dict[tuple[UUID, UUID], _Fold]) -> list[list[object]]:
    return [
        list(column)
        for column in zip(
            *(
                (
                    user_id,
                    get_shard_number(user_id),
                    session_id,
                    fold.course_id,
                    fold.notebook_id,
                    fold.started_at,
                    fold.last_activity_at,
                    fold.has_end,
                    fold.executions,
                    fold.errors,
                )
                for user_id, session_id in keys
                for fold in [folds[user_id, session_id]]
            ),
            strict=True,
        )
    ]


async def _close(connection: asyncpg.Connection, keys: Sequence[tuple[UUID, UUID]]) -> None:
    """Set `ended_at` and `total_duration_ms` of these sessions anew from the ledger."""
    await connection.execute(_CLOSE, [key[0] for key in keys], [key[1] for key in keys], IDLE_LIMIT_S)


async def close_idle_sessions(pool: asyncpg.Pool, limit: int = 500) -> int:
    """
    Close sessions without an event for 30 minutes; the number closed.

    One worker at a time (an advisory lock); each student's lock is taken, as for a batch.
    """
    async with pool.acquire(timeout=5) as connection, connection.transaction():
        if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", _JOB_LOCK):
            return 0
        rows = await connection.fetch(
            "SELECT user_id, id FROM learning_sessions WHERE ended_at IS NULL"
            " AND last_activity_at < now() - $1 * interval '1 second'"
            " AND shard IN (SELECT shard FROM shard_owners WHERE is_here) ORDER BY user_id LIMIT $2",
            IDLE_LIMIT_S,
            limit,
        )
        if not rows:
            return 0
        users = sorted({row["user_id"] for row in rows})
        await connection.execute(
            "SELECT FROM learner_states WHERE user_id = ANY($1::uuid[]) ORDER BY user_id, course_id FOR UPDATE",
            users,
        )
        await _close(connection, [(row["user_id"], row["id"]) for row in rows])
        return len(rows)
