"""One view of the hub: a class as it stands, its numbered frames and its snapshot."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec

from nbpulse import metrics
from nbpulse.classroom import Action, AlertRules, Classroom, Column, ErrorGroups, Learner, LearnerState
from nbpulse.errors import Unavailable
from nbpulse.hub.projection import Frame, Projection
from nbpulse.identity import get_asker

TICK_S: Final = 0.25
RING_S: Final = 60.0
PART_S: Final = 1.0
STAFF_HERE_MS: Final = 50_000
"""Open boards say every 20 s that they are."""
STAFF_KEPT_MS: Final = 1_800_000

_encode = msgspec.json.Encoder().encode


class Pulse(Protocol):
    """The little that tells whether a view is still right (records/views.py)."""

    @property
    def learner_revisions(self) -> Mapping[str, int]: ...
    @property
    def columns(self) -> Sequence[Column]: ...
    @property
    def notebooks(self) -> Sequence[dict[str, Any]]: ...
    @property
    def default_notebook_id(self) -> UUID | None: ...
    @property
    def meeting(self) -> dict[str, Any] | None: ...
    @property
    def actions(self) -> Sequence[Action]: ...
    @property
    def mail(self) -> Mapping[str, int]: ...
    @property
    def lesson(self) -> Sequence[tuple[int, str | None]]: ...
    @property
    def rules(self) -> AlertRules: ...
    @property
    def groups(self) -> ErrorGroups: ...
    @property
    def title(self) -> str: ...
    @property
    def teams(self) -> tuple[str, ...] | None: ...


class LoadedClass(Protocol):
    """One notebook of a course with everything the board shows of it (records/views.py)."""

    @property
    def course(self) -> dict[str, Any]: ...
    @property
    def notebook_id(self) -> UUID | None: ...
    @property
    def pulse(self) -> Pulse: ...
    @property
    def learners(self) -> Sequence[Learner]: ...
    @property
    def states(self) -> Sequence[LearnerState]: ...
    @property
    def runs(self) -> Sequence[tuple[str, int, int, int]]: ...


class ClassSource(Protocol):
    """Where classes are read whole. Each raises Unavailable; `load_class` also NotFound."""

    async def load_class(self, course_id: UUID, notebook_id: UUID | None) -> LoadedClass: ...
    async def load_pulse(self, course_id: UUID, notebook_id: UUID | None) -> Pulse: ...
    async def load_roster(self, course_id: UUID) -> Sequence[Learner]: ...
    async def load_announcements(self, course_id: UUID) -> Sequence[dict[str, Any]]: ...
    async def load_states(
        self, course_id: UUID, notebook_id: UUID | None, user_ids: Iterable[str]
    ) -> Sequence[LearnerState]: ...


class LiveMessage(msgspec.Struct):
    """
    What comes over `nbpulse:live:<course_id>`: states, presence, roster, actions, news of inboxes, mail, staff, groups,
    lesson.
    """

    t: str
    received_ms: int = 0
    states: list[LearnerState] = []
    user_id: str = ""
    name: str = ""
    state: str = ""
    at: int = 0
    actions: list[Action] = []
    user_ids: list[str] = []


decode_message = msgspec.json.Decoder(LiveMessage).decode


class View:
    """
    One notebook of one course, kept up to date; its viewers read `frames_after` their own place.

    Of the students of `teams` and of no team, or of all (None). It is read as whoever it was loaded for: when they are
    shown others, it goes, and the boards on it ask for one of their own.
    """

    def __init__(
        self, epoch: str, course_id: UUID, loaded: LoadedClass, read_delay_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        """`read_delay_s`: how long after it was published PostgreSQL may not show a learner's state yet."""
        self.epoch = epoch
        self.course_id = course_id
        self.notebook_id = loaded.notebook_id
        self.seq = 0
        self.backlog = 0
        self.viewers: set[asyncio.Event] = set()
        self.teams = loaded.pulse.teams
        self.reader_id = get_asker()
        self.use()
        self.wants_reconcile = False
        self._read_delay_s = read_delay_s
        self._rows_due_at = math.inf
        self.wants_roster = False
        self.is_gone = False
        self.reconciled_at = time.monotonic()
        self.default_notebook_id = loaded.pulse.default_notebook_id
        self._ring: deque[Frame] = deque()
        self._course = loaded.course
        self._notebooks = list(loaded.pulse.notebooks)
        self._lesson = list(loaded.pulse.lesson)
        self._extra: dict[str, Any] = {}
        self._received_ms = 0
        self._lag_ms: int | None = None
        self._ordinals: dict[str, int] = {}
        self._skipped: set[str] = set()
        self._unseen: set[str] = set()
        self._snapshot: tuple[float, bytes] = (0.0, b"")
        self._staff: dict[str, tuple[str, int]] = {}
        self._staff_told: list[dict[str, Any]] = []
        self._parts: dict[tuple[str | None, int | None], tuple[float, bytes]] = {}
        self._cells_seen: set[str] = set()
        self.classroom = Classroom(
            str(course_id),
            str(loaded.notebook_id) if loaded.notebook_id else None,
            rules=loaded.pulse.rules,
            columns=loaded.pulse.columns,
            learners=loaded.learners,
        )
        self._take_meeting(loaded.pulse.meeting)
        self.classroom.set_groups(loaded.pulse.groups)
        self.classroom.apply_actions(loaded.pulse.actions)
        self.classroom.set_mail(loaded.pulse.mail)
        for state in loaded.states:
            self._apply(state)
        self.classroom.set_runs(loaded.runs)
        self._columns = {column.id for column in loaded.pulse.columns}
        self._projection: Projection | None = None

    def use(self) -> None:
        """Somebody looks."""
        self.used_at = time.monotonic()

    @property
    def projection(self) -> Projection:
        """The class without anybody in it; kept up to date from the first time it is asked for."""
        if self._projection is None:
            self._projection = Projection(self.epoch, self._course)
            self._projection.show(self.classroom.snapshot(), round(time.time() * 1000))
            self.wants_reconcile = True  # for the announcements
        return self._projection

    def want_rows(self) -> None:
        """Learners' rows may tell what this view has not heard: read them as soon as they are there."""
        self._rows_due_at = min(self._rows_due_at, time.monotonic() + self._read_delay_s())

    def is_due(self, now: float) -> bool:
        """Whether something is to be asked of PostgreSQL before its time."""
        return self.wants_reconcile or self.wants_roster or now >= self._rows_due_at

    @property
    def is_left(self) -> bool:
        """True when the class works in another notebook than this one: who follows the class is taken there."""
        if self.notebook_id == self.default_notebook_id:
            return False
        return not any(one["active"] for one in self._notebooks if one["id"] == self.classroom.notebook_id)

    def receive(self, message: LiveMessage) -> None:
        """Take in one message of the wire; what it cannot tell is asked of PostgreSQL soon."""
        if message.t == "presence":
            self.classroom.hear(message.user_id, message.at, message.state)
        elif message.t == "roster":
            self.wants_roster = True
        elif message.t in ("mail", "groups", "lesson"):
            self.wants_reconcile = True
        elif message.t == "staff":
            self._staff[message.user_id] = (message.name, message.at)
        self.classroom.apply_actions(message.actions)
        for state in message.states:
            if not self.classroom.has_learner(state.user_id):
                # Of another team perhaps: looked for once, and again at each look at PostgreSQL.
                if state.user_id not in self._unseen:
                    self.wants_roster = True
                    self.want_rows()
                self._unseen.add(state.user_id)
                continue
            if state.revision > self.classroom.get_revision(state.user_id) + 1:
                self._skipped.add(state.user_id)
                self.want_rows()
            self._apply(state)
            if any(self._is_new_cell(cell.notebook_id, cell.cell_id) for cell in state.cells):
                self.want_rows()
        if message.received_ms:
            self._received_ms = message.received_ms
            self._lag_ms = max(0, round(time.time() * 1000) - message.received_ms)

    async def reconcile(self, source: ClassSource) -> None:
        """Compare with PostgreSQL and take in what differs. Raises Unavailable."""
        roster_wanted, self.wants_roster, self.wants_reconcile = self.wants_roster, False, False
        self.reconciled_at = time.monotonic()
        skipped: set[str] = set()
        if self._rows_due_at <= self.reconciled_at or math.isinf(self._rows_due_at):
            skipped, self._skipped, self._rows_due_at = self._skipped, skipped, math.inf
        try:
            if self._projection is not None:
                self._projection.announcements = await source.load_announcements(self.course_id)
            pulse = await source.load_pulse(self.course_id, self.notebook_id)
            if pulse.teams != self.teams or self.classroom.learner_ids - pulse.learner_revisions.keys():
                # Its reader sees others now, or somebody left: a view only ever adds people, so viewers get a new one.
                self.is_gone = True
                return
            unknown = any(not self.classroom.has_learner(user_id) for user_id in pulse.learner_revisions)
            if roster_wanted or unknown:
                self.classroom.set_roster(await source.load_roster(self.course_id))
            behind = skipped | {
                user_id
                for user_id, revision in pulse.learner_revisions.items()
                if revision > self.classroom.get_revision(user_id)
            }
            if behind:
                for state in await source.load_states(self.course_id, self.notebook_id, behind):
                    self._apply(state)
        except Unavailable:
            self._skipped |= skipped
            self.wants_roster |= roster_wanted
            raise
        if self.notebook_id is not None:
            self.classroom.set_columns(pulse.columns)
            self._columns = {column.id for column in pulse.columns}
        self._take_course(pulse)
        if pulse.meeting != self._meeting:
            self._take_meeting(pulse.meeting)
            self._extra["meeting"] = pulse.meeting
        if list(pulse.lesson) != self._lesson:
            self._lesson = self._extra["lesson"] = list(pulse.lesson)
        self.classroom.rules = pulse.rules
        self.classroom.set_groups(pulse.groups)
        self.classroom.apply_actions(pulse.actions)
        self.classroom.set_mail(pulse.mail)
        self.default_notebook_id = pulse.default_notebook_id

    def tick(self, now_ms: int) -> None:
        """Apply the rules as of now and, where something differs, make the next frame and wake the viewers."""
        self.classroom.evaluate(now_ms)
        projection = self._projection
        if projection is not None and projection.is_due() and projection.show(self.classroom.snapshot(), now_ms):
            metrics.live_frames.inc()
            self.wake_viewers()
        staff = self._describe_staff(now_ms)
        if staff != self._staff_told:
            self._staff_told = self._extra["staff"] = staff
        body = {**self.classroom.take_changes(), **self._extra}
        now = time.monotonic()
        while self._ring and now - self._ring[0].made_at > RING_S:
            self._ring.popleft()
        if not body:
            return
        self._extra = {}
        self.seq += 1
        frame = {"t": "d", "seq": self.seq, "at": now_ms, **body, "h": self._describe_health()}
        self._ring.append(Frame(self.seq, now, _encode(frame).decode()))
        metrics.live_frames.inc()
        self.wake_viewers()

    def wake_viewers(self) -> None:
        """Something is new, or the view is no more."""
        for wake in self.viewers:
            wake.set()

    def frames_after(self, seq: int) -> list[Frame] | None:
        """The frames after number `seq`, oldest first; None when they are no longer (or not yet) here."""
        if seq == self.seq:
            return []
        missing = self.seq - seq
        if not 0 < missing <= len(self._ring):
            return None
        return [self._ring[place] for place in range(len(self._ring) - missing, len(self._ring))]

    def encode_snapshot(self) -> bytes:
        """The whole view as JSON, true as of frame `seq` or a little later; at most four are encoded a second."""
        now = time.monotonic()
        self.used_at = now
        if now - self._snapshot[0] > TICK_S:
            notebook = next((one for one in self._notebooks if one["id"] == self.classroom.notebook_id), None)
            whole = {
                "schema": 1,
                "epoch": self.epoch,
                "seq": self.seq,
                "course": self._course,
                "notebook": notebook and {name: notebook[name] for name in ("id", "path", "title")},
                "notebooks": self._notebooks,
                "meeting": self._meeting,
                "lesson": self._lesson,
                "staff": self._staff_told,
                **self.classroom.snapshot(),
                "h": self._describe_health(),
            }
            self._snapshot = (now, _encode(whole))
        # The time is the answer's own: browsers set their clock by it.
        times = _encode({"server_time": datetime.now(UTC), "at": round(time.time() * 1000)})
        return times[:-1] + b"," + self._snapshot[1][1:]

    def encode_part(self, team: str | None, minutes: int | None) -> bytes:
        """One team's charts and shared errors (None: of all) of the last so many minutes (None: all) as JSON; drawn at
        most once a second, however many ask."""
        now = time.monotonic()
        self.used_at = now
        made_at, body = self._parts.get((team, minutes), (0.0, b""))
        if now - made_at > PART_S:
            now_ms = round(time.time() * 1000)
            since_ms = 0 if minutes is None else now_ms - minutes * 60_000
            body = _encode({"at": now_ms, **self.classroom.describe_team(team, since_ms, now_ms)})
            fresh = {key: part for key, part in self._parts.items() if now - part[0] <= PART_S}
            self._parts = {**fresh, (team, minutes): (now, body)}
        return body

    def _describe_staff(self, now_ms: int) -> list[dict[str, Any]]:
        """Who of the staff has a board open, with whom of these students they are busy, and who was here lately."""
        busy = self.classroom.list_claims()
        self._staff = {one: seen for one, seen in self._staff.items() if now_ms - seen[1] <= STAFF_KEPT_MS}
        return [
            {"id": user_id, "name": name, "here": now_ms - at_ms <= STAFF_HERE_MS, "with": busy.get(user_id)}
            for user_id, (name, at_ms) in sorted(self._staff.items(), key=lambda one: (one[1][0], one[0]))
        ]

    def _take_course(self, pulse: Pulse) -> None:
        """Its title and notebooks."""
        if list(pulse.notebooks) != self._notebooks:
            self._notebooks = list(pulse.notebooks)
            self._extra["notebooks"] = self._notebooks
        if pulse.title != self._course["title"]:
            self._course = self._extra["course"] = {**self._course, "title": pulse.title}
            if self._projection is not None:
                self._projection.set_course(self._course)

    def _take_meeting(self, meeting: dict[str, Any] | None) -> None:
        self._meeting = meeting
        if meeting:
            self.classroom.set_meeting(meeting["started_at"], is_over=meeting["ended_at"] is not None)

    def _apply(self, state: LearnerState) -> None:
        self.classroom.apply(state)
        self._ordinals[state.user_id] = max(state.last_ordinal, self._ordinals.get(state.user_id, 0))

    def _is_new_cell(self, notebook_id: str, cell_id: str) -> bool:
        """A cell without a column, met for the first time: it may make one."""
        if self.classroom.notebook_id is None:
            return True
        if notebook_id != self.classroom.notebook_id or cell_id in self._columns or cell_id in self._cells_seen:
            return False
        self._cells_seen.add(cell_id)
        return True

    def _describe_health(self) -> dict[str, int | None]:
        """`stored`: the students' events in the ledger; `received`: those and what waits in the stream."""
        stored = sum(self._ordinals.values())
        return {"lag_ms": self._lag_ms, "received": stored + self.backlog, "stored": stored}
