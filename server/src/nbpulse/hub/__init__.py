"""The boards' end of the live wire: each class as it stands, and a numbered frame for every change.

One view per course and notebook holds the class (classroom/), fed by what workers publish and healed by a look at
PostgreSQL every 2 s and whenever a revision was skipped. Promises: subscribed first, read then, so nothing falls
between; at most 4 frames a second, each encoded once; a snapshot with number n plus the frames after n is what a later
snapshot shows; when PostgreSQL or the wire is away the view goes on with what it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from nbpulse.cluster import Cluster
from nbpulse.errors import Unavailable
from nbpulse.hub.news import Listener
from nbpulse.hub.sharded import ShardedSubscriber
from nbpulse.hub.view import TICK_S, ClassSource, LiveMessage, View, decode_message
from nbpulse.identity import asking_as

RECONCILE_S: Final = 2.0
VIEW_LIFE_S: Final = 90.0
_WIRE_LIFE_S: Final = 60.0
_SUBSCRIBE_LIMIT_S: Final = 1.0
_ACCESS_CHANNEL: Final = "nbpulse:access"

_log = structlog.get_logger(__name__)


# A view's notebook, and whose students it shows; None: the default one, all.
_Key = tuple[UUID | None, tuple[str, ...] | None]


class _Wire:
    """One course's channel: whether the server has confirmed the subscription, and who waits for a student's news."""

    def __init__(self) -> None:
        self.is_confirmed = asyncio.Event()
        self.views: dict[_Key, View] = {}
        self.loading: dict[_Key, asyncio.Task[View]] = {}
        self.listeners: dict[str, set[Listener]] = {}
        self.used_at = time.monotonic()

    def is_idle(self) -> bool:
        is_empty = not (self.views or self.loading or self.listeners)
        return is_empty and time.monotonic() - self.used_at > _WIRE_LIFE_S


class LiveHub:
    """All views of this process. `running` must be entered before anything else is asked."""

    def __init__(
        self,
        redis: Redis | Cluster,
        source: ClassSource,
        read_presence: Callable[[UUID], Awaitable[Mapping[str, int]]],
        measure_backlog: Callable[[], Awaitable[int]],
        read_delay_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`read_delay_s`: how long after it was published `source` may not show a learner's state yet."""
        self._redis = redis
        self._source = source
        self._read_presence = read_presence
        self._measure_backlog = measure_backlog
        self._read_delay_s = read_delay_s
        self._process = secrets.token_hex(6)
        self._views_made = 0
        self._wires: dict[UUID, _Wire] = {}
        self._subscriber: PubSub | ShardedSubscriber | None = None
        self._healing: dict[View, asyncio.Task[None]] = {}
        self.hear_access: Callable[[UUID], None] = lambda _: None
        """Called with whose rights are others now, as some process has announced (cache.py)."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen and tick until left."""
        tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._tick())]
        for task in tasks:
            task.add_done_callback(_end_process_on_failure)
        try:
            yield
        finally:
            tasks += self._healing.values()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def open_view(self, course_id: UUID, notebook_id: UUID | None, teams: tuple[str, ...] | None = None) -> View:
        """
        The view of a notebook, or of the course's default one for None; loaded where it is not.

        `teams`: whose students whoever asks is shown, by the last that is known of them. A view that has to be loaded
        is of those whom PostgreSQL shows them.

        Raises Unavailable (it is not loaded and PostgreSQL is away), NotFound.
        """
        wire = await self._subscribe(course_id)
        key = notebook_id, teams
        if notebook_id is None:
            views = (view for view in wire.views.values() if view.teams == teams)
            known = next((view for view in views if view.default_notebook_id == view.notebook_id), None)
        else:
            known = wire.views.get(key)
        if known is not None:
            known.use()
            return known
        task = wire.loading.get(key)
        if task is None:
            task = asyncio.create_task(self._load_view(wire, course_id, notebook_id))
            wire.loading[key] = task
            task.add_done_callback(lambda _: wire.loading.pop(key, None))
        return await asyncio.shield(task)

    def find_view(self, course_id: UUID, epoch: str, teams: tuple[str, ...] | None = None) -> View | None:
        """The view of that epoch, if it lives here and shows the students of these teams."""
        wire = self._wires.get(course_id)
        views = wire.views.values() if wire else ()
        return next((view for view in views if view.epoch == epoch and view.teams == teams), None)

    @asynccontextmanager
    async def listening(self, course_id: UUID, user_id: UUID) -> AsyncIterator[Listener]:
        """Hear of one student's news while inside: of all that is published from now on."""
        wire = await self._subscribe(course_id)
        listener = Listener()
        listeners = wire.listeners.setdefault(str(user_id), set())
        listeners.add(listener)
        try:
            yield listener
        finally:
            listeners.discard(listener)
            wire.used_at = time.monotonic()
            if not listeners and wire.listeners.get(str(user_id)) is listeners:
                del wire.listeners[str(user_id)]

    async def _load_view(self, wire: _Wire, course_id: UUID, notebook_id: UUID | None) -> View:
        loaded = await self._source.load_class(course_id, notebook_id)
        key = loaded.notebook_id, loaded.pulse.teams
        if (view := wire.views.get(key)) is not None:
            return view
        self._views_made += 1
        view = View(f"{self._process}{self._views_made:04x}", course_id, loaded, self._read_delay_s)
        # Published while we read, or before and not there yet: at the latest the next look at PostgreSQL brings it in.
        view.want_rows()
        wire.views[key] = view
        with contextlib.suppress(Unavailable):
            for user_id, at_ms in (await self._read_presence(course_id)).items():
                view.classroom.hear(user_id, at_ms)
        view.classroom.evaluate(round(time.time() * 1000))
        view.classroom.take_changes()
        return view

    # --- the wire -------------------------------------------------------------------------------------------------

    async def _subscribe(self, course_id: UUID) -> _Wire:
        """The course's wire, confirmed by the server; unconfirmed when that takes over a second, and healed later."""
        wire = self._wires.setdefault(course_id, _Wire())
        wire.used_at = time.monotonic()
        if self._subscriber is not None and not wire.is_confirmed.is_set():
            with contextlib.suppress(TimeoutError, RedisError, OSError):
                async with asyncio.timeout(_SUBSCRIBE_LIMIT_S):
                    await self._subscriber.ssubscribe(_name_channel(course_id))
                    await wire.is_confirmed.wait()
        return wire

    def _open_subscriber(self) -> PubSub | ShardedSubscriber:
        return self._redis.pubsub() if isinstance(self._redis, Redis) else ShardedSubscriber(self._redis)

    async def _listen(self) -> None:
        while True:
            try:
                async with self._open_subscriber() as subscriber:
                    # It also keeps the connection subscribed while no class is watched.
                    await subscriber.ssubscribe(_ACCESS_CHANNEL)
                    self._subscriber = subscriber
                    # From here on a new wire subscribes itself; those there already are subscribed again.
                    if self._wires:
                        await subscriber.ssubscribe(*map(_name_channel, self._wires))
                    while True:
                        message = await subscriber.get_message(timeout=5)
                        if message is not None:
                            self._receive(message)
            except (RedisError, OSError, TimeoutError) as error:
                _log.warning("hub.wire_lost", error=type(error).__name__)
            finally:
                self._subscriber = None
                for wire in self._wires.values():
                    wire.is_confirmed.clear()
            await asyncio.sleep(0.5)

    def _receive(self, message: dict[str, Any]) -> None:
        if message["channel"] == _ACCESS_CHANNEL.encode():
            if message["type"] == "smessage":
                self._receive_access(message["data"])
            return
        prefix, _, course = message["channel"].decode().rpartition(":")
        wire = self._wires.get(UUID(course)) if prefix == "nbpulse:live" else None
        if wire is None:
            return
        if message["type"] == "ssubscribe":
            # What was published before is not heard any more: whoever lives by the wire looks once.
            wire.is_confirmed.set()
            for view in wire.views.values():
                view.wants_reconcile = True
                view.want_rows()
            for listeners in wire.listeners.values():
                for listener in listeners:
                    listener.wake()
        elif message["type"] == "sunsubscribe":
            wire.is_confirmed.clear()
        elif message["type"] == "smessage":
            try:
                decoded = decode_message(message["data"])
            except msgspec.DecodeError as error:
                _log.warning("hub.message_refused", error=str(error))
                return
            for view in wire.views.values():
                view.receive(decoded)
            _wake_listeners(wire, decoded)

    def _receive_access(self, data: bytes) -> None:
        try:
            user_id = UUID(data.decode())
        except ValueError as error:
            _log.warning("hub.message_refused", error=str(error))
            return
        self.hear_access(user_id)
        for wire in self._wires.values():
            for listener in wire.listeners.get(str(user_id), ()):
                listener.wake()

    # --- time -----------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            started = time.monotonic()
            for course_id, wire in list(self._wires.items()):
                for key, view in list(wire.views.items()):
                    if view.is_gone or (not view.viewers and started - view.used_at > VIEW_LIFE_S):
                        del wire.views[key]
                        view.wake_viewers()
                        continue
                    view.tick(round(time.time() * 1000))
                    self._reconcile_if_due(view, started)
                if wire.is_idle():
                    await self._unsubscribe(course_id)
            await asyncio.sleep(max(0.0, TICK_S - (time.monotonic() - started)))

    def _reconcile_if_due(self, view: View, now: float) -> None:
        if view not in self._healing and (view.is_due(now) or now - view.reconciled_at >= RECONCILE_S):
            task = asyncio.create_task(self._reconcile(view))
            self._healing[view] = task
            task.add_done_callback(lambda _: self._healing.pop(view, None))

    async def _reconcile(self, view: View) -> None:
        try:
            view.backlog = await self._measure_backlog()
        except Unavailable as error:
            _log.warning("hub.backlog_unknown", code=error.code)
        try:
            with asking_as(view.reader_id):
                await view.reconcile(self._source)
        except Unavailable as error:
            _log.warning("hub.not_reconciled", code=error.code)

    async def _unsubscribe(self, course_id: UUID) -> None:
        del self._wires[course_id]
        if self._subscriber is not None:
            with contextlib.suppress(RedisError, OSError):
                await self._subscriber.sunsubscribe(_name_channel(course_id))


def _wake_listeners(wire: _Wire, message: LiveMessage) -> None:
    if not wire.listeners:
        return
    for state in message.states:
        for listener in wire.listeners.get(state.user_id, ()):
            listener.hear(state)
    for user_id in (*message.user_ids, *(action.user_id for action in message.actions)):
        for listener in wire.listeners.get(user_id, ()):
            listener.wake()


def _name_channel(course_id: UUID) -> str:
    return f"nbpulse:live:{course_id}"


def _end_process_on_failure(task: asyncio.Task[None]) -> None:
    """A hub that died of a bug must not look alive: the process drains, ends, and is started anew."""
    if not task.cancelled() and (failure := task.exception()) is not None:
        _log.critical("hub.died", exc_info=failure)
        signal.raise_signal(signal.SIGTERM)
