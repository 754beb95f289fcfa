"""How fast one student, course, token or address may ask: counted here, refused with 429.

Promises: a refusal says which limit it was, who met it and when to come again; it costs no look-up and no body. Each
API process counts for itself: of several, each lets so much pass.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final
from uuid import UUID

from starlette.types import Scope

from nbpulse.allowances import Allowance, Limits, group_address
from nbpulse.errors import TooMuch
from nbpulse.metrics import Limit, limited_requests
from nbpulse.records.people import Person

BAD_BODY_EVENTS: Final = 60


def find_address(scope: Scope) -> str:
    """Whom the request's address counts for; "" where there is none (a socket of this machine)."""
    client = scope.get("client")
    return group_address(client[0]) if client else ""


class _Rate:
    """One limit: its allowance, its name, and the error that says it is met."""

    def __init__(self, name: Limit, code: str, per_minute: int) -> None:
        self._name, self._code = name, code
        self._allowance = Allowance(per_minute)
        self._counter = limited_requests.labels(name)

    def meet(self, key: Hashable, cost: int = 1) -> None:
        """Use up `cost`. Raises TooMuch."""
        if wait_s := self._allowance.take(key, cost):
            self._refuse(key, wait_s)

    def check(self, key: Hashable) -> None:
        """Raises TooMuch where nothing is left; uses nothing."""
        if wait_s := self._allowance.measure_wait(key):
            self._refuse(key, wait_s)

    def charge(self, key: Hashable, cost: int = 1) -> None:
        """Use up `cost` whether it is there or not."""
        self._allowance.charge(key, cost)

    def _refuse(self, who: Hashable, wait_s: float) -> None:
        self._counter.inc()
        limit = self._allowance.per_minute
        raise TooMuch(self._code, policy=self._name, limit=limit, retry_after_s=wait_s, who=who)


class RequestLimits:
    """All rates of one API process. Every method raises TooMuch."""

    def __init__(self, limits: Limits) -> None:
        self._student_events = _Rate("student_events", "NB-1170", limits.student_events)
        self._course_events = _Rate("course_events", "NB-1171", limits.course_events)
        self._token_requests = _Rate("token_requests", "NB-1172", limits.token_requests)
        self._address_requests = _Rate("address_requests", "NB-1173", limits.address_requests)
        self._address_refusals = _Rate("address_refusals", "NB-1174", limits.address_refusals)

    def meet_address(self, address: str) -> None:
        """One more request from there (NB-1173)."""
        self._address_requests.meet(address)

    def meet_token(self, token_id: UUID) -> None:
        """One more request with this token, deliveries aside (NB-1172)."""
        self._token_requests.meet(token_id)

    def check_delivery(self, learner: Person) -> None:
        """Whether a delivery's body is read at all (NB-1170)."""
        self._student_events.check(learner.user_id)

    def meet_delivery(self, learner: Person, events: int) -> None:
        """So many more events of a student, whatever token they came with (NB-1170), and of their course (NB-1171)."""
        self._student_events.meet(learner.user_id, events)
        self._course_events.meet(learner.course_id, events)

    def charge_bad_body(self, learner: Person) -> None:
        """A delivery that was none: reading it cost more than an event does."""
        self._student_events.charge(learner.user_id, BAD_BODY_EVENTS)

    def check_refusals(self, address: str) -> None:
        """Whether a token that is not known yet is looked up at all for that address (NB-1174)."""
        self._address_refusals.check(address)

    def note_refusal(self, address: str) -> None:
        """A token that does not work came from there."""
        self._address_refusals.charge(address)
