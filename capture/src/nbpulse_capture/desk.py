"""What the front end may ask of this computer: state, joining, the raised hand, messages (talk.py), what it saw.

Promises: nothing here waits on the event loop (what reads files or asks the class's server runs in a thread); the token
never leaves this process towards the browser; what the front end observed is stored like any other event, but presence,
which means "now".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol

from nbpulse_capture import consent
from nbpulse_capture.cli import clean_url, join_course
from nbpulse_capture.execution import clean_text
from nbpulse_capture.invitation import parse_invitation
from nbpulse_capture.looks import fetch_looks
from nbpulse_capture.membership import Membership, MembershipFile, get_outbox_file
from nbpulse_capture.messages import RefusedError, load_texts
from nbpulse_capture.notices import accept_notice, fetch_notice, tells_more
from nbpulse_capture.outbox import Outbox
from nbpulse_capture.recording import make_own_link, need_membership, withdraw
from nbpulse_capture.sender import WAITS
from nbpulse_capture.talk import Message, Talk

OBSERVED_TYPES = frozenset({"presence", "notebook_open", "notebook_close", "cell_focus", "cell_change", "markdown_run"})
OBSERVED_MAX = 100
FAULT_MAX = 300
# Without a front end that asks, nobody would hear what the inbox says.
WATCHED_FOR_S = 60.0
LOOK_EVERY_S = 1.0


class Recorder(Protocol):
    """Where events go; the server extension's."""

    def put(self, event_type: str, common: dict[str, Any], data: dict[str, Any]) -> str:
        """Store an event; its id."""

    def note_presence(self, common: dict[str, Any], data: dict[str, Any]) -> None:
        """What the next presence is to say."""

    def note_fault(self, words: str) -> None:
        """Something of ours broke where the student works; `status` tells of it."""


class Desk:
    """One per Jupyter server."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._membership_file = MembershipFile()
        self._changed = threading.Condition()
        self._state: dict[str, Any] = {"joined": False, "revision": 0}
        self._talk = Talk(self._membership_file.read, self._changed, self._look, recorder.note_fault)
        self._watched_at = float("-inf")
        self._is_closed = False
        self._threads: list[threading.Thread] = []

    def close(self) -> None:
        """End the threads; an inbox that is being asked ends by itself when it is answered."""
        self._talk.close()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(1.0)

    def wait_for_state(self, after: int, wait_s: float) -> dict[str, Any]:
        """The state once its revision is another than `after`, or when the wait is over. Blocks: for a thread."""
        deadline = time.monotonic() + wait_s
        with self._changed:
            self._watched_at = time.monotonic()
            if not self._threads:
                for work in (self._watch, self._talk.send_answers, lambda: self._talk.follow_inbox(self._is_watched)):
                    self._threads.append(threading.Thread(target=work, name="nbpulse-desk", daemon=True))
                    self._threads[-1].start()
                self._look()
            while not self._is_closed and self._state["revision"] == after and time.monotonic() < deadline:
                self._changed.wait(min(1.0, max(0.0, deadline - time.monotonic())))
                self._watched_at = time.monotonic()
            return dict(self._state)

    def join(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """
        Join the class; what the student is to be told. Blocks: for a thread.

        Raises RefusedError, also (NB-7081) to show a notice that says more than the dialog has: asked again with that
        `notice_version` it is taken as shown.
        """
        names = ("name", "code", "url", "invitation", "student_number", "resume_code")
        given = {name: str(asked.get(name) or "").strip() for name in names}
        url, code = given["url"], given["code"]
        if given["invitation"]:
            url, code = parse_invitation(given["invitation"], url)
        if not (given["name"] and code and url):
            raise RefusedError("NB-7007")
        wanted = {"join_code": code, "display_name": given["name"]}
        wanted |= {name: given[name] for name in ("student_number", "resume_code") if given[name]}
        url = clean_url(url)
        notice = fetch_notice(url, code)
        if notice is not None and tells_more(notice) and asked.get("notice_version") != notice["version"]:
            raise RefusedError("NB-7081", version=notice["version"], **notice["notice"])
        membership = join_course(url, wanted, notice)
        with self._changed:
            self._talk.forget()
            self._look()
        return {
            "course": membership.course_title or membership.course_id,
            "name": membership.display_name,
            "resume_code": membership.resume_code,
            "is_waiting": bool(membership.waits_since),
        }

    def observe(self, events: list[Any]) -> int:
        """Store what the front end saw, but for what it may not say; how many were taken."""
        taken = 0
        for event in events[:OBSERVED_MAX]:
            if not isinstance(event, dict) or event.get("event_type") not in OBSERVED_TYPES:
                continue
            common = describe_place(event.get("path")) | {
                name: event[name] for name in ("cell_id", "cell_index", "cell_type") if name in event
            }
            found = event.get("data")
            data: dict[str, Any] = found if isinstance(found, dict) else {}
            if event["event_type"] == "presence":
                self._recorder.note_presence(common, data)
            else:
                self._recorder.put(event["event_type"], common, data)
            taken += 1
        return taken

    def raise_hand(self, path: object, message: object) -> None:
        """Raises RefusedError (NB-7001): nobody has joined."""
        need_membership()
        data = {"message": clean_text(str(message).strip(), 500)} if message else {}
        self._recorder.put("help_request", describe_place(path), data)
        self._set_help({"open": True, "since": round(time.time() * 1000), "coming": None, "place": None})

    def take_down(self, path: object) -> None:
        """Raises RefusedError (NB-7001): nobody has joined."""
        need_membership()
        self._recorder.put("help_cancel", describe_place(path), {})
        self._set_help({"open": False, "since": 0, "coming": None, "place": None})

    def list_messages(self) -> list[Message]:
        """What the class and its student have said to each other, oldest first."""
        with self._changed:
            return self._talk.list_messages()

    def say(self, text: object, thread_id: object) -> str:
        """Answer the class; the message's id. Raises RefusedError: NB-7001, or as `Talk.say`."""
        membership = need_membership()
        with self._changed:
            return self._talk.say(membership, text, thread_id)

    def decide(self, message_id: str, state: object) -> None:
        """What the student does with a message. Raises RefusedError: NB-7001, or as `Talk.decide`."""
        membership = need_membership()
        with self._changed:
            self._talk.decide(membership, message_id, str(state))

    def note_fault(self, words: object) -> None:
        """A callback of the front end's has failed."""
        self._recorder.note_fault(clean_text(str(words), FAULT_MAX))

    def pause(self, minutes: float | None) -> None:
        """Record nothing for a while. Raises RefusedError (NB-7001)."""
        need_membership()
        consent.pause(minutes)
        self._tell()

    def resume(self) -> None:
        """Record again. Raises RefusedError (NB-7001)."""
        need_membership()
        consent.resume()
        self._tell()

    def accept(self, version: int) -> None:
        """The student was shown this version of the notice. Raises RefusedError. Blocks: for a thread."""
        accept_notice(need_membership(), version)
        self._tell()

    def withdraw(self) -> dict[str, str]:
        """End recording for good; the server's word on what stays. Raises RefusedError. Blocks: for a thread."""
        told = withdraw(need_membership())
        self._tell()
        return told

    def list_looks(self, language: str) -> list[dict[str, str]]:
        """
        Who else did something with the student's work, newest first: when, by whom ("": nobody by name), and what.

        Raises RefusedError (NB-7001, or what the class's server says). Blocks: for a thread.
        """
        return fetch_looks(need_membership(), language)

    def make_own_link(self) -> str:
        """
        A link to the student's own page at the board, good once.

        Raises RefusedError (NB-7001, or as recording.make_own_link). Blocks: for a thread.
        """
        return make_own_link(need_membership())

    def _tell(self) -> None:
        with self._changed:
            self._look()

    def _set_help(self, state: dict[str, Any]) -> None:
        """Shown at once; the inbox says the same once the class has heard of it."""
        with self._changed:
            self._talk.help = state
            self._look()

    def _is_watched(self) -> bool:
        return time.monotonic() - self._watched_at < WATCHED_FOR_S

    def _watch(self) -> None:
        """Look once a second while somebody asks."""
        while not self._is_closed:
            with self._changed:
                self._changed.wait(LOOK_EVERY_S)
                if self._is_watched():
                    self._talk.note_time()
                    self._look()

    def _look(self) -> None:
        """Compose the state anew; whoever waits is woken when it is another. Under the lock."""
        membership = self._membership_file.read()
        state = describe_membership(membership) | describe_consent(membership) | self._talk.describe()
        revision = self._state["revision"]
        if state | {"revision": revision} != self._state:
            self._state = state | {"revision": revision + 1}
            self._changed.notify_all()


