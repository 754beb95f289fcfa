"""Erasing people and courses from every table, in one transaction each.

Promises: which tables hold a person is asked of the database, so that a new one is not forgotten; under the learner's
lock, so that a worker stores an event before the erasure or drops it after; the accounts of the stream stay right
(docs/decisions/0011); a tombstone is set with the first row that goes, and names what is left outside of the tables.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from graphlib import TopologicalSorter
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import asyncpg

from nbpulse.crypto import EncryptedField
from nbpulse.records import dead_letters, debts, tombstones
from nbpulse.records.audit import note_audit
from nbpulse.records.moves import ROLLED_UP
from nbpulse.records.people import open_name
from nbpulse.records.primaries import PUBLISHED
from nbpulse.records.tombstones import Leftover
from nbpulse.tombstones import Marker

FindEntries = Callable[[], Awaitable[list[tuple[str, str]]]]
"""Entries (stream, id) of theirs that the stream has not yet had acknowledged."""

_LIST_TABLES: Final = """
SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'user_id' AND NOT a.attisdropped
WHERE n.nspname IN ('public', 'timeseries') AND c.relkind IN ('r', 'p') AND NOT c.relispartition
"""
_LIST_REFERENCES: Final = """
SELECT conrelid::regclass::text AS name, confrelid::regclass::text AS needs FROM pg_constraint
WHERE contype = 'f' AND conrelid <> confrelid
"""
_WITH_MERGED: Final = """
WITH RECURSIVE person AS (
    SELECT unnest($1::uuid[]) AS id UNION SELECT u.id FROM users u JOIN person p ON u.merged_into = p.id
) SELECT id FROM person ORDER BY id
"""
_LOCK: Final = """
SELECT FROM learner_states WHERE user_id = ANY($1::uuid[]) ORDER BY user_id, course_id FOR UPDATE
"""
# What was counted must not be counted again when it is dropped: by a worker that died, or slept, between its commit and
# its acknowledgement, or took over what another had acknowledged. Entries of several streams bear one id where they
# came in one millisecond: the stream's shard and lane tell which it was.
_SPEND_STORED: Final = """
INSERT INTO spent_entries (stream, entry_id, outcome)
SELECT format('nbpulse:%s:{shard_%s}', CASE WHEN e.event_type LIKE 'help%' THEN 'help' ELSE 'events' END, i.shard),
    i.entry_id, 'dropped'
FROM event_ids i JOIN events e USING (user_id, shard, event_id)
WHERE i.user_id = ANY($1::uuid[]) AND i.entry_id IS NOT NULL
    AND (i.received_at > now() - interval '1 hour' OR i.entry_id = ANY($2::text[]))
ON CONFLICT DO NOTHING
"""
_SPEND_BURIED: Final = """
INSERT INTO spent_entries (stream, entry_id, outcome) SELECT stream, entry_id, 'dropped' FROM dead_letters
WHERE user_id = ANY($1::uuid[]) OR user_id IS NULL AND entry_id = ANY($2::text[])
ON CONFLICT DO NOTHING
"""
_NOTEBOOKS: Final = """
SELECT array_agg(DISTINCT notebook_id) FILTER (WHERE notebook_id IS NOT NULL) FROM (
    SELECT notebook_id FROM learner_cells WHERE user_id = ANY($1::uuid[])
    UNION ALL SELECT notebook_id FROM learning_sessions WHERE user_id = ANY($1::uuid[])
) k
"""
# A notebook or cell that nobody prepared and nobody else has was learned from them: its name may be their words.
_FORGET_CELLS: Final = (
    """
    UPDATE notebook_cells c SET student_count = k.students FROM (
        SELECT n.notebook_id, n.cell_id, count(l.user_id)::int AS students FROM notebook_cells n
        LEFT JOIN learner_cells l USING (notebook_id, cell_id) WHERE n.notebook_id = ANY($1::uuid[])
        GROUP BY n.notebook_id, n.cell_id
    ) k WHERE (c.notebook_id, c.cell_id) = (k.notebook_id, k.cell_id) AND c.student_count <> k.students
    """,
    "DELETE FROM notebook_cells WHERE notebook_id = ANY($1::uuid[]) AND student_count = 0 AND NOT is_registered",
)
_FORGET_NOTEBOOKS: Final = """
DELETE FROM notebooks n WHERE n.id = ANY($1::uuid[])
    AND NOT EXISTS (SELECT FROM notebook_cells c WHERE c.notebook_id = n.id)
    AND n.id <> ALL(ARRAY(SELECT DISTINCT notebook_id FROM learning_sessions WHERE notebook_id = ANY($1::uuid[])))
