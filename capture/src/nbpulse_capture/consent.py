"""What the course collects, what of it the student was shown, and whether they have paused: kept beside the membership.

Two files of the owner's alone: `collection.json` is the class's server's last word for one place in one class,
`pause.json` the student's own. Recorded is what both the course's newest version and the version that was shown allow;
while a class has not been asked yet, what the package's own notice tells of, and nothing is sent before it was asked.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbpulse_capture.membership import Membership, MembershipFile, get_config_dir, write_private_json
from nbpulse_capture.policy import METADATA, OWN_ACTS_ONLY, Policy, read_policy, take_stricter

REFRESH_EVERY_S = 3600.0
LOOKED_AT_EVERY_S, COARSE_TIME_S, AGAIN_AFTER_S = 1.0, 2.0, 0.002
CLOCK_SLACK_S = 60.0  # a clock that was put back by more must not keep out all that is told from then on


@dataclass(frozen=True)
class Standing:
    """What holds for one place in a class."""

    current: Policy | None = None
    """The course's newest version; None while nobody knows it."""
    shown: Policy | None = None
    """The version the student was shown; None for none of the course's own."""
    notice: dict[str, str] | None = None
    asked_at_s: float = 0.0

    @property
    def policy(self) -> Policy:
        """What may be recorded, pause aside."""
        return take_stricter(self.current or METADATA, self.shown or METADATA)

    @property
    def is_notice_due(self) -> bool:
        """Whether the course has a version that this student has not been shown."""
        version = self.current.version if self.current is not None else 0
        return version > (self.shown.version if self.shown is not None else 0)

    def is_old(self, now_s: float) -> bool:
        """Whether the class's server is to be asked again."""
        return self.current is None or not 0 <= now_s - self.asked_at_s < REFRESH_EVERY_S


class ConsentFile:
    """The two files as they are now: a running kernel notices a change at its next run, for two `stat`s."""

    def __init__(self) -> None:
        self._collection = _Watched(get_config_dir() / "collection.json")
        self._pause = _Watched(get_config_dir() / "pause.json")
        self._known: tuple[object, str, Standing] = (None, "", Standing())

    def read(self, membership: Membership) -> Standing:
        """What holds for this place in the class; another's words are not its."""
        content, account = self._collection.read(), membership.account
        if self._known[0] is not content or self._known[1] != account:
            self._known = (content, account, _read_standing((content or {}).get(account)))
        return self._known[2]

    def is_paused(self) -> bool:
        """Whether the student has paused recording, and that is not over; a damaged file is a pause without an end."""
        told = self._pause.read()
        return told is not None and (not isinstance(told.get("until_s"), int | float) or time.time() < told["until_s"])

    def get_pause_end_s(self) -> float | None:
        """When the pause ends by itself; None: never, or there is none."""
        until_s = (self._pause.read() or {}).get("until_s")
        return float(until_s) if self.is_paused() and isinstance(until_s, int | float) else None

    def find_policy(self, membership: Membership) -> Policy:
        """What may be recorded now."""
        return OWN_ACTS_ONLY if self.is_paused() else self.read(membership).policy


@dataclass(frozen=True)
class Allowance:
    """Whose events may be recorded now, and what of them; of nobody where nobody has joined."""

    membership: Membership | None
    policy: Policy
    """Their own acts only, in a pause."""
    is_paused: bool


