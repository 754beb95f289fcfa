"""Marks of what was erased: keyed hashes. Whom they mean nobody can tell; who brings the same along is known again.

Pure. A mark is made of what its owner brings along (a token, an id of a restored backup), so nothing of an erased
person has to be kept to know them again.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from functools import cached_property
from uuid import UUID


class Marker:
    """Makes marks with a key; `read_key` is called at the first mark only, since most processes never make one."""

    def __init__(self, read_key: Callable[[], bytes]) -> None:
        self._read_key = read_key

    @cached_property
    def _key(self) -> bytes:
        return self._read_key()

    def mark_user(self, user_id: UUID) -> bytes:
        """Of a user, by their id in a backup."""
        return self._mark("user", user_id.bytes)

    def mark_course(self, course_id: UUID) -> bytes:
        """Of a course, by its id in a backup."""
        return self._mark("course", course_id.bytes)

    def mark_token(self, token_id: UUID, secret_hash: bytes) -> bytes:
        """Of a token, by itself: its id alone does not make the mark."""
        return self._mark("token", token_id.bytes + secret_hash)

    def mark_identity(self, provider: str, subject: str) -> bytes:
        """Of whom another system knows by that name."""
        return self._mark("identity", f"{provider}\0{subject}".encode())

    def _mark(self, kind: str, what: bytes) -> bytes:
        return hmac.digest(self._key, kind.encode() + b"\0" + what, hashlib.sha256)
