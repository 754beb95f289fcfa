"""Who comes with a JupyterHub's token: the hub says who it is, its groups say in which courses.

Promises: the hub's word is the only one (a name in the request changes nothing); a token without nbpulse's scopes is
refused by name; a "no" is kept for 5 s, so that a flood of bad tokens does not become one at the hub.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from nbpulse.collection import DEFAULT
from nbpulse.errors import AccessDenied
from nbpulse.records.identities import Entered, enter_by_identity
from nbpulse.records.people import COURSE_READ, STUDENT_SCOPES, People, Person

if TYPE_CHECKING:
    from nbpulse.jupyterhub import HubUser, JupyterHub

KIND: Final = "hub"
COURSE_HEADER: Final = "nbpulse-course"
"""Names the course, by short name or id, where a student has several."""

PROVIDER: Final = "jupyterhub"
_NO_LIFE_S: Final = 5.0
_NOES_KEPT: Final = 10_000
_ROLE_BY_PREFIX: Final = {"instructor-": "instructor", "assistant-": "assistant", "course-": "student"}
_WRITE, _READ = "custom:nbpulse:write", "custom:nbpulse:read"
_ACCESS: Final = "access:services!service=nbpulse"


class HubGate:
    """Proves tokens at one hub."""

    def __init__(self, hub: JupyterHub, people: People) -> None:
        self._hub = hub
        self._people = people
        self._noes: OrderedDict[str, tuple[str, dict[str, object], float]] = OrderedDict()

    async def find_person(self, token: str) -> Person:
        """
        Whom the token stands for.

        Raises AccessDenied: the hub does not know it (NB-1110), its scopes (NB-1111) or its owner's groups (NB-1112)
        do not reach here; Unavailable (NB-2010, NB-2003).
        """
        code, facts, until = self._noes.get(token, ("", {}, 0.0))
        if time.monotonic() < until:
            raise AccessDenied(code, **facts)
        try:
            return await self._prove(token)
        except AccessDenied as no:
            self._noes[token] = no.code, no.facts, time.monotonic() + _NO_LIFE_S
            self._noes.move_to_end(token)
            if len(self._noes) > _NOES_KEPT:
                self._noes.popitem(last=False)
            raise

    async def _prove(self, token: str) -> Person:
        user = await self._hub.find_user(token)
        if user is None:
            raise AccessDenied("NB-1110")
        scopes = read_scopes(user)
        entered = await enter_by_identity(self._people, PROVIDER, user.name, read_groups(user.groups))
        if entered is None:
            raise AccessDenied("NB-1112")
        return _describe(token, scopes, entered)


def read_scopes(user: HubUser) -> frozenset[str]:
    """What a token with the hub's scopes may do here. Raises AccessDenied (NB-1111), naming the scope it lacks."""
    if not {_ACCESS, "access:services"} & user.scopes:
        raise AccessDenied("NB-1111", scope=_ACCESS)
    may = {*(STUDENT_SCOPES if _WRITE in user.scopes else ()), *((COURSE_READ,) if _READ in user.scopes else ())}
    if not may:
        raise AccessDenied("NB-1111", scope=_WRITE)
    return frozenset(may)


def read_groups(groups: Iterable[str]) -> list[tuple[str, str]]:
    """(course's short name, role) by the hub's groups `course-…`, `assistant-…`, `instructor-…`; high roles first."""
    names = sorted(groups)
    return [
        (name.removeprefix(prefix), role)
        for prefix, role in _ROLE_BY_PREFIX.items()
        for name in names
        if name.startswith(prefix)
    ]


def choose_course(person: Person, named: str | None, *, delivers: bool) -> Person:
    """
    The student in one course: the one `named`, else the only one.

    Raises AccessDenied: a student of no course, or not of that one (NB-1112); of several, and none is named (NB-1113);
    one who has withdrawn there delivers nothing (NB-1340).
    """
    attended = {name: course for name, course in person.courses.items() if person.roles.get(course) == "student"}
    if named:
        named = unquote(named)
        chosen = [course for name, course in attended.items() if named in (name, str(course))]
    else:
        chosen = list(attended.values())
    if not chosen:
        raise AccessDenied("NB-1112")
    chosen = [course for course in chosen if course not in person.archived] or chosen[:1]
    if len(chosen) > 1:
        raise AccessDenied("NB-1113", courses=", ".join(sorted(attended)))
    if delivers and chosen[0] in person.archived:
        raise AccessDenied("NB-1211")
    policy = person.policies.get(chosen[0])
    if policy is None:
        if delivers:
            raise AccessDenied("NB-1340")
        policy = DEFAULT
    return msgspec.structs.replace(person, course_id=chosen[0], collection=policy)


def _describe(token: str, scopes: frozenset[str], entered: Entered) -> Person:
    return Person(
        token_id=_make_token_id(token),
        kind=KIND,
        user_id=entered.user_id,
        course_id=None,
        scopes=scopes,
        roles=entered.roles,
        courses=entered.courses,
        policies=entered.policies,
        teams=entered.teams,
        archived=entered.archived,
    )


def _make_token_id(token: str) -> UUID:
    """Names the token in this process; none of the table `tokens`."""
    return uuid5(NAMESPACE_URL, f"jupyterhub token {token}")
