"""Keys: wrong ones are refused at start, a new one takes over while everything runs, whatever is killed on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from nbpulse.crypto import EncryptedField, make_key
from nbpulse.errors import StartupError
from nbpulse.migrations.runner import with_login
from nbpulse.records import debts
from nbpulse.records.courses import Courses
from nbpulse.records.dead_letters import DeadLetters
from nbpulse.records.interventions import Interventions, Wanted
from nbpulse.records.messages import Dispatch, Messages, Offer
from nbpulse.records.people import People, open_name
from nbpulse.records.rosters import import_roster
from nbpulse.records.sealing import SEALED_COLUMNS
from nbpulse.resources import Resources, open_resources
from nbpulse.roster import RosterRow
from nbpulse.settings import Settings
from nbpulse.shards import get_shard_number
from stores import WORKER_PASSWORD, connect, create_database, make_class, make_error, make_event

TEXTS = 20_000


@dataclass
class Place:
    """A database and a key file."""

    database_url: str
    redis_url: str
    data_dir: Path

    def make_settings(self, keys: list[bytes] | None = None) -> Settings:
        return Settings(
            data_dir=self.data_dir,
            database_url=self.database_url,
            worker_database_url=with_login(self.database_url, "nbpulse_worker", WORKER_PASSWORD),
            api_database_url=with_login(self.database_url, "nbpulse_api", WORKER_PASSWORD),
            redis_url=self.redis_url,
            promise="memory",
            encryption_keys=b",".join(keys).decode() if keys else None,
        )

    def read_keys(self) -> list[bytes]:
        return (self.data_dir / "encryption.key").read_bytes().split()

    def start_rotation(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NBPULSE_")}
        return subprocess.Popen(
            [sys.executable, "-m", "nbpulse", "rotate-keys", "--data", str(self.data_dir), *arguments],
            env=inherited | {"NBPULSE_DATABASE_URL": self.database_url, "NBPULSE_LANGUAGE": "en"} | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def rotate(self, *arguments: str, **settings: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        process = self.start_rotation(*arguments, **settings)
        out, said = process.communicate(timeout=60)
        return process.returncode, out, said


@pytest.fixture
async def place(embedded_postgres: str, embedded_valkey: str, tmp_path: Path) -> Place:
    return Place(await create_database(embedded_postgres), embedded_valkey, tmp_path)


@pytest.fixture
async def worker(place: Place) -> AsyncIterator[Resources]:
    """What a worker holds that was started before all."""
    async with open_resources(place.make_settings(), login="nbpulse_worker", pool_size=2) as resources:
        yield resources


async def fill(place: Place, worker: Resources) -> UUID:
    """A sealed text in every column that holds such; the user whose name it is."""
    course_id, (user_id, *_) = await make_class(place.database_url, 1)
    error = make_error(user_id, course_id)
    run = make_event(
        user_id, course_id, data=error.data | {"traceback": "line 1", "source": "print(x)", "output": "NameError"}
    )
    hand = make_event(user_id, course_id, "help_request", data={"message": "わかりません"})
    await worker.ledger.record_events([error, run, hand])
    async with asyncpg.create_pool(place.database_url, min_size=1, max_size=1) as owner:
        teacher_id = await Courses(owner, worker.seal).ensure_teacher(course_id, display_name="佐藤 樹")
        people = People(owner, worker.seal)
        await owner.execute("UPDATE enrolments SET student_number = '1' WHERE user_id = $1", user_id)
        await import_roster(people, course_id, [RosterRow(2, "1", "鈴木 大翔", "スズキ ハルト")])
        notebook_id = await owner.fetchval("SELECT id FROM notebooks WHERE course_id = $1", course_id)
        offer = Offer(notebook_id, "cell-0", "x = 1")
        dispatch = Dispatch(uuid4(), "どうぞ", user_ids=[user_id], offer=offer)
        await Messages(people, worker.seal).send(course_id, teacher_id, dispatch)
        note = Wanted(uuid4(), user_id, "note", uuid4(), note="次回も見る")
        await Interventions(people, worker.seal).act(course_id, teacher_id, note)
    async with worker.pool.acquire() as connection:
        await debts.note(connection, (), worker.seal)
    await DeadLetters(worker.pool, worker.seal).bury(
        stream=b"s", entry_id=b"1-0", payload=b"{", user_id=None, code="NB-4001", reason="?", deliveries=6
    )
    return teacher_id


async def fill_many(place: Place, seal: EncryptedField) -> None:
    rows = []
    for _ in range(TEXTS):
        user_id = uuid4()
        sealed = seal.seal("x = 1", table="event_contents", column="source", user_id=user_id)
        rows.append((user_id, get_shard_number(user_id), uuid4(), sealed))
    async with connect(place.database_url) as connection:
        await connection.execute("ALTER TABLE event_contents ALTER occurred_at SET DEFAULT now()")
        await connection.copy_records_to_table(
            "event_contents", records=rows, columns=["user_id", "shard", "event_id", "source"]
        )


async def read_all(place: Place, keys: list[bytes]) -> int:
    """How many texts open; every one must."""
    seal, count = EncryptedField(keys), 0
    async with connect(place.database_url) as connection:
        for column in SEALED_COLUMNS:
            query = f"SELECT {column.column} FROM {column.table} WHERE {column.column} IS NOT NULL"
            for row in await connection.fetch(query):
                seal.decrypt(row[0])
                count += 1
    return count


async def open_as(place: Place, login: str, keys: list[bytes]) -> str:
    """What a new process under these keys is told at its start: an error's code or nothing."""
    try:
        async with open_resources(place.make_settings(keys), login=login, pool_size=1):
            return ""
    except StartupError as refused:
        return refused.code


