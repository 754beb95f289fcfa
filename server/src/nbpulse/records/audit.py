"""The audit log: who did what to whom, only ever added to.

Promises: a row is part of the transaction that did what it tells; rows are numbered without a gap, and each is chained
to the one before by a hash, so a later change of any of them is found. A row holds ids, counts and codes; never names,
texts or secrets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal
from uuid import UUID

import asyncpg
import orjson

AuditAction = Literal[
    "access_refused",
    "board_viewed",
    "collection_changed",
    "consent_given",
    "consent_withdrawn",
    "course_erased",
    "course_removed",
    "history_viewed",
    "joined",
    "link_created",
    "session_started",
    "student_viewed",
    "token_created",
    "token_revoked",
    "user_erased",
    "users_merged",
]


async def note_audit(
    connection: asyncpg.Connection,
    action: AuditAction,
    *,
    course_id: UUID | None = None,
    subject_id: UUID | None = None,
    facts: Mapping[str, str | int | bool] | None = None,
) -> None:
    """
    Add a row in the caller's transaction, as its last statement: the chain is locked from here to the commit.

    The actor is whom the transaction acts as (identity.py); nobody is the operator's command line, or somebody who has
    proved nothing. `subject_id` is the person it was done to. `facts` are at most 2,000 letters as JSON.
    """
    await connection.execute(
        "SELECT note_audit($1, $2, $3, $4)", action, course_id, subject_id, orjson.dumps(facts or {}).decode()
    )
