"""The one place that says who may do what.

Every route has its rule here, by method and path; the application refuses to start with a route that has none, or a
rule without a route. A cached yes lives at most 30 s; only while the database is away does an old one let events in.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable
from enum import Enum, auto
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from starlette.requests import HTTPConnection, Request

from nbpulse.api.cookies import SESSION, Cookies
from nbpulse.api.hub_access import COURSE_HEADER, KIND, HubGate, choose_course
from nbpulse.api.limits import RequestLimits, find_address
from nbpulse.errors import AccessDenied, NotFound, NotYet, Unavailable
from nbpulse.records.people import COURSE_READ, COURSE_WRITE, INBOX_READ, People, Person

YES_LIFE_S: Final = 30.0
_REFRESH_AFTER_S: Final = 20.0
_LOOKUP_LIMIT_S: Final = 2.0
# A student whose token was good a quarter of an hour ago may deliver while the database is away: see `find_learner`.
_GRACE_S: Final = 900.0
_PEOPLE_KEPT: Final = 20_000
_IN_PERSON: Final = frozenset({"session", "staff", "student"})
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Rule(Enum):
    """Who may use a route."""

    ANYONE = auto()
    LOCAL = auto()
    """Callers on this machine, not through a proxy."""
    SIGNED_IN = auto()
    OWNER = auto()
    """Who came in person: a session, a student's Jupyter, or a token of the operator's making; no script's token."""
    DELIVERER = auto()
    """A token with the scope events:write."""
    STUDENT = auto()
    """A token with the scope inbox:read."""
    STAFF = auto()
    """An instructor or assistant of the course in the path."""
    READER = auto()
    """The same, or an analyst of it, who is answered without names (downloads.py)."""
    INSTRUCTOR = auto()
    """An instructor of the course in the path."""
    CREATOR = auto()
    """Who may change something in whatever course is theirs; whether they may make one, the database says."""
    FIRST_MESSAGE = auto()
    """Staff of the course, proved by the WebSocket's first message (sockets.py)."""


