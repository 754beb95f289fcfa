"""Assistants see the students of their own teams and those of no team: in every answer, board and message."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from websockets.asyncio.client import connect as connect_socket

from boards import Board, follow, read
from nbpulse.migrations.runner import with_login
from nbpulse.pipeline import measure
from nbpulse.timeseries.postgres import PostgresTimeSeries
from stage import Stage, add_assistant, make_run, serve_api
from stores import WORKER_PASSWORD, connect

_NOW = datetime.now(UTC)
WEEK = f"?start={_NOW - timedelta(days=7):%Y-%m-%dT%H:%M:%SZ}"
DAY = f"?start={_NOW - timedelta(hours=10):%Y-%m-%dT%H:%M:%SZ}"


@dataclass
class Teams:
    """Red, Blue and Nobody are students of team red, of team blue and of none; an assistant looks after red."""

    stage: Stage
    students: dict[str, dict[str, Any]]
    assistant_id: UUID
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Cache-Control": "no-store"}

    async def ask(self, path: str, headers: dict[str, str] | None = None) -> Any:
        answer = await self.stage.http.get(
            f"/api/v1/courses/{self.stage.course.id}/{path}", headers=headers or self.headers
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        return await self.stage.http.post(
            f"/api/v1/courses/{self.stage.course.id}/{path}", headers=self.headers, json=body
        )

    async def set(self, statement: str, *values: object) -> None:
        async with connect(self.stage.database_url) as owner:
            await owner.execute(statement, *values)

    def name(self, user_ids: set[str]) -> set[str]:
        return {name for name, one in self.students.items() if one["user_id"] in user_ids}

    def find_names(self, answer: object) -> set[str]:
        """Whose id is anywhere in it."""
        text = json.dumps(answer)
        return {name for name, one in self.students.items() if one["user_id"] in text}


async def write_points(stage: Stage) -> None:
    """What the worker does after it has acknowledged."""
    series = PostgresTimeSeries(stage._ledger._pool)
    for debt in await stage._ledger.find_debts(older_than_s=0, limit=1_000):
        assert await measure(debt, ledger=stage._ledger, series=series)


@pytest.fixture
async def teams(stage: Stage) -> Teams:
    students = {}
    for name, team in (("Red", "red"), ("Blue", "blue"), ("Nobody", None)):
        students[name] = joined = await stage.join(name)
        async with connect(stage.database_url) as owner:
            await owner.execute("UPDATE enrolments SET team = $2 WHERE user_id = $1", UUID(joined["user_id"]), team)
        await stage.post(joined["token"], [make_run(0), make_run(1, "error")])
        hand = make_run(event_type="help_request", notebook_path=None, data={"message": name})
        await stage.post(joined["token"], hand)
    await stage.work()
    await write_points(stage)
    return Teams(stage, students, *await add_assistant(stage, ["red"]))


async def test_history_is_of_their_students_alone(teams: Teams) -> None:
    for path in (f"sessions{WEEK}", "progress", "series?metric=activity", "live"):
        assert teams.find_names(await teams.ask(path)) == {"Red", "Nobody"}, path
        assert teams.find_names(await teams.ask(path, teams.stage.staff)) == {"Red", "Blue", "Nobody"}, path
    for path in (f"common-errors{WEEK}", "failing-cells", f"slow-cells{WEEK}", f"recovery-times{WEEK}"):
        answer = await teams.ask(path)
        rows = next(rows for rows in answer.values() if isinstance(rows, list) and rows)
        assert {row["students"] for row in rows} == {2}, path
    for path in (f"activity{DAY}&bucket=10m", f"activity{DAY}&bucket=1m", "series?metric=activity&window_minutes=600"):
        assert count_runs(await teams.ask(path)) == 4, path
        assert count_runs(await teams.ask(path, teams.stage.staff)) == 6, path
    blue = teams.students["Blue"]["user_id"]
    assert (await teams.ask(f"students/{blue}/sessions"))["sessions"] == []
    assert (await teams.ask(f"messages?student={blue}"))["threads"] == []


async def test_charts_are_of_their_students_alone(teams: Teams) -> None:
    for headers, counts in ((teams.headers, (2, 1, 0)), (teams.stage.staff, (3, 1, 1))):
        for query, count in zip(("", "?team=red", "?team=blue"), counts, strict=True):
            assert (await teams.ask(f"charts{query}", headers))["funnel"][0][1] == count, query


async def test_the_numbers_of_a_notebook_are_of_their_students_and_never_kept_for_the_others(teams: Teams) -> None:
    notebook = (await teams.ask("live"))["notebook"]["id"]
    for headers, count in ((teams.headers, 2), (teams.stage.staff, 3), (teams.headers, 2)):
        summary = await teams.ask(f"notebooks/{notebook}/summary", headers)
        assert (summary["total_students"], summary["started_students"]) == (count, count)


async def test_an_answer_is_not_shared_with_who_sees_others(teams: Teams) -> None:
    _, other = await add_assistant(teams.stage, ["blue"])
    askers = [teams.headers, {"Authorization": f"Bearer {other}"}, teams.stage.staff]
    for headers in askers:
        headers.pop("Cache-Control", None)
    answers = await asyncio.gather(*(teams.ask(f"sessions{WEEK}", headers) for headers in askers))
    seen = [teams.find_names(answer) for answer in answers]
    assert seen == [{"Red", "Nobody"}, {"Blue", "Nobody"}, set(teams.students)]


async def test_who_is_of_another_team_cannot_be_written_to_nor_looked_after(teams: Teams) -> None:
    hands = {one["i"]: one for one in (await teams.ask("live", teams.stage.staff))["alerts"]}
    students = (await teams.ask("live", teams.stage.staff))["students"]
    for name, status in (("Red", 200), ("Blue", 404)):
        user_id = teams.students[name]["user_id"]
        alert = next(hands[one["i"]] for one in students if one["id"] == user_id)
        answer = await teams.post(f"alerts/{alert['id']}/claim", {"id": str(uuid4()), "user_id": user_id})
        assert answer.status_code == status, answer.text
    everybody = [one["user_id"] for one in teams.students.values()]
    for to, unknown in (({"user_ids": everybody}, [teams.students["Blue"]["user_id"]]), ({"all": True}, [])):
        answer = await teams.post("messages", {"id": str(uuid4()), "to": to, "text": "hello"})
        assert (answer.json()["recipients"], answer.json()["unknown"]) == (2, unknown)
    assert (await teams.stage.read_inbox(teams.students["Blue"]))["messages"] == []


async def test_a_board_shows_their_students_through_frames_too(teams: Teams) -> None:
    stage, snapshot = teams.stage, await teams.ask("live")
    board = Board(snapshot)
    async with stage.watch(snapshot, token=teams.token) as socket:
        for name in ("Blue", "Red"):
            await stage.post(teams.students[name]["token"], make_run(1))
        await stage.work()
        red = next(i for i, one in board.students.items() if one["id"] == teams.students["Red"]["user_id"])
        await follow(socket, board, lambda b: b.students[red]["s"][1] == "1")
        assert teams.find_names(board.show()) == {"Red", "Nobody"}
        assert board.figures["counts"]["help"] == 2
        # The whole class's view is there too, under an epoch of its own: it is not theirs to go on from.
        whole = await teams.ask("live", stage.staff)
        await socket.send(json.dumps({"t": "resume", "epoch": whole["epoch"], "after_seq": whole["seq"]}))
        while (message := await read(socket))["t"] != "snapshot":
            assert teams.find_names(message) <= {"Red", "Nobody"}
        assert teams.find_names(message["snapshot"]) == {"Red", "Nobody"}


async def test_a_change_of_teams_is_felt_on_an_open_board_and_by_nobody_else(teams: Teams) -> None:
    stage, snapshot, whole = teams.stage, await teams.ask("live"), await teams.ask("live", teams.stage.staff)
    async with stage.watch(snapshot, token=teams.token) as socket, stage.watch(whole) as other:
        await read(socket), await read(other)
        await teams.set("UPDATE enrolments SET teams = '{blue}' WHERE user_id = $1", teams.assistant_id)
        while (await read(socket))["t"] != "resync":
            pass
        board = await teams.ask("live")
        assert teams.find_names(board) == {"Blue", "Nobody"}
        await socket.send(json.dumps({"t": "resume", "epoch": board["epoch"], "after_seq": board["seq"]}))
        await stage.post(teams.students["Blue"]["token"], make_run(1))
        await stage.work()
        await follow(socket, Board(board), lambda b: any(one["s"][1:2] == "1" for one in b.students.values()))
        assert stage.parts.hub.find_view(stage.course.id, whole["epoch"]) is not None


@pytest.mark.parametrize("opened", ["course", "teams", "instructor"])
async def test_who_is_hidden_from_nobody_sees_the_whole_course(teams: Teams, opened: str) -> None:
    statement, value = {
        "course": ("UPDATE courses SET shows_all_teams = TRUE WHERE id = $1", teams.stage.course.id),
        "teams": ("UPDATE enrolments SET teams = '{blue,red}' WHERE user_id = $1", teams.assistant_id),
        "instructor": ("UPDATE enrolments SET role = 'instructor' WHERE user_id = $1", teams.assistant_id),
    }[opened]
    await teams.set(statement, value)
    for path in (f"sessions{WEEK}", "progress", "live"):
        assert teams.find_names(await teams.ask(path)) == set(teams.students), path
    person = await teams.stage.people.find_person(teams.token)
    assert person is not None
    assert person.teams == {}


async def test_who_has_no_team_sees_a_course_without_teams_whole_and_of_others_those_of_no_team(teams: Teams) -> None:
    _, token = await add_assistant(teams.stage, [])
    headers = {"Authorization": f"Bearer {token}", "Cache-Control": "no-store"}
    assert teams.find_names(await teams.ask(f"sessions{WEEK}", headers)) == {"Nobody"}
    await teams.set("UPDATE enrolments SET team = NULL WHERE course_id = $1", teams.stage.course.id)
    person = await teams.stage.people.find_person(token)
    assert person is not None
    assert person.teams == {}
    assert teams.find_names(await teams.ask(f"sessions{WEEK}", headers)) == set(teams.students)


async def test_teams_of_one_course_open_nothing_of_another(teams: Teams) -> None:
    """A student of team red here is of team blue there, and so is a second course's assistant of their team there."""
    stage = teams.stage
    other = await stage.courses.ensure_course("Other", f"o{stage.course.id.hex[:8]}")
    red = UUID(teams.students["Red"]["user_id"])
    for user_id, team in ((red, "blue"), (UUID(teams.students["Blue"]["user_id"]), "green")):
        await teams.set(
            "INSERT INTO enrolments (user_id, course_id, role, team) VALUES ($1, $2, 'student', $3)",
            user_id,
            other.id,
            team,
        )
    assistant_id, token = await add_assistant(stage, ["green"], other.id)
    await teams.set(
        "INSERT INTO enrolments (user_id, course_id, role, teams) VALUES ($1, $2, 'assistant', '{red}')",
        *(assistant_id, stage.course.id),
    )
    headers = {"Authorization": f"Bearer {token}", "Cache-Control": "no-store"}
    assert teams.find_names(await teams.ask(f"sessions{WEEK}", headers)) == {"Red", "Nobody"}
    answer = await stage.http.get(f"/api/v1/courses/{other.id}/live", headers=headers)
    assert teams.find_names(answer.json()) == {"Blue"}


