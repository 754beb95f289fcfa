"""What the directory shows of learners whose rows are in another database: their state, cells, hands and recent runs.

A class is looked at as a whole, and its students' rows are in every database: so the worker brings what the live pages
read into the directory's tables of the same names, and nobody has to ask every database for a board. Not with each
batch: boards hear of it by themselves, and a row that stands for half a second would be written for nobody (`Payer`).

Promises: rows are written as they stand, read under the directory's lock of the learner, and the higher revision wins:
writing them again, late or twice, changes nothing. A debt is written with what makes it, so that what a killed worker
left out is made up for; one that was paid is not read again, since its learner may have moved on. The columns that the
API writes (an inbox's number) are never touched, and nobody who was erased comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import asyncpg
import msgspec
import structlog

from nbpulse.events import HELP_EVENT_TYPES, ReceivedEvent
from nbpulse.metrics import name_query
from nbpulse.records.failures import UNAVAILABLE
from nbpulse.records.inboxes import note_hand
from nbpulse.records.learners import CellKey, Exercises, StateKey, teach_notebooks
from nbpulse.shards import get_shard_number

GATHER_S: Final = 0.5
SHOWN_S: Final = 0.75
"""Within which the directory shows what was stored, where nothing is away: who misses a row looks after so long."""
_KEYS_MAX: Final = 1_000
FINISH_S: Final = 2.0
_log = structlog.get_logger(__name__)
_RECENT: Final = timedelta(hours=1)
_HALF_MINUTE_S: Final = 30
_NOTE: Final = "INSERT INTO rollup_debts (id, user_ids, course_ids) VALUES ($1, $2, $3)"
_FIND_OWED: Final = "SELECT id FROM rollup_debts WHERE id = ANY($1::uuid[])"
_SETTLE: Final = "DELETE FROM rollup_debts WHERE id = ANY($1::uuid[])"
_FIND: Final = """
SELECT id, user_ids, course_ids FROM rollup_debts WHERE created_at < now() - $1 * interval '1 second'
ORDER BY created_at LIMIT $2
"""
_KEYS: Final = "unnest($1::uuid[], $2::smallint[], $3::uuid[]) AS k(user_id, shard, course_id)"
# Nobody who was erased: only of people and courses that are there.
_ENSURE: Final = f"""
INSERT INTO learner_states (user_id, shard, course_id)
SELECT k.user_id, k.shard, k.course_id FROM {_KEYS} JOIN users u ON u.id = k.user_id
JOIN courses c ON c.id = k.course_id
ORDER BY k.user_id, k.course_id ON CONFLICT DO NOTHING
"""  # noqa: S608 - constants
_LOCK: Final = f"""
SELECT s.user_id, s.course_id FROM learner_states s JOIN {_KEYS} USING (user_id, shard, course_id)
ORDER BY s.user_id, s.course_id FOR UPDATE OF s
"""  # noqa: S608
_READ_STATES: Final = f"""
SELECT json_agg(s) FROM learner_states s JOIN {_KEYS} USING (user_id, shard, course_id)
"""  # noqa: S608
_READ_HELPS: Final = f"SELECT json_agg(h) FROM help_requests h JOIN {_KEYS} USING (user_id, shard, course_id)"  # noqa: S608
_READ_ALL_CELLS: Final = f"""
SELECT json_agg(c) FROM learner_cells c JOIN {_KEYS} USING (user_id, shard, course_id)
"""  # noqa: S608
_READ_CELLS: Final = """
SELECT json_agg(c) FROM learner_cells c JOIN unnest($1::uuid[], $2::smallint[], $3::uuid[], $4::text[])
    AS k(user_id, shard, notebook_id, cell_id) USING (user_id, shard, notebook_id, cell_id)
"""
IS_RUN: Final = (
    "e.event_type = 'cell_execution' AND e.data->>'status' IS DISTINCT FROM 'aborted' AND e.cell_id IS NOT NULL"
)
_RUNS: Final = f"""
SELECT e.user_id, e.shard, e.course_id, e.notebook_id, k.half_minute, count(*)::int AS runs,
    (count(*) FILTER (WHERE e.data->>'status' = 'error'))::int AS errors
