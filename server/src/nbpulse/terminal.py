"""What nbpulse says in a terminal: texts in the reader's language, errors without tracebacks.

Promises: every sentence is in `terminal_texts.json` or the error catalogue, Japanese and English beside each other;
answers that scripts read go to stdout, everything said to people about progress and trouble to stderr; no text of
somebody else's gives the terminal an order.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Final, Literal, TextIO

from nbpulse.errors import NbpulseError

Language = Literal["en", "ja"]

# What a terminal obeys instead of showing it: controls but line ends and tabs, and what turns the reading direction.
_ORDERS: Final = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")


def pick_language() -> Language:
    """NBPULSE_LANGUAGE, else the locale's variables in the order POSIX gives them."""
    for name in ("NBPULSE_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(name):
            return "ja" if value.lower().startswith("ja") else "en"
    return "en"


@cache
def load_texts() -> dict[str, dict[Language, str]]:
    """Every sentence by its key, in both languages."""
    text = resources.files("nbpulse").joinpath("terminal_texts.json").read_text(encoding="utf-8")
    texts: dict[str, dict[Language, str]] = json.loads(text)
    return texts


def get_text(key: str, **facts: object) -> str:
    """One sentence in the reader's language."""
    return load_texts()[key][pick_language()].format_map(facts)


def say(text: str = "") -> None:
    """Tell the person at the terminal, on stderr; a console that has no Japanese shows question marks instead."""
    write(sys.stderr, text)


def answer(text: str) -> None:
    """Give what was asked for, on stdout, where a script can read it."""
    write(sys.stdout, text)


def disarm(text: str) -> str:
    """The text with everything a terminal would obey written out, as JSON would: `\\u001b`."""
    return _ORDERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def write(stream: TextIO, text: str) -> None:
    """One line, disarmed and flushed."""
    encoding = stream.encoding or "utf-8"
    stream.write(disarm(text).encode(encoding, "replace").decode(encoding) + "\n")
    stream.flush()


def describe_error(error: NbpulseError) -> str:
    """`NB-xxxx what happened` and, on the next line, what to do."""
    language = pick_language()
    mark = "→"
    return f"{error.code} {error.title(language)}\n        {mark} {error.todo(language)}"


@contextmanager
def show_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar in a terminal, told of (done, total); elsewhere one line at the begin."""
    if not sys.stderr.isatty():
        say(what)
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
