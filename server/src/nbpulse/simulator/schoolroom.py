"""The class at work: everybody joins, plays their script against the clock, and is heard of every 20 s."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from nbpulse.errors import NbpulseError
from nbpulse.simulator.course import Pupil, list_pupils, prepare_course
from nbpulse.simulator.lesson import NOTEBOOK_NAME, Cell
from nbpulse.simulator.scenarios import DEMO, Moment, PlantedClass, load_scenarios
from nbpulse.simulator.truth import Truth, describe_trouble, write_truth
from nbpulse.simulator.wire import Tally, Wire, deliver, join

_JOINS_AT_ONCE = 12
_BATCH = 500
BEGINS_MIN: float = load_scenarios(DEMO)["class"]["begins_min"]


@dataclass(frozen=True)
class ClassOptions:
    """
    Which class, how large, how fast. `begins_min`: the minute of the class at which it joins; what its students did
    before is delivered at once, with the times at which it happened. Without `minutes` the class goes to its end.
    """

    url: str
    join_code: str
    students: int = 200
    speed: float = 1.0
    seed: int = 7
    minutes: float | None = None
    real: int = 0
    begins_min: float = BEGINS_MIN


class Schoolroom:
    """A class of simulated students on one running server."""

    def __init__(self, options: ClassOptions, *, with_numbers: bool = True) -> None:
        self.options = options
        self.tally = Tally()
        self.pupils = list_pupils(options.seed, options.students)
        self._with_numbers = with_numbers
        self._gate = asyncio.Semaphore(_JOINS_AT_ONCE)
        self._lesson = PlantedClass(options.seed, options.students, scenario=DEMO)
        self._moments = list(self._lesson.play())

    def tell_truth(self) -> list[Truth]:
        """What was planted, and with whom: everybody but the ordinary who never get into trouble."""
        told = (
            describe_trouble(self._lesson, student) | vars(pupil)
            for student, pupil in zip(self._lesson.students, self.pupils, strict=True)
        )
        return [one for one in told if one["trouble_min"] or one["kind"] != "ordinary"]

    async def run(self) -> None:
        """Until the class, or the minutes asked for, are over. Raises the first student's error."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.options.minutes * 60 if self.options.minutes else None):
                async with asyncio.TaskGroup() as group:
                    desks = [_Desk(self.options, number) for number in range(self.options.students)]
                    for desk, pupil in zip(desks, self.pupils, strict=True):
                        group.create_task(self._attend(desk, pupil))
                    await self._play(desks)

    async def _play(self, desks: Sequence[_Desk]) -> None:
        """Hand everybody what happens to them when it is time; what is past at once. Then they go home."""
        loop, joined_at = asyncio.get_running_loop(), datetime.now(UTC)
        joined_s, begins_s = loop.time(), self.options.begins_min * 60
        for moment in self._moments:
            passed_s = moment.at_s - begins_s
            if passed_s > 0:
                passed_s /= self.options.speed
                # Against the clock, not from sleep to sleep: a slow machine must not slow the class.
                await asyncio.sleep(joined_s + passed_s - loop.time())
            elif moment.event_type is None:
                continue  # who was there earlier is nobody's news
            desks[moment.student].inbox.put_nowait((moment, joined_at + timedelta(seconds=passed_s)))
        for desk in desks:
            desk.inbox.put_nowait(None)

    async def _attend(self, desk: _Desk, pupil: Pupil) -> None:
        """Join with the first thing that happens, and send all of it in order."""
        wire = Wire(self.options.url)
        upcoming = await desk.take()
        try:
            if upcoming:
                async with self._gate:
                    number = pupil.number if self._with_numbers else None
                    await join(wire, self.options.url, self.options.join_code, pupil.name, number)
            while upcoming:
                told = [
                    desk.describe(moment, self._lesson.cells[moment.cell], format_time(at)) for moment, at in upcoming
                ]
                if events := [event for event in told if event["event_type"] != "presence"]:
                    await deliver(wire, events, self.tally)
                for event in told:
                    if event["event_type"] == "presence":
                        with contextlib.suppress(OSError, TimeoutError):  # nobody sends an old presence again
                            await wire.ask("POST", "/api/v1/events", event)
                upcoming = await desk.take()
        finally:
            wire.close()


class _Desk:
    """One student's Jupyter: what is still to be sent, and how it is put on the wire."""

    def __init__(self, options: ClassOptions, number: int) -> None:
        self.inbox: asyncio.Queue[tuple[Moment, datetime] | None] = asyncio.Queue()
        self._ids = random.Random(f"{options.seed}:{number}:ids:{options.join_code}")  # noqa: S311 - a play, no secret
        self._session_id = self._make_id()
        self._sequence = 0
        self._execution_count = 0
        self._is_over = False

    async def take(self) -> list[tuple[Moment, datetime]]:
        """What there is to send, once there is something; nothing when the class is over."""
        taken: list[tuple[Moment, datetime]] = []
        while not self._is_over and len(taken) < _BATCH and not (taken and self.inbox.empty()):
            one = await self.inbox.get()
            self._is_over = one is None
            if one is not None:
                taken.append(one)
        return taken

    def describe(self, moment: Moment, cell: Cell, occurred_at: str) -> dict[str, Any]:
        """The moment as an event on the wire."""
        data = dict(moment.data)
        event: dict[str, Any] = {"event_id": str(self._make_id()), "occurred_at": occurred_at, "data": data}
        if moment.event_type is None:
            return event | {"event_type": "presence"}
        self._sequence += 1
        event |= {"schema_version": 1, "event_type": moment.event_type, "sequence": self._sequence}
        event |= {"session_id": str(self._session_id), "notebook_path": NOTEBOOK_NAME}
        if moment.event_type == "notebook_open":
            return event
        if moment.event_type == "cell_execution":
            self._execution_count += 1
            data |= {"has_error": data["status"] == "error", "execution_count": self._execution_count}
        return event | {"cell_id": cell.id, "cell_index": cell.index, "cell_type": "code"}

    def _make_id(self) -> UUID:
        return UUID(int=self._ids.getrandbits(128), version=4)


def format_time(moment: datetime) -> str:
    """That moment on the wire."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def run_schoolroom(
    options: ClassOptions, course_id: str, teacher_token: str, truth_path: Path, real_pupils: Sequence[Any] = ()
) -> None:
    """
    The class of a course that its teacher prepares first, with its real kernels beside it, until over or SIGTERM; what
    was planted is in `truth_path` before anybody joins. Raises NbpulseError.
    """
    room = Schoolroom(options)
    staff = Wire(options.url, teacher_token)
    try:
        await prepare_course(staff, course_id, room.pupils)
    finally:
        staff.close()
    told = {"seed": options.seed, "speed": options.speed, "begins_min": options.begins_min}
    write_truth(truth_path, told | {"joined_at": datetime.now(UTC).isoformat(), "students": room.tell_truth()})
    loop = asyncio.get_running_loop()
    working = asyncio.gather(room.run(), *real_pupils)
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
