"""How fast the API answers a course's staff over 10 M ledger rows: every route of docs/queries.md, 20 readers at once.

    python bench/api_reads.py [--rows 10000000] [--seconds 5] [--passes 2] [--only sessions ...]

nbpulse as `nbpulse up` runs it, filled by school.py. Figures per question, in ms:

- `warm`: one person's 20 readers ask the same again and again, each without a pause;
- `people`: the same by 20 people with a reader each;
- `unequal`: no two requests alike, so that no answer serves twice;
- `alone`: as unequal, by one reader: what one answer takes;
- `cold`, `cold_people`: as warm and people, but PostgreSQL, Valkey and API just started and none of the database's
  pages in the system's cache; the first answer by itself, then all from that moment on.

The client is a process of its own on the same cores. With several passes the one counts in which other programs were
least busy. The plans are those PostgreSQL really ran for the API (auto_explain). Writes bench/results/api_reads.json.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import uvloop
from documents import write_documents
from load import Connection, Post, Student
from measures import Figures, find_percentile
from report import RESULTS, ROOT, describe_machine, write_results
from school import STUDENTS, fill_school, plan_term
from systems import Nbpulse, Neighbours

from nbpulse.crypto import EncryptedField, make_key
from nbpulse.records.people import People

READERS = 20
AIM_MS = 30.0
_TABLES = re.compile(r"\b(on|using) (events|learning_sessions|learner_cells|notebooks|cell_executions|enrolments)")
_PLAN_LINE_MAX = 400
_EMPTY = re.compile(r"never executed|actual time=\S+ rows=0(?:\.00)? ")
_ASSISTANT = """
WITH made AS (INSERT INTO users (username) VALUES ($1) RETURNING id)
INSERT INTO enrolments (user_id, course_id, role) SELECT id, $2, 'assistant' FROM made RETURNING user_id
"""


class Readers:
    """Connections that each ask for the next path as soon as they have their answer."""

    def __init__(self, port: int, tokens: list[str]) -> None:
        self._port, self._tokens = port, tokens
        self._connections: list[Connection] = []
        self._posts: dict[Connection, Post] = {}
        self._paths: Iterator[str] = iter(())
        self._end = 0.0
        self._waiting = 0
        self._done = asyncio.Event()
        self.latencies_s: list[float] = []
        self.failures: list[tuple[int, bytes]] = []
        self.body_bytes = 0

    async def __aenter__(self) -> Readers:
        loop = asyncio.get_running_loop()
        for token in self._tokens:
            _, one = await loop.create_connection(lambda: Connection(self._take), "127.0.0.1", self._port)
            self._connections.append(one)
            self._posts[one] = Post(b"", Student("", token, ""))
        return self

    async def __aexit__(self, *_: object) -> None:
        for one in self._connections:
            one.close()

    async def run(self, paths: Iterator[str], seconds: float) -> Figures:
        """Ask for `seconds`. Raises RuntimeError for any answer but 200."""
        self._paths, self.latencies_s, self.failures = paths, [], []
        self._waiting = len(self._connections)
        self._done.clear()
        started = time.perf_counter()
        self._end = started + seconds
        for one in self._connections:
            self._ask(one)
        await self._done.wait()
        took_s = time.perf_counter() - started
        if self.failures:
            raise RuntimeError(f"{len(self.failures)} answers were not 200, the first: {self.failures[0]}")
        return _describe(self.latencies_s, took_s) | {"body_bytes": self.body_bytes}

    def _ask(self, one: Connection) -> None:
        head = f"GET {next(self._paths).replace('%', '%%')} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
        head += "Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n"
        one.send(self._posts[one], head.encode(), time.perf_counter())

    def _take(self, one: Connection, status: int, body: bytes) -> None:
        now = time.perf_counter()
        one.post = None
        self.latencies_s.append(now - one.due_at)
        self.body_bytes = len(body)
        if status != 200:
            self.failures.append((status, body[:300]))
        if now < self._end and status == 200:
            self._ask(one)
            return
        self._waiting -= 1
        if not self._waiting:
            self._done.set()


def _describe(latencies_s: list[float], took_s: float) -> Figures:
    shares = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99, "max_ms": 1.0}
    found: Figures = {name: round(find_percentile(latencies_s, share) * 1000, 2) for name, share in shares.items()}
    return found | {"requests": len(latencies_s), "requests_per_s": round(len(latencies_s) / took_s, 1)}


def list_questions(course_id: str, student: str, notebook: str, end: datetime) -> dict[str, str]:
    """Every route with its default window on a day of class, and with a week where it has a window."""
    root = f"/api/v1/courses/{course_id}"
    week = f"start={(end - timedelta(days=7)).strftime('%Y-%m-%dT%H:%M:%SZ')}"
    paths = {
        "sessions": "sessions?",
        "student-sessions": f"students/{student}/sessions?notebook={notebook}",
        "progress": "progress?",
        "failing-cells": "failing-cells?",
        "common-errors": "common-errors?",
        "slow-cells": "slow-cells?",
        "recovery-times": "recovery-times?",
        "activity": "activity?",
        "error-rate": "error-rate?",
        "summary": f"notebooks/{notebook}/summary?",
        "series-activity": "series?metric=activity",
        "series-error-rate": "series?metric=error_rate",
        "sessions-week": f"sessions?{week}&limit=1000",
        "common-errors-week": f"common-errors?{week}",
        "slow-cells-week": f"slow-cells?{week}",
        "recovery-times-week": f"recovery-times?{week}",
        "activity-week": f"activity?{week}&bucket=1h",
        "error-rate-week": f"error-rate?{week}",
    }
    return {name: f"{root}/{path}" for name, path in paths.items()}


def vary(path: str) -> Iterator[str]:
    """Endless questions of the same work, no two alike."""
    return (f"{path}&_={uuid4().hex}{number}" for number in itertools.count())


class Bench:
    """One filled system and the questions put to it."""

    def __init__(self, seconds: float) -> None:
        self.system = Nbpulse()
        self._seconds = seconds
        self.school: Figures = {}
        self.questions: dict[str, str] = {}
        # One of each of 20 people; the first one's is used for one person's readers too.
        self._tokens: list[str] = []

    async def fill(self, rows: int) -> None:
        """Enrol 200 students by the API, fill the school, find 20 people's tokens and what to ask for."""
        await self.system.connect()
        await self.system.pool.close()
        course_id = self.system.described["course_id"]
        self.school = await fill_school(self.system.owner_url, UUID(course_id), *plan_term(rows))
        async with asyncpg.create_pool(self.system.owner_url, min_size=1, max_size=1) as owner:
            notebook = await owner.fetchval(
                "SELECT notebook_id FROM learning_sessions WHERE course_id = $1 ORDER BY started_at DESC LIMIT 1",
                UUID(course_id),
            )
            people = People(owner, EncryptedField(make_key()))  # opens no name
            for number in range(READERS):
                user_id = await owner.fetchval(_ASSISTANT, f"assistant-{number}", UUID(course_id))
                self._tokens.append(await people.create_staff_token(user_id))
        student = self.system.students[7].user_id
        self.questions = list_questions(course_id, student, str(notebook), datetime.now(UTC))

    async def ask(self, paths: Iterator[str], tokens: list[str]) -> tuple[Figures, float]:
        """What all answers took, and the first one's ms."""
        neighbours = Neighbours([self.system])
        async with Readers(self.system.port, tokens) as asking:
            found = await asking.run(paths, self._seconds)
        found["cores_busy_elsewhere"] = neighbours.measure_cores()
        return found, round(asking.latencies_s[0] * 1000, 2)

    async def measure(self, name: str) -> Figures:
        """All figures of one question but the cold ones."""
        path, one = self.questions[name], self._tokens[:1]
        found: dict[str, Figures] = {}
        await self.ask(vary(path), one)  # pages and plans
        for kind, paths, tokens in (
            ("warm", itertools.repeat(path), one * READERS),
            ("people", itertools.repeat(path), self._tokens),
            ("unequal", vary(path), one * READERS),
            ("alone", vary(path), one),
        ):
            found[kind], _ = await self.ask(paths, tokens)
        return found

    def make_cold(self) -> None:
        """Restart everything, with no page of the database in the system's cache."""
        self.system.stop()
        for path in self.system.directory.rglob("*"):
            if path.is_file() and not path.is_symlink():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)  # what is not written yet cannot be let go
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)
        self.system.start()

    async def measure_cold(self, name: str, kind: str) -> Figures:
        """All answers from a cold start on, the first also by itself."""
        tokens = self._tokens if kind == "cold_people" else self._tokens[:1] * READERS
        found, first_ms = await self.ask(itertools.repeat(self.questions[name]), tokens)
        return {"first_ms": first_ms} | found

    async def explain(self, names: list[str]) -> dict[str, list[str]]:
        """The plans of one warm answer each as the API's own connections ran them, with what they read."""
        settings = {"log_min_duration": "0", "log_analyze": "on", "log_buffers": "on", "log_parameter_max_length": "0"}
        owner = await asyncpg.connect(self.system.owner_url)
        try:
            await owner.execute("ALTER ROLE nbpulse_api SET session_preload_libraries = 'auto_explain'")
            for setting, value in settings.items():
                await owner.execute(f"ALTER ROLE nbpulse_api SET auto_explain.{setting} = '{value}'")
        finally:
            await owner.close()
        self.system.stop()
        self.system.start()  # so that every connection is a new one
        log, plans = self.system.directory / "postgresql" / "log", {}
        async with Readers(self.system.port, self._tokens[:1]) as asking:
            for name in names:
                await asking.run(vary(self.questions[name]), 0.3)
                size = log.stat().st_size
                await asking.run(vary(self.questions[name]), 0)
                await asyncio.sleep(0.2)
                with log.open("rb") as file:
                    file.seek(size)
                    plans[name] = _read_plans(file.read().decode())
        return plans