async def test_every_column_that_holds_sealed_text_is_known_to_the_rotation(place: Place, worker: Resources) -> None:
    await fill(place, worker)
    found = set()
    async with connect(place.database_url) as connection:
        columns = await connection.fetch(
            "SELECT c.oid::regclass::text AS t, attname AS c FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid"
            " JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname IN ('public', 'timeseries')"
            " AND relkind IN ('r', 'p') AND NOT relispartition AND attnum > 0"
            " AND atttypid IN ('text'::regtype, 'varchar'::regtype, 'jsonb'::regtype)"
        )
        for table, column in columns:
            if await connection.fetchval(f"SELECT bool_or({column}::text LIKE '%gAAAAA%') FROM {table}"):
                found.add((table, column))
    assert found - {("sealing_keys", "canary")} == {(one.table, one.column) for one in SEALED_COLUMNS}


async def test_wrong_keys_are_refused_at_the_start_of_api_and_worker(place: Place, worker: Resources) -> None:
    keys = place.read_keys()
    for login in ("nbpulse_api", "nbpulse_worker"):
        assert await open_as(place, login, keys) == ""
        assert await open_as(place, login, [make_key()]) == "NB-3060"


async def test_wrong_keys_are_refused_also_by_a_database_that_does_not_know_its_keys_yet(
    place: Place, worker: Resources
) -> None:
    await fill(place, worker)
    async with connect(place.database_url) as connection:
        await connection.execute("DELETE FROM sealing_keys")
    assert await open_as(place, "nbpulse_worker", [make_key()]) == "NB-3060"
    assert await open_as(place, "nbpulse_worker", place.read_keys()) == ""


