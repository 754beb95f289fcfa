"""How a course's history is read: by an index that answers who may see it too, whatever else is in the tables."""

import asyncio
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from nbpulse.identity import asking_as
from nbpulse.migrations.runner import with_login
from nbpulse.records import analysis
from nbpulse.records.people import introduce
from nbpulse.timeseries import ClassScope, Window, postgres, statements
from stores import WORKER_PASSWORD, connect, create_database, make_class

# Twenty courses' work of a day, 100 students with 40 runs each: enough for the planner to prefer an index.
FILL = """
INSERT INTO events (user_id, shard, event_id, occurred_at, received_at, ordinal, course_id, event_type, notebook_id,
    cell_id, cell_index, sequence, error_fingerprint, data)
SELECT u, (('x' || substr(md5(u::text), 1, 8))::bit(32)::bigint % 64)::smallint, gen_random_uuid(), at, at, n, c,
    'cell_execution', b, 'cell-' || n % 10, n % 10, n, CASE WHEN n % 5 = 0 THEN 'f' || n % 3 END,
    jsonb_build_object('status', CASE WHEN n % 5 = 0 THEN 'error' ELSE 'ok' END, 'execution_duration_ms', n)
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS k(u, c, b), generate_series(1, 40) n,
    LATERAL (SELECT now() - n * interval '20 minutes' AS at) t
"""
SESSIONS = """
INSERT INTO learning_sessions (user_id, shard, course_id, notebook_id, started_at)
SELECT user_id, shard, course_id, notebook_id, occurred_at FROM events
"""
CELLS = """
INSERT INTO learner_cells (user_id, shard, course_id, notebook_id, cell_id, cell_index, revision, attempt_count,
    error_count, last_status, last_at, last_sequence)
SELECT user_id, shard, course_id, notebook_id, cell_id, min(cell_index), 1, count(*), 1, 'ok', max(occurred_at), 1
FROM events GROUP BY user_id, shard, course_id, notebook_id, cell_id
"""
QUERIES = {
    "sessions": analysis._SESSIONS,
    "progress": analysis._PROGRESS,
    "failing_cells": analysis._FAILING_CELLS,
    "common_errors": analysis._COMMON_ERRORS,
    "slow_cells": analysis._SLOW_CELLS,
    "recovery_times": analysis._RECOVERY_TIMES,
}
POINTS = """
INSERT INTO timeseries.cell_executions (user_id, time_ns, notebook_path, event_type, has_error, execution_duration_ms,
    course_id)
SELECT user_id, (extract(epoch FROM occurred_at)::bigint - abs(hashtext(event_id::text)) % 1200) * 1000000000 + ordinal,
    'week1.ipynb', event_type, false, 1, course_id FROM events
"""
# As every write of points does, for the course that is asked about.
MARKS = """
INSERT INTO timeseries.stale_minutes (minute_ns, user_id, course_id)
SELECT DISTINCT time_ns / 60000000000 * 60000000000, user_id, course_id FROM timeseries.cell_executions
WHERE course_id = $1
"""
RAW = re.compile(r"cell_executions_(default|\d{4}_\d{2})")
LARGE = ("events", "learning_sessions", "learner_cells")


async def fill(url: str, courses: int) -> list[UUID]:
    """That many courses with their day; the first one's id and its teacher's."""
    users, course_ids, notebooks = [], [], []
    for _ in range(courses):
        course_id, user_ids = await make_class(url, 100)
        users += user_ids
        course_ids += [course_id] * len(user_ids)
        notebooks += [uuid4()] * len(user_ids)
    teacher = uuid4()
    async with connect(url) as owner:
        for course_id, notebook in dict(zip(course_ids, notebooks, strict=True)).items():
            await owner.execute(
                "INSERT INTO notebooks (id, course_id, path) VALUES ($1, $2, 'week1.ipynb')", notebook, course_id
            )
            await owner.execute(
                "INSERT INTO notebook_cells (notebook_id, cell_id, student_count)"
                " SELECT $1, 'cell-' || n, 100 FROM generate_series(0, 9) n",
                notebook,
            )
        await owner.execute("INSERT INTO users (id, username) VALUES ($1, 'teacher')", teacher)
        await owner.execute(
            "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, 'instructor')", teacher, course_ids[0]
        )
        await owner.execute(FILL, users, course_ids, notebooks)
        await owner.execute(SESSIONS)
        await owner.execute(CELLS)
        await owner.execute(POINTS)
        await owner.execute(MARKS, course_ids[0])
        async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
            while await postgres.PostgresTimeSeries(pool).refresh_rollups(settle_s=-60):
                pass
        await owner.execute("VACUUM ANALYZE")
    return [course_ids[0], teacher]


def walk(plan: Any) -> Iterator[dict[str, Any]]:
    """Every node, also those of the parts that Citus has its own nodes do."""
    if isinstance(plan, dict):
        if "Node Type" in plan:
            yield plan
        plan = list(plan.values())
    if isinstance(plan, list):
        for below in plan:
            yield from walk(below)


