"""One run of a cell, put into the words of the wire: describe_start(), describe_execution().

There is no source and no output in it (contents.py adds them where the course collects them). A traceback therefore
names files, lines and functions but quotes no line of code, and paths are cut to their last two parts; of an error
without a message a print of the failing line tells one failed check from another. What looks secret is masked.
Everything is bounded: an endless recursion with thousands of frames costs and sends no more than twenty.
"""

from __future__ import annotations

import asyncio
import hashlib
import linecache
import os
import re
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, Protocol

from nbpulse_capture.scrubbing import find_secret_values, mask_secrets

MESSAGE_CAP_CHARS = 2_000
TRACEBACK_CAP_CHARS = 6_000
SCRUBBED_CHARS = 10_000
FRAMES_EACH_END = 10
TOLD_PREFIX = "nbpulse:"

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Begun at the first dash of a row alone: a row without an arrow is looked at once, not once for each dash.
_ARROW = re.compile(r"(?<!-)-++> *\d+ +(.*)")
_MADE_UP_FILE = re.compile(r"\([\w<>.-]+, line (\d+)\)")

CellNamer = Callable[[str], int | None]


class ExecutionResult(Protocol):
    """What IPython hands to `post_run_cell`; only what is read here."""

    execution_count: int | None
    error_before_exec: BaseException | None
    error_in_exec: BaseException | None
    info: Any


@dataclass(slots=True)
class Run:
    """A run that has started and not ended."""

    kernel_id: uuid.UUID
    msg_id: str
    common: dict[str, Any]
    marks: dict[str, Any] = field(default_factory=dict)
    began_at: str = ""
    started_at_s: float = 0.0
    depth: int = 1
    is_told: bool = False
    source: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    status: str
    error: dict[str, str] = field(default_factory=dict)


@lru_cache(maxsize=256)  # the end's is named at the start already, so that it can be told by whoever survives
def make_event_id(kernel_id: uuid.UUID, msg_id: str, phase: str) -> str:
    """The same run gets the same id from whoever observes it: uuid5(kernel_id, msg_id, phase)."""
    return str(uuid.uuid5(kernel_id, f"{msg_id}:{phase}"))


def name_told(msg_id: str) -> str:
    """The name in a message's metadata under which the kernel's extension tells of that run."""
    return TOLD_PREFIX + msg_id


