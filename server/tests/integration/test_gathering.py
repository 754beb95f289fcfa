"""A course's history over several real databases: the same answers as of one, and never silently a part."""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import random
import signal
import zipfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx2
import msgspec
import pytest
from playwright.async_api import Browser, expect
from redis.asyncio import Redis

from browsing import LOOKS, find_barriers, open_page, photograph
from nbpulse.crypto import EncryptedField
from nbpulse.errors import NbpulseError, Unavailable
from nbpulse.events import ReceivedEvent
from nbpulse.identity import asking_as
from nbpulse.records.analysis import CourseHistory, Span
from nbpulse.records.gathering import connect_parts, covering
from nbpulse.records.integrity import list_signs
from nbpulse.records.interventions import Interventions
from nbpulse.records.messages import Messages
from nbpulse.records.owner import open_owner
from nbpulse.records.people import People
from nbpulse.records.replays import Replays, Wanted
from nbpulse.records.reports import Reports
from nbpulse.records.rules import CourseRules
from nbpulse.records.views import ClassReader
from nbpulse.records.work import WorkReader
from nbpulse.resources import Resources
from nbpulse.shards import SHARD_COUNT, get_shard_number
from primaries import Primaries, run_site
from stores import KEY, connect, make_event
from working import is_drained, until, work

IS_FULL = os.environ.get("NBPULSE_TEST_SCALE") == "full"
STUDENTS, EVENTS, SEEDS = (200, 20_000, range(8)) if IS_FULL else (25, 700, range(2))
NAMES = ("main", "a", "b")
pytestmark = pytest.mark.timeout(900 if IS_FULL else 180)


@pytest.fixture(scope="module")
def primaries() -> Iterator[Primaries]:
    with run_site(NAMES[1:]) as started:
        yield started


@pytest.fixture(scope="module")
def alone(primaries: Primaries) -> Primaries:
    return asyncio.run(primaries.add_alone())


def choose(number: int) -> str:
    return NAMES[number % len(NAMES)]


class Class(NamedTuple):
    """One course, its people and a meeting of it."""

    course_id: UUID
    students: list[UUID]
    instructor: UUID
    assistant: UUID
    """Of team A."""
    analyst: UUID
    notebooks: list[UUID]
    meeting_id: UUID
    start: datetime

    @property
    def span(self) -> Span:
        return Span(self.start - timedelta(minutes=5), self.start + timedelta(hours=1))

    @property
    def whole(self) -> Span:
        """All that was ever done in it."""
        return Span(self.start - timedelta(hours=2), self.start + timedelta(hours=1))


def make_plan(seed: int) -> Class:
    ids = [UUID(int=random.Random(f"{seed} {uuid4()}").getrandbits(128), version=4) for _ in range(STUDENTS + 7)]
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=50)
    return Class(ids[0], sorted(ids[7:]), ids[1], ids[2], ids[3], ids[4:6], ids[6], start)


async def found_class(url: str, plan: Class) -> None:
    """The same people, notebooks and meeting, whatever site it is."""
    async with connect(url) as owner, owner.transaction():
        await owner.execute(
            "INSERT INTO courses (id, title, short_name) VALUES ($1, 'Test', $2)", plan.course_id, plan.course_id.hex
        )
        staff = [
            (plan.instructor, "instructor", None),
            (plan.assistant, "assistant", None),
            (plan.analyst, "analyst", None),
        ]
        students = [(one, "student", "AB"[place % 2]) for place, one in enumerate(plan.students)]
        for user_id, role, team in (*staff, *students):
            await owner.execute("INSERT INTO users (id, username) VALUES ($1, $2)", user_id, user_id.hex)
            await owner.execute(
                "INSERT INTO enrolments (user_id, course_id, role, team, teams) VALUES ($1, $2, $3, $4, $5)",
                *(user_id, plan.course_id, role, team, ["A"] if role == "assistant" else []),
            )
        for number, notebook_id in enumerate(plan.notebooks):
            await owner.execute(
                "INSERT INTO notebooks (id, course_id, path, title) VALUES ($1, $2, $3, $3)",
                *(notebook_id, plan.course_id, f"week{number}.ipynb"),
            )
        await owner.execute(
            "INSERT INTO class_meetings (id, course_id, title, notebook_ids, started_at, ended_at)"
            " VALUES ($1, $2, 'M', $3, $4, $5)",
            *(plan.meeting_id, plan.course_id, plan.notebooks, plan.start, plan.start + timedelta(minutes=40)),
        )


