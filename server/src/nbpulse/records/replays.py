"""A past class meeting on the board: rebuilt from the ledger for each question, nothing kept.

Promises: of the students whom whoever asks may see; a stretch is read in pieces and folded beside the event loop, so
other boards go on; a meeting of more events than a report may have is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from nbpulse.classroom import Classroom
from nbpulse.classroom.care import LIFE_HOURS, Action
from nbpulse.classroom.learners import CellFold
from nbpulse.classroom.replay import CellPlace, PastClass
from nbpulse.crypto import EncryptedField
from nbpulse.errors import InvalidInput, NotFound
from nbpulse.events import ReceivedEvent
from nbpulse.records.adding import find_busiest
from nbpulse.records.gathering import connect_parts, leaves_out
from nbpulse.records.inboxes import read_action, to_ms
from nbpulse.records.interventions import COLUMNS, read_staff_names
from nbpulse.records.meetings import Meeting
from nbpulse.records.people import People
from nbpulse.records.reports import EVENT_ORDER, EVENTS_MAX, find_span
from nbpulse.records.views import ClassReader

STEPS_MAX: Final = 150
"""Frames of one answer."""
_BEFORE: Final = timedelta(hours=1)
"""So long before the meeting events are folded one by one: an error of then may still be one that several have."""
_MEETING: Final = """
SELECT id, title, notebook_ids, started_at, ended_at, started_by, ended_by FROM class_meetings
WHERE course_id = $1 AND id = $2
"""
_STAYS: Final = """
SELECT user_id, min(occurred_at) AS first_at, max(occurred_at) AS last_at FROM events
WHERE course_id = $1 AND occurred_at >= $2 AND occurred_at <= $3 GROUP BY user_id
"""
_BUSIEST: Final = """
SELECT notebook_id, count(*) AS events FROM events WHERE course_id = $1 AND occurred_at >= $2 AND occurred_at <= $3
    AND notebook_id IS NOT NULL GROUP BY notebook_id
"""
# How each cell stood by then: the later run holds, by the rule of learners.py. A notebook has no events before its
# first learning session.
_CELLS_BEFORE: Final = """
SELECT DISTINCT ON (user_id, cell_id) user_id, cell_id, cell_index, occurred_at, sequence, status,
    min(occurred_at) FILTER (WHERE is_finished) OVER (PARTITION BY user_id, cell_id) AS first_finished_at
FROM (
    SELECT user_id, cell_id, cell_index, occurred_at, sequence, event_type = 'cell_execution' AS is_finished,
        CASE event_type WHEN 'cell_execution' THEN coalesce(data->>'status', 'unknown') ELSE 'running' END AS status
    FROM events WHERE course_id = $1 AND notebook_id = $2 AND occurred_at < $3 AND cell_id IS NOT NULL
        AND event_type IN ('cell_execution', 'cell_execution_start')
        AND occurred_at >= (SELECT min(started_at) FROM learning_sessions WHERE course_id = $1 AND notebook_id = $2)
) run WHERE status <> 'aborted'
ORDER BY user_id, cell_id, occurred_at DESC, sequence DESC, is_finished DESC, status DESC
"""
_ACTIONS: Final = f"""
SELECT {COLUMNS} FROM interventions
WHERE course_id = $1 AND action <> 'note' AND at > $2::timestamptz - interval '{LIFE_HOURS} hours' AND at <= $3
"""  # noqa: S608 - constants
_EVENTS: Final = f"""
SELECT user_id, event_id, event_type, occurred_at, received_at, notebook_id, cell_id, cell_index, sequence, ordinal,
    data, error_message, traceback
