"""A course's history from the databases that hold it: the same statement, as the same person, in each of them.

Promises: at one database everything is asked as ever. Of several each is read in one snapshot, taken while one map
held, and of the shards that this map gives it: a move in between shows nobody twice and leaves nobody out. Whoever asks
is seen there as the directory sees them, or it is not read. A database that does not answer is named in `Coverage`;
where nobody asked for that, and where none answers, there is no answer.
"""

from __future__ import annotations

import asyncio
import heapq
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import structlog

from nbpulse.errors import Unavailable
from nbpulse.metrics import PostgresQuery, name_query
from nbpulse.records.databases import Databases, is_map_spread, read_map
from nbpulse.records.failures import UNAVAILABLE
from nbpulse.records.people import QUERY_LIMIT_S, People, introduce
from nbpulse.shards import MAIN, ShardMap, get_shard_number

PIECE_ROWS: Final = 2_000
_OPEN_LIMIT_S: Final = 3.0
_MAP_TRIES: Final = 5
_CATCH_UP_S: Final = 1.0
_LOOK_S: Final = 0.05
_FAILURES: Final = (
    *(*UNAVAILABLE, asyncpg.QueryCanceledError),
    # A server that was set up by half: as away as one that is down.
    *(asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError),
)
_RIGHTS: Final = "SELECT my_read_courses() AS read, my_taught_courses() AS taught, find_my_team_students() AS students"
# Of the students' tables alone: people and notebooks are the same in every database, and have no shard.
_OF_COURSE: Final = re.compile(
    r"(FROM (?:events|learning_sessions|event_contents)\b(?:(?!\bFROM\b|\bWHERE\b).)*WHERE )"
    r"((?:\w+\.)?)course_id = \$1\b",
    re.DOTALL,
)
_log = structlog.get_logger(__name__)
# Databases that were given up and have not noticed yet; a task nobody holds may vanish.
_leaving: set[asyncio.Task[Any]] = set()


class Coverage:
    """Of which databases an answer was made; `missing`: those that were away, with their shards."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.missing: dict[str, list[int]] = {}

    @property
    def count(self) -> int:
        """Of how many databases it is, those that were away among them; 0 or 1: nothing is to be said."""
        return len(self.used | self.missing.keys())

    @property
    def missing_shards(self) -> list[int]:
        """Whose students are not in the answer, by shard."""
        return sorted(shard for shards in self.missing.values() for shard in shards)


_coverage: ContextVar[Coverage | None] = ContextVar("nbpulse_coverage", default=None)


@contextmanager
def covering() -> Iterator[Coverage]:
    """What is asked inside may leave out databases that are away, and notes them; outside of it nothing may."""
    token = _coverage.set(coverage := Coverage())
    try:
        yield coverage
    finally:
        _coverage.reset(token)


def leaves_out(user_id: UUID) -> bool:
    """Whether the answer being made knows nothing of this student: that they did nothing must not be said."""
    coverage = _coverage.get()
    return coverage is not None and get_shard_number(user_id) in coverage.missing_shards


class _Part(NamedTuple):
    name: str
    connection: asyncpg.Connection
    shards: list[int]


class Parts:
    """The databases that one question is asked of. `directory`: the connection for what is there alone."""

    def __init__(self, directory: asyncpg.Connection, parts: Sequence[_Part] = ()) -> None:
        self.directory = directory
        self._parts = list(parts)

    @property
    def is_one(self) -> bool:
        """Whether all is in one database, so that its own ORDER BY, LIMIT and percentiles are right."""
        return not self._parts

    @property
    def home(self) -> asyncpg.Connection:
        """The connection for one student's rows, where it was asked for theirs."""
        return self._parts[0].connection if self._parts else self.directory

    async def fetch(self, query: str, *values: Any) -> list[asyncpg.Record]:
        """
        All databases' rows, one database's after the other's. A student's rows are in one of them.

        `query` reads the students' tables by `WHERE course_id = $1`, which is where the shards are asked for too.
        """
        if self.is_one:
            rows: list[asyncpg.Record] = await self.directory.fetch(query, *values)
            return rows
        narrowed = _narrow(query, len(values))
        ends = await asyncio.gather(*(_ask(part, narrowed, values) for part in self._parts), return_exceptions=True)
        found: list[asyncpg.Record] = []
        for part, end in zip(list(self._parts), ends, strict=True):
            if isinstance(end, BaseException):
                self._give_up(part, end)
            else:
                self._note_used(part)
                found += end
        _refuse_none(self._parts)
        return found

    async def walk(self, query: str, *values: Any, order: Sequence[str]) -> AsyncIterator[list[asyncpg.Record]]:
        """
        All rows in pieces of at most PIECE_ROWS, in the order of these columns, by which `query` orders them too.

        Raises what the driver raises where a database goes away meanwhile: half a class is none.
        """
        if self.is_one:
            cursor = await self.directory.cursor(query, *values)
            while rows := await cursor.fetch(PIECE_ROWS):
                yield rows
            return
        narrowed = _narrow(query, len(values))
        cursors, waiting, heads = [], list[deque[asyncpg.Record]](), []
        for place, part in enumerate(self._parts):
            self._note_used(part)
            cursors.append(await part.connection.cursor(narrowed, *values, part.shards, timeout=QUERY_LIMIT_S))
            waiting.append(deque(await cursors[place].fetch(PIECE_ROWS, timeout=QUERY_LIMIT_S)))
            if waiting[place]:
                heads.append((_rank(waiting[place][0], order), place))
        heapq.heapify(heads)
        piece: list[asyncpg.Record] = []
        while heads:
            _, place = heapq.heappop(heads)
            piece.append(waiting[place].popleft())
            if not waiting[place]:
                waiting[place].extend(await cursors[place].fetch(PIECE_ROWS, timeout=QUERY_LIMIT_S))
            if waiting[place]:
                heapq.heappush(heads, (_rank(waiting[place][0], order), place))
            if len(piece) == PIECE_ROWS:
                yield piece
                piece = []
        if piece:
            yield piece

    def _note_used(self, part: _Part) -> None:
        if (coverage := _coverage.get()) is not None:
            coverage.used.add(part.name)

    def _give_up(self, part: _Part, failure: BaseException) -> None:
        """Go on without a database that has told nothing yet; whose rows are in the answer already may not go away."""
        coverage = _coverage.get()
        is_first = coverage is not None and part.name not in coverage.used
        if not isinstance(failure, _FAILURES) or part.name == MAIN or not is_first:
            raise failure
        _miss(part.name, part.shards, failure)
        self._parts.remove(part)