TABLES = (
    *("enrolments", "events", "learning_sessions", "learner_states", "learner_cells", "help_requests", "messages"),
    *("interventions", "consents", "timeseries.cell_executions", "timeseries.stale_minutes"),
)


@pytest.mark.parametrize("table", TABLES)
async def test_the_database_itself_hides_the_other_teams_rows(teams: Teams, table: str) -> None:
    stage = teams.stage
    for name, one in teams.students.items():
        await stage.http.post(
            f"/api/v1/courses/{stage.course.id}/messages",
            headers=stage.staff,
            json={"id": str(uuid4()), "to": {"user_ids": [one["user_id"]]}, "text": name},
        )
        await stage.http.post(
            f"/api/v1/courses/{stage.course.id}/alerts/{uuid4()}/claim",
            headers=stage.staff,
            json={"id": str(uuid4()), "user_id": one["user_id"]},
        )
    async with connect(with_login(stage.database_url, "nbpulse_api", WORKER_PASSWORD)) as api:
        for asker, seen in ((teams.assistant_id, {"Red", "Nobody"}), (stage.teacher_id, set(teams.students))):
            async with api.transaction():
                await api.execute(f"SELECT ask_as('{asker}')")
                rows = await api.fetch(f"SELECT user_id FROM {table} WHERE course_id = $1", stage.course.id)
            assert teams.name({str(row["user_id"]) for row in rows}) == seen
        async with api.transaction():
            await api.execute(f"SELECT ask_as('{teams.assistant_id}'), set_config('role', 'app_staff', true)")
            if table in ("enrolments", "events", "learning_sessions", "learner_cells"):
                assert await api.fetch(f"SELECT user_id FROM {table}") == []


