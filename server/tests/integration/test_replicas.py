"""History from a real streaming replica: as of when it is, one's own writes, every way in which a replica fails."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx2
import pytest
from fastapi.routing import APIRoute

from meetings import begin, report_path, run
from nbpulse import metrics
from nbpulse.api.app import create_app
from nbpulse.api.sharing import HistoryRoute
from nbpulse.errors import StartupError
from nbpulse.records.people import People
from nbpulse.resources import list_replica_urls
from nbpulse.settings import Settings
from replicated import Pair, run_pair, signal_family
from servers import make_data_dir
from stage import Replicas, Stage, add_assistant, open_stage, serve_api
from stores import connect, create_database
from working import until

HEADER = "NBPULSE-As-Of"
LAG_MAX_S = 4.0


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with make_data_dir() as directory, run_pair(directory) as running:
        yield running


@pytest.fixture(scope="module")
def database(pair: Pair) -> str:
    return asyncio.run(create_database(pair.primary.url))


class Room:
    """A class whose history is read from the replica, once that is seen."""

    def __init__(self, stage: Stage, pair: Pair) -> None:
        self.stage = stage
        self.pair = pair

    async def ask(self, path: str, headers: dict[str, str] | None = None) -> httpx2.Response:
        answer = await self.stage.http.get(
            path if path.startswith("/") else f"/api/v1/courses/{self.stage.course.id}/{path}",
            headers=headers or self.stage.staff,
        )
        assert answer.status_code == 200, answer.text
        return answer

    async def count_sessions(self) -> int:
        return len((await self.ask("sessions")).json()["sessions"])

    async def is_read(self) -> bool:
        """Whether an answer comes from the replica now."""
        return HEADER in (await self.ask("sessions")).headers

    async def is_not_read(self) -> bool:
        return not await self.is_read()

    async def show_health(self) -> dict[str, Any]:
        health: dict[str, Any] = (await self.stage.http.get("/health/ready")).json()["replicas"]
        return health

    async def add_session(self, name: str = "鈴木 大翔") -> dict[str, Any]:
        """A student who has run a cell: one more learning session at the primary."""
        student = await self.stage.join(name)
        await run(self.stage, student, (5, 0, "ok"))
        return student


@asynccontextmanager
async def open_room(pair: Pair, database: str, valkey: str, lag_max_s: float = LAG_MAX_S) -> AsyncIterator[Room]:
    replicas = Replicas([pair.find_replica(database)], lag_max_s)
    async with open_stage(database, valkey, replicas=replicas) as stage:
        room = Room(stage, pair)
        await until(room.is_read)
        yield room


@pytest.fixture
async def room(pair: Pair, database: str, embedded_valkey: str) -> AsyncIterator[Room]:
    async with open_room(pair, database, embedded_valkey) as opened:
        try:
            yield opened
        finally:
            await pair.resume()


def count_answers(source: str) -> float:
    return metrics.history_answers.labels(source)._value.get()  # type: ignore[no-any-return]


async def test_a_paused_replica_shows_as_of_when_and_beyond_the_bound_the_primary_answers(room: Room) -> None:
    await room.add_session()
    await room.pair.until_same()
    before = datetime.now(UTC)
    await room.pair.pause()
    newest = await room.add_session("佐藤 結衣")
    answer = await room.ask("sessions")
    as_of = datetime.fromisoformat(answer.headers[HEADER])
    assert answer.json()["as_of"] == answer.headers[HEADER]
    assert before - timedelta(seconds=5) < as_of <= datetime.now(UTC)
    assert len(answer.json()["sessions"]) == 1
    # A page that follows the class was told of this run: it must be there when the page asks.
    answer = await room.ask(f"students/{newest['user_id']}/runs")
    assert len(answer.json()["runs"]) == 1
    assert HEADER not in answer.headers

    await until(room.is_not_read)  # no write came from whoever asks: only the lag has grown
    answer = await room.ask("sessions")
    assert "as_of" not in answer.json()
    assert len(answer.json()["sessions"]) == 2
    health = await room.show_health()
    assert health["error"] == health["replicas"][0]["error"] == "NB-2034"
    assert health["replicas"][0]["lag_s"] > health["lag_max_s"] == LAG_MAX_S
    assert metrics.replica_lag_seconds.labels("1")._value.get() > LAG_MAX_S

    await room.pair.resume()
    await until(room.is_read)
    assert await room.count_sessions() == 2
    health = await room.show_health()
    assert health["status"] == "healthy"
    assert health["replicas"][0]["lag_s"] < LAG_MAX_S


async def test_an_idle_primary_is_no_lag(room: Room) -> None:
    await room.pair.until_same()
    before = datetime.now(UTC)

    async def is_newer() -> bool:
        return datetime.fromisoformat((await room.ask("sessions")).headers[HEADER]) > before + timedelta(seconds=2)

    await until(is_newer)
    assert (await room.show_health())["replicas"][0]["lag_s"] < 2


async def test_who_has_just_written_reads_it_at_once_and_nobody_is_told_it_is_not_there(
    room: Room, database: str, embedded_valkey: str
) -> None:
    stage, course = room.stage, f"/api/v1/courses/{room.stage.course.id}"
    replicas = Replicas([room.pair.find_replica(database)], LAG_MAX_S)
    async with (
        serve_api(database, embedded_valkey, replicas=replicas) as (url, _),
        httpx2.AsyncClient(base_url=url, timeout=20) as other,
    ):

        async def reads_there() -> bool:
            return HEADER in (await other.get(f"{course}/sessions", headers=stage.staff)).headers

        await until(reads_there)
        _, assistant = await add_assistant(stage, [])
        await room.pair.until_same()
        for number in range(6):
            is_paused = number == 5
            if is_paused:
                await room.pair.pause()
            started = await stage.http.post(f"{course}/meetings", json={"title": f"{number}"}, headers=stage.staff)
            assert started.status_code == 201, started.text
            report = report_path(stage, UUID(started.json()["id"]))
            # Without the header that asks for a new answer: what was kept before the write is not given after it.
            headers = {"Authorization": stage.staff["Authorization"]}
            for http in (stage.http, other):
                answer = await http.get(report, headers=headers)
                assert answer.status_code == 200, answer.text
                assert not is_paused or HEADER not in answer.headers
            # To somebody else the replica may still say that there is none: then the primary is asked.
            answer = await room.ask(report, {"Authorization": f"Bearer {assistant}"})
            assert not is_paused or HEADER not in answer.headers
            ended = await stage.http.post(f"{course}/meetings/end", json={}, headers=stage.staff)
            assert ended.status_code == 200, ended.text
        assert count_answers("primary_own_write") > 0
        assert count_answers("primary_after_failure") > 0


async def test_a_right_that_was_taken_is_taken_from_what_a_replica_shows(room: Room) -> None:
    red, blue = [await room.add_session(name) for name in ("赤 一郎", "青 二郎")]
    course = f"/api/v1/courses/{room.stage.course.id}"
    for student, team in ((red, "red"), (blue, "blue")):
        path = f"{course}/people/{student['user_id']}"
        assert (await room.stage.http.patch(path, json={"team": team}, headers=room.stage.staff)).status_code == 200
    assistant_id, token = await add_assistant(room.stage, ["red", "blue"])
    await room.pair.until_same()
    theirs = {"Authorization": f"Bearer {token}", "Cache-Control": "no-store"}
    answer = await room.ask("sessions", theirs)
    assert HEADER in answer.headers
    assert {one["user_id"] for one in answer.json()["sessions"]} == {red["user_id"], blue["user_id"]}

    await room.pair.pause()
    change = await room.stage.http.patch(
        f"{course}/people/{assistant_id}", json={"teams": ["red"]}, headers=room.stage.staff
    )
    assert change.status_code == 200, change.text
    answer = await room.ask("sessions", theirs)
    assert {one["user_id"] for one in answer.json()["sessions"]} == {red["user_id"]}
    assert HEADER not in answer.headers


async def test_an_assistant_sees_their_own_students_alone_on_the_replica_too(room: Room) -> None:
    red, blue = [await room.add_session(name) for name in ("赤 一郎", "青 二郎")]
    async with connect(room.stage.database_url) as owner:
        for student, team in ((red, "red"), (blue, "blue")):
            await owner.execute("UPDATE enrolments SET team = $1 WHERE user_id = $2", team, UUID(student["user_id"]))
    _, token = await add_assistant(room.stage, ["red"])
    await room.pair.until_same()
    answer = await room.ask("sessions", {"Authorization": f"Bearer {token}"})
    assert HEADER in answer.headers
    assert {one["user_id"] for one in answer.json()["sessions"]} == {red["user_id"]}
    assert await room.count_sessions() == 2


def list_history_routes() -> list[str]:
    def walk(routes: Any) -> Iterator[str]:
        for route in routes:
            if isinstance(route, HistoryRoute):
                yield route.path
            elif not isinstance(route, APIRoute) and (router := getattr(route, "original_router", None)):
                yield from walk(router.routes)

    application = create_app(lambda: None)  # type: ignore[arg-type, return-value]
    return sorted(set(walk(application.web.routes)))


async def test_no_question_of_history_needs_the_primary(room: Room) -> None:
    """Each of them is answered by the replica itself: none of them writes, locks, or calls what does."""
    student = await room.stage.join()
    await run(room.stage, student, (20, 0, "ok"), (10, 1, "error"))
    meeting = await begin(room.stage)
    async with connect(room.stage.database_url) as owner:
        notebook = await owner.fetchval("SELECT id FROM notebooks WHERE course_id = $1", room.stage.course.id)
        error = await owner.fetchval(
            "SELECT error_fingerprint FROM events WHERE course_id = $1 AND error_fingerprint IS NOT NULL",
            room.stage.course.id,
        )
    await room.pair.until_same()
    values = {
        "course_id": room.stage.course.id,
        "user_id": student["user_id"],
        "notebook_id": notebook,
        "meeting_id": meeting,
        "fingerprint": error,
    }
    failed, paths = count_answers("primary_after_failure"), list_history_routes()
    assert len(paths) > 15
    for path in paths:
        for query in (
            ("?metric=activity", "?metric=learning_progress") if path.endswith("series") else ("?cell=cell-1",)
        ):
            place = path.format_map(values) + query
            if path.endswith("/summary"):  # the numbers of the class that works now, cached for all, are the primary's
                assert HEADER not in (await room.ask(place)).headers
                continue

            async def is_the_replicas(place: str = place) -> bool:
                return HEADER in (await room.ask(place)).headers

            await until(is_the_replicas)  # a busy machine may not have replayed all within what a page waits
    assert count_answers("primary_after_failure") == failed


async def test_what_is_read_for_an_answer_is_read_from_one_server_and_cannot_write_there(room: Room) -> None:
    history, seal = room.stage.parts.history, room.stage.parts.people.seal
    past, servers = People(history, seal), []

    async def look() -> None:
        for _ in range(3):
            async with past.connect("find_course") as connection:
                servers.append(await connection.fetchval("SELECT pg_is_in_recovery()"))

    async def write() -> None:
        async with past.connect("change_course") as connection:
            servers.append(await connection.fetchval("SELECT pg_is_in_recovery()"))
            await connection.execute("UPDATE courses SET title = 'x' WHERE false")

    _, as_of = await history.read(look)
    assert servers == [True] * 3
    assert as_of is not None
    await look()  # not for an answer of history
    assert servers[3:] == [False] * 3
    await asyncio.gather(history.read(look), look())
    assert sorted(servers[6:]) == [False] * 3 + [True] * 3
    await history.read(write)  # refused by the replica, so the primary was asked
    assert servers[12:] == [True, False]


async def test_the_report_of_a_link_says_as_of_when_it_is(room: Room) -> None:
    meeting = await begin(room.stage)
    shared = await room.stage.http.post(report_path(room.stage, meeting, "/shares"), json={}, headers=room.stage.staff)
    assert shared.status_code == 201, shared.text
    await room.pair.until_same()
    answer = await room.stage.http.post("/api/v1/shared/report", json={"code": shared.json()["code"]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["as_of"] == answer.headers[HEADER]


async def test_an_unchanged_answer_is_known_again_however_new_it_is(room: Room) -> None:
    await room.add_session()
    await room.pair.until_same()
    first = await room.ask("sessions")

    async def is_newer() -> bool:
        answer = await room.stage.http.get(
            f"/api/v1/courses/{room.stage.course.id}/sessions",
            headers={**room.stage.staff, "If-None-Match": first.headers["etag"]},
        )
        assert answer.status_code == 304, answer.text
        assert answer.content == b""
        return answer.headers[HEADER] > first.headers[HEADER]

    await until(is_newer)


async def test_a_replica_that_dies_or_hangs_fails_no_answer(room: Room) -> None:
    await room.add_session()
    await room.pair.until_same()
    stop, answered = asyncio.Event(), 0
    away = {"name": "1", "status": "unhealthy", "lag_s": None, "error": "NB-2034"}

    async def is_known_to_be_away() -> bool:
        return (await room.show_health())["replicas"] == [away]

    async def go_on_asking() -> None:
        nonlocal answered
        while not stop.is_set():
            async with asyncio.timeout(20):
                assert await room.count_sessions() == 1
            answered += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(go_on_asking())
        for number in (signal.SIGKILL, signal.SIGSTOP):
            await until(room.is_read)
            signal_family(room.pair.standby, number)
            count = answered

            async def goes_on(count: int = count) -> bool:
                return answered > count + 10

            await until(goes_on)
            await until(is_known_to_be_away)
            if number == signal.SIGKILL:
                room.pair.standby.stop()
                room.pair.standby.start()
            else:
                signal_family(room.pair.standby, signal.SIGCONT)
        await until(room.is_read)
        stop.set()


async def test_what_is_no_replica_of_this_database_is_not_read_from(
    room: Room, database: str, embedded_valkey: str, embedded_postgres: str
) -> None:
    """The primary itself, and a server of somebody else's."""
    replicas = Replicas([database, await create_database(embedded_postgres)])
    async with open_stage(database, embedded_valkey, replicas=replicas) as stage:
        other = Room(stage, room.pair)

        async def is_known() -> bool:
            return [one["error"] for one in (await other.show_health())["replicas"]] == ["NB-3113"] * 2

        await until(is_known)
        assert not await other.is_read()


