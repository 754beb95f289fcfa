"""What one API process notes in the audit log without anybody waiting for it: who looked at whom, who was refused.

Promises: a look is noted once in 15 minutes per (who, course, student or class), whatever is asked how often; of
refusals each kind from each source is noted at once and then counted, one row a minute, and all kinds together at
most 100 rows a minute. What is noted here reaches the log within 2 s, or when the database is back; a process that is
killed takes its last seconds with it. A download is in the log before it is given.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from starlette.requests import HTTPConnection, Request

from nbpulse.errors import AccessDenied, NbpulseError, Unavailable
from nbpulse.records.audit import AuditAction, AuditLog, Entry
from nbpulse.records.people import Person

LOOK_LIFE: Final = timedelta(minutes=15)
COUNT_S: Final = 60.0
FLUSH_S: Final = 1.0
KINDS_MAX: Final = 100
_LOOKS_KEPT: Final = 50_000
_WAITING_MAX: Final = 10_000
_BATCH: Final = 200
_DOWNLOADS: Final = frozenset({"csv", "ndjson", "parquet"})
_NO: Final = frozenset({"0", "false", "off", "no", "n", "f", ""})
_COURSE: Final = "GET /api/v1/courses/{course_id}/"
LOOKS: Final = frozenset(
    _COURSE + place
    for place in (
        "live",
        "charts",
        "series",
        "notebooks/{notebook_id}/summary",
        "sessions",
        "students/{user_id}/sessions",
        "students/{user_id}",
        "students/{user_id}/runs",
        "cells/{notebook_id}",
        "errors/{fingerprint}",
        "progress",
        "failing-cells",
        "common-errors",
        "slow-cells",
        "recovery-times",
        "activity",
        "error-rate",
        "integrity",
        "meetings/{meeting_id}/replay",
        "meetings/{meeting_id}/report",
        "meetings/{meeting_id}/report.csv",
        "interventions",
        "messages",
        "readiness",
    )
)
"""The reads that show students' work."""
_REFUSALS: Final = frozenset({"NB-1102", "NB-1180", "NB-1181", "NB-1202"})
"""Beside every AccessDenied: another's `user_id`, too many wrong codes or passwords, a course that is not theirs."""
_TOKEN_HEADERS: Final = frozenset({"authorization", "cookie"})

_log = structlog.get_logger(__name__)


class _Kind(NamedTuple):
    """What is counted together. Who has proved nothing is known by their network (IPv4 /24, IPv6 /48)."""

    code: str
    actor_id: UUID | None
    course_id: UUID | None
    network: str


_OTHER: Final = _Kind("other", None, None, "")


@dataclass
class _Count:
    count: int = 0
    told_at: float = -COUNT_S


