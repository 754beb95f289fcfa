"""A class whose Redis is a cluster: everything that a teacher and a student do, servers that die, slots that move."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import msgspec
import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from websockets.asyncio.client import ClientConnection

from clusters import ValkeyCluster, ask, kill, run_cluster, until
from machines import drain, fingerprint, make_machine, make_successor, read_streams, run_nbpulse, teach
from nbpulse.cluster import Cluster
from nbpulse.connections import open_redis
from nbpulse.errors import StartupError, Unavailable
from nbpulse.hub.sharded import ShardedSubscriber
from nbpulse.migrations.runner import with_login
from nbpulse.parts import open_patiently
from nbpulse.shards import SHARD_COUNT, get_shard_number
from nbpulse.stream import STREAM_KEYS, EventStream
from nbpulse.stream.copying import StreamCopy
from nbpulse.stream.erasing import StreamErasure
from nbpulse.stream.leases import BEAT_S, LEASE_S, Leases, name_lease
from stage import Stage, make_run, open_stage
from stores import WORKER_PASSWORD, connect, count_rows, create_database, make_class, make_event, make_settings
from working import work


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
        while words not in (message := str(await board.recv())):
            if json.loads(message)["t"] == "resync":  # the class has gone on to its first notebook: as a browser does
                snapshot = await stage.snapshot()
                if words in json.dumps(snapshot, ensure_ascii=False):
                    return
                resume = {"t": "resume", "epoch": snapshot["epoch"], "after_seq": snapshot["seq"]}
                await board.send(json.dumps(resume))


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


@pytest.mark.timeout(600)
async def test_backup_restore_erasing_and_doctor_work_on_a_cluster(
    cluster: ValkeyCluster, server_18: str, tmp_path: Path
) -> None:
    async with open_redis(cluster.url) as redis:
        await redis.flushall()
        old = await make_machine(server_18, cluster.url, tmp_path / "old")
        lesson = await teach(old)
        before, streams = await fingerprint(old.database_url), await read_streams(cluster.url)
        code, said = old.run("backup", tmp_path / "b.zip")
        assert code == 0, said
        await redis.xadd(STREAM_KEYS["help"][17], {b"e": b"came later"})
        new = await make_successor(server_18, cluster.url, old, tmp_path / "new")
        code, said = new.run("restore", tmp_path / "b.zip")
        assert (code, "NB-3074" in said) == (1, True), "the cluster is not empty"
        await redis.flushall()
    code, said = new.run("restore", tmp_path / "b.zip")
    assert code == 0, said
    assert await fingerprint(new.database_url) == before
    assert await read_streams(cluster.url) == streams
    async with connect(new.database_url) as owner:
        user_id, name = await owner.fetchrow(
            "SELECT id::text, username FROM users JOIN events ON user_id = id WHERE event_id = $1", lesson.stored[1]
        )
    assert user_id in str(streams), "what waits is theirs"
    code, said = new.run("erase-user", name, "--yes", name)
    assert code == 0, said
    assert user_id not in str(await read_streams(cluster.url))
    await drain(new)
    assert await count_rows(new.database_url, "events") == [len(lesson.stored) - 2]
    code, said = new.run("compact")
    assert code == 0, said
    code, answered, _ = run_nbpulse(
        "doctor",
        "--json",
        data_dir=new.data_dir,
        NBPULSE_DATABASE_URL=new.database_url,
        NBPULSE_REDIS_URL=cluster.url,
        NBPULSE_PROMISE="failover",
        NBPULSE_LANGUAGE="en",
    )
    found = [check["found"] for check in json.loads(answered)["checks"] if check["name"] == "cluster"]
    assert sorted(one.partition(": ")[2] for one in found) == ["primary, 1 replicas follow"] * 3 + ["replica"] * 3


async def test_health_tells_of_a_server_that_is_away_and_the_others_are_ready(
    class_on_cluster: Stage, cluster: ValkeyCluster
) -> None:
    async def ask_health() -> dict[str, Any]:
        found: dict[str, Any] = (await class_on_cluster.http.get("/health")).json()["redis"]
        return found

    told = await ask_health()
    assert [one["role"] for one in told["servers"]] == ["primary"] * 3 + ["replica"] * 3
    assert "127.0.0.1" not in str(told), "addresses are nobody's to know"
    primary = (await cluster.find_primaries())[0]
    replica = await cluster.find_replica(primary)
    for server in (primary, replica):
        os.kill(server.pid, signal.SIGSTOP)
    try:

        async def is_told() -> bool:
            ready = await class_on_cluster.http.get("/health/ready")
            return (await ask_health()).get("error") == "NB-2031" and ready.status_code == 200

        await until(is_told)
    finally:
        for server in (replica, primary):
            os.kill(server.pid, signal.SIGCONT)
    await until(cluster.is_whole)


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


@pytest.mark.parametrize("is_one_server", [False, True])
def test_a_write_to_what_was_just_reset_is_a_loss_on_the_faster_loop_too(
    cluster: ValkeyCluster, embedded_valkey: str, is_one_server: bool
) -> None:
    """uvloop has an error of its own for it, which had ended an API process."""

    async def write_into_the_void() -> None:
        async with open_redis(embedded_valkey if is_one_server else cluster.url) as redis:
            await redis.ping()
            if isinstance(redis, Cluster):
                connection: Any = redis.make_connection(redis.get_primaries()[0])
            else:
                connection = redis.connection_pool.make_connection()
            await connection.connect()
            connection._writer.transport.abort()
            with pytest.raises(RedisConnectionError):
                await connection.send_command("PING")
            assert not connection.is_connected

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(write_into_the_void())


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


async def test_a_server_that_is_away_stops_no_worker_at_the_others(cluster: ValkeyCluster) -> None:
    """It is the one that notes who lives, with its replica, so that nobody takes over meanwhile."""
    async with open_redis(cluster.url) as redis, AsyncExitStack() as stack:
        await redis.flushall()
        team: dict[str, Leases] = {}

        def add(name: str) -> Leases:
            team[name] = Leases(redis, name)
            stack.push_async_callback(team[name].close)
            return team[name]

        async def renew() -> dict[str, set[int]]:
            for end in await asyncio.gather(*(one.renew() for one in team.values()), return_exceptions=True):
                assert end is None or isinstance(end, Unavailable), end
            reading = {name: set(one.reading) for name, one in team.items()}
            assert len(set().union(*reading.values())) == sum(map(len, reading.values())), "two read one shard"
            return reading

        async def reads(wanted: set[int], most: int) -> bool:
            reading = await renew()
            counts = [len(some) for some in reading.values()]
            return set().union(*reading.values()) >= wanted and max(counts) - min(counts) <= most

        _, second = add("first"), add("second")
        await until(lambda: reads(set(range(SHARD_COUNT)), 0))
        primary = await cluster.find_owner(b"nbpulse:workers")
        replica = await cluster.find_replica(primary)
        served = {shard for shard in range(SHARD_COUNT) if await cluster.find_owner(name_lease(shard)) is not primary}
        # However slots have moved in tests before: more than one of two workers' share, so that who comes gets some.
        assert SHARD_COUNT // 2 < len(served) < SHARD_COUNT
        for server in (primary, replica):
            os.kill(server.pid, signal.SIGSTOP)
        try:
            silent_at = time.monotonic()
            while time.monotonic() - silent_at < 2 * LEASE_S:  # what was held by the last beats before has lapsed
                await renew()
                await asyncio.sleep(BEAT_S)
            await until(lambda: reads(served, SHARD_COUNT))
            del team["second"]
            await until(lambda: reads(served, SHARD_COUNT))
            assert not second.reading
            third = add("third")

            async def has_third_some() -> bool:
                return await reads(served, SHARD_COUNT) and bool(third.reading)

            await until(has_third_some)
            assert set(third.reading) <= served
        finally:
            for server in (replica, primary):
                os.kill(server.pid, signal.SIGCONT)
        await until(lambda: reads(set(range(SHARD_COUNT)), 1))
        await until(cluster.is_whole)


async def test_api_and_worker_start_while_a_server_and_its_replica_are_away(
    embedded_postgres: str, cluster: ValkeyCluster
) -> None:
    database = await create_database(embedded_postgres)
    async with open_redis(cluster.url) as redis:
        await redis.flushall()
        stream = EventStream(redis)
        await stream.ensure_groups()
        await stream.close()
    primary = await cluster.find_owner(b"06S")  # of slot 0: the first that a client asks
    replica = await cluster.find_replica(primary)
    served = {shard for shard, key in enumerate(STREAM_KEYS["events"]) if await cluster.find_owner(key) is not primary}
    course_id, students = await make_class(database, 24)
    own, beside = ([one for one in students if (get_shard_number(one) in served) == is_there] for is_there in (0, 1))
    settings = msgspec.structs.replace(
        make_settings(database, cluster.url),
        promise="failover",
        api_database_url=with_login(database, "nbpulse_api", WORKER_PASSWORD),
    )

    async def are_stored(users: list[UUID]) -> bool:
        async with connect(database) as owner:
            query = "SELECT count(DISTINCT user_id) FROM events WHERE course_id = $1 AND user_id = ANY($2)"
            return bool(await owner.fetchval(query, course_id, users) == len(users))

    for server in (primary, replica):
        kill(server)
    try:
        async with (
            open_patiently(settings, "nbpulse_api", 4) as api,
            open_patiently(settings, "nbpulse_worker", 4) as resources,
            work(resources),
        ):
            assert api.promise == "failover"
            with pytest.raises(Unavailable):
                await api.stream.append([make_event(own[0], course_id)])
            await api.stream.append([make_event(one, course_id) for one in beside])
            await until(lambda: are_stored(beside))
            for server in (replica, primary):
                server.launch()
            await until(cluster.is_whole)

            async def is_taken() -> bool:
                with suppress(Unavailable):
                    await api.stream.append([make_event(one, course_id) for one in own])
                    return True
                return False

            await until(is_taken)
            await until(lambda: are_stored(own))
    finally:
        for server in (primary, replica):
            if server.poll() is not None:
                server.launch()
        await until(cluster.is_whole)


async def test_a_silent_server_costs_the_news_of_its_own_channels_alone(cluster: ValkeyCluster) -> None:
    async with open_redis(cluster.url) as redis:
        await redis.exists("x")
        assert isinstance(redis, Cluster)
        primaries = await cluster.find_primaries()
        names = [f"nbpulse:live:{number}" for number in range(40)]
        owners = {name: await cluster.find_owner(name.encode()) for name in names}
        own = next(name for name in names if owners[name] is primaries[0])
        other = next(name for name in names if owners[name] is not primaries[0])
        heard: list[tuple[str, str]] = []
        async with ShardedSubscriber(redis) as subscriber:

            async def hears(kind: str, channel: str, word: str | None = None) -> None:
                async with asyncio.timeout(60):
                    while (kind, channel) not in heard:
                        if word is not None:
                            with suppress(RedisError):
                                await redis.spublish(channel, word)
                        message = await subscriber.get_message(timeout=0.2)
                        if message is not None:
                            heard.append((message["type"], message["channel"].decode()))
                heard.clear()

            await subscriber.ssubscribe(own, other)
            await hears("ssubscribe", own)
            await hears("smessage", own, "before")
            os.kill(primaries[0].pid, signal.SIGSTOP)  # its connections stay open
            try:
                await hears("smessage", other, "meanwhile")
                await hears("sunsubscribe", own)
                await hears("smessage", own, "from its replica")
            finally:
                os.kill(primaries[0].pid, signal.SIGCONT)
            await until(cluster.is_whole)
            await hears("smessage", own, "after")
            await hears("smessage", other, "after")
