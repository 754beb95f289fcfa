from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbpulse_capture.runs import Ended, KernelRuns, SeenRun, Started

T0 = datetime(2026, 11, 25, 1, 2, 3, tzinfo=UTC)
ENDINGS = {"ok", "error", "interrupted", "aborted", "kernel_died", "unknown"}
ids = st.sampled_from(["m1", "m2", "m3"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), ids),
        st.tuples(st.just("ignore"), ids),
        st.tuples(st.just("begin"), ids),
        st.tuples(st.just("error"), ids),
        st.tuples(st.just("told"), ids),
        st.tuples(st.just("output"), ids),
        st.tuples(st.just("finish"), ids),
        st.tuples(st.just("interrupt"), st.just("")),
        st.tuples(st.just("close"), st.sampled_from(["interrupted", "kernel_died", "unknown"])),
    ),
    max_size=40,
)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def play(runs: KernelRuns, step: tuple[str, str], second: int) -> list[Started | Ended]:
    name, what = step
    if name == "begin":
        return list(runs.begin(what, at(second), second))
    if name == "finish":
        return list(runs.finish(what, at(second)))
    if name == "close":
        return list(runs.close(what, at(second)))  # type: ignore[arg-type]
    actions: dict[str, Any] = {
        "submit": lambda: runs.submit(what, {"cell_id": what}, {}),
        "ignore": lambda: runs.ignore(what),
        "error": lambda: runs.note_error(what, {"error_name": "NameError"}),
        "told": lambda: runs.note_told(what, {"status": "ok"}),
        "output": lambda: runs.note_output(what, 7),
        "interrupt": runs.note_interrupt,
    }
    actions[name]()
    return []


@given(steps)
def test_whatever_is_seen_in_whatever_order_a_run_starts_once_and_ends_once(given_steps: list[tuple[str, str]]) -> None:
    runs = KernelRuns()
    started: list[str] = []
    ended: dict[str, Ended] = {}
    for second, step in enumerate(given_steps):
        for told in play(runs, step, second):
            msg_id = told.run.msg_id
            assert msg_id not in ended, "told of a run that had ended"
            if isinstance(told, Started):
                assert msg_id not in started
                started.append(msg_id)
            else:
                ended[msg_id] = told
                assert told.status in ENDINGS
                assert (told.status == "aborted") == (msg_id not in started)
                assert told.duration_ms is None or told.duration_ms >= 0
    rest = {end.run.msg_id for end in runs.close("unknown", at(99))}
    assert runs.open_count == 0
    assert set(started) <= set(ended) | rest | {m for n, m in given_steps if n == "ignore"}
    assert not rest & set(ended)


@given(steps)
def test_what_is_to_be_ignored_is_never_told_of_afterwards(given_steps: list[tuple[str, str]]) -> None:
    runs = KernelRuns()
    runs.ignore("m1")
    told = [t for second, step in enumerate(given_steps) for t in play(runs, step, second)]
    assert "m1" not in {t.run.msg_id for t in told}


def run_one(*, error: str | None = None, told: dict[str, Any] | None = None, interrupt: bool = False) -> Ended:
    runs = KernelRuns()
    runs.submit("m", {"cell_id": "c"}, {})
    runs.begin("m", at(0), 1)
    if interrupt:
        runs.note_interrupt()
    if error:
        runs.note_error("m", {"error_name": error})
    if told:
        runs.note_told("m", told)
    [ended] = runs.finish("m", at(2.5))
    return ended


@pytest.mark.parametrize(
    ("seen", "status"),
    [
        ({}, "ok"),
        ({"error": "NameError"}, "error"),
        ({"error": "KeyboardInterrupt"}, "interrupted"),
        ({"error": "CancelledError"}, "interrupted"),
        ({"interrupt": True}, "interrupted"),
        ({"interrupt": True, "told": {"status": "ok"}}, "ok"),
        ({"interrupt": True, "error": "ValueError"}, "error"),
        ({"error": "NameError", "told": {"status": "interrupted"}}, "interrupted"),
        ({"told": {"status": "nonsense"}}, "ok"),
    ],
)
def test_how_a_run_ended_is_judged_from_all_that_was_seen(seen: dict[str, Any], status: str) -> None:
    assert run_one(**seen).status == status


def test_the_kernels_own_duration_comes_before_ours() -> None:
    assert run_one().duration_ms == 2500.0
    assert run_one(told={"execution_duration_ms": 12.5}).duration_ms == 12.5
    assert run_one(told={"execution_duration_ms": "long"}).duration_ms == 2500.0


def test_a_kernel_that_dies_ends_what_ran_and_aborts_what_waited() -> None:
    runs = KernelRuns()
    runs.submit("m1", {"cell_id": "a"}, {})
    runs.submit("m2", {"cell_id": "b"}, {})
    runs.begin("m1", at(0), 1)
    ended = runs.close("kernel_died", at(1))
    assert [(end.run.cell["cell_id"], end.status, end.duration_ms) for end in ended] == [
        ("a", "kernel_died", None),
        ("b", "aborted", None),
    ]
    assert runs.finish("m1", at(2)) == []


def test_a_kernel_quicker_than_the_websocket_still_gets_its_cell() -> None:
    runs = KernelRuns()
    [started] = runs.begin("m", at(0), 3)
    runs.submit("m", {"cell_id": "late"}, {})
    assert started.run.cell == {"cell_id": "late"}
    assert runs.finish("m", at(1))[0].run.execution_count == 3


def test_a_request_that_was_never_seen_and_never_ran_is_nothing() -> None:
    assert KernelRuns().finish("kernel-info", T0) == []
    assert KernelRuns().open_count == 0
    assert SeenRun("m").cell == {}
