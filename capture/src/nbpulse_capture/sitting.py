"""A student's sitting at one kernel: which learning session a run belongs to, and whether somebody is there."""

from __future__ import annotations

import uuid

IDLE_LIMIT_S = 30 * 60.0
ACTIVE_FOR_S = 120.0
FORGOTTEN_AFTER_S = 2 * 3600.0


class Sitting:
    """The learning session of one kernel; begins with the first run, and anew after 30 idle minutes, asleep or not."""

    def __init__(self, now_s: float) -> None:
        self.session_id: str | None = None
        self.active_at_s = now_s

    def keep(self, now_s: float, *, others_run: bool) -> tuple[str, bool]:
        """A run begins at `now_s`: the session's id, and whether that is a new one."""
        idle = now_s - self.active_at_s > IDLE_LIMIT_S and not others_run
        self.active_at_s = now_s
        if self.session_id is not None and not idle:
            return self.session_id, False
        self.session_id = str(uuid.uuid4())
        return self.session_id, True

    def judge_presence(self, now_s: float, *, is_running: bool) -> str | None:
        """`active`, `idle`, or None: a kernel forgotten for two hours says nothing, nobody is sitting there."""
        quiet_s = 0.0 if is_running else now_s - self.active_at_s
        if quiet_s > FORGOTTEN_AFTER_S:
            return None
        return "active" if self.session_id is not None and quiet_s <= ACTIVE_FOR_S else "idle"
