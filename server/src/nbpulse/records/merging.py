"""Two users that are one person: everything of the second becomes the first's, counted once.

Promises: one transaction under both learners' locks; an event both sent (one outbox under two tokens) is kept once;
sealed texts are sealed anew for their new place; what the second user's machines still send, or the stream still
holds, is recorded as the first's (`users.merged_into`, `learner_states.merged_into`).
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import asyncpg
import msgspec

from nbpulse.classroom import LearnerState, merge_states
from nbpulse.crypto import EncryptedField
from nbpulse.errors import InvalidInput
from nbpulse.records import learners, marks
from nbpulse.records.audit import Facts, note_audit
from nbpulse.shards import get_shard_number

_SEALED_ROWS = (
    ("events", "error_message"),
    ("events", "traceback"),
    ("event_contents", "source"),
    ("event_contents", "output"),
    ("help_requests", "message"),
)
_SEALED_PERSON = (
    ("messages", "body"),
    ("messages", "source"),
    ("interventions", "note"),
    ("enrolments", "roster_name"),
    ("enrolments", "roster_kana"),
)

# Ordinals of the kept user go on counting; a known event of both stays as the kept user has it.
_NUMBER = """
CREATE TEMPORARY TABLE moved ON COMMIT DROP AS
WITH kept AS MATERIALIZED (SELECT event_id FROM event_ids WHERE user_id = $1)
SELECT e.event_id, e.ordinal AS old_ordinal, $3 + row_number() OVER (ORDER BY e.ordinal) AS ordinal, e.occurred_at
FROM event_ids e WHERE e.user_id = $2 AND NOT EXISTS (SELECT FROM kept k WHERE k.event_id = e.event_id)
"""
# These go by being deleted and stored anew: on a Citus cluster a row's user says on which node it is.
_MOVED = ("event_ids", "events", "event_contents", "learning_sessions")
_LIST_COLUMNS = """
SELECT attname::text AS name FROM pg_attribute
WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""
_MOVE_HANDS = (
    "UPDATE help_requests h SET user_id = $1, shard = $3 FROM moved m WHERE h.user_id = $2 AND h.id = m.event_id"
)
_MOVE_PERSON = (
    # What the second was told comes again to the first, who may have read on since.
    """
    UPDATE learner_states SET inbox_revision = inbox_revision + 1, hand_revision = inbox_revision + 1
    WHERE user_id = $1 AND $2::uuid <> $1 AND $3::smallint >= 0
    """,
    """
    UPDATE messages m SET user_id = $1, shard = $3, revision = s.inbox_revision,
        sender_id = CASE WHEN m.sender_id = $2 THEN $1 ELSE m.sender_id END
    FROM learner_states s WHERE m.user_id = $2 AND s.user_id = $1 AND s.course_id = m.course_id
    """,
    "UPDATE interventions SET user_id = $1, shard = $3 WHERE user_id = $2",
    """
    WITH gone AS (DELETE FROM enrolments WHERE user_id = $2 AND $3 >= 0 RETURNING *)
    INSERT INTO enrolments AS k (user_id, course_id, role, student_number, seat, team, teams, granted_by, joined_at,
        left_at, roster_name, roster_kana)
    SELECT $1, course_id, role, student_number, seat, team, teams, granted_by, joined_at, left_at, roster_name,
        roster_kana
    FROM gone
    ON CONFLICT (user_id, course_id) DO UPDATE SET seat = coalesce(k.seat, excluded.seat),
        team = coalesce(k.team, excluded.team), student_number = coalesce(k.student_number, excluded.student_number),
        joined_at = least(k.joined_at, excluded.joined_at), roster_name = coalesce(k.roster_name, excluded.roster_name),
        roster_kana = coalesce(k.roster_kana, excluded.roster_kana)
    """,
    "UPDATE tokens SET user_id = $1 WHERE user_id = $2 AND kind <> 'link' AND $3 >= 0",
    "UPDATE external_identities SET user_id = $1 WHERE user_id = $2 AND $3 >= 0",
    "UPDATE consents SET user_id = $1, shard = $3 WHERE user_id = $2",
)
_MOVE_POINTS = """
UPDATE timeseries.cell_executions p SET user_id = $1, time_ns = p.time_ns / 1000000 * 1000000 + m.ordinal % 1000000
FROM moved m WHERE p.user_id = $2 AND p.time_ns % 1000000 = m.old_ordinal % 1000000
    AND abs(p.time_ns / 1000000 - extract(epoch FROM m.occurred_at) * 1000) <= 1
"""
# What the second still holds of an event both sent is the first's already.
_CLEAR_ROWS = (
    "DELETE FROM event_contents WHERE user_id = $1",
    "DELETE FROM help_requests WHERE user_id = $1",
    "DELETE FROM event_ids WHERE user_id = $1",
    "DELETE FROM series_marks WHERE user_id = $1",
    "DELETE FROM series_standings WHERE user_id = $1",
)
_CLEAR_POINTS = (
    "DELETE FROM timeseries.cell_executions WHERE user_id = $1",
    "DELETE FROM timeseries.cell_executions_1m WHERE user_id = $1",
    "DELETE FROM timeseries.cell_executions_10m WHERE user_id = $1",
    # Both users' derived points are made anew, as the one's.
    "DELETE FROM timeseries.learning_progress WHERE user_id = $1",
    "DELETE FROM timeseries.performance_metrics WHERE user_id = $1",
)
# Where the first's rows are in another database, the directory shows what is brought from there (rollups.py), be it
# before or after this: cells that are new there are counted, so the second's are not any more; and the first's, whose
# revision was counted anew, may bear a lower one than here.
_SHOW = (
    """
    INSERT INTO learner_states (user_id, shard, course_id)
    SELECT $1::uuid, $3::smallint, course_id FROM learner_states WHERE user_id = $2 ORDER BY course_id
    ON CONFLICT DO NOTHING
    """,
    "SELECT FROM learner_states WHERE user_id IN ($1, $2) AND $3 >= 0 ORDER BY user_id, course_id FOR UPDATE",
    """
    DELETE FROM help_requests h USING help_requests k
    WHERE h.user_id = $2 AND k.user_id = $1 AND k.id = h.id AND $3 >= 0
    """,
    "UPDATE help_requests SET user_id = $1, shard = $3 WHERE user_id = $2",
    """
    WITH gone AS (
        DELETE FROM learner_cells WHERE user_id = $2 AND $1::uuid <> $2 AND $3 >= 0 RETURNING notebook_id, cell_id
    )
    UPDATE notebook_cells c SET student_count = c.student_count - 1 FROM gone k
    WHERE (c.notebook_id, c.cell_id) = (k.notebook_id, k.cell_id)
    """,
    "UPDATE learner_cells SET revision = 0 WHERE user_id = $1 AND $2::uuid <> $1 AND $3 >= 0",
)
# Sessions and cells are counted anew from the ledger: a number added up twice could not be told apart afterwards.
_DROP_EMPTY_SESSIONS = """
DELETE FROM learning_sessions s WHERE user_id = $1
    AND NOT EXISTS (SELECT FROM events e WHERE e.user_id = s.user_id AND e.learning_session_id = s.id)
"""
_RECOUNT_SESSIONS = """
UPDATE learning_sessions s SET cell_executions = k.executions, error_count = k.errors
FROM (SELECT learning_session_id AS id,
        count(*) FILTER (WHERE event_type = 'cell_execution' AND data->>'status' <> 'aborted') AS executions,
        count(*) FILTER (WHERE event_type = 'cell_execution' AND data->>'status' = 'error') AS errors
      FROM events WHERE user_id = $1 GROUP BY learning_session_id) k
WHERE s.user_id = $1 AND s.id = k.id
"""
_UNCOUNT_CELLS = """
UPDATE notebook_cells n SET student_count = n.student_count - 1
FROM (SELECT notebook_id, cell_id FROM learner_cells WHERE user_id = ANY($1::uuid[])
      GROUP BY notebook_id, cell_id HAVING count(*) = 2) k
WHERE (n.notebook_id, n.cell_id) = (k.notebook_id, k.cell_id)
"""
_REFOLD_CELLS = """
INSERT INTO learner_cells (user_id, shard, course_id, notebook_id, cell_id, cell_index, revision, attempt_count,
    error_count, last_status, last_at, last_sequence, last_ok_at, first_finished_at)
SELECT $1, $2, (array_agg(course_id))[1], notebook_id, cell_id,
    (array_agg(cell_index ORDER BY place DESC))[1], count(*),
    count(*) FILTER (WHERE status <> 'running'), count(*) FILTER (WHERE status = 'error'),
    (array_agg(status ORDER BY place DESC))[1], max(occurred_at), (array_agg(sequence ORDER BY place DESC))[1],
    max(occurred_at) FILTER (WHERE status = 'ok'), min(occurred_at) FILTER (WHERE status <> 'running')
FROM (
    SELECT *, (occurred_at, sequence, status <> 'running', status) AS place FROM (
        SELECT *, CASE event_type WHEN 'cell_execution' THEN data->>'status' ELSE 'running' END AS status FROM events
        WHERE user_id = $1 AND notebook_id IS NOT NULL AND cell_id <> ''
            AND event_type IN ('cell_execution', 'cell_execution_start')
    ) runs WHERE status <> 'aborted'
) placed GROUP BY notebook_id, cell_id
"""


