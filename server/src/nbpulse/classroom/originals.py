"""A course notebook's original: which file is a copy of it, told by the cells' ids and never by a file's name.

Promises: what is not clear is None, never a guess; the order of cells, copied cells and added cells change nothing.
A client tells a file's cells by their prints (`print_cell`), which name no cell and say nothing of its content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final
from uuid import UUID

import msgspec

PRINT_CHARS: Final = 6
PRINTS_MAX: Final = 64
# Three cells in common, or all there are; and a fifth of the file, so that a few pasted cells make no copy of it.
CELLS_IN_COMMON: Final = 3
SHARE_IN_COMMON: Final = 0.2
# Ids that people made up (`cell-1`) stand in many notebooks: one that shares half as many is too close to call.
NEXT_BEST: Final = 0.5


class Original(msgspec.Struct, frozen=True):
    """A notebook that the teacher has registered, as far as recognising its copies needs it."""

    notebook_id: UUID
    path: str
    cell_ids: frozenset[str]
    prints: frozenset[str]


def make_original(notebook_id: UUID, path: str, cell_ids: Iterable[str]) -> Original:
    """The original with its cells' prints."""
    ids = frozenset(cell_ids)
    return Original(notebook_id, path, ids, frozenset(print_cell(one) for one in ids))


def print_cell(cell_id: str) -> str:
    """A cell id's print: the first 6 hexadecimal digits of its SHA-1."""
    return hashlib.sha1(cell_id.encode("utf-8", "replace"), usedforsecurity=False).hexdigest()[:PRINT_CHARS]


def read_prints(told: str | None) -> frozenset[str]:
    """An event's `cell_prints`: prints in a row, at most 64."""
    ends = range(PRINT_CHARS, min(len(told or ""), PRINT_CHARS * PRINTS_MAX) + 1, PRINT_CHARS)
    return frozenset((told or "")[end - PRINT_CHARS : end] for end in ends)


def recognise(originals: Sequence[Original], prints: frozenset[str]) -> Original | None:
    """The one original that a file with these cells is a copy of; None where none is, or more than one might be."""
    if not prints:
        return None
    shared = sorted(((len(one.prints & prints), one) for one in originals), key=lambda pair: -pair[0])
    best, next_best = (*shared, (0, None), (0, None))[:2]
    count, original = best
    needed = max(min(CELLS_IN_COMMON, len(prints)), SHARE_IN_COMMON * len(prints))
    if original is None or count < needed or next_best[0] > NEXT_BEST * count:
        return None
    return original
