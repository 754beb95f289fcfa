"""The process that keeps the embedded primary's replica: copies it, runs it, and copies it anew when it cannot follow.

Promises: whatever becomes of the replica, the primary and everything else go on; the copy's progress is said; a replica
that died is started again, and one for which the primary no longer keeps what it missed is made anew.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final
from urllib.parse import urlsplit

import msgspec

from nbpulse.embedded import EmbeddedReplica
from nbpulse.errors import NbpulseError, StartupError, Unavailable
from nbpulse.records.replication import LOGIN, SLOT, read_slot, renew_slot
from nbpulse.terminal import describe_error, get_text, say

_LOOK_EVERY_S: Final = 2.0
_SAY_EVERY_S: Final = 2.0
_START_LIMIT_S: Final = 300.0
_AGAIN_AFTER_S: Final = 30.0
# Both run, its slot is kept, and it does not follow: it is ahead of a primary that was restored, say.
_STRAY_LIMIT_S: Final = 300.0
_STOP_LIMIT_S: Final = 8.0
_FAILED_STARTS_MAX: Final = 3


class Plan(msgspec.Struct, frozen=True):
    """`primary_url`: the primary's database by the login that replicates. `port`: where the replica listens."""

    data_dir: str
    primary_url: str
    port: int


class _Ended(BaseException):
    """SIGTERM."""


def run_standby(plan: Plan) -> None:
    """Until SIGTERM."""

    def end(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Ended

    signal.signal(signal.SIGTERM, end)
    keeper = _Keeper(plan)
    try:
        while True:
            try:
                keeper.keep()
            except Unavailable:
                time.sleep(_LOOK_EVERY_S)  # the primary is being started again
            except NbpulseError as error:
                say(describe_error(error).replace("\n        ", " "))
                time.sleep(_AGAIN_AFTER_S)
    except _Ended:
        pass
    finally:
        keeper.replica.stop(_STOP_LIMIT_S)


class _Keeper:
    def __init__(self, plan: Plan) -> None:
        self._url = plan.primary_url
        self._failed_starts = 0
        primary = urlsplit(plan.primary_url)
        self.replica = EmbeddedReplica(
            Path(plan.data_dir),
            primary_port=primary.port or 0,
            login=LOGIN,
            password=primary.password or "",
            slot=SLOT,
            port=plan.port,
            tell=_make_teller(),
        )

    def keep(self) -> None:
        """One life of the replica, from its start to its end. Raises Unavailable: the primary does not answer."""
        state = asyncio.run(read_slot(self._url))
        if state in ("missing", "lost") or not self.replica.is_copied:
            say(get_text("replica_copying"))
            self.replica.discard()
            asyncio.run(renew_slot(self._url))
        try:
            self.replica.start(_START_LIMIT_S)
        except StartupError:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS_MAX:
                self.replica.discard()  # whatever is wrong with the copy, another one is to be had
            raise
        self._failed_starts = 0
        say(get_text("replica_ready", port=self.replica.port))
        strayed_at_s = time.monotonic()
        while (code := self.replica.poll()) is None:
            time.sleep(_LOOK_EVERY_S)
            try:
                state = asyncio.run(read_slot(self._url))
            except Unavailable:
                strayed_at_s = time.monotonic()
                continue
            if state == "followed":
                strayed_at_s = time.monotonic()
            if state in ("missing", "lost") or time.monotonic() - strayed_at_s > _STRAY_LIMIT_S:
                say(get_text("replica_lost"))
                self.replica.stop(_STOP_LIMIT_S)
                self.replica.discard()
                return
        say(get_text("replica_died", code=code, log=self.replica.log_path))
        time.sleep(_LOOK_EVERY_S)


def _make_teller() -> Callable[[int, int], None]:
    """Says how far the copy is, every other second."""
    said_at_s = time.monotonic()

    def tell(done_bytes: int, total_bytes: int) -> None:
        nonlocal said_at_s
        if time.monotonic() - said_at_s > _SAY_EVERY_S and total_bytes:
            said_at_s = time.monotonic()
            percent = min(100, done_bytes * 100 // total_bytes)
            say(get_text("replica_progress", percent=percent, total_mb=total_bytes // 1_000_000))

    return tell
