"""Schemathesis over the API's own description: whatever it thinks of, no answer is a server's error."""

import asyncio
import collections
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from stage import Stage, open_stage

CASES = 15 if "NBPULSE_PROVE" not in os.environ else 300


class BackgroundStage:
    """A stage in a thread of its own, for a test that is not asynchronous."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self._urls = database_url, redis_url
        self._ready, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.stage: Stage
        self.token = ""

    async def _run(self) -> None:
        try:
            async with open_stage(*self._urls) as self.stage:
                self.token = (await self.stage.join("fuzz"))["token"]
                self._ready.set()
                while not self._done.is_set():  # noqa: ASYNC110 - a thread sets it
                    await asyncio.sleep(0.05)
        finally:
            self._ready.set()

    def __enter__(self) -> "BackgroundStage":
        self._thread.start()
        assert self._ready.wait(20)
        assert self.token, "the stage did not open"
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(20)


@pytest.fixture(scope="module")
def background(stage_database: str, embedded_valkey: str) -> Iterator[BackgroundStage]:
    with BackgroundStage(stage_database, embedded_valkey) as running:
        yield running


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_answer_is_a_servers_error_and_some_events_are_accepted(background: BackgroundStage) -> None:
    stage = background.stage
    schema = schemathesis.openapi.from_url(f"{stage.url}/api/v1/openapi.json")
    answers: collections.Counter[tuple[str, int]] = collections.Counter()
    accepted = 0

    def call(case: Any) -> None:
        nonlocal accepted
        place = f"{case.method} {case.path}"
        case.path_parameters = {name: str(stage.course.id) for name in case.path_parameters or {}}
        staff = "/courses/" in case.path or case.path == "/api/v1/me"
        token = stage.teacher_token if staff else background.token
        if case.path == "/api/v1/me/inbox":
            case.query = {**dict(case.query or {}), "wait_s": 0}
        answer = case.call(headers={"Authorization": f"Bearer {token}"}, timeout=10)
        answers[place, answer.status_code] += 1
        assert answer.status_code < 500 or answer.status_code == 503, (place, answer.text)
        if answer.status_code >= 400:
            assert answer.headers["content-type"][0] == "application/problem+json" or "results" in answer.json(), place
        elif case.path == "/api/v1/events":
            body = answer.json()
            accepted += sum(one["status"] == "accepted" for one in body["results"]) if "results" in body else 1

    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.method == "delete":
            continue  # it would take the class away from under the others
        fuzz = settings(
            max_examples=CASES * 4 if operation.path == "/api/v1/events" else CASES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(schemathesis_given(operation)(call))
        fuzz()
    assert accepted > 0, answers
    assert len({place for place, _ in answers}) >= 10, answers


def schemathesis_given(operation: Any) -> Any:
    """Hypothesis's `given` over an operation's cases."""
    return given(case=operation.as_strategy())
