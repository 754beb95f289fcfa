"""What staff do about alerts: decided in one place, the student's row lock, and kept as a log.

Promises: of two who claim at once the first holds it and the second is told who; the same action sent again changes
nothing; notes are sealed; a hand whose student was helped is taken down in the ledger once undoing is over, whoever
died in between.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, uuid5

import asyncpg
import msgspec

from nbpulse.classroom import Action, AlertStanding, fold_actions
from nbpulse.classroom.care import LIFE_HOURS, QUIET_MS, UNDO_MS, ActionName, decide
from nbpulse.crypto import EncryptedField
from nbpulse.errors import NotFound, Unavailable
from nbpulse.events import ReceivedEvent
from nbpulse.metrics import named_query
from nbpulse.records.failures import UNAVAILABLE
from nbpulse.records.inboxes import advance_inboxes, read_action, to_ms
from nbpulse.records.learners import STATE_COLUMNS, read_state
from nbpulse.records.people import People, open_name
from nbpulse.shards import get_shard_number

HELPED: Final = "helped"
"""`data.reason` of the help_cancel that we make for a student who was helped."""
_EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
COLUMNS: Final = "id, user_id, alert_id, staff_id, action, hand_id, undoes, at, until_at, revision"
_READ: Final = f"""
SELECT {COLUMNS} FROM interventions
WHERE course_id = $1 AND action <> 'note' AND at > now() - interval '{LIFE_HOURS} hours'
    AND ($2::uuid IS NULL OR user_id = $2)
"""  # noqa: S608 - constants
_INSERT: Final = """
INSERT INTO interventions (user_id, shard, id, course_id, alert_id, rule, cell_id, staff_id, action, hand_id, undoes,
    note, at, until_at, revision) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
"""
# Cells are looked up for the log's lines together: Citus has them elsewhere than the log.
_LOG: Final = f"""
WITH shown AS MATERIALIZED (
    SELECT {COLUMNS}, rule, cell_id, note FROM interventions
    WHERE course_id = $1 AND at < $2 AND at >= $5 AND ($4::uuid IS NULL OR user_id = $4) ORDER BY at DESC, id LIMIT $3
), passed AS MATERIALIZED (
    SELECT user_id, cell_id, max(last_ok_at) AS ok_at FROM learner_cells WHERE course_id = $1
        AND user_id = ANY(ARRAY(SELECT user_id FROM shown WHERE cell_id IS NOT NULL))
        AND cell_id = ANY(ARRAY(SELECT cell_id FROM shown WHERE cell_id IS NOT NULL)) GROUP BY user_id, cell_id
)
SELECT s.*, CASE WHEN s.cell_id IS NOT NULL THEN coalesce(p.ok_at > s.at, FALSE) END AS got_past
FROM shown s LEFT JOIN passed p USING (user_id, cell_id) ORDER BY s.at DESC, s.id
"""  # noqa: S608
_HELPED_HANDS: Final = """
SELECT h.user_id, h.course_id, h.id, h.opened_at, i.id AS action_id
FROM interventions i JOIN help_requests h ON (h.user_id, h.shard, h.id) = (i.user_id, i.shard, i.hand_id)
WHERE h.closed_at IS NULL AND i.action = 'helped' AND i.at > now() - interval '1 day' AND i.at < now() - $1::interval
    AND NOT EXISTS (SELECT FROM interventions u WHERE u.user_id = i.user_id AND u.undoes = i.id) LIMIT 500
