"""Whether a class notices the school around it: 200 students alone, and the same class beside 99,800 other students.

    python bench/known_students.py [--courses 500] [--passes 5] [--seconds 2] [--first]

Two systems as `nbpulse up` runs them, side by side; in the one there is the class and nothing else, in the other also
the data of `courses` - 1 others like it: people, enrolments, notebooks, ledger, sessions, cells, points, learners'
states (school.py). Asked in turn, so that other work on the machine meets both alike: each two seconds events posted
and the board's snapshot while they come, and each quarter of a second the questions of docs/queries.md, by one reader,
no two alike. A figure is the median of the passes' p95; there is also the processor time of an answer, which waiting
for a processor does not change (of an event: with its way into the database). The ratio is with the others : alone.
Writes bench/results/known_students.json.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import uvloop
from api_reads import Readers, list_questions, vary
from documents import write_documents
from load import Load, make_visible_posts
from measures import Figures, find_percentile
from report import RESULTS, ROOT, describe_machine, write_results
from school import BYTES_BY_PART, STUDENTS, fill_school
from systems import Nbpulse, ask, go_first, measure_cpu_s, measure_pss

RATE_PER_S = 100
RATIO_MAX = 1.2
# A class day of the term so far: enough to ask for, small enough that 500 courses are filled in minutes.
SITTINGS = {"class": 10}
# Some hundred and fifty snapshots: of sixty the third slowest was compared, and the ratio went from 0.9 to 1.25.
_LIVE_S = 50
# Twenty seconds of one and then of the other met different hours: the p95 of events went from 8 to 20 ms in either.
_LIVE_TURN_S = 2.0
_TURN_S = 0.25
# The others have worked too: each is given a learner's state as the class has them.
_STATES = """
INSERT INTO learner_states (user_id, shard, course_id, revision, last_ordinal, last_activity_at, notebook_id, state)
SELECT e.user_id, (('x' || substr(md5(e.user_id::text), 1, 8))::bit(32)::bigint % 64)::smallint, e.course_id,
    one.revision, one.last_ordinal, one.last_activity_at, n.id, one.state
FROM (SELECT * FROM learner_states WHERE course_id = $1 AND state IS NOT NULL LIMIT 1) one,
    enrolments e JOIN notebooks n ON n.course_id = e.course_id
WHERE e.course_id <> $1 AND e.role = 'student' ON CONFLICT DO NOTHING
"""


class School:
    """One of the two systems: the class, and `courses` - 1 others."""

    def __init__(self, name: str, courses: int) -> None:
        self.name, self.courses = name, courses
        self.system = Nbpulse()
        self.filled: Figures = {}
        self.p95_ms: dict[str, list[float]] = {}
        self.cpu_ms: dict[str, list[float]] = {}
        self.questions: dict[str, str] = {}

    async def fill(self) -> None:
        """Let the class join and work by the API, the others by SQL."""
        await self.system.connect()
        course_id = UUID(self.system.described["course_id"])
        started = time.perf_counter()
        self.filled = await fill_school(self.system.owner_url, course_id, 1, self.courses, SITTINGS)
        async with Load(self.system.port, 50, make_visible_posts(self.system.students)) as posts:
            await posts.run_open(200, 10)
            await posts.settle()
        owner = await asyncpg.connect(self.system.owner_url)
        try:
            await owner.execute(_STATES, course_id, timeout=600)
            # As after a night: what autovacuum and the checkpointer do of so many new rows is no answer's price.
            await owner.execute("VACUUM ANALYZE", timeout=600)
            await owner.execute("CHECKPOINT", timeout=600)
            self.filled["known_students"] = await owner.fetchval(
                "SELECT count(DISTINCT user_id) FROM enrolments WHERE role = 'student'"
            )
            self.filled |= {f"{row['part']}_bytes": int(row["bytes"]) for row in await owner.fetch(BYTES_BY_PART)}
            notebook = await owner.fetchval(
                "SELECT notebook_id FROM learning_sessions WHERE course_id = $1 ORDER BY started_at DESC LIMIT 1",
                course_id,
            )
        finally:
            await owner.close()
        self.filled["filled_s"] = round(time.perf_counter() - started, 1)
        student = self.system.students[7].user_id
        self.questions = list_questions(str(course_id), student, str(notebook), datetime.now(UTC))

    def measure_cpu_s(self) -> float:
        """Processor time of what answers."""
        found = measure_cpu_s(self.system.list_pids())
        return found["api"] + found["postgresql"]

    def note(self, name: str, latencies_s: list[float]) -> None:
        """How long one pass's answers took."""
        self.p95_ms.setdefault(name, []).append(round(1000 * find_percentile(latencies_s, 0.95), 2))

    def note_answers(self, name: str, latencies_s: list[float], cpu_s: float) -> None:
        """And what they cost."""
        self.note(name, latencies_s)
        self.cpu_ms.setdefault(name, []).append(round(1000 * cpu_s / len(latencies_s), 3))