async def merge_users(pool: asyncpg.Pool, seal: EncryptedField, *, keep_id: UUID, drop_id: UUID) -> int:
    """
    Make `drop_id` part of `keep_id`; the number of events that changed hands. For the owner's login.

    Raises InvalidInput: one of them is no user or merged already (NB-1021), or both are the same (NB-1022).
    """
    if keep_id == drop_id:
        raise InvalidInput("NB-1022")
    async with pool.acquire(timeout=5) as connection, connection.transaction():
        found = await connection.fetchval(
            "SELECT count(*) FROM users WHERE id = ANY($1::uuid[]) AND merged_into IS NULL", [keep_id, drop_id]
        )
        if found != 2:
            raise InvalidInput("NB-1021")
        moved = await merge_rows(connection, seal, keep_id, drop_id)
        await connection.execute(_MOVE_POINTS, keep_id, drop_id)
        await merge_person(connection, seal, keep_id, drop_id)
        await connection.execute(
            "INSERT INTO timeseries.stale_minutes (minute_ns, user_id, course_id)"
            " SELECT DISTINCT time_ns / 60000000000 * 60000000000, user_id, course_id FROM timeseries.cell_executions"
            " WHERE user_id = $1 ON CONFLICT DO NOTHING",
            keep_id,
        )
        facts: Facts = {"merged_user_id": str(drop_id), "events": moved}
        await note_audit(connection, "users_merged", subject_id=keep_id, facts=facts)
    return moved