"""


class Wanted(msgspec.Struct, frozen=True):
    """What a member of staff wants to do. `rule`, `cell_id`: what the alert said, for the log."""

    id: UUID
    user_id: UUID
    action: ActionName
    alert_id: UUID
    rule: str | None = None
    cell_id: str | None = None
    note: str | None = None
    quiet_ms: int = QUIET_MS


class Intervention(msgspec.Struct, frozen=True):
    """One line of the log. `got_past`: since then the cell was run well; None where it was about no cell."""

    id: UUID
    user_id: UUID
    alert_id: UUID
    rule: str | None
    cell_id: str | None
    action: str
    by: UUID
    name: str
    at: datetime
    until: datetime | None
    is_undone: bool
    note: str | None
    got_past: bool | None


async def read_staff_names(
    connection: asyncpg.Connection, seal: EncryptedField, staff_ids: set[UUID]
) -> dict[UUID, str]:
    """Names of those whom the asker may know."""
    if not staff_ids:
        return {}
    rows = await connection.fetch(
        "SELECT id, username, display_name FROM users WHERE id = ANY($1::uuid[])", list(staff_ids)
    )
    return {row["id"]: open_name(seal, *row) for row in rows}


async def read_actions(
    connection: asyncpg.Connection, seal: EncryptedField, course_id: UUID, user_id: UUID | None = None
) -> list[Action]:
    """What was done in the last 12 hours in the course, or for one student of it."""
    rows = await connection.fetch(_READ, course_id, user_id)
    names = await read_staff_names(connection, seal, {row["staff_id"] for row in rows})
    return [read_action(row, names) for row in rows]


class Interventions:
    """For a course's staff. Every method raises Unavailable (NB-2003) when PostgreSQL is away."""

    def __init__(self, people: People, seal: EncryptedField) -> None:
        self._people = people
        self._seal = seal

    async def act(self, course_id: UUID, staff_id: UUID, wanted: Wanted) -> tuple[AlertStanding, Action | None]:
        """
        Do it, and the alert's standing then; the action is None where nothing changed.

        Raises NotFound (NB-1330: no such student), Conflict (NB-1331, NB-1332).
        """
        alert_id = str(wanted.alert_id)
        async with self._people.connect("act_on_alert") as connection:
            revisions = await advance_inboxes(connection, course_id, [wanted.user_id])
            if wanted.user_id not in revisions:
                raise NotFound("NB-1330", users=str(wanted.user_id))
            known = await read_actions(connection, self._seal, course_id, wanted.user_id)
            if await connection.fetchval(
                "SELECT true FROM interventions WHERE user_id = $1 AND shard = $2 AND id = $3",
                *(wanted.user_id, get_shard_number(wanted.user_id), wanted.id),
            ):
                return fold_actions(known).describe(alert_id), None
            name = (await read_staff_names(connection, self._seal, {staff_id})).get(staff_id, "")
            hand_id = await self._find_hand(connection, course_id, wanted.user_id)
            action = decide(_make_action(wanted, staff_id, name, hand_id, revisions[wanted.user_id]), known)
            if action is not None:
                await self._insert(connection, course_id, wanted, action)
        if action is None or action.action == "note":
            return fold_actions(known).describe(alert_id), None
        return fold_actions([*known, action]).describe(alert_id), action

    async def list_log(
        self,
        course_id: UUID,
        before: datetime | None,
        limit: int,
        student_id: UUID | None = None,
        *,
        since: datetime = _EVER,
    ) -> list[Intervention]:
        """What was done (for one student), newest first; `before`: only what is older; `since`: only what is not."""
        async with self._people.connect("list_interventions") as connection:
            earlier = before or datetime.max.replace(tzinfo=UTC)
            rows = await connection.fetch(_LOG, course_id, earlier, limit, student_id, since)
            undone = await connection.fetch(
                "SELECT undoes FROM interventions WHERE course_id = $1 AND undoes = ANY($2::uuid[])",
                course_id,
                [row["id"] for row in rows],
            )
            names = await read_staff_names(connection, self._seal, {row["staff_id"] for row in rows})
        gone = {row["undoes"] for row in undone}
        return [self._read_log(row, names, row["id"] in gone) for row in rows]

    async def _find_hand(self, connection: asyncpg.Connection, course_id: UUID, user_id: UUID) -> str:
        row = await connection.fetchrow(
            f"SELECT {STATE_COLUMNS} FROM learner_states WHERE user_id = $1 AND shard = $2 AND course_id = $3",  # noqa: S608
            *(user_id, get_shard_number(user_id), course_id),
        )
        hand = read_state(row, self._seal).help
        return hand.request_id if hand.is_open else ""

    async def _insert(self, connection: asyncpg.Connection, course_id: UUID, wanted: Wanted, action: Action) -> None:
        user_id = wanted.user_id
        note = wanted.note and self._seal.seal(wanted.note, table="interventions", column="note", user_id=user_id)
        await connection.execute(
            _INSERT,
            *(user_id, get_shard_number(user_id), wanted.id, course_id, wanted.alert_id, wanted.rule, wanted.cell_id),
            *(UUID(action.staff_id), action.action, UUID(action.hand_id) if action.hand_id else None),
            *(UUID(action.undoes) if action.undoes else None, note or None, _to_time(action.at_ms)),
            *(_to_time(action.until_ms) if action.until_ms else None, action.revision),
        )

    def _read_log(self, row: asyncpg.Record, names: dict[UUID, str], is_undone: bool) -> Intervention:
        note = row["note"]
        return Intervention(
            id=row["id"],
            user_id=row["user_id"],
            alert_id=row["alert_id"],
            rule=row["rule"],
            cell_id=row["cell_id"],
            action=row["action"],
            by=row["staff_id"],
            name=names.get(row["staff_id"], ""),
            at=row["at"],
            until=row["until_at"],
            is_undone=is_undone,
            note=note and self._seal.unseal(note, table="interventions", column="note", user_id=row["user_id"]),
            got_past=row["got_past"],
        )


def _make_action(wanted: Wanted, staff_id: UUID, name: str, hand_id: str, revision: int) -> Action:
    now_ms = to_ms(datetime.now(UTC))
    is_quieting = wanted.action in ("helped", "snooze")
    return Action(
        id=str(wanted.id),
        user_id=str(wanted.user_id),
        alert_id=str(wanted.alert_id),
        action=wanted.action,
        staff_id=str(staff_id),
        staff_name=name,
        at_ms=now_ms,
        revision=revision,
        hand_id=hand_id,
        until_ms=now_ms + wanted.quiet_ms if is_quieting else 0,
    )


def _to_time(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


@named_query("find_helped_hands")
async def find_helped_hands(pool: asyncpg.Pool) -> list[ReceivedEvent]:
    """
    The withdrawals of hands whose students were helped and whose helping can no longer be undone, for the worker.

    They are the caller's to append to the stream: the same helping gives the same event. Raises Unavailable (NB-2003).
    """
    try:
        rows = await pool.fetch(_HELPED_HANDS, timedelta(milliseconds=UNDO_MS + 1_000), timeout=5)
    except UNAVAILABLE as error:
        raise Unavailable("NB-2003") from error
    now = datetime.now(UTC)
    return [
        ReceivedEvent(
            event_id=uuid5(row["action_id"], row["id"].hex),
            event_type="help_cancel",
            # A student's clock may be ahead of ours: it was answered after it was raised.
            occurred_at=max(now, row["opened_at"] + timedelta(milliseconds=1)),
            received_at=now,
            user_id=row["user_id"],
            course_id=row["course_id"],
            data={"reason": HELPED},
        )
        for row in rows
    ]
