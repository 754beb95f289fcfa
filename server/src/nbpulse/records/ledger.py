"""The ledger: one transaction per batch, each event stored and counted once.

Promises: a batch is wholly stored or not at all; an event that is already stored changes nothing and gives back what
was stored of it; rows are locked in user order, the learner's state row first, so that workers never deadlock and no
number is given twice to a learner's events; free text is sealed before it reaches a column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from nbpulse import classroom
from nbpulse.classroom import LearnerState
from nbpulse.crypto import EncryptedField
from nbpulse.errors import Unavailable
from nbpulse.events import HELP_EVENT_TYPES, ReceivedEvent
from nbpulse.metrics import name_query, named_query
from nbpulse.pipeline import CellExecutionPoint, Recorded, RejectedPoint
from nbpulse.records import accounting, debts, inboxes, learners, marks, rollups, sessions
from nbpulse.records.databases import hold_shards
from nbpulse.records.failures import UNAVAILABLE
from nbpulse.records.learners import StateKey
from nbpulse.records.notebooks import CourseNotebook, NotebookDirectory
from nbpulse.records.points import make_point, set_aside
from nbpulse.shards import SHARD_COUNT, Place, ShardMap, get_shard_number

_SEALED_DATA = frozenset({"error_message", "traceback", "source", "output", "message"})
# The dedup row and the ledger row in one statement: what ON CONFLICT lets through is new, and only that is stored.
# RETURNING: without it Citus would COPY the rows to their nodes, which row-level security refuses.
_INSERT_EVENTS = """
WITH batch AS (
    SELECT * FROM json_to_recordset($1::json) AS k(user_id uuid, shard smallint, event_id uuid, entry_id text,
        occurred_at timestamptz, received_at timestamptz, ordinal bigint, course_id uuid, event_type text,
        notebook_id uuid, learning_session_id uuid, cell_id text, cell_index int, cell_type text, exercise_id text,
        sequence bigint, error_fingerprint text, error_message text, traceback text, data jsonb)
), new AS (
    INSERT INTO event_ids (user_id, shard, event_id, ordinal, occurred_at, received_at, entry_id)
    SELECT user_id, shard, event_id, ordinal, occurred_at, received_at, entry_id FROM batch
    ON CONFLICT DO NOTHING RETURNING user_id, event_id
), stored AS (
    INSERT INTO events (user_id, shard, event_id, occurred_at, received_at, ordinal, course_id, event_type, notebook_id,
        learning_session_id, cell_id, cell_index, cell_type, exercise_id, sequence, error_fingerprint, error_message,
        traceback, data)
    SELECT user_id, shard, event_id, occurred_at, received_at, ordinal, course_id, event_type, notebook_id,
        learning_session_id, cell_id, cell_index, cell_type, exercise_id, sequence, error_fingerprint, error_message,
        traceback, data
    FROM batch JOIN new USING (user_id, event_id)
    RETURNING 1
)
SELECT count(*) FROM stored
"""
_FIND_KNOWN = """
SELECT e.user_id, e.event_id, e.ordinal, e.occurred_at, e.entry_id FROM event_ids e
JOIN unnest($1::uuid[], $2::smallint[], $3::uuid[]) AS k(user_id, shard, event_id) USING (user_id, shard, event_id)
"""
_INSERT_CONTENTS = """
INSERT INTO event_contents (user_id, shard, event_id, occurred_at, course_id, notebook_id, cell_id, source, output)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING
"""
_INSERT_HELP = """
INSERT INTO help_requests (user_id, shard, id, course_id, notebook_id, cell_id, message, opened_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING
"""
# Requests and withdrawals may arrive in any order: a request ends with the first withdrawal after it in the ledger,
# worked out anew each time; what a member of staff closed stays closed.
_CLOSE_HELP = """
WITH said AS (
    SELECT event_id, event_type, occurred_at, sequence FROM events
    WHERE user_id = $1 AND course_id = $2 AND event_type IN ('help_request', 'help_cancel')
), ends AS (
    SELECT o.event_id, min(c.occurred_at) AS at FROM said o
    LEFT JOIN said c ON c.event_type = 'help_cancel' AND (c.occurred_at, c.sequence) > (o.occurred_at, o.sequence)
    WHERE o.event_type = 'help_request' GROUP BY o.event_id
)
UPDATE help_requests h SET closed_at = ends.at FROM ends
WHERE h.user_id = $1 AND h.course_id = $2 AND h.closed_by IS NULL AND h.id = ends.event_id
"""


class _LedgerRow(msgspec.Struct):
    """One row of `events`, as _INSERT_EVENTS reads it."""

    user_id: UUID
    shard: int
    event_id: UUID
    entry_id: str | None
    occurred_at: datetime
    received_at: datetime
    ordinal: int
    course_id: UUID
    event_type: str
    notebook_id: UUID | None
    learning_session_id: UUID | None
    cell_id: str | None
    cell_index: int | None
    cell_type: str | None
    exercise_id: str | None
    sequence: int
    error_fingerprint: str | None
    error_message: str | None
    traceback: str | None
    data: dict[str, Any]


_encode_rows = msgspec.json.Encoder().encode


class _Item:
    """One event on its way through the transaction."""

    __slots__ = ("entry_id", "event", "is_new", "notebook", "occurred_at", "ordinal", "session_id")

    def __init__(self, event: ReceivedEvent, notebook: CourseNotebook | None) -> None:
        self.event = event
        self.notebook = notebook
        self.session_id = sessions.make_session_id(event, notebook.id) if notebook else None
        self.ordinal = 0
        self.occurred_at = event.occurred_at
        self.entry_id = event.entry[1] if event.entry else None  # of the entry that stored it
        self.is_new = True

    @property
    def notebook_id(self) -> UUID | None:
        return self.notebook.id if self.notebook else None


class PostgresLedger:
    """
    The ledger in one database, as `pipeline.Ledger`. `full_texts`: points bear what an error said in full, instead of
    the masked text. `directory`: where people and notebooks are, if elsewhere. `get_places`: the map as last read.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        seal: EncryptedField,
        notebooks: NotebookDirectory,
        *,
        full_texts: bool = False,
        directory: asyncpg.Pool | None = None,
        get_places: Callable[[], ShardMap] = lambda: [Place()] * SHARD_COUNT,
    ) -> None:
        self._full_texts = full_texts
        self._pool = pool
        self._directory = directory or pool
        self._is_directory = directory is None
        self._payer = rollups.Payer(pool, self._directory)
        self._get_places = get_places
        self._seal = seal
        self._notebooks = notebooks

    async def record_events(
        self, events: Sequence[ReceivedEvent], *, is_again: bool = False, debt_id: UUID | None = None
    ) -> Recorded:
        """
        Store `events` (1..1000, any people and courses) in one transaction.

        Raises Unavailable (NB-2003) when PostgreSQL is away or rolled back for a passing reason: nothing is stored
        then; NB-2035 when a person or a notebook has not come from the directory yet. Raises NotHere when it does not
        hold a shard, UsersMerged when somebody has become part of one who is in another database. Any other database
        error leaves as it is: one event cannot be stored, and the caller bisects.
        """
        try:
            with name_query("record_events"):
                return await self._record_unmerged(events, debt_id)
        except learners.UsersMerged as merged:
            places = self._get_places()
            if any(
                places[get_shard_number(e)].database != places[get_shard_number(k)].database
                for e, k in merged.into.items()
            ):
                raise  # theirs is another database
            # The transaction is rolled back: once more, as the users they have become.
            return await self.record_events(
                [msgspec.structs.replace(e, user_id=merged.into.get(e.user_id, e.user_id)) for e in events],
                debt_id=debt_id,
            )
        except (learners.UsersErased, asyncpg.ForeignKeyViolationError):
            # Of people or courses that have been removed meanwhile nothing is stored any more. Where all are there, a
            # notebook was: it is learned anew, once.
            self._notebooks.forget()
            kept = await self._drop_erased(events)
            if len(kept) == len(events) and not self._is_directory:
                raise Unavailable("NB-2035") from None
            if len(kept) == len(events) and is_again:
                raise
            if not kept:
                return Recorded(states=(), points=(), stored_count=0, duplicate_count=0, debt_id=None)
            return await self.record_events(kept, is_again=len(kept) == len(events), debt_id=debt_id)
        except UNAVAILABLE as error:
            self._notebooks.forget()
            raise Unavailable("NB-2003") from error

    @named_query("find_erased")
    async def _drop_erased(self, events: Sequence[ReceivedEvent]) -> list[ReceivedEvent]:
        """Those of `events` whose user and course still exist; the others' entries are counted as dropped."""
        try:
            rows = await self._directory.fetch(
                "SELECT u.id AS user_id, c.id AS course_id FROM users u, courses c"
                " WHERE u.id = ANY($1::uuid[]) AND c.id = ANY($2::uuid[])",
                list({event.user_id for event in events}),
                list({event.course_id for event in events}),
                timeout=5,
            )
            there = {(row["user_id"], row["course_id"]) for row in rows}
            gone = [event for event in events if (event.user_id, event.course_id) not in there]
            await accounting.count_dropped(self._directory, gone)
        except UNAVAILABLE as error:
            raise Unavailable("NB-2003") from error
        return [event for event in events if (event.user_id, event.course_id) in there]

    @named_query("settle_debt")
    async def settle_debt(self, debt_id: UUID, rejected: Sequence[RejectedPoint] = ()) -> None:
        """The batch's points are written, or set aside: delete its debt. Raises Unavailable (NB-2003)."""
        try:
            async with self._pool.acquire(timeout=5) as connection, connection.transaction():
                if rejected:
                    await set_aside(connection, rejected)
                await connection.execute("DELETE FROM series_debt WHERE id = $1", debt_id)
        except UNAVAILABLE as error:
            raise Unavailable("NB-2003") from error

    @named_query("find_debts")
    async def find_debts(self, older_than_s: float, limit: int = 20) -> list[Recorded]:
        """Batches whose points are still owed, oldest first, as `pipeline.measure` takes them."""
        try:
            return await debts.find(self._pool, self._seal, older_than_s, limit)
        except UNAVAILABLE as error:
            raise Unavailable("NB-2003") from error

    @named_query("close_idle_sessions")
    async def close_idle_sessions(self) -> int:
        """Close sessions without an event for 30 minutes; how many (sessions.py). Raises Unavailable (NB-2003)."""
        try:
            return await sessions.close_idle_sessions(self._pool)
        except UNAVAILABLE as error:
            raise Unavailable("NB-2003") from error

    @named_query("pay_rollups")
    async def pay_rollups(self, older_than_s: float) -> None:
        """Bring to the directory what a killed worker stored here and did not bring. Raises Unavailable (NB-2003)."""
        try:
            while owed := await rollups.find(self._pool, older_than_s):
                await rollups.pay(owed, self._pool, self._directory)
        except UNAVAILABLE as error:
            raise Unavailable("NB-2003") from error

    async def _record_unmerged(self, events: Sequence[ReceivedEvent], debt_id: UUID | None) -> Recorded:
        # A retry may stand twice in one batch: the first is the event, the second its duplicate.
        unique: dict[tuple[UUID, UUID], ReceivedEvent] = {}
        for event in events:
            unique.setdefault((event.user_id, event.event_id), event)
        shown = None
        if not self._is_directory:
            async with self._directory.acquire(timeout=5) as there:
                items = [_Item(*await self._notebooks.resolve(there, event)) for event in unique.values()]
        async with self._pool.acquire(timeout=5) as connection:
            if self._is_directory:
                items = [_Item(*await self._notebooks.resolve(connection, event)) for event in unique.values()]
            async with connection.transaction():
                places = self._get_places()
                await hold_shards(connection, {get_shard_number(item.event.user_id) for item in items}, places)
                recorded = await self._record(connection, items, events, debt_id)
                if not self._is_directory:
                    shown = await rollups.note(connection, [(item.event, item.notebook_id) for item in items])
        if shown is not None:
            # A hand is looked up by who hears of it: it is shown before anybody is told.
            await self._payer.owe(shown, at_once=any(item.event.event_type in HELP_EVENT_TYPES for item in items))
        return recorded

    async def finish(self) -> None:
        """Bring to the directory what is still owed of this process's batches, within 2 s."""
        await self._payer.finish()

    async def _record(
        self,
        connection: asyncpg.Connection,
        items: list[_Item],
        events: Sequence[ReceivedEvent],
        debt_id: UUID | None,
    ) -> Recorded:
        keys = {(item.event.user_id, item.event.course_id) for item in items}
        states = await learners.lock_states(connection, keys, self._seal)
        _number(items, states)
        await self._insert_events(connection, items)
        new = [item for item in items if item.is_new]
        await self._insert_texts(connection, new)
        session_items = [(item.event, item.notebook_id, item.session_id) for item in new]
        await sessions.update_session_stats(connection, session_items)
        await marks.mark(connection, session_items)
        states |= await self._fold_states(connection, new, states)
        cells = await self._record_cells(connection, items, new)
        points = tuple(self._measure(item) for item in items if item.event.event_type == "cell_execution")
        stored_by = {(item.event.user_id, item.event.event_id): item.entry_id for item in items}
        await accounting.count_batch(connection, events, stored_by=stored_by, stored_count=len(new))
        return Recorded(
            states=tuple(
                msgspec.structs.replace(state, cells=tuple(cells.get(key, ()))) for key, state in states.items()
            ),
            points=points,
            stored_count=len(new),
            duplicate_count=len(events) - len(new),
            debt_id=await debts.note(connection, points, self._seal if self._full_texts else None, debt_id)
            if points
            else None,
        )

    def _measure(self, item: _Item) -> CellExecutionPoint:
        event, path = item.event, item.notebook.path if item.notebook else ""
        return make_point(
            *(event.user_id, event.course_id, item.occurred_at, item.ordinal),
            path=path,
            cell_index=event.cell_index,
            data=event.data,
            full_text=self._full_texts,
        )

    async def _insert_events(self, connection: asyncpg.Connection, items: list[_Item]) -> None:
        """Store what is new; of what is known take over the number and the time it was stored with."""
        rows = [self._make_row(item) for item in items]
        if await connection.fetchval(_INSERT_EVENTS, _encode_rows(rows).decode()) == len(items):
            return
        stored = await connection.fetch(
            _FIND_KNOWN, [row.user_id for row in rows], [row.shard for row in rows], [row.event_id for row in rows]
        )
        by_key = {(row["user_id"], row["event_id"]): row for row in stored}
        for item in items:
            row = by_key[item.event.user_id, item.event.event_id]
            item.is_new = row["ordinal"] == item.ordinal
            item.ordinal, item.occurred_at, item.entry_id = row["ordinal"], row["occurred_at"], row["entry_id"]

    def _make_row(self, item: _Item) -> _LedgerRow:
        event, notebook_id = item.event, item.notebook_id
        has_error = event.event_type == "cell_execution" and event.data.get("status") == "error"
        data = event.data
        if not _SEALED_DATA.isdisjoint(data):
            data = {name: value for name, value in data.items() if name not in _SEALED_DATA}
        return _LedgerRow(
            user_id=event.user_id,
            shard=get_shard_number(event.user_id),
            event_id=event.event_id,
            entry_id=item.entry_id,
            occurred_at=event.occurred_at,
            received_at=event.received_at,
            ordinal=item.ordinal,
            course_id=event.course_id,
            event_type=event.event_type,
            notebook_id=notebook_id,
            learning_session_id=item.session_id,
            cell_id=event.cell_id,
            cell_index=event.cell_index,
            cell_type=event.cell_type,
            exercise_id=event.exercise_id,
            sequence=event.sequence,
            error_fingerprint=(
                classroom.fingerprint_error(str(notebook_id or ""), event.cell_id or "", event.data)
                if has_error
                else None
            ),
            error_message=self._seal_text(event, "events", "error_message"),
            traceback=self._seal_text(event, "events", "traceback"),
            data=data,
        )

    def _seal_text(self, event: ReceivedEvent, table: str, name: str) -> str | None:
        text = event.data.get(name)
        return self._seal.seal(str(text), table=table, column=name, user_id=event.user_id) if text else None

    async def _insert_texts(self, connection: asyncpg.Connection, new: list[_Item]) -> None:
        """Collected sources and outputs, and help lines: each in a table of its own, so that it can be erased alone."""
        for item in new:
            event, shard = item.event, get_shard_number(item.event.user_id)
            if "source" in event.data or "output" in event.data:
                source = self._seal_text(event, "event_contents", "source")
                output = self._seal_text(event, "event_contents", "output")
                run = (event.user_id, shard, event.event_id, event.occurred_at)
                place = (event.course_id, item.notebook_id, event.cell_id)
                await connection.execute(_INSERT_CONTENTS, *run, *place, source, output)
            if event.event_type == "help_request":
                request = (event.user_id, shard, event.event_id, event.course_id, item.notebook_id, event.cell_id)
                message = self._seal_text(event, "help_requests", "message")
                await connection.execute(_INSERT_HELP, *request, message, event.occurred_at)

    async def _fold_states(
        self, connection: asyncpg.Connection, new: list[_Item], states: dict[StateKey, LearnerState]
    ) -> dict[StateKey, LearnerState]:
        """Fold the new events into their learners' states; a state without news keeps its revision."""
        news: dict[StateKey, list[tuple[ReceivedEvent, UUID | None]]] = {}
        asks_help: set[StateKey] = set()
        for item in new:
            key = (item.event.user_id, item.event.course_id)
            news.setdefault(key, []).append((item.event, item.notebook_id))
            if item.event.event_type in HELP_EVENT_TYPES:
                asks_help.add(key)
        folded = {}
        for key, events in news.items():
            state = classroom.fold_events(states[key], events)
            folded[key] = msgspec.structs.replace(state, revision=state.revision + 1)
        if folded:
            await learners.write_states(connection, folded, self._seal)
        for key in sorted(asks_help):
            await connection.execute(_CLOSE_HELP, *key)
            if self._is_directory:  # else with the roll-up
                await inboxes.note_hand(connection, *key)
        return folded

    async def _record_cells(
        self, connection: asyncpg.Connection, items: list[_Item], new: list[_Item]
    ) -> dict[StateKey, list[classroom.CellState]]:
        """Fold the new runs into their cells and give back every cell of the batch as it now stands."""
        folds = classroom.fold_cells((item.event, item.notebook.id) for item in new if item.notebook)
        cells = await learners.write_cells(connection, folds, teaches=self._is_directory) if folds else {}
        known = {
            (item.event.user_id, item.notebook.id, item.event.cell_id)
            for item in items
            if item.notebook and item.event.cell_id and not item.is_new
        } - folds.keys()
        if known:
            for key, states in (await learners.read_cells(connection, sorted(known))).items():
                cells.setdefault(key, []).extend(states)
        return cells


def _number(items: list[_Item], states: dict[StateKey, LearnerState]) -> None:
    """Give each event the student's next number; one that proves known leaves a gap, which harms nothing."""
    next_ordinals: dict[UUID, int] = {}
    for (user_id, _), state in states.items():
        next_ordinals[user_id] = max(next_ordinals.get(user_id, 0), state.last_ordinal)
    for item in items:
        next_ordinals[item.event.user_id] += 1
        item.ordinal = next_ordinals[item.event.user_id]
    for key, state in states.items():
        states[key] = msgspec.structs.replace(state, last_ordinal=next_ordinals[key[0]])
