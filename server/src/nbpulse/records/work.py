"""The work of one student, one cell, one error, with the texts that the course collects; for its staff.

Promises: every read is bounded by a course, a window or a number of rows, and asks as who asks, so that nobody is shown
a student who is not theirs; texts are opened here alone, and none is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from nbpulse.classroom import ErrorGroup, Run, label_error, list_errors
from nbpulse.collection import DEFAULT, Policy
from nbpulse.records.analysis import Place, Span
from nbpulse.records.consents import read_policy
from nbpulse.records.errorgroups import read_groups
from nbpulse.records.gathering import connect_home, connect_parts
from nbpulse.records.learners import STATE_COLUMNS, STUDENT_STATES, read_state
from nbpulse.records.people import People
from nbpulse.shards import get_shard_number

TRACE_RUNS_MAX: Final = 500
ERROR_RUNS_MAX: Final = 5_000
EXAMPLES_MAX: Final = 10

_RUN_COLUMNS: Final = """
e.event_id, e.occurred_at AS at, e.notebook_id, e.cell_id, e.cell_index, e.data->>'status' AS status,
    e.data->'execution_duration_ms' AS duration_ms, e.data->'execution_count' AS execution_count,
    e.data->>'error_name' AS error_name, e.error_fingerprint, e.error_message, e.traceback
"""
_RUNS: Final = f"""
SELECT {_RUN_COLUMNS}, c.source, c.output
FROM events e LEFT JOIN event_contents c ON (c.user_id, c.shard, c.event_id) = (e.user_id, e.shard, e.event_id)
WHERE e.user_id = $1 AND e.shard = $2 AND e.course_id = $3 AND e.event_type = 'cell_execution'
    AND ($4::uuid IS NULL OR e.notebook_id = $4) AND ($5::text IS NULL OR e.cell_id = $5)
    AND ($6::timestamptz IS NULL OR (e.occurred_at, e.event_id) < ($6, $7::uuid))
ORDER BY e.occurred_at DESC, e.event_id DESC LIMIT $8
"""  # noqa: S608 - constants
_TRACE: Final = """
SELECT occurred_at AS at, notebook_id, cell_id, cell_index, data->>'status' AS status FROM events
WHERE user_id = $1 AND shard = $2 AND course_id = $3 AND event_type = 'cell_execution' AND occurred_at >= $4
    AND occurred_at < $5
ORDER BY occurred_at DESC, sequence DESC LIMIT $6
"""
_SITTINGS: Final = """
SELECT notebook_id, started_at, last_activity_at AS until FROM learning_sessions
WHERE user_id = $1 AND shard = $2 AND course_id = $3 AND last_activity_at >= $4 AND started_at < $5
ORDER BY started_at DESC LIMIT 50
"""
_HANDS: Final = """
SELECT message, opened_at, closed_at, notebook_id, cell_id FROM help_requests
WHERE user_id = $1 AND shard = $2 AND course_id = $3 ORDER BY opened_at DESC LIMIT 20
"""
_CELL: Final = """
SELECT n.path, n.title AS notebook_title, c.cell_index, c.title, c.exercise_id, c.source, c.is_registered
FROM notebooks n JOIN notebook_cells c ON c.notebook_id = n.id
WHERE n.course_id = $1 AND n.id = $2 AND c.cell_id = $3
"""
_STANDINGS: Final = """
SELECT user_id, attempt_count, error_count, last_status, last_at, last_ok_at FROM learner_cells
WHERE notebook_id = $2 AND cell_id = $3 AND course_id = $1
"""
_LATEST: Final = """
SELECT DISTINCT ON (user_id) user_id, occurred_at, source, output FROM event_contents
WHERE course_id = $1 AND notebook_id = $2 AND cell_id = $3 ORDER BY user_id, occurred_at DESC, event_id DESC
"""
# To a cell one comes with the run before it, in whatever cell of the notebook; after a pause, with its own first run.
_ANSWERS: Final = """
WITH run AS MATERIALIZED (
    SELECT user_id, cell_id, occurred_at, sequence, data->>'status' AS status FROM events
    WHERE course_id = $1 AND occurred_at >= $4 AND occurred_at < $5 AND event_type = 'cell_execution'
        AND notebook_id = $2 AND data->>'status' <> 'aborted'
), placed AS (
    SELECT *, lag(occurred_at) OVER (PARTITION BY user_id ORDER BY occurred_at, sequence) AS before_at FROM run
), here AS (
    SELECT *, row_number() OVER (PARTITION BY user_id ORDER BY occurred_at, sequence) AS number FROM placed
    WHERE cell_id = $3
), first_ok AS (
    SELECT DISTINCT ON (user_id) user_id, number, occurred_at FROM here WHERE status = 'ok' ORDER BY user_id, number
)
SELECT h.user_id, o.number AS tries, (extract(epoch FROM o.occurred_at - CASE
    WHEN h.before_at > h.occurred_at - interval '30 minutes' THEN h.before_at ELSE h.occurred_at END) * 1000)::bigint
    AS time_ms