@asynccontextmanager
async def connect_parts(
    people: People, query_type: PostgresQuery, *, is_staff: bool = False, whose: UUID | None = None
) -> AsyncIterator[Parts]:
    """
    Every database with students' rows, or that of one student's, in a transaction as whoever asks (`People.connect`).

    Raises Unavailable: none answers, one does not outside of `covering`, or shards move faster than is read (NB-2003);
    there are several, and `people` knows one (NB-2036).
    """
    is_several = False

    async def look(connection: asyncpg.Connection) -> None:
        nonlocal is_several
        is_several = await is_map_spread(connection)

    async with people.connect(query_type, is_staff=is_staff, look=look) as directory:
        if not is_several:
            yield Parts(directory)
            return
    if people.databases is None:
        raise Unavailable("NB-2036", retry_after_s=600)
    for _ in range(_MAP_TRIES):
        async with AsyncExitStack() as stack:
            parts = await _open(stack, people, people.databases, query_type, is_staff=is_staff, whose=whose)
            if parts is not None:
                yield parts
                return
    raise Unavailable("NB-2003", retry_after_s=1)


@asynccontextmanager
async def connect_home(
    people: People, user_id: UUID, query_type: PostgresQuery, *, is_staff: bool = False
) -> AsyncIterator[asyncpg.Connection]:
    """The database of one student's rows, as whoever asks. Raises Unavailable (NB-2003): it does not answer."""
    async with connect_parts(people, query_type, is_staff=is_staff, whose=user_id) as parts:
        yield parts.home


async def _open(
    stack: AsyncExitStack,
    people: People,
    databases: Databases,
    query_type: PostgresQuery,
    *,
    is_staff: bool,
    whose: UUID | None,
) -> Parts | None:
    """
    The databases in snapshots of one map, all of them or that of `whose`; None where the map has changed meanwhile.

    The directory is read in its own snapshot (a replica's may be older), and its map must still be the map when the
    other snapshots have been taken: so long each database had all rows of its shards.
    """
    await databases.refresh()
    seen: ShardMap = ()

    async def look(connection: asyncpg.Connection) -> None:
        nonlocal seen
        seen = await read_map(connection)

    connecting = people.connect(query_type, is_staff=is_staff, isolation="repeatable_read", look=look)
    directory = await stack.enter_async_context(connecting)
    if list(seen) != list(databases.places):
        return None
    homes: dict[str, list[int]] = {}
    for number, place in enumerate(seen):
        if whose is None or number == get_shard_number(whose):
            homes.setdefault(place.database, []).append(number)
    rights = await _read_rights(directory)
    others = [name for name in homes if name != MAIN]
    opened = await asyncio.gather(
        *(_open_there(stack, databases, name, homes[name], (query_type, is_staff, rights)) for name in others)
    )
    parts = [_Part(MAIN, directory, homes[MAIN])] if MAIN in homes else []
    parts += [part for part in opened if part is not None]
    await databases.refresh()
    if list(seen) != list(databases.places):
        return None
    _refuse_none(parts)
    return Parts(directory, parts)


