"""What the board reads of a class: roster, columns, learner states; whole, or only what moved.

Promises: names are opened only here and only for a class's own staff view; every read is one short look, never a lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from nbpulse.classroom import (
    DEFAULT_RULES,
    NO_GROUPS,
    Action,
    AlertRules,
    CellState,
    Column,
    ErrorGroups,
    Learner,
    LearnerState,
)
from nbpulse.crypto import EncryptedField
from nbpulse.errors import NotFound
from nbpulse.records.errorgroups import read_groups
from nbpulse.records.interventions import read_actions
from nbpulse.records.learners import IS_STUDENT, read_cell, read_state
from nbpulse.records.lessons import Position, read_positions
from nbpulse.records.members import open_member_name
from nbpulse.records.messages import count_unanswered, read_announcements
from nbpulse.records.people import People, Teams
from nbpulse.records.progress import DONE
from nbpulse.records.rollups import IS_RUN
from nbpulse.records.rules import read_rules
from nbpulse.shards import get_shard_number

_NAMES_KEPT: Final = 5_000


class Pulse(msgspec.Struct, frozen=True):
    """The little that tells whether a view is still right; `learner_revisions` by user id."""

    learner_revisions: dict[str, int]
    columns: list[Column]
    notebooks: list[dict[str, Any]]
    default_notebook_id: UUID | None
    meeting: dict[str, Any] | None
    """The course's newest: `id`, `title`, `started_at` and `ended_at` in ms (None: it goes on); None for none yet."""
    actions: list[Action] = []
    """What staff did for students in the last 12 hours."""
    mail: dict[str, int] = {}
    """How many messages of each student nobody has answered, of the last 12 hours."""
    lesson: list[Position] = []
    """Where the class has been taught in the notebook, as `read_positions`."""
    rules: AlertRules = DEFAULT_RULES
    groups: ErrorGroups = NO_GROUPS
    title: str = ""
    """The course's."""
    teams: Teams | None = None
    """Whose students, and those of no team, whoever asked was shown; None: the whole course."""


class LoadedClass(msgspec.Struct, frozen=True):
    """One notebook of a course with everything the board shows of it."""

    course: dict[str, Any]
    notebook_id: UUID | None
    pulse: Pulse
    learners: list[Learner]
    states: list[LearnerState]
    runs: list[tuple[str, int, int, int]] = []
    """Of the last hour: user id, half minute since 1970, runs, errors among them."""


_COURSE = "SELECT id, title, time_zone, join_code, is_demo FROM courses WHERE id = $1"
_ROSTER = """
SELECT e.user_id, e.student_number, e.seat, e.team, e.maybe_same_as, e.roster_name, u.username, u.display_name
FROM enrolments e JOIN users u ON u.id = e.user_id WHERE e.course_id = $1 AND e.role = 'student'
ORDER BY coalesce(e.student_number, u.username), e.user_id
"""
_REVISIONS = f"SELECT user_id, revision FROM learner_states WHERE course_id = $1 AND {IS_STUDENT}"  # noqa: S608 - constants
# Default notebook: the one with most students active in the last 15 minutes, else the newest.
_NOTEBOOKS = """
SELECT n.id, n.path, n.title, count(s.user_id) AS active FROM notebooks n
LEFT JOIN learner_states s ON s.course_id = n.course_id AND s.notebook_id = n.id
    AND s.last_activity_at > now() - interval '15 minutes'
WHERE n.course_id = $1 GROUP BY n.id ORDER BY active DESC, n.created_at DESC, n.id
"""
_MEETING = """
SELECT id, title, (extract(epoch FROM started_at) * 1000)::bigint AS started_at,
    (extract(epoch FROM ended_at) * 1000)::bigint AS ended_at
FROM class_meetings WHERE course_id = $1 ORDER BY started_at DESC LIMIT 1
"""
# A cell makes a column when the teacher registered it, or 3 students (or 10 % of a small class) ran it. Markdown never.
_COLUMNS = """
SELECT cell_id, cell_index, title, exercise_id FROM notebook_cells
WHERE notebook_id = $1 AND cell_type IS DISTINCT FROM 'markdown' AND (is_registered OR student_count >=
    greatest(1, least(3, ceil(0.1 * (SELECT count(*) FROM enrolments WHERE course_id = $2 AND role = 'student')))))
ORDER BY cell_index NULLS LAST, cell_id LIMIT 500
"""
_STATES = """
SELECT user_id, course_id, revision, last_ordinal, state, help_text FROM learner_states
WHERE course_id = $1 AND ($2::uuid[] IS NULL OR user_id = ANY($2::uuid[]))
"""
_CELLS = """
SELECT user_id, course_id, notebook_id, cell_id, cell_index, revision, attempt_count, error_count, last_status, last_at,
    first_finished_at
FROM learner_cells WHERE notebook_id = $1 AND ($2::uuid[] IS NULL OR user_id = ANY($2::uuid[]))
"""

