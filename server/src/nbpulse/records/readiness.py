"""Whether a class can begin: who has come and sends, and which notebooks are prepared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from nbpulse.records.members import open_member_name
from nbpulse.records.people import People

State = Literal["connected", "away", "silent", "absent", "waiting", "withdrawn"]
_STUDENTS = """
SELECT e.user_id, u.username, u.display_name, e.roster_name, e.student_number, e.maybe_same_as, e.team, e.seat,
    e.role, e.joined_at, coalesce(w.action = 'withdraw', false) AS has_withdrawn
FROM enrolments e JOIN users u ON u.id = e.user_id
LEFT JOIN LATERAL (
    SELECT action FROM consents c WHERE c.course_id = e.course_id AND c.user_id = e.user_id ORDER BY at DESC LIMIT 1
) w ON true
WHERE e.course_id = $1 AND e.role IN ('student', 'waiting')
ORDER BY coalesce(e.student_number, u.username), e.user_id
"""
# By itself and no join: until a table that has just grown is analyzed, the planner compares each of a roster's students
# with each.
_LAST_ACTIVITY = "SELECT user_id, last_activity_at FROM learner_states WHERE course_id = $1"
# Those in which somebody was last, or that were prepared; the newest first.
_NOTEBOOKS = """
SELECT n.id, n.path, n.title, n.created_at,
    EXISTS (SELECT FROM notebook_cells c WHERE c.notebook_id = n.id AND c.is_registered) AS is_prepared,
    (SELECT count(*) FROM learner_states s WHERE s.course_id = n.course_id AND s.notebook_id = n.id) AS student_count
FROM notebooks n WHERE n.course_id = $1 ORDER BY n.created_at DESC, n.id LIMIT 100
"""
PRESENT: Final = timedelta(seconds=60)


class Attendant(msgspec.Struct, frozen=True):
    """
    A student before class. `connected`: heard of within 60 s; `away`: has sent something before; `silent`: has joined,
    and nothing has ever come; `absent`: on the roster, has never joined; `waiting`: to be let in.
    """

    user_id: UUID
    name: str
    number: str
    team: str | None
    seat: str | None
    state: State
    last_at: datetime | None


class UsedNotebook(msgspec.Struct, frozen=True):
    """A notebook of the course; `student_count`: whose last work of those whom the asker may see was in it."""

    id: UUID
    path: str
    title: str | None
    created_at: datetime
    is_prepared: bool
    student_count: int


async def read_readiness(
    people: People, course_id: UUID, presence: dict[str, int]
) -> tuple[list[Attendant], list[UsedNotebook]]:
    """
    The course's students whom the asker may see, and its notebooks. `presence`: when each was heard of, ms since 1970.

    Raises Unavailable (NB-2003).
    """
    async with people.connect("show_readiness") as connection:
        students = await connection.fetch(_STUDENTS, course_id)
        active = dict(await connection.fetch(_LAST_ACTIVITY, course_id))
        notebooks = await connection.fetch(_NOTEBOOKS, course_id)
    now = datetime.now(UTC)
    found = []
    for row in students:
        heard_ms = presence.get(str(row["user_id"]))
        times = [active.get(row["user_id"]), datetime.fromtimestamp(heard_ms / 1000, UTC) if heard_ms else None]
        last_at = max((one for one in times if one), default=None)
        found.append(
            Attendant(
                row["user_id"],
                open_member_name(people.seal, row),
                # Two with one number are told apart by their usernames.
                (None if row["maybe_same_as"] else row["student_number"]) or row["username"],
                *(row["team"], row["seat"]),
                _judge(dict(row), last_at, now),
                last_at,
            )
        )
    return found, [UsedNotebook(**dict(row)) for row in notebooks]


def _judge(row: dict[str, Any], last_at: datetime | None, now: datetime) -> State:
    if row["has_withdrawn"]:
        return "withdrawn"
    if row["role"] == "waiting":
        return "waiting"
    if last_at is not None:
        return "connected" if now - last_at <= PRESENT else "away"
    return "absent" if row["joined_at"] is None else "silent"
