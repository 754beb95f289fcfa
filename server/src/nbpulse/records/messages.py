"""What staff write to their students: to some, to all with one error, to the class; and what became of it.

Promises: a dispatch sent again under its id goes to nobody twice; who is no student of the course is named and the
others get it; texts are sealed for each student apart.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid5

import asyncpg
import msgspec

from nbpulse.classroom import Run, is_current, list_errors
from nbpulse.crypto import EncryptedField
from nbpulse.errors import InvalidInput, NotFound
from nbpulse.records.errorgroups import read_groups
from nbpulse.records.inboxes import Text, advance_inboxes, open_text, read_offer, seal_text, to_ms
from nbpulse.records.interventions import read_staff_names
from nbpulse.records.learners import STUDENT_STATES, read_state
from nbpulse.records.people import People
from nbpulse.shards import get_shard_number

BATCHES_MAX: Final = 50
_RECENT: Final = timedelta(hours=24)
THREAD_MESSAGES_MAX: Final = 200
_STUDENTS: Final = """
SELECT user_id FROM enrolments WHERE course_id = $1 AND role = 'student' AND ($2::uuid[] IS NULL OR user_id = ANY($2))
"""
_SEND: Final = """
INSERT INTO messages (user_id, shard, id, course_id, batch_id, thread_id, sender_id, is_from_staff, kind, body,
    notebook_id, cell_id, source, error_fingerprint, revision, is_for_class)
SELECT k.user_id, k.shard, k.id, $1, $2, k.thread_id, $3, TRUE, $4, k.body, k.notebook_id, k.cell_id, k.source, $5,
    k.revision, $15
FROM unnest($6::uuid[], $7::smallint[], $8::uuid[], $9::uuid[], $10::text[], $11::uuid[], $12::text[], $13::text[],
    $14::bigint[]) AS k(user_id, shard, id, thread_id, body, notebook_id, cell_id, source, revision)
"""
# `passed` counts those whom the batch told of an error, or offered a cell: they have run that cell well since.
_BATCHES: Final = """
WITH sent AS MATERIALIZED (
    SELECT * FROM messages m WHERE m.course_id = $1 AND m.is_from_staff
        AND (m.batch_id = $2 OR $2 IS NULL AND m.created_at >= $4 AND m.created_at <= $5)
), ran AS MATERIALIZED (
    SELECT user_id, notebook_id, cell_id, last_ok_at FROM learner_cells WHERE course_id = $1
        AND notebook_id = ANY(ARRAY(SELECT notebook_id FROM sent WHERE cell_id IS NOT NULL))
        AND cell_id = ANY(ARRAY(SELECT cell_id FROM sent WHERE cell_id IS NOT NULL))
)
SELECT m.batch_id, min(m.created_at) AS at, min(m.kind) AS kind, (array_agg(m.sender_id))[1] AS sender_id,
    (array_agg(m.error_fingerprint))[1] AS error_fingerprint, (array_agg(m.user_id))[1] AS first_user_id,
    (array_agg(m.body))[1] AS first_body, count(*) AS recipients,
    count(*) FILTER (WHERE m.state = 'sent') AS sent, count(*) FILTER (WHERE m.state = 'shown') AS shown,
    count(*) FILTER (WHERE m.state = 'accepted') AS accepted, count(*) FILTER (WHERE m.state = 'later') AS later,
    count(*) FILTER (WHERE m.state = 'never') AS never,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM m.state_at - m.created_at))
        FILTER (WHERE m.state = 'accepted') AS median_accept_s,
    CASE WHEN count(m.cell_id) > 0 THEN count(*) FILTER (WHERE c.last_ok_at > m.created_at) END AS passed
FROM sent m LEFT JOIN ran c ON (c.user_id, c.notebook_id, c.cell_id) = (m.user_id, m.notebook_id, m.cell_id)
GROUP BY m.batch_id ORDER BY at DESC LIMIT $3
"""
_THREADS: Final = """
SELECT m.id, m.thread_id, m.kind, m.created_at, m.sender_id, m.is_from_staff, m.body, m.state, m.state_at, m.source,
    m.notebook_id, m.cell_id, m.batch_id, n.path
FROM messages m LEFT JOIN notebooks n ON n.id = m.notebook_id
WHERE m.course_id = $1 AND m.user_id = $2 ORDER BY m.created_at DESC LIMIT $3
"""

# One row of each: what it says is sealed for every student apart.
_ANNOUNCEMENTS: Final = """
SELECT * FROM (
    SELECT DISTINCT ON (batch_id) batch_id, user_id, body, created_at FROM messages
    WHERE course_id = $1 AND is_for_class AND kind = 'announcement' AND created_at > now() - interval '1 hour'
    ORDER BY batch_id, created_at
) batches ORDER BY created_at DESC LIMIT $2
"""
ANNOUNCEMENTS_MAX: Final = 2

_COUNT_UNANSWERED: Final = """
SELECT m.user_id, count(*) AS waiting FROM messages m
WHERE m.course_id = $1 AND NOT m.is_from_staff AND m.created_at > now() - interval '12 hours' AND NOT EXISTS (
    SELECT FROM messages s WHERE s.user_id = m.user_id AND s.course_id = m.course_id AND s.thread_id = m.thread_id
        AND s.is_from_staff AND s.created_at > m.created_at)
