"""POST /api/v1/events: the table of bad input, and what may be said of an event."""

import asyncio
import gzip
import json
import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from nbpulse.embedded import EmbeddedValkey
from nbpulse.errors import Unavailable
from stage import NOBODY, Stage, make_run, open_stage

NOW = datetime.now(UTC)


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def _with_data(raw: bytes) -> bytes:
    """A run whose data holds one raw JSON value that `json.dumps` would not write."""
    return json.dumps(make_run(data={"status": "ok", "note": "HERE"})).encode().replace(b'"HERE"', raw)


BAD_EVENTS: dict[str, tuple[bytes | dict[str, Any], str, int]] = {
    "NUL in a text": (make_run(data={"status": "ok", "note": "a\x00b"}), "NB-1014", 422),
    "NUL in a field name": (make_run(data={"status": "ok", "a\x00b": 1}), "NB-1014", 422),
    "NUL in the cell id": (make_run(cell_id="a\x00b"), "NB-1014", 422),
    "a lone surrogate": (_with_data(b'"\\ud800"'), "NB-1012", 400),
    "bytes that are no UTF-8": (_with_data(b'"\xff\xfe"'), "NB-1012", 400),
    "NaN": (_with_data(b"NaN"), "NB-1012", 400),
    "Infinity": (_with_data(b"-Infinity"), "NB-1012", 400),
    "a number beyond every float": (_with_data(b"1e999"), "NB-1011", 422),
    "nested 21 levels": (make_run(data={"status": "ok", "note": _deep(21)}), "NB-1013", 422),
    "nested 5,000 levels": (_with_data(b"[" * 5000 + b"]" * 5000), "NB-1013", 422),
    "event_id is a number": (make_run(event_id=7), "NB-1011", 422),
    "event_id is no UUID": (make_run(event_id="seven"), "NB-1011", 422),
    "event_type is unknown": (make_run(event_type="party"), "NB-1020", 422),
    "event_type is missing": ({"occurred_at": NOW.isoformat()}, "NB-1011", 422),
    "occurred_at is missing": ({"event_type": "help_cancel", "event_id": str(uuid4())}, "NB-1015", 422),
    "occurred_at has no time zone": (make_run(occurred_at="2026-11-23T01:02:03"), "NB-1016", 422),
    "occurred_at is no time": (make_run(occurred_at="yesterday"), "NB-1011", 422),
    "a clock two days ahead": (make_run(occurred_at=(NOW + timedelta(days=2)).isoformat()), "NB-1017", 422),
    "a clock before 2000": (make_run(occurred_at="1970-01-01T00:00:00Z"), "NB-1018", 422),
    "notebook_path is missing": (make_run(notebook_path=None), "NB-1015", 422),
    "notebook_path is too long": (make_run(notebook_path="x" * 501), "NB-1011", 422),
    "cell_index is a text": (make_run(cell_index="3"), "NB-1011", 422),
    "cell_index is negative": (make_run(cell_index=-1), "NB-1011", 422),
    "data is a list": (make_run(data=[1]), "NB-1011", 422),
    "has_error is a text": (make_run(data={"has_error": "no"}), "NB-1011", 422),
    "the duration is negative": (make_run(data={"execution_duration_ms": -1}), "NB-1011", 422),
    "an unknown status": (make_run(data={"status": "fine"}), "NB-1011", 422),
    "schema_version is 2": (make_run(schema_version=2), "NB-1019", 422),
    "larger than 32 KB": (make_run(data={"status": "ok", "note": "x" * 33_000}), "NB-1010", 413),
    "another's user_id": (make_run(user_id=str(uuid4())), "NB-1102", 403),
}


@pytest.fixture
async def token(stage: Stage) -> str:
    joined = await stage.join()
    return str(joined["token"])


def encode(event: bytes | dict[str, Any]) -> bytes:
    return event if isinstance(event, bytes) else json.dumps(event).encode()


@pytest.mark.parametrize("name", BAD_EVENTS)
async def test_a_bad_event_is_refused_by_its_code_and_its_neighbour_is_stored(
    stage: Stage, token: str, name: str
) -> None:
    event, code, status = BAD_EVENTS[name]
    alone = await stage.post(token, encode(event))
    problem = alone.json()
    assert (alone.status_code, problem["code"]) == (status, code), problem
    assert alone.headers["content-type"] == "application/problem+json"
    assert problem["title"]
    assert problem["todo"]

    good = make_run()
    batch = await stage.post(token, b"[" + encode(event) + b", " + encode(good) + b"]")
    assert batch.status_code == 202, batch.text
    refused, kept = batch.json()["results"]
    assert (refused["status"], refused["code"]) == ("rejected", code)
    assert refused["reason"]
    assert kept == {"event_id": good["event_id"], "status": "accepted"}

    both = await stage.post(token, b"[" + encode(event) + b"," + encode(event) + b"]")
    assert both.status_code == 422
    assert [result["status"] for result in both.json()["results"]] == ["rejected", "rejected"]
    assert await stage.work() == 1


