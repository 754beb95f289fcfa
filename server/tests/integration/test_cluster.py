"""A class whose Redis is a cluster: everything that a teacher and a student do, servers that die, slots that move."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection

from clusters import ValkeyCluster, ask, run_cluster, until
from nbpulse.connections import open_redis
from nbpulse.errors import StartupError
from nbpulse.stream import STREAM_KEYS, EventStream
from nbpulse.stream.copying import StreamCopy
from nbpulse.stream.erasing import StreamErasure
from stage import Stage, make_run, open_stage
from stores import make_event


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    """One of this file's own: its servers are killed."""
    with run_cluster() as running:
        yield running


@pytest.fixture
async def class_on_cluster(stage_database: str, cluster: ValkeyCluster) -> AsyncIterator[Stage]:
    """A class, its teacher, and an API whose Redis is the cluster."""
    async with open_stage(stage_database, cluster.url) as stage:
        yield stage


@pytest.fixture(autouse=True)
def no_look_at_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boards live by the wire alone here: what it lost would not be found every 2 s."""
    monkeypatch.setattr("nbpulse.hub.RECONCILE_S", 600.0)


async def raise_hand(stage: Stage, student: dict[str, Any], board: ClientConnection, words: str) -> None:
    """The student asks for help with these words, and the board shows it."""
    request = make_run(event_type="help_request", notebook_path=None, data={"message": words})
    assert (await stage.post(student["token"], request)).status_code == 202
    async with asyncio.timeout(60):
        while not await stage.work():  # a server that did not answer in time is read at the next look
            pass
        while words not in str(await board.recv()):
            pass


async def test_runs_reach_the_board_and_the_specifications_caches(
    class_on_cluster: Stage, cluster: ValkeyCluster
) -> None:
    stage = class_on_cluster
    students = [await stage.join(f"student {number}") for number in range(5)]
    await stage.post(students[0]["token"], make_run())
    await stage.work()
    async with stage.watch() as board, open_redis(cluster.url) as redis:
        await redis.exists("x")  # (its subscriber does not ask for the map itself)
        listener = redis.pubsub()
        await listener.subscribe("progress_events")
        await board.recv()
        assert len(await redis.hgetall("websocket_connections")) == 1
        for student in students:
            await stage.post(student["token"], [make_run(cell) for cell in range(3)])
        await stage.work()
        await raise_hand(stage, students[-1], board, "Where is the file?")
        async with asyncio.timeout(30):
            while (message := await listener.get_message(timeout=1)) is None or message["type"] != "message":
                pass
        assert json.loads(message["data"])["event_type"] == "cell_execution"
        await listener.aclose()
        for student in students:
            assert 3_500 < await redis.ttl(f"session:{student['user_id']}") <= 3_600
        notebook = (await stage.snapshot())["notebook"]["id"]
        answer = await stage.http.get(
            f"/api/v1/courses/{stage.course.id}/notebooks/{notebook}/summary", headers=stage.staff
        )
        assert answer.json()["total_students"] == 5
        assert 0 < await redis.ttl(f"class_summary:{notebook}") <= 300
    health: dict[str, Any] = (await stage.http.get("/health")).json()
    assert health["redis"]["status"] == "healthy"
    wrong = {"join_code": "WRONG-CODE", "display_name": "x"}
    assert (await stage.http.post("/api/v1/join", json=wrong)).status_code == 404
    async with open_redis(cluster.url) as redis:
        assert [key async for key in redis.scan_iter(match="nbpulse:guesses*")], "wrong codes are counted here too"


async def test_what_staff_do_is_heard_by_an_inbox_that_waits(class_on_cluster: Stage) -> None:
    stage = class_on_cluster
    student = await stage.join()
    before = await stage.read_inbox(student)
    waiting = asyncio.create_task(stage.read_inbox(student, after=before["after"], wait_s=30))
    await asyncio.sleep(0.2)  # it waits by now or it does not: either way the message must reach it
    sent: httpx2.Response = await stage.http.post(
        f"/api/v1/courses/{stage.course.id}/messages",
        json={"id": "6f0c0a52-0000-4000-8000-000000000001", "to": {"all": True}, "text": "Hello"},
        headers=stage.staff,
    )
    assert sent.status_code == 201, sent.text
    heard = await asyncio.wait_for(waiting, 40)
    assert [message["text"] for message in heard["messages"]] == ["Hello"]


async def test_slots_move_while_students_work_and_nobody_notices(
    class_on_cluster: Stage, cluster: ValkeyCluster
) -> None:
    stage = class_on_cluster
    students = [await stage.join(f"student {number}") for number in range(6)]
    keys = STREAM_KEYS["events"][::8]
    posted, is_over = 0, False

    async def study(student: dict[str, Any]) -> None:
        nonlocal posted
        while not is_over:
            answer = await stage.post(student["token"], [make_run(cell) for cell in range(2)])
            assert answer.status_code == 202, answer.text
            assert {result["status"] for result in answer.json()["results"]} == {"accepted"}
            posted += 2
            await asyncio.sleep(0.1)

    async with stage.watch() as board:
        await board.recv()
        studying = [asyncio.create_task(study(student)) for student in students]
        for key in [*keys, f"nbpulse:live:{stage.course.id}".encode()]:
            primaries = await cluster.find_primaries()
            owner = await cluster.find_owner(key)
            target = next(one for one in primaries if one is not owner)
            await cluster.move_slot(key, target, pause_s=0.02)
            assert await cluster.find_owner(key) is target
        is_over = True
        await asyncio.gather(*studying)
        assert await stage.work() == posted
        await raise_hand(stage, students[0], board, "And now?")


async def test_streams_are_copied_and_erased_from_all_servers(cluster: ValkeyCluster) -> None:
    async with open_redis(cluster.url) as redis:
        await redis.flushall()
        stream, copy, erasure = EventStream(redis), StreamCopy(redis), StreamErasure(redis)
        await stream.ensure_groups()
        course_id = uuid4()
        first = make_event(uuid4(), course_id)
        others = [make_event(uuid4(), course_id) for _ in range(100)]
        await stream.append([first, *others])
        assert await copy.count() == 101
        entries = [entry async for batch in copy.read() for entry in batch]
        assert len({entry.place for entry in entries}) == 101
        found = await erasure.find([str(first.user_id).encode()])
        assert [(one.is_waiting, one.is_pending) for one in found] == [(True, False)]
        await erasure.take(found)
        await erasure.remove(found)
        assert await copy.count() == 100
        await erasure.rewrite_files()

        async def is_rewritten() -> bool:
            return not await erasure.is_rewriting()

        await until(is_rewritten)
        await redis.flushall()
        assert await copy.find_present({entry.place for entry in entries}) == set()
        await copy.write(entries)
        assert await copy.find_present({entry.place for entry in entries}) == {entry.place for entry in entries}
        await copy.rewind()
        for one in (stream, copy, erasure):
            await one.close()


async def test_a_wrong_address_says_what_is_wrong(cluster: ValkeyCluster) -> None:
    for url in ("redis+cluster://", "redis+cluster://:secret@", "redis+cluster://a:x,b:1"):
        with pytest.raises(StartupError, match="NB-3100"):
            async with open_redis(url):
                pass
    primary = (await cluster.find_primaries())[0]
    async with open_redis(primary.url) as redis:
        stream = EventStream(redis)
        with pytest.raises(StartupError, match="NB-3101"):
            await stream.read_promise()
        await stream.close()


async def test_the_promise_is_that_of_the_weakest_server(cluster: ValkeyCluster) -> None:
    weak = (await cluster.find_primaries())[1]
    async with open_redis(cluster.url) as redis:
        stream = EventStream(redis)
        try:
            assert await stream.read_promise() == "failover"
            await ask(weak, "CONFIG", "SET", "min-replicas-to-write", 0)
            assert await stream.read_promise() == "power"
            await ask(weak, "CONFIG", "SET", "appendfsync", "everysec")
            assert await stream.read_promise() == "process"
        finally:
            await ask(weak, "CONFIG", "SET", "appendfsync", "always")
            await ask(weak, "CONFIG", "SET", "min-replicas-to-write", 1)
            await stream.close()