_Manner = tuple[PostgresQuery, bool, tuple[frozenset[Any], ...]]


async def _open_there(
    stack: AsyncExitStack, databases: Databases, name: str, shards: list[int], manner: _Manner
) -> _Part | None:
    """A part, closed with `stack`; None and noted where the database is away, also where it hangs."""
    coverage = _coverage.get()
    if coverage is not None and name in coverage.missing:
        return None
    connecting = _connect_there(databases.get_pool(name), manner)
    entering = asyncio.create_task(connecting.__aenter__())
    # Not `timeout`: a driver that is cancelled may itself wait for seconds for a server that hangs.
    done, _ = await asyncio.wait({entering}, timeout=_OPEN_LIMIT_S)
    if not done:
        entering.cancel()
        _leaving.add(entering)
        entering.add_done_callback(_let_go)
        _miss(name, shards, TimeoutError())
        return None
    try:
        connection = entering.result()
    except _FAILURES as error:
        _miss(name, shards, error)
        return None
    stack.push_async_exit(connecting)
    return _Part(name, connection, shards)


def _let_go(entering: asyncio.Task[Any]) -> None:
    _leaving.discard(entering)
    if not entering.cancelled():
        entering.exception()  # looked at: the answer was made without it


@asynccontextmanager
async def _connect_there(pool: asyncpg.Pool, manner: _Manner) -> AsyncIterator[asyncpg.Connection]:
    query_type, is_staff, rights = manner
    with name_query(query_type):
        acquiring = pool.acquire(timeout=_OPEN_LIMIT_S)
    async with acquiring as connection:
        until_s = time.monotonic() + _CATCH_UP_S
        while True:
            transaction = connection.transaction(isolation="repeatable_read", readonly=True)
            await transaction.start()
            await connection.execute(introduce(is_staff=is_staff), timeout=_OPEN_LIMIT_S)
            if await _read_rights(connection) == rights:
                break
            # What the person may see has just been changed, and has not come here yet.
            await transaction.rollback()
            if time.monotonic() > until_s:
                raise TimeoutError
            await asyncio.sleep(_LOOK_S)
        try:
            yield connection
        finally:
            with suppress(*_FAILURES):  # nothing was written, and a connection that died is not given back
                await transaction.rollback()


async def _read_rights(connection: asyncpg.Connection) -> tuple[frozenset[Any], ...]:
    """What decides which rows whoever asks is shown."""
    row = await connection.fetchrow(_RIGHTS, timeout=_OPEN_LIMIT_S)
    return frozenset(row["read"]), frozenset(row["taught"]), frozenset(row["students"].split())


async def _ask(part: _Part, query: str, values: Sequence[Any]) -> list[asyncpg.Record]:
    asking = asyncio.create_task(part.connection.fetch(query, *values, part.shards))
    done, _ = await asyncio.wait({asking}, timeout=QUERY_LIMIT_S + 1)  # the server's own limit comes first
    if not done:
        part.connection.terminate()
    rows: list[asyncpg.Record] = await asking
    return rows


def _narrow(query: str, value_count: int) -> str:
    """The query of some of a course's shards, which are its last parameter."""
    shards = f"${value_count + 1}::smallint[]"
    narrowed, count = _OF_COURSE.subn(rf"\1\2shard = ANY({shards}) AND \2course_id = $1", query)
    if not count:
        raise ValueError("a question to several databases names its course first: WHERE course_id = $1")
    return narrowed


def _rank(row: asyncpg.Record, order: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in order)


def _miss(name: str, shards: list[int], failure: BaseException) -> None:
    """Go on without a database. Raises Unavailable (NB-2003) where an answer must be whole."""
    coverage = _coverage.get()
    _log.warning("history.database_away", database=name, error=type(failure).__name__)
    if coverage is None:
        raise Unavailable("NB-2003") from failure
    coverage.missing[name] = shards


def _refuse_none(parts: Sequence[_Part]) -> None:
    if not parts:
        raise Unavailable("NB-2003")