FROM here h JOIN first_ok o USING (user_id) WHERE h.number = 1
"""
_ERROR: Final = """
SELECT user_id, occurred_at AS at, notebook_id, cell_id, cell_index, data->>'error_name' AS error_name, error_message,
    traceback, error_fingerprint FROM events
WHERE course_id = $1 AND occurred_at >= $2 AND occurred_at < $3 AND error_fingerprint = ANY($4::text[])
ORDER BY occurred_at DESC LIMIT $5
"""


class RunText(msgspec.Struct, frozen=True):
    """One finished run, as it was; the texts None where they were not collected, or are kept no more."""

    event_id: UUID
    at: datetime
    notebook_id: UUID | None
    cell_id: str | None
    cell_index: int | None
    status: str | None
    duration_ms: Any
    execution_count: Any
    error_name: str | None
    error_label: str | None
    error_fingerprint: str | None
    error_message: str | None
    traceback: str | None
    source: str | None
    output: str | None


class Hand(msgspec.Struct, frozen=True):
    """A request for help. `closed_at` None: the hand is up."""

    opened_at: datetime
    closed_at: datetime | None
    notebook_id: UUID | None
    cell_id: str | None
    text: str | None


class StudentTrace(msgspec.Struct, frozen=True):
    """What a student did in a window: runs (the newest 500, from the newest), stretches of work; and all hands."""

    notebook_id: str | None
    last_activity_ms: int
    runs: list[dict[str, Any]]
    sittings: list[dict[str, Any]]
    hands: list[Hand]


class Answer(NamedTuple):
    """One student's standing on a cell. `time_ms`, `tries`: until the first ok in the window, None for none."""

    runs: int
    errors: int
    status: str
    last_at: datetime
    time_ms: int | None
    tries: int | None
    source: str | None
    output: str | None


class CellWork(NamedTuple):
    """A cell, as the teacher registered it (`source` None: they did not), and each student's answer by user id."""

    cell: dict[str, Any]
    source: str | None
    answers: dict[str, Answer]


class ErrorWork(msgspec.Struct, frozen=True):
    """
    One error group in a window, with what is settled about it and those that are merged into it. `now`: who has it
    now, and their last run that failed this way.
    """

    group: ErrorGroup
    merged: list[dict[str, Any]]
    now: dict[str, Run]
    students: int
    runs: int
    is_cut: bool
    first_at: datetime | None
    last_at: datetime | None
    label: str
    cells: list[dict[str, Any]]
    times_ms: list[int]
    examples: list[dict[str, Any]]


# The teacher's cells, and what one ran oneself: of nobody else's cells one learns not even that they are there.
_OWN: Final = """
WITH ran AS MATERIALIZED (SELECT * FROM learner_cells WHERE user_id = $1 AND shard = $2)
SELECT n.id AS notebook_id, n.path, n.title AS notebook_title, c.cell_id, c.cell_index, c.title, l.last_status,
    l.attempt_count, l.error_count, l.last_at
FROM notebooks n JOIN notebook_cells c ON c.notebook_id = n.id
LEFT JOIN ran l ON (l.notebook_id, l.cell_id) = (n.id, c.cell_id)
WHERE n.course_id = $3 AND c.cell_type IS DISTINCT FROM 'markdown' AND (c.is_registered OR l.user_id IS NOT NULL)
ORDER BY n.created_at, n.id, c.cell_index NULLS LAST, c.cell_id LIMIT 5000
"""