GROUP BY m.user_id
"""


class Offer(msgspec.Struct, frozen=True):
    """A cell's new text, to be accepted or not."""

    notebook_id: UUID
    cell_id: str
    source: str


class Dispatch(msgspec.Struct, frozen=True):
    """What is to be sent. To `user_ids`, to those who have the error now, or, with neither, to all."""

    id: UUID
    text: Text
    user_ids: list[UUID] | None = None
    error_fingerprint: str | None = None
    offer: Offer | None = None
    thread_id: UUID | None = None


class Sent(msgspec.Struct, frozen=True):
    """Whom it reached. `unknown`: named, but no student of the course."""

    batch_id: UUID
    recipients: list[UUID]
    unknown: list[UUID]
    is_new: bool


class Batch(msgspec.Struct, frozen=True):
    """One dispatch and what became of it; counts by the messages' states. `passed` None: it was about no cell."""

    batch_id: UUID
    kind: str
    at: datetime
    by: UUID
    name: str
    text: Text
    error_fingerprint: str | None
    recipients: int
    sent: int
    shown: int
    accepted: int
    later: int
    never: int
    median_accept_s: float | None
    passed: int | None


async def count_unanswered(connection: asyncpg.Connection, course_id: UUID) -> dict[str, int]:
    """Students' messages of the last 12 hours that nobody has answered, by student."""
    rows = await connection.fetch(_COUNT_UNANSWERED, course_id)
    return {str(row["user_id"]): row["waiting"] for row in rows}


async def read_announcements(
    connection: asyncpg.Connection, seal: EncryptedField, course_id: UUID
) -> list[dict[str, Any]]:
    """What staff told the whole class in the last hour: the newest two, newest first, without who wrote or got them."""
    rows = await connection.fetch(_ANNOUNCEMENTS, course_id, ANNOUNCEMENTS_MAX)
    return [{"at": to_ms(row["created_at"]), "text": open_text(seal, row["user_id"], row["body"])} for row in rows]


