"""The board's words and vendored files: what a reader of the page or of the licences would trip over."""

import gzip
import hashlib
import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

WEB = Path(str(files("nbpulse") / "web"))
LANGUAGES = ("ja", "en")
SOURCES = sorted((WEB / "js").rglob("*.js"))
LINES_MOST = 8_000
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uff00-\uffef]")
# "nbpulse", commands and key names are the same in every language; anything else a person reads is a message.
ENGLISH_IN_MARKUP = re.compile(r">\s*([A-Za-z]{2,}[^<>$`{}=;()]*)<")
NOT_TRANSLATED = {"nbpulse"}


def read_catalogue(language: str) -> dict[str, Any]:
    def refuse_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys)), sorted(key for key in keys if keys.count(key) > 1)
        return dict(pairs)

    text = (WEB / "messages" / f"{language}.json").read_text(encoding="utf-8")
    catalogue: dict[str, Any] = json.loads(text, object_pairs_hook=refuse_doubles)
    return catalogue


def list_forms(message: Any) -> list[str]:
    return list(message.values()) if isinstance(message, dict) else [message]


def find_placeholders(form: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", form))


def find_used_keys() -> tuple[set[str], set[str]]:
    """Whole keys in the sources, and the prefixes of those put together at run time."""
    whole: set[str] = set()
    prefixes: set[str] = set()
    for source in SOURCES:
        text = source.read_text(encoding="utf-8")
        whole |= set(re.findall(r'"([a-z_]+\.[a-z_]+)"', text))
        prefixes |= set(re.findall(r"`([a-z_]+\.)\$\{[^`]*`", text))
    return whole, prefixes


def test_both_languages_have_the_same_keys_with_the_same_placeholders() -> None:
    ja, en = (read_catalogue(language) for language in LANGUAGES)
    assert ja.keys() == en.keys()
    for key in ja:
        wanted = {frozenset(find_placeholders(form)) for message in (ja, en) for form in list_forms(message[key])}
        assert len(wanted) == 1, f"{key}: {wanted}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_message_says_something_and_plurals_have_both_forms(language: str) -> None:
    for key, message in read_catalogue(language).items():
        assert all(form.strip() for form in list_forms(message)), key
        if isinstance(message, dict):
            assert message.keys() == {"one", "other"}, key


def test_japanese_is_japanese_and_english_is_not() -> None:
    same_in_both = {"language.ja"}
    for key, message in read_catalogue("en").items():
        assert key in same_in_both or not any(CJK.search(form) for form in list_forms(message)), key
    for key, message in read_catalogue("ja").items():
        assert any(CJK.search(form) for form in list_forms(message)), key


def test_every_key_the_board_asks_for_exists_and_none_is_left_over() -> None:
    whole, prefixes = find_used_keys()
    keys = read_catalogue("en").keys()
    namespaces = {key.split(".")[0] for key in keys}
    asked = {key for key in whole if key.split(".")[0] in namespaces}
    assert asked <= keys, sorted(asked - keys)
    assert all(any(key.startswith(prefix) for key in keys) for prefix in prefixes), prefixes
    unused = {key for key in keys - asked if not key.startswith(tuple(prefixes))}
    assert not unused, sorted(unused)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_no_source_holds_words_for_the_reader_or_writes_raw_markup(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    assert not CJK.search(text)
    raw = {words.strip() for words in ENGLISH_IN_MARKUP.findall(re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S))}
    assert raw <= NOT_TRANSLATED, raw
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert way not in text, way


def test_the_page_has_nothing_inline_that_a_strict_policy_would_block() -> None:
    page = (WEB / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=", page) == []
    for address in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert address.startswith("/web/")
        assert (WEB / address.removeprefix("/web/")).is_file(), address


def test_every_vendored_file_is_the_one_declared_and_has_its_licence() -> None:
    declared = tomllib.loads((WEB / "vendor" / "VENDOR.toml").read_text(encoding="utf-8"))["file"]
    for entry in declared:
        content = (WEB / "vendor" / entry["path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], entry["path"]
        assert len(entry["npm_sha256"]) == 64
        assert entry["version"]
        assert entry["package"]
        assert entry["licence"] in {"MIT", "Apache-2.0"}
        assert (WEB / "vendor" / entry["licence_file"]).stat().st_size > 500
    present = {path.name for path in (WEB / "vendor").glob("*.js")}
    assert present == {entry["path"] for entry in declared}


def test_imports_are_relative_so_that_the_page_needs_no_import_map() -> None:
    for source in [*SOURCES, *(WEB / "vendor").glob("*.js")]:
        text = source.read_text(encoding="utf-8")
        for target in re.findall(r'(?:\bfrom|\bimport)\s*"([^"]+)"', text):
            assert target.startswith("."), f"{source.name}: {target}"
            assert (source.parent / target).is_file(), f"{source.name}: {target}"


def test_the_board_stays_within_its_budget_of_lines() -> None:
    assert sum(len(source.read_text(encoding="utf-8").splitlines()) for source in SOURCES) <= LINES_MOST


def test_what_the_live_page_loads_stays_within_its_budget_of_bytes() -> None:
    """Scripts and styles, compressed; pages that are loaded when they are opened are not in it."""
    loaded, waiting = {WEB / "app.css"}, [WEB / "js" / "main.js"]
    while waiting:
        source = waiting.pop()
        if source not in loaded:
            loaded.add(source)
            text = source.read_text(encoding="utf-8")
            targets = re.findall(r'^(?:import|export)\b[^;]*?"(\.[^"]+)"', text, flags=re.M)
            waiting += [(source.parent / target).resolve() for target in targets]
    assert WEB / "js" / "views" / "board.js" in loaded
    assert WEB / "js" / "views" / "people.js" not in loaded
    assert sum(len(gzip.compress(one.read_bytes())) for one in loaded) <= 80_000