class WorkReader:
    """Reads it from PostgreSQL. Every method raises Unavailable (NB-2003) when that is away."""

    def __init__(self, people: People) -> None:
        self._people = people
        self._seal = people.seal

    async def find_policy(self, course_id: UUID, user_id: UUID | None = None) -> tuple[Policy, bool]:
        """What is collected in the course, or of this student of it; and whether they have withdrawn."""
        async with self._people.connect("find_policy") as connection:
            row = await connection.fetchrow("SELECT * FROM find_collection($1, $2)", user_id, course_id)
        if row is None:
            return DEFAULT, False
        newest = Policy(row["version"], row["level"], tuple(row["without"]))
        return (read_policy(row) if user_id else newest), row["has_withdrawn"]

    async def read_student(self, course_id: UUID, user_id: UUID, span: Span) -> StudentTrace:
        """What one student did in the window."""
        whose = (user_id, get_shard_number(user_id), course_id)
        async with connect_home(self._people, user_id, "read_student") as connection:
            runs = await connection.fetch(_TRACE, *whose, *span, TRACE_RUNS_MAX)
            sittings = await connection.fetch(_SITTINGS, *whose, *span)
            hands = await connection.fetch(_HANDS, *whose)
            row = await connection.fetchrow(
                f"SELECT {STATE_COLUMNS} FROM learner_states WHERE user_id = $1 AND shard = $2 AND course_id = $3",  # noqa: S608
                *whose,
            )
        state = read_state(row, self._seal) if row else None
        return StudentTrace(
            notebook_id=state.notebook_id if state else None,
            last_activity_ms=state.last_activity_ms if state else 0,
            runs=[dict(one) for one in runs],
            sittings=[dict(one) for one in sittings],
            hands=[self._read_hand(user_id, one) for one in hands],
        )

    async def list_runs(
        self,
        course_id: UUID,
        user_id: UUID,
        *,
        notebook_id: UUID | None,
        cell_id: str | None,
        after: Place | None,
        limit: int,
    ) -> list[RunText]:
        """A student's runs with their texts, newest first; `after`: where the page before ended (its last run)."""
        whose = (user_id, get_shard_number(user_id), course_id)
        async with connect_home(self._people, user_id, "read_runs") as connection:
            rows = await connection.fetch(_RUNS, *whose, notebook_id, cell_id, *(after or (None, None)), limit)
        return [self._read_run(user_id, row) for row in rows]

    async def list_own_cells(self, course_id: UUID, user_id: UUID) -> list[dict[str, Any]]:
        """A student's own standing on each of the course's registered cells, and on the others that they ran."""
        async with self._people.connect("read_own_progress") as connection:
            rows = await connection.fetch(_OWN, user_id, get_shard_number(user_id), course_id)
        return [dict(row) for row in rows]

    async def read_cell(self, course_id: UUID, notebook_id: UUID, cell_id: str, span: Span) -> CellWork | None:
        """A cell with everybody's newest collected answer; None where the course has no such cell."""
        place = (course_id, notebook_id, cell_id)
        async with connect_parts(self._people, "read_cell", is_staff=True) as parts:
            cell = await parts.directory.fetchrow(_CELL, *place)
            if cell is None:
                return None
            standings = await parts.directory.fetch(_STANDINGS, *place)
            latest = {row["user_id"]: row for row in await parts.fetch(_LATEST, *place)}
            answered = {row["user_id"]: row for row in await parts.fetch(_ANSWERS, *place, *span)}
        told = dict(cell)
        source = told.pop("source") if told["is_registered"] else None
        answers = {}
        for row in standings:
            user_id = row["user_id"]
            texts, until_ok = latest.get(user_id), answered.get(user_id)
            answers[str(user_id)] = Answer(
                runs=row["attempt_count"],
                errors=row["error_count"],
                status=row["last_status"],
                last_at=row["last_at"],
                time_ms=until_ok["time_ms"] if until_ok else None,
                tries=until_ok["tries"] if until_ok else None,
                source=self._open(user_id, "event_contents", "source", texts),
                output=self._open(user_id, "event_contents", "output", texts),
            )
        return CellWork(told, source, answers)

    async def read_error(self, course_id: UUID, fingerprint: str, span: Span) -> ErrorWork:
        """
        An error group: who has it now, where and since when it was met, and how it was worded. For one that is merged
        into another, that other.
        """
        async with connect_parts(self._people, "read_error") as parts:
            groups = await read_groups(parts.directory, course_id)
            members = groups.list_members(groups.find(fingerprint))
            states = await parts.directory.fetch(STUDENT_STATES, course_id)
            rows = await parts.fetch(_ERROR, course_id, *span, members, ERROR_RUNS_MAX)
        if not parts.is_one:
            rows = sorted(rows, key=lambda row: row["at"], reverse=True)[:ERROR_RUNS_MAX]
        now: dict[str, Run] = {}
        for row in states:
            errors = list_errors(read_state(row, self._seal).recent)
            if mine := [errors[one] for one in members if one in errors]:
                now[str(row["user_id"])] = max(mine)
        examples = self._choose_examples(rows)
        names = [one["label"] for one in examples] + [run.label for run in now.values()]
        return ErrorWork(
            group=groups.get(members[0]),
            merged=[self._describe_member(one, rows) for one in members[1:]],
            now=now,
            students=len({row["user_id"] for row in rows}),
            runs=len(rows),
            is_cut=len(rows) == ERROR_RUNS_MAX,
            first_at=rows[-1]["at"] if rows else None,
            last_at=rows[0]["at"] if rows else None,
            label=names[0] if names else "",
            cells=_count_cells(rows),
            times_ms=[round(row["at"].timestamp() * 1000) for row in rows],
            examples=examples,
        )

    def _describe_member(self, fingerprint: str, rows: Iterable[asyncpg.Record]) -> dict[str, Any]:
        """A merged group in the words of its newest run; "" where nobody met it in the window."""
        mine = [row for row in rows if row["error_fingerprint"] == fingerprint]
        label = self._label(mine[0]) if mine else ""
        return {"fingerprint": fingerprint, "label": label, "students": len({row["user_id"] for row in mine})}

    def _label(self, row: asyncpg.Record) -> str:
        message = self._open(row["user_id"], "events", "error_message", row)
        return label_error({"error_name": row["error_name"], "error_message": message})

    def _choose_examples(self, rows: Iterable[asyncpg.Record]) -> list[dict[str, Any]]:
        """The newest wordings, each once, with whose it was; of the newest 200 runs, so that few texts are opened."""
        found: dict[tuple[str | None, str], dict[str, Any]] = {}
        for row in list(rows)[:200]:
            user_id = row["user_id"]
            message = self._open(user_id, "events", "error_message", row)
            key = (row["error_name"], message or "")
            if key not in found and len(found) < EXAMPLES_MAX:
                found[key] = {
                    "user_id": user_id,
                    "at": row["at"],
                    "label": label_error({"error_name": row["error_name"], "error_message": message}),
                    "error_name": row["error_name"],
                    "message": message,
                    "traceback": self._open(user_id, "events", "traceback", row),
                    "count": 0,
                }
            if key in found:
                found[key]["count"] += 1
        return list(found.values())

    def _read_run(self, user_id: UUID, row: asyncpg.Record) -> RunText:
        plain = {name: row[name] for name in ("event_id", "at", "notebook_id", "cell_id", "cell_index", "status")}
        message = self._open(user_id, "events", "error_message", row)
        error = {"error_name": row["error_name"], "error_message": message}
        return RunText(
            **plain,
            duration_ms=_read_number(row["duration_ms"]),
            execution_count=_read_number(row["execution_count"]),
            error_name=row["error_name"],
            error_label=label_error(error) if row["status"] == "error" else None,
            error_fingerprint=row["error_fingerprint"],
            error_message=message,
            traceback=self._open(user_id, "events", "traceback", row),
            source=self._open(user_id, "event_contents", "source", row),
            output=self._open(user_id, "event_contents", "output", row),
        )

    def _read_hand(self, user_id: UUID, row: asyncpg.Record) -> Hand:
        plain = {name: row[name] for name in ("opened_at", "closed_at", "notebook_id", "cell_id")}
        return Hand(**plain, text=self._open(user_id, "help_requests", "message", row))

    def _open(self, user_id: UUID, table: str, column: str, row: asyncpg.Record | None) -> str | None:
        sealed = row[column] if row is not None else None
        return self._seal.unseal(sealed, table=table, column=column, user_id=user_id) if sealed else None


def _read_number(text: str | None) -> float | None:
    """A number of an event's `data`, which came from a client."""
    try:
        found = msgspec.json.decode(text or "null", type=float | None)
    except msgspec.DecodeError:
        return None
    return found


def _count_cells(rows: Iterable[asyncpg.Record]) -> list[dict[str, Any]]:
    """Where the error was met: each cell with its number of runs and students, the most first."""
    users: dict[tuple[UUID | None, str | None, int | None], list[UUID]] = {}
    for row in rows:
        users.setdefault((row["notebook_id"], row["cell_id"], row["cell_index"]), []).append(row["user_id"])
    told = [
        {
            "notebook_id": place[0],
            "cell_id": place[1],
            "cell_index": place[2],
            "runs": len(ids),
            "students": len({*ids}),
        }
        for place, ids in users.items()
    ]
    return sorted(told, key=lambda cell: -cell["runs"])
