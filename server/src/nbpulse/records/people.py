"""People and their tokens: joining a class, signing in, and whom a token stands for.

Promises: of a token only the SHA-256 of its secret is kept, and it is compared in constant time; a sign-in link works
once; joining again with the resume code gives the same person, and without it never somebody else's work. Names are
sealed before they reach a column.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Final, Literal
from uuid import UUID, uuid4

import asyncpg
import msgspec

from nbpulse.collection import DEFAULT, Notice, Policy
from nbpulse.crypto import EncryptedField
from nbpulse.errors import AccessDenied, Unavailable
from nbpulse.identity import asking_as, identify
from nbpulse.metrics import PostgresQuery, name_query
from nbpulse.records.audit import note_audit
from nbpulse.records.consents import note_consent, read_policy
from nbpulse.records.databases import Databases
from nbpulse.records.failures import UNAVAILABLE
from nbpulse.records.tokens import (
    LINK_LIFE,
    PASSWORD_SET,
    PROVIDED_LIFE,
    SESSION_IDLE,
    add_secret,
    add_session,
    add_token,
    clean_code,
    hash_secret,
    is_hash_of,
    make_code,
    parse_token,
)
from nbpulse.records.tombstones import refuse_erased
from nbpulse.roster import is_same_name
from nbpulse.shards import get_shard_number
from nbpulse.tombstones import Marker

INBOX_READ: Final = "inbox:read"
STUDENT_SCOPES: Final = ("events:write", INBOX_READ)
COURSE_READ: Final = "course:read"
COURSE_WRITE: Final = "course:write"
STAFF_ROLES: Final = frozenset({"assistant", "instructor"})
ANALYST: Final = "analyst"
QUERY_LIMIT_S: Final = 5.0
_USE_NOTED: Final = timedelta(minutes=5)


Teams = tuple[str, ...]
Isolation = Literal["read_committed", "repeatable_read"]
read_teams: Final = msgspec.json.Decoder(dict[UUID, Teams]).decode


class Person(msgspec.Struct, frozen=True):
    """
    Whom a token stands for, and what it may do. A token of one course bears only that course's role.

    `archived`: courses that are over, of those to which their token or their system's word leads.

    `courses`, by short name: of who comes through another system, whose token names none.
    """

    token_id: UUID
    kind: str
    user_id: UUID
    course_id: UUID | None
    scopes: frozenset[str]
    roles: dict[UUID, str]
    courses: dict[str, UUID] = {}
    policies: dict[UUID, Policy | None] = {}
    """None: they have withdrawn there. Beside `courses`, of the same people."""
    collection: Policy = DEFAULT
    """What may be collected of them in the token's course."""
    archived: frozenset[UUID] = frozenset()
    teams: dict[UUID, Teams] = {}
    """Of the courses in which they see a part of the students: whose."""

    def may(self, scope: str) -> bool:
        """
        Whether the token reaches so far: a session, or a token of the operator's making, as far as its owner.

        A session of one course began with the link that a student's Jupyter made: it is theirs as a student.
        """
        is_whole = self.kind == "staff" or (self.kind == "session" and self.course_id is None)
        return scope in self.scopes or (is_whole and scope in (COURSE_READ, COURSE_WRITE))

    @property
    def may_create(self) -> bool:
        """Whether the token reaches to making a course, where its owner may: it is bound to none."""
        return self.course_id is None and self.may(COURSE_WRITE)

    def is_analyst(self, course_id: UUID) -> bool:
        """True for who reads the course's history without names, by a token that reads courses."""
        return self.may(COURSE_READ) and self.roles.get(course_id) == ANALYST

    def is_staff(self, course_id: UUID) -> bool:
        """True for an instructor or assistant of the course, by a token meant for staff."""
        return self.may(COURSE_READ) and self.roles.get(course_id) in STAFF_ROLES


class Joined(msgspec.Struct, frozen=True):
    """What a student gets at joining. `resume_code` is shown once, at the first join; None when they came back."""

    token: str
    user_id: UUID
    course_id: UUID
    username: str
    course_title: str
    resume_code: str | None
    collection: Notice
    is_waiting: bool
    """Staff have to let them in first: until then nothing of theirs is taken."""


class CourseRole(msgspec.Struct, frozen=True):
    """One course as its member sees it."""

    id: UUID
    title: str
    time_zone: str
    role: str
    is_demo: bool
    is_archived: bool


_FIND_TOKEN = """
SELECT t.*, c.*, CASE WHEN t.kind <> 'student' THEN find_team_views(t.user_id) END AS team_views,
    t.course_id IS NOT NULL AND is_course_archived(t.course_id) AS is_archived
FROM find_token($1) t LEFT JOIN LATERAL find_collection(t.user_id, t.course_id) c ON true
"""