RULES: Final[dict[str, Rule]] = {
    "GET /": Rule.ANYONE,
    "GET /me": Rule.ANYONE,
    "GET /courses": Rule.ANYONE,
    "GET /courses/{course_id}": Rule.ANYONE,
    "GET /courses/{course_id}/{page:path}": Rule.ANYONE,
    "GET /join": Rule.ANYONE,
    "GET /join/{code}": Rule.ANYONE,
    "GET /shared/report": Rule.ANYONE,
    "GET /web/{path:path}": Rule.ANYONE,
    "GET /health": Rule.ANYONE,
    "GET /health/live": Rule.ANYONE,
    "GET /health/ready": Rule.ANYONE,
    "GET /metrics": Rule.LOCAL,
    "GET /api/v1/openapi.json": Rule.ANYONE,
    "GET /api/v1/errors": Rule.ANYONE,
    "POST /api/v1/join": Rule.ANYONE,
    "GET /api/v1/join/notice": Rule.ANYONE,
    "POST /api/v1/sign-in": Rule.ANYONE,
    "GET /api/v1/sign-in": Rule.ANYONE,
    "POST /api/v1/sign-in/password": Rule.ANYONE,
    "POST /api/v1/sign-in/{provider}": Rule.ANYONE,
    "GET /api/v1/sign-in/{provider}/callback": Rule.ANYONE,
    "POST /api/v1/sign-out": Rule.SIGNED_IN,
    "POST /api/v1/sign-out/everywhere": Rule.SIGNED_IN,
    "POST /api/v1/events": Rule.DELIVERER,
    "GET /api/v1/me": Rule.SIGNED_IN,
    "GET /api/v1/me/account": Rule.SIGNED_IN,
    "PUT /api/v1/me/password": Rule.SIGNED_IN,
    "GET /api/v1/me/export": Rule.SIGNED_IN,
    "GET /api/v1/me/audit": Rule.SIGNED_IN,
    "GET /api/v1/me/tokens": Rule.OWNER,
    "POST /api/v1/me/tokens": Rule.OWNER,
    "DELETE /api/v1/me/tokens/{token_id}": Rule.OWNER,
    "GET /api/v1/me/inbox": Rule.STUDENT,
    "POST /api/v1/me/messages": Rule.DELIVERER,
    "PUT /api/v1/me/messages/{message_id}/state": Rule.DELIVERER,
    "GET /api/v1/me/session": Rule.STUDENT,
    "GET /api/v1/me/progress": Rule.STUDENT,
    "POST /api/v1/me/link": Rule.STUDENT,
    "GET /api/v1/me/collection": Rule.STUDENT,
    "POST /api/v1/me/consent": Rule.STUDENT,
    "GET /api/v1/courses": Rule.SIGNED_IN,
    "POST /api/v1/courses": Rule.CREATOR,
    "PATCH /api/v1/courses/{course_id}": Rule.INSTRUCTOR,
    "POST /api/v1/courses/{course_id}/copies": Rule.INSTRUCTOR,
    "POST /api/v1/courses/{course_id}/notebooks": Rule.INSTRUCTOR,
    "GET /api/v1/courses/{course_id}/join-code.svg": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/readiness": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/live": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/charts": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/projector": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/series": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/notebooks/{notebook_id}/summary": Rule.STAFF,
    "PUT /api/v1/courses/{course_id}/notebooks/{notebook_id}/position": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/sessions": Rule.READER,
    "GET /api/v1/courses/{course_id}/students/{user_id}/sessions": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/students/{user_id}": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/students/{user_id}/runs": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/cells/{notebook_id}": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/errors/{fingerprint}": Rule.STAFF,
    "PATCH /api/v1/courses/{course_id}/errors/{fingerprint}": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/progress": Rule.READER,
    "GET /api/v1/courses/{course_id}/failing-cells": Rule.READER,
    "GET /api/v1/courses/{course_id}/common-errors": Rule.READER,
    "GET /api/v1/courses/{course_id}/slow-cells": Rule.READER,
    "GET /api/v1/courses/{course_id}/recovery-times": Rule.READER,
    "GET /api/v1/courses/{course_id}/activity": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/error-rate": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/integrity": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/meetings": Rule.STAFF,
    "POST /api/v1/courses/{course_id}/meetings": Rule.STAFF,
    "POST /api/v1/courses/{course_id}/meetings/end": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/meetings/{meeting_id}/replay": Rule.STAFF,
    "POST /api/v1/courses/{course_id}/meetings/{meeting_id}/reopen": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/meetings/{meeting_id}/report": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/meetings/{meeting_id}/report.csv": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/meetings/{meeting_id}/report/shares": Rule.INSTRUCTOR,
    "POST /api/v1/courses/{course_id}/meetings/{meeting_id}/report/shares": Rule.INSTRUCTOR,
    "DELETE /api/v1/courses/{course_id}/meetings/{meeting_id}/report/shares/{share_id}": Rule.INSTRUCTOR,
    "POST /api/v1/shared/report": Rule.ANYONE,
    "POST /api/v1/courses/{course_id}/alerts/{alert_id}/{action}": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/interventions": Rule.STAFF,
    "POST /api/v1/courses/{course_id}/messages": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/messages": Rule.STAFF,
    "POST /api/v1/courses/{course_id}/tickets": Rule.STAFF,
    "POST /api/v1/courses/{course_id}/rehearsals": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/collection": Rule.STAFF,
    "PUT /api/v1/courses/{course_id}/collection": Rule.STAFF,
    "GET /api/v1/courses/{course_id}/rules": Rule.STAFF,
    "PUT /api/v1/courses/{course_id}/rules": Rule.INSTRUCTOR,
    "POST /api/v1/courses/{course_id}/rules/preview": Rule.INSTRUCTOR,
    "GET /api/v1/courses/{course_id}/map": Rule.STAFF,
    "PUT /api/v1/courses/{course_id}/map": Rule.INSTRUCTOR,
    "GET /api/v1/courses/{course_id}/map/picture": Rule.STAFF,
    "PUT /api/v1/courses/{course_id}/map/picture": Rule.INSTRUCTOR,
    "DELETE /api/v1/courses/{course_id}/map/picture": Rule.INSTRUCTOR,
    "GET /api/v1/courses/{course_id}/people": Rule.STAFF,
    "PATCH /api/v1/courses/{course_id}/people/{user_id}": Rule.INSTRUCTOR,
    "POST /api/v1/courses/{course_id}/people/approvals": Rule.INSTRUCTOR,
    "PATCH /api/v1/courses/{course_id}/entry": Rule.INSTRUCTOR,
    "POST /api/v1/courses/{course_id}/join-code": Rule.INSTRUCTOR,
    "POST /api/v1/courses/{course_id}/roster": Rule.INSTRUCTOR,
    "POST /api/v1/courses/{course_id}/invitations": Rule.INSTRUCTOR,
    "DELETE /api/v1/courses/{course_id}/invitations/{invitation_id}": Rule.INSTRUCTOR,
    "POST /api/v1/invitations/describe": Rule.ANYONE,
    "POST /api/v1/invitations/accept": Rule.ANYONE,
    "DELETE /api/v1/courses/{course_id}": Rule.STAFF,
    "WS /api/v1/courses/{course_id}/ws": Rule.FIRST_MESSAGE,
}