def make_events(plan: Class, seed: int) -> list[ReceivedEvent]:
    """A class at work: runs that end in every way, many in one second, some long before; hands; gaps in what came."""
    dice = random.Random(seed)
    events, sequences = [], dict.fromkeys(plan.students, 0)
    sittings = {one: uuid4() for one in plan.students}
    for number in range(EVENTS):
        student = dice.choice(plan.students)
        sequences[student] += dice.choice((1, 1, 1, 2))
        at = plan.start + timedelta(seconds=dice.randrange(-4_000 if dice.random() < 0.1 else 0, 2_300))
        cell = dice.randrange(8)
        shared = {
            "occurred_at": at,
            "received_at": at + timedelta(seconds=1),
            "session_id": sittings[student],
            "notebook_path": f"week{int(dice.random() < 0.3)}.ipynb",
            "cell_id": f"cell-{cell}",
            "cell_index": cell,
            "sequence": sequences[student],
        }
        status = dice.choice(("ok", "ok", "ok", "error", "error", "aborted"))
        data: dict[str, Any] = {
            "status": status,
            "execution_duration_ms": dice.choice((None, 1.5, dice.uniform(1, 9_000))),
        }
        data |= {
            "execution_count": number,
            "has_error": status == "error",
            "source": f"x = {dice.randrange(4)}",
            "output": "1",
        }
        if status == "error":
            kind = dice.choice(("NameError", "KeyError", "TypeError"))
            data |= {"error_name": kind, "error_message": f"{kind} of {dice.choice('abc')}"}
            # Which of two that were met in one moment came first is left open: these were not.
            shared |= {"occurred_at": at + timedelta(microseconds=1_000 * (1 + number % 900))}
        if number % 40 == 0:
            events.append(
                make_event(student, plan.course_id, "help_request", data={"message": "助けて"}, occurred_at=at)
            )
        events.append(make_event(student, plan.course_id, data=data, **shared))
    return events


async def store(site: Primaries, redis_url: str, events: Sequence[ReceivedEvent]) -> None:
    async with site.open_worker(redis_url) as worker, asyncio.timeout(300):
        for first in range(0, len(events), 500):
            left = list(events[first : first + 500])
            while left:
                recorded = await worker.ledger.record_events(left)
                left = [one for one in left if (one.user_id, one.event_id) in recorded.postponed]
                await asyncio.sleep(0.02 if left else 0)
        for debt in await worker.ledger.find_debts(older_than_s=0, limit=10_000):
            await worker.ledger.settle_debt(debt.debt_id)  # type: ignore[arg-type]
        await worker.ledger.close_idle_sessions()


class Site(NamedTuple):
    """What asks a site's questions, as its API does."""

    people: People
    history: CourseHistory
    work: WorkReader
    reports: Reports
    replays: Replays
    rules: CourseRules


def make_site(stores: Resources) -> Site:
    people, seal = stores.people, stores.seal
    reports = Reports(people, Interventions(people, seal), Messages(people, seal))
    replays = Replays(people, ClassReader(stores.pool, seal))
    return Site(people, CourseHistory(people), WorkReader(people), reports, replays, CourseRules(people))


async def ask_all(site: Site, plan: Class, asker: UUID) -> dict[str, Any]:
    """Every question that is asked of several databases; what is refused by its code."""
    course, span = plan.course_id, plan.span
    questions = {
        "sessions": site.history.list_sessions(course, span, user_id=None, notebook_id=None, after=None, limit=5_000),
        "own sessions": site.history.list_sessions(
            course, span, user_id=plan.students[0], notebook_id=None, after=None, limit=10
        ),
        "few sessions": site.history.list_sessions(course, span, user_id=None, notebook_id=None, after=None, limit=7),
        "errors": site.history.list_common_errors(course, span, None, 5_000, 0),
        "some errors": site.history.list_common_errors(course, span, plan.notebooks[0], 3, 2),
        "slow cells": site.history.list_slow_cells(course, span, None, 5_000, 0),
        "some slow cells": site.history.list_slow_cells(course, span, None, 3, 1),
        "recovery": site.history.list_recovery_times(course, span, None, 5_000, 0),
        "signs": list_signs(site.people, course, span),
        "one's signs": list_signs(site.people, course, span, plan.students[1]),
        "report": site.reports.make(course, plan.meeting_id),
        "replay": site.replays.play(course, plan.meeting_id, None, Wanted(None, 1_800_000, 60_000)),
        "cell": site.work.read_cell(course, plan.notebooks[0], "cell-3", span),
        "student": site.work.read_student(course, plan.students[2], span),
        "runs": site.work.list_runs(course, plan.students[3], notebook_id=None, cell_id=None, after=None, limit=50),
        "lesson": site.rules.read_lesson(course, plan.meeting_id),
    }
    told: dict[str, Any] = {}
    for name, question in questions.items():
        with asking_as(asker):
            try:
                told[name] = msgspec.to_builtins(await question, enc_hook=repr_type)
            except NbpulseError as error:
                told[name] = error.code
    if not isinstance(told["lesson"], str):
        for fingerprint in sorted({row[0] for row in told["errors"]["rows"]})[:3]:
            with asking_as(asker):
                told[f"error {fingerprint}"] = msgspec.to_builtins(
                    await site.work.read_error(course, fingerprint, span)
                )
    return told


