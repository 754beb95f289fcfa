"""The audit log: who did what to whom, only ever added to.

Promises: a row is part of the transaction that did what it tells; rows are numbered without a gap, and each is chained
to the one before by a hash, so a later change of any of them is found. A row holds ids, counts and codes; never names,
texts or secrets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID

import asyncpg
import msgspec
import orjson

from nbpulse.errors import InvalidInput, Unavailable
from nbpulse.identity import asking_as, identify
from nbpulse.metrics import name_query
from nbpulse.records.failures import UNAVAILABLE

if TYPE_CHECKING:
    from nbpulse.records.people import People

AuditAction = Literal[
    "access_refused",
    "account_added",
    "account_closed",
    "account_reopened",
    "class_viewed",
    "collection_changed",
    "consent_given",
    "consent_withdrawn",
    "course_archived",
    "course_copied",
    "course_created",
    "course_erased",
    "course_removed",
    "course_renamed",
    "course_restored",
    "data_exported",
    "entry_changed",
    "error_group_changed",
    "exported",
    "invitation_accepted",
    "invitation_created",
    "invitation_revoked",
    "joined",
    "letter_dropped",
    "letter_viewed",
    "link_created",
    "map_changed",
    "meeting_ended",
    "meeting_reopened",
    "meeting_started",
    "member_changed",
    "notebook_prepared",
    "password_changed",
    "report_share_opened",
    "report_share_revoked",
    "report_shared",
    "retention_applied",
    "roster_imported",
    "rules_changed",
    "session_started",
    "sessions_ended",
    "sign_in_failed",
    "student_viewed",
    "token_created",
    "token_revoked",
    "user_erased",
    "users_merged",
]
Facts = Mapping[str, str | int | bool]
_PAGE: Final = 2_000
# The text whose hash is the link, as note_audit() makes it: said here again, so that a database whose function was
# exchanged does not vouch for itself.
_TEXT: Final = (
    "jsonb_build_array(id, (extract(epoch FROM at) * 1000000)::bigint, actor_id, action, course_id, subject_id,"
    " facts)::text"
)


class Entry(msgspec.Struct, frozen=True):
    """What is to be noted. `once_within`: not, where the same actor's same entry is younger than this."""

    action: AuditAction
    actor_id: UUID | None
    course_id: UUID | None = None
    subject_id: UUID | None = None
    facts: Facts = {}
    once_within: timedelta | None = None


class AuditRow(msgspec.Struct, frozen=True):
    """One row as an operator sees it."""

    id: int
    at: datetime
    actor_id: UUID | None
    action: str
    course_id: UUID | None
    subject_id: UUID | None
    facts: dict[str, Any]


class OwnRow(msgspec.Struct, frozen=True):
    """One row as the person it is about sees it. `by` None: nobody by name, or somebody who is no more."""

    id: int
    at: datetime
    action: str
    course_title: str | None
    is_mine: bool
    by: str | None


class Anchor(msgspec.Struct, frozen=True):
    """The chain's end at some time: a row's number and link. Kept elsewhere, it shows a change of what led to it."""

    id: int
    link: str

    def __str__(self) -> str:
        return f"{self.id}:{self.link}"


class Filter(msgspec.Struct, frozen=True):
    """Which rows are wanted; None: whichever."""

    since: datetime | None = None
    until: datetime | None = None
    action: str | None = None
    actor_id: UUID | None = None
    subject_id: UUID | None = None
    course_id: UUID | None = None


async def note_audit(
    connection: asyncpg.Connection,
    action: AuditAction,
    *,
    course_id: UUID | None = None,
    subject_id: UUID | None = None,
    facts: Facts | None = None,
) -> None:
    """
    Add a row in the caller's transaction, as its last statement: the chain is locked from here to the commit.

    The actor is whom the transaction acts as (identity.py); nobody is the operator's command line, or somebody who has
    proved nothing. `subject_id` is the person it was done to. `facts` are at most 2,000 letters as JSON.
    """
    await connection.execute(
        "SELECT note_audit($1, $2, $3, $4)", action, course_id, subject_id, orjson.dumps(facts or {}).decode()
    )


