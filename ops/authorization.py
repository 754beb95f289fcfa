"""docs/authorization.md: every route and who is let in, by the rules in the code and what each rule is to mean."""

from __future__ import annotations

from typing import Final

from nbpulse.api.access import RULES, Rule, find_scope
from nbpulse.records.people import COURSE_WRITE

CALLERS: Final = {
    "nobody": "no token",
    "expired": "a token of the course's instructor that has expired",
    "student": "a student of the course, by the token that joining gives",
    "student-elsewhere": "a student of another course",
    "events-only": "a student of the course, by a token with the scope `events:write` alone",
    "inbox-only": "the same with `inbox:read` alone",
    "assistant": "an assistant of the course, by the board's session",
    "instructor": "an instructor of the course, by a token for scripts",
    "reader": "an instructor of the course, by a personal token with the scope `course:read` alone",
    "staff-elsewhere": "an instructor of another course",
    "token-elsewhere": "an instructor of the course, by a token made for another course of theirs",
    "operator": "a user whose global role is `operator`, in no course",
    "analyst": "an analyst of the course, by a token for scripts",
    "hub-student": "a student of the course by a JupyterHub's word",
    "hub-instructor": "an instructor of the course by a JupyterHub's word",
}
_OF_COURSE: Final = {"assistant", "instructor"}
_STUDENTS: Final = {"student", "student-elsewhere", "hub-student"}
_STRANGERS: Final = {"student-elsewhere", "staff-elsewhere", "token-elsewhere", "operator"}


def _expect(
    yes: set[str], *, strangers: set[str] = frozenset(), no: str = "403", nobody: str = "401"
) -> dict[str, str]:
    """What each caller gets: let in, a stranger's 404, a known one's 403, nobody's 401."""
    answers = {caller: "yes" if caller in yes else "404" if caller in strangers else no for caller in CALLERS}
    return answers | {caller: nobody for caller in ("nobody", "expired") if caller not in yes}


_STAFF: Final = _expect(_OF_COURSE | {"reader", "hub-instructor"}, strangers=_STRANGERS)
EXPECTED: Final[dict[Rule, dict[str, str]]] = {
    Rule.ANYONE: _expect(set(CALLERS)),
    Rule.LOCAL: _expect(set(CALLERS)),
    Rule.SIGNED_IN: _expect(set(CALLERS) - {"nobody", "expired"}),
    Rule.OWNER: _expect(set(CALLERS) - {"nobody", "expired", "reader", "hub-student", "hub-instructor"}),
    Rule.DELIVERER: _expect(_STUDENTS | {"events-only"}),
    Rule.STUDENT: _expect(_STUDENTS | {"inbox-only"}),
    Rule.STAFF: _STAFF,
    Rule.READER: _STAFF | {"analyst": "yes"},
    Rule.INSTRUCTOR: _expect({"instructor", "reader", "hub-instructor"}, strangers=_STRANGERS),
    # Whether they may make one is then said by the database (NB-1210), of the assistant too.
    Rule.CREATOR: _expect({"instructor", "staff-elsewhere", "operator"}),
    # By the WebSocket's close codes; a hub's token opens none, its user's session does.
    Rule.FIRST_MESSAGE: _expect(_OF_COURSE | {"reader"}, no="4403", nobody="4401")
    | {"hub-student": "4401", "hub-instructor": "4401"},
}
EXCEPTIONS: Final[dict[str, dict[str, str]]] = {
    # The hot route reads no cookie: events come from programs.
    "POST /api/v1/events": {"assistant": "401"},
    # Of courses that are no demo; a demo's staff may.
    "DELETE /api/v1/courses/{course_id}": {caller: "403" for caller, answer in _STAFF.items() if answer == "yes"},
}
_INTRODUCTION: Final = """
Each request is let through by the rule of its route (`api/access.py`). A route without a rule keeps the API from
starting; a rule of which `ops/authorization.py` does not say what it means fails `make check`.
`server/tests/integration/test_authorization.py` tries every cell of the second table with real tokens at a running API.

`yes`: let in (what comes then depends on the request). A number: refused with that status; of four digits, the close
code of a WebSocket. 401: nobody. 403: known, but this is not theirs to do. 404: a course that is not theirs, of which
they do not learn whether there is one. Routes with a course in their path are asked for the course of which the first
table speaks; `me` is always the caller's own. Rows are kept apart too: [who sees which row](access.md).
"""


def find_expected(route: str) -> dict[str, str]:
    """Caller -> what they get at the route. Raises KeyError where nobody has said what the route's rule means."""
    reading = dict.fromkeys(("reader", "hub-instructor"), "403") if find_scope(route) == COURSE_WRITE else {}
    return EXPECTED[RULES[route]] | EXCEPTIONS.get(route, {}) | reading


def generate_authorization(how: str) -> str:
    """The document."""
    lines = ["# Who may do what", "", how, _INTRODUCTION, "| caller | who that is |", "|---|---|"]
    lines += [f"| {caller} | {who} |" for caller, who in CALLERS.items()]
    lines += ["", f"| route | rule | {' | '.join(CALLERS)} |", "|---" * (len(CALLERS) + 2) + "|"]
    for route, rule in RULES.items():
        lines.append(f"| `{route}` | {rule.name} | {' | '.join(find_expected(route).values())} |")
    return "\n".join(lines) + "\n"
