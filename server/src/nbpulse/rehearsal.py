"""`nbpulse rehearse`: a simulated class on a running server, from any machine, held against the promises.

Promises: it works in a course of its own, which is removed at the end whatever happens; the board's lag is measured
where a board would be, from the moment a run is sent to the frame that shows it; "stored" is what the server's own
ledger says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from nbpulse.errors import StartupError
from nbpulse.simulator import ClassOptions, Schoolroom, Tally, Wire, describe_refusal, find_cause
from nbpulse.simulator.lesson import NOTEBOOK_NAME
from nbpulse.simulator.wire import deliver, join
from nbpulse.terminal import answer, get_text, say

ACK_P99_MS_MAX = 100.0
BOARD_LAG_MS_MAX = 1_000.0
WAIT_S_MAX = 30.0
_DRAIN_S = 15.0
_PROBE_CELL = "count"


@dataclass(frozen=True)
class Verdict:
    """One promise, what was measured, and whether it held."""

    promise: str
    measured: str
    has_passed: bool


def run_rehearsal(url: str, token: str | None, *, students: int, minutes: float, seed: int, as_json: bool) -> bool:
    """The whole rehearsal; True when every promise held. Raises StartupError when the server does not let it in."""
    if not token:
        raise StartupError("NB-3024", needed="--token")
    verdicts = asyncio.run(_rehearse(url, token, students, minutes, seed))
    if as_json:
        answer(json.dumps({"verdicts": [vars(verdict) for verdict in verdicts]}, ensure_ascii=False))
    else:
        for verdict in verdicts:
            answer(f"{'✓' if verdict.has_passed else '×'} {verdict.promise}: {verdict.measured}")
    return all(verdict.has_passed for verdict in verdicts)


async def _rehearse(url: str, token: str, students: int, minutes: float, seed: int) -> list[Verdict]:
    staff = Wire(url, token)
    course = await _open_course(staff, url)
    course_id = course["course_id"]
    say(get_text("rehearsing", students=students, minutes=f"{minutes:g}", url=url))
    try:
        return await _measure(url, token, staff, course, _choose_class(url, students, minutes, seed))
    except BaseExceptionGroup as group:
        raise find_cause(group) from group
    finally:
        removed = await _ask(staff, "DELETE", f"/api/v1/courses/{course_id}")
        say(get_text("rehearsal_removed", count=removed["removed_students"]))
        staff.close()


def _choose_class(url: str, students: int, minutes: float, seed: int) -> ClassOptions:
    """From the lesson's beginning, four times as fast as people are."""
    return ClassOptions(url, "", students=students, speed=4.0, seed=seed, minutes=minutes, begins_min=2.0)


async def _open_course(staff: Wire, url: str) -> dict[str, Any]:
    me = await _ask(staff, "GET", "/api/v1/me", url=url)
    staffed = [course["id"] for course in me["courses"] if course["role"] != "student"]
    if not staffed:
        raise StartupError("NB-3024", needed=get_text("need_staff_token"))
    return await _ask(staff, "POST", f"/api/v1/courses/{staffed[0]}/rehearsals")


async def _ask(staff: Wire, method: str, path: str, *, url: str = "") -> dict[str, Any]:
    try:
        found = await staff.ask(method, path)
    except (OSError, TimeoutError) as error:
        raise StartupError("NB-3021", url=url or path, detail=str(error) or type(error).__name__) from error
    if found.status not in {200, 201}:
        raise StartupError("NB-3021", url=url or path, detail=describe_refusal(found))
    content: dict[str, Any] = found.content
    return content


async def _measure(url: str, token: str, staff: Wire, course: dict[str, Any], options: ClassOptions) -> list[Verdict]:
    room = Schoolroom(ClassOptions(**{**vars(options), "join_code": course["join_code"]}), with_numbers=False)
    probe = _Probe(url, token, course)
    works = (room.run(), probe.run(), _show_progress(room.tally, options))
    working = [asyncio.create_task(work) for work in works]
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, working[0].cancel)
    try:
        done, _ = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled() and (error := task.exception()):
                raise error
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    accepted = room.tally.accepted + probe.tally.accepted
    stored, drained_s = await _await_stored(staff, course["course_id"], accepted)
    return _judge(room.tally, probe, accepted, stored, drained_s)


async def _show_progress(tally: Tally, options: ClassOptions) -> None:
    """How far it is: a bar in a terminal, a line every 10 s elsewhere. For ever."""
    started_s, total_s = time.monotonic(), (options.minutes or 0) * 60

    def describe() -> str:
        left_s = max(0, round(total_s - (time.monotonic() - started_s)))
        return get_text("rehearsal_left", left_s=left_s, sent=tally.sent, accepted=tally.accepted)

    if not sys.stderr.isatty():
        while True:
            await asyncio.sleep(10)
            say(describe())
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(describe(), total=total_s)
        while True:
            await asyncio.sleep(0.5)
            progress.update(task, completed=time.monotonic() - started_s, description=describe())


async def _await_stored(staff: Wire, course_id: str, accepted: int) -> tuple[int, float]:
    """The ledger's count once it has what was accepted, or after 15 s what it has; and how long that took."""
    started_s = time.monotonic()
    while True:
        stored: int = (await _ask(staff, "GET", f"/api/v1/courses/{course_id}/live"))["h"]["stored"]
        if stored >= accepted or time.monotonic() - started_s > _DRAIN_S:
            return stored, time.monotonic() - started_s
        await asyncio.sleep(0.2)