def _read_plans(log: str) -> list[str]:
    """Plans of the questions themselves, without those of who is asking."""
    found = re.findall(r"duration: (\S+) ms  plan:\n(.*?)(?=\n\d{4}-\d\d-\d\d |\Z)", log, flags=re.DOTALL)
    # Cut: a list of 200 students' ids in a condition says nothing.
    plans = [
        (duration, "\n".join(line[:_PLAN_LINE_MAX] for line in plan.split("Query Text:", 1)[-1].rstrip().splitlines()))
        for duration, plan in found
    ]
    return [f"{duration} ms\n{plan}" for duration, plan in plans if "array_agg(" not in plan and _TABLES.search(plan)]


def find_full_scans(plans: dict[str, list[str]]) -> list[str]:
    """Sequential scans of a partition with rows in it: there should be none."""
    wrong = []
    for name, texts in plans.items():
        for line in (line for text in texts for line in text.splitlines() if "Seq Scan on" in line):
            table = line.split("Seq Scan on ", 1)[1].split(" ", 1)[0]
            if re.search(r"(events|learning_sessions|cell_executions)_\d{4}_\d\d", table) and not _EMPTY.search(line):
                wrong.append(f"{name}: {line.strip()}")
    return wrong


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def run(bench: Bench, rows: int, passes: int, only: list[str] | None) -> Figures:
    """Fill, measure warm, cold, then the plans."""
    _say(f"nbpulse ready in {bench.system.start():.1f} s; filling ...")
    uvloop.run(bench.fill(rows))
    _say(f"{bench.school}")
    names = [name for name in bench.questions if not only or name in only]
    found: dict[str, Figures] = {name: {} for name in names}
    for number in range(passes):
        for name in names:
            for kind, figures in uvloop.run(bench.measure(name)).items():
                _keep(found[name], kind, figures)
                _say(f"pass {number + 1}, {name}, {kind}: {figures}")
    for name, kind in itertools.product(names, ("cold", "cold_people")):
        bench.make_cold()
        figures = uvloop.run(bench.measure_cold(name, kind))
        _keep(found[name], kind, figures)
        _say(f"{name}, {kind}: {figures}")
    plans = uvloop.run(bench.explain(names))
    return {"aim_p95_ms": AIM_MS, "readers": READERS, "school": bench.school, "routes": found, "plans": plans}


