"""Streaming replication by the start scripts of compose.yaml, on Debian's PostgreSQL 15, without containers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest

from container_scripts import COMPOSE, Postgres, Room, stopping
from servers import make_data_dir
from stores import connect, count_rows, create_database, make_class
from working import until

LOGIN, SLOT = "nbpulse_replica", "replica_1"
_STREAMING = f"""
SELECT state, active, usename FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid
WHERE slot_name = '{SLOT}' AND application_name = '{SLOT}'
"""


async def start(server: Postgres) -> None:
    server.service.start()

    async def answers() -> bool:
        return await asyncio.to_thread(server.is_ready)

    await until(answers)


async def until_streaming(primary: Postgres) -> None:
    async def streams() -> bool:
        return primary.ask(_STREAMING) == f"streaming|t|{LOGIN}"

    await until(streams)


async def until_same(primary_url: str, replica_url: str, table: str) -> None:
    async def is_same() -> bool:
        return await count_rows(primary_url, table) == await count_rows(replica_url, table)

    await until(is_same)


@pytest.fixture
def room() -> Iterator[Room]:
    with make_data_dir() as directory:
        yield Room(directory)


@pytest.fixture
def primary(room: Room) -> Iterator[Postgres]:
    """Initialised as the image does it, started."""
    server = Postgres(room, "primary")
    server.initialise()
    with stopping(server.service):
        asyncio.run(start(server))
        yield server


@pytest.fixture
def replica(room: Room, primary: Postgres) -> Iterator[Postgres]:
    """Not yet started."""
    server = Postgres(room, "replica", primary)
    with stopping(server.service):
        yield server


def count_base_backups(replica: Postgres) -> int:
    return replica.service.log.count("taking a base backup")


async def test_a_row_written_on_the_primary_is_read_and_never_written_on_the_replica(
    primary: Postgres, replica: Postgres
) -> None:
    cut_short = replica.volume / "cluster.new"
    replica.room.run(["mkdir", cut_short], replica.environment)
    replica.room.run(["touch", cut_short / "PG_VERSION"], replica.environment)
    url = await create_database(primary.make_url())
    copy = url.replace(f":{primary.port}/", f":{replica.port}/")
    await start(replica)
    await until_streaming(primary)

    course_id, _ = await make_class(url, students=3)
    await until_same(url, copy, "users")
    async with connect(copy) as connection:
        assert await connection.fetchval("SELECT title FROM courses WHERE id = $1", course_id) == "Test"
        assert await connection.fetchval("SELECT pg_is_in_recovery()")
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await connection.execute("DELETE FROM courses")
    assert not cut_short.exists()
    assert replica.room.read_secret("replication_password") not in (replica.data / "postgresql.auto.conf").read_text()


async def test_a_killed_replica_catches_up_without_a_new_base_backup(primary: Postgres, replica: Postgres) -> None:
    url = await create_database(primary.make_url())
    copy = url.replace(f":{primary.port}/", f":{replica.port}/")
    await start(replica)
    await until_streaming(primary)
    replica.service.kill()
    await make_class(url, students=40)
    primary.ask("SELECT pg_switch_wal()")  # what it missed is no longer in the segment it was reading
    primary.ask("CHECKPOINT")

    await start(replica)
    await until_streaming(primary)
    await until_same(url, copy, "users")
    assert await count_rows(copy, "users") == [40]
    assert count_base_backups(replica) == 1


async def test_a_replica_starts_while_the_primary_is_away_and_the_other_way_round(
    primary: Postgres, replica: Postgres
) -> None:
    primary.service.stop()
    replica.service.start()  # waits: nothing to copy from
    await start(primary)

    async def answers() -> bool:
        return await asyncio.to_thread(replica.is_ready)

    await until(answers)
    await until_streaming(primary)
    replica.service.stop()
    primary.service.stop()
    await start(replica)
    assert replica.ask("SELECT pg_is_in_recovery()") == "t"
    await start(primary)
    await until_streaming(primary)
    assert count_base_backups(replica) == 1


async def test_preparing_again_takes_the_new_password_and_changes_nothing_else(
    primary: Postgres, replica: Postgres
) -> None:
    secret = replica.room.secrets / "replication_password"
    await start(replica)
    await until_streaming(primary)
    replica.service.stop()
    rules = (primary.data / "pg_hba.conf").read_text()

    secret.chmod(0o644)
    secret.write_text('it\'s a\\new: "password"\n')
    primary.prepare_replication()
    await start(replica)
    await until_streaming(primary)
    assert (primary.data / "pg_hba.conf").read_text() == rules
    assert count_base_backups(replica) == 1


async def test_the_replication_login_replicates_with_its_password_and_can_do_nothing_else(primary: Postgres) -> None:
    def identify(password: str) -> int:
        command = ["psql", "-X", "-w", "-h", "127.0.0.1", "-p", str(primary.port), "-U", LOGIN, "-c", "IDENTIFY_SYSTEM"]
        environment = primary.environment | {"PGPASSWORD": password}
        return primary.room.run([*command, "replication=1"], environment, check=False).returncode

    assert identify(primary.room.read_secret("replication_password")) == 0
    assert identify("another") != 0
    rights = "rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication"
    assert primary.ask(f"SELECT {rights} FROM pg_roles WHERE rolname = '{LOGIN}'") == "f|f|f|f|t"
    assert primary.ask(f"SELECT count(*) FROM pg_auth_members WHERE member = '{LOGIN}'::regrole") == "0"


async def test_the_replica_is_healthy_only_while_it_receives(primary: Postgres, replica: Postgres) -> None:
    """By compose.yaml's own health check: a replica that is cut off still answers queries, with what it knew then."""
    check = ["sh", "-c", COMPOSE["services"]["postgres-replica"]["healthcheck"]["test"][1]]
    environment = replica.environment | {"PGHOST": str(replica.volume), "PGPORT": str(replica.port)}

    async def is_healthy() -> bool:
        return (await asyncio.to_thread(replica.room.run, check, environment, check=False)).returncode == 0

    async def is_cut_off() -> bool:
        return not await is_healthy()

    await start(replica)
    await until(is_healthy)
    primary.service.stop()
    await until(is_cut_off)
    assert await asyncio.to_thread(replica.is_ready)
    await start(primary)
    await until(is_healthy)


def test_a_directory_that_holds_something_else_is_left_alone(primary: Postgres, replica: Postgres) -> None:
    replica.room.run(["mkdir", replica.data], replica.environment)
    theirs = replica.data / "thesis.txt"
    replica.room.run(["touch", theirs], replica.environment)
    command = [replica.room.scripts / "replica-start.sh", *replica.options]
    done = replica.room.run(command, replica.environment, check=False)
    assert done.returncode == 1
    assert "holds something that is no PostgreSQL data" in done.stderr
    assert theirs.exists()