FROM events WHERE course_id = $1 AND occurred_at >= $2 AND occurred_at <= $3
ORDER BY {", ".join(EVENT_ORDER)} LIMIT {EVENTS_MAX + 1}
"""  # noqa: S608
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


class Wanted(NamedTuple):
    """From when (None: the beginning), for how long, and in which steps; ms."""

    at: int | None
    span_ms: int
    step_ms: int


class Stretch(msgspec.Struct, frozen=True):
    """
    The board at `at` as the live one tells it (`snapshot`), and the frames after it, one for each `step_ms`, until
    `until`; all ms since 1970. `start`, `end`: the whole meeting's.
    """

    start: int
    end: int
    at: int
    until: int
    step_ms: int
    snapshot: dict[str, Any]
    frames: list[dict[str, Any]]


class Replays:
    """Past classes for a course's staff. Every method raises Unavailable (NB-2003) when PostgreSQL is away."""

    def __init__(self, people: People, classes: ClassReader) -> None:
        self._people = people
        self._classes = classes

    async def play(self, course_id: UUID, meeting_id: UUID, notebook_id: UUID | None, wanted: Wanted) -> Stretch:
        """
        A stretch of the meeting, at most STEPS_MAX steps, of one notebook (None: that of most events). What is wanted
        from outside the meeting begins at its nearer end.

        Raises NotFound (NB-1230: no such meeting, NB-1201: no such notebook), InvalidInput (NB-1231: more than
        EVENTS_MAX events, NB-1233: nothing happened in it).
        """
        async with self._people.connect("replay") as connection:
            row = await connection.fetchrow(_MEETING, course_id, meeting_id)
            if row is None:
                raise NotFound("NB-1230")
            meeting = Meeting(**dict(row))
            span = start, end = find_span(meeting)
            actions = await _read_actions(connection, self._people.seal, course_id, span)
        async with connect_parts(self._people, "replay", is_staff=True) as parts:
            stays = {
                one["user_id"]: (to_ms(one["first_at"]), to_ms(one["last_at"]))
                for one in await parts.fetch(_STAYS, course_id, *span)
            }
            notebook_id = notebook_id or find_busiest(await parts.fetch(_BUSIEST, course_id, *span))
        if notebook_id is None:
            raise InvalidInput("NB-1233")
        loaded = await self._classes.load_class(course_id, notebook_id)
        pulse = loaded.pulse
        learners = [one for one in loaded.learners if not leaves_out(UUID(one.user_id))]
        room = Classroom(str(course_id), str(notebook_id), rules=pulse.rules, columns=pulse.columns, learners=learners)
        room.set_groups(pulse.groups)
        room.set_meeting(to_ms(start), is_over=False)
        past = PastClass(room, course_id, notebook_id, stays)
        first, last = to_ms(start), to_ms(end)
        begin = first if wanted.at is None else max(first, min(wanted.at, last))
        step_ms = wanted.step_ms
        steps = min(STEPS_MAX, max(1, wanted.span_ms // step_ms))
        until = min(begin + steps * step_ms, last)
        player = _Player(past, self._people.seal, course_id, begin=begin, until=until, step_ms=step_ms)
        await self._feed(player, course_id, notebook_id, (start, actions))
        shown = {one["id"]: one for one in loaded.pulse.notebooks}
        notebook = shown[str(notebook_id)]
        snapshot = {
            "schema": 1,
            "epoch": str(meeting_id),
            "seq": 0,
            "at": begin,
            "course": loaded.course,
            "notebook": {name: notebook[name] for name in ("id", "path", "title")},
            "notebooks": [{**one, "active": 0} for one in shown.values() if UUID(one["id"]) in meeting.notebook_ids],
            "meeting": {"id": meeting.id, "title": meeting.title, "started_at": first, "ended_at": last},
            "staff": [],  # who of them looked at the board then, nobody has written down
            **player.snapshot,
        }
        return Stretch(first, last, begin, until, step_ms, snapshot, player.frames)

    async def _feed(
        self, player: _Player, course_id: UUID, notebook_id: UUID, since: tuple[datetime, Sequence[Action]]
    ) -> None:
        """Everything that occurred up to the stretch's end, in pieces."""
        start, actions = since
        until = datetime.fromtimestamp(player.until / 1000, UTC)
        async with connect_parts(self._people, "replay", is_staff=True) as parts:
            before = await parts.fetch(_CELLS_BEFORE, course_id, notebook_id, start - _BEFORE)
            player.past.begin(_read_cells(course_id, before), actions)
            count = 0
            async for rows in parts.walk(_EVENTS, course_id, start - _BEFORE, until, order=EVENT_ORDER):
                if (count := count + len(rows)) > EVENTS_MAX:
                    raise InvalidInput("NB-1231", limit=EVENTS_MAX)
                await asyncio.to_thread(player.take, rows)
        await asyncio.to_thread(player.finish)


class _Player:
    """Takes rows in the order of time and makes the snapshot at `begin` and the frames after it."""

    def __init__(
        self, past: PastClass, seal: EncryptedField, course_id: UUID, *, begin: int, until: int, step_ms: int
    ) -> None:
        self.past, self.until = past, until
        self.snapshot: dict[str, Any] = {}
        self.frames: list[dict[str, Any]] = []
        self._seal, self._course_id, self._step_ms = seal, course_id, step_ms
        self._begin = self._next = begin
        self._waiting: list[tuple[ReceivedEvent, UUID | None]] = []

    def take(self, rows: Sequence[asyncpg.Record]) -> None:
        for row in rows:
            at_ms = to_ms(row["occurred_at"])
            while at_ms > self._next:
                self._step()
            self._waiting.append((self._read(row), row["notebook_id"]))
        if self._next == self._begin:  # nobody looks yet: what waits need not
            self._take_waiting()

    def finish(self) -> None:
        while not self.snapshot or self._next <= self.until:
            self._step()

    def _step(self) -> None:
        """Look at the time of the next step, which everything before it has been taken in for."""
        self._take_waiting()
        self.past.look(self._next)
        changes = self.past.room.take_changes()
        if self._next == self._begin:
            self.snapshot = msgspec.to_builtins(self.past.room.snapshot())
        else:
            self.frames.append({"t": "d", "seq": len(self.frames) + 1, "at": self._next, **changes})
        # The last step is the stretch's end, also where it is no whole one.
        is_last = self._next == self.until
        self._next += self._step_ms
        if not is_last:
            self._next = min(self._next, self.until)

    def _take_waiting(self) -> None:
        self.past.take(self._waiting)
        self._waiting = []

    def _read(self, row: asyncpg.Record) -> ReceivedEvent:
        data = _decode(row["data"])
        for name in ("error_message", "traceback"):
            # The traceback tells errors apart only where there is no message (errorgroups.py).
            if row[name] is not None and "error_message" not in data:
                data[name] = self._seal.unseal(row[name], table="events", column=name, user_id=row["user_id"])
        return ReceivedEvent(
            event_id=row["event_id"],
            event_type=row["event_type"],
            occurred_at=row["occurred_at"],
            received_at=row["received_at"],
            user_id=row["user_id"],
            course_id=self._course_id,
            cell_id=row["cell_id"],
            cell_index=row["cell_index"],
            sequence=row["sequence"],
            data=data,
        )


async def _read_actions(
    connection: asyncpg.Connection, seal: EncryptedField, course_id: UUID, span: tuple[datetime, datetime]
) -> list[Action]:
    rows = await connection.fetch(_ACTIONS, course_id, *span)
    names = await read_staff_names(connection, seal, {row["staff_id"] for row in rows})
    return [read_action(row, names) for row in rows]


def _read_cells(course_id: UUID, rows: Sequence[asyncpg.Record]) -> dict[CellPlace, CellFold]:
    return {
        (row["user_id"], row["cell_id"]): CellFold(
            course_id=course_id,
            cell_index=row["cell_index"],
            revision=1,
            attempt_count=0,
            error_count=0,
            last_status=row["status"],
            last_at=row["occurred_at"],
            last_sequence=row["sequence"],
            first_finished_at=row["first_finished_at"],
        )
        for row in rows
    }