def _keep(found: Figures, kind: str, figures: Figures) -> None:
    """The pass in which others were least busy; the p95 of all of them beside it."""
    before = found.get(kind)
    all_p95_ms = [*(before["all_p95_ms"] if before else ()), figures["p95_ms"]]
    best = min((one for one in (before, figures) if one), key=lambda one: float(one["cores_busy_elsewhere"]))
    found[kind] = best | {"all_p95_ms": all_p95_ms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="ledger rows at least (default 10,000,000)")
    parser.add_argument("--seconds", type=float, default=5, help="of each figure (default 5)")
    parser.add_argument("--passes", type=int, default=2, help="how often all but cold is measured (default 2)")
    parser.add_argument("--only", nargs="+", help="these questions alone")
    arguments = parser.parse_args()
    bench = Bench(arguments.seconds)
    try:
        found = run(bench, arguments.rows, arguments.passes, arguments.only)
    finally:
        bench.system.stop()
        bench.system.remove()
    directory = RESULTS if arguments.rows >= 10_000_000 and not arguments.only else ROOT / ".cache" / "bench"
    command = " ".join(["bench/api_reads.py", *sys.argv[1:]])
    found |= {"load_average": os.getloadavg(), "students": STUDENTS}
    write_results({"api_reads": found}, describe_machine(), directory, command)
    if directory == RESULTS:
        write_documents()
    for name, kinds in found["routes"].items():
        print(name, {kind: figures["p95_ms"] for kind, figures in kinds.items()}, "first", kinds["cold"]["first_ms"])
    if wrong := find_full_scans(found["plans"]):
        raise SystemExit("full scans of partitions with rows:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
