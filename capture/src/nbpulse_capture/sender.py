"""The thread that carries events from the outbox to the server: Sender.send_batch().

Promises: an event leaves the outbox only on the server's word; the same ids are sent until then. No answer,
429, 503 and any answer that is not our server's: keep, back off with full jitter and honour Retry-After.
409: the teacher has to let the student in first; keep, and ask as often as the server says.
401 and 403: stop until the student joins again. Under a JupyterHub nobody joins: ask again every minute, since rights
are given there; who is no student by its groups is forgotten here, and asked about again after five minutes. Other
refusals: set aside with the reason, without harming the neighbours.

Nothing is sent before the class's server has said what the course collects, and then only that (policy.py): what is
not, or no longer, collected is erased here. The server is asked again hourly and when an answer bears another version.
A student who has withdrawn, or was erased, is refused by the server for good: then nothing of theirs is kept here.

Pace: the first event of a quiet time goes at once, and so do the next few; a storm of runs is sent in at
most four batches a second, which is as fast as the teacher's board moves. In a kernel that sends for itself, a run
gets a tenth of a second without us: threads share one interpreter, and a flood of prints would feel it. `presence` is
sent every 20 s and never stored: it means "now" or nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from nbpulse_capture.backoff import Backoff
from nbpulse_capture.consent import ConsentFile
from nbpulse_capture.execution import describe_event, format_time
from nbpulse_capture.journal import Journal, adopt_journals, erase_account
from nbpulse_capture.membership import Membership, MembershipFile, turn_away
from nbpulse_capture.notebook import NotebookShelf
from nbpulse_capture.notices import end_membership, keep_collection
from nbpulse_capture.outbox import Outbox
from nbpulse_capture.policy import Policy, apply_policy
from nbpulse_capture.rows import Leased, Row, Verdict
from nbpulse_capture.wire import Answer, UnreachableError, Wire

LINGER_S, LINGER_IN_A_RUN_S = 0.015, 0.1
BATCH_LIMIT = 100
BATCH_CAP_BYTES = 800_000
PRESENCE_EVERY_S = 20.0
SUCCESS_NOTED_EVERY_S = 5.0
TENDED_EVERY_S, ADOPTED_EVERY_S = 1.0, 30.0
OFFERED_LIMIT, REQUEST_WITHIN_S = 2_000, 12.0
SENDS_AT_ONCE, SENDS_PER_S = 8.0, 4.0
HUB_RETRY_S = 45.0

ERASED, UNCOLLECTED, NOT_YET = "NB-1345", "NB-1341", "NB-1140"  # the server's codes
WAITS = "NB-7016"  # ours, of the same
ENDED = frozenset({"NB-1340", ERASED})
"""The student has withdrawn, or was erased."""

Event = dict[str, Any]


class Sender(threading.Thread):
    """One per kernel; several share the outbox by leases."""

    def __init__(
        self,
        outbox_file: Path,
        membership_file: MembershipFile,
        *,
        describe_presence: Callable[[], Event | None] = lambda: None,
        journal: Journal | None = None,
        quiet: threading.Event | None = None,
        settle_s: float = 0.0,
        linger_s: float = LINGER_S,
    ) -> None:
        super().__init__(name="nbpulse-capture", daemon=True)
        self._outbox_file = outbox_file
        self._membership_file = membership_file
        self._describe_presence = describe_presence
        self._journal = journal
        self._settle_s = settle_s
        self._linger_s = linger_s
        self._quiet = quiet  # set while nothing runs beside us
        self._wakeup = threading.Event()
        self._offered: deque[Leased] = deque(maxlen=OFFERED_LIMIT)
        self._stop_at: float | None = None
        self._wire: Wire | None = None
        self._outbox: Outbox | None = None
        self._consent = ConsentFile()
        self._shelf = NotebookShelf()
        self._backoff = Backoff()
        self._tokens, self._tokens_at = SENDS_AT_ONCE, time.monotonic()
        self._presence_at = self._noted_success_at = self._tended_at = self._adopted_at = float("-inf")
        self._refused_account: str | None = None
        self.fault = ""

    def wake(self) -> None:
        """There is something to send."""
        if not self._wakeup.is_set():
            self._wakeup.set()

    def offer(self, written: Iterable[Leased]) -> None:
        """These are on disk and ours to send: they need not be looked for there."""
        self._offered.extend(written)
        self.wake()

    def stop(self, within_s: float) -> None:
        """Send what waits, for at most `within_s`, then end."""
        self._stop_at = time.monotonic() + within_s
        self._wakeup.set()
        if self.is_alive():
            self.join(within_s + 0.2)

    def run(self) -> None:
        """Until stop(): at each event and each tick, send. Our own faults are noted, never printed."""
        if self._stop_at is None and self._wakeup.wait(self._settle_s):  # the kernel first finishes starting
            self._linger()
        while True:
            in_haste = self._wakeup.is_set()
            self._wakeup.clear()
            try:
                more = self._take_turn(in_haste=in_haste)
            except Exception as error:  # noqa: BLE001 - a thread that dies of a full disk would send nothing again
                self.fault, more = f"{type(error).__name__}: {error}", False
                self._backoff.fail(time.monotonic(), None)
            if self._stop_at is not None and (not more or time.monotonic() >= self._stop_at):
                break
            if more:
                continue
            if self._wakeup.wait(self._backoff.get_wait_s(time.monotonic()) or PRESENCE_EVERY_S / 4):
                self._linger()
        if self._wire:
            self._wire.close()
        if self._outbox:
            self._outbox.close()

    def _linger(self) -> None:
        """Let a run of a tenth of a second end before we take the interpreter's lock: its events then go together."""
        if self._stop_at is not None or not self._linger_s:
            return
        time.sleep(self._linger_s)
        # Waiting for its end, rather than looking again and again, takes the lock from a flood of prints once.
        if self._quiet is not None and not self._quiet.is_set() and self._quiet.wait(LINGER_IN_A_RUN_S):
            time.sleep(self._linger_s)

    def _take_turn(self, *, in_haste: bool) -> bool:
        """True when there may be more to send at once."""
        membership = self._membership_file.read()
        now = time.monotonic()
        if membership is None:
            self._offered.clear()  # it may have been erased on the disk
            if self._journal is not None:
                self._journal.discard()
            return False
        if self._outbox is None:
            self._outbox = Outbox(self._outbox_file)
        if self._journal is not None:
            self._journal.store(self._outbox, membership.account)
        if membership.token == self._refused_account:
            self._offered.clear()
            return False
        if not self._backoff.is_over(now, in_haste=in_haste):
            return False
        if now - self._tended_at > TENDED_EVERY_S:
            self._tended_at = now
            self._outbox.trim()
            self._tell_losses(self._outbox, membership.account)
            self._outbox.checkpoint()
        if now - self._adopted_at > ADOPTED_EVERY_S:
            self._adopted_at = now
            adopt_journals(self._outbox, but_not=self._journal)
        return self.send_batch(self._outbox, membership)

    def send_batch(self, outbox: Outbox, membership: Membership) -> bool:
        """Send one batch if anything waits; True when it went well and there may be more."""
        rows = self._take_offered(membership.account) or outbox.take_batch(membership.account, BATCH_LIMIT)
        rows = self._keep_to_size(outbox, rows)
        presence = self._take_presence()
        if not rows and presence is None:
            return False
        if not self._learn_collection(outbox, membership, rows):
            return False
        policy = self._consent.read(membership).policy
        rows = hold_to_policy(outbox, rows, policy)
        presence = apply_policy(presence, policy) if presence else None
        rows = [self._look_up_place(row) for row in rows]
        if not rows and presence is None:
            return True
        self._wait_for_token()
        events = [row.event for row in rows] + ([presence] if presence else [])
        try:
            answer = self._get_wire(membership).post("/api/v1/events", events, token=membership.token)
        except UnreachableError as error:
            self._keep(outbox, rows, f"NB-7010 {error}", None)
            return False
        return self._act_on(outbox, membership, rows, answer) and bool(rows)

    def _take_offered(self, account: str) -> list[Row]:
        """What is too old, or another student's, is left to take_batch() when its lease has ended."""
        rows: list[Row] = []
        sent_until = time.time() + REQUEST_WITHIN_S
        while self._offered and len(rows) < BATCH_LIMIT:
            leased = self._offered.popleft()
            if leased.account == account and leased.until > sent_until:
                rows.append(leased.make_row())
        return rows

    def _act_on(self, outbox: Outbox, membership: Membership, rows: list[Row], answer: Answer) -> bool:
        """The one place that says what each answer means for the events that were sent."""
        verdicts = read_verdicts(answer)
        if answer.status in {202, 422} and verdicts is not None:
            rows = erase_uncollected(outbox, rows, verdicts)
            if forgotten := outbox.settle(rows, verdicts, **self._note_success()):
                outbox.release(forgotten)
            self._backoff.succeed()
            self._follow_collection(membership, answer)
            return True
        told = f"HTTP {answer.status} {describe_problem(answer.content)}"
        code = answer.content.get("code") if isinstance(answer.content, dict) else None
        if membership.hub_user and code == "NB-1112":
            turn_away(membership.account)
            erase_account(outbox, membership.account)
            return False
        if answer.status == 403 and code in ENDED:
            end_membership(membership, outbox)
            outbox.write_notes(ended=code)
            rows = []
        if answer.status in {401, 403} and membership.hub_user:
            self._keep(outbox, rows, f"NB-7061 {told}", HUB_RETRY_S, refused=f"NB-7061 {told}")
            return False
        if answer.status in {401, 403}:
            self._refused_account = membership.token
            self._keep(outbox, rows, f"NB-7011 {told}", None, refused=f"NB-7011 {told}")
            return False
        if answer.status in {400, 413, 415, 422}:
            return self._isolate(outbox, membership, rows, told)
        ours = WAITS if code == NOT_YET else "NB-7012"
        self._keep(outbox, rows, f"{ours} {told}", answer.retry_after_s)
        return False

    def _follow_collection(self, membership: Membership, answer: Answer) -> None:
        """Ask what the course collects where the answer says that it is another than is known here."""
        known = self._consent.read(membership).current
        if known is not None and answer.collection_version not in {None, known.version}:
            with suppress(UnreachableError):  # the next answer says it again
                keep_collection(self._get_wire(membership), membership)

    def _learn_collection(self, outbox: Outbox, membership: Membership, rows: list[Row]) -> bool:
        """Whether it is known what the course collects; asks where that is unknown or old."""
        standing = self._consent.read(membership)
        if not standing.is_old(time.time()):
            return True
        try:
            answer = keep_collection(self._get_wire(membership), membership)
        except UnreachableError as error:
            self._keep(outbox, rows, f"NB-7010 {error}", None)
            return False
        if answer is None or (standing.current is not None and answer.status not in {401, 403}):
            return True
        if answer.status in {401, 403}:
            return self._act_on(outbox, membership, rows, answer)
        told = f"HTTP {answer.status} {describe_problem(answer.content)}"
        self._keep(outbox, rows, f"NB-7012 {told}", answer.retry_after_s)
        return False

    def _isolate(self, outbox: Outbox, membership: Membership, rows: list[Row], told: str) -> bool:
        """The whole batch was refused: halve it until the one that cannot be taken stands alone."""
        if len(rows) <= 1:
            verdicts = [Verdict(row.event["event_id"], "rejected", told) for row in rows]
            outbox.settle(rows, verdicts, last_error=note_error(f"NB-7013 {told}"))
            self._noted_success_at = float("-inf")
            return True
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            self._wait_for_token()
            try:
                events = [row.event for row in half]
                answer = self._get_wire(membership).post("/api/v1/events", events, token=membership.token)
            except UnreachableError as error:
                self._keep(outbox, half, f"NB-7010 {error}", None)
                continue
            self._act_on(outbox, membership, half, answer)
        return not self._backoff.failed_count

    def _note_success(self) -> dict[str, object]:
        """For `status`: at once after a failure, else every few seconds, since each note is a write of its own."""
        now = time.monotonic()
        if now - self._noted_success_at < SUCCESS_NOTED_EVERY_S:
            return {}
        self._noted_success_at = now
        return {"last_success_at": format_time(), "refused": None, "ended": None}

    def _keep(self, outbox: Outbox, rows: list[Row], what: str, retry_after_s: float | None, **notes: object) -> None:
        self._backoff.fail(time.monotonic(), retry_after_s)
        self._noted_success_at = float("-inf")
        outbox.release(rows, last_error=note_error(what), **notes)

    def _look_up_place(self, row: Row) -> Row:
        """Add the cell's place in the saved notebook, once, before the first sending."""
        if row.notebook_file is None:
            return row
        placed = self._shelf.place(row.event, row.notebook_file)
        return Row(row.sequence, placed, None, is_as_written=row.is_as_written and placed == row.event)

    def _keep_to_size(self, outbox: Outbox, rows: list[Row]) -> list[Row]:
        """A body over the server's limit helps nobody: what is too much waits for the next batch."""
        total_bytes, kept = 0, 0
        for row in rows:
            total_bytes += sum(len(str(v)) for v in row.event["data"].values()) * 2 + 600
            if kept and total_bytes > BATCH_CAP_BYTES:
                break
            kept += 1
        if rows[kept:]:
            outbox.release(rows[kept:])
        return rows[:kept]

    def _tell_losses(self, outbox: Outbox, account: str) -> None:
        """What a full disk or a full memory has cost is told as an event of its own, once there is room for it."""
        if self._journal is not None and (lost_count := self._journal.take_lost_count()):
            outbox.add_to_count("dropped", lost_count)
        if untold_count := outbox.count_untold_losses():
            lost = {"status": "events_lost", "event_count": untold_count}
            with outbox.together():
                outbox.put(describe_event("kernel_status", {}, lost), account)
                outbox.add_to_count("dropped_told", untold_count)

    def _take_presence(self) -> Event | None:
        """Who has paused is there, and that is all that is said."""
        now = time.monotonic()
        if now - self._presence_at < PRESENCE_EVERY_S - 0.5 or self._stop_at is not None:
            return None
        self._presence_at = now
        presence = self._describe_presence()
        if presence is not None and self._consent.is_paused():
            return describe_event("presence", {}, {"state": "paused"})
        return presence

    def _wait_for_token(self) -> None:
        now = time.monotonic()
        self._tokens = min(SENDS_AT_ONCE, self._tokens + (now - self._tokens_at) * SENDS_PER_S) - 1.0
        self._tokens_at = now
        if self._tokens < 0 and self._stop_at is None:
            time.sleep(-self._tokens / SENDS_PER_S)
            self._linger()

    def _get_wire(self, membership: Membership) -> Wire:
        place = (membership.url, membership.course_id)
        if self._wire is None or (self._wire.url, self._wire.course) != place:
            if self._wire:
                self._wire.close()
            self._wire = Wire(membership.url, course=membership.course_id)
        return self._wire