# Of students whose rows are in another database the worker keeps the counts here (rollups.py). Those of a shard that
# has just moved may still be counted in both: either is the whole count, or was it a moment ago.
_RUNS = f"""
SELECT user_id::text, half_minute, max(runs), max(errors) FROM (
    SELECT user_id, floor(extract(epoch FROM occurred_at) / 30)::int AS half_minute, count(*)::int AS runs,
        (count(*) FILTER (WHERE data->>'status' = 'error'))::int AS errors
    FROM events e WHERE course_id = $1 AND notebook_id = $2 AND occurred_at > now() - interval '1 hour' AND {IS_RUN}
    GROUP BY 1, 2
    UNION ALL
    SELECT user_id, half_minute, runs, errors FROM recent_runs
    WHERE course_id = $1 AND notebook_id = $2
        AND half_minute > extract(epoch FROM now() - interval '1 hour')::int / 30
) either GROUP BY 1, 2
"""  # noqa: S608 - constants
_SUMMARY = f"""
WITH asked AS (SELECT id, course_id FROM notebooks WHERE id = $1 AND course_id = $2), {DONE},
students AS (
    SELECT d.completed, d.last_at FROM done d
    JOIN enrolments e ON e.user_id = d.user_id AND e.course_id = $2 AND e.role = 'student'
)
SELECT (SELECT count(*) FROM enrolments WHERE course_id = $2 AND role = 'student') AS total_students,
    (SELECT count(*) FROM students) AS started_students,
    (SELECT count(*) FROM students WHERE last_at > now() - interval '15 minutes') AS active_students,
    (SELECT coalesce(sum(total), 0) FROM totals) AS total_cells,
    (SELECT coalesce(sum(completed), 0) FROM students) AS completed_cells
FROM asked
"""  # noqa: S608 - constants