# What asks for a ticket reads a board.
_READ_BY_POST: Final = frozenset({"POST /api/v1/courses/{course_id}/tickets"})


def find_scope(route: str) -> str | None:
    """The scope that a token must have at a course's route for staff; None elsewhere."""
    if RULES[route] not in (Rule.STAFF, Rule.READER, Rule.INSTRUCTOR):
        return None
    return COURSE_READ if route.startswith("GET ") or route in _READ_BY_POST else COURSE_WRITE


def check_rules(routes: Iterable[str]) -> None:
    """Raises RuntimeError when a route has no rule, or a rule no route: then nothing may start."""
    found = set(routes)
    if wrong := found ^ RULES.keys():
        raise RuntimeError(f"routes and access rules differ: {', '.join(sorted(wrong))}")


class Gate:
    """Knows who is asking, and lets them in by the route's rule."""

    def __init__(
        self, people: People, limits: RequestLimits, public_url: str | None, hub: HubGate | None = None
    ) -> None:
        self._people = people
        self._cookies = Cookies(public_url)
        self._limits = limits
        self._hub = hub
        self._public_origin = _find_origin(public_url) if public_url else None
        self._known: OrderedDict[str, tuple[Person, float]] = OrderedDict()
        # By token and by how often somebody was forgotten: what was asked before may have been read before the change.
        self._lookups: dict[tuple[str, int], asyncio.Task[Person | None]] = {}
        self._changes = 0

    async def admit(self, request: Request, route: str) -> Person | None:
        """
        Let the request through by the route's rule, as whom (None: nobody in particular).

        Raises AccessDenied (NB-1101 nobody, NB-1103 not you, NB-1107 from another site, NB-111x by a JupyterHub's
        word, NB-1182 not by this token), NotFound (NB-1202: a course that is none of theirs), TooMuch (NB-1172,
        NB-1174), NotYet (NB-1140), Unavailable.
        """
        rule = RULES[route]
        if rule is Rule.ANYONE:
            self._check_origin(request, is_required=False)
            return None
        if rule is Rule.LOCAL:
            _check_local(request)
            return None
        token, is_cookie = self._read_token(request)
        if token and is_cookie:
            self._check_origin(request, is_required=True)
        request.state.person = person = await self.find_person(token, find_address(request.scope))
        self._limits.meet_token(person.token_id)
        if rule is Rule.DELIVERER or rule is Rule.STUDENT:
            scope = "events:write" if rule is Rule.DELIVERER else "inbox:read"
            person = _as_student(person, scope, request.headers.get(COURSE_HEADER))
        elif (rule is Rule.OWNER and person.kind not in _IN_PERSON) or (rule is Rule.CREATOR and not person.may_create):
            raise AccessDenied("NB-1103")
        elif (reach := find_scope(route)) is not None:
            course = check_staff(person, request.path_params.get("course_id"), or_analyst=rule is Rule.READER)
            if rule is Rule.INSTRUCTOR and person.roles[course] != "instructor":
                raise AccessDenied("NB-1103")
            if not person.may(reach):
                raise AccessDenied("NB-1182", scope=reach)
        return person

    async def find_learner(self, authorization: str | None, address: str, course: str | None = None) -> Person:
        """
        Who delivers events, from the Authorization header's value, and to which course, where it is named.

        While the database (or the hub) is away a yes of the last 15 min stands: accepted events must not wait for it.
        Raises as `admit`.
        """
        person = await self.find_person(_read_bearer(authorization), address, grace_s=_GRACE_S)
        return _as_student(person, "events:write", course)

    async def find_person(self, token: str | None, address: str, *, grace_s: float = 0.0) -> Person:
        """
        Whom the token stands for that came from `address`.

        Raises AccessDenied (NB-1101, NB-111x, NB-1340), TooMuch (NB-1174), Unavailable.
        """
        if not token:
            raise AccessDenied("NB-1101")
        person, found_at = self._known.get(token, (None, 0.0))
        age_s = time.monotonic() - found_at
        if person is not None and age_s < _REFRESH_AFTER_S:
            return person
        if person is None:  # looking up costs the database something, and whoever guesses asks for it
            self._limits.check_refusals(address)
        asked = token, self._changes
        lookup = self._lookups.get(asked)
        if lookup is None:
            lookup = self._lookups[asked] = asyncio.create_task(self._look_up(*asked))
            lookup.add_done_callback(lambda done: self._forget_lookup(asked, done))
        if person is not None and age_s < YES_LIFE_S:
            return person
        try:
            async with asyncio.timeout(_LOOKUP_LIMIT_S):
                fresh = await asyncio.shield(lookup)
        except AccessDenied:
            self._limits.note_refusal(address)
            raise
        except (Unavailable, TimeoutError) as error:
            if person is not None and age_s < YES_LIFE_S + grace_s:
                return person
            who_is_away = "NB-2010" if self._is_hubs(token) else "NB-2003"
            raise Unavailable(error.code if isinstance(error, Unavailable) else who_is_away) from error
        if fresh is None:
            self._limits.note_refusal(address)
            raise AccessDenied("NB-1101")
        return fresh

    def forget_person(self, user_id: UUID) -> None:
        """What they may do is another now: look all their tokens up anew."""
        self._changes += 1
        for token in [token for token, (known, _) in self._known.items() if known.user_id == user_id]:
            del self._known[token]

    def forget_students(self, course_id: UUID, user_id: UUID | None = None) -> None:
        """What holds of the course's people (or of this one) is another now: look them up anew."""
        self._changes += 1
        for token, (known, _) in list(self._known.items()):
            is_meant = known.course_id == course_id or course_id in known.roles
            if is_meant and user_id in (None, known.user_id):
                del self._known[token]

    async def find_staff(self, token_id: UUID, course_id: UUID) -> Person:
        """Whom a token proved earlier stands for now, as staff of the course. Raises as `admit`."""
        person = await self._people.find_person_by_id(token_id)
        if person is None:
            raise AccessDenied("NB-1101")
        check_staff(person, course_id)
        return person

    def is_own_origin(self, connection: HTTPConnection) -> bool:
        """Whether the Origin header names this server, as it is addressed or by its public URL."""
        origin = connection.headers.get("origin", "")
        scheme = "https" if connection.url.scheme in ("https", "wss") else "http"
        own = _find_origin(f"{scheme}://{connection.headers.get('host', '')}")
        return _find_origin(origin) in {own, self._public_origin} - {None}

    def _read_token(self, request: Request) -> tuple[str | None, bool]:
        """The token and whether it came as a cookie; a header given on purpose goes first."""
        if (authorization := request.headers.get("authorization")) is not None:
            return _read_bearer(authorization), False
        return self._cookies.read(request, SESSION), True

    def _check_origin(self, request: Request, *, is_required: bool) -> None:
        """What a browser does by itself with our cookie, or to plant one, must come from our pages (decision 0017)."""
        if request.method in _SAFE_METHODS:
            return
        is_foreign = (is_required or "origin" in request.headers) and not self.is_own_origin(request)
        if is_foreign or request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            raise AccessDenied("NB-1107")

    def _is_hubs(self, token: str) -> bool:
        return self._hub is not None and not token.startswith("nbp_")

    async def _look_up(self, token: str, changes: int) -> Person | None:
        try:
            ask = self._hub.find_person if self._hub and self._is_hubs(token) else self._people.find_person
            person = await ask(token)
        except AccessDenied:
            self._known.pop(token, None)
            raise
        if person is None:
            self._known.pop(token, None)
        elif changes == self._changes:
            self._known[token] = (person, time.monotonic())
            self._known.move_to_end(token)
            if len(self._known) > _PEOPLE_KEPT:
                self._known.popitem(last=False)
        return person

    def _forget_lookup(self, asked: tuple[str, int], done: asyncio.Task[Person | None]) -> None:
        self._lookups.pop(asked, None)
        if not done.cancelled():
            done.exception()  # whoever waits has it; a refresh in the background simply comes again


