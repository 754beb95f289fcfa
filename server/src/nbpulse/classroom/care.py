"""What staff do about a student's alerts, folded: who is on it, what is quiet and until when, which hands are answered.

Promises: the order is that of the revisions the database gave, so any order of arrival and any repeat folds to the
same; the first claim holds until it is released or the alert is dealt with; what was undone never was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec

from nbpulse.errors import Conflict

ActionName = Literal["claim", "release", "helped", "snooze", "undo", "note"]
UNDO_MS: Final = 10_000
QUIET_MS: Final = 300_000
"""For so long nothing is said of a student who was just helped."""
LIFE_HOURS: Final = 12
"""What was done longer ago is history: a forgotten claim ends with the day."""
_UNDOABLE: Final = frozenset({"helped", "snooze"})


class Action(msgspec.Struct, frozen=True):
    """
    One thing staff did for a student. `revision` rises with each of one student's.

    `hand_id`: the request for help that was open then, as `HelpRequest.request_id`; "" for none. `until_ms`: how long
    alerts are quiet by it. `undoes`: the action that an undo takes back.
    """

    id: str
    user_id: str
    alert_id: str
    action: ActionName
    staff_id: str
    staff_name: str
    at_ms: int
    revision: int
    hand_id: str = ""
    until_ms: int = 0
    undoes: str = ""


class Claim(msgspec.Struct, frozen=True):
    """Who is on it ("I go"), and since when in ms."""

    by: str
    name: str
    at: int


class AlertStanding(msgspec.Struct, frozen=True):
    """What was done about one alert."""

    alert_id: str
    claim: Claim | None
    snoozed_until: int | None
    helped_at: int | None


class Care(msgspec.Struct, frozen=True):
    """What holds for one student. Claims and the like by alert id; `coming`: claims by the hand that was up."""

    claims: dict[str, Claim] = {}
    helped: dict[str, int] = {}
    snoozed: dict[str, int] = {}
    coming: dict[str, Claim] = {}
    quiets: tuple[tuple[int, str], ...] = ()
    """(until_ms, hand that was up)"""
    answered: frozenset[str] = frozenset()
    """Hands whose student was helped."""

    def is_quiet(self, kind: str, hand_id: str, now_ms: int) -> bool:
        """Whether an alert of that kind is not to be shown now. A hand raised after it became quiet is."""
        if kind == "help":
            return hand_id in self.answered or any(now_ms < until and hand == hand_id for until, hand in self.quiets)
        return any(now_ms < until for until, _ in self.quiets)

    def find_quiet_until(self, now_ms: int) -> int:
        """When the last quiet ends that holds now; 0 for none."""
        return max((until for until, _ in self.quiets if now_ms < until), default=0)

    def describe(self, alert_id: str) -> AlertStanding:
        """The standing of one alert."""
        return AlertStanding(alert_id, self.claims.get(alert_id), self.snoozed.get(alert_id), self.helped.get(alert_id))


NO_CARE: Final = Care()


def list_effective(actions: Iterable[Action]) -> list[Action]:
    """What was not undone, in order; undoing itself aside."""
    known = {one.id: one for one in actions}
    undone = {one.undoes for one in known.values() if one.action == "undo"}
    kept = (one for one in known.values() if one.action != "undo" and one.id not in undone)
    return sorted(kept, key=lambda one: (one.revision, one.id))


def fold_actions(actions: Iterable[Action]) -> Care:
    """The standing after one student's `actions`, in any order, each as often as it likes."""
    claims: dict[str, Action] = {}
    helped: dict[str, int] = {}
    snoozed: dict[str, int] = {}
    quiets: list[tuple[int, str]] = []
    answered: set[str] = set()
    for one in list_effective(actions):
        match one.action:
            case "claim":
                claims.setdefault(one.alert_id, one)
            case "release":
                claims.pop(one.alert_id, None)
            case "helped" | "snooze":
                claims.pop(one.alert_id, None)
                (helped if one.action == "helped" else snoozed)[one.alert_id] = (
                    one.at_ms if one.action == "helped" else one.until_ms
                )
                quiets.append((one.until_ms, one.hand_id))
                if one.action == "helped" and one.hand_id:
                    answered.add(one.hand_id)
    return Care(
        claims={alert_id: _make_claim(one) for alert_id, one in claims.items()},
        helped=helped,
        snoozed=snoozed,
        coming={one.hand_id: _make_claim(one) for one in claims.values() if one.hand_id},
        quiets=tuple(quiets),
        answered=frozenset(answered),
    )


def decide(wanted: Action, known: Sequence[Action]) -> Action | None:
    """
    `wanted` as it is to be stored after the student's `known` actions; None where it changes nothing.

    Raises Conflict: another is on it (NB-1331, bears the claim); nothing of theirs is left to undo (NB-1332).
    """
    care = fold_actions(known)
    claim = care.claims.get(wanted.alert_id)
    if wanted.action == "claim" and claim is not None:
        if claim.by != wanted.staff_id:
            raise Conflict("NB-1331", claim=claim)
        return None
    if wanted.action == "release" and claim is None:
        return None
    if wanted.action == "undo":
        return msgspec.structs.replace(wanted, undoes=_find_undoable(wanted, known).id)
    return wanted


def _find_undoable(wanted: Action, known: Sequence[Action]) -> Action:
    for one in reversed(list_effective(known)):
        if one.action in _UNDOABLE and (one.alert_id, one.staff_id) == (wanted.alert_id, wanted.staff_id):
            if wanted.at_ms - one.at_ms <= UNDO_MS:
                return one
            break
    raise Conflict("NB-1332", limit_s=UNDO_MS // 1000)


def _make_claim(one: Action) -> Claim:
    return Claim(one.staff_id, one.staff_name, one.at_ms)
