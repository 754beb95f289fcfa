"""Passwords of people: which are accepted, and how they are kept.

Promises: argon2id, never on the event loop, two at a time; a check takes as long where there is no such account, and
as long whether it fits or not. The parameters are the least memory the OWASP Password Storage Cheat Sheet names for
argon2id (19 MiB, 2 passes, 1 lane), so that a flood of sign-ins costs 38 MiB and not more. The rules are those of NIST
SP 800-63B-4, section 3.1.1: 15 characters where the password is the only factor, no rules of composition, no expiry.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from nbpulse.errors import InvalidInput, TooMuch

LENGTH_MIN: Final = 15
LENGTH_MAX: Final = 256
MEMORY_KIB: Final = 19_456
PASSES: Final = 2
LANES: Final = 1
AT_ONCE: Final = 2
_WAITING_MAX: Final = 50
# What is left of a password without the names that anybody would try has to be a password still.
_REST_MIN: Final = 8
_DIFFERENT_MIN: Final = 5
# Rows of a keyboard and the alphabet, as people run along them; a run of 8 or more counts as one character.
_RUNS: Final = (
    "abcdefghijklmnopqrstuvwxyz",
    "qwertyuiopasdfghjklzxcvbnm",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm",
    "01234567890123456789",
)
_RUN_MIN: Final = 8

Result = TypeVar("Result")


def normalise_password(password: str) -> str:
    """One spelling (NFKC) for what different keyboards send for the same keys."""
    return unicodedata.normalize("NFKC", password)


def check_rules(password: str, *names: str) -> None:
    """
    Raises InvalidInput where the password is too short or long (NB-1121) or among the first that are tried (NB-1122):
    few different characters, runs along the keyboard, or little beside `names` (the account's, the service's).
    """
    password = normalise_password(password)
    if not LENGTH_MIN <= len(password) <= LENGTH_MAX:
        raise InvalidInput("NB-1121", least=LENGTH_MIN, most=LENGTH_MAX)
    rest = password.casefold()
    for name in (*names, "nbpulse", "password", "パスワード"):
        if len(name) > 2:
            rest = rest.replace(normalise_password(name).casefold(), "")
    rest = _drop_runs(rest)
    if len(rest) < _REST_MIN or len(set(rest)) < _DIFFERENT_MIN:
        raise InvalidInput("NB-1122")


def _drop_runs(text: str) -> str:
    """The text with one character for each run along the keyboard or the alphabet, in either direction."""
    ways = [way for run in _RUNS for way in (run, run[::-1])]
    kept, start = [], 0
    while start < len(text):
        end = start + _RUN_MIN
        while end <= len(text) and any(text[start:end] in way for way in ways):
            end += 1
        length = end - 1 - start
        kept.append(text[start])
        start += length if length >= _RUN_MIN else 1
    return "".join(kept)


def _make_unfitting(memory_kib: int, passes: int) -> str:
    """What no password fits, and takes as long to find out as a real one."""
    salt, digest = (base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=") for size in (16, 32))
    return f"$argon2id$v=19$m={memory_kib},t={passes},p={LANES}${salt}${digest}"


class Hasher:
    """Hashes and checks passwords in threads of its own."""

    def __init__(self, *, memory_kib: int = MEMORY_KIB, passes: int = PASSES) -> None:
        self._hasher = PasswordHasher(time_cost=passes, memory_cost=memory_kib, parallelism=LANES)
        self._nobodys = _make_unfitting(memory_kib, passes)
        self._threads = ThreadPoolExecutor(AT_ONCE, "password")
        self._waiting = 0

    async def hash(self, password: str) -> str:
        """What is kept of a password: argon2id with its parameters and salt. Raises TooMuch (NB-1130)."""
        return await self._run(lambda: self._hasher.hash(normalise_password(password)))

    async def verify(self, kept: str | None, password: str) -> bool:
        """Whether the password is the one that is kept; where none is, a no that is as slow. Raises as `hash`."""
        return await self._run(lambda: self._verify(kept or self._nobodys, normalise_password(password)))

    def is_outdated(self, kept: str) -> bool:
        """Whether it was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(kept)

    def close(self) -> None:
        """End the threads; what they have begun they finish."""
        self._threads.shutdown(wait=False)

    def _verify(self, kept: str, password: str) -> bool:
        try:
            return self._hasher.verify(kept, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], Result]) -> Result:
        if self._waiting >= _WAITING_MAX:
            raise TooMuch("NB-1130", policy="passwords_at_once", limit=_WAITING_MAX, retry_after_s=3)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1