def repr_type(one: object) -> str:
    """What is settled about errors is the directory's, and nothing here."""
    return type(one).__name__


def find_difference(one: Any, other: Any) -> str:
    """Where they differ, and how; "" where they are equal but for the last digits of a mean."""
    if isinstance(one, float) and isinstance(other, float) and math.isclose(one, other, rel_tol=1e-9):
        return ""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        parts = [(name, one[name], other[name]) for name in one]
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        parts = [(place, *pair) for place, pair in enumerate(zip(one, other, strict=True))]
    else:
        return "" if one == other else f": {one} / {other}"[:2_000]
    return next((f"[{name}]{found}" for name, *pair in parts if (found := find_difference(*pair))), "")


async def await_people(primaries: Primaries, plan: Class) -> None:
    """Until every database has the course's people as the directory has them."""
    query = "SELECT count(*) FROM enrolments WHERE course_id = $1"
    for name in NAMES:
        async with connect(primaries.urls[name]) as connection, asyncio.timeout(60):
            while await connection.fetchval(query, plan.course_id) < len(plan.students) + 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def teach(primaries: Primaries, redis_url: str, seed: int = 0) -> tuple[Class, list[ReceivedEvent]]:
    """A class whose events are stored over the databases."""
    plan = make_plan(seed)
    await found_class(primaries.urls["main"], plan)
    await await_people(primaries, plan)
    events = make_events(plan, seed)
    await store(primaries, redis_url, events)
    return plan, events


@asynccontextmanager
async def serving(
    primaries: Primaries, redis_url: str, **more: Any
) -> AsyncIterator[tuple[httpx2.AsyncClient, People]]:
    """The API over the databases (`more`: settings), and who makes tokens for it."""
    async with (
        primaries.serve_api(redis_url, **more) as (url, _),
        httpx2.AsyncClient(base_url=url, timeout=30) as http,
        open_owner(primaries.urls["main"]) as owner,
    ):
        yield http, People(owner, EncryptedField(KEY.encode()))


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_question_is_answered_as_if_it_were_one_database(
    primaries: Primaries, alone: Primaries, embedded_valkey: str, seed: int
) -> None:
    plan, events = await teach(primaries, embedded_valkey, seed)
    await found_class(alone.urls["main"], plan)
    await store(alone, embedded_valkey, events)
    async with primaries.open_api(embedded_valkey) as spread, alone.open_api(embedded_valkey) as whole:
        for asker in (plan.instructor, plan.assistant, plan.analyst, plan.students[0], None):
            with covering() as coverage:
                told = await ask_all(make_site(spread), plan, asker)  # type: ignore[arg-type]
            wanted = await ask_all(make_site(whole), plan, asker)  # type: ignore[arg-type]
            assert coverage.used == set(NAMES)
            assert coverage.missing == {}
            for name in wanted:
                assert not (found := find_difference(told[name], wanted[name])), f"{name}{found}"
            if asker == plan.instructor:
                assert len(wanted["slow cells"]["rows"]) == 16
                assert wanted["report"]["figures"]["runs"] > EVENTS / 3
                # Sessions that began in the span: the more a student does, the likelier did theirs begin before it.
                assert len(wanted["sessions"]["rows"]) > 12
                assert len(wanted["replay"]["frames"]) > 20


