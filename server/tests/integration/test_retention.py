"""Retention: months that are over go whole, rows beside them too, nothing else; the accounts stay right."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from machines import Machine, make_machine, make_old_month
from nbpulse.accounting import Auditor
from nbpulse.records.accounting import Accounts
from nbpulse.records.retention import Retention, drop_expired, keep_retention
from stores import connect, count_rows, make_class, make_event


@pytest.fixture
async def machine(server_18: str, make_valkey: Callable[[], str], tmp_path: Path) -> Machine:
    return await make_machine(server_18, make_valkey(), tmp_path / "data")


async def test_what_is_older_goes_and_the_rest_stays(machine: Machine) -> None:
    course_id, (user_id, *_) = await make_class(machine.database_url, 1)
    await make_old_month(machine)
    month = datetime(2024, 2, 10, tzinfo=UTC)  # has a partition of its own
    other = datetime(2024, 3, 10, tzinfo=UTC)  # waits in the default one
    recent = datetime.now(UTC) - timedelta(days=179)
    contents = {"status": "ok", "execution_duration_ms": 1.0, "source": "x = 1"}
    async with machine.open_worker() as worker:
        await worker.stream.ensure_groups()
        events = [
            *(make_event(user_id, course_id, occurred_at=month, received_at=month, data=contents) for _ in range(3)),
            *(make_event(user_id, course_id, occurred_at=other, received_at=other) for _ in range(2)),
            *(make_event(user_id, course_id, occurred_at=recent, received_at=recent) for _ in range(4)),
            make_event(user_id, course_id, "help_request", occurred_at=month, received_at=month, data={"message": "?"}),
        ]
        recorded = await worker.ledger.record_events(events)
        await worker.series.write_points(recorded.points)
        await worker.series.refresh_rollups(settle_s=-120)

        retention = Retention(180, 730)
        would = await drop_expired(worker.pool, retention, is_real=False)
        assert would["events_2024_02"] == 4
        assert (would["events"], would["event_ids"], would["event_contents"], would["help_requests"]) == (2, 6, 3, 1)
        assert await count_rows(machine.database_url, "events", "audit_log") == [10, 0]

        await keep_retention(worker.pool, worker.series, retention)
        assert await drop_expired(worker.pool, retention) == {}
        assert await drop_expired(worker.pool, Retention(0, 0)) == {}
        left = "events", "event_ids", "event_contents", "help_requests", "timeseries.cell_executions", "users"
        assert await count_rows(machine.database_url, *left) == [4, 4, 0, 0, 4, 3 - 2]
        assert await count_rows(machine.database_url, "learning_sessions") == [1], "those of 2024 are gone, too"
        assert await Auditor(worker.stream, Accounts(worker.pool)).audit() == 0
    async with connect(machine.database_url) as connection:
        assert await connection.fetchval("SELECT to_regclass('events_2024_02')") is None
        assert await connection.fetchval("SELECT min(occurred_at) FROM events") > recent - timedelta(days=1)
        noted = await connection.fetch(
            "SELECT facts->>'rows' AS rows FROM audit_log WHERE action = 'retention_applied'"
        )
    assert len(noted) == 2


async def test_a_month_goes_when_all_of_it_is_older() -> None:
    now = datetime(2026, 11, 26, 5, tzinfo=UTC)
    assert Retention(180, 0).find_limits(now) == (datetime(2026, 5, 1, tzinfo=UTC), None)
    assert Retention(30, 730).find_limits(now) == (
        datetime(2026, 10, 1, tzinfo=UTC),
        datetime(2024, 11, 1, tzinfo=UTC),
    )


async def test_the_command_shows_before_it_does(machine: Machine) -> None:
    course_id, (user_id, *_) = await make_class(machine.database_url, 1)
    old = datetime(2024, 3, 10, tzinfo=UTC)
    async with machine.open_worker() as worker:
        await worker.ledger.record_events([make_event(user_id, course_id, occurred_at=old, received_at=old)])
    code, said = machine.run("retention", "--dry-run")
    assert (code, "3 rows would go" in said) == (0, True), said
    assert await count_rows(machine.database_url, "events") == [1]
    code, said = machine.run("retention", NBPULSE_RETENTION_DAYS="0", NBPULSE_SESSION_RETENTION_DAYS="0")
    assert (code, "0 rows deleted" in said) == (0, True), said
    code, said = machine.run("retention")
    assert (code, "3 rows deleted" in said) == (0, True), said
    assert await count_rows(machine.database_url, "events", "event_ids", "learning_sessions") == [0, 0, 0]