class AuditTrail:
    """What waits to be noted by this process."""

    def __init__(self, log: AuditLog) -> None:
        self.log = log
        self._seen: OrderedDict[tuple[object, ...], float] = OrderedDict()
        self._looks: deque[Entry] = deque(maxlen=_WAITING_MAX)
        self._refusals: dict[_Kind, _Count] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Notes what comes while inside; what is left at the end is noted then."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._flush(is_last=True)

    async def note_request(self, request: Request, place: str, person: Person) -> None:
        """An admitted request to `place`, a key of RULES. Raises Unavailable: a download could not be noted."""
        if place not in LOOKS:
            return
        course_id, subject_id = (_parse(request.path_params.get(name)) for name in ("course_id", "user_id"))
        # A table has its form in the query; the report's has it in its name.
        form = "csv" if place.endswith(".csv") else request.query_params.get("format")
        if form in _DOWNLOADS:
            facts: dict[str, str | int | bool] = {"what": place.rpartition("/")[2], "form": form}
            if request.query_params.get("identified", "0").lower() not in _NO:
                facts["identified"] = True
            entry = Entry("exported", person.user_id, course_id, subject_id, facts, LOOK_LIFE)
            if self._is_new(entry):
                await self.log.add([entry])
                self._see(entry)
            return
        self.note_look(person.user_id, course_id, subject_id)

    def note_look(self, actor_id: UUID, course_id: UUID | None, subject_id: UUID | None = None) -> None:
        """Somebody of staff sees a student's work, or (None) the class's."""
        action: AuditAction = "student_viewed" if subject_id else "class_viewed"
        entry = Entry(action, actor_id, course_id, subject_id, once_within=LOOK_LIFE)
        if self._is_new(entry):
            self._see(entry)
            self._looks.append(entry)

    def note_refusal(self, error: NbpulseError, connection: HTTPConnection, person: Person | None = None) -> None:
        """Somebody was refused; what is no refusal is passed over, and so is a request that bears no token at all."""
        if not (isinstance(error, AccessDenied) or error.code in _REFUSALS):
            return
        # A board's token is in its first message.
        bears_token = connection.scope["type"] != "http" or any(name in connection.headers for name in _TOKEN_HEADERS)
        if error.code == "NB-1101" and not bears_token:
            return
        person = person or connection.scope.get("state", {}).get("person")
        if isinstance(whose := error.facts.get("whose"), UUID):
            self._count(_Kind(error.code, whose, None, ""), 1)
        elif person is None:
            network = find_network(connection.client.host if connection.client else "")
            self._count(_Kind(error.code, None, None, network), 1)
        else:
            self.count_refusals(error.code, person, _parse(connection.path_params.get("course_id")), 1)

    def count_refusals(self, code: str, person: Person, course_id: UUID | None, count: int) -> None:
        """So many refusals of one person."""
        self._count(_Kind(code, person.user_id, course_id, ""), count)

    def _count(self, kind: _Kind, count: int) -> None:
        if kind not in self._refusals and len(self._refusals) >= KINDS_MAX - 1:
            kind = _OTHER
        self._refusals.setdefault(kind, _Count()).count += count

    def _is_new(self, entry: Entry) -> bool:
        return time.monotonic() - self._seen.get(_key(entry), -1e9) >= LOOK_LIFE.total_seconds()

    def _see(self, entry: Entry) -> None:
        self._seen[_key(entry)] = time.monotonic()
        if len(self._seen) > _LOOKS_KEPT:
            self._seen.popitem(last=False)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self._flush()
            except Exception:  # noqa: BLE001 - whatever spoils one row must not end the noting; tried again
                _log.exception("audit.failed")

    async def _flush(self, *, is_last: bool = False) -> None:
        """Note what waits; while the database is away it goes on waiting."""
        now = time.monotonic()
        due = {
            kind: one.count
            for kind, one in self._refusals.items()
            if one.count and (is_last or now - one.told_at >= COUNT_S)
        }
        looks = list(self._looks)[:_BATCH]
        try:
            if due or looks:
                await self.log.add([*looks, *(_make_entry(kind, count) for kind, count in due.items())])
        except Unavailable as error:
            _log.warning("audit.waits", code=error.code, looks=len(self._looks), refusals=len(due))
            return
        for _ in looks[: len(self._looks)]:
            self._looks.popleft()
        for kind, count in due.items():
            self._refusals[kind].count -= count
            self._refusals[kind].told_at = now
        for kind in [k for k, one in self._refusals.items() if not one.count and now - one.told_at >= COUNT_S]:
            del self._refusals[kind]


def find_network(host: str) -> str:
    """The network of an address, which names no single machine; the text itself where it is no address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host[:40]
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 48), strict=False))


def _key(entry: Entry) -> tuple[object, ...]:
    return entry.action, entry.actor_id, entry.course_id, entry.subject_id, *entry.facts.values()


def _make_entry(kind: _Kind, count: int) -> Entry:
    facts: dict[str, str | int | bool] = {"code": kind.code, "count": count}
    if kind.network:
        facts["network"] = kind.network
    return Entry("access_refused", kind.actor_id, kind.course_id, facts=facts)


def _parse(text: object) -> UUID | None:
    try:
        return UUID(str(text)) if text else None
    except ValueError:
        return None
