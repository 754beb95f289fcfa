"""A class meeting afterwards: its figures, read from the ledger and the staff's log in one pass.

Promises: nothing is stored anew, so what is erased is gone from here too; whoever asks is told of the students they may
see; a meeting is read in pieces, so its length costs time and no memory, and one beyond `EVENTS_MAX` is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from nbpulse.classroom import Column, ErrorGroups, label_error
from nbpulse.classroom.report import (
    CellFigures,
    Figures,
    MeetingFold,
    PastRun,
    Progress,
    Trouble,
    make_figures,
    name_errors,
)
from nbpulse.errors import InvalidInput, NotFound
from nbpulse.records.errorgroups import read_groups
from nbpulse.records.gathering import connect_parts, leaves_out
from nbpulse.records.inboxes import to_ms
from nbpulse.records.interventions import Intervention, Interventions
from nbpulse.records.meetings import Meeting
from nbpulse.records.members import open_member_name
from nbpulse.records.messages import Batch, Messages
from nbpulse.records.people import People
from nbpulse.records.rules import read_rules

EVENTS_MAX: Final = 400_000
"""Of one meeting; 200 students make about 40,000 in 90 minutes."""
EVENT_ORDER: Final = ("occurred_at", "sequence", "user_id", "ordinal")
_LOG_MAX: Final = 2_000
_COURSE: Final = "SELECT id, title, short_name, time_zone FROM courses WHERE id = $1"
_RULES: Final = "SELECT alert_rules FROM courses WHERE id = $1"
_MEETINGS: Final = """
SELECT id, title, notebook_ids, started_at, ended_at, started_by, ended_by FROM class_meetings
WHERE course_id = $1 AND started_at <= (SELECT started_at FROM class_meetings WHERE course_id = $1 AND id = $2)
ORDER BY started_at DESC LIMIT 2
"""
# Who may have been a student then: those of today, and who left later.
_STUDENTS: Final = """
SELECT e.user_id, e.student_number, e.maybe_same_as, e.roster_name, e.team, u.username, u.display_name,
    coalesce(e.joined_at, e.created_at) AS since
FROM enrolments e JOIN users u ON u.id = e.user_id
WHERE e.course_id = $1 AND (e.role = 'student' OR e.role = 'former' AND e.left_at > $2)
ORDER BY coalesce(e.student_number, u.username), e.user_id
"""
_EVENTS: Final = f"""
SELECT user_id, occurred_at, sequence, ordinal, event_type, notebook_id, cell_id, error_fingerprint,
    data->>'status' AS status, data->>'error_name' AS error_name
FROM events WHERE course_id = $1 AND occurred_at >= $2 AND occurred_at <= $3
ORDER BY {", ".join(EVENT_ORDER)} LIMIT {EVENTS_MAX + 1}
"""  # noqa: S608 - constants
_COLUMNS: Final = """
SELECT c.notebook_id, n.path, n.title AS notebook_title, c.cell_id, c.cell_index, c.title
FROM notebook_cells c JOIN notebooks n ON n.id = c.notebook_id
WHERE n.course_id = $1 AND n.id = ANY($2::uuid[]) AND c.cell_type IS DISTINCT FROM 'markdown'
    AND (c.is_registered OR c.student_count >=
    greatest(1, least(3, ceil(0.1 * (SELECT count(*) FROM enrolments WHERE course_id = $1 AND role = 'student')))))
ORDER BY n.path, c.notebook_id, c.cell_index NULLS LAST, c.cell_id LIMIT 1000
"""
_HANDS: Final = """
SELECT user_id, notebook_id, cell_id, opened_at, closed_at FROM help_requests
WHERE course_id = $1 AND opened_at <= $3 AND opened_at >= $2
"""
_LETTERS: Final = """
SELECT user_id, created_at FROM messages
WHERE course_id = $1 AND is_from_staff AND kind = 'message' AND created_at >= $2 AND created_at <= $3
"""
_SAYINGS: Final = """
SELECT DISTINCT ON (error_fingerprint) error_fingerprint, user_id, occurred_at, error_message,
    data->>'error_name' AS error_name