class People:
    """People, tokens and enrolments on PostgreSQL. Every method raises Unavailable (NB-2003) when it is away."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        seal: EncryptedField,
        marker: Marker | None = None,
        databases: Databases | None = None,
    ) -> None:
        self._pool = pool
        self.seal = self._seal = seal
        self.marker = marker
        self.databases = databases
        """Where students' rows are; None: nothing is asked of any but the directory."""

    @asynccontextmanager
    async def connect(
        self,
        query_type: PostgresQuery,
        *,
        is_staff: bool = False,
        isolation: Isolation = "read_committed",
        look: Callable[[asyncpg.Connection], Awaitable[None]] | None = None,
    ) -> AsyncIterator[asyncpg.Connection]:
        """
        A connection in a transaction of at most 5 s, as who asks; the driver's errors leave as Unavailable.

        `is_staff`: it reads the work of the courses of which they are staff, and nothing else but what is their own,
        and that much faster who sees them whole. `isolation`: "repeatable_read" shows all its reads one moment.
        `look`: what is asked first, as the login itself.
        """
        with name_query(query_type):
            acquiring = self._pool.acquire(timeout=QUERY_LIMIT_S)
        try:
            async with acquiring as connection, connection.transaction(isolation=isolation):
                if look is not None:
                    await look(connection)
                await connection.execute(introduce(is_staff=is_staff))
                yield connection
        except (*UNAVAILABLE, asyncpg.QueryCanceledError) as error:
            raise Unavailable("NB-2003") from error

    async def check(self) -> None:
        """One round trip, on Citus to every node too: that nothing is to be read is found out where it would be."""
        async with self.connect("check") as connection:
            await connection.execute("SELECT FROM learner_cells WHERE now() < '-infinity'")

    # --- tokens ---------------------------------------------------------------------------------------------------

    async def find_person(self, token: str) -> Person | None:
        """
        Whom `token` stands for; None where it is unknown or no token at all.

        Raises AccessDenied: it has expired or was revoked (NB-1161, and `whose` it was), its student has withdrawn
        (NB-1340) or was erased (NB-1345).
        """
        parsed = parse_token(token)
        if parsed is None:
            return None
        token_id, secret = parsed
        async with self.connect("find_person") as connection:
            row = await connection.fetchrow(_FIND_TOKEN, token_id)
            if row is None:
                withdrawn = await connection.fetchval("SELECT find_withdrawal($1)", token_id)
                if withdrawn is not None and is_hash_of(withdrawn, secret):
                    raise AccessDenied("NB-1340")
                if self.marker is not None:
                    await refuse_erased(connection, self.marker.mark_token(token_id, hash_secret(secret)))
                ended = await connection.fetchrow("SELECT * FROM find_ended_token($1)", token_id)
                if ended is not None and is_hash_of(ended["secret_hash"], secret):
                    raise AccessDenied("NB-1161", whose=ended["user_id"])
                return None
            if not is_hash_of(row["secret_hash"], secret):
                return None
            return await _use_token(connection, row)

    async def find_person_by_id(self, token_id: UUID) -> Person | None:
        """Whom a token already proved stands for now; None once it is revoked or expired."""
        async with self.connect("find_person") as connection:
            row = await connection.fetchrow(_FIND_TOKEN, token_id)
            return await _use_token(connection, row) if row else None

    async def revoke_token(self, token_id: UUID) -> UUID | None:
        """Revoke one token: whose it was; None when there was none to revoke."""
        async with self.connect("revoke_token") as connection:
            row = await connection.fetchrow(
                "UPDATE tokens SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL"
                " RETURNING user_id, kind, course_id",
                token_id,
            )
            if row is None:
                return None
            facts: dict[str, str | int | bool] = {"token_id": str(token_id), "kind": row["kind"]}
            subject = {"course_id": row["course_id"], "subject_id": row["user_id"]}
            await note_audit(connection, "token_revoked", **subject, facts=facts)
        user_id: UUID = row["user_id"]
        return user_id

    async def create_staff_token(self, user_id: UUID, course_id: UUID | None = None) -> str:
        """A Bearer token for scripts, with the roles of `user_id` (in one course only, when one is named)."""
        async with self.connect("create_token") as connection:
            return await add_token(connection, "staff", user_id, course_id)

    async def create_link(self, user_id: UUID) -> str:
        """A one-use code of 10 minutes for the fragment of a sign-in link."""
        async with self.connect("create_token") as connection:
            code = await add_token(connection, "link", user_id, None, life=LINK_LIFE)
            await note_audit(connection, "link_created", subject_id=user_id)
        return code

    async def create_own_link(self, user_id: UUID, course_id: UUID) -> str:
        """
        A one-use code of 10 minutes with which a student's Jupyter opens their own page: its session is of that course
        and theirs as a student alone, sets no password, and ends after 12 hours.
        """
        async with self.connect("create_token") as connection:
            code = await add_token(connection, "link", user_id, course_id, life=LINK_LIFE)
            await note_audit(connection, "link_created", course_id=course_id, subject_id=user_id)
        return code

    async def use_link(self, code: str) -> tuple[UUID, str]:
        """
        Exchange a link's code for a session: the user and the session's token.

        Raises AccessDenied: the code is unknown, used or too old (NB-1104), the account closed (NB-1125).
        """
        token_id, secret = parse_token(code) or (uuid4(), "")
        async with self.connect("use_link") as connection:
            row = await connection.fetchrow(_FIND_TOKEN, token_id)
            if row is None or row["kind"] != "link" or not is_hash_of(row["secret_hash"], secret):
                raise AccessDenied("NB-1104")
            await _become(connection, row["user_id"])
            used = await connection.execute(
                "UPDATE tokens SET revoked_at = now(), last_used_at = now() WHERE id = $1 AND revoked_at IS NULL",
                token_id,
            )
            if used != "UPDATE 1":  # somebody else was quicker
                raise AccessDenied("NB-1104")
            if (course_id := row["course_id"]) is None:
                token = await add_session(connection, row["user_id"], scopes=(PASSWORD_SET,))
            else:
                whose = (row["user_id"], course_id)
                token = await add_token(connection, "session", *whose, scopes=(INBOX_READ,), life=PROVIDED_LIFE)
            await note_audit(connection, "session_started", subject_id=row["user_id"], facts={"by": "link"})
        return row["user_id"], token

    async def describe_person(self, person: Person) -> tuple[str, list[CourseRole]]:
        """The person's display name, and their courses as far as the token reaches, newest first."""
        async with self.connect("describe_person") as connection:
            user = await connection.fetchrow("SELECT username, display_name FROM users WHERE id = $1", person.user_id)
            rows = await connection.fetch(
                "SELECT c.id, c.title, c.time_zone, e.role, c.is_demo, c.archived_at IS NOT NULL AS is_archived"
                " FROM enrolments e JOIN courses c ON c.id = e.course_id"
                " WHERE e.user_id = $1 AND c.id = ANY($2::uuid[]) ORDER BY c.created_at DESC",
                person.user_id,
                list(person.roles),
            )
        name = open_name(self._seal, person.user_id, user["username"], user["display_name"]) if user else ""
        return name, [CourseRole(**dict(row)) for row in rows]

    # --- joining --------------------------------------------------------------------------------------------------

    async def join(
        self,
        join_code: str,
        display_name: str,
        student_number: str | None = None,
        resume_code: str | None = None,
        notice_version: int | None = None,
    ) -> Joined:
        """
        Enrol a student by the class's code, or give a known one a token for another machine.

        The resume code decides who it is; who had left waits to be let in again. Without it, a number that the roster
        expects goes to who bears its name too; any other number that is taken makes a new person whose enrolment says
        whom they may be the same as; staff decide.

        `notice_version` is the one the student was shown, None where the client showed none of ours.

        Raises AccessDenied: no such class (NB-1105), one that is over (NB-1211), a resume code that does not fit
        (NB-1106), and for newcomers a code that is closed (NB-1142) or too old (NB-1143). InvalidInput
        (NB-1342): no such version.
        """
        async with self.connect("join") as connection:
            course = await connection.fetchrow("SELECT * FROM open_course_by_code($1)", clean_code(join_code))
            if course is None:
                raise AccessDenied("NB-1105")
            if await connection.fetchval("SELECT is_course_archived($1)", course["id"]):
                raise AccessDenied("NB-1211")
            holder = await connection.fetchrow("SELECT * FROM find_number_holder($1, $2)", course["id"], student_number)
            holder_id = holder["user_id"] if holder else None
            if resume_code is not None:
                user_id, username = await _resume(connection, course["id"], resume_code, holder_id)
                await _come_in(connection, user_id, course["id"], "waiting")
                new_code = None
            elif course["is_closed"] or course["is_expired"]:
                raise AccessDenied("NB-1142" if course["is_closed"] else "NB-1143")
            else:
                if holder and self._is_expected(holder, display_name):
                    user_id, username = holder["user_id"], holder["username"]
                    await _come_in(connection, user_id, course["id"], _choose_role(course))
                else:
                    names = display_name, student_number, holder_id
                    user_id, username = await self._add_student(connection, course, *names)
                new_code = make_code(12)
                await add_secret(connection, "resume", user_id, course["id"], new_code)
            token = await add_token(connection, "student", user_id, course["id"], scopes=STUDENT_SCOPES)
            notice = await note_consent(connection, user_id, course["id"], notice_version)
            role = await connection.fetchval(
                "SELECT role FROM enrolments WHERE user_id = $1 AND course_id = $2", user_id, course["id"]
            )
        shown = "-".join(new_code[start : start + 4] for start in (0, 4, 8)) if new_code else None
        return Joined(token, user_id, course["id"], username, course["title"], shown, notice, role == "waiting")

    def _is_expected(self, holder: asyncpg.Record, typed: str) -> bool:
        """Whether the number is on the roster for somebody of that name who has not come yet."""
        whose = {"table": "enrolments", "user_id": holder["user_id"]}
        columns = [column for column in ("roster_name", "roster_kana") if holder[column] is not None]
        names = [self._seal.unseal(holder[column], column=column, **whose) for column in columns]
        return holder["is_expected"] and is_same_name(typed, *names)

    async def _add_student(
        self,
        connection: asyncpg.Connection,
        course: asyncpg.Record,
        display_name: str,
        student_number: str | None,
        holder: UUID | None,
    ) -> tuple[UUID, str]:
        user_id = uuid4()
        await _become(connection, user_id)
        sealed = self._seal.seal(display_name, table="users", column="display_name", user_id=user_id)
        username = student_number if student_number and holder is None else ""
        insert = "INSERT INTO users (id, username, display_name) VALUES ($1, $2, $3) ON CONFLICT (username) DO NOTHING"
        if not username or await connection.execute(insert, user_id, username, sealed) != "INSERT 0 1":
            # No number, or one that another course's student bears already.
            username = f"{course['short_name']}-{course['joined_count']}"
            await connection.execute(insert.partition(" ON CONFLICT")[0], user_id, username, sealed)
        await connection.execute(
            "INSERT INTO enrolments (user_id, course_id, role, student_number, maybe_same_as)"
            " VALUES ($1, $2, $3, $4, $5)",
            *(user_id, course["id"], _choose_role(course), student_number, holder),
        )
        state = (user_id, get_shard_number(user_id), course["id"])
        await connection.execute("INSERT INTO learner_states (user_id, shard, course_id) VALUES ($1, $2, $3)", *state)
        return user_id, username


