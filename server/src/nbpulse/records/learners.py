"""Learner states and cells: reading them, and writing what a transaction folded into them.

Only called under the learner's lock, inside the ledger's transaction. Cells are added up by PostgreSQL, in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import msgspec

from nbpulse import classroom
from nbpulse.classroom import CellState, LearnerState
from nbpulse.crypto import EncryptedField
from nbpulse.records.packing import StoredState, pack_state, unpack_state
from nbpulse.shards import get_shard_number

StateKey = tuple[UUID, UUID]
"""(user_id, course_id)"""
CellKey = tuple[UUID, UUID, str]
"""(user_id, notebook_id, cell_id)"""
_Place = tuple[UUID, str]
"""(notebook_id, cell_id)"""
Exercises = dict[_Place, str]
"""The exercise that runs of a cell say it belongs to."""

STATE_COLUMNS = "user_id, course_id, revision, last_ordinal, state, help_text"
CELL_COLUMNS = (
    "user_id, course_id, notebook_id, cell_id, cell_index, revision, attempt_count, error_count, last_status,"
    " last_at, first_finished_at"
)
# IS TRUE keeps it from being a join: until a table that has just grown is analyzed, the planner compares each of a
# roster's students with each.
IS_STUDENT = "(user_id IN (SELECT user_id FROM enrolments WHERE course_id = $1 AND role = 'student')) IS TRUE"
"""Whose row it is, is a student of the course $1."""
STUDENT_STATES = f"""
SELECT {STATE_COLUMNS} FROM learner_states WHERE course_id = $1 AND state IS NOT NULL AND {IS_STUDENT}
"""  # noqa: S608 - constants
_LOCK_STATES = f"""
SELECT {STATE_COLUMNS}, merged_into FROM learner_states WHERE user_id = ANY($1::uuid[])
ORDER BY user_id, course_id FOR UPDATE
"""  # noqa: S608 - constants
_INSERT_STATES = """
INSERT INTO learner_states (user_id, shard, course_id) SELECT * FROM unnest($1::uuid[], $2::smallint[], $3::uuid[])
ON CONFLICT DO NOTHING
"""
_UPDATE_STATES = """
UPDATE learner_states s SET revision = k.revision, last_ordinal = k.last_ordinal, state = k.state,
    last_activity_at = k.last_activity_at, notebook_id = k.notebook_id, help_text = k.help_text
FROM unnest($1::uuid[], $2::smallint[], $3::uuid[], $4::bigint[], $5::bigint[], $6::bytea[], $7::timestamptz[],
            $8::uuid[], $9::text[])
    AS k(user_id, shard, course_id, revision, last_ordinal, state, last_activity_at, notebook_id, help_text)
WHERE (s.user_id, s.shard, s.course_id) = (k.user_id, k.shard, k.course_id)
"""
# The later run holds; of two at one instant the finished one, then the name decides, so that order never does.
_NEWER = """(excluded.last_at, excluded.last_sequence, excluded.last_status <> 'running', excluded.last_status)
        >= (c.last_at, c.last_sequence, c.last_status <> 'running', c.last_status)"""
_UPSERT_CELLS = f"""
INSERT INTO learner_cells AS c (user_id, shard, course_id, notebook_id, cell_id, cell_index, revision, attempt_count,
    error_count, last_status, last_at, last_sequence, last_ok_at, first_finished_at)
SELECT * FROM json_to_recordset($1::json) AS k(user_id uuid, shard smallint, course_id uuid, notebook_id uuid,
    cell_id text, cell_index int, revision int, attempt_count int, error_count int, last_status text,
    last_at timestamptz, last_sequence bigint, last_ok_at timestamptz, first_finished_at timestamptz)
ON CONFLICT (user_id, shard, notebook_id, cell_id) DO UPDATE SET
    revision = c.revision + excluded.revision,
    attempt_count = c.attempt_count + excluded.attempt_count,
    error_count = c.error_count + excluded.error_count,
    last_status = CASE WHEN {_NEWER} THEN excluded.last_status ELSE c.last_status END,
    cell_index = CASE WHEN {_NEWER} THEN excluded.cell_index ELSE c.cell_index END,
    last_at = greatest(c.last_at, excluded.last_at),
    last_sequence = CASE WHEN excluded.last_at > c.last_at THEN excluded.last_sequence
                         WHEN excluded.last_at = c.last_at THEN greatest(c.last_sequence, excluded.last_sequence)
                         ELSE c.last_sequence END,
    last_ok_at = greatest(c.last_ok_at, excluded.last_ok_at),
    first_finished_at = least(c.first_finished_at, excluded.first_finished_at)
