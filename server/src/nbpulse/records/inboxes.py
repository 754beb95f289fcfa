"""Students' inboxes: what they are told, what they answer, and what they do with an offer.

Promises: an inbox's number rises with everything it tells, under the student's row lock, so nothing that is committed
later bears a number already read; writing the same message again changes nothing; texts are sealed before they reach a
column, and what a student is shown of staff is the names of those who wrote to them or look after them.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import asyncpg
import msgspec

from nbpulse.classroom import Action, HelpRequest
from nbpulse.crypto import EncryptedField
from nbpulse.errors import NotFound
from nbpulse.records.learners import IS_STUDENT, STATE_COLUMNS, read_state
from nbpulse.records.people import People, open_name
from nbpulse.shards import get_shard_number

MESSAGES_MAX: Final = 50
MessageState = Literal["shown", "accepted", "later", "never"]
# From which states one may come to it: accepted and never are final, later may become either.
_FROM: Final[dict[str, list[str]]] = {
    "shown": ["sent"],
    "later": ["sent", "shown"],
    "accepted": ["sent", "shown", "later"],
    "never": ["sent", "shown", "later"],
}
_NOW: Final = "greatest(inbox_revision + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)"
_LOCK_INBOXES: Final = f"""
SELECT user_id FROM learner_states
WHERE course_id = $1 AND user_id = ANY($2::uuid[]) AND merged_into IS NULL AND {IS_STUDENT}
ORDER BY user_id FOR UPDATE
"""  # noqa: S608 - constants
_ADVANCE: Final = f"""
UPDATE learner_states SET inbox_revision = {_NOW}
WHERE course_id = $1 AND user_id = ANY($2::uuid[]) RETURNING user_id, inbox_revision
"""  # noqa: S608 - constants
_NOTE_HAND: Final = f"""
UPDATE learner_states SET inbox_revision = {_NOW}, hand_revision = {_NOW}
WHERE user_id = $1 AND shard = $2 AND course_id = $3
"""  # noqa: S608
# Read first: what is committed after it has a higher number, and is at worst told twice.
_READ_STANDING: Final = f"""
SELECT {STATE_COLUMNS}, inbox_revision, hand_revision FROM learner_states
WHERE user_id = $1 AND shard = $2 AND course_id = $3
"""  # noqa: S608 - constants
_READ_MESSAGES: Final = """
SELECT m.id, m.thread_id, m.kind, m.created_at, m.sender_id, m.is_from_staff, m.body, m.state, m.source, m.notebook_id,
    m.cell_id, n.path FROM messages m LEFT JOIN notebooks n ON n.id = m.notebook_id
WHERE m.user_id = $1 AND m.shard = $2 AND m.course_id = $3 AND m.revision > $4
    AND ($4 > 0 OR m.created_at > now() - interval '24 hours')
ORDER BY m.created_at DESC LIMIT $5
"""
_WRITE: Final = """
INSERT INTO messages (user_id, shard, id, course_id, batch_id, thread_id, sender_id, is_from_staff, kind, body,
    revision)
VALUES ($1, $2, $3, $4, $3, $5, $1, FALSE, 'message', $6, $7) ON CONFLICT DO NOTHING
"""
_SET_STATE: Final = """
UPDATE messages SET state = $4, state_at = clock_timestamp(), revision = $5
WHERE user_id = $1 AND shard = $2 AND id = $3 AND state = ANY($6::text[])
"""

_encode_text = msgspec.json.Encoder().encode
_decode_text = msgspec.json.Decoder(str | dict[str, str]).decode
Text = str | dict[str, str]
"""One text, or one per language."""


class InboxMessage(msgspec.Struct, frozen=True):
    """One message of a student's threads. `sender` is None for somebody whose name is not to be had any more."""

    id: UUID
    thread_id: UUID
    kind: str
    at: int
    sender: str | None
    is_from_staff: bool
    text: Text
    state: str
    offer: dict[str, Any] | None


class Inbox(msgspec.Struct, frozen=True):
    """
    What a student's inbox tells; `messages` oldest first, `place` None for no raised hand. `hand_revision`: its number
    when the hand last went up or down.
    """

    revision: int
    hand_revision: int
    help: HelpRequest
    actions: list[Action]
    messages: list[InboxMessage]
    place: int | None


async def advance_inboxes(connection: asyncpg.Connection, course_id: UUID, user_ids: Iterable[UUID]) -> dict[UUID, int]:
    """Lock these students' inboxes until the transaction ends: their new numbers. Who is no student has none."""
    rows = await connection.fetch(_LOCK_INBOXES, course_id, list(user_ids))
    if not rows:
        return {}
    advanced = await connection.fetch(_ADVANCE, course_id, [row["user_id"] for row in rows])
    return {row["user_id"]: int(row["inbox_revision"]) for row in advanced}


async def note_hand(connection: asyncpg.Connection, user_id: UUID, course_id: UUID) -> None:
    """The hand went up or down, in a transaction that holds the student's lock."""
    await connection.execute(_NOTE_HAND, user_id, get_shard_number(user_id), course_id)


def seal_text(seal: EncryptedField, user_id: UUID, text: Text) -> str:
    """A message's body as it is stored for that student."""
    return seal.seal(_encode_text(text).decode(), table="messages", column="body", user_id=user_id)


def open_text(seal: EncryptedField, user_id: UUID, body: str) -> Text:
    """What `seal_text` sealed."""
    text: Text = _decode_text(seal.unseal(body, table="messages", column="body", user_id=user_id))
    return text