class Messages:
    """For a course's staff. Every method raises Unavailable (NB-2003) when PostgreSQL is away."""

    def __init__(self, people: People, seal: EncryptedField) -> None:
        self._people = people
        self._seal = seal

    async def send(self, course_id: UUID, sender_id: UUID, dispatch: Dispatch) -> Sent:
        """
        Write it to every inbox at once.

        Raises NotFound: nobody named is a student of the course (NB-1330), no such thread (NB-1333) or notebook
        (NB-1201); InvalidInput (NB-1334): nobody is there to get it.
        """
        async with self._people.connect("send_messages") as connection:
            # The same dispatch twice at once: the second finds what the first has sent.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 10))", str(dispatch.id))
            known = await connection.fetch(
                "SELECT user_id FROM messages WHERE batch_id = $1 AND course_id = $2", dispatch.id, course_id
            )
            if known:
                return Sent(dispatch.id, [row["user_id"] for row in known], [], False)
            runs = await self._find_recipients(connection, course_id, dispatch)
            revisions = await advance_inboxes(connection, course_id, runs)
            unknown = [one for one in dispatch.user_ids or () if one not in revisions]
            if not revisions:
                if unknown:
                    raise NotFound("NB-1330", users=", ".join(map(str, unknown)))
                raise InvalidInput("NB-1334")
            await self._check_place(connection, course_id, dispatch)
            await self._insert(connection, course_id, sender_id, dispatch, runs=runs, revisions=revisions)
        return Sent(dispatch.id, list(revisions), unknown, True)

    async def list_batches(
        self, course_id: UUID, batch_id: UUID | None, span: tuple[datetime, datetime] | None = None
    ) -> list[Batch]:
        """The batches within `span` (None: the last 24 hours), newest first; or that one, however old."""
        now = datetime.now(UTC)
        within = span or (now - _RECENT, now + _RECENT)
        async with self._people.connect("list_messages") as connection:
            rows = await connection.fetch(_BATCHES, course_id, batch_id, BATCHES_MAX, *within)
            names = await read_staff_names(connection, self._seal, {row["sender_id"] for row in rows})
        return [self._read_batch(row, names) for row in rows]

    async def list_threads(self, course_id: UUID, user_id: UUID) -> list[dict[str, Any]]:
        """A student's threads (their newest 200 messages), that with the newest message first."""
        async with self._people.connect("list_messages") as connection:
            rows = await connection.fetch(_THREADS, course_id, user_id, THREAD_MESSAGES_MAX)
            names = await read_staff_names(connection, self._seal, {row["sender_id"] for row in rows})
        threads: dict[UUID, list[dict[str, Any]]] = {}
        for row in rows:
            threads.setdefault(row["thread_id"], []).insert(0, self._describe(user_id, row, names))
        return [{"thread_id": thread_id, "messages": messages} for thread_id, messages in threads.items()]

    async def _find_recipients(
        self, connection: asyncpg.Connection, course_id: UUID, dispatch: Dispatch
    ) -> dict[UUID, Run | None]:
        """Who is meant, and with which run of theirs where it is about an error."""
        if dispatch.error_fingerprint is None:
            rows = await connection.fetch(_STUDENTS, course_id, dispatch.user_ids)
            return {row["user_id"]: None for row in rows}
        now_ms = to_ms(datetime.now(UTC))
        groups = await read_groups(connection, course_id)
        members = groups.list_members(groups.find(dispatch.error_fingerprint))
        found: dict[UUID, Run | None] = {}
        for row in await connection.fetch(STUDENT_STATES, course_id):
            errors = list_errors(read_state(row, self._seal).recent)
            mine = [errors[one] for one in members if one in errors and is_current(errors[one], now_ms)]
            if mine:
                found[row["user_id"]] = max(mine)
        return found

    async def _check_place(self, connection: asyncpg.Connection, course_id: UUID, dispatch: Dispatch) -> None:
        """The thread is the one student's, the offered cell's notebook the course's."""
        if dispatch.thread_id is not None:
            whose = await connection.fetch(
                "SELECT DISTINCT user_id FROM messages WHERE course_id = $1 AND thread_id = $2",
                *(course_id, dispatch.thread_id),
            )
            if [row["user_id"] for row in whose] != dispatch.user_ids:
                raise NotFound("NB-1333")
        if dispatch.offer is not None and not await connection.fetchval(
            "SELECT true FROM notebooks WHERE id = $1 AND course_id = $2", dispatch.offer.notebook_id, course_id
        ):
            raise NotFound("NB-1201")

    async def _insert(
        self,
        connection: asyncpg.Connection,
        course_id: UUID,
        sender_id: UUID,
        dispatch: Dispatch,
        *,
        runs: dict[UUID, Run | None],
        revisions: dict[UUID, int],
    ) -> None:
        users = list(revisions)
        ids = [uuid5(dispatch.id, user_id.hex) for user_id in users]
        places = [_find_place(dispatch.offer, runs[user_id]) for user_id in users]
        await connection.execute(
            _SEND,
            *(course_id, dispatch.id, sender_id, _name_kind(dispatch), dispatch.error_fingerprint),
            *(users, [get_shard_number(user_id) for user_id in users], ids),
            [dispatch.thread_id or one for one in ids],
            [seal_text(self._seal, user_id, dispatch.text) for user_id in users],
            *([place[0] for place in places], [place[1] for place in places]),
            [
                self._seal.seal(dispatch.offer.source, table="messages", column="source", user_id=user_id)
                if dispatch.offer
                else None
                for user_id in users
            ],
            list(revisions.values()),
            dispatch.user_ids is None and dispatch.error_fingerprint is None,
        )

    def _read_batch(self, row: asyncpg.Record, names: dict[UUID, str]) -> Batch:
        taken = ("batch_id", "kind", "at", "error_fingerprint", "recipients", "sent", "shown", "accepted", "later")
        return Batch(
            **{name: row[name] for name in (*taken, "never", "median_accept_s", "passed")},
            by=row["sender_id"],
            name=names.get(row["sender_id"], ""),
            text=open_text(self._seal, row["first_user_id"], row["first_body"]),
        )

    def _describe(self, user_id: UUID, row: asyncpg.Record, names: dict[UUID, str]) -> dict[str, Any]:
        return {
            **{name: row[name] for name in ("id", "batch_id", "kind", "is_from_staff", "state")},
            "at": to_ms(row["created_at"]),
            "state_at": to_ms(row["state_at"]),
            "from": names.get(row["sender_id"], ""),
            "text": open_text(self._seal, user_id, row["body"]),
            "offer": read_offer(self._seal, user_id, row),
        }


def _name_kind(dispatch: Dispatch) -> str:
    if dispatch.offer is not None:
        return "offer"
    return "message" if dispatch.user_ids is not None and len(dispatch.user_ids) == 1 else "announcement"


def _find_place(offer: Offer | None, run: Run | None) -> tuple[UUID | None, str | None]:
    """The cell it is about: the offered one, else the one that failed."""
    if offer is not None:
        return offer.notebook_id, offer.cell_id
    return (UUID(run.notebook_id), run.cell_id) if run is not None and run.notebook_id else (None, None)
