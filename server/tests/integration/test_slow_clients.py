"""Connections that keep the server waiting: who is closed, when, what they are told, and who is served meanwhile."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from attacks import Idlers, make_head, open_socket, send_endless_body, trickle
from nbpulse.api import serving, waiting
from nbpulse.api.waiting import Waiting
from nbpulse.metrics import closed_connections
from stage import Stage, make_run, open_stage


def count_closed(reason: Any) -> float:
    return float(closed_connections.labels(reason)._value.get())


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "HEAD_S", 0.5)
    monkeypatch.setattr(waiting, "BODY_S", 2.0)


@pytest.fixture
async def small(stage_database: str, embedded_valkey: str) -> AsyncIterator[Stage]:
    """An API that waits for 20 connections at most, 10 of one address."""
    room = Waiting(most=20, most_of_address=10)
    async with open_stage(stage_database, embedded_valkey, waiting=room) as opened:
        yield opened


def find_port(stage: Stage) -> int:
    return int(stage.url.rpartition(":")[2])


async def until(check: Any, limit_s: float = 20) -> None:
    async with asyncio.timeout(limit_s):
        while not check():  # noqa: ASYNC110 - it happens in the server
            await asyncio.sleep(0.05)


async def test_who_connects_and_says_nothing_is_closed_without_a_word(stage: Stage) -> None:
    before = count_closed("late")
    async with open_socket(find_port(stage)) as (reader, _):
        assert await asyncio.wait_for(reader.read(), 20) == b""
    assert count_closed("late") == before + 1


@pytest.mark.parametrize("begin", [b"GET / HTTP/1.1\r\nHost: x\r\n", b"\r\n"])
async def test_a_head_that_trickles_is_not_waited_for(stage: Stage, begin: bytes) -> None:
    answer, _ = await trickle(find_port(stage), begin, b"X-A: b\r\n" if b"Host" in begin else b"\r\n", 0.1, 20)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"NB-1176" in answer


async def test_a_head_that_trickles_on_a_kept_connection_is_not_waited_for_either(stage: Stage) -> None:
    whole = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    answer, _ = await trickle(find_port(stage), whole + b"GET / HTTP/1.1\r\n", b"X-A: b\r\n", 0.1, 20)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"NB-1176" in answer
    answer, _ = await trickle(find_port(stage), whole, b"\r\n", 0.1, 20)  # blank lines are no request
    assert (answer.count(b"HTTP/1.1 200 "), answer.count(b"HTTP/1.1 408 ")) == (1, 1)


async def test_a_body_that_trickles_is_not_waited_for(stage: Stage) -> None:
    token = (await stage.join())["token"]
    for path, bearer in (("/api/v1/events", token), ("/api/v1/join", "")):
        head = make_head(path, token=bearer, length=10_000)
        answer, _ = await trickle(find_port(stage), head, b" ", 0.1, 30)
        assert answer.startswith(b"HTTP/1.1 408 "), path
        assert b"NB-1176" in answer
    assert (await stage.post(token, make_run())).status_code == 202


async def test_a_kept_connection_and_a_long_poll_last_longer_than_a_request_may_take(stage: Stage) -> None:
    student = await stage.join()
    limits = httpx2.Limits(max_connections=1, max_keepalive_connections=1)
    async with httpx2.AsyncClient(base_url=stage.url, limits=limits, timeout=20) as http:
        async with open_socket(find_port(stage)) as (reader, writer):
            whole = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
            for _ in range(2):
                writer.write(whole)
                assert b"HTTP/1.1 200 " in await asyncio.wait_for(reader.readuntil(b"}"), 5)
                await asyncio.sleep(2.5)
            writer.write(whole)
            assert b"200" in await asyncio.wait_for(reader.read(1_000), 5)
        headers = {"Authorization": f"Bearer {student['token']}"}
        inbox = await http.get("/api/v1/me/inbox?after=99&wait_s=4", headers=headers)
        assert inbox.status_code == 200


async def test_a_body_without_end_is_hung_up_on(stage: Stage) -> None:
    token = (await stage.join())["token"]
    for bearer, status in ((token, b"413"), ("nbp_student_none", b"401")):
        head = make_head("/api/v1/events", token=bearer, length=10**12)
        async with asyncio.timeout(40):
            answer, _ = await send_endless_body(find_port(stage), head, 10**12)
        assert not answer or answer.startswith(b"HTTP/1.1 " + status)
    chunked = make_head("/api/v1/events", token=token, **{"Transfer-Encoding": "chunked"})
    answer, _ = await trickle(find_port(stage), chunked, b"10000\r\n" + bytes(65_536) + b"\r\n", 0.0, 30)
    assert not answer or answer.startswith(b"HTTP/1.1 413")
    assert (await stage.post(token, make_run())).status_code == 202


async def test_a_head_without_end_is_refused(stage: Stage) -> None:
    before = count_closed("head")
    begin = b"GET / HTTP/1.1\r\nHost: x\r\nX-A: "
    answer, _ = await trickle(find_port(stage), begin, b"a" * 20_000, 0.01, 20)
    assert not answer or answer.startswith(b"HTTP/1.1 431 ")
    assert count_closed("head") == before + 1


async def test_whoever_asks_at_once_is_served_whatever_idlers_hold_open(
    small: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "HEAD_S", 600.0)
    token = (await small.join())["token"]
    before = count_closed("crowded")
    idlers = Idlers(find_port(small))
    try:
        await idlers.open(40, b"GET / HTTP/1.1\r\nX-Begun: ")
        for _ in range(5):
            async with httpx2.AsyncClient(base_url=small.url, timeout=5) as http:
                answer = await http.get("/api/v1/me", headers={"Authorization": f"Bearer {token}"})
                assert answer.status_code == 200
        await until(lambda: idlers.count_open() <= 10)
        assert count_closed("crowded") >= before + 30
    finally:
        await idlers.close()


async def test_when_every_place_is_taken_one_is_told_so_and_places_come_free(
    stage_database: str, embedded_valkey: str
) -> None:
    before = count_closed("full")
    async with open_stage(stage_database, embedded_valkey, waiting=Waiting(most_open=40)) as stage:
        students = [(await stage.join(f"student {number}"))["token"] for number in range(50)]

        async def wait_for_news(token: str, http: httpx2.AsyncClient) -> int:
            headers = {"Authorization": f"Bearer {token}"}
            return int((await http.get("/api/v1/me/inbox?after=99&wait_s=5", headers=headers)).status_code)

        many = httpx2.Limits(max_connections=100)
        async with httpx2.AsyncClient(base_url=stage.url, limits=many, timeout=30) as http:
            polls = [asyncio.create_task(wait_for_news(token, http)) for token in students]
            await until(lambda: count_closed("full") > before)
            async with open_socket(find_port(stage)) as (reader, writer):
                writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
                refused = await reader.read()
            statuses = await asyncio.gather(*polls)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"NB-2020" in refused
        assert b"retry-after: " in refused.lower()
        assert (statuses.count(200) > 30, set(statuses)) == (True, {200, 503})
        assert (await stage.post(students[0], make_run())).status_code == 202


async def test_a_websocket_is_not_taken_for_a_request_that_never_ends(stage: Stage) -> None:
    token = (await stage.join())["token"]
    await stage.post(token, make_run())
    await stage.work()
    async with stage.watch(await stage.snapshot()) as board:
        await asyncio.sleep(3.5)  # the head's, the body's time and a look for who is late
        await stage.post(token, make_run(0, "error"))
        await stage.work()
        async with asyncio.timeout(5):
            while '"c"' not in await board.recv():
                pass


def test_the_soft_limit_of_open_files_is_raised_to_what_the_system_allows() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        most = serving.raise_descriptor_limit()
        assert most == resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256
        with socket.socket():
            assert serving.raise_descriptor_limit() == most
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