def describe_place(path: object) -> dict[str, Any]:
    """The notebook's part of the envelope; JupyterLab may put a drive's name before the path."""
    name = str(path or "unknown").rsplit(":", 1)[-1].lstrip("/")
    return {"notebook_path": name[:500], "notebook_id": None}


def describe_membership(membership: Membership | None) -> dict[str, Any]:
    """Joined to what, how many events wait, and how it stands with the class's server."""
    if membership is None:
        return {"joined": False, "server": "none", "waiting": 0}
    waiting, notes = 0, {}
    if get_outbox_file().exists():
        outbox = Outbox(get_outbox_file(), busy_wait_s=0.5)
        try:
            waiting, notes = outbox.count_events(membership.account)["waiting"], outbox.read_notes()
        finally:
            outbox.close()
    error = notes.get("last_error") or {}
    failed_at, success_at = error.get("at") or "", notes.get("last_success_at") or ""
    # Under a JupyterHub there is nothing a student could do about it: what is refused is asked again.
    is_refused = notes.get("refused") and not membership.hub_user
    late = "approval" if str(error.get("what")).startswith(WAITS) else "waiting"
    server = "refused" if is_refused else late if failed_at > success_at else "connected"
    return {
        "joined": True,
        "server": server,
        "waiting": waiting,
        "address": membership.url,
        "course": membership.course_title or membership.course_id,
        "name": membership.display_name,
        "resume_code": membership.resume_code,
    }


def describe_consent(membership: Membership | None) -> dict[str, Any]:
    """`paused`, and the course's `notice`: its version, text, and whether the student is still to be shown it."""
    file = consent.ConsentFile()
    standing = file.read(membership) if membership is not None else consent.Standing()
    version = standing.current.version if standing.current is not None else 0
    notice = {"version": version, "text": standing.notice, "due": standing.is_notice_due}
    return {"paused": membership is not None and file.is_paused(), "notice": notice}


def list_texts(language: str) -> dict[str, str]:
    """The front end's texts, and the notice of what is recorded."""
    texts = {key.removeprefix("lab_"): one[language] for key, one in load_texts().items() if key.startswith("lab_")}
    return texts | {"notice": load_texts()["notice"][language]}