def hold_to_policy(outbox: Outbox, rows: list[Row], policy: Policy) -> list[Row]:
    """The rows as they may be sent; what was recorded and is not collected any more is erased."""
    held = [(row, apply_policy(row.event, policy)) for row in rows]
    gone = [row for row, event in held if event is None]
    cut = [replace(row, event=event) for row, event in held if event is not None and event is not row.event]
    if gone or cut:
        outbox.erase(gone, cut)
    return [replace(row, event=event) for row, event in held if event is not None]


def erase_uncollected(outbox: Outbox, rows: list[Row], verdicts: list[Verdict]) -> list[Row]:
    """What the server refused because the course does not collect it is not kept for later; the other rows."""
    uncollected = {one.event_id for one in verdicts if one.status == "rejected" and one.reason.startswith(UNCOLLECTED)}
    if gone := [row for row in rows if row.event["event_id"] in uncollected]:
        outbox.erase(gone)
    return [row for row in rows if row.event["event_id"] not in uncollected]


def read_verdicts(answer: Answer) -> list[Verdict] | None:
    """The per-event results, or None when this is not an answer of our server."""
    results = answer.content.get("results") if isinstance(answer.content, dict) else None
    if not isinstance(results, list):
        return None
    try:
        return [
            Verdict(str(r["event_id"]), str(r["status"]), f"{r.get('code') or ''} {r.get('reason') or ''}".strip())
            for r in results
            if r["status"] in {"accepted", "duplicate", "rejected"}
        ]
    except (KeyError, TypeError, AttributeError):
        return None


def note_error(what: str) -> dict[str, str]:
    """The last error, for `status`."""
    return {"at": format_time(), "what": what}


def describe_problem(content: object) -> str:
    """The server's code and sentence, if it is our server that answers."""
    if not isinstance(content, dict):
        return "(not an answer of an nbpulse server)"
    said = dict.fromkeys(str(content[name]).rstrip(".") for name in ("code", "title", "detail") if content.get(name))
    return ". ".join(said).replace(". ", " ", 1)[:500]
