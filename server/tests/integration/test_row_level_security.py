"""docs/access.md tried out: every role, table and command with real logins, and the ways around a table."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from nbpulse.migrations.runner import with_login
from nbpulse.shards import get_shard_number
from stores import WORKER_PASSWORD, connect, create_database

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "access.md"
ROLES = ("app_writer", "app_reader", "nbpulse_operator", "app_maintenance")
COMMANDS = {"S": "SELECT", "I": "INSERT", "U": "UPDATE", "D": "DELETE"}
# A column every reader of the table may read and, where anybody may change something, change.
COLUMNS = {"tokens": "last_used_at", "users": "username", "courses": "title", "sealing_keys": "canary"}
COLUMNS |= {"notebooks": "title", "notebook_cells": "title"}
COLUMNS |= {"learner_states": "inbox_revision", "messages": "state", "passwords": "changed_at"}
# Who adds a row, and whose.
ADDED = (
    ("fresh", "fresh"),
    ("fresh", "classmate"),
    ("teacher", "teacher"),
    ("teacher", "stranger"),
    (None, "fresh"),
)
NOT_OF_EXTENSIONS = "NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')"
"""Citus has views of its own."""
_numbers = count(1)


def read_truth() -> dict[str, list[str]]:
    """Table -> the cells of its line: app_user S, I, U, then what each of ROLES may do."""
    rows = re.findall(r"^\| ([a-z_.0-9]+) \|(.+)\|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


TRUTH = read_truth()


def read_staff_truth() -> dict[str, str]:
    """Table -> which rows `app_staff` reads."""
    lines = re.findall(r"^- (people|staff|read): ([a-z_ ]+)$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return {table: scope for scope, tables in lines for table in tables.split()}


STAFF_TRUTH = read_staff_truth()


@dataclass
class School:
    """Two courses with a teacher each, three students, and one row of every table for each of them."""

    database_url: str
    courses: list[UUID] = field(default_factory=lambda: [uuid4(), uuid4()])
    notebooks: list[UUID] = field(default_factory=lambda: [uuid4(), uuid4()])
    meetings: list[UUID] = field(default_factory=lambda: [uuid4(), uuid4()])
    # Name -> (id, number of the course); `fresh` is in no course and has no row but their own.
    people: dict[str, tuple[UUID, int]] = field(
        default_factory=lambda: {
            "student": (uuid4(), 0),
            "classmate": (uuid4(), 0),
            "stranger": (uuid4(), 1),
            "teacher": (uuid4(), 0),
            "other_teacher": (uuid4(), 1),
            "fresh": (uuid4(), 0),
        }
    )

    def make_row(self, table: str, person: str) -> dict[str, Any]:
        """A new row of the table that is that person's (or their course's)."""
        user_id, course = self.people[person]
        number, course_id, notebook_id = next(_numbers), self.courses[course], self.notebooks[course]
        mine = {"user_id": user_id, "shard": get_shard_number(user_id)}
        when = "2026-11-23T01:02:03Z"
        event = {"event_id": uuid4(), "occurred_at": when}
        point = {"user_id": user_id, "time_ns": number, "course_id": course_id, "notebook_path": "x"}
        rows: dict[str, dict[str, Any]] = {
            "users": {"id": user_id if person == "fresh" else uuid4(), "username": f"u{number}"},
            "courses": {"id": uuid4(), "title": "x", "short_name": f"c{number}"},
            "enrolments": {"user_id": user_id, "course_id": course_id, "role": "student"},
            "tokens": {"user_id": user_id, "kind": "student", "secret_hash": b"x"},
            "passwords": {"user_id": user_id, "hash": "x"},
            "external_identities": {"provider": "jupyterhub", "subject": str(number), "user_id": user_id},
            "collection_versions": {"course_id": course_id, "version": number, "level": "metadata"},
            "consents": mine | {"id": uuid4(), "course_id": course_id, "action": "accept"},
            "invitations": {"id": uuid4(), "course_id": course_id, "role": "assistant", "secret_hash": b"x"}
            | {"created_by": user_id, "expires_at": when, "revoked_at": None},
            "report_shares": {"id": uuid4(), "course_id": course_id, "meeting_id": self.meetings[course]}
            | {"secret_hash": b"x", "created_by": user_id, "expires_at": when, "revoked_at": None},
            "notebooks": {"course_id": course_id, "path": f"{number}.ipynb"},
            "notebook_cells": {"notebook_id": notebook_id, "cell_id": str(number)},
            "class_meetings": {"course_id": course_id, "ended_at": when},
            "course_maps": {"course_id": course_id},
            "lesson_positions": {"course_id": course_id, "notebook_id": notebook_id, "cell_id": str(number)},
            "error_groups": {"course_id": course_id, "fingerprint": f"{number:016x}", "fingerprint_version": 1},
            "events": mine
            | event
            | {"received_at": when, "ordinal": number, "course_id": course_id}
            | {"event_type": "presence", "sequence": 1, "data": "{}"},
            "learning_sessions": mine | {"course_id": course_id, "started_at": when},
            "learner_states": mine | {"course_id": course_id},
            "learner_cells": mine
            | {"course_id": course_id, "notebook_id": notebook_id, "cell_id": str(number)}
            | {"revision": 1, "attempt_count": 1, "error_count": 0, "last_status": "ok", "last_at": when}
            | {"last_sequence": 1},
            "help_requests": mine | {"id": uuid4(), "course_id": course_id, "opened_at": when},
            "messages": mine
            | {"id": uuid4(), "course_id": course_id, "batch_id": uuid4(), "thread_id": uuid4(), "sender_id": user_id}
            | {"is_from_staff": False, "kind": "message", "body": "x", "revision": number},
            "interventions": mine
            | {"id": uuid4(), "course_id": course_id, "alert_id": uuid4(), "staff_id": user_id, "action": "claim"}
            | {"revision": number},
            "event_ids": mine | event | {"ordinal": number, "received_at": when},
            "event_contents": mine | event | {"course_id": course_id},
            "timeseries.cell_executions": point | {"event_type": "cell_execution", "has_error": False},
            "timeseries.cell_executions_1m": {"minute_ns": number, "user_id": user_id, "course_id": course_id}
            | {"notebook_path": "x", "duration_bins": "{}"}
            | {"execution_count": 1, "timed_count": 1, "duration_sum_ms": 1.0, "error_count": 0},
            "timeseries.stale_minutes": {"minute_ns": number, "user_id": user_id, "course_id": course_id},
            "timeseries.cell_executions_10m": {"slot_ns": number, "user_id": user_id, "course_id": course_id}
            | {"notebook_path": "x", "execution_count": 1, "timed_count": 1, "duration_sum_ms": 1.0, "error_count": 0},
            "timeseries.durations_10m": {"slot_ns": number, "course_id": course_id, "user_ids": "{}"}
            | {"bins": "{}", "counts": "{}"},
            "timeseries.learning_progress": point
            | {"completed_cells": 1, "total_cells": 1, "progress_percentage": 100.0, "session_duration_ms": 1},
            "timeseries.performance_metrics": point | {"cell_type": "code", "error_rate": 0.0},
            "series_marks": mine | {"notebook_id": notebook_id, "since": when},
            "series_standings": mine | {"notebook_id": notebook_id, "until": when, "oks": "{}", "sessions": "{}"},
            "dead_letters": {"stream": "x", "entry_id": str(number), "user_id": user_id, "code": "x", "reason": "x"}
            | {"deliveries": 1, "payload": "x"},
            "series_debt": {"id": uuid4(), "points": b"x"},
            "series_rejects": mine | {"time_ns": number, "reason": "x"},
            "event_counts": {"slot": number},
            "spent_entries": {"stream": "x", "entry_id": str(number), "outcome": "duplicate"},
            "rollup_debts": {"id": uuid4(), "user_ids": "{}", "course_ids": "{}"},
            "recent_runs": mine
            | {"course_id": course_id, "notebook_id": notebook_id, "half_minute": number, "runs": 1, "errors": 0},
            "shard_databases": {"name": str(number)},
            "shard_map": {"shard": number + 64, "database": "main"},
            "shard_owners": {"shard": number + 64},
            "shard_moves": {"shard": number + 64, "source": "main", "target": "main"},
            "stream_bases": {"generation": str(number), "base": 1},
            "tombstones": {"mark": f"m{number}", "kind": "user"},
            "sealing_keys": {"key_id": str(number), "canary": "x"},
            "audit_log": {"id": number, "action": "joined", "subject_id": user_id, "link": b"x"},
            "sealing_progress": {"key_id": str(number), "table_name": "x", "column_name": "x", "last_key": ["x"]}
            | {"resealed": 1},
        }
        return rows[table]

    def may_user(self, scopes: str, asker: str | None, table: str, person: str) -> bool:
        """Whether `asker` (None: nobody) may do it to that person's row, by a cell of the document."""
        if "all" in scopes.split():
            return True
        if asker is None:
            return False
        same_course = self.people[asker][1] == self.people[person][1] and "fresh" not in (asker, person)
        teaches = asker.endswith("teacher")
        return any(
            {
                "own": asker == person,
                "staff": teaches and same_course,
                "led": teaches and same_course,
                "member": same_course,
                "people": teaches and same_course,
                "read": teaches and same_course,
                "-": False,
            }[scope]
            for scope in scopes.split()
        )


