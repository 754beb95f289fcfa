"""The course's notice: fetched from the class's server, answered there, its terms kept here (consent.py).

Each call makes one request; nothing is kept but on the server's word. Who withdraws is forgotten by the server first
and then here; while the server cannot be told, recording is paused without an end.
"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

from nbpulse_capture.consent import forget_collection, pause, resume, write_collection
from nbpulse_capture.journal import erase_account
from nbpulse_capture.membership import Membership, MembershipFile, forget_membership, get_outbox_file
from nbpulse_capture.messages import RefusedError
from nbpulse_capture.outbox import Outbox
from nbpulse_capture.wire import Answer, UnreachableError, Wire

UNTOLD = {"version": 0, "level": "metadata", "without": []}  # of a server that has no such notice
NOTHING = {"version": 0, "level": "nothing", "without": []}


def fetch_notice(url: str, code: str) -> dict[str, Any] | None:
    """
    What the course of this join code records, for who has not joined: `version`, `level`, `without`, `notice`, `added`.

    None where the server does not know, or does not tell: then joining says what is wrong, if anything is.
    """
    wire = Wire(url)
    try:
        answer = wire.get(f"/api/v1/join/notice?code={quote(code, safe='')}")
    except UnreachableError:
        return None
    finally:
        wire.close()
    is_notice = answer.status == 200 and isinstance(answer.content, dict) and "version" in answer.content
    return answer.content if is_notice else None


def tells_more(notice: dict[str, Any]) -> bool:
    """Whether it says more than the notice that comes with this package."""
    added = notice.get("added")
    return notice.get("level") not in {"nothing", "metadata"} or (isinstance(added, dict) and any(added.values()))


def keep_collection(wire: Wire, membership: Membership) -> Answer | None:
    """Ask what the course collects and keep it; None when done, else what was answered. Raises UnreachableError."""
    asked_at_s = time.time()
    answer = wire.get("/api/v1/me/collection", token=membership.token)
    if answer.status == 200 and isinstance(answer.content, dict) and isinstance(answer.content.get("current"), dict):
        write_collection(membership, answer.content, asked_at_s)
        return None
    if answer.status in {404, 405}:  # a server of before there were notices
        write_collection(membership, {"current": UNTOLD}, asked_at_s)
        return None
    return answer


def refresh(membership: Membership) -> None:
    """Ask the class's server again, if it can be reached; what is known here holds otherwise."""
    wire = Wire(membership.url, course=membership.course_id)
    try:
        keep_collection(wire, membership)
    except UnreachableError:
        return
    finally:
        wire.close()


def note_joined(membership: Membership, joined: dict[str, Any], shown_version: int | None) -> None:
    """Keep what the answer to joining says of the collection; the version that was shown is the newest, or none."""
    current = joined.get("collection")
    if isinstance(current, dict):
        is_shown = shown_version is not None and shown_version == current.get("version")
        # An older one was shown: what it allowed is asked for with the first events.
        asked_at_s = time.time() if is_shown or shown_version is None else 0.0
        write_collection(membership, {"current": current, "shown": current if is_shown else None}, asked_at_s)


def accept_notice(membership: Membership, version: int) -> None:
    """The student was shown this version. Raises RefusedError (NB-7003, NB-7082)."""
    answer = _answer(membership, version, "accept")
    write_collection(membership, answer.content, time.time())


def withdraw(membership: Membership, version: int) -> dict[str, str]:
    """
    Record nothing more, erase what waits here, have the token revoked; the server's word to the student, by language.

    Raises RefusedError (NB-7080): the server could not be told; recording is paused and what waited is gone, but the
    membership stays until withdraw() is called again.
    """
    pause(None)
    erase_waiting(membership)
    try:
        answer = _answer(membership, version, "withdraw")
    except RefusedError as refusal:
        if refusal.code != "NB-7084":  # already withdrawn, from another machine
            raise RefusedError("NB-7080", url=membership.url, reason=refusal.facts.get("reason", "")) from refusal
        answer = Answer(200, {})
    end_membership(membership)
    resume()
    text = answer.content.get("text")
    return text if isinstance(text, dict) else {}


def end_membership(membership: Membership, outbox: Outbox | None = None) -> None:
    """The student has withdrawn or was erased: nothing of this place in a class stays here or is recorded any more."""
    if MembershipFile().read() == membership:
        forget_membership()
    forget_collection(membership)
    if MembershipFile().read() == membership:  # given by the environment: it cannot be forgotten, but recorded no more
        write_collection(membership, {"current": NOTHING, "shown": NOTHING}, time.time())
    if outbox is not None:
        erase_account(outbox, membership.account)
    else:
        erase_waiting(membership)


def erase_waiting(membership: Membership) -> int:
    """Erase what waits of this place in a class; how many events that were."""
    if not get_outbox_file().exists():
        return 0
    outbox = Outbox(get_outbox_file())
    try:
        return erase_account(outbox, membership.account)
    finally:
        outbox.close()


def _answer(membership: Membership, version: int, action: str) -> Answer:
    """Raises RefusedError: no answer (NB-7003), already withdrawn (NB-7084), refused (NB-7082)."""
    wire = Wire(membership.url, course=membership.course_id)
    try:
        answer = wire.post("/api/v1/me/consent", {"version": version, "action": action}, token=membership.token)
    except UnreachableError as error:
        raise RefusedError("NB-7003", url=membership.url, reason=error) from error
    finally:
        wire.close()
    if answer.status == 200 and isinstance(answer.content, dict):
        return answer
    code = answer.content.get("code") if isinstance(answer.content, dict) else None
    if code in {"NB-1340", "NB-1345", "NB-1101", "NB-1161"}:
        raise RefusedError("NB-7084")
    raise RefusedError("NB-7082", reason=f"HTTP {answer.status} {code or ''}".strip())
