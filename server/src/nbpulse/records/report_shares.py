"""Links that show a class report to readers outside the staff: made by an instructor, until they end or are taken back.

Of a link's secret only the SHA-256 is kept. A link shows what its maker may see, and nothing once they no longer lead
the course.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import msgspec

from nbpulse.errors import AccessDenied, NotFound
from nbpulse.identity import get_asker
from nbpulse.records.audit import Facts, note_audit
from nbpulse.records.people import People
from nbpulse.records.tokens import hash_secret, parse_token

_NOTED: Final = timedelta(minutes=15)
_OPEN: Final = """
SELECT id, created_at, expires_at, opened_count, opened_at FROM report_shares
WHERE course_id = $1 AND meeting_id = $2 AND revoked_at IS NULL AND expires_at > now() ORDER BY created_at
"""
_ADD: Final = """
INSERT INTO report_shares (id, course_id, meeting_id, secret_hash, created_by, expires_at)
SELECT $1, course_id, id, $4, $5, $6 FROM class_meetings WHERE course_id = $2 AND id = $3
"""


class Share(msgspec.Struct, frozen=True):
    """A link that still shows its report, and how often it was opened; its secret is told at making alone."""

    id: UUID
    created_at: datetime
    expires_at: datetime
    opened_count: int = 0
    opened_at: datetime | None = None


class OpenedShare(msgspec.Struct, frozen=True):
    """Which report a link shows, as whom it is read, and until when."""

    id: UUID
    course_id: UUID
    meeting_id: UUID
    created_by: UUID
    expires_at: datetime


class ReportShares:
    """Shares of reports. Every method raises Unavailable (NB-2003) when PostgreSQL is away."""

    def __init__(self, people: People) -> None:
        self._people = people

    async def list_shares(self, course_id: UUID, meeting_id: UUID) -> list[Share]:
        """Those of the meeting's report that still show it, of a course the asker leads."""
        async with self._people.connect("share_report") as connection:
            return [Share(**dict(row)) for row in await connection.fetch(_OPEN, course_id, meeting_id)]

    async def share(self, course_id: UUID, meeting_id: UUID, life: timedelta) -> tuple[Share, str]:
        """A new share and its secret, told this once. Raises NotFound (NB-1230): no such meeting of the course."""
        now = datetime.now(UTC)
        made, secret = Share(uuid4(), now, now + life), secrets.token_urlsafe(32)
        async with self._people.connect("share_report") as connection:
            done = await connection.execute(
                _ADD, made.id, course_id, meeting_id, hash_secret(secret), get_asker(), made.expires_at
            )
            if done != "INSERT 0 1":
                raise NotFound("NB-1230")
            facts: Facts = {"meeting_id": str(meeting_id), "share_id": str(made.id), "days": life.days}
            await note_audit(connection, "report_shared", course_id=course_id, facts=facts)
        return made, f"nbp_report_{made.id.hex}_{secret}"

    async def revoke(self, course_id: UUID, meeting_id: UUID, share_id: UUID) -> None:
        """Take it back. Raises NotFound (NB-1201): there is none that still shows the report."""
        async with self._people.connect("share_report") as connection:
            done = await connection.execute(
                "UPDATE report_shares SET revoked_at = now()"
                " WHERE course_id = $1 AND meeting_id = $2 AND id = $3 AND revoked_at IS NULL",
                *(course_id, meeting_id, share_id),
            )
            if done != "UPDATE 1":
                raise NotFound("NB-1201")
            facts = {"meeting_id": str(meeting_id), "share_id": str(share_id)}
            await note_audit(connection, "report_share_revoked", course_id=course_id, facts=facts)

    async def open(self, code: str) -> OpenedShare:
        """What a link's code shows, counted. Raises AccessDenied (NB-1232): unknown, ended, or taken back."""
        share_id, secret = parse_token(code) or (uuid4(), "")
        async with self._people.connect("share_report") as connection:
            row = await connection.fetchrow("SELECT * FROM open_report_share($1, $2)", share_id, hash_secret(secret))
            if row is None:
                raise AccessDenied("NB-1232")
            opened = OpenedShare(share_id, row["course_id"], row["meeting_id"], row["created_by"], row["expires_at"])
            before = row["opened_before"]
            if before is None or datetime.now(UTC) - before > _NOTED:
                facts = {"meeting_id": str(opened.meeting_id), "share_id": str(share_id)}
                await note_audit(connection, "report_share_opened", course_id=opened.course_id, facts=facts)
        return opened
