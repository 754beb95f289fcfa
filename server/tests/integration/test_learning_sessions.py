"""Learning sessions against plain Python: whatever comes late, twice, out of order or after the session was closed."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest

from nbpulse.events import ReceivedEvent
from stores import connect, create_database, make_class, make_event, open_stores

EXAMPLES = 60 if os.environ.get("NBPULSE_TEST_SCALE") == "full" else 8
IDLE_LIMIT_S = 1_800
STATUSES = ("ok", "ok", "error", "interrupted", "aborted")
# Gaps about the idle limit: exactly at it still counts as active.
GAPS_S = (0, 1, 20, 300, 1_799, 1_800, 1_801, 5_000)


def make_trace(chance: random.Random, user_id: UUID, course_id: UUID) -> list[ReceivedEvent]:
    """One student's two days at two notebooks, over midnight, with and without the client's session ids."""
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(days=3)
    sessions = [UUID(int=chance.getrandbits(128)) for _ in range(3)] + [None]
    trace = []
    for number in range(80):
        at += timedelta(seconds=chance.choice(GAPS_S))
        event_type = chance.choice(["cell_execution"] * 8 + ["session_start", "session_end", "notebook_save"])
        changes: dict[str, Any] = (
            {"data": {"status": chance.choice(STATUSES)}} if event_type == "cell_execution" else {}
        )
        trace.append(
            make_event(
                *(user_id, course_id, event_type),
                event_id=UUID(int=chance.getrandbits(128)),
                occurred_at=at,
                received_at=at + timedelta(seconds=chance.choice([0, 5, 90_000])),
                sequence=number,
                session_id=chance.choice(sessions),
                notebook_path=chance.choice(["week1.ipynb", "week2.ipynb"]),
                **changes,
            )
        )
    return trace


def fold(trace: list[ReceivedEvent]) -> set[tuple[Any, ...]]:
    """The sessions as the glossary defines them."""
    sessions: dict[tuple[str | None, str], list[ReceivedEvent]] = defaultdict(list)
    for event in trace:
        key = str(event.session_id) if event.session_id else event.occurred_at.date().isoformat()
        sessions[event.notebook_path, key].append(event)
    rows = set()
    for (path, _), events in sessions.items():
        times = sorted(event.occurred_at for event in events)
        gaps = [(after - before).total_seconds() for before, after in pairwise(times)]
        statuses = [event.data["status"] for event in events if event.event_type == "cell_execution"]
        rows.add(
            (
                path,
                times[0],
                times[-1],
                round(sum(gap for gap in gaps if gap <= IDLE_LIMIT_S) * 1_000),
                len([status for status in statuses if status != "aborted"]),
                statuses.count("error"),
            )
        )
    return rows


@pytest.mark.parametrize("seed", range(EXAMPLES))
async def test_sessions_are_those_of_the_glossary(embedded_postgres: str, embedded_valkey: str, seed: int) -> None:
    chance = random.Random(seed)
    database_url = await create_database(embedded_postgres)
    course_id, (student,) = await make_class(database_url, 1)
    trace = make_trace(chance, student, course_id)
    sent = trace + chance.sample(trace, len(trace) // 2)
    chance.shuffle(sent)
    async with open_stores(database_url, embedded_valkey) as stores:
        while sent:
            size = chance.randrange(1, 40)
            await stores.ledger.record_events(sent[:size])
            sent = sent[size:]
            if chance.random() < 0.5:  # closed, and then something of it comes after all
                await stores.ledger.close_idle_sessions()
        await stores.ledger.close_idle_sessions()
    async with connect(database_url) as owner:
        rows = await owner.fetch(
            "SELECT n.path, s.started_at, s.ended_at, s.total_duration_ms, s.cell_executions, s.error_count"
            " FROM learning_sessions s JOIN notebooks n ON n.id = s.notebook_id"
        )
    assert len(rows) == len(fold(trace))
    assert {tuple(row) for row in rows} == fold(trace)