def count_runs(answer: dict[str, Any]) -> int:
    rows = answer.get("percentiles") or answer.get("buckets") or answer["activity"]
    return sum(int(row["execution_count"]) for row in rows)


async def test_a_change_by_the_instructor_is_felt_at_once_also_in_another_process(teams: Teams) -> None:
    """Teams, then the role: the assistant's board at another API shows other students, then closes."""
    stage, course = teams.stage, f"/api/v1/courses/{teams.stage.course.id}"
    change = f"{course}/people/{teams.assistant_id}"
    async with serve_api(stage.database_url, stage.redis_url) as (url, _), httpx2.AsyncClient(base_url=url) as other:

        async def ask(path: str) -> httpx2.Response:
            return await other.get(f"{course}/{path}", headers=teams.headers)

        snapshot = (await ask("live")).json()
        async with connect_socket(f"{url.replace('http', 'ws')}{course}/ws") as socket:
            hello = {"t": "hello", "token": teams.token, "epoch": snapshot["epoch"], "after_seq": snapshot["seq"]}
            await socket.send(json.dumps(hello))
            await read(socket)
            changed = await stage.http.patch(change, headers=stage.staff, json={"teams": ["blue"]})
            assert changed.json()["teams"] == ["blue"]
            while (await read(socket))["t"] != "resync":
                pass
            for path in ("live", f"sessions{WEEK}"):
                assert teams.find_names((await ask(path)).json()) == {"Blue", "Nobody"}, path
            changed = await stage.http.patch(change, headers=stage.staff, json={"role": "former"})
            assert changed.json()["role"] == "former"
            await asyncio.wait_for(socket.wait_closed(), 10)
            assert socket.close_code == 4403
            assert (await ask("live")).status_code == 403
