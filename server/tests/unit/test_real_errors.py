"""Error groups on what real students' programs did: 864 failing cells, which lie beside the checkout where they are."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from nbpulse.classroom.errorgroups import fingerprint_error, fingerprint_mistake, label_error, normalise_message

FILE = Path(__file__).resolve().parents[4] / "shared" / "data" / "student_errors.jsonl.gz"

Run = dict[str, Any]


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    if not FILE.is_file():
        pytest.skip("students' errors are not part of nbpulse; nobody has put them beside this checkout")
    with gzip.open(FILE, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def describe(run: Run, **changes: str) -> dict[str, object]:
    """As a run's event has it."""
    traceback = "\n".join(run["traceback"])
    return {"error_name": run["error_name"], "error_message": run["error_message"], "traceback": traceback} | changes


def find_group(run: Run, **changes: str) -> str:
    return fingerprint_error(run["question"], "check", describe(run, **changes))


def find_failing_check(run: Run) -> str | None:
    """The teacher's line that failed, spelled as the question has it."""
    arrows = [line.split(maxsplit=2)[2] for line in run["traceback"] if re.match(r"-+> \d+ ", line)]
    return arrows[-1] if arrows else None


def test_a_wrong_answer_is_told_by_the_check_that_failed(runs: list[Run]) -> None:
    wrong = [run for run in runs if run["phase"] == "wrong_answer"]
    assert len(wrong) > 500
    assert not any(run["error_message"] for run in wrong), (
        "name and message alone would make one group of each question"
    )
    groups, checks = defaultdict(set), defaultdict(set)
    for run in wrong:
        place = (run["question"], re.sub(r"\s", "", find_failing_check(run) or ""))
        groups[find_group(run)].add(place)
        checks[place].add(find_group(run))
    assert {len(found) for found in groups.values()} == {1}, "one group, one check"
    assert {len(found) for found in checks.values()} == {1}, "one check, one group"
    assert len(groups) > 20


def test_groups_stay_when_cell_numbers_line_numbers_and_blank_lines_change(runs: list[Run]) -> None:
    for run in runs:
        text = "\n".join(run["traceback"])
        other_cell = re.sub(r"In\[\d+\]", "In[977]", text)
        moved = re.sub(
            r"(?m)^(-+> |line |\s+)(\d+)( |$)", lambda found: f"{found[1]}{int(found[2]) + 31}{found[3]}", other_cell
        )
        spread = moved.replace("\n", "\n\n")
        for changed in (other_cell, moved, spread):
            assert find_group(run, traceback=changed) == find_group(run), run["id"]
            assert fingerprint_mistake(describe(run, traceback=changed)) == fingerprint_mistake(describe(run))


def test_the_name_that_is_the_lesson_is_in_the_label_and_numbers_make_no_groups(runs: list[Run]) -> None:
    for run in (run for run in runs if run["error_name"] in ("NameError", "UnboundLocalError")):
        name = re.search(r"'(\w+)'", run["error_message"])
        assert name is not None
        assert label_error(describe(run)) == f"{run['error_name']} {name[1]}"
    numbers = [run for run in runs if run["error_name"] in ("IndexError", "ValueError", "TypeError")]
    assert not any(re.search(r"\d", normalise_message(run["error_name"], run["error_message"])) for run in numbers)


def test_a_run_without_a_traceback_has_a_group_and_a_label(runs: list[Run]) -> None:
    bare = [run for run in runs if not run["traceback"]]
    assert bare
    for run in bare:
        assert re.fullmatch(r"[0-9a-f]{16}", find_group(run))
        assert label_error(describe(run)) == run["error_name"]