RETURNING {CELL_COLUMNS}, (xmax = 0) AS is_new
"""  # noqa: S608 - constants
_COUNT_CELLS = """
INSERT INTO notebook_cells AS n (notebook_id, cell_id, cell_index, cell_type, student_count, exercise_id)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::int[], $4::text[], $5::int[], $6::text[])
ON CONFLICT (notebook_id, cell_id) DO UPDATE SET student_count = n.student_count + excluded.student_count,
    cell_index = CASE WHEN n.is_registered THEN n.cell_index ELSE coalesce(excluded.cell_index, n.cell_index) END,
    exercise_id = CASE WHEN n.is_registered THEN n.exercise_id
                       ELSE greatest(n.exercise_id COLLATE "C", excluded.exercise_id COLLATE "C") END
"""
# Cells whose exercise is news: asked without a lock, since nearly always there are none.
_FIND_EXERCISES = """
SELECT k.notebook_id, k.cell_id FROM unnest($1::uuid[], $2::text[], $3::text[]) AS k(notebook_id, cell_id, exercise_id)
JOIN notebook_cells n USING (notebook_id, cell_id)
WHERE NOT n.is_registered AND (n.exercise_id IS NULL OR n.exercise_id COLLATE "C" < k.exercise_id COLLATE "C")
"""
_READ_CELLS = f"""
SELECT {CELL_COLUMNS} FROM learner_cells JOIN unnest($1::uuid[], $2::smallint[], $3::uuid[], $4::text[])
    AS k(user_id, shard, notebook_id, cell_id) USING (user_id, shard, notebook_id, cell_id)
"""  # noqa: S608 - constants


_encode_json = msgspec.json.Encoder().encode


class UsersMerged(Exception):
    """Some of these users have become part of others (`into`: user -> the one that goes on); take those instead."""

    def __init__(self, into: dict[UUID, UUID]) -> None:
        super().__init__(f"{len(into)} users were merged")
        self.into = into


class UsersErased(Exception):
    """Some of these users or courses are no more; what is still on its way of theirs is to be dropped."""


# Locked until the transaction ends: an erasure that has begun has ended, or waits and then sees what was stored.
_COUNT_PRESENT = """
SELECT (SELECT count(*) FROM (SELECT FROM users WHERE id = ANY($1::uuid[]) FOR KEY SHARE) u)
    + (SELECT count(*) FROM (SELECT FROM courses WHERE id = ANY($2::uuid[]) FOR KEY SHARE) c)
