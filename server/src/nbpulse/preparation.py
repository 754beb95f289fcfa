"""Makes a database ready: schema, logins, the first course, its teacher. What `up`, `migrate` and `link` share.

Promises: doing it again changes nothing; a database that is up to date never waits for Alembic's import.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from nbpulse.crypto import EncryptedField
from nbpulse.embedded import EmbeddedReplica
from nbpulse.errors import StartupError
from nbpulse.records import replication
from nbpulse.records.courses import Course, Courses
from nbpulse.records.databases import list_urls
from nbpulse.records.owner import OwnerPool, is_current, open_owner, set_passwords
from nbpulse.records.people import People
from nbpulse.records.primaries import publish_directory
from nbpulse.records.sealing import check_keys
from nbpulse.settings import Settings
from nbpulse.simulator import BEGINS_MIN
from nbpulse.terminal import get_text, show_progress

LOGINS: Final = ("nbpulse_api", "nbpulse_worker", "nbpulse_operator")
COURSE_SHORT_NAME: Final = "class"
DEMO_SHORT_NAME: Final = "demo"
_TOKEN_FILE = "teacher.token"
_REVISION = re.compile(r'^revision = "(\w+)"\ndown_revision = (?:"(\w+)"|None)$', re.MULTILINE)


def list_revisions() -> list[str]:
    """Every migration's number, the oldest first, as each file names the one before: Alembic need not be imported."""
    after: dict[str | None, str] = {}
    for path in (Path(__file__).parent / "migrations" / "versions").glob("[0-9]*.py"):
        found = _REVISION.search(path.read_text(encoding="utf-8"))
        assert found is not None, path  # noqa: S101 - a file of ours
        after[found[2]] = found[1]
    revisions: list[str] = []
    while (following := after.get(revisions[-1] if revisions else None)) is not None:
        revisions.append(following)
    return revisions


def find_newest_revision() -> str:
    """The newest migration's number."""
    return list_revisions()[-1]


async def ensure_schema(settings: Settings) -> bool:
    """
    Migrate if needed and set the logins' passwords, in every database of the map; True when something was migrated.

    The directory comes last: a column that it has and the others have not would stop what they are sent of it.

    Raises StartupError: no database set (NB-3052), one does not answer (NB-3053), its login may not do this (NB-3018).
    """
    if not settings.database_url:
        raise StartupError("NB-3052", setting="NBPULSE_DATABASE_URL")
    async with open_owner(settings.database_url) as pool:
        others = await list_urls(pool)
    passwords = make_passwords(settings)
    changed = [await ensure_newest(url, passwords) for url in (*others.values(), settings.database_url)]
    if others and changed[-1]:
        async with open_owner(settings.database_url) as pool:
            await publish_directory(pool)
    return any(changed)


async def ensure_newest(database_url: str, passwords: Mapping[str, str]) -> bool:
    """One database's schema and logins; True when something was migrated. Raises like `ensure_schema`."""
    async with open_owner(database_url) as pool:
        if await is_current(pool, find_newest_revision(), passwords):
            await set_passwords(pool, passwords)
            return False
    await migrate_schema(database_url, passwords)
    return True


async def distribute_schema(settings: Settings) -> None:
    """
    Migrate, and distribute what grows over the Citus cluster of the database; done again it goes on where it stopped.

    Raises StartupError: as `ensure_schema`, and NB-3115 to NB-3118 (migrations/citus.py).
    """
    if not settings.database_url:
        raise StartupError("NB-3052", setting="NBPULSE_DATABASE_URL")
    from nbpulse.migrations import citus

    passwords = make_passwords(settings)
    async with citus.connect(settings.database_url) as connection:
        await citus.check(connection)
        await migrate_schema(settings.database_url, passwords)  # also a current one: the nodes get the logins
        with show_progress(get_text("distributing")) as report:
            await citus.distribute(connection, passwords, report)


def make_passwords(settings: Settings) -> dict[str, str]:
    """Of every login that a migration makes."""
    return {login: settings.make_password(login) for login in LOGINS}


