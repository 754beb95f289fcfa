"""One shard from one database to another, while its students work.

    publication of the shard's rows -> subscription copies, then follows -> fence (`shard_owners`, waits for what is in
    flight) -> the target has applied all before it -> marks and spent entries carried -> the target holds the shard,
    under the next epoch -> map -> the source's rows deleted

Promises: the map decides, so at every moment one database is the shard's, or none for the length of the fence; each
step may be done again, and a move that was killed goes on where it was, or is taken back until the map has changed;
rows are deleted only when the target has as many.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Final, NamedTuple

import asyncpg

from nbpulse.errors import StartupError
from nbpulse.records import primaries, rollups
from nbpulse.records.databases import HOLD_LOCK, find_shard_url
from nbpulse.records.failures import UNAVAILABLE
from nbpulse.records.marks import UPSERT
from nbpulse.shards import MAIN, get_shard_number

ROLLED_UP: Final = ("learner_states", "learner_cells", "help_requests")
"""In the directory these rows stay, wherever the shard is."""
MOVED: Final = ("event_ids", "events", "event_contents", "learning_sessions", *ROLLED_UP, "series_rejects")
MADE_ANEW: Final = ("series_marks", "series_standings")
_MOVER_LOCK: Final = 6_622_036
_LOOK_S: Final = 0.005
_APPLY_S: Final = 10.0
_LAG_BYTES: Final = 1 << 20
_LOCK_MS: Final = 10_000
Report = Callable[[float], None]
"""How much of the copy is done, 0..1."""

_CARRY_MARKS: Final = f"""
INSERT INTO series_marks AS m (user_id, shard, notebook_id, since)
SELECT user_id, shard, notebook_id, since FROM json_populate_recordset(NULL::series_marks, $1::json)
ORDER BY user_id, notebook_id
{UPSERT}"""  # noqa: S608 - constants
_CARRY_SPENT: Final = """
INSERT INTO spent_entries SELECT * FROM json_populate_recordset(NULL::spent_entries, $1::json) ON CONFLICT DO NOTHING
"""
_KEEP_RUNS: Final = f"""
INSERT INTO recent_runs AS r (user_id, shard, course_id, notebook_id, half_minute, runs, errors)
SELECT e.user_id, e.shard, e.course_id, e.notebook_id, floor(extract(epoch FROM e.occurred_at) / 30)::int, count(*),
    count(*) FILTER (WHERE e.data->>'status' = 'error')
FROM events e JOIN courses c ON c.id = e.course_id
WHERE e.shard = $1 AND e.occurred_at > now() - interval '1 hour' AND e.notebook_id IS NOT NULL AND {rollups.IS_RUN}
GROUP BY 1, 2, 3, 4, 5 ON CONFLICT (user_id, shard, notebook_id, half_minute) DO UPDATE
    SET runs = greatest(r.runs, excluded.runs), errors = greatest(r.errors, excluded.errors)
"""  # noqa: S608 - constants
_IS_SETTLED: Final = """
NOT EXISTS (
    SELECT FROM rollup_debts d, unnest(d.user_ids, d.course_ids) k(user_id, course_id)
    WHERE d.created_at > now() - interval '1 minute' AND (k.user_id, k.course_id) = (s.user_id, s.course_id)
)
"""
_UNFENCE: Final = "UPDATE shard_owners SET is_here = TRUE WHERE shard = $1"
_STREAMS: Final = "SELECT json_agg(s) FROM spent_entries s WHERE stream LIKE '%{shard_' || $1::text || '}'"


class Move(NamedTuple):
    """Shard `shard` from the database `source` to `target`."""

    shard: int
    source: str
    target: str

    @property
    def publication(self) -> str:
        return f"nbpulse_shard_{self.shard}"


@dataclass(frozen=True)
class Site:
    """Every database under its owner's login, and the password of the login by which they read each other."""

    pools: dict[str, asyncpg.Pool]
    urls: dict[str, str]
    password: str

    @property
    def directory(self) -> asyncpg.Pool:
        return self.pools[MAIN]

    def make_slot(self, move: Move) -> str:
        return primaries.make_slot_name(move.publication, self.urls[move.source], self.urls[move.target])