FROM events WHERE course_id = $1 AND occurred_at >= $2 AND occurred_at <= $3 AND error_fingerprint = ANY($4::text[])
ORDER BY error_fingerprint, occurred_at
"""


class Notebook(msgspec.Struct, frozen=True):
    """A course notebook that was used in a meeting."""

    id: UUID
    path: str
    title: str | None


class Pupil(msgspec.Struct, frozen=True):
    """A student as the report names them."""

    user_id: UUID
    name: str
    number: str
    team: str | None


class Summary(msgspec.Struct, frozen=True):
    """Another meeting, beside which a report is read."""

    meeting: Meeting
    figures: Figures


class Report(msgspec.Struct, frozen=True):
    """
    A meeting. `is_whole` False: whoever asks sees some teams, and it is of these students only. `people`: who never
    came and who was in trouble, in the course's order.
    """

    course: dict[str, Any]
    meeting: Meeting
    is_whole: bool
    figures: Figures
    previous: Summary | None
    progress: Progress | None
    notebooks: list[Notebook]
    cells: list[CellFigures]
    never_came: list[UUID]
    troubles: list[Trouble]
    people: list[Pupil]
    interventions: list[Intervention]
    messages: list[Batch]


class Reports:
    """Reports for a course's staff. Every method raises Unavailable (NB-2003) when PostgreSQL is away."""

    def __init__(self, people: People, interventions: Interventions, messages: Messages) -> None:
        self._people = people
        self._interventions = interventions
        self._messages = messages

    async def make(self, course_id: UUID, meeting_id: UUID) -> Report:
        """
        The report of a meeting, as it stands where it still goes on.

        Raises NotFound (NB-1230: no such meeting of the course), InvalidInput (NB-1231: more than EVENTS_MAX events).
        """
        async with self._people.connect("report") as connection:
            course = await connection.fetchrow(_COURSE, course_id)
            meetings = [Meeting(**dict(row)) for row in await connection.fetch(_MEETINGS, course_id, meeting_id)]
            is_whole = await connection.fetchval("SELECT find_my_teams($1) IS NULL", course_id)
        if course is None or not meetings or meetings[0].id != meeting_id:
            raise NotFound("NB-1230")
        meeting = meetings[0]
        reading = await self._read(course_id, meeting)
        previous = None
        if len(meetings) > 1:
            previous = Summary(meetings[1], (await self._read(course_id, meetings[1])).figures)
        notebooks, cells, progress = await self._describe(course_id, meeting, reading)
        never = [one["user_id"] for one in reading.students if one["user_id"] not in reading.fold.present]
        return Report(
            course=dict(course),
            meeting=meeting,
            is_whole=is_whole,
            figures=reading.figures,
            previous=previous,
            progress=progress,
            notebooks=notebooks,
            cells=cells,
            never_came=never,
            troubles=reading.troubles,
            people=self._name(reading.students, {*never, *(one.user_id for one in reading.troubles)}),
            interventions=reading.log,
            messages=await self._messages.list_batches(course_id, None, find_span(meeting)),
        )

    async def _read(self, course_id: UUID, meeting: Meeting) -> _Reading:
        """What happened in the meeting, folded."""
        span = start, end = find_span(meeting)
        log = await self._interventions.list_log(course_id, end, _LOG_MAX, since=start)
        async with self._people.connect("report") as connection:
            students = await connection.fetch(_STUDENTS, course_id, start)
            hands = await connection.fetch(_HANDS, course_id, *span)
            letters = await connection.fetch(_LETTERS, course_id, *span)
            rules = read_rules(await connection.fetchval(_RULES, course_id))
            groups = await read_groups(connection, course_id)
        mine = {row["user_id"] for row in students}
        fold, count = MeetingFold(rules), 0
        names: dict[str, str] = {}
        async with connect_parts(self._people, "report", is_staff=True) as parts:
            async for piece in parts.walk(_EVENTS, course_id, *span, order=EVENT_ORDER):
                if (count := count + len(piece)) > EVENTS_MAX:
                    raise InvalidInput("NB-1231", limit=EVENTS_MAX)
                for row in piece:
                    if row["user_id"] in mine:
                        _take(fold, row, groups, names)
        # Who came into the course after it is missing from no figure.
        students = [
            row
            for row in students
            if (row["since"] <= end or row["user_id"] in fold.present) and not leaves_out(row["user_id"])
        ]
        turned = [(one.user_id, to_ms(one.at)) for one in log if _turns_to_student(one)]
        turned += [(row["user_id"], to_ms(row["created_at"])) for row in letters]
        raised = [_read_hand(row, end) for row in hands if row["user_id"] in mine]
        troubles = fold.close(to_ms(end), raised, turned)
        figures = make_figures(fold, [row["user_id"] for row in students], troubles)
        return _Reading(fold, students, troubles, figures, log, groups)

    async def _describe(
        self, course_id: UUID, meeting: Meeting, reading: _Reading
    ) -> tuple[list[Notebook], list[CellFigures], Progress | None]:
        """The notebooks that were used, their cells, and how far the students came in the busiest."""
        fold, groups = reading.fold, reading.groups
        used = {notebook_id for notebook_id, _ in fold.runs}
        async with self._people.connect("report") as connection:
            rows = await connection.fetch(_COLUMNS, course_id, list(used))
        columns: dict[UUID, list[Column]] = {}
        notebooks: dict[UUID, Notebook] = {}
        for row in rows:
            notebook_id = row["notebook_id"]
            notebooks[notebook_id] = Notebook(notebook_id, row["path"], row["notebook_title"])
            columns.setdefault(notebook_id, []).append(Column(row["cell_id"], row["cell_index"], row["title"]))
        cells = [cell for one, own in columns.items() for cell in fold.describe_cells(one, own)]
        fingerprints = {cell.error.fingerprint for cell in cells if cell.error}
        cells = name_errors(cells, await self._label(course_id, meeting, fingerprints, groups), groups)
        busiest = max(columns, key=lambda one: sum(fold.runs[one, column.id] for column in columns[one]), default=None)
        progress = fold.measure_progress(busiest, columns[busiest]) if busiest else None
        return list(notebooks.values()), cells, progress

    async def _label(
        self, course_id: UUID, meeting: Meeting, fingerprints: set[str], groups: ErrorGroups
    ) -> dict[str, str]:
        """A few words for each error group, as the board has them: its own before those of one merged into it."""
        members = {member: one for one in fingerprints for member in reversed(groups.list_members(one))}
        async with connect_parts(self._people, "report", is_staff=True) as parts:
            rows = await parts.fetch(_SAYINGS, course_id, *find_span(meeting), list(members))
        # The first that was met of each: of one database there is no other.
        rows.sort(key=lambda row: row["occurred_at"], reverse=True)
        labels = {row["error_fingerprint"]: label_error(self._open_error(row)) for row in rows}
        return {members[one]: labels[one] for one in members if one in labels}

    def _open_error(self, row: asyncpg.Record) -> dict[str, object]:
        sealed, place = row["error_message"], {"table": "events", "column": "error_message"}
        message = self._people.seal.unseal(sealed, **place, user_id=row["user_id"]) if sealed else ""
        return {"error_name": row["error_name"], "error_message": message}

    def _name(self, students: Iterable[asyncpg.Record], user_ids: set[UUID]) -> list[Pupil]:
        return [
            Pupil(
                user_id=row["user_id"],
                name=open_member_name(self._people.seal, row),
                number=(None if row["maybe_same_as"] else row["student_number"]) or row["username"],
                team=row["team"],
            )
            for row in students
            if row["user_id"] in user_ids
        ]