def format_time(moment: datetime | None = None) -> str:
    """UTC with milliseconds, as the wire wants it."""
    return (moment or datetime.now(UTC)).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def describe_event(event_type: str, common: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The envelope; a random id unless `common` brings one."""
    return {
        "schema_version": 1,
        "event_id": common.get("event_id") or str(uuid.uuid4()),
        "event_type": event_type,
        "occurred_at": format_time(),
        **common,
        "data": dict(data),
    }


def describe_start(run: Run) -> dict[str, Any]:
    """The event `cell_execution_start`."""
    event_id = make_event_id(run.kernel_id, run.msg_id, "start")
    common = run.common | {"event_id": event_id} | ({"occurred_at": run.began_at} if run.began_at else {})
    return describe_event("cell_execution_start", common, run.marks)


def describe_execution(
    run: Run,
    result: ExecutionResult | None,
    *,
    duration_ms: float,
    propagating: BaseException | None = None,
    display_error: BaseException | None = None,
    name_cell: CellNamer = lambda _: None,
) -> dict[str, Any]:
    """
    The event `cell_execution`.

    `result` is None when IPython had none to give: the run was cancelled, by `propagating` or an interrupt.
    """
    outcome = judge_result(result, propagating, display_error, name_cell)
    data: dict[str, Any] = {
        "status": outcome.status,
        "execution_duration_ms": round(duration_ms, 3),
        "has_error": outcome.status == "error",
        **outcome.error,
        **run.marks,
    }
    if result is not None and result.execution_count is not None:
        data["execution_count"] = result.execution_count
    event_id = make_event_id(run.kernel_id, run.msg_id, "end")
    return describe_event("cell_execution", run.common | {"event_id": event_id}, data)


def judge_result(
    result: ExecutionResult | None,
    propagating: BaseException | None,
    display_error: BaseException | None,
    name_cell: CellNamer,
) -> Outcome:
    """ok, error or interrupted, and what is to be said of the error."""
    if result is None:
        if isinstance(propagating, Exception):
            return Outcome("error", describe_error(propagating, "runtime", name_cell))
        return Outcome("interrupted")
    if result.error_before_exec is not None:
        return Outcome("error", describe_error(result.error_before_exec, "compile", name_cell))
    error = result.error_in_exec or display_error
    if error is None:
        return Outcome("ok")
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        return Outcome("interrupted")
    return Outcome("error", describe_error(error, "runtime", name_cell))


def describe_error(error: BaseException, phase: str, name_cell: CellNamer) -> dict[str, str]:
    """Name, message, traceback without source, and whether Python had begun to run the cell."""
    try:
        message = f"{error.msg} (line {error.lineno})" if isinstance(error, SyntaxError) else str(error)
    except BaseException:  # noqa: BLE001 - a student's own __str__ may do anything
        message = "(the error's own text could not be made)"
    described = {
        "error_name": clean_text(type(error).__name__, 200),
        "error_message": scrub_text(message, MESSAGE_CAP_CHARS),
        "phase": phase,
    }
    if not message and (line := find_failing_line(error, name_cell)):
        described["failing_print"] = print_line(line)
    if trace := scrub_text("\n".join(describe_frames(error, name_cell)), TRACEBACK_CAP_CHARS):
        described["traceback"] = trace
    return described


def describe_shown_error(content: Mapping[str, Any]) -> dict[str, str]:
    """
    The same from the kernel's message to the front end, for kernels without our extension.

    Its traceback quotes the student's code, so it is left out; a syntax error is told apart by its name.
    """
    name, message = str(content.get("ename") or "Error"), str(content.get("evalue") or "")
    is_syntax = name in {"SyntaxError", "IndentationError", "TabError"}
    frames = content.get("traceback")
    arrows = [] if message or not isinstance(frames, list) else _find_arrows("\n".join(map(str, frames[-50:])))
    if is_syntax:  # IPython's "(2814365.py, line 1)" names a file that nobody knows
        message = _MADE_UP_FILE.sub(r"(line \1)", message)
    return {
        "error_name": clean_text(name, 200),
        "error_message": scrub_text(message, MESSAGE_CAP_CHARS),
        "phase": "compile" if is_syntax else "runtime",
    } | ({"failing_print": print_line(arrows[-1])} if arrows else {})


def _find_arrows(traceback: str) -> list[str]:
    """The lines that IPython's traceback points at, the innermost last."""
    return _ARROW.findall(_COLOUR.sub("", traceback[-SCRUBBED_CHARS:]))


def find_failing_line(error: BaseException, name_cell: CellNamer) -> str:
    """The innermost line of a cell on the error's way; "" where there is none."""
    places = [(file, line) for file, line, _ in _walk_frames(error) if name_cell(file) is not None]
    return linecache.getline(*places[-1]) if places else ""


def print_line(line: str) -> str:
    """16 hexadecimal digits of the SHA-256 of a line without its blanks: they tell lines apart, not what they say."""
    return hashlib.sha256("".join(line.split())[:1_000].encode("utf-8", "replace")).hexdigest()[:16]


def describe_frames(error: BaseException, name_cell: CellNamer) -> list[str]:
    """One line a frame, the outermost and innermost ten; IPython's own frames are left out."""
    frames = _walk_frames(error)
    first = list(islice(frames, FRAMES_EACH_END))
    last: deque[Any] = deque(maxlen=FRAMES_EACH_END)
    rest_count = 0
    for frame in frames:
        last.append(frame)
        rest_count += 1
    lines = [_describe_frame(frame, name_cell) for frame in first]
    if rest_count > FRAMES_EACH_END:
        lines.append(f"({rest_count - FRAMES_EACH_END} more)")
    return lines + [_describe_frame(frame, name_cell) for frame in last]


def _walk_frames(error: BaseException) -> Iterator[tuple[str, int, str]]:
    """File, line and function of each frame, the outermost first, without IPython's own."""
    step = error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if "IPython" not in file:
            yield file, step.tb_lineno, step.tb_frame.f_code.co_name
        step = step.tb_next


def _describe_frame(frame: tuple[str, int, str], name_cell: CellNamer) -> str:
    file, line, function = frame
    count = name_cell(file)
    where = f"Cell In[{count}]" if count is not None else "/".join(PurePath(file).parts[-2:])
    return f"{where}, line {line}, in {function}"


def scrub_text(text: str, cap_chars: int) -> str:
    """clean_text() with what looks secret masked; the cut comes last, so that it leaves no half of a secret."""
    return clean_text(mask_secrets(text[: SCRUBBED_CHARS + cap_chars], find_secret_values(os.environ)), cap_chars)


def clean_text(text: str, cap_chars: int) -> str:
    """Text that any JSON reader and database takes: no NUL, no lone surrogate, at most `cap_chars`."""
    text = text if len(text) <= cap_chars else text[: cap_chars - 1] + "…"
    return text.replace("\x00", "�").encode("utf-8", "replace").decode("utf-8")


def find_kernel_id(connection_file: str) -> uuid.UUID:
    """The id in `kernel-<id>.json`, as other observers know it; else one made from the name."""
    name = Path(connection_file).stem.removeprefix("kernel-")
    try:
        return uuid.UUID(name)
    except ValueError:
        unique = f"{connection_file} {os.getpid()} {datetime.now(UTC).isoformat()}"
        return uuid.uuid5(uuid.NAMESPACE_URL, unique)