async def test_an_api_starts_and_answers_while_its_replica_is_away(database: str, embedded_valkey: str) -> None:
    nowhere = "postgresql://postgres@127.0.0.1:9/nbpulse"
    async with open_stage(database, embedded_valkey, replicas=Replicas([nowhere])) as stage:
        answer = await stage.http.get(f"/api/v1/courses/{stage.course.id}/sessions", headers=stage.staff)
        assert answer.status_code == 200
        assert HEADER not in answer.headers
        health = (await stage.http.get("/health/ready")).json()
        assert health["status"] == "degraded"
        assert health["replicas"]["error"] == "NB-2034"


async def test_without_replicas_nothing_is_said_of_them(database: str, embedded_valkey: str) -> None:
    async with open_stage(database, embedded_valkey) as stage:
        answer = await stage.http.get(f"/api/v1/courses/{stage.course.id}/sessions", headers=stage.staff)
        assert HEADER not in answer.headers
        assert set(answer.json()) == {"sessions", "next"}
        assert "replicas" not in (await stage.http.get("/health")).json()


@pytest.mark.parametrize(
    "bad", ["replica:5432", "http://replica:5432/nbpulse", "postgresql://", "postgresql://replica:port/nbpulse"]
)
def test_an_address_that_is_none_is_said_before_anything_starts(bad: str) -> None:
    given = Settings(database_url="postgresql://postgres@db/nbpulse", replica_urls=f"postgresql://a/nbpulse,{bad}")
    with pytest.raises(StartupError) as refused:
        list_replica_urls(given)
    assert refused.value.code == "NB-3110"
    assert "2" in refused.value.title("en")


def test_a_replica_is_asked_by_the_apis_login_unless_it_has_one_of_its_own() -> None:
    given = Settings(
        api_database_url="postgresql://nbpulse_api:secret@db:5432/nbpulse",
        replica_urls="postgresql://one:5433/nbpulse, postgresql://reader:word@two/nbpulse",
    )
    assert list_replica_urls(given) == [
        "postgresql://nbpulse_api:secret@one:5433/nbpulse",
        "postgresql://reader:word@two/nbpulse",
    ]
