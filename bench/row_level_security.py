"""What row-level security costs: queries of staff and students over many sessions, beside the same without it.

    python bench/row_level_security.py [--rows 1000000]

One PostgreSQL of its own; both sides take turns on the same rows, and must give the same ones.
Writes bench/results/row_level_security.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from report import describe_machine

from nbpulse.embedded import EmbeddedPostgres
from nbpulse.migrations import migrate
from nbpulse.migrations.runner import with_login

RESULT = Path(__file__).parent / "results" / "row_level_security.json"
AIM_MS = 50.0
ROUNDS = 21
DAY = "started_at >= now() - interval '1 day'"
FILL = """
INSERT INTO learning_sessions (user_id, shard, course_id, started_at)
SELECT k.id, (('x' || substr(md5(k.id::text), 1, 8))::bit(32)::bigint % 64)::smallint, k.course,
    now() - (n % 150000) * interval '1 minute'
FROM generate_series(1, $1::int) n, LATERAL (SELECT
    ($2::uuid[])[1 + n % 200] AS id, CASE WHEN n % 25 = 0 THEN $3::uuid ELSE $4::uuid END AS course) k
"""


async def make_school(database_url: str, rows: int) -> tuple[UUID, UUID, UUID]:
    """200 people, two courses; the teacher of the smaller one, that course, and one student."""
    await migrate(database_url, {"nbpulse_api": "bench"})
    people, course, other, teacher = [uuid4() for _ in range(200)], uuid4(), uuid4(), uuid4()
    owner = await asyncpg.connect(database_url)
    try:
        for one in (course, other):
            await owner.execute("INSERT INTO courses (id, title, short_name) VALUES ($1, 'x', $2)", one, one.hex)
        await owner.executemany(
            "INSERT INTO users (id, username) VALUES ($1, $2)", [(one, one.hex) for one in (*people, teacher)]
        )
        await owner.execute(
            "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, 'instructor')", teacher, course
        )
        await owner.execute(FILL, rows, people, course, other, timeout=600)
        await owner.execute("ANALYZE learning_sessions")
    finally:
        await owner.close()
    return teacher, course, people[0]


async def measure(connection: asyncpg.Connection, query: str, asker: UUID | None) -> tuple[list[float], int]:
    """Times in ms, and the number of rows."""
    times_ms, count = [], 0
    for _ in range(ROUNDS):
        async with connection.transaction():
            if asker:
                await connection.execute(f"SET LOCAL app.current_user_id = '{asker}'")
            began = time.perf_counter()
            count = len(await connection.fetch(query))
            times_ms.append((time.perf_counter() - began) * 1000)
    return times_ms, count


async def compare(database_url: str, rows: int) -> dict[str, Any]:
    teacher, course, student = await make_school(database_url, rows)
    queries = (
        ("staff_day_of_course", teacher, f"WHERE course_id = '{course}' AND {DAY}", ""),
        ("staff_day", teacher, f"WHERE {DAY}", f" AND course_id = '{course}'"),
        ("student_own", student, "WHERE true", f" AND user_id = '{student}'"),
    )
    found: dict[str, Any] = {}
    owner = await asyncpg.connect(database_url)
    api = await asyncpg.connect(with_login(database_url, "nbpulse_api", "bench"))
    try:
        for name, asker, where, by_hand in queries:
            query = f"SELECT id, user_id, started_at FROM learning_sessions {where}"
            protected, count = await measure(api, query, asker)
            plain, expected = await measure(owner, query + by_hand, None)
            assert count == expected > 0, (name, count, expected)
            median_ms, plain_ms = statistics.median(protected), statistics.median(plain)
            found[name] = {
                "rows": count,
                "median_ms": round(median_ms, 2),
                "max_ms": round(max(protected), 2),
                "without_policy_median_ms": round(plain_ms, 2),
                "ratio": round(median_ms / plain_ms, 2),
                "aim_ms": AIM_MS,
            }
    finally:
        await owner.close()
        await api.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="learning sessions in all (default 1,000,000)")
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="nbpulse-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)
        server = EmbeddedPostgres(directory)
        server.start()
        try:
            found = asyncio.run(compare(server.url, rows))
        finally:
            server.stop()
    result = {"command": f"bench/row_level_security.py --rows {rows}", "machine": describe_machine(), "queries": found}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for query, one in found.items():
        print(f"{query}: {one['rows']} rows, {one['median_ms']} ms (aim {AIM_MS}), {one['ratio']} x without the policy")


if __name__ == "__main__":
    main()