@asynccontextmanager
async def hold_moves(directory: asyncpg.Pool) -> AsyncIterator[None]:
    """One mover at a time. Raises StartupError (NB-3129): another is at work."""
    async with directory.acquire() as connection:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _MOVER_LOCK):
            raise StartupError("NB-3129")
        yield  # the pool gives the lock back with the connection


@asynccontextmanager
async def hold_still(directory: asyncpg.Pool) -> AsyncIterator[None]:
    """No shard moves meanwhile. Raises StartupError: one does (NB-3129), a move was stopped half-way (NB-3137)."""
    async with hold_moves(directory):
        if moves := await list_moves(directory):
            raise StartupError("NB-3137", shards=", ".join(f"shard_{one.shard}" for one in moves))
        yield


def hold_all_still(pools: Mapping[str, asyncpg.Pool]) -> AbstractAsyncContextManager[None]:
    """`hold_still` of a site; nothing where it has one database."""
    return hold_still(pools[MAIN]) if len(pools) > 1 else nullcontext()


async def list_moves(directory: asyncpg.Pool) -> list[Move]:
    """Those that were begun and have not ended."""
    rows = await directory.fetch("SELECT shard, source, target FROM shard_moves ORDER BY started_at, shard")
    return [Move(*row) for row in rows]


async def begin(directory: asyncpg.Pool, shard: int, target: str) -> Move | None:
    """
    Note the move; None where the shard is there already. One that was begun is given back.

    Raises StartupError (NB-3133): it is on its way to another database.
    """
    async with directory.acquire() as connection, connection.transaction():
        source = await connection.fetchval("SELECT database FROM shard_map WHERE shard = $1 FOR UPDATE", shard)
        begun = await connection.fetchrow("SELECT source, target FROM shard_moves WHERE shard = $1", shard)
        if begun is not None:
            if begun["target"] != target:
                raise StartupError("NB-3133", shard=f"shard_{shard}", target=begun["target"])
            return Move(shard, begun["source"], target)
        if source == target:
            return None
        await connection.execute(
            "INSERT INTO shard_moves (shard, source, target) VALUES ($1, $2, $3)", shard, source, target
        )
        await connection.execute("UPDATE shard_map SET state = 'moving' WHERE shard = $1", shard)
    return Move(shard, source, target)


async def finish(site: Site, move: Move, report: Report) -> float:
    """
    Do what is left of a move; for how many seconds nobody could write the shard's rows (0: not in this run).

    Raises StartupError: the one server cannot read the other (NB-3126), rows are missing (NB-3132). What the driver
    raises leaves as it is: do the same again.
    """
    paused_s = 0.0
    if await _find_home(site.directory, move.shard) != move.target:
        await _copy(site, move, report)
        paused_s = await _hand_over(site, move)
    await _clean_up(site, move)
    return paused_s


async def abort(site: Site, move: Move) -> None:
    """Take a move back. Raises StartupError (NB-3131): the shard is at its new place already, only to be cleaned up."""
    if await _find_home(site.directory, move.shard) == move.target:
        raise StartupError("NB-3131", shard=f"shard_{move.shard}", target=move.target)
    source, target = site.pools[move.source], site.pools[move.target]
    await target.execute("UPDATE shard_owners SET is_here = FALSE WHERE shard = $1", move.shard)
    await source.execute(_UNFENCE, move.shard)
    await _part(site, move)
    await _delete_rows(target, move.target, move.shard)
    await _note_end(site.directory, move.shard)


async def _find_home(directory: asyncpg.Pool, shard: int) -> str:
    name: str = await directory.fetchval("SELECT database FROM shard_map WHERE shard = $1", shard)
    return name


def _list_tables(move: Move) -> tuple[str, ...]:
    """To the directory the learners' rows have come by roll-ups already."""
    return tuple(table for table in MOVED if move.target != MAIN or table not in ROLLED_UP)


