from __future__ import annotations

import asyncio
import linecache
import uuid
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nbpulse_capture.execution import (
    Run,
    clean_text,
    describe_error,
    describe_execution,
    describe_frames,
    describe_shown_error,
    find_kernel_id,
    make_event_id,
)
from nbpulse_capture.websocket import describe_cell

KERNEL = uuid.UUID("7d6a0a43-2b53-4d6f-9b9b-1c2d3e4f5a6b")


def describe(result: Any, propagating: BaseException | None = None) -> dict[str, Any]:
    run = Run(KERNEL, "m-1", {"notebook_path": "a.ipynb"})
    event = describe_execution(run, result, duration_ms=1.23456, propagating=propagating)
    data: dict[str, Any] = event["data"]
    return data


def make_result(*, before: BaseException | None = None, during: BaseException | None = None) -> Any:
    return SimpleNamespace(execution_count=3, error_before_exec=before, error_in_exec=during, info=None)


def test_two_observers_of_one_run_agree_on_its_id() -> None:
    assert make_event_id(KERNEL, "m", "end") == make_event_id(uuid.UUID(str(KERNEL)), "m", "end")
    assert len({make_event_id(KERNEL, m, p) for m in ("m", "n") for p in ("start", "end")}) == 4


def test_the_kernels_id_is_the_one_in_the_name_of_its_connection_file() -> None:
    assert find_kernel_id(f"/run/kernel-{KERNEL}.json") == KERNEL
    assert find_kernel_id("/tmp/other.json") != find_kernel_id("/tmp/another.json")


def test_every_way_a_run_can_end() -> None:
    assert describe(make_result())["status"] == "ok"
    assert describe(make_result(during=KeyboardInterrupt()))["status"] == "interrupted"
    assert describe(make_result(during=asyncio.CancelledError()))["status"] == "interrupted"
    assert describe(None)["status"] == "interrupted"
    assert describe(None, asyncio.CancelledError())["status"] == "interrupted"
    assert describe(None, MemoryError())["error_name"] == "MemoryError"
    assert describe(make_result(before=SyntaxError("bad")))["phase"] == "compile"
    assert describe(make_result(during=SyntaxError("bad")))["phase"] == "runtime", "an eval() inside the cell"
    assert describe(make_result())["execution_duration_ms"] == 1.235


def test_an_error_whose_text_cannot_be_made_is_still_described() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise SystemExit

    assert describe_error(Odd(), "runtime", lambda _: None)["error_name"] == "Odd"


def test_six_thousand_frames_become_twenty_one_lines() -> None:
    def fail(n: int) -> None:
        if n == 0:
            raise ValueError
        fail(n - 1)

    try:
        fail(800)
    except ValueError as error:
        lines = describe_frames(error, lambda _: None)
    assert len(lines) == 21
    assert lines[10] == "(782 more)"


CHECKS = (
    "def search(x):\n    return 0\n\nassert search(1) == 0\nassert  search(2) == 2\nassert search(3) == 3, 'three'\n"
)


def fail_in_a_cell(source: str, file: str = "/tmp/ipykernel_1/77.py") -> dict[str, str]:
    """As a kernel runs a cell, whose text it keeps where Python looks for files' lines."""
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    try:
        exec(compile(source, file, "exec"), {})
    except AssertionError as error:
        return describe_error(error, "runtime", lambda name: 3 if name == file else None)
    finally:
        del linecache.cache[file]
    raise LookupError


def test_of_an_error_without_a_message_the_failing_line_is_told_by_a_print() -> None:
    described = fail_in_a_cell(CHECKS)
    assert (described["error_name"], described["error_message"]) == ("AssertionError", "")
    # The server makes the same of a traceback that quotes the line: server/tests/unit/test_classroom.py.
    assert described["failing_print"] == "20dc915b04dd94bc"
    assert "search(2)" not in str(described)
    moved = fail_in_a_cell("\n\n# more\n" + CHECKS.replace("assert  search(2)", "assert search(2)"))
    assert moved["failing_print"] == described["failing_print"]
    other = fail_in_a_cell(CHECKS.replace("search(1) == 0", "search(1) == 9"))
    assert other["failing_print"] != described["failing_print"]
    assert "failing_print" not in fail_in_a_cell("assert 1 == 2, 'no'\n"), "the message tells already"


def test_a_kernel_without_our_extension_shows_the_line_itself_and_only_the_print_is_kept() -> None:
    shown = {
        "ename": "AssertionError",
        "evalue": "",
        "traceback": [
            "\x1b[31m---------------------\x1b[39m",
            "Cell \x1b[32mIn[9]\x1b[39m, line 5",
            "\x1b[32m----> 5\x1b[39m \x1b[38;5;28;01massert\x1b[39;00m search(2) == 2\n",
            "\x1b[31mAssertionError\x1b[39m: ",
        ],
    }
    assert describe_shown_error(shown)["failing_print"] == "20dc915b04dd94bc"
    assert "search" not in str(describe_shown_error(shown))
    for odd in (None, 3, [], ["---> x"], ["-" * 50_000], [None]):
        assert "failing_print" not in describe_shown_error(shown | {"traceback": odd})


def test_paths_in_tracebacks_are_cut_to_their_last_two_parts() -> None:
    try:
        raise ValueError
    except ValueError as error:
        [line] = describe_frames(error, lambda _: None)
    assert line.startswith("tests/test_execution.py, line ")


@given(st.text(st.characters(codec=None)))
def test_clean_text_is_utf_8_without_nul_and_never_longer(text: str) -> None:
    cleaned = clean_text(text, 20)
    cleaned.encode()
    assert "\x00" not in cleaned
    assert len(cleaned) <= 20


def test_lone_surrogates_are_replaced() -> None:
    assert clean_text("a\ud800b", 20) == "a?b"


def test_exercise_ids_come_from_our_metadata_or_nbgraders() -> None:
    assert describe_cell("c", {"nbpulse": {"exercise_id": "ex-1"}})["exercise_id"] == "ex-1"
    assert describe_cell("c", {"nbgrader": {"grade_id": "g-1"}})["exercise_id"] == "g-1"
    assert describe_cell("c", {"nbpulse": 3, "nbgrader": []})["exercise_id"] is None
