"""A meeting's figures for readers outside the staff: without what would be somebody's.

Promises: no count of 1 to 4 students, and none whose rest is 1 to 4; no figure of a single student; no word of staff's.
None: withheld.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from nbpulse.classroom.report import CellFigures, Figures, Progress

STUDENTS_MIN: Final = 5


def withhold_figures(figures: Figures) -> Figures:
    """What may be told of a meeting; of one to which fewer than 5 came, nothing."""
    if _is_few(figures.came):
        return Figures(*(None,) * 2, 0, 0, *(None,) * 5, 0, None, None)
    are_waits_few = figures.waits < STUDENTS_MIN
    return msgspec.structs.replace(
        figures,
        students=figures.students if not _is_few((figures.students or 0) - (figures.came or 0)) else None,
        stuck=_withhold(figures.stuck, figures.came),
        hands=_withhold(figures.hands, figures.came),
        troubled=_withhold(figures.troubled, figures.came),
        unreached=_withhold(figures.unreached, figures.troubled),
        unpassed=_withhold(figures.unpassed, figures.unreached),
        waits=0 if are_waits_few else figures.waits,
        wait_median_ms=None if are_waits_few else figures.wait_median_ms,
        wait_worst_ms=None,
    )


def withhold_cells(cells: Iterable[CellFigures]) -> list[CellFigures]:
    """The same of the cells; of one that fewer than 5 students reached its place alone is left."""
    return [_withhold_cell(one) for one in cells]


def withhold_progress(progress: Progress | None) -> Progress | None:
    """The same of the progress: without the least and the most, who are somebody."""
    if progress is None or progress.students < STUDENTS_MIN:
        return None
    return msgspec.structs.replace(progress, quartiles=[None, *progress.quartiles[1:4], None])


def _withhold_cell(cell: CellFigures) -> CellFigures:
    empty = CellFigures(cell.notebook_id, cell.cell_id, cell.cell_index, cell.title, *(None,) * 5)
    if (cell.reached or 0) < STUDENTS_MIN:
        return msgspec.structs.replace(empty, reached=0) if cell.reached == 0 else empty
    failed = _withhold(cell.failed, cell.reached)
    are_times_few = cell.timed < STUDENTS_MIN
    is_error_few = cell.error is None or cell.error.students < STUDENTS_MIN
    return msgspec.structs.replace(
        cell,
        ok=_withhold(cell.ok, cell.reached),
        failed=failed,
        errors=cell.errors if failed is not None else None,
        timed=0 if are_times_few else cell.timed,
        median_ms=None if are_times_few else cell.median_ms,
        p90_ms=None if are_times_few else cell.p90_ms,
        error=None if is_error_few or cell.error is None else msgspec.structs.replace(cell.error, title=None),
    )


def _is_few(count: int | None) -> bool:
    return count is not None and 0 < count < STUDENTS_MIN


def _withhold(count: int | None, whole: int | None) -> int | None:
    """`count` of `whole` students, where neither they nor the others are few."""
    if count is None or whole is None or _is_few(count) or _is_few(whole - count):
        return None
    return count