"""
# What is still somebody else's, in a database beside the one that is told to forget it.
_STILL_USED: Final = """
SELECT DISTINCT notebook_id FROM learning_sessions WHERE notebook_id = ANY($1::uuid[]) AND user_id <> ALL($2::uuid[])
"""
_STILL_SAID: Final = """
SELECT DISTINCT e.notebook_id, e.cell_id, e.exercise_id FROM learner_cells l
JOIN events e ON (e.user_id, e.notebook_id, e.cell_id) = (l.user_id, l.notebook_id, l.cell_id)
WHERE l.notebook_id = ANY($1::uuid[]) AND l.user_id <> ALL($2::uuid[]) AND e.exercise_id IS NOT NULL
"""
_EXERCISES: Final = """
SELECT DISTINCT notebook_id, cell_id, exercise_id FROM events
WHERE user_id = ANY($1::uuid[]) AND notebook_id IS NOT NULL AND exercise_id IS NOT NULL
"""
# An exercise of a cell that others ran stays where one of them said the same.
_FORGET_EXERCISES: Final = """
WITH others AS MATERIALIZED (
    SELECT DISTINCT e.notebook_id, e.cell_id, e.exercise_id FROM learner_cells l
    JOIN events e ON (e.user_id, e.notebook_id, e.cell_id) = (l.user_id, l.notebook_id, l.cell_id)
    WHERE l.notebook_id = ANY($1::uuid[]) AND l.cell_id = ANY($2::text[]) AND e.exercise_id = ANY($3::text[])
)
UPDATE notebook_cells c SET exercise_id = NULL
FROM unnest($1::uuid[], $2::text[], $3::text[]) AS k(notebook_id, cell_id, exercise_id)
WHERE (c.notebook_id, c.cell_id, c.exercise_id) = (k.notebook_id, k.cell_id, k.exercise_id) AND NOT c.is_registered
    AND NOT EXISTS (SELECT FROM others o
        WHERE (o.notebook_id, o.cell_id, o.exercise_id) = (k.notebook_id, k.cell_id, k.exercise_id))
"""
# Only those who are in no other course; demo people and staff are removed elsewhere, or stay.
_ONLY_HERE: Final = """
SELECT e.user_id FROM enrolments e WHERE e.course_id = $1 AND e.role IN ('student', 'former', 'waiting')
    AND NOT EXISTS (SELECT FROM enrolments o WHERE o.user_id = e.user_id AND o.course_id <> $1) ORDER BY e.user_id
"""
_LEFT: Final = """
SELECT u.id, u.username, u.display_name FROM enrolments e JOIN users u ON u.id = e.user_id
WHERE e.course_id = $1 AND e.role = 'former' AND u.merged_into IS NULL
    AND NOT EXISTS (SELECT FROM enrolments o WHERE o.user_id = e.user_id AND o.role <> 'former') ORDER BY e.left_at
