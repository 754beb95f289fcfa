"""Two users that are one person, with their rows in several databases: none lost, none twice, whatever is killed."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator, Sequence
from uuid import UUID, uuid4

import asyncpg
import pytest

from nbpulse.crypto import EncryptedField
from nbpulse.errors import StartupError
from nbpulse.events import ReceivedEvent
from nbpulse.records import carrying
from nbpulse.shards import get_shard_number
from primaries import Primaries, run_site, store
from stores import KEY, connect, list_holders, make_class, make_error, make_event
from working import until

NAMES = ("main", "a", "b")
STEPS = ("close", "take_over", "tell_directory", "clear")
# Who stays, who goes, and before which step the first try is killed. The directory's own pair is one database's way.
CASES: list[tuple[str, str, str | None]] = [
    ("main", "b", "take_over"),
    ("a", "main", "clear"),
    ("b", "b", "tell_directory"),
]
CASES += [("a", "b", step) for step in STEPS[1:]]
if os.environ.get("NBPULSE_TEST_SCALE") == "full":
    CASES = [(*pair, step) for pair in itertools.product(NAMES, NAMES) for step in (None, *STEPS)]
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def primaries() -> Iterator[Primaries]:
    with run_site(NAMES[1:]) as started:
        yield started


@pytest.fixture(autouse=True)
def passwords(primaries: Primaries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSFILE", primaries.make_environment()["PGPASSFILE"])


def draw_at(name: str) -> UUID:
    return next(one for one in iter(uuid4, None) if NAMES[get_shard_number(one) % 3] == name)


class Killed(Exception):
    pass


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_two_users_of_any_two_databases_become_one(
    primaries: Primaries,
    embedded_valkey: str,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str, str, str | None],
) -> None:
    keep_at, drop_at, killed_before = case
    keep, drop, mate = draw_at(keep_at), draw_at(drop_at), draw_at(keep_at)
    course_id, _ = await make_class(primaries.urls["main"], [keep, drop, mate])
    text = {"status": "ok", "execution_duration_ms": 5.0, "source": "x = 1", "output": "1"}
    shared = make_event(keep, course_id, cell_id="both", cell_index=0, data=text)
    again = make_event(drop, course_id, cell_id="both", cell_index=0, data=text, event_id=shared.event_id)
    events = [shared, again, make_error(keep, course_id, cell_id="mine", cell_index=1)]
    events += [make_error(drop, course_id, cell_id="theirs", cell_index=2) for _ in range(3)]
    events += [make_event(one, course_id, cell_id="both", cell_index=0, data=text) for one in (keep, drop, mate)]
    hand = make_event(drop, course_id, "help_request", data={"message": "助けて"})
    async with primaries.open_worker(embedded_valkey) as worker:
        await store(worker, [*events, hand])

        async def merge() -> None:
            command = ("merge-users", keep.hex, drop.hex)
            await asyncio.to_thread(lambda: primaries.invoke(*command, redis_url=embedded_valkey))

        is_direct = keep_at == drop_at == "main" or (keep_at == drop_at and killed_before in ("close", "clear"))
        if killed_before is not None and not is_direct:

            async def die(*_: object, **__: object) -> None:
                raise Killed

            with monkeypatch.context() as patched:
                patched.setattr(carrying, killed_before, die)
                with pytest.raises(Killed):
                    await merge()
        between = [make_event(one, course_id, cell_id="between", cell_index=3, data=text) for one in (keep, drop)]
        await store(worker, between)
        await merge()
        late = make_event(drop, course_id, cell_id="late", cell_index=4, data=text)
        await store(worker, [late, again])
        await check_one(primaries, course_id, keep, drop, [*events, hand, *between, late])
    await asyncio.to_thread(primaries.run, "verify")


async def check_one(
    primaries: Primaries, course_id: UUID, keep: UUID, drop: UUID, events: Sequence[ReceivedEvent]
) -> None:
    own = {one.event_id for one in events if one.user_id in (keep, drop)}
    home = primaries.urls[NAMES[get_shard_number(keep) % 3]]
    for url in primaries.urls.values():
        left = {"users", "learner_states", "audit_log", "timeseries.stale_minutes"}  # the last: to be counted anew
        assert set(await list_holders(url, drop)) <= left
    async with connect(home) as connection:
        rows = await connection.fetch("SELECT event_id, ordinal FROM events WHERE user_id = $1", keep)
        assert sorted(row[0] for row in rows) == sorted(own)
        assert len({row[1] for row in rows}) == len(rows)
        assert await connection.fetchval("SELECT count(*) FROM event_ids WHERE user_id = $1", keep) == len(own)
        runs = len(own & {one.event_id for one in events if one.event_type == "cell_execution"})
        executions = "SELECT sum(cell_executions) FROM learning_sessions WHERE user_id = $1"
        assert await connection.fetchval(executions, keep) == runs
        seal = EncryptedField(KEY.encode())
        for table, column in (("events", "error_message"), ("event_contents", "source"), ("help_requests", "message")):
            sealed = await connection.fetch(f"SELECT {column} FROM {table} WHERE user_id = $1 AND {column} <> ''", keep)
            assert sealed
            for row in sealed:
                assert seal.unseal(row[0], table=table, column=column, user_id=keep)
    async with connect(primaries.urls["main"]) as directory:
        await check_shown(directory, course_id, keep, runs)
        (state,) = await directory.fetch("SELECT merged_into FROM learner_states WHERE user_id = $1", drop)
        assert state["merged_into"] == keep
        assert await directory.fetchval("SELECT merged_into FROM users WHERE id = $1", drop) == keep
        assert await directory.fetchval("SELECT count(*) FROM enrolments WHERE course_id = $1", course_id) == 2


async def check_shown(directory: asyncpg.Connection, course_id: UUID, keep: UUID, runs: int) -> None:
    """What the live pages read, and the time series."""
    expected = {"both": 3, "mine": 1, "theirs": 3, "between": 2, "late": 1}

    async def is_shown() -> bool:
        query = "SELECT cell_id, attempt_count FROM learner_cells WHERE user_id = $1"
        return dict(await directory.fetch(query, keep)) == expected

    await until(is_shown)
    seen = await directory.fetch(
        "SELECT c.cell_id, c.student_count FROM notebook_cells c JOIN notebooks n ON n.id = c.notebook_id"
        " WHERE n.course_id = $1",
        course_id,
    )
    assert dict(seen) == {"both": 2, "mine": 1, "theirs": 1, "between": 1, "late": 1}
    assert await directory.fetchval("SELECT count(*) FROM help_requests WHERE user_id = $1", keep) == 1
    points = "SELECT count(*) FROM timeseries.cell_executions WHERE user_id = $1"
    assert await directory.fetchval(points, keep) == runs


async def test_a_merge_that_was_begun_is_not_turned_into_another(
    primaries: Primaries, embedded_valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, drop, other = draw_at("a"), draw_at("b"), draw_at("a")
    course_id, _ = await make_class(primaries.urls["main"], [keep, drop, other])

    async def merge(one: UUID, two: UUID) -> None:
        command = ("merge-users", one.hex, two.hex)
        await asyncio.to_thread(lambda: primaries.invoke(*command, redis_url=embedded_valkey))

    async def die(*_: object, **__: object) -> None:
        raise Killed

    async with primaries.open_worker(embedded_valkey) as worker:
        await store(worker, [make_event(one, course_id) for one in (keep, drop, other)])
        with monkeypatch.context() as patched:
            patched.setattr(carrying, "take_over", die)
            with pytest.raises(Killed):
                await merge(keep, drop)
        for pair in ((other, drop), (drop, other)):
            with pytest.raises(StartupError) as refused:
                await merge(*pair)
            assert refused.value.code == "NB-3140"
        await merge(keep, drop)
    await asyncio.to_thread(primaries.run, "verify")
