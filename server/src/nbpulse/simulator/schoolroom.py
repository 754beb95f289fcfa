"""The class at work: everybody joins, plays their script against the clock, and is heard of every 20 s."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from nbpulse.errors import NbpulseError
from nbpulse.simulator.pupils import Pupil, Step, describe_event
from nbpulse.simulator.wire import Tally, Wire, deliver, join

_JOINS_AT_ONCE = 12
_PRESENCE_S = 20.0


@dataclass(frozen=True)
class ClassOptions:
    """Which class, how large, how fast."""

    url: str
    join_code: str
    students: int = 200
    speed: float = 1.0
    seed: int = 7
    minutes: float | None = None
    real: int = 0


class Schoolroom:
    """A class of simulated students on one running server."""

    def __init__(self, options: ClassOptions, *, with_numbers: bool = True) -> None:
        self.options = options
        self.tally = Tally()
        self._with_numbers = with_numbers
        self._gate = asyncio.Semaphore(_JOINS_AT_ONCE)
        self.pupils = [Pupil(number, options.seed, options.speed) for number in range(options.students)]

    async def run(self) -> None:
        """Until the class's minutes are over, for ever without. Raises the first student's error."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.options.minutes * 60 if self.options.minutes else None):
                async with asyncio.TaskGroup() as group:
                    for pupil in self.pupils:
                        group.create_task(self._attend(pupil))

    async def _attend(self, pupil: Pupil) -> None:
        wire = Wire(self.options.url)
        try:
            async with self._gate:
                number = f"D{self.options.seed % 100:02d}{pupil.number + 1:04d}" if self._with_numbers else None
                await join(wire, self.options.url, self.options.join_code, pupil.name, number)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._report_presence(pupil, wire))
                group.create_task(self._play(pupil, wire))
        finally:
            wire.close()

    async def _play(self, pupil: Pupil, wire: Wire) -> None:
        clock = asyncio.get_running_loop().time
        due_s, sequence = clock(), 0
        for step in pupil.play():
            # Against the clock, not from sleep to sleep: a slow machine must not slow the class.
            due_s = max(due_s + step.wait_s, clock() - 1)
            await asyncio.sleep(due_s - clock())
            if step.events:
                events = describe_step(pupil, step, sequence)
                sequence += len(events)
                await deliver(wire, events, self.tally)

    async def _report_presence(self, pupil: Pupil, wire: Wire) -> None:
        await asyncio.sleep(random.uniform(1, _PRESENCE_S))  # noqa: S311
        while True:
            if not pupil.has_left:
                state = {"state": "idle" if pupil.is_idle else "active"}
                event = {"event_id": str(uuid4()), "event_type": "presence", "occurred_at": format_now(), "data": state}
                with contextlib.suppress(OSError, TimeoutError):  # nobody sends an old presence again
                    await wire.ask("POST", "/api/v1/events", event)
            await asyncio.sleep(_PRESENCE_S)


def describe_step(pupil: Pupil, step: Step, sequence: int) -> list[dict[str, Any]]:
    """The step's events, happening now."""
    occurred_at = format_now()
    return [describe_event(pupil, sequence + n, occurred_at, event) for n, event in enumerate(step.events)]


def format_now() -> str:
    """This moment on the wire."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def run_schoolroom(options: ClassOptions, real_pupils: Sequence[Any] = ()) -> None:
    """The class, with its real kernels beside it, until over or SIGTERM. Raises NbpulseError."""
    loop = asyncio.get_running_loop()
    working = asyncio.gather(Schoolroom(options).run(), *real_pupils)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, working.cancel)
    try:
        await working
    except asyncio.CancelledError:
        return
    except BaseExceptionGroup as group:
        raise find_cause(group) from group


def find_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error that is worth telling: ours where there is one."""
    errors: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            errors.append(error)
    return next((error for error in errors if isinstance(error, NbpulseError)), errors[0])
