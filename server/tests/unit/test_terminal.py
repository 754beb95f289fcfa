"""The words of the terminal: both languages, nothing missing, nothing unused."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

import nbpulse
from nbpulse.administration import show_table
from nbpulse.errors import StartupError
from nbpulse.simulator.scenarios import DEMO, load_scenarios
from nbpulse.terminal import answer, describe_error, load_texts, pick_language, say

SOURCES = [path.read_text(encoding="utf-8") for path in Path(nbpulse.__file__).parent.rglob("*.py")]


def find_placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("key", sorted(load_texts()))
def test_a_sentence_says_the_same_facts_in_both_languages(key: str) -> None:
    wording = load_texts()[key]
    assert wording.keys() == {"en", "ja"}
    assert find_placeholders(wording["en"]) == find_placeholders(wording["ja"])
    assert not re.search("[ぁ-んァ-ヶ一-龠]", wording["en"].replace("デモ授業", ""))


def test_every_sentence_asked_for_is_there_and_every_sentence_there_is_asked_for() -> None:
    asked = set(re.findall(r"""get_text\(\s*['"]([a-z_]+)['"]""", "\n".join(SOURCES)))
    asked |= {f"help_{name}" for name in re.findall(r'_describe\("([a-z_]+)"', "\n".join(SOURCES))}
    chosen = re.findall(r'get_text\(\s*"([a-z_]+)" if .+? else "([a-z_]+)"', "\n".join(SOURCES))
    asked |= {key for pair in chosen for key in pair}
    named = set(re.findall(r'(?:Check|_fail)\(\s*"([a-z_]+)"', "\n".join(SOURCES))) | {"api", "worker"}
    asked |= {f"check_{name}" for name in named}
    asked |= {f"planted_{kind}" for kind in [*load_scenarios(DEMO)["kinds"], "ordinary"]}
    asked -= {"help_", "check_"}
    assert load_texts().keys() == asked


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "ja_JP.UTF-8", "LC_ALL": "en_US.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "NBPULSE_LANGUAGE": "ja"}, "ja"),
        ({}, "en"),
    ],
)
def test_the_language_is_the_terminals(
    environment: dict[str, str], language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NBPULSE_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert pick_language() == language


def test_an_error_says_its_code_what_happened_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBPULSE_LANGUAGE", "en")
    said = describe_error(StartupError("NB-3010", host="127.0.0.1", port=8642, other=8643))
    assert said.splitlines() == [
        "NB-3010 127.0.0.1:8642 is already in use.",
        "        → Stop the program that listens there, or start with --port 8643.",
    ]


# Colours, a cleared screen, a window's title, a link, the clipboard, C1 forms, a turned reading direction.
ORDERS = [
    "\x1b[31m",
    "\x1b[2J\x1b[H",
    "\x1b]0;title\x07",
    "\x1b]8;;http://evil.example\x1b\\\\",
    "\x1b]52;c;ZXZpbA==\x07",
    "\x9b31m",
    "\x9d0;title\x9c",
    "\x90q\x9c",
    "\x08\x08\x08",
    "over\rwritten",
    "\x7f",
    "\x00",
    "\x0c",
    "\u202egnp.exe",
    "\u2066",
]


@pytest.mark.parametrize("order", ORDERS)
def test_no_text_of_somebody_elses_gives_the_terminal_an_order(order: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer(f"a{order}b\n\tc")
    say(f"a{order}b")
    show_table("none", ["name"], [[f"a{order}b"]])
    out, err = capsys.readouterr()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", out + err)
    assert "a\\u" in out or "over\\u" in out
    assert "a\\u" in err or "over\\u" in err
    assert "b\n\tc\n" in out