"""
_MEMBERS: Final = """
SELECT user_id FROM learner_states WHERE course_id = $1 UNION SELECT user_id FROM enrolments WHERE course_id = $1
"""
_TOKENS: Final = "SELECT id, secret_hash FROM tokens WHERE "


_OF_COURSE: Final = ("events", "learning_sessions")
# Of a further database's tables those that are the directory's, and what it has of all learners.
SHOWN_BY_DIRECTORY: Final = frozenset((*PUBLISHED, *ROLLED_UP))


class Erased(NamedTuple):
    """What a transaction has removed: rows by table; `mark` names what is left outside of the tables."""

    mark: bytes
    leftover: Leftover
    rows: dict[str, int]


class Held(NamedTuple):
    """A person, and how many rows of theirs each table holds."""

    user_id: UUID
    username: str
    shown: str
    courses: list[str]
    rows: dict[str, int]


class HeldCourse(NamedTuple):
    """A course: its students, how many of them are in other courses too, and rows by table."""

    course_id: UUID
    title: str
    students: int
    others: int
    rows: dict[str, int]


async def find_people(pool: asyncpg.Pool, seal: EncryptedField, name: str) -> list[Held]:
    """Whom that username or id names; those merged into them are part of them."""
    rows = await pool.fetch(
        "SELECT id, username, display_name FROM users WHERE merged_into IS NULL AND (username = $1 OR id::text = $1)",
        name,
    )
    return [await _describe(pool, seal, row) for row in rows]


async def list_left(pool: asyncpg.Pool, seal: EncryptedField, short_name: str) -> list[Held] | None:
    """Who has left the course and is in no other one; None: there is no such course."""
    course_id = await pool.fetchval("SELECT id FROM courses WHERE short_name = $1", short_name)
    if course_id is None:
        return None
    return [await _describe(pool, seal, row) for row in await pool.fetch(_LEFT, course_id)]


async def _describe(pool: asyncpg.Pool, seal: EncryptedField, row: asyncpg.Record) -> Held:
    courses = await pool.fetch(
        "SELECT c.title FROM enrolments e JOIN courses c ON c.id = e.course_id WHERE e.user_id = $1 ORDER BY 1",
        row["id"],
    )
    return Held(
        row["id"],
        row["username"],
        open_name(seal, row["id"], row["username"], row["display_name"]),
        [one["title"] for one in courses],
        await count_rows(pool, await find_ids(pool, row["id"])),
    )


async def find_course(pool: asyncpg.Pool, short_name: str, *, others: Sequence[asyncpg.Pool] = ()) -> HeldCourse | None:
    """The course of that short name, with what the databases beside this one (`others`) have of it."""
    course = await pool.fetchrow("SELECT id, title FROM courses WHERE short_name = $1", short_name)
    if course is None:
        return None
    students = await pool.fetchval(
        "SELECT count(*) FROM enrolments WHERE course_id = $1 AND role = 'student'", course["id"]
    )
    only_here = await list_only_here(pool, course["id"])
    counts = await _count_course(
        pool, course["id"], (*_OF_COURSE, "help_requests", "messages", "interventions", "consents")
    )
    for other in others:
        for table, count in (await _count_course(other, course["id"], _OF_COURSE)).items():
            counts[table] += count
    return HeldCourse(course["id"], course["title"], students, students - len(only_here), counts)


async def _count_course(pool: asyncpg.Pool, course_id: UUID, tables: Iterable[str]) -> dict[str, int]:
    query = "SELECT count(*) FROM {} WHERE course_id = $1"
    return {table: await pool.fetchval(query.format(table), course_id) for table in tables}


async def find_ids(pool: asyncpg.Pool, user_id: UUID) -> list[UUID]:
    """The user with all that were merged into them."""
    return [row["id"] for row in await pool.fetch(_WITH_MERGED, [user_id])]


async def count_rows(pool: asyncpg.Pool, user_ids: Sequence[UUID]) -> dict[str, int]:
    """How many rows of these people each table holds; tables without any are left out."""
    async with pool.acquire() as connection:
        counts = {
            table: await connection.fetchval(
                f"SELECT count(*) FROM {table} WHERE user_id = ANY($1::uuid[])",  # noqa: S608 - the database's own names
                user_ids,
            )
            for table in await list_tables(connection)
        }
    return {table: count for table, count in counts.items() if count}


async def list_only_here(pool: asyncpg.Pool, course_id: UUID) -> list[UUID]:
    """Students of the course who are in no other one."""
    return [row["user_id"] for row in await pool.fetch(_ONLY_HERE, course_id)]


async def list_ids(pool: asyncpg.Pool, table: Literal["users", "courses"]) -> list[UUID]:
    """Every id there is."""
    return [row["id"] for row in await pool.fetch(f"SELECT id FROM {table} ORDER BY id")]  # noqa: S608 - constants


async def list_tables(connection: asyncpg.Connection) -> list[str]:
    """Every table with a column `user_id`, each before those it refers to."""
    names = {row["name"] for row in await connection.fetch(_LIST_TABLES)}
    order: TopologicalSorter[str] = TopologicalSorter({name: set() for name in names})
    for row in await connection.fetch(_LIST_REFERENCES):
        if row["name"] in names and row["needs"] in names:
            order.add(row["needs"], row["name"])
    return list(order.static_order())


async def erase_user(
    pool: asyncpg.Pool,
    seal: EncryptedField,
    marker: Marker,
    user_id: UUID,
    find_entries: FindEntries,
    *,
    others: Sequence[asyncpg.Pool] = (),
) -> Erased:
    """
    Everything of a user, and of those merged into them. For a member of `app_maintenance`. `others`: the databases
    beside this one, which `erase_elsewhere` clears.
    """
    async with pool.acquire() as connection, connection.transaction():
        user_ids = [row["id"] for row in await connection.fetch(_WITH_MERGED, [user_id])]
        # In the ledger's order: first the states, then what its rows refer to.
        await connection.fetch(_LOCK, user_ids)
        await connection.fetch("SELECT FROM users WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE", user_ids)
        await _spend_known(connection, user_ids, await find_entries())
        courses = await connection.fetch(
            "SELECT course_id FROM enrolments WHERE user_id = ANY($1::uuid[])"
            " UNION SELECT course_id FROM learner_states WHERE user_id = ANY($1::uuid[])",
            user_ids,
        )
        learned = await _read_learned(connection, user_ids)
        leftover = Leftover(
            user_ids=user_ids, course_ids=[row["course_id"] for row in courses], notebook_ids=learned.notebook_ids
        )
        mark = marker.mark_user(user_id)
        await _set_tombstones(connection, marker, user_ids)
        await tombstones.add(connection, "user", [mark], leftover)
        rows = await _delete_rows(connection, user_ids)
        needles = [str(one).encode() for one in user_ids]
        rows["dead_letters"] = rows.get("dead_letters", 0) + await dead_letters.drop_nameless(connection, seal, needles)
        rows["series_debt"] = await debts.drop_points(connection, seal, lambda point: point.user_id in set(user_ids))
        await _forget_learned(connection, learned, user_ids, others)
        await connection.execute("DELETE FROM users WHERE id = ANY($1::uuid[])", user_ids)
        counts = {"events": rows["events"], "rows": sum(rows.values())}
        await note_audit(connection, "user_erased", subject_id=user_id, facts=counts)
    return Erased(mark, leftover, {table: count for table, count in rows.items() if count})


async def erase_elsewhere(
    home: asyncpg.Pool,
    seal: EncryptedField,
    user_ids: Sequence[UUID],
    find_entries: FindEntries,
    *,
    directory: asyncpg.Pool,
    others: Sequence[asyncpg.Pool],
) -> dict[str, int]:
    """
    What a further database, `home`, has of people whom `erase_user` has removed from the directory; rows by table.

    Doing it again does what is left. `others`: all databases but the directory. What was learned from their work is
    forgotten before the work is, so that a kill between the two leaves both. The person goes here too: what a worker
    has in hand of theirs is refused from then on, whether the directory's word has come by then or not.
    """
    async with home.acquire() as connection, connection.transaction():
        await connection.fetch(_LOCK, user_ids)
        await connection.fetch("SELECT FROM users WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE", user_ids)
        await _spend_known(connection, user_ids, await find_entries())
        learned = await _read_learned(connection, user_ids)
        rows = await _delete_rows(connection, user_ids)
        rows["series_debt"] = await debts.drop_points(connection, seal, lambda point: point.user_id in set(user_ids))
        await connection.execute("DELETE FROM users WHERE id = ANY($1::uuid[])", user_ids)
        async with directory.acquire() as there, there.transaction():
            await _forget_learned(there, learned, user_ids, others)
    return {table: count for table, count in rows.items() if count and table not in SHOWN_BY_DIRECTORY}


async def erase_course(
    pool: asyncpg.Pool, seal: EncryptedField, marker: Marker, course_id: UUID, find_entries: FindEntries
) -> Erased:
    """A course with all that is left in it, once the students who are only in it are gone (erase_user)."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.fetch("SELECT FROM learner_states WHERE course_id = $1 ORDER BY user_id FOR UPDATE", course_id)
        await connection.fetch("SELECT FROM courses WHERE id = $1 FOR UPDATE", course_id)
        member_ids = [row["user_id"] for row in await connection.fetch(_MEMBERS, course_id)]
        await _spend_known(connection, member_ids, await find_entries())
        paths = await connection.fetch("SELECT id, path FROM notebooks WHERE course_id = $1", course_id)
        leftover = Leftover(
            user_ids=[],
            course_ids=[course_id],
            notebook_ids=[row["id"] for row in paths],
            course_id=course_id,
            member_ids=member_ids,
            paths=[row["path"] for row in paths],
        )
        mark = marker.mark_course(course_id)
        await tombstones.add(connection, "course", [mark], leftover)
        tokens = await connection.fetch(f"{_TOKENS} course_id = $1", course_id)
        await tombstones.add(connection, "token", [marker.mark_token(row["id"], row["secret_hash"]) for row in tokens])
        rows = {"events": await connection.fetchval("SELECT count(*) FROM events WHERE course_id = $1", course_id)}
        rows["series_debt"] = await debts.drop_points(connection, seal, lambda point: point.course_id == course_id)
        needles = [str(course_id).encode()]
        rows["dead_letters"] = await dead_letters.drop_nameless(connection, seal, needles, among=member_ids)
        await connection.fetchval("SELECT remove_course($1)", course_id)
        await note_audit(connection, "course_erased", course_id=course_id, facts={"events": rows["events"]})
    return Erased(mark, leftover, rows)


