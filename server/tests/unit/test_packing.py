"""How a learner's state is stored: nothing of it is lost, and what was stored before is read."""

from __future__ import annotations

from uuid import uuid4

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from nbpulse.classroom import HelpRequest, KernelWord, LearnerState, Run
from nbpulse.classroom.learners import RECENT_RUNS
from nbpulse.records.packing import pack_state, unpack_state

LAST_MS = 1_700_000_000_000
words = st.text(max_size=12)
runs = st.builds(
    Run,
    at_ms=st.integers(0, LAST_MS),
    sequence=st.integers(0, 2**40),
    event_id=st.uuids().map(lambda one: one.hex[:8]),
    notebook_id=st.uuids().map(str),
    cell_id=words,
    status=st.sampled_from(["ok", "error", "interrupted"]),
    label=words,
    fingerprint=words,
    mistake=words,
    duration_ms=st.integers(0, 10**9),
)


@given(recent=st.lists(runs, max_size=RECENT_RUNS))
def test_what_is_packed_comes_back_whole(recent: list[Run]) -> None:
    line = uuid4().hex  # which no word above can be
    state = LearnerState(
        *("u", "c"),
        last_activity_ms=LAST_MS + 5,
        last_run_ms=LAST_MS,
        notebook_id=str(uuid4()),
        notebook_at_ms=LAST_MS,
        recent=tuple(sorted(recent)),
        help=HelpRequest(opened_ms=5, text=line),
        kernel=KernelWord(1, 2, "died"),
    )
    packed = pack_state(state)
    assert line.encode() not in packed
    stored = unpack_state(packed)
    for name in ("last_activity_ms", "last_run_ms", "notebook_id", "notebook_at_ms", "recent", "kernel"):
        assert getattr(stored, name) == getattr(state, name), name
    assert stored.help == msgspec.structs.replace(state.help, text=None)


def test_twenty_runs_of_one_notebook_fit_into_a_row_that_is_not_compressed() -> None:
    notebook = str(uuid4())
    recent = tuple(
        Run(LAST_MS - 60_000 * n, 4_000 - n, uuid4().hex[:8], notebook, str(uuid4()), "ok", duration_ms=900)
        for n in range(RECENT_RUNS)
    )
    state = LearnerState("u", "c", last_run_ms=LAST_MS, recent=recent)
    assert len(pack_state(state)) < 1_600


def test_runs_that_were_stored_before_are_read() -> None:
    recent = (Run(LAST_MS, 1, uuid4().hex, str(uuid4()), "a", "ok"),)
    before = {"last_run_ms": LAST_MS, "recent": [msgspec.structs.astuple(one) for one in recent]}
    assert unpack_state(msgspec.msgpack.encode(before)).recent == recent
