"""What a kernel says, put into the observer's queue: Voice. A few microseconds' work for each message."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from nbpulse_capture.faults import FaultLog
from nbpulse_capture.policy import OWN_ACTS_ONLY, Policy
from nbpulse_capture.watched import WatchedKernel
from nbpulse_capture.websocket import is_students_code

LINGER_S = 0.015  # start and end of a short run are then told, written and sent together


class Voice:
    """What a kernel's listener hears, queued for the observer (KernelVoice)."""

    def __init__(
        self,
        kernel: WatchedKernel,
        offer: Callable[..., None],
        faults: FaultLog,
        find_policy: Callable[[], Policy],
    ) -> None:
        self._find_policy = find_policy
        self._kernel = kernel
        self._offer = offer
        self._faults = faults

    def hear_start(self, msg_id: str, at: Any, content: dict[str, Any]) -> bool:
        """`execute_input`; a run that begins in a pause is nobody's, whenever it ends"""
        code, policy = str(content.get("code", "")), self._find_policy()
        is_students = is_students_code(code) and policy != OWN_ACTS_ONLY
        if policy == OWN_ACTS_ONLY:  # what the kernel counts meanwhile must not be missed in the sitting
            self._offer(self._kernel, self._kernel.begin_anew, within_s=None)
        note = partial(self._kernel.note_start, msg_id, at, content, is_students=is_students)
        self._offer(self._kernel, partial(note, source=code if policy.wants("source") else ""), within_s=LINGER_S)
        return policy.wants("output")

    def hear_error(self, msg_id: str, content: dict[str, Any]) -> None:
        """`error`"""
        self._offer(self._kernel, partial(self._kernel.note_error, msg_id, content), within_s=None)

    def hear_told(self, msg_id: str, content: dict[str, Any]) -> None:
        """From the extension inside the kernel"""
        for fault in content.get("faults") or []:
            self._faults.note(str(fault), "kernel")
        within_s = 0.0 if "event" in content else None
        self._offer(self._kernel, partial(self._kernel.note_told, msg_id, content), within_s=within_s)

    def wants_output(self) -> bool:
        """As the policy is now"""
        return self._find_policy().wants("output")

    def hear_end(self, msg_id: str, at: Any, output_bytes: int, shown: str) -> None:
        """`idle`"""
        self._offer(self._kernel, partial(self._kernel.note_end, msg_id, at, output_bytes, shown))
