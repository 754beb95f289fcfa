"""Guessing codes: how often one may be wrong, who else is touched, and that several processes count together."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx2
import pytest
from redis.asyncio import Redis

from nbpulse.embedded import EmbeddedValkey
from nbpulse.errors import AccessDenied, TooMuch, Unavailable
from nbpulse.guesses import Guesses
from servers import make_data_dir
from stage import Stage
from working import until


@pytest.fixture
async def redis(embedded_valkey: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(embedded_valkey) as client:
        await client.flushall()
        yield client


async def guess(guesses: Guesses, address: str, account: str | None = None, *, is_right: bool = False) -> str:
    """What came of one try."""
    try:
        async with guesses.guarding(address, account):
            await asyncio.sleep(0.001)
            if not is_right:
                raise AccessDenied("NB-1105")
    except (AccessDenied, TooMuch) as error:
        return error.code
    return "right"


async def test_so_many_wrong_ones_and_then_nothing_is_looked_at_not_even_what_is_right(redis: Redis) -> None:
    guesses = Guesses(redis, of_address=10, of_account=3)
    assert [await guess(guesses, "a") for _ in range(11)] == ["NB-1105"] * 10 + ["NB-1180"]
    assert await guess(guesses, "a", is_right=True) == "NB-1180"
    assert await guess(guesses, "b", is_right=True) == "right"
    with pytest.raises(TooMuch) as refused:
        async with guesses.guarding("a"):
            pass
    assert (refused.value.limit, refused.value.window_s) == (10, 600)
    assert 590 < refused.value.retry_after_s <= 600


async def test_what_is_right_costs_nothing(redis: Redis) -> None:
    guesses = Guesses(redis, of_address=10, of_account=3)
    found = await asyncio.gather(*(guess(guesses, "school", is_right=True) for _ in range(200)))
    assert set(found) == {"right"}
    assert await guess(guesses, "school") == "NB-1105"


async def test_many_guesses_at_once_and_at_several_processes_are_counted_as_if_one_after_the_other(
    redis: Redis, embedded_valkey: str
) -> None:
    async with Redis.from_url(embedded_valkey) as second:
        processes = [Guesses(client, of_address=20, of_account=3) for client in (redis, second)]
        found = await asyncio.gather(*(guess(processes[number % 2], "a") for number in range(300)))
    looked_at = found.count("NB-1105")
    assert 20 <= looked_at <= 20 + 2 * 4  # at most four at once in each process were on their way
    assert found.count("NB-1180") == 300 - looked_at


async def test_one_account_is_guessed_at_no_further_from_one_address_nor_from_all(redis: Redis) -> None:
    guesses = Guesses(redis, of_address=1_000, of_account=3)
    assert [await guess(guesses, "a", "teacher") for _ in range(4)] == ["NB-1105"] * 3 + ["NB-1181"]
    assert await guess(guesses, "a", "another", is_right=True) == "right"
    assert await guess(guesses, "home", "teacher", is_right=True) == "right"  # who is elsewhere is not locked out
    wrong = [await guess(guesses, f"bot {number}", "teacher") for number in range(100)]
    assert wrong.count("NB-1105") == 97
    assert await guess(guesses, "home", "teacher", is_right=True) == "NB-1181"


async def test_no_name_of_an_account_stands_in_the_cache(redis: Redis) -> None:
    await guess(Guesses(redis, of_address=10, of_account=3), "a", "canary-name")
    keys = b" ".join([key async for key in redis.scan_iter()])
    assert b"nbpulse:guesses" in keys
    assert b"canary" not in keys
    assert all([await redis.ttl(key) > 0 async for key in redis.scan_iter()])


async def test_without_the_cache_nobody_guesses() -> None:
    with make_data_dir() as directory:
        server = EmbeddedValkey(Path(directory))
        server.start()
        async with Redis.from_url(server.url) as client:
            guesses = Guesses(client, of_address=10, of_account=3)
            assert await guess(guesses, "a") == "NB-1105"
            server.stop()
            started = time.monotonic()
            with pytest.raises(Unavailable):
                await guess(guesses, "a", is_right=True)
            assert time.monotonic() - started < 10


async def test_join_codes_resume_codes_links_and_notices_are_guarded(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    guesses = stage.parts.guesses
    monkeypatch.setattr(guesses, "_of_address", 12)
    monkeypatch.setattr(guesses, "_of_account", 2)
    known = await stage.join("known", student_number="S-1")

    async def resume(code: str) -> httpx2.Response:
        wanted = {"join_code": stage.course.join_code, "display_name": "x", "student_number": "S-1"}
        return await stage.http.post("/api/v1/join", json={**wanted, "resume_code": code})

    answers = [await resume("AAAA-BBBB-CCCC") for _ in range(3)]
    assert [answer.json()["code"] for answer in answers] == ["NB-1106", "NB-1106", "NB-1181"]
    assert answers[-1].headers["ratelimit-policy"] == '"account_guesses";q=2;w=600'
    assert (await resume(known["resume_code"])).status_code == 429
    for number in range(3):
        body = {"join_code": f"ZZZZZ{number}", "display_name": "x"}
        assert (await stage.http.post("/api/v1/join", json=body)).status_code == 404
        assert (await stage.http.get(f"/api/v1/join/notice?code=ZZZZZ{number}")).status_code == 404
        assert (await stage.http.post("/api/v1/sign-in", json={"code": f"nbp_link_{number}"})).status_code == 401
    assert (await stage.http.post("/api/v1/join", json={"join_code": "ZZZZZZ", "display_name": "x"})).status_code == 404
    answer = await stage.http.get(
        f"/api/v1/join/notice?code={stage.course.join_code}", headers={"Accept-Language": "ja"}
    )
    assert (answer.status_code, answer.json()["code"]) == (429, "NB-1180")
    assert "127.0.0.1" in answer.json()["title"]
    assert (await stage.post(known["token"], [])).status_code == 422  # who is known goes on


async def test_passwords_are_guessed_at_only_so_often_and_a_link_lets_in_meanwhile(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.parts.guesses, "_of_account", 2)

    async def sign_in(name: str) -> str:
        body = {"name": name, "password": "not the right one at all"}
        answer = await stage.http.post("/api/v1/sign-in/password", json=body, headers={"Origin": stage.url})
        return str(answer.json()["code"])

    tried = [await sign_in(name) for name in ("tanaka", "tanaka ", " tanaka", "suzuki")]
    assert tried == ["NB-1120", "NB-1120", "NB-1181", "NB-1120"]
    code = await stage.people.create_link(stage.teacher_id)
    link = await stage.http.post("/api/v1/sign-in", json={"code": code}, headers={"Origin": stage.url})
    assert link.status_code == 200


async def test_a_throttled_guess_is_in_the_audit_log(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage.parts.guesses, "_of_address", 1)
    for _ in range(3):
        await stage.http.post("/api/v1/join", json={"join_code": "ZZZZZZ", "display_name": "x"})
    connection = await asyncpg.connect(stage.database_url)
    try:
        noted = "SELECT count(*) FROM audit_log WHERE action = 'access_refused' AND facts->>'code' = 'NB-1180'"
        await until(lambda: connection.fetchval(noted), 20)
    finally:
        await connection.close()