async def migrate_schema(database_url: str, passwords: Mapping[str, str], revision: str = "head") -> None:
    """`migrations.migrate`; raises StartupError (NB-3018) where the login may not do this."""
    from sqlalchemy.exc import ProgrammingError

    from nbpulse.migrations import migrate

    try:
        await migrate(database_url, passwords, revision)
    except ProgrammingError as error:
        raise StartupError("NB-3018", detail=str(error.orig)) from error


async def prepare(settings: Settings, *, is_demo: bool, has_replica: bool | None = None) -> dict[str, Any]:
    """
    Everything `up` has to know before its parts can go on: logins, course, join code, teacher's token and link.

    `has_replica`: whether the embedded PostgreSQL has a replica of ours from now on; None: it is not ours to say.

    Raises StartupError: like `ensure_schema`, and when the keys do not open what is sealed in the database (NB-3060).
    """
    await ensure_schema(settings)
    if not settings.database_url:
        raise StartupError("NB-3052", setting="NBPULSE_DATABASE_URL")
    seal = EncryptedField(settings.read_encryption_keys())
    async with open_owner(settings.database_url) as pool:
        await check_keys(pool, seal)
        if has_replica:
            await replication.ensure_login(pool, settings.make_password(replication.LOGIN))
        elif has_replica is False and (settings.data_dir / EmbeddedReplica.name).exists():
            await replication.drop_slot(pool)  # else the log is kept for one that does not come back
        course, teacher_id = await (renew_demo_course if is_demo else ensure_course)(pool, seal)
        people = People(pool, seal)
        link_code = await people.create_link(teacher_id)
        teacher_token = await _ensure_token(people, teacher_id, settings.data_dir)
    return {
        "course_id": str(course.id),
        "course_title": course.title,
        "join_code": course.join_code,
        "is_demo": course.is_demo,
        "teacher_token": teacher_token,
        "link_code": link_code,
        "api_database_url": find_login_url(settings, "nbpulse_api", settings.api_database_url),
        "worker_database_url": find_login_url(settings, "nbpulse_worker", settings.worker_database_url),
        "replication_url": find_login_url(settings, replication.LOGIN, None),
        "operator_database_url": find_login_url(settings, "nbpulse_operator", None),
    }


async def ensure_course(pool: OwnerPool, seal: EncryptedField) -> tuple[Course, UUID]:
    """The default course and its teacher."""
    courses = Courses(pool, seal)
    course = await courses.ensure_course(get_text("course_title"), COURSE_SHORT_NAME)
    return course, await courses.ensure_teacher(course.id, display_name=get_text("teacher"))


async def renew_demo_course(pool: OwnerPool, seal: EncryptedField) -> tuple[Course, UUID]:
    """
    The demo's own course, always a new one: what an earlier simulated class did is removed. Its class is on already.
    """
    courses = Courses(pool, seal)
    if old := await courses.find_course(DEMO_SHORT_NAME):
        await courses.delete_course(old.id)
    course = await courses.ensure_course(get_text("demo_course_title"), DEMO_SHORT_NAME, is_demo=True)
    await courses.begin_meeting(course.id, datetime.now(UTC) - timedelta(minutes=BEGINS_MIN))
    return course, await courses.ensure_teacher(course.id, display_name=get_text("teacher"))


async def _ensure_token(people: People, teacher_id: UUID, data_dir: Path) -> str:
    """The teacher's token for scripts, the same at every start as long as it works."""
    path = data_dir / _TOKEN_FILE
    if path.exists():
        token = path.read_text(encoding="utf-8").strip()
        person = await people.find_person(token)
        if person is not None and person.user_id == teacher_id:
            return token
        path.unlink()
    token = await people.create_staff_token(teacher_id)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token + "\n")
    return token


def find_login_url(settings: Settings, login: str, given: str | None) -> str:
    """The database URL of one of our logins: as set, else the owner's address with the login `migrate` made."""
    if given:
        return given
    scheme, _, rest = (settings.database_url or "").partition("://")
    return f"{scheme}://{login}:{settings.make_password(login)}@{rest.rpartition('@')[2]}"
