"""Marks: which students' notebooks have news that `learning_progress` and `performance_metrics` do not show yet.

Promises: a mark is written in the transaction that brings the news, so it is owed until it is paid (derived.py),
whatever is killed; one row per student and notebook, `since` the earliest news. `revision` is the id of the last
transaction that marked it: who pays deletes the mark as read, never one that got news meanwhile or was made anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

import asyncpg

from nbpulse.events import ReceivedEvent
from nbpulse.shards import get_shard_number

UPSERT = """
ON CONFLICT (user_id, shard, notebook_id) DO UPDATE SET since = least(m.since, excluded.since),
    revision = excluded.revision
"""
_MARK = f"""
INSERT INTO series_marks AS m (user_id, shard, notebook_id, since)
SELECT * FROM unnest($1::uuid[], $2::smallint[], $3::uuid[], $4::timestamptz[])
{UPSERT}"""  # noqa: S608 - constants
_MARK_WHOLE = f"""
INSERT INTO series_marks AS m (user_id, shard, notebook_id, since)
SELECT DISTINCT user_id, shard, notebook_id, TIMESTAMPTZ 'epoch' FROM learning_sessions
WHERE user_id = $1 AND notebook_id IS NOT NULL ORDER BY notebook_id
{UPSERT}"""  # noqa: S608 - constants


async def mark(connection: asyncpg.Connection, news: Iterable[tuple[ReceivedEvent, UUID | None, UUID | None]]) -> None:
    """
    Mark what new events, each with its notebook's and session's id, change; in the transaction that stores them.

    Not runs alone: a saved notebook, say, counts in the active time of the runs after it.
    """
    since: dict[tuple[UUID, UUID], datetime] = {}
    for event, notebook_id, _ in news:
        if notebook_id is not None:
            key = (event.user_id, notebook_id)
            since[key] = min(since.get(key, event.occurred_at), event.occurred_at)
    if not since:
        return
    keys = sorted(since)  # every writer of marks takes them in this order
    await connection.execute(
        _MARK,
        [key[0] for key in keys],
        [get_shard_number(key[0]) for key in keys],
        [key[1] for key in keys],
        [since[key] for key in keys],
    )


async def mark_whole(connection: asyncpg.Connection, user_id: UUID) -> None:
    """Mark everything of a student, from the beginning."""
    await connection.execute(_MARK_WHOLE, user_id)