async def test_a_killed_rotation_goes_on_where_it_stopped_and_nobody_notices(place: Place, worker: Resources) -> None:
    teacher_id = await fill(place, worker)
    await fill_many(place, worker.seal)
    (old,) = place.read_keys()
    count = await read_all(place, [old])
    process = place.start_rotation()
    async with connect(place.database_url) as connection:
        deadline_s = time.monotonic() + 30
        while not (far := await connection.fetchval("SELECT max(resealed) FROM sealing_progress WHERE resealed > 999")):
            assert time.monotonic() < deadline_s, "no progress"
            assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
        keys = place.read_keys()
        assert keys[1:] == [old]
        assert far < TEXTS
        assert await read_all(place, keys) == count  # half and half
        assert await open_as(place, "nbpulse_worker", keys) == ""
        assert await open_as(place, "nbpulse_worker", [old]) == "NB-3060"
        assert await open_as(place, "nbpulse_worker", keys[:1]) == "NB-3060"

        # What the killed run has done is not done again: a text put back under the old key behind it stays there.
        first = await connection.fetchrow("SELECT user_id, source FROM event_contents ORDER BY user_id LIMIT 1")
        back = EncryptedField(old).encrypt(EncryptedField(keys).decrypt(first["source"]))
        await connection.execute("UPDATE event_contents SET source = $2 WHERE user_id = $1", first["user_id"], back)
    code, _, said = place.rotate()
    assert (code, f"{count} texts sealed anew" in said) == (0, True), said
    code, _, said = place.rotate("--drop-old")
    assert (code, "NB-3064 1 texts are still sealed" in said) == (1, True), said
    assert len(place.read_keys()) == 2

    code, _, said = place.rotate()
    assert (code, "1 texts sealed anew" in said) == (0, True), said
    code, _, said = place.rotate("--drop-old")
    assert code == 0, said
    assert place.read_keys() == keys[:1]
    assert (place.data_dir / "encryption.key").stat().st_mode & 0o777 == 0o600
    assert await read_all(place, keys[:1]) == count
    assert await open_as(place, "nbpulse_api", [old]) == "NB-3060"

    # The worker of the beginning, which knew the old key alone, reads on and was never restarted.
    async with connect(place.database_url) as connection:
        sealed = await connection.fetchval("SELECT display_name FROM users WHERE id = $1", teacher_id)
    assert open_name(worker.seal, teacher_id, "teacher", sealed) == "佐藤 樹"
    assert worker.seal.key_ids == EncryptedField(keys[0]).key_ids


async def test_keys_in_a_setting_are_told_and_then_taken_over(place: Place, worker: Resources) -> None:
    await fill(place, worker)
    old = place.read_keys()[0].decode()
    code, out, said = place.rotate(NBPULSE_ENCRYPTION_KEYS=old)
    assert code == 0, said
    name, _, value = out.strip().partition("=")
    assert (name, value.endswith(",$NBPULSE_ENCRYPTION_KEYS")) == ("NBPULSE_ENCRYPTION_KEYS", True)
    both = value.replace("$NBPULSE_ENCRYPTION_KEYS", old)
    assert place.rotate(NBPULSE_ENCRYPTION_KEYS=both)[0] == 0
    assert place.rotate("--drop-old", NBPULSE_ENCRYPTION_KEYS=both)[0] == 0
    assert await read_all(place, [both.split(",")[0].encode()]) == len(SEALED_COLUMNS) + 1


async def test_only_one_rotation_is_at_work_and_only_one_that_sees_every_row(place: Place, worker: Resources) -> None:
    await fill(place, worker)
    async with connect(place.database_url) as connection:
        await connection.execute("SELECT pg_advisory_lock(6622002)")
        assert "NB-3062" in place.rotate()[2]
    blind = with_login(place.database_url, "nbpulse_worker", WORKER_PASSWORD)
    assert "NB-3063" in place.rotate(NBPULSE_DATABASE_URL=blind)[2]
    assert len(place.read_keys()) == 1


async def test_what_is_no_key_is_said_with_its_place(place: Place) -> None:
    for given in ("short", "=", "x" * 44):
        code, _, said = place.rotate(NBPULSE_ENCRYPTION_KEYS=given)
        assert (code, "NB-3061 What NBPULSE_ENCRYPTION_KEYS holds is no encryption key" in said) == (1, True), said
