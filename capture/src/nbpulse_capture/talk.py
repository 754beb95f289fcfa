"""What the class says to its student, and what the student says back: messages, offers, decisions, the raised hand.

Promises: an answer or a decision that cannot be sent is kept in memory and tried again, in the order in which it was
given, until the class has it; the ids are made here, so one that arrives twice counts once. What the class refuses is
shown with its words and not tried again. Two threads ask and send: the event loop waits for neither.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from nbpulse_capture.execution import clean_text
from nbpulse_capture.membership import Membership
from nbpulse_capture.messages import RefusedError
from nbpulse_capture.sender import describe_problem
from nbpulse_capture.wire import Answer, UnreachableError, Wire

Message = dict[str, Any]

TEXT_MAX = 500
KEPT_MAX = 50
INBOX_WAIT_S = 20.0
RETRY_S = 5.0
NOBODY_S = 1.0
LATER_MS = 600_000
# A decision only goes forward; `later` may still become either of the last two, which are final.
RANK = {"sent": 0, "shown": 1, "later": 2, "accepted": 3, "never": 3}


@dataclass(frozen=True)
class Errand:
    """One request that the class has not answered yet."""

    account: str
    method: str
    path: str
    content: dict[str, Any]
    message_id: str


class Talk:
    """One per Jupyter server. `changed` guards everything here; `tell` is called under it after each change."""

    def __init__(
        self,
        read_membership: Callable[[], Membership | None],
        changed: threading.Condition,
        tell: Callable[[], None],
        note_fault: Callable[[str], None],
    ) -> None:
        self._read_membership = read_membership
        self._changed = changed
        self._tell = tell
        self._note_fault = note_fault
        self._closed = threading.Event()
        self._has_errand = threading.Event()
        self._errands: deque[Errand] = deque()
        self._messages: dict[str, Message] = {}
        self._later_until_ms: dict[str, int] = {}
        self._after = 0
        self.help: dict[str, Any] | None = None
        self.revision = 0

    def close(self) -> None:
        """End the threads; an inbox that is being asked ends by itself when it is answered."""
        self._closed.set()
        self._has_errand.set()

    def forget(self) -> None:
        """Another class, another talk. Under the lock."""
        self._errands.clear()
        self._messages.clear()
        self._later_until_ms.clear()
        self._after, self.help = 0, None
        self.revision += 1

    def describe(self) -> dict[str, Any]:
        """For the state: enough to know whether the messages have to be read again. Under the lock."""
        theirs = [one for one in self._messages.values() if not one["is_mine"]]
        return {
            "help": self.help,
            "talk": self.revision,
            "unread": sum(one["state"] == "sent" or self._is_due(one) for one in theirs),
            "later": sum(one["state"] == "later" for one in theirs),
        }

    def list_messages(self) -> list[Message]:
        """Oldest first; `is_due`: was put off, and the time has come. Under the lock."""
        ordered = sorted(self._messages.values(), key=lambda one: int(one["at"]))
        return [one | {"is_due": self._is_due(one)} for one in ordered]

    def note_time(self) -> None:
        """What was put off comes back. Under the lock."""
        now = _now_ms()
        for message_id, until_ms in list(self._later_until_ms.items()):
            if until_ms <= now:
                self._later_until_ms.pop(message_id)
                self.revision += 1

    def say(self, membership: Membership, text: object, thread_id: object) -> str:
        """Answer the class; the message's id. Raises RefusedError (NB-7071): empty or too long. Under the lock."""
        said = clean_text(str(text or "").strip(), TEXT_MAX + 1)
        if not said or len(said) > TEXT_MAX:
            raise RefusedError("NB-7071", max=TEXT_MAX)
        message_id, thread = str(uuid.uuid4()), str(thread_id) if thread_id else None
        self._keep(
            {"id": message_id, "kind": "message", "at": _now_ms(), "from": None, "is_mine": True, "text": said}
            | {"thread_id": thread, "state": "sent", "offer": None, "is_waiting": True, "problem": None}
        )
        content = {"id": message_id, "thread_id": thread, "text": said}
        self._add_errand(Errand(membership.account, "POST", "/api/v1/me/messages", content, message_id))
        return message_id

    def decide(self, membership: Membership, message_id: str, state: str) -> None:
        """
        The student has seen it, takes it, puts it off, does not want it. Under the lock.

        Raises RefusedError: NB-7072 where there is no such message, or it has been decided otherwise.
        """
        message = self._messages.get(message_id)
        if message is None or message["is_mine"] or RANK.get(state, 0) == 0:
            raise RefusedError("NB-7072")
        if state == message["state"] != "later" or (state == "shown" and message["state"] != "sent"):
            return
        if RANK[message["state"]] == 3:
            raise RefusedError("NB-7072")
        self._later_until_ms.pop(message_id, None)
        if state == "later":
            self._later_until_ms[message_id] = _now_ms() + LATER_MS
        self._messages[message_id] = message | {"state": state}
        self._note_change()
        path = f"/api/v1/me/messages/{quote(message_id, safe='')}/state"
        for errand in [one for one in self._errands if one.path == path]:
            self._errands.remove(errand)  # nobody has to hear of what no longer holds
        self._add_errand(Errand(membership.account, "PUT", path, {"state": state}, message_id))

    def _is_due(self, message: Message) -> bool:
        return bool(message["state"] == "later" and message["id"] not in self._later_until_ms)

    def _keep(self, message: Message) -> None:
        if self._messages.get(message["id"]) == message:
            return
        self._messages[message["id"]] = message
        while len(self._messages) > KEPT_MAX:
            oldest = min(self._messages.values(), key=lambda one: one["at"])
            self._messages.pop(oldest["id"])
            self._later_until_ms.pop(oldest["id"], None)
        self._note_change()

    def _note_change(self) -> None:
        self.revision += 1
        self._tell()

    def _add_errand(self, errand: Errand) -> None:
        self._errands.append(errand)
        self._has_errand.set()

    def send_answers(self) -> None:
        """A thread's work: one errand after the other, each until it has been answered."""
        while not self._closed.is_set():
            with self._changed:
                errand = self._errands[0] if self._errands else None
                if errand is None:
                    self._has_errand.clear()
            if errand is None:
                self._has_errand.wait()
            else:
                self._closed.wait(self._run(errand))

    def _run(self, errand: Errand) -> float:
        """Try it; seconds to wait before the next try. 0: it is over, or has no meaning any more."""
        membership = self._read_membership()
        if membership is None or membership.account != errand.account:
            answer = None
        else:
            wire = Wire(membership.url, course=membership.course_id)
            ask = wire.post if errand.method == "POST" else wire.put
            try:
                answer = ask(errand.path, errand.content, token=membership.token)
            except UnreachableError:
                return RETRY_S
            finally:
                wire.close()
            if answer.status == 429 or answer.status >= 500:
                return max(answer.retry_after_s or 0.0, RETRY_S)
        with self._changed:
            if errand in self._errands:  # not replaced by a later decision meanwhile
                self._errands.remove(errand)
            self._note_answer(errand, answer)
        return 0.0

    def _note_answer(self, errand: Errand, answer: Answer | None) -> None:
        message = self._messages.get(errand.message_id)
        problem = None
        if answer is not None and answer.status >= 300:
            problem = describe_problem(answer.content)
            if errand.method == "PUT" and answer.status != 404:
                self._note_fault(f"{errand.content}: {problem}")
        if message is not None and message["is_mine"]:
            self._keep(message | {"is_waiting": False, "problem": problem})

    def follow_inbox(self, is_watched: Callable[[], bool]) -> None:
        """A thread's work: ask the class, one long question after the other, while somebody looks."""
        while not self._closed.is_set():
            membership, wait_s = self._read_membership(), NOBODY_S
            if membership is not None and is_watched():
                try:
                    wait_s = self._ask(membership)
                except (AttributeError, TypeError, ValueError) as error:  # not what the contract says
                    self._note_fault(f"inbox: {type(error).__name__}: {error}")
                    wait_s = RETRY_S
            self._closed.wait(wait_s)

    def _ask(self, membership: Membership) -> float:
        """One question; seconds to wait before the next."""
        wire = Wire(membership.url, course=membership.course_id, timeout_s=INBOX_WAIT_S + 10)
        question = f"/api/v1/me/inbox?after={self._after}&wait_s={INBOX_WAIT_S:.0f}"
        try:
            answer = wire.get(question, token=membership.token)
        except UnreachableError:
            return RETRY_S
        finally:
            wire.close()
        if answer.status != 200 or not isinstance(answer.content, dict):
            return RETRY_S
        with self._changed:
            if self._read_membership() != membership:
                return 0.0
            self._after = int(answer.content.get("after") or 0)
            self.help = answer.content.get("help")
            for told in answer.content.get("messages") or ():
                self._hear(describe_message(told))
            self._tell()
        return 0.2

    def _hear(self, news: Message) -> None:
        """The class's word; what the student has decided since, and the class has not heard yet, holds."""
        known = self._messages.get(news["id"])
        if known is not None and RANK[known["state"]] >= RANK[news["state"]]:
            news["state"] = known["state"]
        if known is None and news["state"] == "later":  # put off before this Jupyter was started
            self._later_until_ms[news["id"]] = _now_ms() + LATER_MS
        self._keep(news)


def describe_message(told: Mapping[str, Any]) -> Message:
    """A message of the inbox in the form kept here; one without an id gets one that is the same each time."""
    state = told.get("state")
    return {
        "id": str(told.get("id") or f"{told.get('kind')} {told.get('at')}"),
        "kind": told.get("kind"),
        "at": int(told.get("at") or 0),
        "from": told.get("from"),
        "is_mine": bool(told.get("is_mine")),
        "text": told.get("text"),
        "thread_id": told.get("thread_id"),
        "state": state if state in RANK else "sent",
        "offer": told.get("offer"),
        "is_waiting": False,
        "problem": None,
    }


def _now_ms() -> int:
    return round(time.time() * 1000)