def compose_insert(table: str, row: dict[str, Any]) -> str:
    def write(value: Any) -> str:
        if isinstance(value, bytes):
            return f"'\\x{value.hex()}'"
        if isinstance(value, list):
            return f"ARRAY['{value[0]}']"
        return "NULL" if value is None else f"'{value}'"

    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(map(write, row.values()))})"


def compose(command: str, table: str, row: dict[str, Any], person: str) -> str:
    keys: dict[str, tuple[str, ...]] = {
        "users": ("id",),
        "courses": ("id",),
        "tokens": ("user_id",),
        "class_meetings": ("course_id",),
        "shard_databases": ("name",),
        "shard_map": ("shard",),
        "shard_owners": ("shard",),
        "shard_moves": ("shard",),
    }
    names = keys.get(table) or [
        name for name in row if name.endswith(("id", "_ns", "path", "role", "short_name", "slot", "generation", "mark"))
    ]
    where = " AND ".join(f"{name} = '{row[name]}'" for name in names)
    if command == "I":
        return compose_insert(table, row)
    if command == "S":
        return f"SELECT 1 FROM {table} WHERE {where}"
    if command == "U":
        column = COLUMNS.get(table) or list(row)[-1]
        return f"UPDATE {table} SET {column} = {column} WHERE {where}"
    return f"DELETE FROM {table} WHERE {where}"