async def merge_rows(
    connection: asyncpg.Connection, seal: EncryptedField, keep_id: UUID, drop_id: UUID, *, is_directory: bool = True
) -> int:
    """
    The rows of both, which are all at hand, become the first's; how many events changed hands (table `moved`).

    `is_directory`: what is known of notebooks is here too. Raises `UsersMerged`: the second was merged already.
    """
    states = await _lock_both(connection, seal, keep_id, drop_id)
    shard = get_shard_number(keep_id)
    last = max((state.last_ordinal for (user_id, _), state in states.items() if user_id == keep_id), default=0)
    await _reseal(connection, seal, keep_id, drop_id, _SEALED_ROWS)
    await connection.execute(_NUMBER, keep_id, drop_id, last)
    await connection.execute("ANALYZE moved")  # else each of its events is looked up by itself
    moved: int = await connection.fetchval("SELECT count(*) FROM moved")
    for table in _MOVED:
        await connection.execute(await _make_move(connection, table), keep_id, drop_id, shard)
    await connection.execute(_MOVE_HANDS, keep_id, drop_id, shard)
    gone: str = await connection.execute("DELETE FROM events WHERE user_id = $1", drop_id)
    await connection.execute("SELECT count_removed($1)", int(gone.rpartition(" ")[2]))
    for statement in _CLEAR_ROWS:
        await connection.execute(statement, drop_id)
    await connection.execute(_DROP_EMPTY_SESSIONS, keep_id)
    await connection.execute(_RECOUNT_SESSIONS, keep_id)
    if is_directory:
        await connection.execute(_UNCOUNT_CELLS, [keep_id, drop_id])
    await connection.execute("DELETE FROM learner_cells WHERE user_id = ANY($1::uuid[])", [keep_id, drop_id])
    await connection.execute(_REFOLD_CELLS, keep_id, shard)
    await marks.mark_whole(connection, keep_id)
    pairs = {
        key: (msgspec.structs.replace(state, last_ordinal=last + moved), states[drop_id, key[1]])
        for key, state in states.items()
        if key[0] == keep_id
    }
    await _write_merged(connection, seal, pairs)
    return moved


