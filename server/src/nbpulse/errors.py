"""The errors people can meet: one tree, one catalogue, stable codes.

    NbpulseError                 code + facts + retryable
    ├── InvalidInput             what was sent cannot be taken; sending it again will not help   NB-10xx
    │   └── InvalidEvent         one event of a batch; never fails its neighbours
    ├── AccessDenied             nobody, or not you                                              NB-11xx
    ├── NotFound                 no such thing, or not yours to know of                          NB-12xx
    ├── TooMuch                  too large or too fast                                           NB-13xx
    ├── Conflict                 another was quicker, or it is too late for it                   NB-133x
    ├── NotYet                   somebody else has to do something first (retryable)             NB-1140
    ├── Unavailable              not now; the same again later succeeds (retryable)              NB-20xx
    ├── StartupError             a part cannot start; says the exact fix                         NB-30xx
    └── PoisonEvent              a stored entry the worker can never process                     NB-40xx

Texts live in `error_catalogue.json`, Japanese and English beside each other, and nowhere else: the API
(problem+json), the terminal, the board and the docs read them from there. A code never changes its meaning.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import ClassVar, TypedDict


class Wording(TypedDict):
    """What happened, in one sentence, and what to do about it, in another."""

    title: str
    todo: str


class CatalogueEntry(TypedDict):
    """One code's texts in both languages."""

    en: Wording
    ja: Wording


@cache
def load_catalogue() -> dict[str, CatalogueEntry]:
    """Every code with its texts, by code."""
    text = resources.files("nbpulse").joinpath("error_catalogue.json").read_text(encoding="utf-8")
    catalogue: dict[str, CatalogueEntry] = json.loads(text)
    return catalogue


class NbpulseError(Exception):
    """
    Something a person has to be told.

    `facts` fill the placeholders of the catalogue's texts; they must hold no secret and nobody's free text, since
    they reach logs and answers.
    """

    retryable: ClassVar[bool] = False

    def __init__(self, code: str, **facts: object) -> None:
        self.code = code
        self.facts = facts
        super().__init__(f"{code}: {self.title('en')}")

    def title(self, language: str) -> str:
        """What happened, in `language` ("en" or "ja")."""
        return self._text(language, "title")

    def todo(self, language: str) -> str:
        """What to do about it, in `language` ("en" or "ja")."""
        return self._text(language, "todo")

    def _text(self, language: str, part: str) -> str:
        entry = load_catalogue()[self.code]
        wording = entry["ja"] if language == "ja" else entry["en"]
        template = wording["title"] if part == "title" else wording["todo"]
        return template.format_map(_Facts(self.facts))


class _Facts(dict[str, object]):
    """A missing fact shows as its name: an error must never hide behind a second one."""

    def __missing__(self, key: str) -> str:
        return f"<{key}>"


class InvalidInput(NbpulseError):
    """What was sent cannot be taken as it is; sending the same again will not help."""


class InvalidEvent(InvalidInput):
    """One event of a request is refused; the others are not touched. `reason` is the short word on the wire."""

    def __init__(self, code: str, reason: str, **facts: object) -> None:
        super().__init__(code, **facts)
        self.reason = reason


class AccessDenied(NbpulseError):
    """Nobody is signed in, or this person may not do this."""


class NotFound(NbpulseError):
    """There is no such thing, or it is not this person's to know of."""


class TooMuch(NbpulseError):
    """
    More than a stated limit. `policy`: the limit's name; `limit`: what it lets pass in `window_s`; `retry_after_s`:
    when what was asked would pass.
    """

    def __init__(
        self, code: str, *, policy: str, limit: int, retry_after_s: float, window_s: int = 60, **facts: object
    ) -> None:
        super().__init__(code, limit=limit, **facts)
        self.policy = policy
        self.limit = limit
        self.window_s = window_s
        self.retry_after_s = retry_after_s


class Conflict(NbpulseError):
    """Another was quicker, or it is too late. `members` go into the answer as they are, and into no log."""

    def __init__(self, code: str, *, claim: object = None, **facts: object) -> None:
        super().__init__(code, **facts)
        self.members = {"claim": claim} if claim is not None else {}


class NotYet(NbpulseError):
    """Somebody else has to do something first; nothing was accepted, and the same request later succeeds."""

    retryable = True


class Unavailable(NbpulseError):
    """Not now: nothing was accepted, and the same request later succeeds."""

    retryable = True

    def __init__(self, code: str, *, retry_after_s: int = 1, **facts: object) -> None:
        super().__init__(code, retry_after_s=retry_after_s, **facts)
        self.retry_after_s = retry_after_s


class StartupError(NbpulseError):
    """A part of nbpulse cannot start, or must not: nothing was started by it."""


class PoisonEvent(NbpulseError):
    """An entry that can never be processed; it goes to the dead letters with its reason."""