class Undo(Exception):
    """Ends a transaction without keeping it."""


async def is_done(
    connection: asyncpg.Connection, statement: str, asker: UUID | None = None, *, role: str | None = None
) -> bool:
    """Whether the statement did something (rolled back); False when it touched no row or was refused."""
    done = ""
    try:
        async with connection.transaction():
            if role:
                await connection.execute(f"SET LOCAL ROLE {role}")
            if asker:
                await connection.execute(f"SELECT ask_as('{asker}')")
            done = await connection.execute(statement)
            raise Undo
    except Undo:
        return not done.endswith(" 0")
    except asyncpg.InsufficientPrivilegeError:
        return False
    except (asyncpg.ForeignKeyViolationError, asyncpg.UniqueViolationError):
        return True  # rights are asked before: it was allowed to try


@asynccontextmanager
async def sign_in(school: School, login: str) -> AsyncIterator[asyncpg.Connection]:
    async with connect(with_login(school.database_url, login, WORKER_PASSWORD)) as connection:
        yield connection


@pytest.fixture(scope="module")
def school(embedded_postgres: str) -> School:
    return asyncio.run(found_school(embedded_postgres))


async def found_school(server_url: str) -> School:
    school = School(await create_database(server_url))
    async with connect(school.database_url) as owner:
        for course_id, notebook_id, meeting_id in zip(school.courses, school.notebooks, school.meetings, strict=True):
            await owner.execute(
                "INSERT INTO courses (id, title, short_name) VALUES ($1, 'x', $2)", course_id, course_id.hex
            )
            await owner.execute(
                "INSERT INTO notebooks (id, course_id, path) VALUES ($1, $2, 'x')", notebook_id, course_id
            )
            await owner.execute(
                "INSERT INTO class_meetings (id, course_id, ended_at) VALUES ($1, $2, now())", meeting_id, course_id
            )
        for name, (user_id, course) in school.people.items():
            await owner.execute("INSERT INTO users (id, username) VALUES ($1, $2)", user_id, name)
            if name != "fresh":
                role = "instructor" if name.endswith("teacher") else "student"
                await owner.execute(
                    "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, $3)",
                    *(user_id, school.courses[course], role),
                )
        for login, role in (("nbpulse_operator", None), ("analyst", "app_reader"), ("keeper", "app_maintenance")):
            if not await owner.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", login):
                await owner.execute(f"CREATE ROLE {login} LOGIN NOSUPERUSER NOBYPASSRLS")
            await owner.execute(f"ALTER ROLE {login} PASSWORD '{WORKER_PASSWORD}'")
            if role:
                await owner.execute(f"GRANT {role} TO {login}")
    return school