async def test_a_move_in_between_shows_nobody_twice_and_leaves_nobody_out(
    primaries: Primaries, embedded_valkey: str
) -> None:
    plan, _ = await teach(primaries, embedded_valkey)
    async with primaries.open_api(embedded_valkey) as stores:
        site = make_site(stores)

        async def count_runs() -> int:
            with asking_as(plan.instructor):
                table = await site.history.list_slow_cells(plan.course_id, plan.span, None, 5_000, 0)
            return sum(dict(zip(table.columns, row, strict=True))["executions"] for row in table.rows)

        wanted, shard = await count_runs(), get_shard_number(plan.students[0])
        assert wanted > EVENTS / 4
        home = choose(shard)
        for target in (NAMES[(NAMES.index(home) + 1) % 3], home):
            moving = asyncio.create_task(asyncio.to_thread(primaries.run, "move", f"shard_{shard}", "--to", target))
            looks = 0
            while not moving.done() or not looks:
                assert await count_runs() == wanted
                looks += 1
            await moving


@asynccontextmanager
async def killed(primaries: Primaries, *names: str) -> AsyncIterator[None]:
    """Without these servers for the length of the block."""
    for name in names:
        os.kill(primaries.servers[name].pid, signal.SIGKILL)
    try:
        yield
    finally:
        for name in names:
            primaries.servers[name].revive()


async def test_what_is_missing_is_said_and_a_file_is_whole_or_none(
    primaries: Primaries, embedded_valkey: str, browser: Browser
) -> None:
    plan, _ = await teach(primaries, embedded_valkey)
    async with serving(primaries, embedded_valkey) as (http, people):
        headers = {
            "Authorization": f"Bearer {await people.create_staff_token(plan.instructor)}",
            "Cache-Control": "no-store",
        }
        place = f"/api/v1/courses/{plan.course_id}"
        window = {"start": plan.whole.start.isoformat(), "end": plan.whole.end.isoformat()}
        shown = {name: [one for one in plan.students if choose(get_shard_number(one)) == name] for name in NAMES}

        async def ask(path: str, **query: Any) -> httpx2.Response:
            return await http.get(f"{place}/{path}", params=window | query, headers=headers)

        whole = await ask("sessions", limit=5_000)
        assert whole.json()["databases"] == {"answered": 3, "of": 3}
        assert json.loads(whole.headers["NBPULSE-Databases"]) == {"answered": 3, "of": 3}
        async with killed(primaries, "b"):
            part = await ask("sessions", limit=5_000)
            assert part.status_code == 200, part.text
            missing = [number for number in range(SHARD_COUNT) if choose(number) == "b"]
            told = {"answered": 2, "of": 3, "missing_shards": " ".join(map(str, missing)), "missing_percent": 33}
            assert part.json()["databases"] == json.loads(part.headers["NBPULSE-Databases"]) == told
            assert "etag" not in part.headers
            left = [row for row in whole.json()["sessions"] if UUID(row["user_id"]) not in shown["b"]]
            assert part.json()["sessions"] == left
            for path in (
                "slow-cells",
                "common-errors",
                "recovery-times",
                "integrity",
                f"meetings/{plan.meeting_id}/report",
            ):
                assert (await ask(path)).json()["databases"]["answered"] == 2
            report = (await ask(f"meetings/{plan.meeting_id}/report")).json()
            assert {UUID(one) for one in report["never_came"]} & set(shown["b"]) == set()
            replay = (await ask(f"meetings/{plan.meeting_id}/replay")).json()
            assert {UUID(one["id"]) for one in replay["snapshot"]["students"]} == set(shown["main"] + shown["a"])
            for path in ("sessions", "slow-cells"):
                refused = await ask(path, format="csv", identified=1)
                assert (refused.status_code, refused.json()["code"]) == (503, "NB-2037")
            assert (await ask(f"meetings/{plan.meeting_id}/report.csv")).status_code == 503
            assert (await ask(f"students/{shown['b'][0]}/sessions")).json()["code"] == "NB-2003"
            there = await ask(f"students/{shown['a'][0]}/sessions")
            assert "databases" not in there.json()
            assert there.json()["sessions"]
            for look in LOOKS:
                code = await people.create_link(plan.instructor)
                async with open_page(browser, **look) as page:
                    report = f"/courses/{plan.course_id}/report/{plan.meeting_id}#code={code}"
                    await page.goto(str(http.base_url.join(report)))
                    await expect(page.locator("[data-missing]")).to_be_visible(timeout=60_000)
                    assert await find_barriers(page) == []
                    await photograph(page, "report-2-of-3-databases", look)
        async with asyncio.timeout(60):
            while (await ask("sessions", limit=5_000)).json().get("databases") != whole.json()["databases"]:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        assert (await ask("sessions", format="csv", identified=1)).status_code == 200


