"""One delivery of a client's: the events of a request's body, each in its own bytes.

Promise: one event that is no JSON never takes its neighbours with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

import msgspec

from nbpulse.errors import InvalidInput

BATCH_EVENTS_MAX: Final = 500
_decode_parts = msgspec.json.Decoder(list[msgspec.Raw]).decode


def split_batch(body: bytes) -> tuple[list[bytes], bool]:
    """
    The events of a request's body as bytes each, and whether it was a batch (a JSON array).

    Raises InvalidInput: not JSON (NB-1001), an empty batch (NB-1002), more than 500 events (NB-1003).
    """
    text = body.strip()
    if not text.startswith(b"["):
        if not text.startswith(b"{"):
            raise InvalidInput("NB-1001")
        return [text], False
    found: Sequence[bytes | msgspec.Raw]
    try:
        found = _decode_parts(text)
    except (msgspec.DecodeError, RecursionError):
        # One element is no JSON: find the elements' borders, so that only that one is refused.
        found = list(islice(_split_elements(text), BATCH_EVENTS_MAX + 1))
    if not found:
        raise InvalidInput("NB-1002")
    if len(found) > BATCH_EVENTS_MAX:
        raise InvalidInput("NB-1003", events=len(found), limit=BATCH_EVENTS_MAX)
    return [bytes(part) for part in found], True


# A string without an end reaches to the end of the text, at one try: nothing is looked at twice.
_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z|\\\Z)|[\[\]{},]', re.DOTALL)
# 500 events have some 40,000; looking for borders takes 2 µs each, and everybody waits.
_STRUCTURE_MAX: Final = 100_000


def _split_elements(text: bytes) -> Iterator[bytes]:
    """
    The top-level elements of an array whose inside may be anything with balanced brackets.

    Raises InvalidInput (NB-1001): it is no such array, or has more brackets, commas and texts than a batch of events.
    """
    depth, start = 0, 1
    for match in islice(_STRUCTURE.finditer(text), _STRUCTURE_MAX):
        token = match.group()
        if token in b"[{":
            depth += 1
        elif token in b"]}":
            depth -= 1
            if depth == 0:
                if text[match.end() :].strip():
                    raise InvalidInput("NB-1001")
                if text[start : match.start()].strip():
                    yield text[start : match.start()].strip()
                return
        elif token == b"," and depth == 1:
            yield text[start : match.start()].strip()
            start = match.end()
    raise InvalidInput("NB-1001")
