"""Which class this computer's student has joined, and where the files of capture lie.

Nothing is recorded before somebody has joined. The token is kept in a file that only its owner may read,
and never leaves it except in the Authorization header of a request to the class's own server. Under a JupyterHub that
names a class's server, nobody need join: who it is stands in the environment, and the hub's token is written nowhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

TURNED_AWAY_S = 300.0


@dataclass(frozen=True)
class Membership:
    """
    One student's place in one course, and the token that speaks for the student.

    `hub_user`: whom a JupyterHub says it is; then `course_id` is NBPULSE_COURSE, and empty where there is one course.
    """

    url: str
    token: str = field(repr=False)
    user_id: str = ""
    course_id: str = ""
    course_title: str = ""
    display_name: str = ""
    username: str = ""
    resume_code: str = ""
    joined_at: str = ""
    hub_user: str = ""
    waits_since: str = ""
    """When they joined, where the teacher then still had to let them in."""

    @cached_property
    def account(self) -> str:
        """Names this place in the outbox, so that one student's waiting events never go out as another's."""
        who = f"{self.user_id} {self.course_id}" if self.user_id else self.token
        return hashlib.sha256(f"{self.url} {who}".encode()).hexdigest()[:16]


def get_config_dir() -> Path:
    """Where the token is kept."""
    if given := os.environ.get("NBPULSE_CAPTURE_CONFIG"):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "nbpulse-capture"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "nbpulse-capture"


def get_data_dir() -> Path:
    """Where the outbox lies."""
    if given := os.environ.get("NBPULSE_CAPTURE_DIR"):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "nbpulse-capture"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "nbpulse-capture"


def get_outbox_file() -> Path:
    """One outbox for all kernels of one user of this machine."""
    return get_data_dir() / "outbox.sqlite3"


def make_private_dir(path: Path) -> None:
    """Make a directory that only its owner can enter (where the file system knows modes)."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def make_private_file(path: Path) -> None:
    """
    Make an empty file of its owner's, unless it is there.

    One that is there is not even opened: closing it again would take away the locks that this process's databases hold
    on it (POSIX), and the next process to close that database would delete the log from under them.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def write_private_json(path: Path, content: Mapping[str, Any]) -> None:
    """The file appears whole or not at all, readable by its owner only."""
    make_private_dir(path.parent)
    draft = path.with_name(f"{path.stem}.{os.getpid()}-{threading.get_ident()}.tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=1)
    draft.replace(path)


def write_membership(membership: Membership) -> Path:
    """Remember the place in the class."""
    path = get_config_dir() / "membership.json"
    write_private_json(path, asdict(membership))
    return path


def read_hub_membership() -> Membership | None:
    """
    The place a JupyterHub gives its user; None where there is no hub, or it knows no class's server.

    Its token is another at each start of the user's server; `account` does not depend on it, so what waits goes out
    with the next one.
    """
    names = ("NBPULSE_URL", "JUPYTERHUB_API_TOKEN", "JUPYTERHUB_USER")
    url, token, user = (os.environ.get(name, "") for name in names)
    if not (url and token and user):
        return None
    who = {"user_id": f"jupyterhub {user}", "display_name": user, "username": user, "hub_user": user}
    return Membership(url=url.rstrip("/"), token=token, course_id=os.environ.get("NBPULSE_COURSE", ""), **who)


def turn_away(account: str) -> None:
    """
    The class's server says that the hub's user is none of its students (their teacher, or in other courses only):
    nothing is recorded of them, in any process, until it is time to ask again.
    """
    write_private_json(_get_turned_away_file(account), {})


def _get_turned_away_file(account: str) -> Path:
    return get_config_dir() / f"turned-away-{account}.json"


def forget_membership() -> None:
    """Remove the token from this computer."""
    (get_config_dir() / "membership.json").unlink(missing_ok=True)


class MembershipFile:
    """The membership as it is now: a running kernel notices a join or a leave at its next run."""

    def __init__(self) -> None:
        self._path = get_config_dir() / "membership.json"
        self._stamp: tuple[int, int] | None = None
        self._membership: Membership | None = None
        url, token = os.environ.get("NBPULSE_CAPTURE_URL"), os.environ.get("NBPULSE_CAPTURE_TOKEN")
        self._given = Membership(url=url.rstrip("/"), token=token) if url and token else read_hub_membership()

    def read(self) -> Membership | None:
        """The current membership, or None. Costs one `stat` while nothing changes (about 2 us)."""
        if self._given is not None and not (self._given.hub_user and self._is_turned_away(self._given.account)):
            return self._given
        try:
            found = self._path.stat()
        except OSError:
            self._stamp = self._membership = None
            return None
        stamp = (found.st_mtime_ns, found.st_size)
        if stamp != self._stamp:
            self._membership = _load(self._path)
            self._stamp = stamp
        return self._membership

    def _is_turned_away(self, account: str) -> bool:
        try:
            turned_away_at_s = _get_turned_away_file(account).stat().st_mtime
        except OSError:
            return False
        return 0 <= time.time() - turned_away_at_s < TURNED_AWAY_S


def _load(path: Path) -> Membership | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(Membership)}
        return Membership(**{name: str(value) for name, value in values.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # a file damaged by hand counts as "not joined", which `status` says
