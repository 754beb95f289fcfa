"""Limits on how fast one may ask: who meets which, what they are told, and whom it does not touch."""

import asyncio
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import uvicorn.config
from redis.asyncio import Redis
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from nbpulse.allowances import Limits
from nbpulse.metrics import limited_requests
from nbpulse_capture.membership import MembershipFile
from nbpulse_capture.outbox import Outbox
from nbpulse_capture.sender import Sender
from stage import Stage, make_run, open_stage

TOO_FEW = Limits(student_events=60, course_events=150, token_requests=60, address_requests=200, address_refusals=10)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def count_limited(limit: Any) -> float:
    return float(limited_requests.labels(limit)._value.get())


@pytest.fixture
async def stores(stage_database: str, embedded_valkey: str) -> tuple[str, str]:
    async with Redis.from_url(embedded_valkey) as redis:
        await redis.flushall()
    return stage_database, embedded_valkey


async def test_a_student_who_floods_is_told_when_to_come_again_and_another_is_not_touched(
    stores: tuple[str, str],
) -> None:
    before = count_limited("student_events")
    async with open_stage(*stores, limits=TOO_FEW) as stage:
        loud, quiet = await stage.join("loud"), await stage.join("quiet")
        again = await stage.join("loud", resume_code=loud["resume_code"])
        assert (await stage.post(loud["token"], [make_run(cell) for cell in range(60)])).status_code == 202
        for token in (loud["token"], again["token"]):  # another token of theirs makes nobody else of them
            answer = await stage.post(token, make_run(61), headers={"Accept-Language": "ja"})
            said = answer.json()
            assert (answer.status_code, said["code"], said["policy"]) == (429, "NB-1170", "student_events")
            assert (said["limit"], loud["user_id"] in said["title"], "60 件" in said["title"]) == (60, True, True)
            assert 1 <= int(answer.headers["retry-after"]) <= 4
            assert answer.headers["ratelimit-policy"] == '"student_events";q=60;w=60'
            assert answer.headers["ratelimit"] in ('"student_events";r=0;t=1', '"student_events";r=0;t=2')
        assert (await stage.post(quiet["token"], make_run())).status_code == 202
        assert count_limited("student_events") == before + 2
        assert 'nbpulse_limited_requests_total{limit="student_events"}' in (await stage.http.get("/metrics")).text
        await asyncio.sleep(1.1)
        assert (await stage.post(loud["token"], make_run(62))).status_code == 202


async def test_a_delivery_larger_than_a_minutes_worth_is_let_pass_whole(stores: tuple[str, str]) -> None:
    async with open_stage(*stores, limits=TOO_FEW) as stage:
        token = (await stage.join())["token"]
        runs = [make_run(cell) for cell in range(100)]
        assert (await stage.post(token, runs)).status_code == 202
        answer = await stage.post(token, runs)
        assert (answer.status_code, answer.json()["code"]) == (429, "NB-1170")
        assert int(answer.headers["retry-after"]) <= 62


async def test_a_course_meets_its_limit_and_another_course_does_not(stores: tuple[str, str]) -> None:
    async with open_stage(*stores, limits=TOO_FEW) as stage:
        runs = [make_run(cell) for cell in range(50)]
        for number in range(3):
            assert (await stage.post((await stage.join(f"student {number}"))["token"], runs)).status_code == 202
        answer = await stage.post((await stage.join("one more"))["token"], runs)
        assert (answer.status_code, answer.json()["code"]) == (429, "NB-1171")
        assert str(stage.course.id) in answer.json()["title"]
        other = await stage.courses.ensure_course("Another", f"o{uuid4().hex[:8]}")
        body = {"join_code": other.join_code, "display_name": "elsewhere"}
        elsewhere = (await stage.http.post("/api/v1/join", json=body)).json()
        assert (await stage.post(elsewhere["token"], runs)).status_code == 202


async def test_a_token_that_asks_too_often_is_refused_and_deliveries_do_not_count(stores: tuple[str, str]) -> None:
    async with open_stage(*stores, limits=TOO_FEW) as stage:
        token = (await stage.join())["token"]
        for _ in range(60):
            assert (await stage.http.get("/api/v1/me", headers=bearer(token))).status_code == 200
        answer = await stage.http.get("/api/v1/me", headers=bearer(token))
        assert (answer.status_code, answer.json()["code"]) == (429, "NB-1172")
        assert token not in answer.text
        assert (await stage.http.get("/api/v1/me", headers=stage.staff)).status_code == 200
        assert (await stage.post(token, make_run())).status_code == 202


