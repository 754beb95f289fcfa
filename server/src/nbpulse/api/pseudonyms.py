"""Downloads without names: who is whom can be told within one course for an hour, and by nobody afterwards.

Pure. Ids become keyed hashes, names one of these; figures of few students are left out, since they would be theirs.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final
from uuid import UUID

import msgspec

from nbpulse.records.analysis import Table

STUDENTS_MIN: Final = 5
KEY_LIFE_S: Final = 3600
_IDS: Final = frozenset({"user_id", "id"})
_NAMES: Final = frozenset({"username", "display_name", "student_number"})


def pseudonymise(table: Table, key: bytes, *, has_paths: bool = True) -> tuple[Table, int]:
    """
    The table with other ids and names, and how many rows of figures of fewer than 5 students were left out.

    `has_paths` False: one person's row does not say the notebook's path, in which students like to put their names.
    """
    places = {name: place for place, name in enumerate(table.columns)}
    students, person = places.get("students"), places.get("user_id")
    kept = [row for row in table.rows if students is None or row[students] >= STUDENTS_MIN]
    changed = {place for name, place in places.items() if name in _IDS or name in _NAMES}
    names = {place for name, place in places.items() if name in _NAMES}

    path = places.get("notebook_path") if person is not None and not has_paths else None

    def hide(row: tuple[Any, ...], place: int) -> Any:
        if place == path:
            return None
        if place not in changed or row[place] is None:
            return row[place]
        if place not in names:
            return make_pseudonym(row[place], key)
        return f"student-{make_pseudonym(row[place if person is None else person], key).hex[:8]}"

    rows = [tuple(hide(row, place) for place in range(len(row))) for row in kept]
    return msgspec.structs.replace(table, rows=rows), len(table.rows) - len(kept)


def make_pseudonym(value: UUID | str, key: bytes) -> UUID:
    """Of one value under one key always the same; it says nothing of the value to who lacks the key."""
    return UUID(bytes=hmac.digest(key, str(value).encode(), hashlib.sha256)[:16])