FROM unnest($1::uuid[], $2::int[]) AS k(course_id, half_minute) JOIN events e ON e.course_id = k.course_id
    AND e.occurred_at >= to_timestamp(k.half_minute::float8 * {_HALF_MINUTE_S})
    AND e.occurred_at < to_timestamp((k.half_minute + 1)::float8 * {_HALF_MINUTE_S})
WHERE e.user_id = ANY($3::uuid[]) AND e.notebook_id IS NOT NULL AND {IS_RUN}
GROUP BY e.user_id, e.shard, e.course_id, e.notebook_id, k.half_minute
"""  # noqa: S608
_READ_RUNS: Final = f"SELECT json_agg(r) FROM ({_RUNS}) r"  # noqa: S608
# Whole half minutes: a count replaces the one that is there.
_READ_ALL_RUNS: Final = f"""
SELECT json_agg(r) FROM (
    SELECT e.user_id, e.shard, e.course_id, e.notebook_id, floor(extract(epoch FROM e.occurred_at)
        / {_HALF_MINUTE_S})::int AS half_minute, count(*)::int AS runs,
        (count(*) FILTER (WHERE e.data->>'status' = 'error'))::int AS errors
    FROM events e JOIN {_KEYS} USING (user_id, shard, course_id)
    WHERE e.occurred_at >= to_timestamp(floor(extract(epoch FROM now() - interval '1 hour') / {_HALF_MINUTE_S})
            * {_HALF_MINUTE_S}) AND e.notebook_id IS NOT NULL AND {IS_RUN}
    GROUP BY 1, 2, 3, 4, 5
) r
"""  # noqa: S608
_WRITE_STATES: Final = """
UPDATE learner_states s SET revision = k.revision, last_ordinal = k.last_ordinal, state = k.state,
    last_activity_at = k.last_activity_at, notebook_id = k.notebook_id, help_text = k.help_text
FROM json_populate_recordset(NULL::learner_states, $1::json) k
WHERE (s.user_id, s.shard, s.course_id) = (k.user_id, k.shard, k.course_id) AND s.revision < k.revision
"""
_WRITE_CELLS: Final = """
INSERT INTO learner_cells AS c
SELECT * FROM json_populate_recordset(NULL::learner_cells, $1::json) k ORDER BY user_id, notebook_id, cell_id
ON CONFLICT (user_id, shard, notebook_id, cell_id) DO UPDATE SET course_id = excluded.course_id,
    revision = excluded.revision, attempt_count = excluded.attempt_count, error_count = excluded.error_count,
    last_status = excluded.last_status, cell_index = excluded.cell_index, last_at = excluded.last_at,
    last_sequence = excluded.last_sequence, last_ok_at = excluded.last_ok_at,
    first_finished_at = excluded.first_finished_at
WHERE c.revision < excluded.revision
RETURNING c.notebook_id, c.cell_id, c.cell_index, (xmax = 0) AS is_new
"""
_WRITE_HELPS: Final = """
INSERT INTO help_requests AS h
SELECT * FROM json_populate_recordset(NULL::help_requests, $1::json) k ORDER BY user_id, id
ON CONFLICT (user_id, shard, id) DO UPDATE SET closed_at = excluded.closed_at
WHERE h.closed_by IS NULL AND h.closed_at IS DISTINCT FROM excluded.closed_at
RETURNING h.user_id, h.course_id
"""
_WRITE_RUNS: Final = """
INSERT INTO recent_runs AS r SELECT * FROM json_populate_recordset(NULL::recent_runs, $1::json) k
ORDER BY user_id, notebook_id, half_minute
ON CONFLICT (user_id, shard, notebook_id, half_minute) DO UPDATE SET runs = excluded.runs, errors = excluded.errors
WHERE (r.runs, r.errors) <> (excluded.runs, excluded.errors)
"""
_FORGET_RUNS: Final = """
DELETE FROM recent_runs WHERE half_minute < extract(epoch FROM now() - interval '1 day')::int / 30
"""

Seen = Sequence[tuple[ReceivedEvent, UUID | None]]
"""Events, each with its course notebook's id."""