async def test_an_address_meets_its_limit_on_every_route_the_hot_one_too(stores: tuple[str, str]) -> None:
    async with open_stage(*stores, limits=TOO_FEW) as stage:
        token = (await stage.join())["token"]
        for ask in (
            lambda: stage.http.get("/health/live"),
            lambda: stage.http.get("/web/js/main.js"),
            lambda: stage.post(token, make_run()),
        ):
            passed = 0
            while (answer := await ask()).status_code in (200, 202):
                passed += 1
                assert passed < 400
            assert (answer.status_code, answer.json()["code"]) == (429, "NB-1173")
            assert "127.0.0.1" in answer.json()["title"]


async def test_who_guesses_tokens_is_not_looked_up_any_more_and_who_is_known_goes_on(stores: tuple[str, str]) -> None:
    async with open_stage(*stores, limits=TOO_FEW) as stage:
        known, fresh = await stage.join("known"), await stage.join("fresh")
        assert (await stage.post(known["token"], make_run())).status_code == 202
        guesses = [f"nbp_student_{uuid4().hex}_guess" for _ in range(11)]
        answers = [await stage.post(guess, make_run()) for guess in guesses]
        assert [answer.status_code for answer in answers] == [401] * 10 + [429]
        assert answers[-1].json()["code"] == "NB-1174"
        assert (await stage.post(known["token"], make_run())).status_code == 202
        answer = await stage.http.get("/api/v1/me", headers=bearer(fresh["token"]))
        assert answer.status_code == 429  # the price of it: a new one waits six seconds behind that router
        assert int(answer.headers["retry-after"]) <= 8


async def test_a_school_of_200_behind_one_address_runs_all_60_cells(stage: Stage) -> None:
    """With the limits as they come: 24,000 events at once."""
    tokens = [(await stage.join(f"student {number}"))["token"] for number in range(200)]

    async def run_all(token: str) -> list[int]:
        found = []
        for start in range(0, 60, 20):
            runs = [make_run(cell) for cell in range(start, start + 20)]
            starts = [
                run | {"event_type": "cell_execution_start", "event_id": str(uuid4()), "data": {}} for run in runs
            ]
            found.append((await stage.post(token, [*starts, *runs])).status_code)
        return found

    for begin in range(0, 200, 20):
        statuses = await asyncio.gather(*(run_all(token) for token in tokens[begin : begin + 20]))
        assert {status for found in statuses for status in found} == {202}


async def test_the_capture_client_waits_as_it_is_told_and_everything_arrives(
    stores: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_stage(*stores, limits=Limits(student_events=1_200)) as stage:
        joined = await stage.join()
        monkeypatch.setenv("NBPULSE_CAPTURE_CONFIG", str(tmp_path / "membership.json"))
        monkeypatch.setenv("NBPULSE_CAPTURE_URL", stage.url)
        monkeypatch.setenv("NBPULSE_CAPTURE_TOKEN", joined["token"])
        before = count_limited("student_events")
        waiting = await asyncio.to_thread(send_all, tmp_path / "outbox.sqlite3", 1_400)
        assert waiting == 0
        assert count_limited("student_events") > before
        assert await stage.work() == 1_400


def send_all(path: Path, count: int) -> int:
    """So many events through a real outbox and sender; how many still wait after at most a minute."""
    membership = MembershipFile().read()
    assert membership is not None
    outbox, sender = Outbox(path), Sender(path, MembershipFile())
    with outbox.together():
        for number in range(count):
            outbox.put(make_run(number), membership.account)
    sender.start()
    deadline_s = time.monotonic() + 60
    while (waiting := outbox.count_events(membership.account)["waiting"]) and time.monotonic() < deadline_s:
        sender.wake()
        time.sleep(0.1)
    sender.stop(2)
    outbox.close()
    return int(waiting)


async def test_only_a_trusted_proxy_says_for_whom_it_asks() -> None:
    """The library's step, set up as serving.py does: the address that limits count for."""
    seen: list[str] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"][0])

    config = uvicorn.config.Config(note, proxy_headers=True, forwarded_allow_ips="127.0.0.1,::1", log_config=None)
    config.load()
    assert isinstance(config.loaded_app, ProxyHeadersMiddleware)
    for client, forwarded in (
        ("127.0.0.1", b"203.0.113.9"),
        ("198.51.100.7", b"203.0.113.9"),
        ("::1", b"a, 2001:db8::1"),
    ):
        scope: Any = {
            "type": "http",
            "client": (client, 1),
            "scheme": "http",
            "headers": [(b"x-forwarded-for", forwarded)],
        }
        await config.loaded_app(scope, None, None)  # type: ignore[arg-type]
    assert seen == ["203.0.113.9", "198.51.100.7", "2001:db8::1"]
