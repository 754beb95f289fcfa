"""The supervisor against parts that die on command, on a clock of its own."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from nbpulse.errors import StartupError
from nbpulse.supervisor import Supervisor, read_last_line

FAILED = 1
KILLED = -signal.SIGKILL


class FakePart:
    """A part whose deaths the test decides; its diary says what was done to it."""

    def __init__(self, name: str, diary: list[str]) -> None:
        self.name = name
        self.pid = 1
        self.log_path = Path("/nonexistent/log")
        self.exit_code: int | None = None
        self.starts_fail = False
        self._diary = diary

    def launch(self) -> None:
        self._diary.append(f"{self.name} started")
        if self.starts_fail:
            raise StartupError("NB-3007", server=self.name, pid=1)
        self.pid += 1
        self.exit_code = None

    def poll(self) -> int | None:
        return self.exit_code

    def stop(self, timeout_s: float) -> None:
        self._diary.append(f"{self.name} stopped")


class Stage:
    """Parts under a supervisor, and the hands of its clock."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.diary: list[str] = []
        self.changes = 0
        self.parts = [FakePart(name, self.diary) for name in ("postgresql", "worker", "api")]
        self.api = self.parts[-1]
        self.supervisor = Supervisor(
            self.parts, deaths_limit=5, note_change=self._note_change, clock=lambda: self.now_s
        )

    def _note_change(self) -> None:
        self.changes += 1

    def wait(self, seconds: float) -> None:
        """Time goes by in steps of 50 ms, a look at each."""
        for _ in range(round(seconds / 0.05)):
            self.now_s += 0.05
            self.supervisor.check()

    def measure_restart_s(self, code: int) -> float:
        """The api dies; how long until it is started again."""
        before, died_s = self.api.pid, self.now_s
        self.api.exit_code = code
        self.supervisor.check()
        while self.api.pid == before:
            self.wait(0.05)
        return self.now_s - died_s


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_a_dead_part_is_started_again_after_a_fifth_of_a_second_and_the_others_are_left_alone(stage: Stage) -> None:
    stage.wait(10)
    assert 0.15 <= stage.measure_restart_s(FAILED) <= 0.3
    assert stage.diary == ["api started"]
    assert stage.changes == 1


def test_the_pause_doubles_while_a_part_keeps_failing(stage: Stage) -> None:
    stage.wait(10)
    pauses = [stage.measure_restart_s(FAILED) for _ in range(4)]
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6], abs=0.11)


def test_a_fifth_failure_within_a_minute_is_given_up_aloud(stage: Stage) -> None:
    for _ in range(4):
        stage.measure_restart_s(FAILED)
    stage.api.exit_code = FAILED
    with pytest.raises(StartupError) as caught:
        stage.supervisor.check()
    assert caught.value.code == "NB-3011"
    assert "api died 5 times" in caught.value.title("en")


def test_failures_that_lie_more_than_a_minute_apart_are_forgotten(stage: Stage) -> None:
    for _ in range(20):
        stage.wait(16)
        assert stage.measure_restart_s(FAILED) <= 1.7


def test_kills_from_outside_are_no_failings_of_a_part_that_was_at_work(stage: Stage) -> None:
    for _ in range(20):
        stage.wait(2.6)
        assert stage.measure_restart_s(KILLED) <= 0.3


def test_a_part_that_is_killed_as_soon_as_it_is_there_is_given_up(stage: Stage) -> None:
    for _ in range(5):  # the first had been at work
        stage.measure_restart_s(KILLED)
    stage.api.exit_code = KILLED
    with pytest.raises(StartupError, match="NB-3011"):
        stage.supervisor.check()


def test_a_start_that_fails_counts_as_a_failure_and_is_tried_again(stage: Stage) -> None:
    stage.wait(10)
    stage.api.starts_fail = True
    stage.api.exit_code = FAILED
    stage.wait(0.9)
    assert stage.diary.count("api started") == 2
    stage.api.starts_fail = False
    stage.wait(1)
    assert stage.api.poll() is None


def test_everything_is_stopped_in_the_opposite_order(stage: Stage) -> None:
    stage.supervisor.stop()
    assert stage.diary == ["api stopped", "worker stopped", "postgresql stopped"]


def test_the_last_words_are_the_last_line_that_says_anything(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text("first\nOSError: disk full\n\n")
    assert read_last_line(log) == "OSError: disk full"
    assert read_last_line(tmp_path / "absent.log") == ""