class Debt(msgspec.Struct, frozen=True):
    """Learners whose rows the directory does not show yet. `seen`: the batch that did it; None: not known any more."""

    id: UUID
    keys: tuple[StateKey, ...]
    seen: Seen | None = None


async def note(connection: asyncpg.Connection, seen: Seen) -> Debt:
    """A batch's learners as a debt, inside the batch's transaction."""
    keys = tuple(sorted({(event.user_id, event.course_id) for event, _ in seen}))
    debt = Debt(uuid4(), keys, seen)
    await connection.execute(_NOTE, debt.id, [key[0] for key in keys], [key[1] for key in keys])
    return debt


async def find(source: asyncpg.Pool, older_than_s: float, limit: int = 20) -> list[Debt]:
    """Debts that a killed worker left in a database, oldest first."""
    rows = await source.fetch(_FIND, older_than_s, limit, timeout=5)
    return [Debt(row["id"], tuple(zip(row["user_ids"], row["course_ids"], strict=True))) for row in rows]


async def pay(debts: Sequence[Debt], source: asyncpg.Pool, directory: asyncpg.Pool) -> None:
    """Bring these learners' rows from `source` into the directory. Raises what the driver raises: then pay again."""
    ids = [debt.id for debt in debts]
    async with directory.acquire(timeout=5) as there, there.transaction():
        present = await _lock(there, sorted({key for debt in debts for key in debt.keys}))
        if present:
            # Read after the locks: whoever comes later brings what is at least as new.
            async with source.acquire(timeout=5) as here:
                owed = {row["id"] for row in await here.fetch(_FIND_OWED, ids)}
                seen = _gather([debt for debt in debts if debt.id in owed])
                rows = await _read(here, present, seen) if owed else _Rows()
            await _write(there, rows, _list_exercises(seen or ()))
    await source.execute(_SETTLE, ids, timeout=5)


def _gather(debts: Iterable[Debt]) -> Seen | None:
    seen: list[tuple[ReceivedEvent, UUID | None]] = []
    for debt in debts:
        if debt.seen is None:
            return None
        seen += debt.seen
    return seen


class Payer:
    """
    Pays one database's debts, those of half a second at once: what a learner does within it is one row there.

    A failure leaves the debts for `find`.
    """

    def __init__(self, source: asyncpg.Pool, directory: asyncpg.Pool) -> None:
        self._source = source
        self._directory = directory
        self._owed: list[Debt] = []
        self._waiting: asyncio.Task[None] | None = None
        self._ends = asyncio.Event()

    async def owe(self, debt: Debt, *, at_once: bool) -> None:
        """
        Have it paid within `GATHER_S`, or `at_once`, before this returns, with all that is owed. So too where much is
        owed: nobody stores faster than it is shown. Raises what the driver raises.
        """
        self._owed.append(debt)
        if at_once or sum(len(one.keys) for one in self._owed) >= _KEYS_MAX:
            await self._pay()
        elif self._waiting is None:
            self._waiting = asyncio.create_task(self._pay_later())

    async def finish(self) -> None:
        """Pay what is owed, within 2 s; the rest is left to other workers."""
        self._ends.set()
        if (waiting := self._waiting) is not None:
            _, late = await asyncio.wait([waiting], timeout=FINISH_S)
            if late:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)

    async def _pay_later(self) -> None:
        try:
            while self._owed:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ends.wait(), GATHER_S)
                try:
                    await self._pay()
                except UNAVAILABLE as error:
                    _log.warning("rollups.left_owed", error=type(error).__name__)
                except Exception:  # noqa: BLE001 - as any periodic job's own fault: the debts stay, and it is seen here
                    _log.exception("rollups.left_owed")
        finally:
            self._waiting = None

    async def _pay(self) -> None:
        debts, self._owed = self._owed, []
        if debts:
            with name_query("pay_rollups"):
                await pay(debts, self._source, self._directory)


