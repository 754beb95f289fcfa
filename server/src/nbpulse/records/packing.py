"""The column `learner_states.state`: what of a learner's state has no column of its own, packed.

It is written whole with nearly every event, and PostgreSQL compresses what is over 2 kB anew each time. So the
name of a notebook or cell is stored once.
"""

from __future__ import annotations

import msgspec

from nbpulse.classroom import HelpRequest, KernelWord, LearnerState, Run


class _PackedRun(msgspec.Struct, frozen=True, array_like=True):
    """A `Run`; of its notebook and its cell the places in `StoredState.names`."""

    before_last_ms: int
    sequence: int
    event_id: str
    notebook: int
    cell: int
    status: str
    label: str
    fingerprint: str
    mistake: str
    duration_ms: int


class StoredState(msgspec.Struct, omit_defaults=True):
    """What the column holds. `recent`: the runs in states stored before they were packed."""

    last_activity_ms: int = 0
    last_run_ms: int = 0
    notebook_id: str | None = None
    notebook_at_ms: int = 0
    recent: tuple[Run, ...] = ()
    help: HelpRequest = HelpRequest()
    kernel: KernelWord = KernelWord()
    names: tuple[str, ...] = ()
    runs: tuple[_PackedRun, ...] = ()


_decode = msgspec.msgpack.Decoder(StoredState).decode
_encode = msgspec.msgpack.Encoder().encode


def pack_state(state: LearnerState) -> bytes:
    """The column's value; without the help line, which is sealed in a column of its own."""
    names: dict[str, int] = {}
    runs = tuple(
        _PackedRun(
            state.last_run_ms - run.at_ms,
            run.sequence,
            run.event_id,
            names.setdefault(run.notebook_id, len(names)),
            names.setdefault(run.cell_id, len(names)),
            run.status,
            run.label,
            run.fingerprint,
            run.mistake,
            run.duration_ms,
        )
        for run in state.recent
    )
    return _encode(
        StoredState(
            last_activity_ms=state.last_activity_ms,
            last_run_ms=state.last_run_ms,
            notebook_id=state.notebook_id,
            notebook_at_ms=state.notebook_at_ms,
            help=msgspec.structs.replace(state.help, text=None),
            kernel=state.kernel,
            names=tuple(names),
            runs=runs,
        )
    )


def unpack_state(packed: bytes) -> StoredState:
    """The same, `recent` being the runs whenever it was stored."""
    stored = _decode(packed)
    if stored.runs:
        names, last_ms = stored.names, stored.last_run_ms
        stored.recent = tuple(
            Run(
                last_ms - run.before_last_ms,
                run.sequence,
                run.event_id,
                names[run.notebook],
                names[run.cell],
                run.status,
                run.label,
                run.fingerprint,
                run.mistake,
                run.duration_ms,
            )
            for run in stored.runs
        )
    return stored
