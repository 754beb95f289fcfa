"""Two users that are one person, where the rows of one, of the other or of both are beside the directory.

    the second is closed in their database -> their rows come into the first's database and are the first's, in one
    transaction -> the directory follows -> the second's rows go

Promises: no event is lost or stored twice, whatever is killed: what a step has done is found by the next try, which is
the same command. From the first step on the second's events are stored as the first's (routing.py). The points of what
has changed hands are owed, in the transaction that does so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple
from uuid import UUID

import asyncpg

from nbpulse.crypto import EncryptedField
from nbpulse.errors import InvalidInput, StartupError, Unavailable
from nbpulse.records import debts, learners, merging, points, rollups
from nbpulse.records.audit import Facts, note_audit
from nbpulse.shards import MAIN, get_shard_number

_PIECE_ROWS: Final = 1_000
_CARRIED: Final = ("event_ids", "events", "event_contents", "learning_sessions")
_GONE: Final = (*_CARRIED, "learner_cells", "help_requests", "series_marks", "series_standings")
_FIND_INTO: Final = """
SELECT id, merged_into FROM users WHERE id = ANY($1::uuid[])
"""
_CLOSE: Final = """
INSERT INTO learner_states AS s (user_id, shard, course_id, merged_into) SELECT $1, $2, unnest($4::uuid[]), $3
ON CONFLICT (user_id, shard, course_id) DO UPDATE SET merged_into = excluded.merged_into
"""
_FIND_CLOSED: Final = """
SELECT merged_into FROM learner_states WHERE user_id = ANY($1::uuid[]) AND merged_into IS NOT NULL
    AND (user_id, merged_into) <> ($2, $3) LIMIT 1
"""
_COURSES: Final = "SELECT DISTINCT course_id FROM learner_states WHERE user_id = ANY($1::uuid[]) ORDER BY 1"
_OWE_SHOWN: Final = "INSERT INTO rollup_debts (id, user_ids, course_ids) VALUES (gen_random_uuid(), $1, $2)"
_RETIRE: Final = """
UPDATE learner_states SET state = NULL, help_text = NULL, notebook_id = NULL WHERE user_id = $1
"""


class Site(NamedTuple):
    """The databases by name, and where the shards are."""

    pools: Mapping[str, asyncpg.Pool]
    places: Mapping[int, str]

    @property
    def directory(self) -> asyncpg.Pool:
        return self.pools[MAIN]

    def find_home(self, user_id: UUID) -> asyncpg.Pool:
        return self.pools[self.places[get_shard_number(user_id)]]


async def merge_across(
    site: Site, seal: EncryptedField, *, keep_id: UUID, drop_id: UUID, full_texts: bool = False
) -> int:
    """
    As `merging.merge_users`, on a site of several databases while no shard moves; what an earlier try has left is done.

    Raises InvalidInput as that; StartupError (NB-3140): the merge of one of them into somebody else was begun.
    Unavailable (NB-2035): a database has not heard of one of them yet.
    """
    if keep_id == drop_id:
        raise InvalidInput("NB-1022")
    directory, home, source = site.directory, site.find_home(keep_id), site.find_home(drop_id)
    found = dict(await directory.fetch(_FIND_INTO, [keep_id, drop_id]))
    if len(found) != 2 or found[keep_id] is not None or found[drop_id] not in (None, keep_id):
        raise InvalidInput("NB-1021")
    if home is source is directory:
        return await merging.merge_users(directory, seal, keep_id=keep_id, drop_id=drop_id)
    for pool in {home, source}:
        if begun := await pool.fetchval(_FIND_CLOSED, [keep_id, drop_id], drop_id, keep_id):
            raise StartupError("NB-3140", id=begun)
    try:
        if source is not home:
            await close(source, directory, keep_id, drop_id)
        moved = await take_over(site, seal, keep_id, drop_id, full_texts=full_texts)
    except (learners.UsersErased, asyncpg.ForeignKeyViolationError) as error:
        raise Unavailable("NB-2035") from error
    await tell_directory(site, seal, keep_id, drop_id, moved)
    if source is not home:
        await clear(source, home, seal, keep_id, drop_id)
    return moved


async def close(source: asyncpg.Pool, directory: asyncpg.Pool, keep_id: UUID, drop_id: UUID) -> None:
    """From now on nothing of the second is stored there; the directory shows them as they stand."""
    courses = [row[0] for row in await directory.fetch(_COURSES, [drop_id])]
    async with source.acquire() as connection, connection.transaction():
        await connection.fetch("SELECT FROM learner_states WHERE user_id = $1 ORDER BY course_id FOR UPDATE", drop_id)
        courses += [row[0] for row in await connection.fetch(_COURSES, [drop_id])]
        await connection.execute(_CLOSE, drop_id, get_shard_number(drop_id), keep_id, sorted(set(courses)))
    if source is not directory:
        await _show(drop_id, source, directory)


async def take_over(site: Site, seal: EncryptedField, keep_id: UUID, drop_id: UUID, *, full_texts: bool) -> int:
    """The second's events become the first's in the first's database; how many were not there yet."""
    home, source, directory = site.find_home(keep_id), site.find_home(drop_id), site.directory
    async with home.acquire() as connection, connection.transaction():
        if source is home:
            if await connection.fetchval(_FIND_CLOSED, [drop_id], drop_id, drop_id):
                return 0  # done by an earlier try
        else:
            tables = _CARRIED if home is directory else (*_CARRIED, "learner_states", "help_requests")
            carried = await _carry(source, connection, drop_id, tables)
            await connection.execute("SELECT count_removed($1)", -carried)
            await connection.execute("UPDATE learner_states SET merged_into = NULL WHERE user_id = $1", drop_id)
            await connection.execute(
                "DELETE FROM learning_sessions s WHERE s.user_id = $1"
                " AND EXISTS (SELECT FROM learning_sessions k WHERE k.user_id = $2 AND k.id = s.id)",
                *(drop_id, keep_id),
            )
        moved = await merging.merge_rows(connection, seal, keep_id, drop_id, is_directory=home is directory)
        async for batch in points.read_chosen(connection, seal, keep_id, "moved", full_text=full_texts):
            await debts.note(connection, tuple(batch), seal if full_texts else None)
        if source is home or home is directory:
            await merging.retire(connection, keep_id, drop_id)
        else:
            await connection.execute("DELETE FROM learner_states WHERE user_id = $1", drop_id)
        if home is not directory:
            courses = [row[0] for row in await connection.fetch(_COURSES, [keep_id])]
            await connection.execute(_OWE_SHOWN, [keep_id] * len(courses), courses)
    return moved