async def _copy(site: Site, move: Move, report: Report) -> None:
    source, target = site.pools[move.source], site.pools[move.target]
    if not await source.fetchval("SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)", move.publication):
        tables = ", ".join(f"{table} WHERE (shard = {move.shard})" for table in _list_tables(move))
        await source.execute(
            f"CREATE PUBLICATION {move.publication} FOR TABLE {tables} WITH (publish_via_partition_root = true)"
        )
    slot = site.make_slot(move)
    await primaries.subscribe(
        source,
        target,
        move.publication,
        slot=slot,
        conninfo=find_shard_url(site.urls[move.source], primaries.REPLICATOR, site.password),
        clear=lambda: _delete_rows(target, move.target, move.shard),
    )
    while True:
        done, total = await primaries.count_synced(target, move.publication)
        report(done / total if total else 0.0)
        if total and done == total:
            break
        await source.execute("SELECT 1")  # the target would wait for a dead source without a word
        await asyncio.sleep(0.05)
    query = "SELECT pg_current_wal_lsn() - confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1"
    while True:
        lag_bytes = await source.fetchval(query, slot)
        if lag_bytes is not None and lag_bytes <= _LAG_BYTES:
            break
        await asyncio.sleep(0.05)


async def _hand_over(site: Site, move: Move) -> float:
    """
    From the fence to the map: what is between is the pause of the shard's writes.

    What fails before the target holds the shard takes the fence back, where the source answers: a target that died
    costs the shard no pause.
    """
    source, target = site.pools[move.source], site.pools[move.target]
    try:
        async with source.acquire() as connection:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {_LOCK_MS}")
                began_s = time.monotonic()  # who comes now waits behind us
                await connection.execute("SELECT pg_advisory_xact_lock($1, $2)", HOLD_LOCK, move.shard)
                await connection.execute("UPDATE shard_owners SET is_here = FALSE WHERE shard = $1", move.shard)
            fenced_at = await connection.fetchval("SELECT pg_current_wal_insert_lsn()::text")
            await _wait_applied(connection, target, site.make_slot(move), fenced_at)
        await _carry(site, move)
    except BaseException:
        with contextlib.suppress(*UNAVAILABLE):
            await source.execute(_UNFENCE, move.shard)
        raise
    epoch = 1 + await site.directory.fetchval("SELECT epoch FROM shard_map WHERE shard = $1", move.shard)
    await target.execute("UPDATE shard_owners SET is_here = TRUE, epoch = $2 WHERE shard = $1", move.shard, epoch)
    await site.directory.execute(
        "UPDATE shard_map SET database = $2, epoch = $3, state = 'serving' WHERE shard = $1",
        *(move.shard, move.target, epoch),
    )
    return time.monotonic() - began_s


async def _wait_applied(source: asyncpg.Connection, target: asyncpg.Pool, slot: str, lsn: str) -> None:
    """Until the subscriber has flushed all up to `lsn`. Raises StartupError (NB-3130) after ten seconds."""
    deadline_s = time.monotonic() + _APPLY_S
    query = "SELECT confirmed_flush_lsn >= $2::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $1"
    while not await source.fetchval(query, slot, lsn):
        if time.monotonic() > deadline_s:
            raise StartupError("NB-3130", detail=f"{slot} has not reached {lsn}")
        # Something to send: with nothing new the subscriber would be asked for its position only now and then.
        await source.execute("SELECT pg_logical_emit_message(false, 'nbpulse', '')")
        await target.execute("SELECT 1")  # a dead one is no slow one
        await asyncio.sleep(_LOOK_S)


async def _carry(site: Site, move: Move) -> None:
    """What logical replication does not bring: owed points, entries spent, roll-ups that a killed worker left out."""
    source, target = site.pools[move.source], site.pools[move.target]
    marks = await source.fetchval("SELECT json_agg(m) FROM series_marks m WHERE shard = $1", move.shard)
    if marks:
        await target.execute(_CARRY_MARKS, marks)
    spent = await source.fetchval(_STREAMS, str(move.shard))
    if spent:
        await target.execute(_CARRY_SPENT, spent)
    if move.source != MAIN:
        owed = await rollups.find(source, 0, limit=1_000_000)
        theirs = [one for one in owed if any(get_shard_number(user_id) == move.shard for user_id, _ in one.keys)]
        if theirs:
            await rollups.pay(theirs, source, site.directory)