def check_staff(person: Person, course_id: object, *, or_analyst: bool = False) -> UUID:
    """The course. Raises AccessDenied (NB-1103) for its others, NotFound (NB-1202) for strangers."""
    try:
        course = course_id if isinstance(course_id, UUID) else UUID(str(course_id))
    except ValueError as error:
        raise NotFound("NB-1202") from error
    if person.is_staff(course) or (or_analyst and person.is_analyst(course)):
        return course
    if course in person.roles:
        raise AccessDenied("NB-1103")
    raise NotFound("NB-1202")


def _as_student(person: Person, scope: str, course: str | None) -> Person:
    """
    The person in the one course in which they do this: that of the token; a hub's token is made for none, and who is
    signed in at the board names one of those in which they are a student.
    """
    if person.kind == "session" and person.course_id is None and scope == INBOX_READ:
        named = next((one for one, role in person.roles.items() if role == "student" and str(one) == course), None)
        if named is None:
            raise AccessDenied("NB-1103")
        return msgspec.structs.replace(person, course_id=named)
    if scope not in person.scopes:
        raise AccessDenied("NB-1103")
    if person.kind == KIND:
        return choose_course(person, course, delivers=scope == "events:write")
    if person.course_id is None:  # there is nowhere to put an event
        raise AccessDenied("NB-1103")
    if scope == "events:write":
        if person.course_id in person.archived:
            raise AccessDenied("NB-1211")
        role = person.roles.get(person.course_id)
        if role == "waiting":
            raise NotYet("NB-1140")
        if role == "former":
            raise AccessDenied("NB-1141")
    return person


def _check_local(request: Request) -> None:
    is_forwarded = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip"))
    host = request.client.host if request.client else ""
    if is_forwarded or not (host.startswith("127.") or host in ("::1", "::ffff:127.0.0.1")):
        raise AccessDenied("NB-1103")


def _read_bearer(authorization: str | None) -> str | None:
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() in ("bearer", "token") else None  # `token` is how Jupyter's clients say it


def _find_origin(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of an address; None when it has none."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname and port else None
