"""What a teacher sees, as pure functions: learner state, alert rules, error groups, the board.

No clock, no store, no network: `now_ms` and everything else is passed in, so every API process that is given the same
states shows the same class. Folding events into a state does not depend on their order, nor on how often one comes.
"""

from nbpulse.classroom.attempts import find_repeats, find_streak
from nbpulse.classroom.board import Classroom
from nbpulse.classroom.care import Action, AlertStanding, Care, Claim, fold_actions
from nbpulse.classroom.entries import Alert, Column, Learner
from nbpulse.classroom.errorgroups import (
    NO_GROUPS,
    ErrorGroup,
    ErrorGroups,
    fingerprint_cell,
    fingerprint_error,
    label_error,
    normalise_message,
)
from nbpulse.classroom.integrity import Sign, Trace, find_signs
from nbpulse.classroom.learners import (
    RUN_EVENT_TYPES,
    CellFold,
    CellState,
    HelpRequest,
    KernelWord,
    LearnerState,
    Run,
    fold_cells,
    fold_events,
    merge_states,
    to_ms,
)
from nbpulse.classroom.originals import Original, make_original, read_prints, recognise
from nbpulse.classroom.projection import project
from nbpulse.classroom.rules import DEFAULT_RULES, LIMITS, URGENCY, AlertRules, check_rules
from nbpulse.classroom.shared import SharedError, group_errors, is_current, list_errors
from nbpulse.classroom.trial import Fired, Trial, try_rules

__all__ = [
    "DEFAULT_RULES",
    "LIMITS",
    "NO_GROUPS",
    "RUN_EVENT_TYPES",
    "URGENCY",
    "Action",
    "Alert",
    "AlertRules",
    "AlertStanding",
    "Care",
    "CellFold",
    "CellState",
    "Claim",
    "Classroom",
    "Column",
    "ErrorGroup",
    "ErrorGroups",
    "Fired",
    "HelpRequest",
    "KernelWord",
    "Learner",
    "LearnerState",
    "Original",
    "Run",
    "SharedError",
    "Sign",
    "Trace",
    "Trial",
    "check_rules",
    "find_repeats",
    "find_signs",
    "find_streak",
    "fingerprint_cell",
    "fingerprint_error",
    "fold_actions",
    "fold_cells",
    "fold_events",
    "group_errors",
    "is_current",
    "label_error",
    "list_errors",
    "make_original",
    "merge_states",
    "normalise_message",
    "project",
    "read_prints",
    "recognise",
    "to_ms",
    "try_rules",
]
