"""Boards and long polls of people whose rights change, and of nobody: in the process that hears of it and in others."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from nbpulse.allowances import Limits
from nbpulse.api import boards, sockets
from stage import Stage, make_run, open_stage, serve_api


@pytest.fixture
async def other_api(stage: Stage, stage_database: str, embedded_valkey: str) -> AsyncIterator[str]:
    """Another API on the same stores."""
    async with serve_api(stage_database, embedded_valkey) as (url, _):
        yield url


def name_socket(url: str, stage: Stage) -> str:
    return f"{url.replace('http', 'ws')}/api/v1/courses/{stage.course.id}/ws"


async def change(stage: Stage, statement: str, *values: Any) -> None:
    connection = await asyncpg.connect(stage.database_url)
    try:
        await connection.execute(statement, *values)
    finally:
        await connection.close()


async def open_board(url: str, stage: Stage, token: str) -> ClientConnection:
    """A board that has been let in."""
    socket = await connect(name_socket(url, stage))
    await socket.send(json.dumps({"t": "hello", "token": token}))
    assert json.loads(await asyncio.wait_for(socket.recv(), 10))["t"] == "hello"
    return socket


async def find_end(socket: ClientConnection) -> int:
    """The code with which a board is closed; sooner than the look that comes every 55 s anyway."""
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(30):
            async for _ in socket:
                pass
    assert socket.close_code is not None
    return socket.close_code


async def until_refused(url: str, token: str) -> None:
    """Sooner than a remembered yes of 30 s ends by itself."""
    async with httpx2.AsyncClient(base_url=url) as http, asyncio.timeout(18):
        headers = {"Authorization": f"Bearer {token}"}
        while (await http.get("/api/v1/me", headers=headers)).status_code != 401:  # noqa: ASYNC110 - it is told nothing
            await asyncio.sleep(0.1)


async def test_who_is_of_the_staff_no_more_loses_the_board_in_every_process(stage: Stage, other_api: str) -> None:
    await stage.post((await stage.join())["token"], make_run())
    await stage.work()
    first, second = [await open_board(url, stage, stage.teacher_token) for url in (stage.url, other_api)]
    await change(
        stage, "DELETE FROM enrolments WHERE user_id = $1 AND course_id = $2", stage.teacher_id, stage.course.id
    )
    await stage.parts.cache.announce_access(stage.teacher_id)
    assert await asyncio.gather(find_end(first), find_end(second)) == [sockets.NO_RIGHT] * 2


async def test_a_revoked_token_is_refused_by_the_other_process_and_its_board_closes(
    stage: Stage, other_api: str
) -> None:
    await stage.post((await stage.join())["token"], make_run())
    await stage.work()
    board = await open_board(other_api, stage, stage.teacher_token)
    person = await stage.parts.people.find_person(stage.teacher_token)
    assert person is not None
    assert await stage.people.revoke_token(person.token_id)
    await stage.parts.cache.announce_access(stage.teacher_id)
    await until_refused(other_api, stage.teacher_token)
    assert await find_end(board) == sockets.NOT_SIGNED_IN


async def test_a_waiting_inbox_of_a_revoked_token_is_answered_at_once(stage: Stage, other_api: str) -> None:
    student = await stage.join()
    person = await stage.parts.people.find_person(student["token"])
    assert person is not None
    async with httpx2.AsyncClient(base_url=other_api, timeout=30) as http:
        headers = {"Authorization": f"Bearer {student['token']}"}
        poll = asyncio.create_task(http.get("/api/v1/me/inbox?after=99&wait_s=25", headers=headers))
        await asyncio.sleep(1)
        assert await stage.people.revoke_token(person.token_id)
        started = time.monotonic()
        await stage.parts.cache.announce_access(person.user_id)
        assert (await poll).status_code == 401
        assert time.monotonic() - started < 15


async def test_a_session_that_is_signed_out_is_refused_by_the_other_process_at_once(
    stage: Stage, other_api: str
) -> None:
    code = await stage.people.create_link(stage.teacher_id)
    await stage.http.post("/api/v1/sign-in", json={"code": code}, headers={"Origin": stage.url})
    (token,) = [value for name, value in stage.http.cookies.items() if "session" in name]
    async with httpx2.AsyncClient(base_url=other_api) as http:
        assert (await http.get("/api/v1/me", headers={"Authorization": f"Bearer {token}"})).status_code == 200
    await stage.http.post("/api/v1/sign-out", headers={"Origin": stage.url})
    await until_refused(other_api, token)


async def test_sockets_that_do_not_say_whose_they_are_hold_few_places_for_a_moment(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boards, "UNPROVED_OF_ADDRESS_MAX", 3)
    url = name_socket(stage.url, stage)
    idle = [await connect(url) for _ in range(3)]
    with pytest.raises(InvalidStatus) as refused:
        await connect(url)
    assert refused.value.response.status_code == 429
    assert "NB-1177" in refused.value.response.body.decode()
    assert await asyncio.gather(*(find_end(socket) for socket in idle)) == [sockets.NOT_SIGNED_IN] * 3
    await (await open_board(stage.url, stage, stage.teacher_token)).close()


async def test_one_person_has_only_so_many_boards(stage_database: str, embedded_valkey: str) -> None:
    async with open_stage(stage_database, embedded_valkey, limits=Limits(person_boards=2)) as stage:
        await stage.post((await stage.join())["token"], make_run())
        await stage.work()
        opened = [await open_board(stage.url, stage, stage.teacher_token) for _ in range(2)]
        path = f"/api/v1/courses/{stage.course.id}/tickets"
        answer = await stage.http.post(path, headers={**stage.staff, "Accept-Language": "ja"})
        assert (answer.status_code, answer.json()["code"]) == (429, "NB-1178")
        async with stage.watch() as third:
            assert await find_end(third) == sockets.TRY_LATER
        await opened[0].close()
        async with asyncio.timeout(10):
            while (await stage.http.post(path, headers=stage.staff)).status_code != 201:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.1)
        await opened[1].close()


async def test_a_message_in_endless_pieces_is_too_large_and_not_kept(stage: Stage) -> None:
    async with connect(name_socket(stage.url, stage), max_size=None) as socket:

        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield b"a" * 20_000

        with pytest.raises(ConnectionClosed) as closed:
            async with asyncio.timeout(20):
                await socket.send(pieces())
        assert closed.value.rcvd is None or closed.value.rcvd.code in (1009, sockets.NOT_SIGNED_IN)
