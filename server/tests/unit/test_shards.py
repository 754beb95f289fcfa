"""The specification's route, to the letter."""

from __future__ import annotations

import hashlib
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpulse.shards import SHARD_COUNT, get_shard_key, get_shard_number


@given(st.uuids())
def test_the_key_is_md5_of_the_canonical_id(user_id: UUID) -> None:
    wanted = int(hashlib.md5(str(user_id).encode()).hexdigest()[:8], 16) % 64
    assert get_shard_key(str(user_id)) == f"shard_{wanted}"
    assert get_shard_key(str(user_id).upper()) == f"shard_{wanted}"
    assert get_shard_number(user_id) == wanted


def test_what_is_no_id_is_refused_and_the_count_is_frozen() -> None:
    assert SHARD_COUNT == 64
    with pytest.raises(ValueError, match="badly formed"):
        get_shard_key("alice")
