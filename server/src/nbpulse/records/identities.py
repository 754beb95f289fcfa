"""People whom another system has proved: its user is one user here, what it says of courses are enrolments."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import msgspec

from nbpulse.collection import Policy
from nbpulse.errors import AccessDenied
from nbpulse.records.consents import read_policy
from nbpulse.records.people import People, Teams, read_teams
from nbpulse.records.tombstones import refuse_erased


class Entered(msgspec.Struct, frozen=True):
    """
    Who came in, with the role in each of their courses and what may be collected of them there (None: they have
    withdrawn), the courses by short name, of those seen in part, whose teams, and which are over.
    """

    user_id: UUID
    roles: dict[UUID, str]
    courses: dict[str, UUID]
    policies: dict[UUID, Policy | None]
    teams: dict[UUID, Teams]
    archived: frozenset[UUID]


async def enter_by_identity(
    people: People, provider: str, subject: str, wanted: Sequence[tuple[str, str]]
) -> Entered | None:
    """
    The user whom `provider` calls `subject`, made if need be, with enrolments as `wanted` says: (course's short name,
    role), the highest role of a course first. None where they are new and none of these courses is here.

    Raises AccessDenied: the account is closed (NB-1125), or they were erased and nobody has let them in again
    (NB-1345). Unavailable (NB-2003).
    """
    async with people.connect("enter_by_identity") as connection:
        if people.marker is not None:
            await refuse_erased(connection, people.marker.mark_identity(provider, subject))
        rows = await connection.fetch(
            "SELECT e.*, c.*, find_team_views(e.found_user) AS team_views, is_account_closed(e.found_user) AS is_closed"
            ", is_course_archived(e.course) AS is_archived"
            " FROM enter_by_identity($1, $2, $3, $4) e"
            " LEFT JOIN LATERAL find_collection(e.found_user, e.course) c ON true",
            provider,
            subject,
            [course for course, _ in wanted],
            [role for _, role in wanted],
        )
    if not rows:
        return None
    if rows[0]["is_closed"]:
        raise AccessDenied("NB-1125")
    return Entered(
        rows[0]["found_user"],
        {row["course"]: row["given_role"] for row in rows},
        {row["short"]: row["course"] for row in rows},
        {row["course"]: None if row["has_withdrawn"] else read_policy(row) for row in rows},
        read_teams(rows[0]["team_views"]),
        frozenset(row["course"] for row in rows if row["is_archived"]),
    )