async def explain(api: asyncpg.Connection, query: str, *values: object) -> list[dict[str, Any]]:
    # Of a Citus cluster the plans of all shards: by default the slowest's alone is shown, with a few of the students.
    await api.execute("SET LOCAL citus.explain_all_tasks = on")
    plan = json.loads(await api.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", *values))
    return list(walk(plan))


@pytest.fixture(scope="module")
def school(embedded_postgres: str) -> tuple[str, UUID, UUID]:
    """A database, a course in it, and its teacher."""
    url = asyncio.run(create_database(embedded_postgres))
    course_id, teacher = asyncio.run(fill(url, 20))
    return url, course_id, teacher


@pytest.mark.parametrize("name", QUERIES)
async def test_history_is_read_by_index_and_its_policy_checked_no_row_by_row(
    school: tuple[str, UUID, UUID], name: str
) -> None:
    url, course_id, teacher = school
    now = datetime.now(UTC)
    values: dict[str, tuple[object, ...]] = {
        "sessions": (course_id, now - timedelta(days=1), now, None, None, None, None, 501),
        "progress": (course_id, None, 5_000, 0),
        "failing_cells": (course_id, None, 100, 0),
    }
    window = (course_id, now - timedelta(days=1), now, None, 100, 0)
    async with connect(with_login(url, "nbpulse_api", WORKER_PASSWORD)) as api, api.transaction():
        with asking_as(teacher):
            await api.execute(introduce(is_staff=True))
        nodes = await explain(api, QUERIES[name], *values.get(name, window))
    large = [node for node in nodes if node.get("Relation Name", "").startswith(LARGE)]
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in large) >= 100, "it reads something"
    for node in large:
        assert node["Actual Rows"] == 0 or node["Node Type"] != "Seq Scan", node
        assert "my_taught_courses" not in node.get("Filter", ""), node


@pytest.mark.parametrize("name", ["SLOT_ACTIVITY", "SLOT_ERROR_RATE", "SLOT_PERCENTILES", "MINUTE_ACTIVITY"])
async def test_of_raw_points_a_long_window_reads_the_minutes_it_cuts_alone(
    school: tuple[str, UUID, UUID], name: str
) -> None:
    """Joined to a table of ranges, or as one condition with OR, all that the class ever ran was read."""
    minute_s = int(datetime.now(UTC).timestamp()) // 600 * 600 - 300
    end = datetime.fromtimestamp(minute_s + 59, UTC)
    raw = await read_raw(school, name, end - timedelta(hours=12, seconds=58), end)
    assert 0 < count_read(raw) <= 50, "about ten runs of two minutes, of 3,600 in the window"


@pytest.mark.parametrize("name", ["SLOT_ACTIVITY", "SLOT_ERROR_RATE", "SLOT_PERCENTILES", "MINUTE_ACTIVITY"])
async def test_where_nobody_worked_no_person_is_looked_for(school: tuple[str, UUID, UUID], name: str) -> None:
    end = datetime.now(UTC) - timedelta(days=2, seconds=7)
    raw = await read_raw(school, name, end - timedelta(hours=12), end)
    assert raw
    assert sum(node["Actual Loops"] for node in raw) == 0


@pytest.mark.parametrize("name", ["SLOT_ACTIVITY", "SLOT_ERROR_RATE", "SLOT_PERCENTILES", "MINUTE_ACTIVITY"])
async def test_of_a_slot_that_is_not_rolled_up_the_stale_minutes_alone_are_read_raw(
    school: tuple[str, UUID, UUID], name: str
) -> None:
    """Read raw as a whole, by course, no index served it: slower the more others there were."""
    url, course_id, _ = school
    end = datetime.fromtimestamp(int(datetime.now(UTC).timestamp()) // 600 * 600, UTC)
    async with connect(url) as owner:
        marks = f"{MARKS} AND time_ns BETWEEN $2 AND $2 + 119999999999"
        await owner.execute(marks, course_id, int((end - timedelta(hours=1)).timestamp()) * 10**9)
        try:
            raw = await read_raw(school, name, end - timedelta(hours=12), end)
        finally:
            await owner.execute("DELETE FROM timeseries.stale_minutes")
    assert 0 < count_read(raw) <= 50, "about ten runs of two minutes, of 3,600 in the window"


def count_read(nodes: list[dict[str, Any]]) -> float:
    """Rows, also those that were read and left out."""
    removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    rows = [(node["Actual Rows"] + sum(node.get(one, 0) for one in removed)) * node["Actual Loops"] for node in nodes]
    return sum(rows)


async def read_raw(school: tuple[str, UUID, UUID], name: str, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """The nodes that read raw points when a teacher asks for that window of a class of 100."""
    url, course_id, teacher = school
    window = Window(start, end, timedelta(minutes=10))
    whole = postgres._find_whole(window, statements.SLOT_NS if name.startswith("SLOT") else statements.MINUTE_NS)
    async with connect(with_login(url, "nbpulse_api", WORKER_PASSWORD)) as api, api.transaction():
        with asking_as(teacher):
            await api.execute(introduce(is_staff=False))
        roster = "SELECT user_id FROM enrolments WHERE course_id = $1 AND role = 'student'"
        students = await api.fetch(roster, course_id)
        scope = ClassScope(course_id, [row["user_id"] for row in students], ())
        nodes = await explain(api, getattr(statements, name), *postgres._bind(window, scope), *whole)
    return [node for node in nodes if RAW.fullmatch(node.get("Relation Name", ""))]