async def clear_course(
    home: asyncpg.Pool, seal: EncryptedField, leftover: Leftover, find_entries: FindEntries
) -> dict[str, int]:
    """
    What a further database, `home`, has of a course that `erase_course` has removed from the directory; rows by table.

    Doing it again does what is left. The course goes here too, as the people of `erase_elsewhere` do.
    """
    course_id = leftover.course_id
    async with home.acquire() as connection, connection.transaction():
        await connection.fetch("SELECT FROM learner_states WHERE course_id = $1 ORDER BY user_id FOR UPDATE", course_id)
        await connection.fetch("SELECT FROM courses WHERE id = $1 FOR UPDATE", course_id)
        await _spend_known(connection, leftover.member_ids, await find_entries())
        owed = await debts.drop_points(connection, seal, lambda point: point.course_id == course_id)
        events = await connection.fetchval("SELECT clear_course($1)", course_id)
    return {"events": events, "series_debt": owed}


class _Learned(NamedTuple):
    """What was learned of some people's work: notebooks, and exercises by notebook and cell."""

    notebook_ids: list[UUID]
    exercises: list[tuple[UUID, str, str]]


async def _read_learned(connection: asyncpg.Connection, user_ids: Sequence[UUID]) -> _Learned:
    exercises = await connection.fetch(_EXERCISES, user_ids)
    return _Learned(await connection.fetchval(_NOTEBOOKS, user_ids) or [], [tuple(row) for row in exercises])