BAD_BODIES: dict[str, tuple[bytes, dict[str, str], str, int]] = {
    "nothing": (b"", {}, "NB-1001", 400),
    "a text": (b'"hello"', {}, "NB-1001", 400),
    "half an object": (b'{"event_type": ', {}, "NB-1012", 400),
    "half an array": (b"[{}, {}", {}, "NB-1001", 400),
    "an empty batch": (b"[]", {}, "NB-1002", 422),
    "501 events": (b"[" + b",".join([b"{}"] * 501) + b"]", {}, "NB-1003", 422),
    "over 1 MB": (b"[" + b" " * 1_000_000 + b"]", {}, "NB-1004", 413),
    "another content type": (b"{}", {"Content-Type": "text/plain"}, "NB-1005", 415),
    "no gzip though it says so": (b"{}", {"Content-Encoding": "gzip"}, "NB-1006", 400),
    "another compression": (b"{}", {"Content-Encoding": "br"}, "NB-1006", 400),
    "half a gzip": (gzip.compress(b"[]")[:-4], {"Content-Encoding": "gzip"}, "NB-1006", 400),
    "a gzip bomb": (gzip.compress(b" " * 50_000_000), {"Content-Encoding": "gzip"}, "NB-1004", 413),
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_body_that_is_none_is_refused_as_a_whole(stage: Stage, token: str, name: str) -> None:
    body, headers, code, status = BAD_BODIES[name]
    answer = await stage.post(token, body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert await stage.work() == 0


async def test_an_endless_body_is_cut_off(stage: Stage, token: str) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b" " * 65_536

    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    answer = await stage.http.post("/api/v1/events", content=endless(), headers=headers)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "token_like", [None, "", "nonsense", "nbp_student_x_y", f"nbp_student_{NOBODY.hex}_{'a' * 43}", "é"]
)
async def test_without_a_known_token_nothing_is_taken(stage: Stage, token_like: str | None) -> None:
    headers = {"Authorization": f"Bearer {token_like}".encode()} if token_like else {}
    answer = await stage.http.post("/api/v1/events", json=make_run(), headers=headers)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["code"]) == (401, "NB-1101")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_staff_deliver_no_events(stage: Stage) -> None:
    answer = await stage.post(stage.teacher_token, make_run())
    assert (answer.status_code, answer.json()["code"]) == (403, "NB-1103")


async def test_problems_speak_the_readers_language(stage: Stage) -> None:
    for accepted, language in (("ja,en;q=0.5", "ja"), ("en-GB", "en"), ("fr", "en"), ("fr, ja;q=0.1", "ja")):
        answer = await stage.post(None, make_run(), headers={"Accept-Language": accepted})
        assert answer.headers["content-language"] == language
        assert (answer.json()["title"] == "サインインしていません。") is (language == "ja")


async def test_both_forms_gzip_and_500_at_once_are_stored(stage: Stage, token: str) -> None:
    flat = {
        "id": "e-1",
        "event_type": "cell_execution",
        "notebook_path": "week1.ipynb",
        "cell_index": 2,
        "duration": 3.5,
        "has_error": False,
        "timestamp": NOW.isoformat(),
        "data": {},
    }
    assert (await stage.post(token, flat)).status_code == 202
    batch = [make_run(number % 40) for number in range(500)]
    answer = await stage.post(token, batch, is_gzip=True)
    assert {result["status"] for result in answer.json()["results"]} == {"accepted"}
    assert [result["event_id"] for result in answer.json()["results"]] == [one["event_id"] for one in batch]
    assert await stage.work() == 501


async def test_duplicate_is_said_only_of_what_is_durable(stage: Stage, token: str) -> None:
    event = make_run()
    twice = await stage.post(token, [event, event])
    assert [result["status"] for result in twice.json()["results"]] == ["accepted", "duplicate"]
    again = await stage.post(token, [event])
    assert again.json()["results"] == [{"event_id": event["event_id"], "status": "duplicate"}]
    assert again.status_code == 202
    other = (await stage.join("another"))["token"]
    theirs = await stage.post(other, [event])
    assert theirs.json()["results"][0]["status"] == "accepted"  # one student cannot burn another's id
    assert await stage.work() == 2


