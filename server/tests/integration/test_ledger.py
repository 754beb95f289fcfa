"""The ledger on real PostgreSQL: the same rows at the end, in whatever order, however often and through whomever."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from nbpulse.errors import Unavailable
from nbpulse.events import ReceivedEvent
from nbpulse.records import learners
from nbpulse.resources import Resources
from stores import connect, count_rows, create_database, make_class, make_error, make_event, open_stores

EXAMPLES = 40 if os.environ.get("NBPULSE_TEST_SCALE") == "full" else 6
TABLES = (
    "events", "event_ids", "event_contents", "learner_states", "learner_cells", "learning_sessions", "help_requests",
    "notebook_cells", "series_debt",
)  # fmt: skip


@pytest.fixture(params=["embedded_postgres", "postgres_15"])
async def database_url(request: pytest.FixtureRequest) -> str:
    return await create_database(request.getfixturevalue(request.param))


@pytest.fixture
async def workers(database_url: str, embedded_valkey: str) -> AsyncIterator[list[Resources]]:
    """Two of them."""
    async with (
        open_stores(database_url, embedded_valkey, worker="worker-1") as first,
        open_stores(database_url, embedded_valkey, worker="worker-2") as second,
    ):
        yield [first, second]


def make_trace(seed: int, courses: Sequence[tuple[UUID, Sequence[UUID]]]) -> list[ReceivedEvent]:
    """What a class of a few does: all kinds of events, equal times, late ones, with and without sessions."""
    chance = random.Random(seed)
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
    sessions = [UUID(int=chance.getrandbits(128)) for _ in range(4)] + [None]
    trace = []
    for number in range(160):
        course_id, users = chance.choice(courses)
        event_type = chance.choice(
            ["cell_execution"] * 10
            + ["cell_execution_start", "markdown_run", "session_start", "session_end", "notebook_open", "kernel_status"]
            + ["help_request", "help_request", "help_cancel"]
        )
        occurred_at = start + timedelta(seconds=chance.randrange(60) * 30, milliseconds=chance.randrange(3))
        changes: dict[str, Any] = {
            "event_id": UUID(int=chance.getrandbits(128)),
            "occurred_at": occurred_at,
            "received_at": occurred_at + timedelta(seconds=chance.choice([0, 1, 20, 3_600])),
            "sequence": chance.randrange(5),
            "session_id": chance.choice(sessions),
            "cell_id": (cell := f"cell-{chance.randrange(6)}"),
            "cell_index": int(cell[-1]),
            "notebook_path": chance.choice(["week1.ipynb", "extra/week2.ipynb"]),
        }
        if event_type == "cell_execution":
            changes["data"] = make_run_data(chance, number)
        if event_type.startswith("help"):
            changes["data"] = {"message": f"line {number}"} if event_type == "help_request" else {}
            changes["notebook_path"] = chance.choice([None, "week1.ipynb"])
        trace.append(make_event(chance.choice(users), course_id, event_type, **changes))
    return sorted(trace, key=lambda event: event.occurred_at)


def make_run_data(chance: random.Random, number: int) -> dict[str, Any]:
    status = chance.choice(["ok", "ok", "ok", "error", "error", "interrupted", "aborted", "kernel_died"])
    data: dict[str, Any] = {"status": status, "has_error": status == "error", "execution_duration_ms": number * 1.5}
    if status == "error":
        data |= {"error_name": "NameError", "error_message": f"name 'x{number % 3}' is not defined"}
    if chance.random() < 0.2:
        data |= {"source": "print(1)", "output": "1"}
    return data


async def read_rows(database_url: str, stores: Resources) -> dict[str, list[object]]:
    """All that the events left behind, without what tells of the way they came (numbers, revisions, sealing)."""
    async with connect(database_url) as connection:
        states = [
            (learners.read_state(row, stores.seal), row["last_activity_at"])
            for row in await connection.fetch("SELECT * FROM learner_states ORDER BY user_id, course_id")
        ]
        helps = [
            (*row[:-1], stores.seal.unseal(row[-1], table="help_requests", column="message", user_id=row["user_id"]))
            for row in await connection.fetch(
                "SELECT user_id, id, course_id, notebook_id, cell_id, opened_at, closed_at, message FROM help_requests"
                " ORDER BY id"
            )
        ]
        queries = {
            "events": "SELECT user_id, event_id, course_id, event_type, occurred_at, notebook_id, learning_session_id,"
            " cell_id, cell_index, error_fingerprint, data FROM events ORDER BY event_id",
            "event_ids": "SELECT user_id, event_id, occurred_at FROM event_ids ORDER BY event_id",
            "contents": "SELECT user_id, event_id FROM event_contents ORDER BY event_id",
            "cells": "SELECT * FROM learner_cells ORDER BY user_id, notebook_id, cell_id",
            "sessions": "SELECT * FROM learning_sessions ORDER BY user_id, id",
            "columns": "SELECT notebook_id, cell_id, cell_index, student_count FROM notebook_cells"
            " ORDER BY notebook_id, cell_id",
        }
        rows = {name: [tuple(row) for row in await connection.fetch(query)] for name, query in queries.items()}
    return {
        **rows,
        "helps": helps,
        "states": [
            (state.user_id, state.course_id, state.last_run_ms, state.notebook_id, state.recent, state.help, last_at)
            for state, last_at in states
        ],
    }


async def record(stores: Resources, batches: Sequence[Sequence[ReceivedEvent]]) -> int:
    """As a worker: again, where another transaction was in the way. How many were stored."""
    stored = 0
    for batch in batches:
        while True:
            try:
                stored += (await stores.ledger.record_events(batch)).stored_count
            except Unavailable:
                continue
            break
    return stored


def cut(events: list[ReceivedEvent], chance: random.Random) -> list[list[ReceivedEvent]]:
    batches = []
    while events:
        size = chance.randrange(1, 60)
        batches.append(events[:size])
        events = events[size:]
    return batches


async def test_any_order_and_three_copies_through_two_workers_end_in_the_rows_of_the_clean_run(
    workers: list[Resources], database_url: str
) -> None:
    classes = [await make_class(database_url, 3), await make_class(database_url, 2)]
    # One student sits in both courses: their events are numbered together.
    courses = [(classes[0][0], classes[0][1]), (classes[1][0], [*classes[1][1], classes[0][1][0]])]
    async with connect(database_url) as admin:
        for seed in range(EXAMPLES):
            chance = random.Random(seed)
            trace = make_trace(seed, courses)
            outcomes = []
            for is_clean in (True, False):
                await admin.execute(f"TRUNCATE {', '.join(TABLES)}")
                if is_clean:
                    stored = await record(workers[0], cut(trace, chance))
                else:
                    copies = trace * 3
                    chance.shuffle(copies)
                    halves = (copies[: len(trace)], copies[len(trace) :])
                    counts = [record(one, cut(half, chance)) for one, half in zip(workers, halves, strict=True)]
                    stored = sum(await asyncio.gather(*counts))
                assert stored == len(trace)
                outcomes.append(await read_rows(database_url, workers[0]))
            clean, shuffled = outcomes
            for name, rows in clean.items():
                assert rows, name
                assert shuffled[name] == rows, f"seed {seed}: {name} depend on order"


async def test_counters_are_those_of_a_plain_fold(workers: list[Resources], database_url: str) -> None:
    course = await make_class(database_url, 3)
    trace = make_trace(99, [course])
    await record(workers[0], cut(trace, random.Random(1)))
    runs = [e for e in trace if e.event_type == "cell_execution" and e.data["status"] != "aborted"]
    errors = [e for e in runs if e.data["status"] == "error"]
    async with connect(database_url) as connection:
        for table, attempts in (("learning_sessions", "cell_executions"), ("learner_cells", "attempt_count")):
            row = await connection.fetchrow(f"SELECT sum({attempts}), sum(error_count) FROM {table}")
            assert tuple(row) == (len(runs), len(errors)), table
        ordinals = await connection.fetch("SELECT user_id, count(*), count(DISTINCT ordinal) FROM event_ids GROUP BY 1")
        assert all(row[1] == row[2] for row in ordinals)
        assert await connection.fetchval("SELECT count(*) FROM events") == len(trace)


async def test_the_same_batch_again_stores_nothing_and_gives_the_same_points(
    workers: list[Resources], database_url: str
) -> None:
    course_id, users = await make_class(database_url, 3)
    batch = [make_event(one, course_id) for one in users * 5] + [make_error(users[0], course_id)]
    first = await workers[0].ledger.record_events(batch)
    second = await workers[1].ledger.record_events(batch[::-1] * 2)
    assert (first.stored_count, first.duplicate_count) == (16, 0)
    assert (second.stored_count, second.duplicate_count) == (0, 32)
    assert set(second.points) == set(first.points)
    assert {state.revision for state in first.states} == {state.revision for state in second.states} == {1}
    assert {cell for state in first.states for cell in state.cells} == {
        cell for state in second.states for cell in state.cells
    }


async def test_a_refused_event_leaves_nothing_of_its_batch(workers: list[Resources], database_url: str) -> None:
    course_id, users = await make_class(database_url, 2)
    batch = [make_event(users[0], course_id), make_event(users[1], course_id, cell_id="x" * 300)]
    with pytest.raises(asyncpg.StringDataRightTruncationError):
        await workers[0].ledger.record_events(batch)
    assert await count_rows(database_url, "events", "event_ids", "learner_states", "series_debt") == [0, 0, 0, 0]


async def test_free_text_stands_nowhere_in_clear(workers: list[Resources], database_url: str) -> None:
    course_id, users = await make_class(database_url, 1)
    secret = "Takahashi-no-himitsu"
    data = {"status": "error", "has_error": True, "error_name": "ValueError", "error_message": f"bad value '{secret}'"}
    data |= {"traceback": secret, "source": secret, "output": secret}
    run = make_event(users[0], course_id, data=data)
    help_request = make_event(users[0], course_id, "help_request", data={"message": secret})
    await workers[0].ledger.record_events([run, help_request])
    async with connect(database_url) as connection:
        for table in (*TABLES, "notebooks"):
            for (text,) in await connection.fetch(f"SELECT t::text FROM {table} t"):
                assert secret not in text, table
                assert secret.encode().hex() not in text, table


async def test_many_workers_on_few_students_end_with_every_event_counted_once(
    workers: list[Resources], database_url: str
) -> None:
    course_id, users = await make_class(database_url, 3)
    batches = [[make_event(one, course_id) for one in users * 4] for _ in range(20)]
    counts = await asyncio.gather(*(record(workers[number % 2], batches[number::4]) for number in range(4)))
    assert sum(counts) == 240
    async with connect(database_url) as connection:
        assert await connection.fetchval("SELECT sum(attempt_count) FROM learner_cells") == 240
        assert await connection.fetchval("SELECT sum(cell_executions) FROM learning_sessions") == 240
        assert await connection.fetchval("SELECT count(DISTINCT (user_id, ordinal)) FROM events") == 240