class Live:
    """One school's class at work in its turns, and the time the board took meanwhile."""

    def __init__(self, school: School, posts: Load) -> None:
        self._school, self._posts = school, posts
        self._board_s: list[float] = []
        self._cpu_s = 0.0

    async def take_turn(self) -> None:
        """Events acknowledged, and the board's snapshot meanwhile; so far apart that each is made anew."""
        system = self._school.system
        path = f"/api/v1/courses/{system.described['course_id']}/live"
        before_s = self._school.measure_cpu_s()
        working = asyncio.create_task(self._posts.run_open(RATE_PER_S, _LIVE_TURN_S))
        while not working.done():
            await asyncio.sleep(0.3)
            started = time.perf_counter()
            await asyncio.to_thread(ask, system.port, "GET", path, token=system.described["teacher_token"])
            self._board_s.append(time.perf_counter() - started)
        await working
        self._cpu_s += self._school.measure_cpu_s() - before_s

    async def finish(self) -> None:
        """Note what the turns found. Raises RuntimeError: events were refused."""
        await self._posts.settle()
        tally = self._posts.tally
        if tally.refused:
            raise RuntimeError(f"{self._school.name}: {tally.refused} events were refused")
        self._school.note_answers("events acknowledged", tally.latencies_s, self._cpu_s)
        self._school.note("board's snapshot", self._board_s)


async def measure_live(schools: tuple[School, ...]) -> None:
    """The class at work, in each school in turn."""
    async with AsyncExitStack() as stack:
        lives = [
            Live(
                one, await stack.enter_async_context(Load(one.system.port, 50, make_visible_posts(one.system.students)))
            )
            for one in schools
        ]
        for number in range(round(_LIVE_S / _LIVE_TURN_S)):
            for live in lives[:: 1 if number % 2 else -1]:
                await live.take_turn()
        for live in lives:
            await live.finish()


async def measure_question(schools: tuple[School, ...], name: str, seconds: float) -> None:
    """One question of the history, by one reader without a pause in each school, who take turns all the time."""
    latencies_s: dict[str, list[float]] = {school.name: [] for school in schools}
    cpu_s = dict.fromkeys(latencies_s, 0.0)
    async with AsyncExitStack() as stack:
        readers = {
            school.name: await stack.enter_async_context(
                Readers(school.system.port, [school.system.described["teacher_token"]])
            )
            for school in schools
        }
        for number in range(round(seconds / _TURN_S)):
            for school in schools[:: 1 if number % 2 else -1]:
                before = school.measure_cpu_s()
                await readers[school.name].run(vary(school.questions[name]), _TURN_S)
                cpu_s[school.name] += school.measure_cpu_s() - before
                latencies_s[school.name] += readers[school.name].latencies_s
    for school in schools:
        school.note_answers(name, latencies_s[school.name], cpu_s[school.name])


def compare(alone: School, beside: School) -> dict[str, Any]:
    """Of each figure both medians and all passes, and how they compare."""
    found: dict[str, Any] = {}
    for name, passes in alone.p95_ms.items():
        medians = [statistics.median(one) for one in (passes, beside.p95_ms[name])]
        found[name] = {
            "alone_ms": medians[0],
            "beside_ms": medians[1],
            "ratio": round(medians[1] / medians[0], 3),
            "passes_alone_ms": passes,
            "passes_beside_ms": beside.p95_ms[name],
        }
        if name in alone.cpu_ms:
            cpu = [statistics.median(one.cpu_ms[name]) for one in (alone, beside)]
            found[name] |= {"alone_cpu_ms": cpu[0], "beside_cpu_ms": cpu[1], "cpu_ratio": round(cpu[1] / cpu[0], 3)}
    return found


def run(schools: tuple[School, School], passes: int, seconds: float) -> Figures:
    """Fill both, ask them in turn, weigh them."""
    for school in schools:
        _say(f"{school.name}: ready in {school.system.start():.1f} s; filling ...")
        uvloop.run(school.fill())
        _say(f"{school.name}: {school.filled}")
    for name in schools[0].questions:  # pages and plans
        uvloop.run(measure_question(schools, name, _TURN_S))
        for school in schools:
            school.p95_ms.clear()
            school.cpu_ms.clear()
    for number in range(passes):
        uvloop.run(measure_live(schools))
        for name in schools[0].questions:
            uvloop.run(measure_question(schools, name, seconds))
        _say(f"pass {number + 1} of {passes}")
    return {
        "schools": {
            school.name: {**school.filled, "pss_mb": measure_pss(school.system.list_pids())} for school in schools
        },
        "figures": compare(*schools),
        "ratio_max": RATIO_MAX,
        "rate_per_s": RATE_PER_S,
        "passes": passes,
    }


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--courses", type=int, default=500, help="courses of 200 students beside each other (500)")
    parser.add_argument("--passes", type=int, default=5, help="how often each is asked in turn (5)")
    parser.add_argument("--seconds", type=float, default=2, help="of each question (2)")
    parser.add_argument("--first", action="store_true", help="with the processor before all others (root, Linux)")
    arguments = parser.parse_args()
    if arguments.first:
        go_first()
    schools = School("alone", 1), School("beside others", arguments.courses)
    try:
        found = run(schools, arguments.passes, arguments.seconds)
    finally:
        for school in schools:
            school.system.stop()
            school.system.remove()
    is_whole = arguments.courses * STUDENTS >= 100_000
    directory = RESULTS if is_whole else ROOT / ".cache" / "bench"
    found["load_average"] = os.getloadavg()
    command = " ".join(["bench/known_students.py", *sys.argv[1:]])
    write_results({"known_students": found}, describe_machine(), directory, command)
    for name, one in found["figures"].items():
        print(f"{name:24} {one['alone_ms']:8.1f} ms {one['beside_ms']:8.1f} ms  x {one['ratio']:.2f}")
    if is_whole:
        write_documents()


if __name__ == "__main__":
    main()