"""


async def lock_states(
    connection: asyncpg.Connection, keys: Iterable[StateKey], seal: EncryptedField
) -> dict[StateKey, LearnerState]:
    """
    Lock every state row of these people, in order: the one mutex per student. Missing rows are made first.

    `last_ordinal` of each state given back is the student's highest over all courses. Raises UsersMerged, UsersErased.
    """
    wanted = set(keys)
    users = list({user_id for user_id, _ in wanted})  # the statement orders the locks
    rows = await connection.fetch(_LOCK_STATES, users)
    if missing := sorted(wanted - {(row["user_id"], row["course_id"]) for row in rows}):
        needed = [list({key[place] for key in missing}) for place in (0, 1)]
        if await connection.fetchval(_COUNT_PRESENT, *needed) != sum(map(len, needed)):
            raise UsersErased
        shards = [get_shard_number(user_id) for user_id, _ in missing]
        await connection.execute(_INSERT_STATES, [key[0] for key in missing], shards, [key[1] for key in missing])
        rows = await connection.fetch(_LOCK_STATES, users)
    if merged := {row["user_id"]: row["merged_into"] for row in rows if row["merged_into"]}:
        raise UsersMerged(merged)
    highest: dict[UUID, int] = {}
    for row in rows:
        highest[row["user_id"]] = max(highest.get(row["user_id"], 0), row["last_ordinal"])
    return {
        key: msgspec.structs.replace(read_state(row, seal), last_ordinal=highest[row["user_id"]])
        for row in rows
        if (key := (row["user_id"], row["course_id"])) in wanted
    }


async def write_states(
    connection: asyncpg.Connection, states: Mapping[StateKey, LearnerState], seal: EncryptedField
) -> None:
    """Store folded states; their rows are locked by this transaction."""
    keys = list(states)
    ordered = [states[key] for key in keys]
    await connection.execute(
        _UPDATE_STATES,
        [key[0] for key in keys],
        [get_shard_number(key[0]) for key in keys],
        [key[1] for key in keys],
        [state.revision for state in ordered],
        [state.last_ordinal for state in ordered],
        [pack_state(state) for state in ordered],
        [datetime.fromtimestamp(state.last_activity_ms / 1000, UTC) for state in ordered],
        [state.notebook_id for state in ordered],
        [
            seal.seal(state.help.text, table="learner_states", column="help_text", user_id=key[0])
            if state.help.text
            else None
            for key, state in zip(keys, ordered, strict=True)
        ],
    )


async def write_cells(
    connection: asyncpg.Connection, folds: Mapping[CellKey, classroom.CellFold], *, teaches: bool = True
) -> dict[StateKey, list[CellState]]:
    """
    Add folds to their cells; every touched cell as it now stands. A learner's new cells count for the notebook, where
    that is at hand (`teaches`: this is the directory).
    """
    rows = await connection.fetch(
        _UPSERT_CELLS,
        _encode_json(
            [
                {
                    "user_id": user_id,
                    "shard": get_shard_number(user_id),
                    "notebook_id": notebook_id,
                    "cell_id": cell_id,
                    **msgspec.structs.asdict(folds[user_id, notebook_id, cell_id]),
                }
                for user_id, notebook_id, cell_id in folds
            ]
        ).decode(),
    )
    if teaches:
        await teach_notebooks(connection, rows, _list_exercises(folds))
    return _group_cells(rows)


def _list_exercises(folds: Mapping[CellKey, classroom.CellFold]) -> Exercises:
    found: Exercises = {}
    for (_, notebook_id, cell_id), fold in folds.items():
        if fold.exercise_id is not None:
            place = notebook_id, cell_id
            found[place] = max(found.get(place, ""), fold.exercise_id)
    return found


async def teach_notebooks(
    connection: asyncpg.Connection, written: Iterable[asyncpg.Record], exercises: Exercises
) -> None:
    """
    What learners' cells show of their notebooks: `written` has `notebook_id`, `cell_id`, `cell_index` and `is_new` (to
    that learner) of each; a registered cell's exercise is left as it is.
    """
    learned: dict[_Place, list[int | None]] = {}
    for row in written:
        if row["is_new"]:
            learned.setdefault((row["notebook_id"], row["cell_id"]), []).append(row["cell_index"])
    if exercises:
        places = list(exercises)
        news = await connection.fetch(
            _FIND_EXERCISES, [place[0] for place in places], [place[1] for place in places], list(exercises.values())
        )
        for row in news:
            learned.setdefault((row["notebook_id"], row["cell_id"]), [])
    if learned:
        places = sorted(learned)
        await connection.execute(
            _COUNT_CELLS,
            [place[0] for place in places],
            [place[1] for place in places],
            [next((index for index in learned[place] if index is not None), None) for place in places],
            ["code"] * len(places),
            [len(learned[place]) for place in places],
            [exercises.get(place) for place in places],
        )


async def read_cells(connection: asyncpg.Connection, keys: Sequence[CellKey]) -> dict[StateKey, list[CellState]]:
    """Cells as they stand."""
    return _group_cells(
        await connection.fetch(
            _READ_CELLS,
            [key[0] for key in keys],
            [get_shard_number(key[0]) for key in keys],
            [key[1] for key in keys],
            [key[2] for key in keys],
        )
    )


def _group_cells(rows: Iterable[asyncpg.Record]) -> dict[StateKey, list[CellState]]:
    found: dict[StateKey, list[CellState]] = {}
    for row in rows:
        found.setdefault((row["user_id"], row["course_id"]), []).append(read_cell(row))
    return found


def read_state(row: asyncpg.Record, seal: EncryptedField) -> LearnerState:
    """A LearnerState (without cells) from a row of learner_states with STATE_COLUMNS."""
    stored = unpack_state(row["state"]) if row["state"] else StoredState()
    help_request = stored.help
    if row["help_text"] is not None and help_request.is_open:
        text = seal.unseal(row["help_text"], table="learner_states", column="help_text", user_id=row["user_id"])
        help_request = msgspec.structs.replace(help_request, text=text)
    return LearnerState(
        user_id=str(row["user_id"]),
        course_id=str(row["course_id"]),
        revision=row["revision"],
        last_ordinal=row["last_ordinal"],
        last_activity_ms=stored.last_activity_ms,
        last_run_ms=stored.last_run_ms,
        notebook_id=stored.notebook_id,
        notebook_at_ms=stored.notebook_at_ms,
        recent=stored.recent,
        help=help_request,
        kernel=stored.kernel,
    )


def read_cell(row: asyncpg.Record) -> CellState:
    """A CellState from a row of learner_cells with CELL_COLUMNS."""
    first = row["first_finished_at"]
    return CellState(
        notebook_id=str(row["notebook_id"]),
        cell_id=row["cell_id"],
        cell_index=row["cell_index"],
        revision=row["revision"],
        attempt_count=row["attempt_count"],
        error_count=row["error_count"],
        last_status=row["last_status"],
        last_at_ms=round(row["last_at"].timestamp() * 1000),
        first_finished_ms=round(first.timestamp() * 1000) if first else None,
    )
