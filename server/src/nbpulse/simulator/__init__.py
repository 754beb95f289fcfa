"""A simulated class that speaks the real HTTP API, and students who are real kernels.

Promises: every event goes the way a student's own would; the same seed makes the same class; what the server did not
accept is sent again; nothing is simulated but the people.
"""

from __future__ import annotations

import asyncio
from typing import Any

from nbpulse.simulator.kernels import check_real_kernels, run_real_pupil
from nbpulse.simulator.schoolroom import ClassOptions, Schoolroom, find_cause, run_schoolroom
from nbpulse.simulator.wire import Tally, Wire, describe_refusal

__all__ = [
    "ClassOptions",
    "Schoolroom",
    "Tally",
    "Wire",
    "check_real_kernels",
    "describe_refusal",
    "find_cause",
    "run_class",
]


def run_class(asked: dict[str, Any]) -> None:
    """`nbpulse demo`'s class (the fields of ClassOptions) until it is over or SIGTERM comes. Raises NbpulseError."""
    options = ClassOptions(**asked)
    asyncio.run(_run(options))


async def _run(options: ClassOptions) -> None:
    await run_schoolroom(options, [run_real_pupil(options, number + 1) for number in range(options.real)])
