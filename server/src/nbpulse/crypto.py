"""Sealing of free text about people (specification: EncryptedField).

Promises: what is sealed opens only under one of the keys, only for the table, column and user it was sealed for, and
a wrong key or a moved ciphertext is a clear error. The first key seals; the others only open (rotation).
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

_SEPARATOR = "\x1f"


class SealBroken(Exception):
    """The text was not sealed with these keys, or not for this place."""


class EncryptedField:
    """
    Encrypts text with Fernet (AES-128-CBC + HMAC-SHA256, as `cryptography` documents it).

    `key` is one Fernet key (32 url-safe base64-encoded bytes) or several, newest first.

    Raises ValueError when a key has another form.
    """

    def __init__(self, key: bytes | Sequence[bytes]) -> None:
        keys = [key] if isinstance(key, bytes) else list(key)
        self.cipher = MultiFernet([Fernet(one) for one in keys])

    def encrypt(self, data: str) -> str:
        """Seal `data`; about 1.6 times its bytes plus 100."""
        return self.cipher.encrypt(data.encode()).decode()

    def decrypt(self, encrypted_data: str) -> str:
        """Open what `encrypt` sealed. Raises SealBroken under other keys."""
        try:
            return self.cipher.decrypt(encrypted_data.encode()).decode()
        except InvalidToken as broken:
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


def _bind(table: str, column: str, user_id: UUID) -> str:
    return f"{table}|{column}|{user_id}"


def make_key() -> bytes:
    """A fresh random key."""
    return Fernet.generate_key()