class AllowanceFile:
    """
    Membership, collection and pause as they are now, for one `stat` of the directory in which all three files lie.

    Each is only ever replaced whole, which changes the directory's time. A change is looked for in the files themselves
    for 2 s after it, since file systems' times are coarse, and once a second for what somebody edits in place. What was
    read within the last 2 ms is not read again: a server asks several times for one message.
    """

    def __init__(self) -> None:
        self._directory = str(get_config_dir())
        self._membership_file = MembershipFile()
        self._consent = ConsentFile()
        self._read_at_s = 0.0
        # (the directory's time, until when it is good, what was found): changed together, since two threads may look.
        self._seen: tuple[int | None, float, Allowance] = (-1, 0.0, Allowance(None, OWN_ACTS_ONLY, is_paused=False))

    def read(self) -> Allowance:
        """What holds for a run that begins or ends now."""
        now_s = time.time()
        if 0 <= now_s - self._read_at_s < AGAIN_AFTER_S:
            return self._seen[2]
        try:
            changed_at_ns = os.stat(self._directory).st_mtime_ns  # noqa: PTH116 - Path costs ten times as much
        except OSError:
            changed_at_ns = None
        seen_at_ns, good_until_s, allowance = self._seen
        if changed_at_ns != seen_at_ns or not now_s < good_until_s <= now_s + LOOKED_AT_EVERY_S:
            allowance = self._look(changed_at_ns, now_s)
        self._read_at_s = now_s  # only now: who asks meanwhile, in another thread, looks for themselves
        return allowance

    def _look(self, changed_at_ns: int | None, now_s: float) -> Allowance:
        membership = self._membership_file.read()
        policy = self._consent.find_policy(membership) if membership is not None else OWN_ACTS_ONLY
        allowance = Allowance(membership, policy, self._consent.is_paused())
        is_coarse = changed_at_ns is not None and abs(now_s - changed_at_ns / 1e9) < COARSE_TIME_S
        pause_ends_s = self._consent.get_pause_end_s() or now_s + LOOKED_AT_EVERY_S
        good_until_s = now_s if is_coarse else min(pause_ends_s, now_s + LOOKED_AT_EVERY_S)
        self._seen = (changed_at_ns, good_until_s, allowance)
        return allowance


class _Watched:
    """A JSON object in a file, read again when the file is another."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._content: dict[str, Any] | None = None

    def read(self) -> dict[str, Any] | None:
        """None where there is no file, empty where it cannot be read; the same object while it is the same file."""
        try:
            found = self._path.stat()
        except OSError:
            self._stamp = self._content = None
            return None
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if stamp != self._stamp:
            self._content, self._stamp = _load(self._path), stamp
        return self._content


def _read_standing(told: object) -> Standing:
    if not isinstance(told, dict):
        return Standing()
    notice, asked_at_s = told.get("notice"), told.get("asked_at_s")
    return Standing(
        read_policy(told.get("current")),
        read_policy(told.get("shown")),
        notice if isinstance(notice, dict) else None,
        float(asked_at_s) if isinstance(asked_at_s, int | float) else 0.0,
    )


def write_collection(membership: Membership, told: dict[str, Any], now_s: float) -> Standing:
    """
    Keep what the class's server has told (`GET /api/v1/me/collection`, or its answer to joining) when asked at `now_s`;
    not what was asked before that which is known: of two who ask at once the slower has the older answer.
    """
    path = get_config_dir() / "collection.json"
    known = _load(path)
    known_at_s = known.get(membership.account, {}).get("asked_at_s")
    if isinstance(known_at_s, int | float) and now_s < known_at_s < now_s + CLOCK_SLACK_S:
        return ConsentFile().read(membership)
    current = told.get("current") if isinstance(told.get("current"), dict) else {}
    kept = {
        "current": current,
        "shown": told.get("shown"),
        "notice": (current or {}).get("notice"),
        "asked_at_s": now_s,
    }
    others = {account: words for account, words in known.items() if account != membership.account}
    write_private_json(path, dict(list(others.items())[-9:]) | {membership.account: kept})
    return ConsentFile().read(membership)


def forget_collection(membership: Membership) -> None:
    """Nothing of this place in a class is kept."""
    path = get_config_dir() / "collection.json"
    others = {account: words for account, words in _load(path).items() if account != membership.account}
    if others:
        write_private_json(path, others)
    else:
        path.unlink(missing_ok=True)


def pause(minutes: float | None) -> None:
    """Record nothing from now on, for some minutes or until resume()."""
    write_private_json(get_config_dir() / "pause.json", {"until_s": time.time() + minutes * 60 if minutes else None})


def resume() -> None:
    """The pause is over."""
    (get_config_dir() / "pause.json").unlink(missing_ok=True)


def _load(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}
