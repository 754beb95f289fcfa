"""`%nbpulse help | status | pause | join` and the others inside a notebook; what it prints was asked for."""

from __future__ import annotations

import shlex
from typing import Any

from nbpulse_capture.messages import get_text, say

COMMANDS = frozenset({"status", "join", "leave", "what-is-recorded", "pause", "resume", "notice", "withdraw"})
_open_help_id: str | None = None


def run_magic(line: str) -> None:
    """`%nbpulse help [text]` raises a hand, `%nbpulse help --cancel` takes it down."""
    word, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if word == "help":
        say(cancel_help() if rest == "--cancel" else request_help(rest))
        return
    if word in COMMANDS:
        from nbpulse_capture.cli import main

        main([word, *shlex.split(rest)])
        return
    say(get_text("magic_usage"))


def protect_question(lines: list[str]) -> list[str]:
    """IPython takes a line that ends in "?" as a question to itself; the student asks the teacher."""
    if lines and lines[0].startswith("%nbpulse ") and lines[0].rstrip().endswith("?"):
        rest = lines[0].rstrip().removeprefix("%nbpulse ")
        return [f"get_ipython().run_line_magic('nbpulse', {rest!r})\n", *lines[1:]]
    return lines


def request_help(message: str) -> str:
    """Put a help request into the outbox; says what happened."""
    global _open_help_id
    recorder, common = _get_recorder_and_cell()
    if recorder is None:
        return get_text("NB-7001")
    if _open_help_id is not None and not message:
        return get_text("help_open_already")
    from nbpulse_capture.execution import clean_text

    data = {"message": clean_text(message, 500)} if message else {}
    _open_help_id = recorder.put("help_request", common, data)
    return get_text("help_sent")


def cancel_help() -> str:
    """Take the help request back."""
    global _open_help_id
    recorder, common = _get_recorder_and_cell()
    if recorder is None:
        return get_text("NB-7001")
    recorder.put("help_cancel", common, {})
    _open_help_id = None
    return get_text("help_cancelled")


def _get_recorder_and_cell() -> tuple[Any, dict[str, Any]]:
    """The recorder (None when nobody has joined) and the cell that was run last."""
    from nbpulse_capture.kernel import get_recorder
    from nbpulse_capture.membership import MembershipFile

    recorder = get_recorder()
    if recorder is None or MembershipFile().read() is None:
        return None, {}
    return recorder, recorder.last_cell or recorder.describe_place()