async def _clean_up(site: Site, move: Move) -> None:
    """After the map: the rows that are elsewhere now go. Raises StartupError (NB-3132): the target has fewer."""
    source, target = site.pools[move.source], site.pools[move.target]
    await _part(site, move)
    count = "SELECT count(*) FROM event_ids WHERE shard = $1"
    left, there = await source.fetchval(count, move.shard), await target.fetchval(count, move.shard)
    if left > there:
        raise StartupError("NB-3132", detail=f"shard_{move.shard}: {there} < {left}")
    if move.source == MAIN:
        await source.execute(_KEEP_RUNS, move.shard)
    elif move.target == MAIN:
        await target.execute("DELETE FROM recent_runs WHERE shard = $1", move.shard)
    await _delete_rows(source, move.source, move.shard)
    await _note_end(site.directory, move.shard)


async def _part(site: Site, move: Move) -> None:
    """End subscription, slot and publication: first, or the deletion would follow the rows."""
    source, target = site.pools[move.source], site.pools[move.target]
    await primaries.unsubscribe(target, move.publication)
    await primaries.drop_slot(source, site.make_slot(move))
    await source.execute(f"DROP PUBLICATION IF EXISTS {move.publication}")


async def _delete_rows(pool: asyncpg.Pool, name: str, shard: int) -> None:
    for table in (*MOVED, *MADE_ANEW):
        if name != MAIN or table not in ROLLED_UP:
            await pool.execute(f"DELETE FROM {table} WHERE shard = $1", shard)  # noqa: S608 - constants
    await pool.execute("DELETE FROM spent_entries WHERE stream LIKE '%{shard_' || $1::text || '}'", str(shard))


async def _note_end(directory: asyncpg.Pool, shard: int) -> None:
    async with directory.acquire() as connection, connection.transaction():
        await connection.execute("DELETE FROM shard_moves WHERE shard = $1", shard)
        await connection.execute("UPDATE shard_map SET state = 'serving' WHERE shard = $1", shard)


# --- looking whether all is where it belongs --------------------------------------------------------------------------


async def verify(site: Site) -> list[str]:
    """
    What is not as the map says, in words; empty: each shard is held by its database alone, every row lies there, rows
    and counters of all databases agree, and the directory shows every learner as they stand. Reads every row.
    """
    places = {row["shard"]: row for row in await site.directory.fetch("SELECT * FROM shard_map")}
    moving = {move.shard for move in await list_moves(site.directory)}
    wrong = [f"shard_{shard}: being moved" for shard in sorted(moving)]
    rows = stored = 0
    for name, pool in site.pools.items():
        for owner in await pool.fetch("SELECT shard, epoch, is_here FROM shard_owners ORDER BY shard"):
            place = places[owner["shard"]]
            is_home = place["database"] == name
            if owner["is_here"] != is_home or (is_home and owner["epoch"] != place["epoch"]):
                wrong.append(f"shard_{owner['shard']}: {name} is_here={owner['is_here']} epoch={owner['epoch']}")
        for table in MOVED:
            if name == MAIN and table in ROLLED_UP:
                continue
            query = f"SELECT shard, count(*) FROM {table} GROUP BY shard"  # noqa: S608 - constants
            for shard, count in await pool.fetch(query):
                if places[shard]["database"] != name and shard not in moving:
                    wrong.append(f"shard_{shard}: {count} rows of {table} at {name}")
        rows += await pool.fetchval("SELECT count(*) FROM events")
        stored += await pool.fetchval("SELECT coalesce(sum(stored - removed), 0)::bigint FROM event_counts")
        if name != MAIN:
            wrong += await _compare_states(site.directory, pool, name)
    if rows != stored and not moving:
        wrong.append(f"events: {rows} rows, {stored} counted")
    return wrong


async def _compare_states(directory: asyncpg.Pool, pool: asyncpg.Pool, name: str) -> list[str]:
    query = "SELECT user_id, course_id, revision FROM learner_states s WHERE shard = ANY($1::smallint[])"
    shards = [row[0] for row in await pool.fetch("SELECT shard FROM shard_owners WHERE is_here")]
    # What is owed for a moment is on its way; what was paid when these rows were read is there when it is looked for.
    there = await pool.fetch(f"{query} AND {_IS_SETTLED}", shards)
    shown = {(row[0], row[1]): row[2] for row in await directory.fetch(query, shards)}
    late = sum(shown.get((row[0], row[1]), row[2]) < row[2] for row in there)
    return [f"{late} learners of {name} are not shown as they stand"] if late else []
