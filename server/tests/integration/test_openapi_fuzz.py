"""
Schemathesis over the API's own description, as each caller: no answer is a server's error, none tells what is others'.

`make prove` does 20,000 cases for each caller.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import pytest

from callers import Callers, open_callers
from fuzzing import Asker, Canaries, Fuzzer, Tally, describe
from nbpulse.allowances import Limits
from nbpulse.errors import Unavailable
from stage import make_run
from stores import connect

CASES = 20_000 if os.environ.get("NBPULSE_TEST_SCALE") == "full" else 150
ASKERS = ("nobody", "student", "assistant", "instructor", "staff-elsewhere", "operator", "analyst", "hub-student")
OPEN_TO = dict.fromkeys(ASKERS, ("GET /api/v1/errors",)) | {
    "student": ("POST /api/v1/events", "GET /api/v1/me/session"),
    "hub-student": ("POST /api/v1/events", "GET /api/v1/me/session"),
    "analyst": ("GET /api/v1/courses/{course_id}/sessions",),
    "instructor": ("GET /api/v1/courses/{course_id}/live", "GET /api/v1/courses/{course_id}/interventions"),
}
"""What callers must have come to see."""
_ALL = 10**9
NO_LIMITS = Limits(
    student_events=_ALL, course_events=_ALL, token_requests=_ALL, address_requests=_ALL, address_refusals=_ALL
)


class World:
    """The two courses in a thread of its own, with work, words and ids of everybody's in them."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self._urls = database_url, redis_url
        self._ready, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.callers: Callers
        self.words: dict[str, str] = {}
        """Canary -> whose it is."""
        self.ids: dict[str, set[UUID]] = {}
        """Whose -> ids in their rows."""
        self.is_open = False

    def __enter__(self) -> World:
        self._thread.start()
        assert self._ready.wait(60)
        assert self.is_open, "the stage did not open"
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(20)

    async def _run(self) -> None:
        try:
            async with open_callers(*self._urls, limits=NO_LIMITS) as self.callers:
                await self._furnish()
                self.is_open = True
                self._ready.set()
                while not self._done.is_set():
                    with suppress(Unavailable):  # a busy machine: done again, as a worker does
                        await self.callers.stage.work()
                    await asyncio.sleep(0.5)
        finally:
            self._ready.set()

    def name(self, whose: str) -> str:
        """A word that nobody says by chance."""
        word = f"zq{uuid4().hex[:16]}"
        self.words[word] = whose
        return word

    async def _furnish(self) -> None:
        callers, stage = self.callers, self.callers.stage
        for whose, course in (
            ("student", stage.course),
            ("classmate", stage.course),
            ("student-elsewhere", callers.other),
        ):
            body = {"join_code": course.join_code, "display_name": self.name(whose), "student_number": self.name(whose)}
            joined = (await stage.http.post("/api/v1/join", json=body)).json()
            callers.headers[whose] = {"Authorization": f"Bearer {joined['token']}"}
            callers.ids[whose] = UUID(joined["user_id"])
            staff = "staff-elsewhere" if course is callers.other else "instructor"
            await self._work_as(whose, staff, f"/api/v1/courses/{course.id}")
        await stage.work()
        async with connect(stage.database_url) as owner:
            for whose, course in (("staff-elsewhere", callers.other), ("instructor", stage.course)):
                title = self.name(f"course of {whose}")
                await owner.execute("UPDATE courses SET title = $2 WHERE id = $1", course.id, title)
                self.words[course.join_code] = f"course of {whose}"
                self.words[course.short_name] = f"course of {whose}"
            for whose in ("student", "classmate", "student-elsewhere"):
                self.ids[whose] = await _collect(owner, "user_id", callers.ids[whose])
            self.ids["elsewhere"] = await _collect(owner, "course_id", callers.other.id)
            self.ids["course"] = await _collect(owner, "course_id", stage.course.id)
            notebooks = await owner.fetch("SELECT id FROM notebooks WHERE course_id = $1", stage.course.id)
            self.ids["notebooks"] = {row["id"] for row in notebooks}

    async def _work_as(self, whose: str, staff: str, course: str) -> None:
        """Runs, errors, a raised hand with its line, and a talk with staff."""
        run = make_run(0, "error", notebook_path=f"{self.name(whose)}.ipynb", cell_id=self.name(whose))
        run["data"] |= {"error_name": "NameError", "error_message": self.name(whose), "traceback": self.name(whose)}
        hand = make_run(1, event_type="help_request", data={"message": self.name(whose)})
        for caller, method, path, body in (
            (whose, "POST", "/api/v1/events", [run, hand, make_run(2)]),
            (whose, "POST", "/api/v1/me/messages", {"id": str(uuid4()), "text": self.name(whose)}),
            (
                *(staff, "POST", f"{course}/messages"),
                {"id": str(uuid4()), "text": self.name(whose), "to": {"user_ids": [str(self.callers.ids[whose])]}},
            ),
        ):
            answer = await self.callers.ask(caller, method, path, content=json.dumps(body).encode())
            assert answer.status_code in (201, 202), answer.text

    async def _bring_back(self) -> None:
        """An instructor who was tried earlier may have archived the course: nothing would be taken in it."""
        async with connect(self.callers.stage.database_url) as owner:
            await owner.execute("UPDATE courses SET archived_at = NULL WHERE id = $1", self.callers.stage.course.id)

    def make_asker(self, name: str) -> Asker:
        """The caller, and all that they may not be told."""
        callers = self.callers
        teaches_here, teaches_there = name in ("assistant", "instructor"), name == "staff-elsewhere"
        may_see = {name}
        if teaches_here:
            may_see |= {"student", "classmate", "course of instructor"}
        elif teaches_there:
            may_see |= {"student-elsewhere", "course of staff-elsewhere"}
        words = {word: whose for word, whose in self.words.items() if whose not in may_see}
        if name in ("student", "hub-student", "analyst"):  # the course is theirs, its join code not
            public = {whose for whose in self.words.values() if whose == "course of instructor"}
            words = {
                word: whose
                for word, whose in words.items()
                if whose not in public or word == callers.stage.course.join_code
            }
        ids: dict[UUID, str] = {}
        if not teaches_there:
            ids |= dict.fromkeys(self.ids["elsewhere"] | self.ids["student-elsewhere"], "elsewhere")
        if not teaches_here:
            # What both students' rows bear is the course's: itself, its notebook.
            shared = self.ids["student"] & self.ids["classmate"]
            hidden = self.ids["classmate"] if name == "student" else self.ids["student"] | self.ids["classmate"]
            ids |= dict.fromkeys(hidden - shared - {callers.stage.course.id}, "here")
            ids |= {callers.ids[one]: one for one in ("instructor", "assistant")}
            if name not in ("student", "hub-student"):
                ids |= dict.fromkeys(self.ids["course"] - {callers.stage.course.id}, "course")
            if name == "analyst":
                ids = {one: whose for one, whose in ids.items() if one not in self.ids["notebooks"]}
        if teaches_here or teaches_there:
            ids.pop(callers.ids["token-elsewhere"], None)  # of both courses' staff
        ids.pop(callers.ids.get(name, UUID(int=0)), None)  # their own
        course = callers.other if teaches_there else callers.stage.course
        # Who is told a class's code may join it; the others must not learn one.
        code = "XXXXXX" if course.join_code in words and "student" not in name else course.join_code
        return Asker(name, callers.headers[name], str(course.id), code, Canaries(words, ids))

    def fuzz(self, name: str, cases: int, *labels: str) -> Tally:
        """So many cases as that caller, of these operations or of all."""
        asyncio.run(self._bring_back())
        return Fuzzer(self.callers.stage.url, self.make_asker(name), labels).run(cases)


