"""Where a student's rows and events live: 64 logical shards, by the specification's own function.

The same number names the stream, the worker's share and, by the map, the database, so one student's events stay
together and one shard can move alone. `SHARD_COUNT` never changes: 4 -> 5 would send 80 % of the students elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID

SHARD_COUNT = 64
MAIN: Final = "main"
"""The directory, which is also the database of every shard that was not moved elsewhere."""


class Place(NamedTuple):
    """Where one shard is: the database's name, and how often it has moved (a stale place is known by its epoch)."""

    database: str = MAIN
    epoch: int = 1


ShardMap = Sequence[Place]
"""The place of each shard, by its number."""


def get_shard_key(user_id: str) -> str:
    """
    The logical shard of a user, as `shard_0` .. `shard_63`.

    The text is brought to canonical UUID form first: md5 of the same id in capitals would name another shard.

    Raises ValueError when `user_id` is no UUID.
    """
    hash_value = hashlib.md5(str(UUID(user_id)).encode(), usedforsecurity=False).hexdigest()
    shard_num = int(hash_value[:8], 16) % SHARD_COUNT
    return f"shard_{shard_num}"


@lru_cache(maxsize=50_000)
def get_shard_number(user_id: UUID) -> int:
    """The number in `get_shard_key`, 0..63: the `shard` column, checked by its SQL twin in each per-student table."""
    digest = hashlib.md5(str(user_id).encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], "big") % SHARD_COUNT