async def _carry(source: asyncpg.Pool, target: asyncpg.Connection, user_id: UUID, tables: tuple[str, ...]) -> int:
    """A user's rows of these tables as they stand, inside the target's transaction; how many events."""
    events = 0
    async with source.acquire() as here, here.transaction(isolation="repeatable_read", readonly=True):
        for table in tables:
            cursor = await here.cursor(f"SELECT row_to_json(t)::text AS row FROM {table} t WHERE user_id = $1", user_id)  # noqa: S608
            while rows := await cursor.fetch(_PIECE_ROWS):
                await target.execute(
                    f"INSERT INTO {table} SELECT * FROM json_populate_recordset(NULL::{table}, $1::json)",  # noqa: S608
                    f"[{','.join(row['row'] for row in rows)}]",
                )
                events += len(rows) if table == "events" else 0
    return events


async def tell_directory(site: Site, seal: EncryptedField, keep_id: UUID, drop_id: UUID, moved: int) -> None:
    """The directory's part; what the live pages show of the first is brought anew."""
    directory, home = site.directory, site.find_home(keep_id)
    async with directory.acquire() as connection, connection.transaction():
        await merging.merge_person(connection, seal, keep_id, drop_id, shows_only=home is not directory)
        facts: Facts = {"merged_user_id": str(drop_id), "events": moved}
        await note_audit(connection, "users_merged", subject_id=keep_id, facts=facts)
    if home is not directory:
        await _show(keep_id, home, directory)


async def _show(user_id: UUID, home: asyncpg.Pool, directory: asyncpg.Pool) -> None:
    """Bring to the directory what is owed of a user."""
    owed = [one for one in await rollups.find(home, 0, limit=1_000_000) if any(key[0] == user_id for key in one.keys)]
    if owed:
        await rollups.pay(owed, home, directory)


async def clear(source: asyncpg.Pool, home: asyncpg.Pool, seal: EncryptedField, keep_id: UUID, drop_id: UUID) -> None:
    """The second's rows go from their database. Raises StartupError (NB-3132): the first has fewer."""
    async with source.acquire() as connection, connection.transaction():
        await connection.fetch("SELECT FROM learner_states WHERE user_id = $1 ORDER BY course_id FOR UPDATE", drop_id)
        ids = [row[0] for row in await connection.fetch("SELECT event_id FROM event_ids WHERE user_id = $1", drop_id)]
        query = "SELECT count(*) FROM event_ids WHERE user_id = $1 AND event_id = ANY($2::uuid[])"
        there = await home.fetchval(query, keep_id, ids)
        if there < len(ids):
            raise StartupError("NB-3132", detail=f"{drop_id}: {there} < {len(ids)}")
        for table in _GONE:
            done: str = await connection.execute(f"DELETE FROM {table} WHERE user_id = $1", drop_id)  # noqa: S608
            if table == "events":
                await connection.execute("SELECT count_removed($1)", int(done.rpartition(" ")[2]))
        await debts.drop_points(connection, seal, lambda point: point.user_id == drop_id)
        await connection.execute(_RETIRE, drop_id)
