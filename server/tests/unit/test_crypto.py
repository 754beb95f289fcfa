"""Sealed text opens under its keys and for its place, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from cryptography.fernet import Fernet

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


def test_the_specifications_own_class_opens_what_ours_sealed_and_the_other_way_round() -> None:
    key = Fernet.generate_key()
    theirs, ours = Fernet(key), EncryptedField(key)
    assert theirs.decrypt(ours.encrypt("田中").encode()).decode() == "田中"
    assert ours.decrypt(theirs.encrypt("田中".encode()).decode()) == "田中"
    assert isinstance(ours.encrypt(""), str)
    assert EncryptedField(key=key).decrypt(ours.encrypt("")) == ""


def test_texts_are_resealed_with_the_newest_key_for_the_same_place() -> None:
    old, new = make_key(), make_key()
    sealed = EncryptedField(old).seal("text", table="users", column="display_name", user_id=USER)
    both = EncryptedField([new, old])
    fresh = both.reseal(sealed)
    assert (both.is_newest(sealed), both.is_newest(fresh)) == (False, True)
    assert EncryptedField(new).unseal(fresh, table="users", column="display_name", user_id=USER) == "text"
    with pytest.raises(SealBroken):
        EncryptedField(new).reseal(sealed)


def test_a_running_process_follows_its_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = 100.0
    monkeypatch.setattr("nbpulse.crypto.time.monotonic", lambda: clock_s)
    old, new = make_key(), make_key()
    path = tmp_path / "encryption.key"
    path.write_bytes(old + b"\n")
    running = EncryptedField(old, key_file=path)
    sealed_before = running.encrypt("before")
    path.write_bytes(new + b"\n" + old + b"\n")
    assert running.decrypt(EncryptedField(new).encrypt("by another")) == "by another"  # at once
    clock_s += 2
    assert EncryptedField(new).decrypt(running.encrypt("after")) == "after"
    assert running.decrypt(sealed_before) == "before"


@pytest.mark.parametrize("spoiled", [b"", b"no key\n"])
def test_a_spoiled_key_file_stops_no_running_process(spoiled: bytes, tmp_path: Path) -> None:
    key = make_key()
    path = tmp_path / "encryption.key"
    path.write_bytes(spoiled)
    running = EncryptedField(key, key_file=path)
    assert running.decrypt(running.encrypt("text")) == "text"
    with pytest.raises(SealBroken):
        running.decrypt(EncryptedField(make_key()).encrypt("text"))
