"""Backup and restore: everything or nothing, whatever is killed, damaged, full or in the way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from machines import (
    FULL_FROM_THE_START,
    LIST_TABLES,
    Machine,
    describe,
    fingerprint,
    make_empty_database,
    make_machine,
    make_successor,
    read_streams,
    teach,
)
from nbpulse.archive import Partition, read_archive, write_archive
from nbpulse.connections import open_redis
from nbpulse.crypto import make_key
from nbpulse.embedded import EmbeddedPostgres
from nbpulse.migrations.runner import with_login
from servers import make_data_dir
from stores import connect, count_rows, create_database, make_class
from working import until

MANY = 200_000


# --- whatever is killed -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_database(server_18: str) -> str:
    """One whose backup takes a moment."""

    async def fill() -> str:
        database_url = await create_database(server_18)
        course_id, (user_id,) = await make_class(database_url, 1)
        key = "$2::uuid, (('x' || substr(md5($2::text), 1, 8))::bit(32)::bigint % 64)::smallint"
        async with connect(database_url) as connection:
            await connection.execute(
                "INSERT INTO events (user_id, shard, event_id, occurred_at, received_at, ordinal, course_id,"
                f" event_type, sequence, data) SELECT {key}, gen_random_uuid(), now(), now(), n, $3,"
                " 'cell_execution', n, json_build_object('status', 'ok', 'note', md5(n::text))"
                " FROM generate_series(1, $1::int) n",
                MANY,
                user_id,
                course_id,
                timeout=120,
            )
            await connection.execute(
                "INSERT INTO timeseries.cell_executions (user_id, time_ns, notebook_path, event_type, has_error)"
                " VALUES ($1, 1, 'x', 'cell_execution', FALSE)",
                user_id,
            )
        return database_url

    return asyncio.run(fill())


async def test_a_killed_backup_leaves_no_file_and_the_older_one_as_it_was(
    full_database: str, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    machine, file = Machine(full_database, make_valkey(), tmp_path / "old"), tmp_path / "b.zip"
    machine.settings.read_encryption_keys()
    draft = tmp_path / "b.zip.unfinished"
    file.write_bytes(b"older")
    process = machine.start("backup", file, "--force")
    while not (draft.exists() and draft.stat().st_size > 500_000):
        assert process.poll() is None, process.communicate()
        await asyncio.sleep(0.002)
    process.kill()
    process.communicate()
    assert draft.exists(), "it was killed too late"
    assert file.read_bytes() == b"older"
    assert "NB-3070" in machine.run("backup", file)[1]
    code, said = machine.run("backup", file, "--force")
    assert (code, f"{MANY} events" in said) == (0, True), said
    assert not draft.exists()


async def test_a_killed_restore_leaves_nothing_and_the_same_command_does_it(
    full_database: str, server_18: str, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    old = Machine(full_database, make_valkey(), tmp_path / "old")
    old.settings.read_encryption_keys()
    code, said = old.run("backup", tmp_path / "b.zip")
    assert code == 0, said
    new = await make_successor(server_18, make_valkey(), old, tmp_path / "new")
    process = new.start("restore", tmp_path / "b.zip")
    name = await await_copying(server_18, new, process)
    async with connect(server_18) as admin:
        process.kill()
        process.communicate()
        await until(lambda: _has_left(admin, name), 20)
    # The schema alone is there, protected as ever; and it counts as empty.
    rows = {name: found[0] for name, found in (await fingerprint(new.database_url)).items()}
    assert {count for name, count in rows.items() if name not in FULL_FROM_THE_START} == {0}
    assert all(row[1] and row[2] for row in await describe(new.database_url))
    code, said = new.run("restore", tmp_path / "b.zip")
    assert (code, f"{MANY} events" in said) == (0, True), said
    assert await fingerprint(new.database_url) == await fingerprint(full_database)


async def has_ended(server: EmbeddedPostgres) -> bool:
    return server.poll() is not None


async def await_copying(server_url: str, machine: Machine, process: subprocess.Popen[str]) -> str:
    """Until many rows have been copied into the machine's database; its name."""
    name = machine.database_url.rpartition("/")[2]
    async with connect(server_url) as admin:
        while not await admin.fetchval(
            "SELECT count(*) FROM pg_stat_progress_copy WHERE datname = $1 AND tuples_processed > 20000", name
        ):
            assert process.poll() is None, process.communicate()
            await asyncio.sleep(0.002)
    return name


