"""Sealed text opens under its keys and for its place, and nowhere else."""

from __future__ import annotations

from uuid import uuid4

import pytest

from nbpulse.crypto import EncryptedField, SealBroken, make_key

USER = uuid4()


def test_the_specifications_calls_work_as_written() -> None:
    field = EncryptedField(make_key())
    assert field.decrypt(field.encrypt("佐藤 樹")) == "佐藤 樹"
    assert "佐藤" not in field.encrypt("佐藤 樹")


def test_an_older_key_still_opens_and_a_foreign_one_does_not() -> None:
    old, new = make_key(), make_key()
    sealed = EncryptedField(old).encrypt("text")
    assert EncryptedField([new, old]).decrypt(sealed) == "text"
    with pytest.raises(SealBroken):
        EncryptedField(new).decrypt(sealed)


@pytest.mark.parametrize(
    "place",
    [
        {"table": "events", "column": "traceback", "user_id": USER},
        {"table": "users", "column": "error_message", "user_id": USER},
        {"table": "events", "column": "error_message", "user_id": uuid4()},
    ],
)
def test_a_text_moved_to_another_place_does_not_open(place: dict[str, object]) -> None:
    field = EncryptedField(make_key())
    sealed = field.seal("text", table="events", column="error_message", user_id=USER)
    assert field.unseal(sealed, table="events", column="error_message", user_id=USER) == "text"
    with pytest.raises(SealBroken):
        field.unseal(sealed, **place)  # type: ignore[arg-type]
