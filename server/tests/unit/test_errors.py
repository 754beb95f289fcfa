"""Every code that is raised has its words, in both languages, with the same facts in them."""

from __future__ import annotations

import re
from pathlib import Path

import nbpulse
from nbpulse.errors import InvalidEvent, NbpulseError, Unavailable, load_catalogue

SOURCES = Path(nbpulse.__file__).parent
PLACEHOLDER = re.compile(r"\{(\w+)\}")


def find_codes() -> set[str]:
    files = [*SOURCES.rglob("*.py"), *SOURCES.glob("web/js/**/*.js")]
    return {code for file in files for code in re.findall(r'"(NB-\d{4})"', file.read_text(encoding="utf-8"))}


def test_every_code_in_the_source_has_words_and_every_word_a_use() -> None:
    assert find_codes() == set(load_catalogue())


def test_both_languages_say_what_happened_and_what_to_do_with_the_same_facts() -> None:
    for code, entry in load_catalogue().items():
        for language in ("en", "ja"):
            assert entry[language]["title"].strip(), code
            assert entry[language]["todo"].strip(), code
        facts = [set(PLACEHOLDER.findall(" ".join(entry[language].values()))) for language in ("en", "ja")]
        assert facts[0] == facts[1], code
        assert re.search(r"[ぁ-ん]", entry["ja"]["todo"]), f"{code}: no Japanese"


def test_a_missing_fact_shows_its_name_instead_of_hiding_the_error() -> None:
    assert "<limit>" in InvalidEvent("NB-1010", "too_large").title("en")


def test_only_what_may_succeed_later_is_retryable() -> None:
    assert Unavailable("NB-2001", retry_after_s=3).retry_after_s == 3
    assert [kind.retryable for kind in (Unavailable, InvalidEvent, NbpulseError)] == [True, False, False]
