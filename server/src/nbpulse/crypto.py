"""Sealing of free text about people (specification: EncryptedField).

Promises: what is sealed opens only under one of the keys, only for the table, column and user it was sealed for, and
a wrong key or a moved ciphertext is a clear error. The first key seals; the others only open (rotation). Where the
keys stand in a file, a running process follows the file: a new key is used within a second, without a restart.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

FOLLOW_S = 1.0
_SEPARATOR = "\x1f"


class SealBroken(Exception):
    """The text was not sealed with these keys, or not for this place."""


class EncryptedField:
    """
    Encrypts text with Fernet (AES-128-CBC + HMAC-SHA256, as `cryptography` documents it).

    `key` is one Fernet key (32 url-safe base64-encoded bytes) or several, newest first; `key_file`, where given, is
    looked at again at most once a second and whenever a text does not open.

    Raises ValueError when a key has another form.
    """

    def __init__(self, key: bytes | Sequence[bytes], *, key_file: Path | None = None) -> None:
        self._key_file = key_file
        self._changed_ns = 0  # the file may have changed since `key` was read from it: the first look reads it again
        self._looked_s = time.monotonic()
        self._use([key] if isinstance(key, bytes) else list(key))

    def _use(self, keys: list[bytes]) -> None:
        if not keys:
            raise ValueError("no key")
        self.cipher = MultiFernet([Fernet(one) for one in keys])
        self._newest = Fernet(keys[0])
        self.key_ids = [identify_key(one) for one in keys]

    def encrypt(self, data: str) -> str:
        """Seal `data`; about 1.6 times its bytes plus 100."""
        if time.monotonic() - self._looked_s > FOLLOW_S:
            self._follow()
        return self.cipher.encrypt(data.encode()).decode()

    def decrypt(self, encrypted_data: str) -> str:
        """Open what `encrypt` sealed. Raises SealBroken under other keys."""
        token = encrypted_data.encode()
        try:
            return self.cipher.decrypt(token).decode()
        except InvalidToken as broken:
            if self._follow():
                return self.decrypt(encrypted_data)
            raise SealBroken("not sealed with any of the keys in use") from broken

    def seal(self, text: str, *, table: str, column: str, user_id: UUID) -> str:
        """Seal `text` for one place: moved to another row or column it will not open."""
        return self.encrypt(f"{_bind(table, column, user_id)}{_SEPARATOR}{text}")

    def unseal(self, sealed: str, *, table: str, column: str, user_id: UUID) -> str:
        """Open what `seal` made for this very place. Raises SealBroken otherwise."""
        place, _, text = self.decrypt(sealed).partition(_SEPARATOR)
        if place != _bind(table, column, user_id):
            raise SealBroken(f"sealed for another place than {table}.{column} of this user")
        return text

    def is_newest(self, sealed: str) -> bool:
        """Whether the newest key sealed it."""
        try:
            self._newest.decrypt(sealed.encode())
        except InvalidToken:
            return False
        return True

    def reseal(self, sealed: str) -> str:
        """The same text for the same place, under the newest key. Raises SealBroken when no key opens it."""
        try:
            return self.cipher.rotate(sealed.encode()).decode()
        except InvalidToken as broken:
            raise SealBroken("not sealed with any of the keys in use") from broken

    def _follow(self) -> bool:
        """Whether the key file had changed; its keys are used from now on."""
        self._looked_s = time.monotonic()
        if self._key_file is None:
            return False
        try:
            changed_ns = self._key_file.stat().st_mtime_ns
            if changed_ns == self._changed_ns:
                return False
            self._use(self._key_file.read_bytes().split())
        except (OSError, ValueError):
            # Away, or spoiled by hand: what runs goes on with the keys it has, the next start says what is wrong.
            return False
        self._changed_ns = changed_ns
        return True


def _bind(table: str, column: str, user_id: UUID) -> str:
    return f"{table}|{column}|{user_id}"


def make_key() -> bytes:
    """A fresh random key."""
    return Fernet.generate_key()


def identify_key(key: bytes) -> str:
    """16 hex digits that tell a key from others and say nothing about it (a key is 256 random bits)."""
    return hashlib.sha256(b"nbpulse key " + key).hexdigest()[:16]
