"""The Jupyter server's observer: joins what crosses the websockets, what kernels publish and what the server tells.

Observations come from callbacks of Jupyter's on its event loop. Each is queued with a few microseconds' work and
taken in order by one task, which first reads the sessions as they are now.

Promises: no callback raises into Jupyter, whatever breaks in here; a fault is counted (`nbpulse-capture status`),
and the kernel it concerns is given up, so that the extension inside it tells of its runs itself. Nothing is
recorded, and nothing written, before somebody has joined.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from nbpulse_capture.claims import SERVER_VARIABLE, ServerClaims, find_death, remove_dead_servers
from nbpulse_capture.consent import AllowanceFile
from nbpulse_capture.contents import fit_contents
from nbpulse_capture.execution import describe_event
from nbpulse_capture.faults import FaultLog
from nbpulse_capture.frontend import FrontEnd
from nbpulse_capture.kernels import KernelListener
from nbpulse_capture.membership import MembershipFile, get_outbox_file
from nbpulse_capture.notebook import NotebookShelf
from nbpulse_capture.openruns import amend, end_forgotten_runs, keep_open
from nbpulse_capture.outbox import Outbox
from nbpulse_capture.places import SessionPlaces
from nbpulse_capture.policy import OWN_ACTS_ONLY, apply_policy
from nbpulse_capture.rows import Leased
from nbpulse_capture.sender import Sender
from nbpulse_capture.voice import Voice
from nbpulse_capture.watched import Event, WatchedKernel
from nbpulse_capture.websocket import read_request
from nbpulse_capture.writer import Writer

TICK_S = 1.0
QUEUE_LIMIT = 50_000
PLACES_GOOD_FOR_S = 0.1  # for start and end of a short run; a rename by the file browser counts at once anyway
SAVE_TOLD_EVERY_S = 10.0
LAST_WORDS_S = 2.0
# A kernel that outlives its server ends its run itself; it is given this long before the run ends as unknown.
GRACE_FOR_KERNELS_S = 2.0

Action = Callable[[], None]


class ServerObserver:
    """One per Jupyter server process."""

    def __init__(self, kernel_manager: Any, session_manager: Any, contents_manager: Any) -> None:
        self._kernel_manager = kernel_manager
        self._places = SessionPlaces(session_manager, contents_manager)
        self._claims = ServerClaims()
        self._allowance_file = AllowanceFile()
        self._account: str | None = None
        self._noted_sender_fault = ""
        self._kernels: dict[str, WatchedKernel] = {}
        self._listeners: dict[str, KernelListener] = {}
        self._queue: deque[tuple[WatchedKernel | None, Action]] = deque()
        self._something_to_tell = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._looked_at_s = float("-inf")
        self._tasks: list[asyncio.Task[None]] = []
        self._saved_at_s: dict[str, float] = {}
        self._has_recovered = False
        self._shelf = NotebookShelf()
        self.faults = FaultLog()
        self.front_end = FrontEnd(self)
        self._sender = Sender(
            get_outbox_file(), MembershipFile(), describe_presence=self._describe_presence, linger_s=0.0
        )
        self._writer = Writer(self.faults, self._sender.offer)

    # -- life ------------------------------------------------------------------------------------------------

    def announce(self) -> None:
        """Kernels started from now on know that they may be observed."""
        os.environ[SERVER_VARIABLE] = str(self._claims.directory)

    def start(self) -> None:
        """Begin; called on the running event loop."""
        self._writer.start()
        self._sender.start()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._take_observations()), loop.create_task(self._tick())]
        for kernel_id in list(self._kernel_manager.list_kernel_ids()):
            self.watch(kernel_id, is_new=False)

    async def stop(self) -> None:
        """The server ends in good order: every run ends, what waits is written and sent."""
        for task in self._tasks:
            task.cancel()
        for listener in self._listeners.values():
            listener.read()
        while self._queue:
            self._do(*self._queue.popleft())
        for kernel in list(self._kernels.values()):
            self._do(kernel, kernel.note_stop)
            self._listeners[kernel.kernel_id].close()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._writer.stop, LAST_WORDS_S)
        await loop.run_in_executor(None, self._sender.stop, LAST_WORDS_S)
        self._claims.close()
        os.environ.pop(SERVER_VARIABLE, None)

    # -- what Jupyter calls (through server_extension.py, which catches) ----------------------------------------

    def watch(self, kernel_id: str, *, is_new: bool) -> None:
        """A kernel is there."""
        if kernel_id in self._kernels:
            return
        kernel = WatchedKernel(kernel_id, self, is_new=is_new)
        manager = self._kernel_manager.get_kernel(kernel_id)
        voice = Voice(kernel, self._offer, self.faults, lambda: self._allowance_file.read().policy)
        listener = KernelListener(manager, voice, partial(self.give_up, kernel_id))
        listener.open()
        self._kernels[kernel_id], self._listeners[kernel_id] = kernel, listener
        # Jupyter starts a dead kernel anew, or gives up; either way it has died.
        for event in ("restart", "dead"):
            self._kernel_manager.add_restart_callback(kernel_id, partial(self._note_crash, kernel), event)
        self._claim(kernel)

    def note_request(self, kernel_id: str, raw: str | bytes, subprotocol: str | None) -> None:
        """Something crosses the websocket on its way to a kernel."""
        request = read_request(raw, subprotocol)
        kernel = self._kernels.get(kernel_id)
        if request is None or kernel is None:
            return
        allowance = self._allowance_file.read()
        if self._account != (account := allowance.membership.account if allowance.membership else None):
            self._account = account  # somebody else sits here, or the same student in another course
            for one in self._kernels.values():
                self._offer(one, one.begin_anew, within_s=None)
        if allowance.policy.wants("output"):  # on its way to the kernel before the request is
            self._listeners[kernel_id].hear_output(True)
        if request.cell is None or allowance.policy == OWN_ACTS_ONLY:
            self._offer(kernel, partial(kernel.runs.ignore, request.msg_id), within_s=None)
        else:
            submit = partial(kernel.runs.submit, request.msg_id, request.cell, request.marks)
            self._offer(kernel, submit, within_s=None)

    def note_kernel_action(self, kernel_id: str, action: str) -> None:
        """The server has started, interrupted, restarted or shut down a kernel."""
        if action == "start":
            self.watch(kernel_id, is_new=True)
        kernel = self._kernels.get(kernel_id)
        if kernel is None:
            return
        self._listeners[kernel_id].read()  # what it said before
        if action == "restart":
            self._offer(kernel, kernel.note_restart)
            self._listeners[kernel_id].open()
        elif action == "interrupt":
            self._offer(kernel, kernel.note_interrupt)
        elif action == "shutdown":
            self._offer(kernel, kernel.note_stop)
            del self._kernels[kernel_id]
            self._listeners.pop(kernel_id).close()
            self._claims.release(kernel_id)

    def note_contents(self, action: str, path: str, source_path: str) -> None:
        """The contents service has saved or renamed something."""
        if action == "rename":
            self._places.renames.note(source_path, path)
            self._looked_at_s = float("-inf")  # where kernels were a moment ago is no longer so
        elif action in {"create", "upload", "copy", "save"}:
            self._places.renames.forget(path)
        if action == "save" and path.endswith(".ipynb"):
            self._offer(None, partial(self._tell_save, path.strip("/")))

    def note_server_side(self, path: str | None, cell_id: str, begins: bool) -> None:
        """The server itself is about to run a cell, or has run it."""

        def tell() -> None:
            at = [k for k in self._kernels.values() if path is None or k.is_at(self._places.locate(path).path)]
            if len(at) == 1:  # two kernels at one notebook: whose run it is cannot be known
                (at[0].expect_cell if begins else at[0].forget_cell)(cell_id)

        self._offer(None, tell)

    def give_up(self, kernel_id: str, error: BaseException) -> None:
        """A fault of ours: the kernel is left to tell of itself from now on."""
        self.faults.note(error, "server")
        kernel = self._kernels.get(kernel_id)
        if kernel is not None:
            kernel.is_given_up = True
            self._claims.release(kernel_id)
        if self._allowance_file.read().membership is not None:
            self._writer.hand_over(lambda _: None)  # it writes the faults down

    def _note_crash(self, kernel: WatchedKernel) -> None:
        if kernel.kernel_id in self._listeners:
            self._listeners[kernel.kernel_id].read()  # its last words
        self._offer(kernel, kernel.note_death)

    # -- the task --------------------------------------------------------------------------------------------

    def _offer(self, kernel: WatchedKernel | None, action: Action, *, within_s: float | None = 0.0) -> None:
        """Queue an observation, to be told of at once, within a moment, or (None) only with the next that is told."""
        if len(self._queue) >= QUEUE_LIMIT:
            self.faults.note("more to tell than can be told", "server")
            return
        self._queue.append((kernel, action))
        if within_s == 0.0:
            self._something_to_tell.set()
        elif within_s is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(within_s, self._something_to_tell.set)

    async def _take_observations(self) -> None:
        """In order; all that has come meanwhile shares one reading of the sessions."""
        while True:
            await self._something_to_tell.wait()
            self._something_to_tell.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            is_good = self._places.is_current() or time.monotonic() - self._looked_at_s < PLACES_GOOD_FOR_S
            if not is_good or any(not kernel.is_placed for kernel in self._kernels.values()):
                await self._look()
            while self._queue:
                self._do(*self._queue.popleft())

    def _do(self, kernel: WatchedKernel | None, action: Action) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the promise: the task goes on, the kernel tells of itself
            self.give_up(kernel.kernel_id if kernel else "", error)

    async def _look(self) -> None:
        self._looked_at_s = time.monotonic()
        try:
            await self._places.refresh()
        except Exception as error:  # noqa: BLE001 - another session manager may do anything; the last places hold
            self.faults.note(error, "sessions")
        for kernel in self._kernels.values():
            self._do(kernel, partial(kernel.look, self._places.find(kernel.kernel_id)))

    async def _tick(self) -> None:
        """Once a second: are the kernels alive, has somebody joined, do the claims hold."""
        while True:
            try:
                if self._kernels:
                    await self._look()
                await self._find_dead_kernels()
                if self._sender.fault != self._noted_sender_fault:
                    self._noted_sender_fault = self._sender.fault
                    self.faults.note(self._sender.fault, "sender")
                allowance = self._allowance_file.read()
                if allowance.policy.wants("output"):  # for who asks the kernel past this server
                    for listener in self._listeners.values():
                        listener.hear_output(True)
                if allowance.membership is not None:
                    self._recover()
                    for kernel in self._kernels.values():
                        self._claim(kernel)
                    self._claims.beat()
            except Exception as error:  # noqa: BLE001 - as above
                self.faults.note(error, "server")
            await asyncio.sleep(TICK_S)

    async def _find_dead_kernels(self) -> None:
        """Jupyter looks every three seconds; while something runs or waits, that is too seldom."""
        for kernel in list(self._kernels.values()):
            if not kernel.runs.open_count or kernel.kernel_id not in self._kernel_manager:
                continue
            manager = self._kernel_manager.get_kernel(kernel.kernel_id)
            alive = manager.is_alive()
            if not (await alive if hasattr(alive, "__await__") else alive) and not manager.shutting_down:
                self._note_crash(kernel)

    def _claim(self, kernel: WatchedKernel) -> None:
        is_decided = kernel.is_given_up or kernel.kernel_id in self._claims.kernel_ids
        if not is_decided and self._allowance_file.read().membership is not None:
            self._claims.claim(kernel.kernel_id)

    def _recover(self) -> None:
        """Once: what a server that was killed has left open ends as unknown."""
        if self._has_recovered:
            return
        self._has_recovered = True

        def recover(outbox: Outbox) -> None:
            end_forgotten_runs(outbox, find_death)
            remove_dead_servers()

        loop = asyncio.get_running_loop()
        loop.call_later(GRACE_FOR_KERNELS_S, self._writer.hand_over, recover)

    def _tell_save(self, path: str) -> None:
        """An editor shared by several saves every second: one word in ten seconds is enough."""
        now_s = time.monotonic()
        if now_s - self._saved_at_s.get(path, float("-inf")) < SAVE_TOLD_EVERY_S:
            return
        self._saved_at_s[path] = now_s
        place = self._places.locate(path)
        common: Event = {"notebook_path": place.path, "notebook_id": None}
        for kernel in self._kernels.values():
            if kernel.is_at(place.path):
                common = kernel.describe_place()
        self.put(describe_event("notebook_save", common, {}), place.file)

    # -- EventStore ------------------------------------------------------------------------------------------

    def put(self, event: Event, file: str | None, *, held_s: float = 0.0, end: Event | None = None) -> None:
        """To the writer, if somebody has joined and it may be recorded."""
        allowance = self._allowance_file.read()
        membership, policy = allowance.membership, allowance.policy
        allowed = apply_policy(event, policy)
        if membership is None or allowed is None:
            return
        end = apply_policy(end, policy) if end is not None else None
        account, owner, held_until = membership.account, self._claims.owner, time.time() + held_s

        def store(outbox: Outbox) -> Leased | None:  # the file is read now, in the writer's thread: it may be renamed
            if self._allowance_file.read().membership != membership:
                return None  # the student has left or withdrawn meanwhile, and what waited was erased
            placed = fit_contents(self._shelf.place(allowed, file) if file else allowed)
            leased = None
            if held_s:
                outbox.put(placed, account, file, held_until=held_until)
            else:
                leased = outbox.put_leased(placed, account, file)
            if end is not None:
                keep_open(outbox, placed | end, account, file, owner)
            return leased

        self._writer.hand_over(store)

    def amend(self, event_id: str, end_id: str, path: str, file: str | None) -> None:
        """To the writer."""
        changes = {"notebook_path": path}
        self._writer.hand_over(lambda outbox: amend(outbox, event_id, end_id, changes, file))

    # -- called by the sender's thread -------------------------------------------------------------------------

    def _describe_presence(self) -> Event | None:
        """One word for the student, of the kernel where something happened last."""
        now_s = time.time()
        found = [(kernel.judge_presence(now_s), kernel) for kernel in list(self._kernels.values())]
        there = [(seen[1], seen[0], kernel) for seen, kernel in found if seen is not None]
        _, state, kernel = max(there, key=lambda one: one[0], default=(0.0, None, None))
        if (seen := self.front_end.describe_presence(state)) is not None:
            return seen
        return describe_event("presence", kernel.describe_place(), {"state": state}) if kernel else None

    # -- asked by the front end's desk, from its threads -------------------------------------------------------

    def describe_work(self, path: str) -> Event:
        """The learning session and the last cell of the kernel at that notebook; empty where there is none."""
        return next((one.describe_work() for one in list(self._kernels.values()) if one.is_at(path)), {})

    def wake(self) -> None:
        """There is something to send."""
        self._sender.wake()
