"""Row-level security under traffic: random people and queries through pgbouncer, and the plans over many rows."""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import asyncpg
import pytest

from nbpulse.migrations.runner import with_login
from servers import run_pgbouncer
from stores import WORKER_PASSWORD, connect, create_database

SEED = 20261124
CLIENTS, BACKENDS = 8, 2
IS_FULL = os.environ.get("NBPULSE_TEST_SCALE") == "full"
QUERIES = 10_000 if IS_FULL else 3_000
MANY_ROWS = 1_000_000 if IS_FULL else 100_000
STAFF = ("assistant", "instructor")


@dataclass
class Town:
    """50 people, each in some of 8 courses in some role, and rows of their work there."""

    database_url: str
    people: list[UUID] = field(default_factory=lambda: sorted(uuid4() for _ in range(50)))
    courses: list[UUID] = field(default_factory=lambda: sorted(uuid4() for _ in range(8)))
    roles: dict[tuple[UUID, UUID], str] = field(default_factory=dict)
    # Row id -> whose and of which course.
    sessions: dict[UUID, tuple[UUID, UUID]] = field(default_factory=dict)

    def teaches(self, asker: UUID | None, course: UUID) -> bool:
        return asker is not None and self.roles.get((asker, course)) in STAFF

    def may_see(self, asker: UUID | None, owner: UUID, course: UUID) -> bool:
        return asker is not None and (asker == owner or self.teaches(asker, course))

    def list_visible(self, asker: UUID | None) -> set[UUID]:
        return {one for one, (owner, course) in self.sessions.items() if self.may_see(asker, owner, course)}


async def settle_town(server_url: str) -> Town:
    town, rng = Town(await create_database(server_url)), random.Random(SEED)
    for person in town.people:
        for course in rng.sample(town.courses, rng.randint(0, 4)):
            town.roles[person, course] = rng.choice(["student"] * 4 + list(STAFF))
    for (person, course), role in town.roles.items():
        for _ in range(rng.randint(1, 6) if role == "student" else rng.randint(0, 1)):
            town.sessions[uuid4()] = (person, course)
    async with connect(town.database_url) as owner:
        await owner.executemany("INSERT INTO users (id, username) VALUES ($1, $2)", [(p, p.hex) for p in town.people])
        await owner.executemany(
            "INSERT INTO courses (id, title, short_name) VALUES ($1, 'x', $2)", [(c, c.hex) for c in town.courses]
        )
        await owner.executemany(
            "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, $3)",
            [(*key, role) for key, role in town.roles.items()],
        )
        await owner.executemany(
            "INSERT INTO learning_sessions (id, user_id, course_id, shard) VALUES ($1, $2, $3,"
            " (('x' || substr(md5($2::uuid::text), 1, 8))::bit(32)::bigint % 64)::smallint)",
            [(one, *whose) for one, whose in town.sessions.items()],
        )
    return town


@pytest.fixture(scope="module")
def town(embedded_postgres: str) -> Town:
    return asyncio.run(settle_town(embedded_postgres))


@pytest.fixture(scope="module")
def bouncer(town: Town) -> Iterator[str]:
    with run_pgbouncer(town.database_url, {"nbpulse_api": WORKER_PASSWORD}, BACKENDS) as address:
        yield f"postgresql://nbpulse_api:{WORKER_PASSWORD}@{address}"


async def ask(connection: asyncpg.Connection, town: Town, rng: random.Random) -> None:
    """One random question as a random person, and what plain Python says they may see."""
    asker = rng.choice([*town.people, None])
    visible = town.list_visible(asker)
    course, person = rng.choice(town.courses), rng.choice(town.people)
    async with connection.transaction():
        if asker:
            await connection.execute(f"SET LOCAL app.current_user_id = '{asker}'")
        match rng.randrange(5):
            case 0:
                rows = await connection.fetch("SELECT id FROM learning_sessions")
                expected = visible
            case 1:
                rows = await connection.fetch("SELECT id FROM learning_sessions WHERE course_id = $1", course)
                expected = {one for one in visible if town.sessions[one][1] == course}
            case 2:
                rows = await connection.fetch("SELECT id FROM learning_sessions WHERE user_id = $1", person)
                expected = {one for one in visible if town.sessions[one][0] == person}
            case 3:
                rows = await connection.fetch(
                    "SELECT s.id FROM learning_sessions s JOIN enrolments e USING (user_id, course_id)"
                    " WHERE e.role = 'student'"
                )
                expected = {one for one in visible if town.roles[town.sessions[one]] == "student"}
            case _:
                rows = await connection.fetch("SELECT user_id AS id FROM enrolments WHERE course_id = $1", course)
                expected = {p for p, c in town.roles if c == course and town.may_see(asker, p, course)}
    assert {row["id"] for row in rows} == expected


