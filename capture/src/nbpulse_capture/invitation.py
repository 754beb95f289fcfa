"""What a teacher hands out, as a student pastes it: `CODE@host:port`, a link, or the line for the terminal.

Promise: a whole address is never guessed. Without one, the address that is known already (a prepared notebook's, or the
class joined before) is used; where there is none either, the student is told what is missing.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

from nbpulse_capture.cli import clean_url
from nbpulse_capture.messages import RefusedError

_COMMAND = re.compile(r"^[%!]?\s*(?:nbpulse-capture|nbpulse)\s+join\s+", re.IGNORECASE)


def parse_invitation(text: str, known_url: str = "") -> tuple[str, str]:
    """
    The class's address and its join code.

    Raises RefusedError: NB-7070 where one of them is missing, NB-7002 where the address is none.
    """
    words = _COMMAND.sub("", text.strip()).split()
    if len(words) == 1 and "@" in words[0]:
        code, _, address = words[0].partition("@")
    elif len(words) == 1 and "://" in words[0]:
        address, code = words[0], _read_code(words[0])
    elif len(words) >= 2 and re.search(r"[.:/]", words[0]):
        address, code = words[:2]
    elif len(words) == 1:
        address, code = known_url, words[0]
    else:
        address, code = "", ""
    if not code or not address:
        raise RefusedError("NB-7070")
    return clean_url(address), code


def _read_code(link: str) -> str:
    """`…#join=CODE` or `…?join=CODE`; empty where the link has none."""
    parts = urlsplit(link)
    for part in (parts.fragment, parts.query):
        if found := parse_qs(part).get("join"):
            return found[0]
    return ""
