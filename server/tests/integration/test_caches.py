"""The specification's caches: what is in them, that they expire, and that losing them loses nothing."""

import asyncio
import json
import time
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest

from nbpulse.records.views import ClassReader
from stage import Stage, make_run
from stores import create_database, open_stores
from working import until, work


async def ask(stage: Stage, path: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    answer = await stage.http.get(f"/api/v1{path}", headers=headers or stage.staff)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def find_notebook(stage: Stage) -> str:
    found: str = (await stage.snapshot())["notebook"]["id"]
    return found


async def test_a_students_session_is_cached_for_an_hour_and_made_anew_when_lost(stage: Stage) -> None:
    joined = await stage.join()
    redis, key = stage.parts.cache._redis, f"session:{joined['user_id']}"
    headers = {"Authorization": f"Bearer {joined['token']}"}
    assert await ask(stage, "/me/session", headers) == {"current_notebook": None, "last_activity": None}
    run = make_run()
    await stage.post(joined["token"], run)
    await stage.work()
    cached = json.loads(await redis.get(key))
    assert cached["current_notebook"] == await find_notebook(stage)
    occurred = datetime.fromisoformat(run["occurred_at"])
    assert abs((datetime.fromisoformat(cached["last_activity"]) - occurred).total_seconds()) < 0.002
    assert 3_590 < await redis.ttl(key) <= 3_600
    await redis.flushall()
    assert await ask(stage, "/me/session", headers) == cached
    assert 3_590 < await redis.ttl(key) <= 3_600
    await redis.set(key, b'{"current_notebook": "from the cache"}')
    assert await ask(stage, "/me/session", headers) == {"current_notebook": "from the cache"}


async def test_the_class_summary_counts_students_and_cells_and_is_renewed_by_the_worker(stage: Stage) -> None:
    tokens = [(await stage.join(f"student {number}"))["token"] for number in range(4)]
    for token in tokens[:3]:
        await stage.post(token, [make_run(cell, "ok" if cell < 2 else "error") for cell in range(4)])
    await stage.work()
    notebook = await find_notebook(stage)
    path, redis = f"/courses/{stage.course.id}/notebooks/{notebook}/summary", stage.parts.cache._redis
    summary = await ask(stage, path)
    wanted = {"total_students": 4, "started_students": 3, "active_students": 3, "total_cells": 4, "avg_progress": 0.375}
    assert summary == wanted
    assert 290 < await redis.ttl(f"class_summary:{notebook}") <= 300
    await redis.flushall()
    assert await ask(stage, path) == wanted
    stage._publisher._summaries.clear()  # as after 5 s
    await stage.post(tokens[0], make_run(2))
    await stage.work()
    assert (await ask(stage, path))["avg_progress"] == 0.4375


async def test_a_summary_made_between_two_batches_is_not_kept_when_the_class_falls_silent(stage: Stage) -> None:
    token = (await stage.join())["token"]
    await stage.post(token, make_run(0, "error"))
    await stage.work()
    notebook = await find_notebook(stage)
    path, redis = f"/courses/{stage.course.id}/notebooks/{notebook}/summary", stage.parts.cache._redis
    assert (await ask(stage, path))["avg_progress"] == 0
    # Within 5 s of the first, so it is not thrown away a second time; but it ends soon, and by itself.
    await stage.post(token, make_run(0, "ok"))
    await stage.work()
    assert 0 < await redis.ttl(f"class_summary:{notebook}") <= 5
    await redis.pexpire(f"class_summary:{notebook}", 1)
    await asyncio.sleep(0.01)
    assert (await ask(stage, path))["avg_progress"] == 1


async def test_the_boards_of_a_killed_api_leave_the_list_and_others_stay(
    stage: Stage, embedded_postgres: str, embedded_valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbpulse.worker.SWEEP_S", 0.05)
    redis = stage.parts.cache._redis
    async with stage.watch() as socket:
        await socket.recv()
        alive = set(await redis.hkeys("websocket_connections"))
        # As a process left it that was killed 41 s ago: nobody renews it any more.
        dead = json.dumps({"user_id": str(uuid4()), "last_activity": time.time() - 41})
        await redis.hset("websocket_connections", "of-a-killed-api", dead)
        database_url = await create_database(embedded_postgres)
        async with open_stores(database_url, embedded_valkey) as stores, work(stores):

            async def is_swept() -> bool:
                return set(await redis.hkeys("websocket_connections")) == alive

            await until(is_swept, 5)
        assert len(alive) == 1


async def test_of_many_who_miss_at_once_one_asks_the_database(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    token = (await stage.join())["token"]
    await stage.post(token, make_run())
    await stage.work()
    notebook, asked = await find_notebook(stage), 0
    summarise = ClassReader.summarise_class

    async def count(self: ClassReader, *keys: Any) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.1)
        return await summarise(self, *keys)

    monkeypatch.setattr(ClassReader, "summarise_class", count)
    monkeypatch.setattr("nbpulse.cache._DEADLINE_S", 20.0)  # a machine that stands still is another test's matter
    monkeypatch.setattr("nbpulse.cache._MAKING_S", 20.0)
    path = f"/courses/{stage.course.id}/notebooks/{notebook}/summary"
    answers = await asyncio.gather(*(ask(stage, path) for _ in range(20)))
    assert asked == 1
    assert all(answer == answers[0] for answer in answers)


async def test_a_notebook_of_another_course_is_not_there(stage: Stage) -> None:
    for notebook in (uuid4(), "no-id"):
        answer = await stage.http.get(
            f"/api/v1/courses/{stage.course.id}/notebooks/{notebook}/summary", headers=stage.staff
        )
        assert answer.status_code == 404