def read_offer(seal: EncryptedField, user_id: UUID, row: asyncpg.Record) -> dict[str, Any] | None:
    """The offered cell of a message; None where it offers none."""
    if row["source"] is None:
        return None
    return {
        "notebook_path": row["path"],
        "notebook_id": row["notebook_id"],
        "cell_id": row["cell_id"],
        "source": seal.unseal(row["source"], table="messages", column="source", user_id=user_id),
    }


def read_action(row: asyncpg.Record, names: dict[UUID, str]) -> Action:
    """An Action from a row of interventions."""
    return Action(
        id=str(row["id"]),
        user_id=str(row["user_id"]),
        alert_id=str(row["alert_id"]),
        action=row["action"],
        staff_id=str(row["staff_id"]),
        staff_name=names.get(row["staff_id"], ""),
        at_ms=to_ms(row["at"]),
        revision=row["revision"],
        hand_id=row["hand_id"].hex if row["hand_id"] else "",
        until_ms=to_ms(row["until_at"]) if row["until_at"] else 0,
        undoes=str(row["undoes"]) if row["undoes"] else "",
    )


def to_ms(when: datetime) -> int:
    """A time of the database's in ms since 1970."""
    return round(when.timestamp() * 1000)


class Inboxes:
    """A student's side, as whoever asks. Every method raises Unavailable (NB-2003) when PostgreSQL is away."""

    def __init__(self, people: People, seal: EncryptedField) -> None:
        self._people = people
        self._seal = seal

    async def read(self, user_id: UUID, course_id: UUID, after: int) -> Inbox:
        """What is newer than `after`, or has changed since; for 0 the last 50 messages of the last 24 hours."""
        place = (user_id, get_shard_number(user_id), course_id)
        async with self._people.connect("read_inbox") as connection:
            standing = await connection.fetchrow(_READ_STANDING, *place)
            if standing is None:
                return Inbox(0, 0, HelpRequest(), [], [], None)
            rows = await connection.fetch(_READ_MESSAGES, *place, after, MESSAGES_MAX)
            hand = read_state(standing, self._seal).help
            acted = await connection.fetch("SELECT * FROM read_my_care($1)", course_id) if hand.opened_ms else []
            names: dict[UUID, str] = {}
            if acted or any(row["is_from_staff"] for row in rows):
                staff = await connection.fetch("SELECT * FROM find_my_staff($1)", course_id)
                names = {one["id"]: open_name(self._seal, *one) for one in staff}
            queue_place = await connection.fetchval("SELECT find_my_place($1)", course_id) if hand.is_open else None
        return Inbox(
            revision=standing["inbox_revision"],
            hand_revision=standing["hand_revision"],
            help=hand,
            actions=[read_action(row, names) for row in acted],
            messages=[self._read_message(user_id, row, names) for row in reversed(rows)],
            place=queue_place,
        )

    async def write(self, user_id: UUID, course_id: UUID, message_id: UUID, thread_id: UUID | None, text: str) -> bool:
        """
        A student's own message; False when it is known already. Without a thread it begins one.

        Raises NotFound (NB-1333): a thread that is none of theirs.
        """
        shard = get_shard_number(user_id)
        async with self._people.connect("write_message") as connection:
            revision = await self._advance(connection, user_id, course_id)
            if thread_id is not None and not await connection.fetchval(
                "SELECT true FROM messages WHERE user_id = $1 AND shard = $2 AND course_id = $3 AND thread_id = $4"
                " LIMIT 1",
                *(user_id, shard, course_id, thread_id),
            ):
                raise NotFound("NB-1333")
            body = seal_text(self._seal, user_id, text)
            done = await connection.execute(
                _WRITE, user_id, shard, message_id, course_id, thread_id or message_id, body, revision
            )
        return bool(done == "INSERT 0 1")

    async def set_state(self, user_id: UUID, course_id: UUID, message_id: UUID, state: MessageState) -> bool:
        """
        What became of a message; whether that was news: accepted and never are final.

        Raises NotFound (NB-1333): no message to them.
        """
        key = (user_id, get_shard_number(user_id), message_id)
        async with self._people.connect("set_message_state") as connection:
            if not await connection.fetchval(
                "SELECT true FROM messages WHERE user_id = $1 AND shard = $2 AND id = $3 AND course_id = $4"
                " AND is_from_staff",
                *(*key, course_id),
            ):
                raise NotFound("NB-1333")
            revision = await self._advance(connection, user_id, course_id)
            done = await connection.execute(_SET_STATE, *key, state, revision, _FROM[state])
        return bool(done == "UPDATE 1")

    async def _advance(self, connection: asyncpg.Connection, user_id: UUID, course_id: UUID) -> int:
        numbers = await advance_inboxes(connection, course_id, [user_id])
        if user_id not in numbers:
            raise NotFound("NB-1333")
        return numbers[user_id]

    def _read_message(self, user_id: UUID, row: asyncpg.Record, names: dict[UUID, str]) -> InboxMessage:
        return InboxMessage(
            id=row["id"],
            thread_id=row["thread_id"],
            kind=row["kind"],
            at=to_ms(row["created_at"]),
            sender=names.get(row["sender_id"]),
            is_from_staff=row["is_from_staff"],
            text=open_text(self._seal, user_id, row["body"]),
            state=row["state"],
            offer=read_offer(self._seal, user_id, row),
        )