def introduce(*, is_staff: bool) -> str:
    """The statements that open a transaction as who asks; see `People.connect`."""
    limit = f"SELECT set_config('statement_timeout', '{int(QUERY_LIMIT_S * 1000)}', true)"
    role = "; SELECT read_as_staff()" if is_staff else ""
    return f"{limit}; {identify()}{role}"


def _choose_role(course: asyncpg.Record) -> str:
    return "waiting" if course["needs_approval"] else "student"


async def _come_in(connection: asyncpg.Connection, user_id: UUID, course_id: UUID, role: str) -> None:
    await _become(connection, user_id)
    await connection.execute("SELECT come_in($1, $2)", course_id, role)


async def _resume(
    connection: asyncpg.Connection, course_id: UUID, resume_code: str, holder: UUID | None
) -> tuple[UUID, str]:
    wanted = hash_secret(clean_code(resume_code))
    row = await connection.fetchrow("SELECT * FROM find_resume_code($1, $2)", course_id, wanted)
    if row is None or holder not in (None, row["user_id"]):
        raise AccessDenied("NB-1106")
    return row["user_id"], row["username"]


async def _use_token(connection: asyncpg.Connection, row: asyncpg.Record) -> Person | None:
    """Whom the token of `find_token` stands for, its use noted; None for a session that was idle too long."""
    used_at, now = row["last_used_at"], datetime.now(UTC)
    if row["kind"] == "session" and now - (used_at or now) > SESSION_IDLE:
        return None
    if used_at is None or now - used_at > _USE_NOTED:
        await _become(connection, row["user_id"])
        await connection.execute("UPDATE tokens SET last_used_at = now() WHERE id = $1", row["id"])
    return _read_person(row)


async def _become(connection: asyncpg.Connection, user_id: UUID) -> None:
    """For the rest of the transaction the one who asks is `user_id`: they have just proved it, or are just made."""
    with asking_as(user_id):
        await connection.execute(identify())


def _read_person(row: asyncpg.Record) -> Person:
    return Person(
        token_id=row["id"],
        kind=row["kind"],
        user_id=row["user_id"],
        course_id=row["course_id"],
        scopes=frozenset(row["scopes"]),
        roles=dict(zip(row["courses"] or (), row["roles"] or (), strict=True)),
        collection=read_policy(row),
        archived=frozenset((row["course_id"],) if row["is_archived"] else ()),
        teams=read_teams(row["team_views"] or "{}"),
    )


def open_name(seal: EncryptedField, user_id: UUID, username: str, sealed: str | None) -> str:
    """The display name in clear, the username where there is none."""
    if sealed is None:
        return username
    return seal.unseal(sealed, table="users", column="display_name", user_id=user_id)