def _judge(tally: Tally, probe: _Probe, accepted: int, stored: int, drained_s: float) -> list[Verdict]:
    ack_p99_ms, lag_p95_ms = find_percentile(tally.ack_ms, 0.99), find_percentile(probe.lags_ms, 0.95)
    worst_ms = max(probe.lags_ms, default=float("nan"))
    return [
        Verdict(
            get_text("promise_ack", limit=f"{ACK_P99_MS_MAX:.0f}"),
            f"p99 {ack_p99_ms:.1f} ms, p50 {find_percentile(tally.ack_ms, 0.5):.1f} ms, n {len(tally.ack_ms)}",
            ack_p99_ms < ACK_P99_MS_MAX,
        ),
        Verdict(
            get_text("promise_stored"),
            get_text("measured_stored", accepted=accepted, stored=stored, drained_s=f"{drained_s:.1f}"),
            # What was on its way when the class ended may be stored; nobody was there to hear that it was accepted.
            0 < accepted <= stored <= tally.sent + probe.tally.sent,
        ),
        Verdict(get_text("promise_rejected"), f"{tally.rejected} / {tally.sent}", tally.rejected == 0),
        Verdict(
            get_text("promise_wait", limit=f"{WAIT_S_MAX:.0f}"),
            f"{tally.longest_wait_s:.1f} s ({tally.put_off} × 429/503)",
            tally.longest_wait_s < WAIT_S_MAX,
        ),
        Verdict(
            get_text("promise_board", limit=f"{BOARD_LAG_MS_MAX / 1000:.0f}"),
            f"p95 {lag_p95_ms:.0f} ms, max {worst_ms:.0f} ms, n {len(probe.lags_ms)}",
            lag_p95_ms < BOARD_LAG_MS_MAX,
        ),
    ]


def find_percentile(values: list[float], share: float) -> float:
    """The value that `share` (0..1) of `values` do not exceed; not a number when there are none."""
    if not values:
        return float("nan")
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


class _Probe:
    """One more student who runs one cell, well and badly in turn, and a board that watches that one square."""

    def __init__(self, url: str, token: str, course: dict[str, Any]) -> None:
        self._url, self._token, self._course = url, token, course
        self.tally = Tally()
        self.lags_ms: list[float] = []
        self._student: int | None = None
        self._column: int | None = None
        self._sent: dict[int, float] = {}

    async def run(self) -> None:
        """For ever. Raises StartupError when the board's line is refused."""
        wire = Wire(self._url)
        joined = await join(wire, self._url, self._course["join_code"], "Probe", None)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(joined["user_id"]))
            group.create_task(self._play(wire))

    async def _play(self, wire: Wire) -> None:
        sequence = 0
        while True:
            await asyncio.sleep(0.7)
            sequence += 1
            is_good = sequence % 2 == 0
            ended: dict[str, Any] = {"status": "ok", "has_error": False}
            if not is_good:
                ended = {"status": "error", "has_error": True, "error_name": "KeyError", "error_message": "'probe'"}
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            event = {
                "event_id": str(uuid4()),
                "event_type": "cell_execution",
                "occurred_at": now,
                "sequence": sequence,
                "notebook_path": NOTEBOOK_NAME,
                "cell_id": _PROBE_CELL,
                "cell_index": 2,
                "cell_type": "code",
                "data": {**ended, "execution_duration_ms": 1.0},
            }
            # 1 = a square that is well, 3 = one in error; from the third error in a row on it would be 4.
            self._sent[1 if is_good else 3] = time.perf_counter()
            await deliver(wire, [event], self.tally)

    async def _watch(self, user_id: str) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed

        course_id = self._course["course_id"]
        address = f"ws{self._url.removeprefix('http')}/api/v1/courses/{course_id}/ws"
        staff = Wire(self._url, self._token)
        while True:
            with contextlib.suppress(ConnectionClosed, OSError):
                async with connect(address, max_size=None) as line:
                    await line.send(json.dumps({"t": "hello", "token": self._token}))
                    self._learn(await _ask(staff, "GET", f"/api/v1/courses/{course_id}/live"), user_id)
                    async for message in line:
                        frame = json.loads(message)
                        if frame["t"] == "ping":
                            await line.send('{"t":"pong"}')
                        elif frame["t"] == "resync":
                            found = await _ask(staff, "GET", f"/api/v1/courses/{course_id}/live")
                            self._learn(found, user_id)
                            resume = {"t": "resume", "epoch": found["epoch"], "after_seq": found["seq"]}
                            await line.send(json.dumps(resume))
                        else:
                            self._learn(frame.get("snapshot", frame), user_id)
            await asyncio.sleep(0.5)

    def _learn(self, frame: dict[str, Any], user_id: str) -> None:
        """Where our square is, and whether it has just changed to what was sent."""
        for student in frame.get("students", ()):
            if student["id"] == user_id:
                self._student = student["i"]
        for column, cell in enumerate(frame.get("cells", ())):
            if cell["id"] == _PROBE_CELL:
                self._column = column
        for student, column, state in frame.get("c", ()):
            if (student, column) == (self._student, self._column) and state in self._sent:
                self.lags_ms.append((time.perf_counter() - self._sent.pop(state)) * 1000)