async def cancel_one(connection: asyncpg.Connection, town: Town, rng: random.Random) -> None:
    """A teacher's request that is cut off in the middle of its transaction."""
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(f"SET LOCAL app.current_user_id = '{rng.choice(town.people)}'")
    with pytest.raises(TimeoutError):
        await connection.execute("SELECT pg_sleep(5)", timeout=0.01)
    await transaction.rollback()


async def test_random_queries_through_pgbouncer_show_no_foreign_and_miss_no_own_row(town: Town, bouncer: str) -> None:
    done: dict[str, int] = defaultdict(int)

    async def work(number: int) -> None:
        rng = random.Random(SEED + number)
        connection = await asyncpg.connect(bouncer, statement_cache_size=0)
        try:
            for _ in range(QUERIES // CLIENTS):
                if rng.random() < 0.005:
                    await cancel_one(connection, town, rng)
                    done["cancelled"] += 1
                await ask(connection, town, rng)
                done["asked"] += 1
        finally:
            await connection.close()

    await asyncio.gather(*(work(number) for number in range(CLIENTS)))
    assert done["asked"] == QUERIES
    assert done["cancelled"] > QUERIES // 1_000


async def fill(owner: asyncpg.Connection, town: Town, course: UUID, student: UUID) -> None:
    """Many sessions over months: one in 25 of the course, the rest of others."""
    await owner.execute(
        f"""
        INSERT INTO learning_sessions (user_id, shard, course_id, started_at)
        SELECT k.id, (('x' || substr(md5(k.id::text), 1, 8))::bit(32)::bigint % 64)::smallint, k.course,
            now() - (n % 150000) * interval '1 minute'
        FROM generate_series(1, {MANY_ROWS}) n, LATERAL (SELECT
            CASE WHEN n % 25 = 0 THEN $1::uuid ELSE ($2::uuid[])[1 + n % 49] END AS id,
            CASE WHEN n % 25 = 0 THEN $3::uuid ELSE $4::uuid END AS course) k
        """,
        *(student, [one for one in town.people if one != student], course, uuid4()),
    )
    await owner.execute("ANALYZE learning_sessions")


async def list_empty_partitions(owner: asyncpg.Connection) -> set[str]:
    """Those of learning_sessions that may be read whole: months ahead."""
    rows = await owner.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'learning_sessions'::regclass"
    )
    names = [row["name"] for row in rows]
    return {name for name in names if not await owner.fetchval(f"SELECT EXISTS (SELECT FROM {name})")}


async def test_staff_and_students_read_by_index_however_many_rows_there_are(town: Town) -> None:
    (teacher, course) = next(key for key, role in town.roles.items() if role == "instructor")
    student = next(p for (p, c), role in town.roles.items() if c == course and role == "student")
    async with connect(town.database_url) as owner:
        await fill(owner, town, course, student)
        empty = await list_empty_partitions(owner)
        expected = await owner.fetchval(
            "SELECT count(*) FROM learning_sessions WHERE course_id = $1 AND started_at >= now() - interval '1 day'",
            course,
        )
    query_1 = "FROM learning_sessions WHERE course_id = $1 AND started_at >= now() - interval '1 day'"
    api_url = with_login(town.database_url, "nbpulse_api", WORKER_PASSWORD)
    async with connect(api_url) as api:
        for asker, query, values in (
            (teacher, query_1, (course,)),
            (teacher, "FROM learning_sessions WHERE started_at >= now() - interval '1 day'", ()),
            (student, "FROM learning_sessions ORDER BY started_at DESC LIMIT 10", ()),
        ):
            async with api.transaction():
                await api.execute(f"SET LOCAL app.current_user_id = '{asker}'")
                plan = await api.fetch(f"EXPLAIN (COSTS OFF) SELECT * {query}", *values)
                text = "\n".join(row[0] for row in plan)
                assert "Index" in text, text
                scanned = set(re.findall(r"Seq Scan on (\S+)", text))
                assert scanned <= empty, text
                if query is query_1:
                    assert await api.fetchval(f"SELECT count(*) {query}", *values) == expected > 0