async def _forget_learned(
    connection: asyncpg.Connection, learned: _Learned, user_ids: Sequence[UUID], others: Sequence[asyncpg.Pool]
) -> None:
    """In the directory, once the people's rows there are gone; what others do in any database stays."""
    used, said = set[UUID](), set[tuple[Any, ...]]()
    for pool in others:
        used |= {row[0] for row in await pool.fetch(_STILL_USED, learned.notebook_ids, user_ids)}
        if learned.exercises:
            said |= {tuple(row) for row in await pool.fetch(_STILL_SAID, learned.notebook_ids, user_ids)}
    for statement in _FORGET_CELLS:
        await connection.execute(statement, learned.notebook_ids)
    await connection.execute(_FORGET_NOTEBOOKS, [one for one in learned.notebook_ids if one not in used])
    unsaid = [one for one in learned.exercises if one not in said]
    await connection.execute(_FORGET_EXERCISES, *([one[place] for one in unsaid] for place in range(3)))


async def _spend_known(
    connection: asyncpg.Connection, user_ids: Sequence[UUID], entries: Iterable[tuple[str, str]]
) -> None:
    in_hand = [entry_id for _, entry_id in entries]
    for statement in (_SPEND_STORED, _SPEND_BURIED):
        await connection.execute(statement, user_ids, in_hand)


async def _set_tombstones(connection: asyncpg.Connection, marker: Marker, user_ids: Sequence[UUID]) -> None:
    tokens = await connection.fetch(f"{_TOKENS} user_id = ANY($1::uuid[])", user_ids)
    identities = await connection.fetch(
        "SELECT provider, subject FROM external_identities WHERE user_id = ANY($1::uuid[])", user_ids
    )
    await tombstones.add(connection, "user", map(marker.mark_user, user_ids))
    await tombstones.add(connection, "token", [marker.mark_token(row["id"], row["secret_hash"]) for row in tokens])
    await tombstones.add(
        connection, "identity", [marker.mark_identity(row["provider"], row["subject"]) for row in identities]
    )


async def _delete_rows(connection: asyncpg.Connection, user_ids: Sequence[UUID]) -> dict[str, int]:
    rows = {}
    for table in await list_tables(connection):
        done: str = await connection.execute(
            f"DELETE FROM {table} WHERE user_id = ANY($1::uuid[])",  # noqa: S608 - the database's own names
            user_ids,
        )
        rows[table] = int(done.rpartition(" ")[2])
    await connection.execute("SELECT count_removed($1)", rows["events"])
    return rows
