"""Backup and restore: everything comes back as it was, on whatever version, from whatever schema."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from machines import (
    GARBAGE,
    LIST_TABLES,
    Machine,
    describe,
    drain,
    fingerprint,
    make_empty_database,
    make_machine,
    make_successor,
    read_streams,
    run_nbpulse,
    teach,
)
from nbpulse.accounting import Auditor
from nbpulse.connections import open_redis
from nbpulse.crypto import EncryptedField
from nbpulse.embedded import EmbeddedPostgres, EmbeddedValkey
from nbpulse.events import decode
from nbpulse.migrations import migrate
from nbpulse.records.accounting import Accounts
from nbpulse.records.copying import LEFT_OUT
from nbpulse.resources import Resources
from nbpulse.stream import GROUP, LANES
from servers import run_server
from stores import WORKER_PASSWORD, connect, count_rows, create_database, make_class, make_event
from working import is_drained, until, work


@pytest.mark.parametrize(("source", "target"), [("server_18", "server_15"), ("server_15", "server_18")])
async def test_everything_comes_back_table_by_table_on_another_version_of_postgresql(
    source: str,
    target: str,
    make_valkey: Callable[[], str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    old = await make_machine(request.getfixturevalue(source), make_valkey(), tmp_path / "old")
    lesson = await teach(old)
    before, streams, protection = (
        await fingerprint(old.database_url),
        await read_streams(old.redis_url),
        await describe(old.database_url),
    )
    code, said = old.run("backup", tmp_path / "b.zip")
    assert code == 0, said
    assert f"{old.data_dir / 'encryption.key'}" in said.split("IMPORTANT")[1]
    assert find_words(tmp_path / "b.zip") == set()
    filled = {name for name, (rows, _) in before.items() if rows}
    assert filled >= {
        "users",
        "events",
        "event_ids",
        "learning_sessions",
        "help_requests",
        "dead_letters",
        "series_debt",
    }

    new = await make_successor(request.getfixturevalue(target), make_valkey(), old, tmp_path / "new")
    code, said = new.run("restore", tmp_path / "b.zip")
    assert code == 0, said
    assert await fingerprint(new.database_url) == before
    assert await read_streams(new.redis_url) == streams
    assert await describe(new.database_url) == protection
    assert await count_rows(new.database_url, "events_2024_02") == [1]

    # What waited is stored now, what had been stored is not stored again, and what nobody can read is set aside.
    await drain(new)
    async with connect(new.database_url) as connection:
        stored = [row[0] for row in await connection.fetch("SELECT event_id FROM events")]
        assert sorted(stored) == sorted(lesson.stored + lesson.waiting)
        runs = await connection.fetchval("SELECT sum(cell_executions) FROM learning_sessions")
        assert runs == await connection.fetchval("SELECT count(*) FROM events WHERE event_type = 'cell_execution'")
        assert await connection.fetchval("SELECT count(*) FROM dead_letters") == 2
        name = await connection.fetchval("SELECT id::text || display_name FROM users WHERE display_name IS NOT NULL")
    seal = EncryptedField((new.data_dir / "encryption.key").read_bytes().split())
    assert seal.unseal(name[36:], table="users", column="display_name", user_id=UUID(name[:36])) == "佐藤 樹"


def find_words(file: Path) -> set[bytes]:
    """What students said, wherever it lies open; it waits in the stream as well as in the ledger."""
    words = [text.encode() for text in ("わかりません", "ひみつ", "print(", "佐藤")]
    with zipfile.ZipFile(file) as opened:
        contents = [opened.read(name) for name in opened.namelist()]
    fields = [word for line in contents[0].splitlines() for word in line.split(b" ")[2:]]
    contents += [base64.urlsafe_b64decode(field + b"===") for field in fields]
    escaped = [json.dumps(word.decode())[1:-1].encode() for word in words]
    hexed = [word.hex().encode() for word in words]
    return {word for word in (*words, *escaped, *hexed) if any(word in content for content in contents)}


async def test_a_data_directory_comes_back_as_another_one_with_the_keys_inside(
    data_dir: Path, make_valkey: Callable[[], str], server_18: str, tmp_path: Path
) -> None:
    old = await make_machine(server_18, make_valkey(), tmp_path / "old")
    await teach(old)
    code, said = old.run("backup", tmp_path / "b.zip", "--with-keys")
    assert (code, "WARNING: the keys are inside" in said) == (0, True), said
    new = data_dir / "new"
    code, answered, said = run_nbpulse("restore", tmp_path / "b.zip", "--json", data_dir=new)
    assert code == 0, said
    facts = json.loads(answered)
    assert (facts["events"], facts["stream_entries"], facts["has_keys"]) == (9, 42, True)
    assert (new / "encryption.key").read_bytes() == (old.data_dir / "encryption.key").read_bytes()
    assert (new / "encryption.key").stat().st_mode & 0o777 == 0o600
    with run_server(EmbeddedPostgres(new)) as database_url, run_server(EmbeddedValkey(new)) as redis_url:
        assert await fingerprint(database_url) == await fingerprint(old.database_url)
        assert await read_streams(redis_url) == await read_streams(old.redis_url)

    # And the directory that nothing runs on is backed up in its turn.
    code, answered, said = run_nbpulse("backup", tmp_path / "again.zip", "--json", data_dir=new)
    assert code == 0, said
    assert json.loads(answered)["rows"] == facts["rows"]
    assert run_nbpulse("backup", tmp_path / "x.zip", data_dir=data_dir / "nothing")[2].startswith("NB-3019")


async def store_waiting(worker: Resources) -> None:
    """What waits is stored, acknowledged and trimmed, by a worker that has just started."""
    await worker.stream.ensure_groups()
    for lane in LANES:
        while deliveries := await worker.stream.read(lane, block_ms=10):
            known = [one for one in deliveries if GARBAGE not in one.payload]
            await worker.ledger.record_events([decode(one.payload) for one in known])
            await worker.stream.ack(deliveries)
    await worker.stream.trim()


async def test_what_is_stored_and_trimmed_while_the_tables_are_read_is_in_the_backup(
    server_18: str, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    old = await make_machine(server_18, make_valkey(), tmp_path / "old")
    lesson = await teach(old)
    async with connect(old.database_url) as connection, connection.transaction():
        await connection.execute("LOCK TABLE help_requests")  # the backup waits here: its snapshot is taken
        process = old.start("backup", tmp_path / "b.zip")
        while not await connection.fetchval(
            "SELECT count(*) FROM pg_locks WHERE relation = 'help_requests'::regclass AND NOT granted"
        ):
            assert process.poll() is None, process.communicate()
            await asyncio.sleep(0.01)
        async with old.open_worker() as worker:
            await store_waiting(worker)
            assert await read_streams(old.redis_url) == {}
    _, said = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == 0, said
    new = await make_successor(server_18, make_valkey(), old, tmp_path / "new")
    assert new.run("restore", tmp_path / "b.zip")[0] == 0
    await drain(new)
    async with connect(new.database_url) as connection:
        stored = [row[0] for row in await connection.fetch("SELECT event_id FROM events")]
    assert sorted(stored) == sorted([*lesson.stored, *lesson.waiting])


async def test_a_database_lost_alone_comes_back_beside_the_stream_and_has_what_came_after_the_backup(
    server_18: str, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    old = await make_machine(server_18, make_valkey(), tmp_path / "old")
    lesson = await teach(old)
    assert old.run("backup", tmp_path / "b.zip")[0] == 0
    async with old.open_worker() as worker, open_redis(old.redis_url) as redis:
        async with connect(old.database_url) as connection:
            (user_id,) = await connection.fetchrow("SELECT user_id FROM enrolments LIMIT 1")
        await store_waiting(worker)
        later = [make_event(user_id, lesson.course_id) for _ in range(30)]
        await worker.stream.append(later)
        read = await worker.stream.read("events")
        await worker.ledger.record_events([decode(one.payload) for one in read])
        await redis.xack(read[0].stream, GROUP, read[0].entry_id)

    new = Machine(await make_empty_database(server_18), old.redis_url, old.data_dir)
    assert "NB-3074" in new.run("restore", tmp_path / "b.zip")[1]
    code, said = new.run("restore", tmp_path / "b.zip", "--keep-stream")
    assert code == 0, said
    await drain(new)
    async with connect(new.database_url) as connection:
        stored = [row[0] for row in await connection.fetch("SELECT event_id FROM events")]
        assert sorted(stored) == sorted([*lesson.stored, *lesson.waiting, *(one.event_id for one in later)])
        runs = await connection.fetchval("SELECT sum(cell_executions) FROM learning_sessions")
        assert runs == await connection.fetchval("SELECT count(*) FROM events WHERE event_type = 'cell_execution'")


async def test_after_a_restore_every_entry_is_accounted_for_also_those_in_both_stores(
    server_18: str, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    old = await make_machine(server_18, make_valkey(), tmp_path / "old")
    await teach(old)
    async with old.open_worker() as worker:  # stored, and its worker dead before it acknowledged
        read = await worker.stream.read("events")
        known = [decode(one.payload, one.entry) for one in read if GARBAGE not in one.payload]
        assert await worker.ledger.record_events([*known, known[0]])
    assert old.run("backup", tmp_path / "b.zip")[0] == 0
    new = await make_successor(server_18, make_valkey(), old, tmp_path / "new")
    await migrate(new.database_url, {"nbpulse_worker": new.settings.make_password("nbpulse_worker")})
    async with connect(new.database_url) as connection:  # a worker has looked at its new stores before
        await connection.execute("INSERT INTO stream_bases (generation, base) VALUES ('x', 7)")
    assert new.run("restore", tmp_path / "b.zip")[0] == 0
    async with new.open_worker() as worker:
        await worker.stream.ensure_groups()
        auditor = Auditor(worker.stream, Accounts(worker.pool))
        assert await auditor.audit() == 0
        async with work(worker):
            await until(lambda: is_drained(worker.stream), 20)
        assert await auditor.audit() == 0


async def test_every_table_is_copied_unless_it_is_named_and_none_hides_rows_from_the_backup(server_18: str) -> None:
    database_url = await create_database(server_18)
    async with connect(database_url) as connection:
        tables = {row[0] for row in await connection.fetch(LIST_TABLES)}
        seen = await connection.fetch(
            "SELECT DISTINCT polrelid::regclass::text FROM pg_policy WHERE polpermissive AND polcmd IN ('r', '*')"
            " AND 'app_maintenance'::regrole = ANY(polroles) AND pg_get_expr(polqual, polrelid) = 'true'"
            " AND has_table_privilege('app_maintenance', polrelid, 'SELECT')"
        )
        narrowed = await connection.fetchval("SELECT count(*) FROM pg_policy WHERE NOT polpermissive")
        sequences = await connection.fetchval(
            "SELECT count(*) FROM pg_class WHERE relkind = 'S' AND relnamespace::regnamespace::text <> 'pg_catalog'"
        )
    assert tables - {row[0] for row in seen} <= {name.removeprefix("public.") for name in LEFT_OUT}
    assert (narrowed, sequences) == (0, 0)  # a sequence would have to be set


async def test_an_archive_of_an_older_schema_is_loaded_and_then_migrated(
    server_18: str, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    old = Machine(await make_empty_database(server_18), make_valkey(), tmp_path / "old")
    await migrate(old.database_url, {"nbpulse_worker": WORKER_PASSWORD}, "0005")
    await make_class(old.database_url, 30)
    old.settings.read_encryption_keys()
    code, said = old.run("backup", tmp_path / "b.zip")
    assert code == 0, said
    await migrate(old.database_url, {"nbpulse_worker": WORKER_PASSWORD})  # in its place, after the backup
    new = await make_successor(server_18, make_valkey(), old, tmp_path / "new")
    code, said = new.run("restore", tmp_path / "b.zip")
    assert code == 0, said
    assert await fingerprint(new.database_url) == await fingerprint(old.database_url)
    assert await describe(new.database_url) == await describe(await create_database(server_18))


async def test_a_letter_sent_on_its_way_while_the_stream_was_read_is_due_again(
    server_18: str, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    old = await make_machine(server_18, make_valkey(), tmp_path / "old")
    await teach(old)
    async with connect(old.database_url) as connection:
        await connection.execute("UPDATE dead_letters SET replayed_at = now() - interval '1 hour'")
        await connection.execute(
            "INSERT INTO dead_letters (stream, entry_id, code, reason, deliveries, payload, replayed_at)"
            " VALUES ('s', '2-0', 'NB-4001', '?', 6, '?', now() + interval '1 minute')"
        )
    assert old.run("backup", tmp_path / "b.zip")[0] == 0
    new = await make_successor(server_18, make_valkey(), old, tmp_path / "new")
    assert new.run("restore", tmp_path / "b.zip")[0] == 0
    async with connect(new.database_url) as connection:
        due = await connection.fetch("SELECT entry_id FROM dead_letters WHERE replayed_at IS NULL")
    assert [row[0] for row in due] == ["2-0"]


async def test_influxdb_is_filled_anew_from_the_ledger(
    server_18: str, make_valkey: Callable[[], str], influxdb: str, tmp_path: Path
) -> None:
    old = await make_machine(server_18, make_valkey(), tmp_path / "old")
    await teach(old)
    assert old.run("backup", tmp_path / "b.zip")[0] == 0
    new = await make_successor(server_18, make_valkey(), old, tmp_path / "new")
    name = f"restored_{uuid4().hex[:8]}"
    code, said = new.run(
        "restore", tmp_path / "b.zip", NBPULSE_INFLUX_URL=f"{influxdb}/{name}", NBPULSE_PROMISE="memory"
    )
    assert code == 0, said
    written = re.search(r"(\d+) points written again; the store refused 0", said)
    assert written is not None, said
    async with connect(new.database_url) as connection:
        runs = await connection.fetchval("SELECT count(*) FROM events WHERE event_type = 'cell_execution'")
    assert int(written[1]) > runs == 8  # and the points worked out from them