class ClassReader:
    """Reads classes from PostgreSQL. Every method raises Unavailable (NB-2003) when it is away."""

    def __init__(self, pool: asyncpg.Pool, seal: EncryptedField) -> None:
        self._people = People(pool, seal)
        self._seal = seal
        self._names: OrderedDict[tuple[UUID, str], str] = OrderedDict()

    async def load_class(self, course_id: UUID, notebook_id: UUID | None) -> LoadedClass:
        """
        A notebook of the course, or its default one for None.

        Raises NotFound: no such course (NB-1202), no such notebook in it (NB-1201).
        """
        # In one snapshot: a run that is counted in one of them and not in the other would be counted twice, or never.
        async with self._people.connect("load_class", isolation="repeatable_read") as connection:
            course = await connection.fetchrow(_COURSE, course_id)
            if course is None:
                raise NotFound("NB-1202")
            pulse = await self._read_pulse(connection, course_id, notebook_id)
            if notebook_id is None:
                notebook_id = pulse.default_notebook_id
            elif str(notebook_id) not in {notebook["id"] for notebook in pulse.notebooks}:
                raise NotFound("NB-1201")
            loaded = LoadedClass(
                course={**dict(course), "id": str(course_id)},
                notebook_id=notebook_id,
                pulse=pulse,
                learners=self._read_roster(await connection.fetch(_ROSTER, course_id)),
                states=await self._read_states(connection, course_id, notebook_id, None),
            )
            await connection.execute("SELECT read_as_staff()")
            runs = [tuple(row) for row in await connection.fetch(_RUNS, course_id, notebook_id)]
        return msgspec.structs.replace(loaded, runs=runs)

    async def load_pulse(self, course_id: UUID, notebook_id: UUID | None) -> Pulse:
        """Revisions, columns and notebooks as they stand."""
        async with self._people.connect("load_pulse") as connection:
            return await self._read_pulse(connection, course_id, notebook_id)

    async def load_roster(self, course_id: UUID) -> list[Learner]:
        """The course's students by number."""
        async with self._people.connect("load_roster") as connection:
            return self._read_roster(await connection.fetch(_ROSTER, course_id))

    async def load_announcements(self, course_id: UUID) -> list[dict[str, Any]]:
        """What staff told the whole class lately, as `read_announcements`."""
        async with self._people.connect("list_messages") as connection:
            return await read_announcements(connection, self._seal, course_id)

    async def load_states(
        self, course_id: UUID, notebook_id: UUID | None, user_ids: Iterable[str]
    ) -> list[LearnerState]:
        """These learners' states with all their cells of the notebook."""
        async with self._people.connect("load_states") as connection:
            return await self._read_states(connection, course_id, notebook_id, [UUID(one) for one in user_ids])

    async def summarise_class(self, course_id: UUID, notebook_id: UUID) -> dict[str, Any]:
        """
        A notebook's class in numbers; `avg_progress` is 0..1 over all students, also those who have not begun.

        Raises NotFound (NB-1201): no such notebook in the course.
        """
        async with self._people.connect("class_summary") as connection:
            row = await connection.fetchrow(_SUMMARY, notebook_id, course_id)
        if row is None:
            raise NotFound("NB-1201")
        whole = row["total_students"] * row["total_cells"]
        counts = ("total_students", "started_students", "active_students", "total_cells")
        return {
            **{name: int(row[name]) for name in counts},
            "avg_progress": round(int(row["completed_cells"]) / whole, 4) if whole else 0.0,
        }

    async def check_notebook(self, course_id: UUID, notebook_id: UUID) -> None:
        """Raises NotFound (NB-1201) when the course has no such notebook."""
        async with self._people.connect("check_notebook") as connection:
            if not await connection.fetchval(
                "SELECT true FROM notebooks WHERE id = $1 AND course_id = $2", notebook_id, course_id
            ):
                raise NotFound("NB-1201")

    async def find_session(self, user_id: UUID) -> tuple[str | None, int | None]:
        """The notebook a student worked in last, and the last activity in ms since 1970; None, None for none yet."""
        async with self._people.connect("find_session") as connection:
            row = await connection.fetchrow(
                "SELECT notebook_id, last_activity_at FROM learner_states WHERE user_id = $1 AND shard = $2"
                " ORDER BY last_activity_at DESC NULLS LAST LIMIT 1",
                user_id,
                get_shard_number(user_id),
            )
        if row is None or row["last_activity_at"] is None:
            return None, None
        notebook_id = str(row["notebook_id"]) if row["notebook_id"] else None
        return notebook_id, round(row["last_activity_at"].timestamp() * 1000)

    async def list_members(self, course_id: UUID) -> tuple[list[UUID], list[str], bool]:
        """The ids of the course's students, the paths of its notebooks, and whether these are all of its students."""
        async with self._people.connect("list_members") as connection:
            rows = await connection.fetch(
                "SELECT user_id FROM enrolments WHERE course_id = $1 AND role = 'student'", course_id
            )
            paths = await connection.fetch("SELECT path FROM notebooks WHERE course_id = $1", course_id)
            is_whole = await connection.fetchval("SELECT find_my_teams($1) IS NULL", course_id)
        return [row["user_id"] for row in rows], [row["path"] for row in paths], is_whole

    async def _read_pulse(self, connection: asyncpg.Connection, course_id: UUID, notebook_id: UUID | None) -> Pulse:
        notebooks = await connection.fetch(_NOTEBOOKS, course_id)
        default = notebooks[0]["id"] if notebooks else None
        columns = await connection.fetch(_COLUMNS, notebook_id or default, course_id)
        revisions = await connection.fetch(_REVISIONS, course_id)
        meeting = await connection.fetchrow(_MEETING, course_id)
        row = await connection.fetchrow(
            "SELECT title, find_my_teams(id) AS teams, alert_rules FROM courses WHERE id = $1", course_id
        )
        return Pulse(
            learner_revisions={str(row["user_id"]): row["revision"] for row in revisions},
            columns=[Column(row["cell_id"], row["cell_index"], row["title"], row["exercise_id"]) for row in columns],
            notebooks=[{**dict(row), "id": str(row["id"])} for row in notebooks],
            default_notebook_id=default,
            meeting={**dict(meeting), "id": str(meeting["id"])} if meeting else None,
            actions=await read_actions(connection, self._seal, course_id),
            mail=await count_unanswered(connection, course_id),
            lesson=await read_positions(connection, course_id, notebook_id or default),
            rules=read_rules(row["alert_rules"]) if row else DEFAULT_RULES,
            groups=await read_groups(connection, course_id),
            title=row["title"] if row else "",
            teams=None if row is None or row["teams"] is None else tuple(row["teams"]),
        )

    async def _read_states(
        self,
        connection: asyncpg.Connection,
        course_id: UUID,
        notebook_id: UUID | None,
        user_ids: list[UUID] | None,
    ) -> list[LearnerState]:
        # States before cells: what falls between the two reads is newer in the cells, whose revisions say so.
        rows = await connection.fetch(_STATES, course_id, user_ids)
        cells: dict[UUID, list[CellState]] = {}
        if notebook_id is not None:
            for row in await connection.fetch(_CELLS, notebook_id, user_ids):
                cells.setdefault(row["user_id"], []).append(read_cell(row))
        return [
            msgspec.structs.replace(read_state(row, self._seal), cells=tuple(cells.get(row["user_id"], ())))
            for row in rows
        ]

    def _read_roster(self, rows: Iterable[asyncpg.Record]) -> list[Learner]:
        return [
            Learner(
                user_id=str(row["user_id"]),
                name=self._open_name(row),
                # Two with one number are told apart by their usernames.
                number=(None if row["maybe_same_as"] else row["student_number"]) or row["username"],
                seat=row["seat"],
                team=row["team"],
                same_as=str(row["maybe_same_as"]) if row["maybe_same_as"] else None,
            )
            for row in rows
        ]

    def _open_name(self, row: asyncpg.Record) -> str:
        """The name in clear; opened once and kept, since a roster is read again at each join."""
        key = (row["user_id"], row["roster_name"] or row["display_name"] or "")
        name = self._names.get(key)
        if name is None:
            name = open_member_name(self._seal, row)
            self._names[key] = name
            if len(self._names) > _NAMES_KEPT:
                self._names.popitem(last=False)
        return name