class AuditLog:
    """The log for the API. Every method raises Unavailable (NB-2003) when PostgreSQL is away."""

    def __init__(self, people: People) -> None:
        self._people = people

    async def add(self, entries: Iterable[Entry]) -> None:
        """Add rows of whatever actors, in one transaction."""
        with asking_as(None):
            async with self._people.connect("note_audit") as connection:
                for one in entries:
                    with asking_as(one.actor_id):
                        await connection.execute(identify())
                    place = (one.course_id, one.subject_id)
                    if one.once_within is None:
                        await note_audit(
                            connection, one.action, course_id=place[0], subject_id=place[1], facts=one.facts
                        )
                    else:
                        await connection.execute(
                            "SELECT note_audit_once($1, $2, $3, $4, $5)",
                            one.action,
                            *place,
                            orjson.dumps(one.facts).decode(),
                            one.once_within,
                        )

    async def list_own(self, course_ids: Sequence[UUID], before: int, limit: int) -> list[OwnRow]:
        """About who asks, in these courses or in none, newest first, of numbers below `before`."""
        from nbpulse.records.people import open_name

        async with self._people.connect("list_own_audit") as connection:
            rows = await connection.fetch("SELECT * FROM list_my_audit($1, $2, $3)", course_ids, before, limit)
        return [
            OwnRow(
                *(row["id"], row["at"], row["action"], row["course_title"], row["is_mine"]),
                open_name(self._people.seal, row["actor_id"], row["username"], row["display_name"])
                if row["username"]
                else None,
            )
            for row in rows
        ]


# --- for operators ----------------------------------------------------------------------------------------------------


async def list_rows(pool: asyncpg.Pool, wanted: Filter, limit: int) -> list[AuditRow]:
    """The newest rows of those wanted, the oldest of them first."""
    conditions, values = ["true"], list[object]()
    for name, value in msgspec.structs.asdict(wanted).items():
        if value is not None:
            values.append(value)
            column = {"since": "at >=", "until": "at <"}.get(name, f"{name} =")
            conditions.append(f"{column} ${len(values)}")
    query = f"SELECT * FROM audit_log WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT {int(limit)}"  # noqa: S608
    rows = await pool.fetch(query, *values)
    return [
        AuditRow(
            **{name: row[name] for name in AuditRow.__struct_fields__ if name != "facts"},
            facts=json.loads(row["facts"]),
        )
        for row in reversed(rows)
    ]


async def find_anchor(pool: asyncpg.Pool) -> Anchor | None:
    """The newest row's; None while the log is empty. Also for the worker's login. Raises Unavailable (NB-2003)."""
    try:
        with name_query("note_audit"):
            row = await pool.fetchrow("SELECT * FROM find_audit_anchor()", timeout=5)
    except UNAVAILABLE as error:
        raise Unavailable("NB-2003") from error
    return Anchor(row["id"], row["link"].hex()) if row else None


async def verify_chain(
    pool: asyncpg.Pool, anchors: Sequence[Anchor], report: Callable[[int, int], None]
) -> Anchor | None:
    """
    Follow the chain from its first row to its last, which is returned; `report` is told of (rows done, all rows).

    Raises InvalidInput: a row does not follow from those before (NB-1191, which names the first), or one of the
    `anchors` is not in the chain: it was rewritten, or its end was cut off (NB-1192).
    """
    total = await pool.fetchval("SELECT count(*) FROM audit_log")
    known = {one.id: one for one in anchors}
    last_id, last_link = 0, b""
    async for number, text, link in _read_chain(pool):
        if number != last_id + 1:
            raise InvalidInput("NB-1191", id=last_id + 1)
        if hashlib.sha256(last_link + text.encode()).digest() != link:
            raise InvalidInput("NB-1191", id=number)
        last_id, last_link = number, link
        anchor = known.pop(number, None)
        if anchor is not None and anchor.link != link.hex():
            raise InvalidInput("NB-1192", id=number)
        if number % _PAGE == 0:
            report(number, total)
    if known:
        raise InvalidInput("NB-1192", id=min(known))
    report(last_id, last_id)
    return Anchor(last_id, last_link.hex()) if last_id else None


async def _read_chain(pool: asyncpg.Pool) -> AsyncIterator[tuple[int, str, bytes]]:
    """Every row as (number, text, link), in the order of the numbers, page by page."""
    last_id = -(2**62)  # whoever tampers may number rows as they like
    while True:
        rows = await pool.fetch(
            f"SELECT id, {_TEXT} AS text, link FROM audit_log WHERE id > $1 ORDER BY id LIMIT {_PAGE}",  # noqa: S608
            last_id,
        )
        if not rows:
            return
        for row in rows:
            yield row["id"], row["text"], row["link"]
        last_id = rows[-1]["id"]