async def _collect(owner: Any, column: str, value: UUID) -> set[UUID]:
    """Every id in the rows that bear `value` in `column`."""
    found: set[UUID] = set()
    tables = await owner.fetch(
        "SELECT format('%I.%I', table_schema, table_name) AS name, array_agg(column_name::text) AS columns"
        " FROM information_schema.columns WHERE table_schema IN ('public', 'timeseries') AND data_type = 'uuid'"
        " GROUP BY 1"
    )
    for name, columns in tables:
        if column in columns:
            for row in await owner.fetch(f"SELECT {', '.join(columns)} FROM {name} WHERE {column} = $1", value):
                found |= {one for one in row.values() if one is not None}
    return found


@pytest.fixture(scope="module")
def world(stage_database: str, embedded_valkey: str) -> Iterator[World]:
    with World(stage_database, embedded_valkey) as opened:
        yield opened


# First, since instructors who are tried later may change what the student is.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("where", ["body", "header", "id"])
def test_a_planted_leak_is_found(world: World, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbpulse.api import joining

    word = next(word for word, whose in world.words.items() if whose == "classmate")
    classmate = world.callers.ids["classmate"]
    honest = joining.answer

    def leak(body: Any, status: int = 200) -> Any:
        if where == "body":
            return honest(body | {"neighbour": word}, status)
        if where == "id":
            return honest(body | {"neighbour": {"id": classmate.hex}}, status)
        response = honest(body, status)
        response.headers["X-Debug"] = f"row {word}"
        return response

    monkeypatch.setattr(joining, "answer", leak)
    tally = world.fuzz("student", 5, "GET /api/v1/me")
    assert [one for one in tally.leaks if one.startswith("GET /api/v1/me 200")], tally
    assert {one.split("(")[1] for one in tally.leaks} == {"classmate)" if where != "id" else "here)"}


@pytest.mark.timeout(7_200)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ASKERS)
def test_no_answer_is_a_servers_error_or_tells_what_is_others(
    world: World, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = OPEN_TO[name]
    first = world.fuzz(name, 20 * len(theirs), *theirs)  # else, by chance, of these few cases none
    tally = world.fuzz(name, CASES)
    with capsys.disabled():
        sys.stdout.write(f"\n{describe(name, tally)}\n")
    assert first.failures + tally.failures == []
    assert first.leaks + tally.leaks == []
    assert tally.cases >= CASES
    assert tally.statuses[200] > 0
    # Else nothing would have been shown: of what is open to them, callers did come to see something.
    assert set(theirs) <= first.admitted
    if name in ("assistant", "instructor", "staff-elsewhere"):
        assert len(tally.admitted) >= 10, tally
