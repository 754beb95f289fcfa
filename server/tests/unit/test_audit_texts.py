"""What the audit log's actions are called where people read about themselves."""

from __future__ import annotations

from typing import get_args

from nbpulse.api.own_audit import load_words
from nbpulse.records.audit import AuditAction


def test_every_action_has_words_in_both_languages() -> None:
    """A new action of AuditAction needs a line in audit_texts.json."""
    words = load_words()
    assert words.keys() == set(get_args(AuditAction))
    for wording in words.values():
        assert wording.keys() == {"en", "ja"}