async def test_api_and_worker_start_while_a_database_and_the_replica_are_away(
    primaries: Primaries, embedded_valkey: str
) -> None:
    plan = make_plan(0)
    await found_class(primaries.urls["main"], plan)
    await await_people(primaries, plan)
    async with Redis.from_url(embedded_valkey) as redis:
        await redis.flushall()
    at = {name: {one for one in plan.students if choose(get_shard_number(one)) == name} for name in NAMES}
    assert all(at.values())
    nowhere = "postgresql://postgres@127.0.0.1:9/nbpulse"
    async with AsyncExitStack() as stack:
        async with killed(primaries, "b"):
            http, people = await stack.enter_async_context(serving(primaries, embedded_valkey, replica_urls=nowhere))
            worker = await stack.enter_async_context(primaries.open_worker(embedded_valkey))
            await stack.enter_async_context(work(worker))
            token = await people.create_staff_token(plan.instructor)

            async def list_students() -> tuple[int, set[UUID]]:
                path = f"/api/v1/courses/{plan.course_id}/sessions"
                headers = {"Authorization": f"Bearer {token}", "Cache-Control": "no-store"}
                answer = await http.get(path, params={"limit": 5_000}, headers=headers)
                assert answer.status_code == 200, answer.text
                told = answer.json()
                return told["databases"]["answered"], {UUID(row["user_id"]) for row in told["sessions"]}

            async def are_listed(databases: int, students: set[UUID]) -> bool:
                return await list_students() == (databases, students)

            await worker.stream.append([make_event(one, plan.course_id) for one in plan.students])
            await until(lambda: are_listed(2, at["main"] | at["a"]))
            health = (await http.get("/health")).json()
            assert health["replicas"]["error"] == "NB-2034"
            assert await worker.stream.measure_backlog() >= len(at["b"])
        await until(lambda: are_listed(3, set(plan.students)))
        await until(lambda: is_drained(worker.stream))


async def test_who_sees_less_now_is_not_shown_more_by_a_database_that_has_not_heard(
    primaries: Primaries, embedded_valkey: str
) -> None:
    plan, _ = await teach(primaries, embedded_valkey)
    async with (
        primaries.open_api(embedded_valkey) as stores,
        connect(primaries.urls["main"]) as directory,
        connect(primaries.urls["b"]) as late,
    ):
        history = make_site(stores).history

        async def list_students() -> set[UUID]:
            with asking_as(plan.assistant):
                table = await history.list_sessions(
                    plan.course_id, plan.whole, user_id=None, notebook_id=None, after=None, limit=5_000
                )
            return {dict(zip(table.columns, row, strict=True))["user_id"] for row in table.rows}

        team = {place: set(plan.students[place::2]) for place in (0, 1)}
        assert await list_students() == team[0]
        await late.execute("ALTER SUBSCRIPTION nbpulse_directory DISABLE")
        try:
            await directory.execute("UPDATE enrolments SET teams = '{B}' WHERE user_id = $1", plan.assistant)
            with covering() as coverage:
                seen = await list_students()
            assert set(coverage.missing) == {"b"}
            assert seen == {one for one in team[1] if choose(get_shard_number(one)) != "b"}
            with pytest.raises(Unavailable):
                await list_students()
        finally:
            await late.execute("ALTER SUBSCRIPTION nbpulse_directory ENABLE")
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await list_students() == team[1]
                    break
                except Unavailable:
                    await asyncio.sleep(0.1)


async def test_a_person_s_own_export_holds_their_rows_wherever_they_are(
    primaries: Primaries, embedded_valkey: str
) -> None:
    plan, events = await teach(primaries, embedded_valkey)
    async with serving(primaries, embedded_valkey) as (http, people):
        for name in NAMES:
            student = next(one for one in plan.students if choose(get_shard_number(one)) == name)
            token = await people.create_staff_token(student)
            answer = await http.get("/api/v1/me/export", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 200, answer.text
            with zipfile.ZipFile(io.BytesIO(answer.content)) as file:
                rows = json.loads(file.read("events.json"))
                notebooks = json.loads(file.read("notebooks.json"))
                enrolments = json.loads(file.read("enrolments.json"))
            assert len(rows) == sum(one.user_id == student for one in events)
            assert {row["id"] for row in notebooks} <= set(map(str, plan.notebooks))
            assert len(enrolments) == 1


async def test_one_database_is_asked_as_ever(alone: Primaries, embedded_valkey: str) -> None:
    async with alone.open_api(embedded_valkey) as stores:
        async with connect_parts(stores.people, "sessions") as parts:
            assert parts.is_one
            assert parts.home is parts.directory
            assert await parts.directory.fetchval("SHOW transaction_isolation") == "read committed"
        assert list(stores.databases.pools) == ["main"]