async def merge_person(
    connection: asyncpg.Connection,
    seal: EncryptedField,
    keep_id: UUID,
    drop_id: UUID,
    *,
    shows_only: bool = False,
) -> None:
    """
    What the directory alone has of the second becomes the first's, and the second another name of theirs.

    `shows_only`: the first's own rows are in another database.
    """
    shard = get_shard_number(keep_id)
    if shows_only:
        await _reseal(connection, seal, keep_id, drop_id, (("help_requests", "message"),))
        for statement in _SHOW:
            await connection.execute(statement, keep_id, drop_id, shard)
    await connection.execute("DELETE FROM recent_runs WHERE user_id = $1", drop_id)
    await _reseal(connection, seal, keep_id, drop_id, _SEALED_PERSON)
    for statement in _MOVE_PERSON:
        await connection.execute(statement, keep_id, drop_id, shard)
    for statement in _CLEAR_POINTS:
        await connection.execute(statement, drop_id)
    await retire(connection, keep_id, drop_id)
    await connection.execute("UPDATE users SET merged_into = $2 WHERE id = $1", drop_id, keep_id)
    await connection.execute("UPDATE enrolments SET maybe_same_as = NULL WHERE maybe_same_as = $1", drop_id)


async def _lock_both(
    connection: asyncpg.Connection, seal: EncryptedField, keep_id: UUID, drop_id: UUID
) -> dict[learners.StateKey, LearnerState]:
    """Lock both users' states in every course either of them has one in."""
    rows = await connection.fetch(
        "SELECT DISTINCT course_id FROM learner_states WHERE user_id = ANY($1::uuid[])", [keep_id, drop_id]
    )
    keys = [(user_id, row["course_id"]) for user_id in (keep_id, drop_id) for row in rows]
    return await learners.lock_states(connection, keys, seal) if keys else {}


async def _make_move(connection: asyncpg.Connection, table: str) -> str:
    """The statement that moves a table's rows from user $2 to user $1, in shard $3; of events those in `moved`."""
    columns = [row["name"] for row in await connection.fetch(_LIST_COLUMNS, table)]
    values = {"user_id": "$1::uuid", "shard": "$3::smallint"}
    some, new = "", ""
    if "event_id" in columns:
        values["ordinal"] = "m.ordinal"
        some, new = " AND event_id IN (SELECT event_id FROM moved)", " JOIN moved m USING (event_id)"
    return (
        f"WITH gone AS (DELETE FROM {table} WHERE user_id = $2{some} RETURNING *)"  # noqa: S608 - the database's own names
        f" INSERT INTO {table} ({', '.join(columns)})"
        f" SELECT {', '.join(values.get(name, f'gone.{name}') for name in columns)} FROM gone{new}"
    )


async def _reseal(
    connection: asyncpg.Connection,
    seal: EncryptedField,
    keep_id: UUID,
    drop_id: UUID,
    texts: Sequence[tuple[str, str]],
) -> None:
    for table, column in texts:
        key = {"events": "event_id", "event_contents": "event_id", "enrolments": "course_id"}.get(table, "id")
        rows = await connection.fetch(
            f"SELECT {key} AS id, {column} AS text FROM {table} WHERE user_id = $1 AND {column} IS NOT NULL",  # noqa: S608
            drop_id,
        )
        sealed = [
            seal.seal(
                seal.unseal(row["text"], table=table, column=column, user_id=drop_id),
                table=table,
                column=column,
                user_id=keep_id,
            )
            for row in rows
        ]
        await connection.execute(
            f"UPDATE {table} t SET {column} = k.text FROM unnest($2::uuid[], $3::text[]) AS k(id, text)"  # noqa: S608
            f" WHERE t.user_id = $1 AND t.{key} = k.id",
            drop_id,
            [row["id"] for row in rows],
            sealed,
        )


async def _write_merged(
    connection: asyncpg.Connection,
    seal: EncryptedField,
    pairs: dict[learners.StateKey, tuple[LearnerState, LearnerState]],
) -> None:
    """Store each course's two states as one."""
    merged = {}
    for key, (state, other) in pairs.items():
        both = merge_states(state, other)
        merged[key] = msgspec.structs.replace(both, revision=both.revision + 1)
    if merged:
        await learners.write_states(connection, merged, seal)


async def retire(connection: asyncpg.Connection, keep_id: UUID, drop_id: UUID) -> None:
    """From now on the second learner is only another name of the first."""
    await connection.execute(
        "UPDATE learner_states SET merged_into = $2, state = NULL, help_text = NULL, notebook_id = NULL"
        " WHERE user_id = $1",
        drop_id,
        keep_id,
    )
