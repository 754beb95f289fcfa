"""InfluxDB is killed in the middle of a class: the board goes on, the debt is remembered and paid, nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.parse
import urllib.request
from pathlib import Path

from servers import InfluxServer, make_influx
from stage import make_run
from stores import connect
from torture.checker import await_debts_paid, await_drained
from torture.clients import Student, join_students
from torture.connections import Connection, get
from torture.systems import System
from working import until

IS_FULL = os.environ.get("NBPULSE_TEST_SCALE") == "full"
OUTAGE_S, STUDENT_COUNT, BATCH_EVENTS = (60.0, 30, 10) if IS_FULL else (10.0, 5, 10)
RUNS = "SELECT user_id::text, count(*) FROM events WHERE event_type = 'cell_execution' GROUP BY user_id"
POINTS = 'SELECT count("execution_duration_ms") FROM "cell_executions" GROUP BY "user_id"'


class Class:
    """Students who post a batch each a second, cells that go well and cells that fail in turn; what each has posted."""

    def __init__(self, system: System, students: list[Student]) -> None:
        self.system, self.students = system, students
        self.posted = {str(student.user_id): 0 for student in students}
        self._line = Connection(system.url)
        self._goes_well = False

    def close(self) -> None:
        self._line.close()

    async def work(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            self._goes_well = not self._goes_well
            for student in self.students:
                status = "ok" if self._goes_well else "error"
                runs = [make_run(cell=number, status=status) for number in range(BATCH_EVENTS)]
                answer = await self._line.post("/api/v1/events", runs, token=student.token)
                assert {one["status"] for one in answer.read()["results"]} == {"accepted"}
                self.posted[str(student.user_id)] += BATCH_EVENTS
            await asyncio.sleep(max(0.0, began + 1 - time.monotonic()))

    async def is_on_the_board(self) -> bool:
        """Whether every square of the board shows the last run."""
        facts = self.system.facts
        path = f"/api/v1/courses/{facts['course_id']}/live"
        board = (await get(f"{self.system.url}{path}", token=facts["teacher_token"])).read()
        squares = "".join(student["s"] for student in board["students"])
        assert len(squares) == len(self.students) * BATCH_EVENTS
        return squares.count("1") == (len(squares) if self._goes_well else 0)

    async def count_debt(self) -> int:
        async with connect(self.system.facts["database_url"]) as operator:
            found: int = await operator.fetchval("SELECT count(*) FROM series_debt")
        return found


def count_points(influx: InfluxServer) -> dict[str, int]:
    body = urllib.parse.urlencode({"db": "outage", "q": POINTS}).encode()
    with urllib.request.urlopen(f"{influx.url}/query", body, timeout=30) as answer:
        series = json.load(answer)["results"][0]["series"]
    return {one["tags"]["user_id"]: int(one["values"][0][1]) for one in series}


async def test_a_class_goes_on_without_influxdb_and_pays_what_it_owes(data_dir: Path) -> None:
    with make_influx() as influx:
        influx.start()
        settings = {"NBPULSE_INFLUX_URL": f"{influx.url}/outage"}
        async with System(data_dir, worker_count=1, settings=settings) as system:
            lesson = Class(system, await join_students(system.url, system.facts["join_code"], STUDENT_COUNT))
            await lesson.work(3)
            await until(lesson.is_on_the_board)
            assert influx.process is not None
            influx.process.kill()
            influx.process.wait(10)
            for _ in range(2):
                await lesson.work(OUTAGE_S / 2)
                await until(lesson.is_on_the_board)
            assert await lesson.count_debt() > 0
            influx.start()
            await lesson.work(3)
            await await_drained(system.facts["redis_url"], 30)
            await await_debts_paid(system.facts["database_url"])
            async with connect(system.facts["database_url"]) as operator:
                assert dict(await operator.fetch(RUNS)) == lesson.posted
            assert count_points(influx) == lesson.posted
            lesson.close()