def list_rows(school: School, table: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A row of each kind: the student's, a classmate's, another course's, the teacher's own."""
    for person in ("student", "classmate", "stranger", "teacher"):
        row = school.make_row(table, person)
        user_id, course = school.people[person]
        # These stand there already, under the person's or the course's own id.
        row |= {"users": {"id": user_id}, "courses": {"id": school.courses[course]}}.get(table, {})
        yield person, row


@pytest.mark.parametrize("table", TRUTH)
async def test_the_truth_table_holds_for_the_api(school: School, table: str) -> None:
    reads, adds, changes = TRUTH[table][:3]
    async with connect(school.database_url) as owner, sign_in(school, "nbpulse_api") as api:
        for person, row in list_rows(school, table):
            if table == "enrolments":
                row["role"] = "instructor" if person == "teacher" else "student"
            elif table not in ("users", "courses"):
                await owner.execute(compose_insert(table, row) + " ON CONFLICT DO NOTHING")
            for asker in ("student", "teacher", "other_teacher", "fresh", None):
                asker_id = school.people[asker][0] if asker else None
                for command, scopes in (("S", reads), ("U", changes), ("D", "-")):
                    if command == "S" and table in (
                        "dead_letters",
                        "series_debt",
                        "series_rejects",
                        "series_marks",
                        "series_standings",
                        "sealing_progress",
                    ):
                        assert scopes == "-"
                    done = await is_done(api, compose(command, table, row, person), asker_id)
                    assert done == school.may_user(scopes, asker, table, person), (table, command, asker, person)
        for asker, person in (
            ("fresh", "fresh"),
            ("fresh", "classmate"),
            ("teacher", "teacher"),
            ("teacher", "stranger"),
            (None, "fresh"),
        ):
            row = school.make_row(table, person)
            statement = compose_insert(table, row)
            if table == "users" and person == "fresh":
                await owner.execute("DELETE FROM users WHERE id = $1", row["id"])
            expected = school.may_user(adds, asker, table, person)
            if table in ("users", "enrolments") and asker == "teacher":
                continue  # they are there already
            done = await is_done(api, statement, school.people[asker][0] if asker else None)
            assert done == expected, (table, "I", asker, person)
            if table == "users" and person == "fresh":
                await owner.execute("INSERT INTO users (id, username) VALUES ($1, 'fresh')", row["id"])


@pytest.mark.parametrize("table", TRUTH)
async def test_as_staff_the_api_reads_the_rows_of_the_asker_s_courses_and_changes_none(
    school: School, table: str
) -> None:
    assert set(STAFF_TRUTH) < set(TRUTH)
    scope = STAFF_TRUTH.get(table, "-")
    async with connect(school.database_url) as owner, sign_in(school, "nbpulse_api") as api:
        for person, row in list_rows(school, table):
            if table == "enrolments":
                row["role"] = "instructor" if person == "teacher" else "student"
            elif table not in ("users", "courses"):
                await owner.execute(compose_insert(table, row) + " ON CONFLICT DO NOTHING")
            for asker in ("student", "teacher", "other_teacher", "fresh", None):
                asker_id = school.people[asker][0] if asker else None
                for command in COMMANDS:
                    done = await is_done(api, compose(command, table, row, person), asker_id, role="app_staff")
                    expected = command == "S" and school.may_user(scope, asker, table, person)
                    is_staff = asker is not None and asker.endswith("teacher")
                    assert done == (expected and is_staff), (table, command, asker, person)


async def test_the_staff_s_policies_are_not_inherited_by_the_api(school: School) -> None:
    async with sign_in(school, "nbpulse_api") as api:
        assert await api.fetchval("SELECT pg_has_role('nbpulse_api', 'app_staff', 'SET')")
        assert not await api.fetchval("SELECT pg_has_role('nbpulse_api', 'app_staff', 'USAGE')")


@pytest.mark.parametrize("table", TRUTH)
async def test_the_truth_table_holds_for_every_other_role(school: School, table: str) -> None:
    logins = {"app_writer": "nbpulse_worker", "app_reader": "analyst", "app_maintenance": "keeper"}
    for role, letters in zip(ROLES, TRUTH[table][3:], strict=True):
        async with connect(school.database_url) as owner, sign_in(school, logins.get(role, role)) as connection:
            row = school.make_row(table, "stranger")
            if table == "users":
                row["id"] = uuid4()
            if table != "enrolments":
                await owner.execute(compose_insert(table, row) + " ON CONFLICT DO NOTHING")
            for command in COMMANDS:
                person = "stranger"
                wanted = school.make_row(table, "fresh" if table == "enrolments" else person) if command == "I" else row
                if command == "I" and table == "users":
                    wanted["id"] = uuid4()
                done = await is_done(connection, compose(command, table, wanted, person))
                assert done == (command in letters), (table, role, command)


async def test_the_truth_table_names_every_table(school: School) -> None:
    async with connect(school.database_url) as owner:
        rows = await owner.fetch(
            "SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname IN ('public', 'timeseries') AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
        )
    assert {row["name"] for row in rows} == TRUTH.keys() | {"alembic_version"}


async def test_every_table_and_partition_is_protected_also_from_its_owner(school: School) -> None:
    async with connect(school.database_url) as owner:
        open_tables = await owner.fetch(
            "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname IN ('public', 'timeseries') AND c.relkind IN ('r', 'p')"
            " AND NOT (c.relrowsecurity AND c.relforcerowsecurity)"
        )
        assert open_tables == []
        for table in TRUTH:
            async with owner.transaction():
                await owner.execute("SET LOCAL ROLE nbpulse_owner")
                assert await owner.fetchval(f"SELECT count(*) FROM {table}") == 0, table
        assert await owner.fetchval("SELECT count(*) FROM users") > 0


async def test_nothing_goes_around_the_tables(school: School) -> None:
    async with connect(school.database_url) as owner:
        granted = await owner.fetch(
            "SELECT c.oid::regclass::text, a.grantee::regrole FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) a"
            " WHERE n.nspname IN ('public', 'timeseries')"
            " AND (a.grantee = 0 OR c.relispartition AND a.grantee <> c.relowner)"
            f" AND {NOT_OF_EXTENSIONS}"
        )
        assert granted == []
        views = await owner.fetch(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname IN ('public', 'timeseries') AND (c.relkind = 'm' OR c.relkind = 'v'"
            " AND NOT coalesce(c.reloptions::text LIKE '%security_invoker=true%', false))"
            f" AND {NOT_OF_EXTENSIONS}"
        )
        assert views == []
        functions = await owner.fetch(
            "SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
            " WHERE n.nspname IN ('public', 'timeseries') AND p.prosecdef"
            " AND (NOT coalesce(p.proconfig::text LIKE '%search_path=%', false) OR p.proacl IS NULL"
            " OR EXISTS (SELECT FROM aclexplode(p.proacl) WHERE grantee = 0))"
        )
        assert functions == []
        roles = await owner.fetch(
            "SELECT rolname FROM pg_roles WHERE (rolname LIKE 'app\\_%' OR rolname LIKE 'nbpulse\\_%')"
            " AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb)"
        )
        assert roles == []
    async with sign_in(school, "nbpulse_api") as api:
        for child in ("events_default", "learning_sessions_default", "timeseries.cell_executions_default"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await api.fetch(f"SELECT * FROM {child}")
        for column, table in (("secret_hash", "tokens"), ("*", "tokens")):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await api.fetch(f"SELECT {column} FROM {table}")
    async with sign_in(school, "analyst") as analyst:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await analyst.fetch("SELECT join_code FROM courses")


async def test_what_is_no_user_is_an_error_and_not_somebody(school: School) -> None:
    async with sign_in(school, "nbpulse_api") as api:
        with pytest.raises(asyncpg.DataError, match="invalid input syntax for type uuid"):
            await api.execute("SET LOCAL app.current_user_id = 'teacher'; SELECT * FROM events")
        # After a transaction the setting is '' and means nobody, for whoever comes next on this connection.
        assert await api.fetch("SELECT * FROM learner_states") == []


async def test_only_students_enrol_themselves_and_only_staff_removes_a_demo(school: School) -> None:
    course, fresh = school.courses[0], school.people["fresh"][0]
    promotion = f"INSERT INTO enrolments (user_id, course_id, role) VALUES ('{fresh}', '{course}', 'instructor')"
    token = f"INSERT INTO tokens (user_id, kind, secret_hash) VALUES ('{fresh}', 'staff', 'x')"
    async with connect(school.database_url) as owner, sign_in(school, "nbpulse_api") as api:
        assert not await is_done(api, promotion, fresh)
        assert not await is_done(api, token, fresh)
        demo = await owner.fetchval(
            "INSERT INTO courses (title, short_name, is_demo) VALUES ('d', 'd', TRUE) RETURNING id"
        )
        async with api.transaction():
            await api.execute(f"SET LOCAL app.current_user_id = '{school.people['teacher'][0]}'")
            assert await api.fetchval("SELECT remove_demo_course($1)", demo) is None
            assert await api.fetchval("SELECT remove_demo_course($1)", course) is None
            made = await api.fetchval("SELECT open_rehearsal('r', 'CODE')")
        async with api.transaction():
            await api.execute(f"SET LOCAL app.current_user_id = '{school.people['teacher'][0]}'")
            assert await api.fetchval("SELECT remove_demo_course($1)", made) == 0
            await api.execute(f"SET LOCAL app.current_user_id = '{school.people['student'][0]}'")
            assert await api.fetchval("SELECT open_rehearsal('r', 'CODE2')") is None