async def _has_left(admin: Any, name: str) -> bool:
    return not await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", name)


async def test_a_database_that_dies_in_the_middle_is_told_and_the_same_command_does_it(
    full_database: str, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    old = Machine(full_database, make_valkey(), tmp_path / "old")
    old.settings.read_encryption_keys()
    assert old.run("backup", tmp_path / "b.zip")[0] == 0
    with make_data_dir() as directory:
        server = EmbeddedPostgres(directory)
        server.start()
        try:
            new = await make_successor(server.url, make_valkey(), old, tmp_path / "new")
            process = new.start("restore", tmp_path / "b.zip")
            await await_copying(server.url, new, process)
            os.kill(server.pid, signal.SIGQUIT)
            began_s = time.monotonic()
            _, said = await asyncio.to_thread(process.communicate, timeout=30)
            assert (process.returncode, "NB-2003" in said) == (1, True), said
            assert time.monotonic() - began_s < 15
            await until(partial(has_ended, server), 20)
            server.start()
            assert new.run("restore", tmp_path / "b.zip")[0] == 0
            assert await fingerprint(new.database_url) == await fingerprint(full_database)
        finally:
            server.stop()


async def test_entries_that_a_killed_restore_has_put_back_are_not_put_back_twice(
    server_18: str, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    old = await make_machine(server_18, make_valkey(), tmp_path / "old")
    await teach(old)
    assert old.run("backup", tmp_path / "b.zip")[0] == 0
    new = await make_successor(server_18, make_valkey(), old, tmp_path / "new")
    streams = await read_streams(old.redis_url)
    async with open_redis(new.redis_url) as redis:  # it was killed in the middle of this, before PostgreSQL's commit
        for key, entries in streams.items():
            for entry_id, fields in entries[:10]:
                await redis.xadd(key, fields, entry_id)
    code, said = new.run("restore", tmp_path / "b.zip")
    assert code == 0, said
    assert await read_streams(new.redis_url) == streams


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
async def backed_up(server_18: str, make_valkey: Callable[[], str], tmp_path: Path) -> Machine:
    """A machine whose backup is b.zip beside its directory."""
    machine = await make_machine(server_18, make_valkey(), tmp_path / "old")
    await teach(machine)
    code, said = machine.run("backup", tmp_path / "b.zip")
    assert code == 0, said
    return machine


async def test_what_is_not_empty_is_left_alone(
    backed_up: Machine, server_18: str, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    before = await fingerprint(backed_up.database_url)
    code, said = backed_up.run("restore", tmp_path / "b.zip")
    assert (code, "NB-3074" in said) == (1, True), said
    assert await fingerprint(backed_up.database_url) == before

    new = await make_successor(server_18, make_valkey(), backed_up, tmp_path / "new")
    async with open_redis(new.redis_url) as redis:  # used, and emptied by its workers since
        await redis.xadd("nbpulse:events:{shard_3}", {"e": b"x"})
        await redis.xtrim("nbpulse:events:{shard_3}", maxlen=0, approximate=False)
    code, said = new.run("restore", tmp_path / "b.zip")
    assert (code, "NB-3074" in said, "stream nbpulse:events:{shard_3}" in said) == (1, True, True), said
    async with open_redis(new.redis_url) as redis:
        await redis.flushall()
        await redis.xadd("nbpulse:events:{shard_5}", {"e": b"x"})
    assert "NB-3074" in new.run("restore", tmp_path / "b.zip")[1]
    async with open_redis(new.redis_url) as redis:
        await redis.flushall()
    assert new.run("restore", tmp_path / "b.zip")[0] == 0


async def test_a_database_prepared_by_migrate_is_empty_and_one_in_use_is_not_waited_for_long(
    backed_up: Machine, server_18: str, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    new = await make_successor(server_18, make_valkey(), backed_up, tmp_path / "new")
    assert new.run("migrate")[0] == 0
    async with new.open_worker():  # it has noted its key
        assert await count_rows(new.database_url, "sealing_keys") == [1]
    async with connect(new.database_url) as connection:
        async with connection.transaction():
            await connection.execute("LOCK TABLE learner_states")
            code, said = await asyncio.to_thread(new.run, "restore", tmp_path / "b.zip")
        assert (code, "NB-3074" in said, "public.learner_states" in said) == (1, True, True), said
        await connection.execute("ALTER ROLE nbpulse_migrator PASSWORD 'no-superuser'")
    keeper = with_login(new.database_url, "nbpulse_migrator", "no-superuser")
    code, said = new.run("restore", tmp_path / "b.zip", NBPULSE_DATABASE_URL=keeper)
    assert code == 0, said
    assert await fingerprint(new.database_url) == await fingerprint(backed_up.database_url)


async def test_keys_that_are_missing_or_others_are_told_before_anything_is_done(
    backed_up: Machine, server_18: str, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    new = Machine(await make_empty_database(server_18), make_valkey(), tmp_path / "new")
    assert f"NB-3075 The encryption keys are not at {new.data_dir}" in new.run("restore", tmp_path / "b.zip")[1]
    assert "NB-3060" in new.run("restore", tmp_path / "b.zip", NBPULSE_ENCRYPTION_KEYS=make_key().decode())[1]
    assert not new.data_dir.exists()
    async with connect(new.database_url) as connection:
        assert await connection.fetch(LIST_TABLES) == []
    code, said = Machine(backed_up.database_url, backed_up.redis_url, new.data_dir).run("backup", tmp_path / "k.zip")
    assert (code, "NB-3075" in said, (tmp_path / "k.zip").exists()) == (1, True, False)
    code, said = backed_up.run("backup", tmp_path / "k.zip", NBPULSE_ENCRYPTION_KEYS=make_key().decode())
    assert (code, "NB-3060" in said, (tmp_path / "k.zip").exists()) == (1, True, False)
    key = (backed_up.data_dir / "encryption.key").read_text().strip()
    assert new.run("restore", tmp_path / "b.zip", NBPULSE_ENCRYPTION_KEYS=key)[0] == 0


async def test_a_damaged_file_brings_nothing_back(
    backed_up: Machine, server_18: str, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    new = await make_successor(server_18, make_valkey(), backed_up, tmp_path / "new")
    whole = (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "b.zip") as file:
        last = file.getinfo("public.learning_sessions")  # when most has been loaded
        place = last.header_offset + last.compress_size // 2 + 60
    for spoiled in (whole[:-100], whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]):
        (tmp_path / "bad.zip").write_bytes(spoiled)
        code, said = new.run("restore", tmp_path / "bad.zip")
        assert (code, "NB-3072" in said) == (1, True), said
        async with connect(new.database_url) as connection:
            tables = [row[0] for row in await connection.fetch(LIST_TABLES) if row[0] not in FULL_FROM_THE_START]
        assert await count_rows(new.database_url, *tables) == [0] * len(tables)
        assert await read_streams(new.redis_url) == {}


async def test_rows_that_no_backup_would_hold_and_newer_schemas_are_refused(
    backed_up: Machine, server_18: str, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    new = await make_successor(server_18, make_valkey(), backed_up, tmp_path / "new")
    rewrite(tmp_path / "b.zip", tmp_path / "newer.zip", revision="9999")
    code, said = new.run("restore", tmp_path / "newer.zip")
    assert (code, "NB-3073" in said, "schema 9999" in said) == (1, True, True), said
    async with connect(new.database_url) as connection:
        assert await connection.fetch(LIST_TABLES) == []
    forged = Partition("public.events", "public.x", "FOR VALUES FROM ('2024-02-01') TO ('x'); DROP TABLE users; --')")
    rewrite(tmp_path / "b.zip", tmp_path / "forged.zip", partitions=[forged])
    assert "NB-3072" in new.run("restore", tmp_path / "forged.zip")[1]
    rewrite(tmp_path / "b.zip", tmp_path / "broken.zip", tables={"public.users": b"not\tthis\n"})
    code, said = new.run("restore", tmp_path / "broken.zip")
    assert (code, "NB-3072 No whole backup of nbpulse: public.users" in said) == (1, True), said


def rewrite(source: Path, target: Path, *, tables: dict[str, bytes] | None = None, **changes: Any) -> None:
    """The same archive with other words in it, all hashes right."""
    with read_archive(source) as old, write_archive(target, overwrite=False) as new:
        copied = {}
        for member in (old.manifest.stream, *(table.rows for table in old.manifest.tables)):
            with new.add(member.name) as writer:
                writer.write((tables or {}).get(member.name) or b"".join(old.read(member)))
            copied[member.name] = writer.finish()
        manifest = msgspec.structs.replace(
            old.manifest,
            tables=[msgspec.structs.replace(one, rows=copied[one.name]) for one in old.manifest.tables],
            **changes,
        )
        new.close(manifest)


async def test_a_full_disk_is_told_and_leaves_the_older_file(
    full_database: str, make_valkey: Callable[[], str], tmp_path: Path
) -> None:
    machine, file = Machine(full_database, make_valkey(), tmp_path / "old"), tmp_path / "b.zip"
    machine.settings.read_encryption_keys()
    file.write_bytes(b"older")
    code, said = machine.run("backup", file, "--force", file_limit_bytes=1_000_000)
    assert (code, f"NB-3071 The backup could not be written to {file}: File too large" in said) == (1, True), said
    assert "Traceback" not in said
    assert (file.read_bytes(), list_names(tmp_path)) == (b"older", ["b.zip", "old"])


def count_archived(file: Path) -> int:
    with read_archive(file) as archive:
        return sum(table.rows.rows for table in archive.manifest.tables)


def list_names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def test_a_rotation_and_a_backup_wait_for_each_other_and_only_who_sees_all_backs_up(
    backed_up: Machine, server_18: str, tmp_path: Path
) -> None:
    async with connect(backed_up.database_url) as connection:
        await connection.execute("SELECT pg_advisory_lock(6622002)")
        assert "NB-3062" in backed_up.run("backup", tmp_path / "c.zip")[1]
    password = backed_up.settings.make_password("nbpulse_api")
    blind = with_login(backed_up.database_url, "nbpulse_api", password)
    assert "NB-3018" in backed_up.run("backup", tmp_path / "c.zip", NBPULSE_DATABASE_URL=blind)[1]
    async with connect(backed_up.database_url) as connection:
        await connection.execute(f"ALTER ROLE nbpulse_migrator PASSWORD '{password}'")
    keeper = with_login(backed_up.database_url, "nbpulse_migrator", password)
    assert backed_up.run("backup", tmp_path / "keeper.zip", NBPULSE_DATABASE_URL=keeper)[0] == 0
    assert count_archived(tmp_path / "keeper.zip") == count_archived(tmp_path / "b.zip") > 50
    empty = await make_empty_database(server_18)
    assert "NB-3076" in backed_up.run("backup", tmp_path / "c.zip", NBPULSE_DATABASE_URL=empty)[1]
    assert not (tmp_path / "c.zip").exists()
