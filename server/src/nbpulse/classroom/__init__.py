"""What a teacher sees, as pure functions: learner state, alert rules, error groups, the board.

No clock, no store, no network: `now_ms` and everything else is passed in, so every API process that is given the same
states shows the same class. Folding events into a state does not depend on their order, nor on how often one comes.
"""

from nbpulse.classroom.board import Alert, Classroom, Column, Learner
from nbpulse.classroom.errorgroups import fingerprint_error, label_error, normalise_message
from nbpulse.classroom.integrity import Sign, Trace, find_signs
from nbpulse.classroom.learners import (
    RUN_EVENT_TYPES,
    CellFold,
    CellState,
    HelpRequest,
    LearnerState,
    Run,
    fold_cells,
    fold_events,
    merge_states,
    to_ms,
)
from nbpulse.classroom.originals import Original, make_original, read_prints, recognise
from nbpulse.classroom.rules import AlertRules, find_streak

__all__ = [
    "RUN_EVENT_TYPES",
    "Alert",
    "AlertRules",
    "CellFold",
    "CellState",
    "Classroom",
    "Column",
    "HelpRequest",
    "Learner",
    "LearnerState",
    "Original",
    "Run",
    "Sign",
    "Trace",
    "find_signs",
    "find_streak",
    "fingerprint_error",
    "fold_cells",
    "fold_events",
    "label_error",
    "make_original",
    "merge_states",
    "normalise_message",
    "read_prints",
    "recognise",
    "to_ms",
]
