"""Every text a student can meet in the terminal or in `%nbpulse`; messages.json holds both languages.

Errors have a stable code NB-70xx, say what happened and what to do.
"""

from __future__ import annotations

import json
import locale
import os
import re
import sys
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import TextIO

# What a terminal obeys instead of showing it: controls but line ends and tabs, and what turns the reading direction.
_ORDERS = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")


class RefusedError(Exception):
    """Something the student has to be told; carries the code and the facts of its text."""

    def __init__(self, code: str, **facts: object) -> None:
        super().__init__(code)
        self.code = code
        self.facts = facts


@cache
def load_texts() -> dict[str, dict[str, str]]:
    """Every text by key, then by language."""
    raw = resources.files("nbpulse_capture").joinpath("messages.json").read_text(encoding="utf-8")
    texts: dict[str, dict[str, str]] = json.loads(raw)
    return texts


def get_language() -> str:
    """`ja` or `en`, by LC_ALL, LC_MESSAGES, LANG, else the system's own setting."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(name):
            return "ja" if value.lower().startswith("ja") else "en"
    return "ja" if (locale.getlocale()[0] or "").lower().startswith("ja") else "en"


def get_text(key: str, **facts: object) -> str:
    """The text in the terminal's language; an error's text begins with its code."""
    return translate(get_language(), key, facts)


def translate(language: str, key: str, facts: Mapping[str, object]) -> str:
    """The text in `ja` or `en`."""
    text = load_texts()[key][language].format(**facts)
    return f"{key}: {text}" if key.startswith("NB-") else text


def say(text: str, stream: TextIO | None = None) -> None:
    """A line for the student, on stdout unless told otherwise; nobody's text gives the terminal an order."""
    stream = stream or sys.stdout
    # Written out as JSON would, since some of what is said is JSON.
    line = _ORDERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"
    try:
        stream.write(line)
    except UnicodeEncodeError:  # a console that has no Japanese
        encoding = stream.encoding or "ascii"
        stream.write(line.encode(encoding, "replace").decode(encoding))