async def test_presence_is_answered_and_never_stored(stage: Stage, token: str) -> None:
    presence = {"event_type": "presence", "occurred_at": NOW.isoformat(), "data": {"state": "active"}}
    answer = await stage.post(token, presence)
    assert answer.status_code == 202
    assert await stage.work() == 0
    heard = await stage.parts.cache.read_presence(stage.course.id)
    assert len(heard) == 1


async def test_an_event_whose_answer_was_lost_is_no_duplicate_before_its_own_append(
    stage: Stage, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = make_run()
    append = stage.parts.stream.append_payloads

    async def append_and_lose_the_answer(entries: Any) -> None:
        await append(entries)
        raise Unavailable("NB-2001")

    monkeypatch.setattr(stage.parts.stream, "append_payloads", append_and_lose_the_answer)
    assert (await stage.post(token, [event])).status_code == 503
    monkeypatch.undo()
    answer = await stage.post(token, [event])
    assert answer.json()["results"][0]["status"] == "accepted"
    assert await stage.work() == 2  # twice in the stream, once in the ledger
    assert (await stage.snapshot())["h"]["stored"] == 1


@pytest.mark.parametrize("trouble", ["stopped", "frozen", "full"])
async def test_without_the_stream_it_says_not_now_within_a_second_and_recovers(
    stage_database: str, data_dir: Path, trouble: str
) -> None:
    server = EmbeddedValkey(data_dir)
    server.start()
    try:
        async with open_stage(stage_database, server.url) as stage:
            token = (await stage.join())["token"]
            assert (await stage.post(token, make_run())).status_code == 202
            async with Redis.from_url(server.url) as admin:
                pid = int((await admin.info("server"))["process_id"])
            if trouble == "stopped":
                server.stop()
            elif trouble == "frozen":
                os.kill(pid, signal.SIGSTOP)
            else:
                async with Redis.from_url(server.url) as admin:
                    await admin.config_set("maxmemory", "1mb")
            try:
                for body in ([make_run()], make_run(), {"event_type": "presence", "occurred_at": NOW.isoformat()}):
                    if trouble == "full" and isinstance(body, dict) and body["event_type"] == "presence":
                        continue  # the cache may still write what is small
                    started = time.monotonic()
                    answer = await stage.post(token, body)
                    assert time.monotonic() - started < 1.2
                    assert answer.status_code == 503, answer.text
                    assert 1 <= int(answer.headers["retry-after"]) <= 5
                    assert answer.json()["code"] == "NB-2001"
                waits = {(await stage.post(token, make_run())).headers["retry-after"] for _ in range(6)}
                assert len(waits) > 1  # jitter
            finally:
                if trouble == "frozen":
                    os.kill(pid, signal.SIGCONT)
                elif trouble == "stopped":
                    server.start()
                else:
                    async with Redis.from_url(server.url) as admin:
                        await admin.config_set("maxmemory", "0")
            deadline = time.monotonic() + 5
            while (await stage.post(token, make_run())).status_code != 202:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
    finally:
        server.stop()


async def test_at_the_backlogs_limit_nothing_more_is_taken(stage: Stage, token: str) -> None:
    stage.parts.stream._backlog_limit = 1
    assert (await stage.post(token, make_run())).status_code == 202
    answer = await stage.post(token, [make_run()])
    assert (answer.status_code, answer.json()["code"]) == (503, "NB-2002")
    assert 1 <= int(answer.headers["retry-after"]) <= 5


async def test_while_the_database_is_away_students_still_deliver(
    stage: Stage, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await stage.post(token, make_run())).status_code == 202
    monkeypatch.setattr("nbpulse.api.access._REFRESH_AFTER_S", 0.0)
    monkeypatch.setattr("nbpulse.api.access.YES_LIFE_S", 0.0)  # the yes of a moment ago is too old by itself

    async def away(_: str) -> None:
        raise Unavailable("NB-2003")

    monkeypatch.setattr(stage.parts.people, "find_person", away)
    assert (await stage.post(token, make_run())).status_code == 202
    monkeypatch.setattr("nbpulse.api.access._GRACE_S", 0.0)
    answer = await stage.post(token, make_run())
    assert (answer.status_code, answer.json()["code"]) == (503, "NB-2003")
