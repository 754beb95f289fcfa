"""A course's roster taken in: who is new, who changed, who came back, who left.

Promises: what is told before is what is done; doing it twice changes nothing more; it is done wholly or not at all. Who
is no longer on the roster is `former`, with all their work, until somebody erases them; who never was on one stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import msgspec

from nbpulse.crypto import EncryptedField
from nbpulse.errors import NotFound
from nbpulse.records.audit import note_audit
from nbpulse.records.members import add_states, unseal_roster
from nbpulse.records.people import People, open_name
from nbpulse.roster import Problem, RosterRow, is_same_name

_KNOWN = """
SELECT e.user_id, e.student_number, e.role, e.team, e.seat, e.roster_name, e.roster_kana, e.granted_by, e.joined_at,
    u.username, u.display_name
FROM enrolments e JOIN users u ON u.id = e.user_id
WHERE e.course_id = $1 AND e.student_number IS NOT NULL AND e.maybe_same_as IS NULL
"""
# The number is the username where it is free: who has it already is not the asker's to know of.
_ADD_USERS = """
INSERT INTO users (id, username, display_name) SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[])
ON CONFLICT DO NOTHING
"""
_ADD_ENROLMENTS = """
INSERT INTO enrolments (user_id, course_id, role, joined_at, student_number, roster_name, roster_kana, team, seat)
SELECT k.user_id, $1, 'student', NULL, k.number, k.name, k.kana, k.team, k.seat
FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
    AS k(user_id, number, name, kana, team, seat)
"""
_CHANGE_ENROLMENTS = """
UPDATE enrolments e SET roster_name = k.name, roster_kana = k.kana, team = k.team, seat = k.seat,
    role = CASE WHEN e.role = 'former' THEN 'student' ELSE e.role END, left_at = NULL
FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
    AS k(user_id, number, name, kana, team, seat)
WHERE e.course_id = $1 AND e.user_id = k.user_id
"""
_LEAVE: Final = """
UPDATE enrolments SET role = 'former', left_at = now() WHERE course_id = $1 AND user_id = ANY($2::uuid[])
"""


class Line(msgspec.Struct, frozen=True):
    """One student of an import, as it is told."""

    student_number: str
    name: str


class Import(msgspec.Struct, frozen=True):
    """
    What an import does, or would do. `doubtful`: who has joined under another name than the roster's; `problems`: rows
    that were not taken, for the course's sake.
    """

    added: list[Line]
    changed: list[Line]
    returned: list[Line]
    left: list[Line]
    doubtful: list[Line]
    unchanged: int
    problems: list[Problem]

    @property
    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {name: len(getattr(self, name)) for name in ("added", "changed", "returned", "left")}


async def import_roster(
    people: People, course_id: UUID, rows: Sequence[RosterRow], *, marks_left: bool = True, is_dry_run: bool = False
) -> Import:
    """
    Take the roster in, or say what that would do.

    `marks_left`: who is on the course's roster, but not in `rows`, has left. Raises NotFound (NB-1202), Unavailable.
    """
    async with people.connect("import_roster") as connection:
        await connection.execute("SELECT pg_advisory_xact_lock(6622016, hashtext($1::text))", str(course_id))
        short_name = await connection.fetchval("SELECT short_name FROM courses WHERE id = $1", course_id)
        if short_name is None:
            raise NotFound("NB-1202")
        known = {row["student_number"]: row for row in await connection.fetch(_KNOWN, course_id)}
        plan = _Plan(people.seal, known, rows, marks_left=marks_left)
        if not is_dry_run:
            await plan.carry_out(connection, course_id, short_name)
            await note_audit(connection, "roster_imported", course_id=course_id, facts=plan.told.counts)
    return plan.told


class _Plan:
    """What is to be done, worked out before anything is."""

    def __init__(
        self, seal: EncryptedField, known: dict[str, asyncpg.Record], rows: Sequence[RosterRow], *, marks_left: bool
    ) -> None:
        self._seal = seal
        self._added: list[tuple[UUID, RosterRow]] = []
        self._changed: list[tuple[UUID, RosterRow]] = []
        self.told = Import([], [], [], [], [], 0, [])
        unchanged = 0
        for row in rows:
            unchanged += self._place(row, known.get(row.student_number))
        named = {row.student_number for row in rows}
        leaving = [one for number, one in known.items() if marks_left and number not in named and _may_leave(one)]
        self._left = [one["user_id"] for one in leaving]
        left = [Line(one["student_number"], self._open(one, "roster_name") or "") for one in leaving]
        self.told = msgspec.structs.replace(self.told, left=left, unchanged=unchanged)

    def _place(self, row: RosterRow, known: asyncpg.Record | None) -> bool:
        """Note what becomes of the row; whether that is nothing."""
        line = Line(row.student_number, row.name)
        if known is None:
            self._added.append((uuid4(), row))
            self.told.added.append(line)
            return False
        if known["role"] in ("assistant", "instructor", "analyst"):
            self.told.problems.append(Problem(row.line, "NB-1159", {}))
            return False
        if known["joined_at"] is not None and known["display_name"] is not None:
            typed = open_name(self._seal, known["user_id"], known["username"], known["display_name"])
            if not is_same_name(typed, row.name, row.kana):
                self.told.doubtful.append(line)
        stands = (self._open(known, "roster_name"), self._open(known, "roster_kana"), known["team"], known["seat"])
        if known["role"] == "former":
            self.told.returned.append(line)
        elif stands != (row.name, row.kana, row.team, row.seat):
            self.told.changed.append(line)
        else:
            return True
        self._changed.append((known["user_id"], row))
        return False

    def _open(self, known: asyncpg.Record, column: str) -> str | None:
        sealed = known[column]
        return None if sealed is None else unseal_roster(self._seal, column, known["user_id"], sealed)

    async def carry_out(self, connection: asyncpg.Connection, course_id: UUID, short_name: str) -> None:
        """Do it."""
        ids = [user_id for user_id, _ in self._added]
        names = [
            self._seal.seal(row.name, table="users", column="display_name", user_id=user_id)
            for user_id, row in self._added
        ]
        for usernames in (
            [row.student_number for _, row in self._added],
            [f"{short_name}/{user_id.hex[:12]}" for user_id, _ in self._added],
        ):
            await connection.execute(_ADD_USERS, ids, usernames, names)
        await connection.execute(_ADD_ENROLMENTS, course_id, *self._bind(self._added))
        await connection.execute(_CHANGE_ENROLMENTS, course_id, *self._bind(self._changed))
        await add_states(connection, course_id, [*ids, *(user_id for user_id, _ in self._changed)])
        await connection.execute(_LEAVE, course_id, self._left)

    def _bind(self, rows: Sequence[tuple[UUID, RosterRow]]) -> tuple[list[Any], ...]:
        """Columns of arrays: user ids, numbers, sealed names and readings, teams, seats."""

        def seal(column: str, user_id: UUID, text: str | None) -> str | None:
            return text and self._seal.seal(text, table="enrolments", column=column, user_id=user_id)

        return (
            [user_id for user_id, _ in rows],
            [row.student_number for _, row in rows],
            [seal("roster_name", user_id, row.name) for user_id, row in rows],
            [seal("roster_kana", user_id, row.kana) for user_id, row in rows],
            [row.team for _, row in rows],
            [row.seat for _, row in rows],
        )


def _may_leave(known: asyncpg.Record) -> bool:
    """Of those on the roster; a JupyterHub says itself who its students are."""
    return known["roster_name"] is not None and known["role"] in ("student", "waiting") and known["granted_by"] is None