class _Reading(msgspec.Struct, frozen=True):
    fold: MeetingFold
    students: list[asyncpg.Record]
    troubles: list[Trouble]
    figures: Figures
    log: list[Intervention]
    groups: ErrorGroups


def find_span(meeting: Meeting) -> tuple[datetime, datetime]:
    """From its beginning to its end, both included: one that ends by itself ends with its last event."""
    return meeting.started_at, meeting.ended_at or datetime.now(UTC)


def _take(fold: MeetingFold, row: asyncpg.Record, groups: ErrorGroups, names: dict[str, str]) -> None:
    """`names`: the class by which each group goes, that of its first error."""
    fold.present.add(row["user_id"])
    if row["event_type"] != "cell_execution" or row["notebook_id"] is None:
        return
    error, is_muted = None, False
    if row["error_fingerprint"]:
        group = groups.find(row["error_fingerprint"])
        error, is_muted = (group, names.setdefault(group, row["error_name"] or "Error")), group in groups.muted
    place = row["notebook_id"], row["cell_id"] or ""
    fold.take(PastRun(row["user_id"], to_ms(row["occurred_at"]), place, row["status"] or "unknown", error, is_muted))


def _turns_to_student(one: Intervention) -> bool:
    return one.action in ("claim", "helped") and not one.is_undone


def _read_hand(row: asyncpg.Record, end: datetime) -> Trouble:
    place = (row["notebook_id"], row["cell_id"]) if row["notebook_id"] and row["cell_id"] else None
    until = min(row["closed_at"] or end, end)
    return Trouble(row["user_id"], "help", to_ms(row["opened_at"]), to_ms(until), place)
