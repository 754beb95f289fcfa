"""
Whatever an API's own description allows, asked as one caller, with what earlier answers told and what is others'.

Cases are schemathesis's; ids, cursors and the like come from answers before (so that steps build on each other) or are
other people's. Every answer is searched for canaries: words and ids that this caller may never be told.
"""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID, uuid4

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from stage import make_run

UUID_TEXT = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
WEIGHTS = {"POST /api/v1/sign-in/password": 1, "PUT /api/v1/me/password": 1, "POST /api/v1/events": 100}
"""How often, where not 10: a password costs a quarter of a second each; events are what most of the traffic is."""
# Chosen from what earlier answers told, which Hypothesis must not see.
_seeds = st.integers(0, 2**32)
_ID_QUERIES = {"notebook", "student", "batch", "notebook_id", "user_id"}
_ID_FIELDS = {"user_id", "user_ids", "students"}


class Canaries:
    """What one caller may not be told: words and ids, each with what it is."""

    def __init__(self, words: Mapping[str, str], ids: Mapping[UUID, str]) -> None:
        self._meaning = dict(words)
        for one, what in ids.items():
            self._meaning |= {str(one): what, one.hex: what}
        self._pattern = re.compile("|".join(map(re.escape, self._meaning)) or r"(?!)")
        self.ids = [str(one) for one in ids]

    def find(self, told: str, asked: str) -> list[str]:
        """What `told` gives away; what stands in the question itself is an echo."""
        return [f"{one} ({self._meaning[one]})" for one in set(self._pattern.findall(told)) if one not in asked.lower()]


@dataclass
class Asker:
    """One caller: how they prove who they are, their course's id and join code, and what is kept from them."""

    name: str
    headers: dict[str, str]
    course_id: str
    join_code: str
    canaries: Canaries


@dataclass
class Tally:
    """What came of it."""

    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    admitted: set[str] = field(default_factory=set)
    """Operations that succeeded at least once."""
    failures: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)


class Fuzzer:
    """Asks as one caller until so many cases are done, of the operations with these labels, else of all."""

    def __init__(self, url: str, asker: Asker, labels: Collection[str] = ()) -> None:
        self._url, self._asker = url, asker
        self._bearer = asker.headers.get("Authorization", "")
        self._session = requests.Session()
        self._known: deque[str] = deque([str(uuid4())], maxlen=300)
        self._cursors: deque[str] = deque(["x"], maxlen=50)
        self.tally = Tally()
        schema = schemathesis.openapi.from_url(f"{url}/api/v1/openapi.json")
        operations = [result.ok() for result in schema.get_all_operations()]
        operations = [one for one in operations if not labels or one.label in labels]
        self._labels = [one.label for one in operations for _ in range(WEIGHTS.get(one.label, 10))]
        self._strategies = {one.label: one.as_strategy() for one in operations}

    def run(self, cases: int) -> Tally:
        """At least so many cases, others for each caller's name."""

        @seed(self._asker.name)
        @settings(
            max_examples=cases,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def step(data: Any) -> None:
            label = data.draw(st.sampled_from(self._labels))
            random = Random(data.draw(_seeds))
            self._ask(data.draw(self._strategies[label]), random)

        while self.tally.cases < cases:
            step()
        return self.tally

    def _ask(self, case: Any, random: Random) -> None:
        label = case.operation.label
        self._aim(case, random)
        headers = self._asker.headers if random.random() > 0.02 else {}
        answer = case.call(base_url=self._url, session=self._session, headers=headers, timeout=30)
        self.tally.cases += 1
        self.tally.statuses[answer.status_code] += 1
        text = answer.content.decode("utf-8", "replace")
        place = f"{label} {answer.status_code}"
        if answer.status_code >= 500:
            self.tally.failures.append(f"{place}: {text[:300]}")
        if answer.status_code < 300:
            self.tally.admitted.add(label)
            self._learn(text)
        sent = answer.request.body or b""
        asked = f"{answer.request.url} {sent.decode('utf-8', 'replace') if isinstance(sent, bytes) else sent}"
        told = f"{text} {' '.join(f'{name}: {value}' for name, value in answer.headers.items())}"
        self.tally.leaks += [f"{place}: {one}" for one in self._asker.canaries.find(told, asked)]

    def _aim(self, case: Any, random: Random) -> None:
        """Put in what the caller knows, and what is others'."""
        if case.path_parameters:
            case.path_parameters = {name: self._choose(name, random) for name in case.path_parameters}
        query = dict(case.query) if isinstance(case.query, Mapping) else {}
        for name in query.keys() & _ID_QUERIES:
            if random.random() < 0.7:
                query[name] = self._choose(name, random)
        if "cursor" in query and random.random() < 0.7:
            query["cursor"] = random.choice(self._cursors)
        if case.operation.path == "/api/v1/me/inbox":
            query["wait_s"] = 0
        if query:
            case.query = query
        if isinstance(case.body, dict):
            case.body = self._aim_body(dict(case.body), random, case.operation.path)

    def _aim_body(self, body: dict[str, Any], random: Random, path: str) -> dict[str, Any]:
        if path.endswith("/events"):
            some = {name: value for name, value in body.items() if random.random() < 0.3}
            if random.random() < 0.2:
                some["user_id"] = self._choose("user_id", random)
            return body if random.random() < 0.5 else make_run(**some)
        if "id" in body:
            body["id"] = str(UUID(int=random.getrandbits(128), version=4))
        if "join_code" in body and random.random() < 0.3:
            body["join_code"] = self._asker.join_code
        if path.endswith("/consent"):
            body["action"] = "accept"  # after a withdrawal nothing more could be asked
        if isinstance(to := body.get("to"), dict) and "user_ids" in to:
            body["to"] = to | {"user_ids": [self._choose("user_id", random) for _ in range(random.randint(1, 3))]}
        for name in body.keys() & _ID_FIELDS:
            body[name] = self._choose(name, random)
        return body

    def _choose(self, name: str, random: Random) -> str:
        if name == "action":
            return str(random.choice(["claim", "release", "helped", "snooze", "undo", "note", "x"]))
        luck = random.random()
        if name == "alert_id":  # names nobody; one of another's would come back in the log of what was done
            luck = 0
        if name == "course_id" and luck < 0.75:
            return self._asker.course_id
        if name == "token_id" and luck < 0.5:  # not their own: once that has ended nothing more could be asked
            return str(random.choice([one for one in self._known if one.replace("-", "") not in self._bearer]))
        if name == "token_id":
            luck = 0.9
        if luck < 0.6 or not self._asker.canaries.ids:
            return str(random.choice(self._known))
        return str(random.choice(self._asker.canaries.ids)) if luck < 0.95 else "x"

    def _learn(self, text: str) -> None:
        self._known.extend(set(UUID_TEXT.findall(text)) - set(self._asker.canaries.ids))
        try:
            body = json.loads(text)
        except ValueError:
            return
        if isinstance(body, dict) and isinstance(body.get("next"), str):
            self._cursors.append(body["next"])


def describe(name: str, tally: Tally) -> str:
    """In one line."""
    return (
        f"{name}: {tally.cases} cases, {dict(sorted(tally.statuses.items()))}, {len(tally.admitted)} operations let in,"
        f" {len(tally.failures)} of 5xx, {len(tally.leaks)} leaks"
    )
