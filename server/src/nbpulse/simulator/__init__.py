"""A simulated class that speaks the real HTTP API, and students who are real kernels.

Promises: every event goes the way a student's own would; the same seed makes the same class; what the server did not
accept is sent again; nothing is simulated but the people.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from nbpulse.simulator.kernels import check_real_kernels, run_real_pupil
from nbpulse.simulator.schoolroom import BEGINS_MIN, ClassOptions, Schoolroom, find_cause, run_schoolroom
from nbpulse.simulator.truth import TRUTH_FILE, measure_need, measure_trouble, rank_by_need, read_truth
from nbpulse.simulator.wire import Tally, Wire, describe_refusal

__all__ = [
    "BEGINS_MIN",
    "TRUTH_FILE",
    "ClassOptions",
    "Schoolroom",
    "Tally",
    "Wire",
    "check_real_kernels",
    "describe_refusal",
    "find_cause",
    "measure_need",
    "measure_trouble",
    "rank_by_need",
    "read_truth",
    "run_class",
]


def run_class(asked: dict[str, Any], course_id: str, teacher_token: str, data_dir: Path) -> None:
    """
    `nbpulse demo`'s class (`asked`: the fields of ClassOptions) until it is over or SIGTERM comes. Raises NbpulseError.
    """
    options = ClassOptions(**asked)
    asyncio.run(_run(options, course_id, teacher_token, data_dir / TRUTH_FILE))


async def _run(options: ClassOptions, course_id: str, teacher_token: str, truth_path: Path) -> None:
    real = [run_real_pupil(options, number + 1) for number in range(options.real)]
    await run_schoolroom(options, course_id, teacher_token, truth_path, real)