async def forget_runs(directory: asyncpg.Pool) -> None:
    """Runs of more than a day ago; nobody reads them here."""
    await directory.execute(_FORGET_RUNS, timeout=30)


async def _lock(there: asyncpg.Connection, keys: Collection[StateKey]) -> list[StateKey]:
    columns = _list_columns(keys)
    found = await there.fetch(_LOCK, *columns)
    if len(found) < len(keys):
        await there.execute(_ENSURE, *columns)
        found = await there.fetch(_LOCK, *columns)
    return [(row["user_id"], row["course_id"]) for row in found]


def _list_columns(keys: Iterable[StateKey]) -> tuple[list[UUID], list[int], list[UUID]]:
    ordered = list(keys)
    return [key[0] for key in ordered], [get_shard_number(key[0]) for key in ordered], [key[1] for key in ordered]


class _Rows(msgspec.Struct):
    """JSON arrays of rows as they stand in the source; None for none."""

    states: str | None = None
    cells: str | None = None
    helps: str | None = None
    runs: str | None = None


async def _read(here: asyncpg.Connection, present: Sequence[StateKey], seen: Seen | None) -> _Rows:
    columns = _list_columns(present)
    states = await here.fetchval(_READ_STATES, *columns)
    if seen is None:
        everything = (_READ_ALL_CELLS, _READ_HELPS, _READ_ALL_RUNS)
        return _Rows(states, *[await here.fetchval(query, *columns) for query in everything])
    keys = set(present)
    cell_keys = {
        _name_cell(event, notebook_id)
        for event, notebook_id in seen
        if notebook_id and event.cell_id and (event.user_id, event.course_id) in keys
    }
    ordered = sorted(cell_keys)
    cells = helps = runs = None
    if ordered:
        cells = await here.fetchval(
            _READ_CELLS,
            [key[0] for key in ordered],
            [get_shard_number(key[0]) for key in ordered],
            [key[1] for key in ordered],
            [key[2] for key in ordered],
        )
    if any(event.event_type in HELP_EVENT_TYPES for event, _ in seen):
        helps = await here.fetchval(_READ_HELPS, *columns)
    ran = [
        event for event, _ in seen if event.event_type == "cell_execution" and (event.user_id, event.course_id) in keys
    ]
    if slots := _list_slots(ran):
        user_ids = list({event.user_id for event in ran})
        runs = await here.fetchval(_READ_RUNS, [slot[0] for slot in slots], [slot[1] for slot in slots], user_ids)
    return _Rows(states, cells, helps, runs)


def _name_cell(event: ReceivedEvent, notebook_id: UUID) -> CellKey:
    return event.user_id, notebook_id, event.cell_id or ""


def _list_slots(ran: Iterable[ReceivedEvent]) -> list[tuple[UUID, int]]:
    """Courses and half minutes of the last hour in which one of these runs falls."""
    since = datetime.now(UTC) - _RECENT
    return sorted(
        {
            (event.course_id, int(event.occurred_at.timestamp()) // _HALF_MINUTE_S)
            for event in ran
            if event.occurred_at > since
        }
    )


def _list_exercises(seen: Seen) -> Exercises:
    found: Exercises = {}
    for event, notebook_id in seen:
        if notebook_id and event.cell_id and event.exercise_id is not None:
            place = notebook_id, event.cell_id
            found[place] = max(found.get(place, ""), event.exercise_id)
    return found


async def _write(there: asyncpg.Connection, rows: _Rows, exercises: Exercises) -> None:
    if rows.cells:
        written = await there.fetch(_WRITE_CELLS, rows.cells)
        await teach_notebooks(there, written, exercises)
    if rows.helps:
        changed = await there.fetch(_WRITE_HELPS, rows.helps)
        for key in sorted({(row["user_id"], row["course_id"]) for row in changed}):
            await note_hand(there, *key)
    if rows.runs:
        await there.execute(_WRITE_RUNS, rows.runs)
    if rows.states:
        await there.execute(_WRITE_STATES, rows.states)
