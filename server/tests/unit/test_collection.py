"""What a course collects, in words and in what it lets through. The properties are shared with capture's tests."""

from __future__ import annotations

import itertools
from uuid import uuid4

import pytest

from nbpulse.classroom import Classroom, Learner
from nbpulse.collection import LEVELS, SWITCHES, Policy, Words, list_recorded, make_notice, strip_event, take_stricter
from nbpulse.errors import InvalidInput
from stores import make_error


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("language", ["ja", "en"])
def test_the_notice_says_of_source_and_output_what_is_so(level: str, language: str) -> None:
    notice = getattr(make_notice(1, level, (), Words()).notice, language)  # type: ignore[arg-type]
    recorded, _, rest = notice.partition({"ja": "記録しないもの", "en": "Not recorded"}[language])
    code, shown = {"ja": ("プログラム(", "セルに表示された文字"), "en": ("the code of", "what your cells show")}[
        language
    ]
    assert (code in recorded, shown in recorded) == (level in ("source", "output"), level == "output")
    assert (code in rest, shown in rest) == (level not in ("source", "output"), level != "output")
    assert "withdraw" in notice


def test_what_is_left_out_is_told_as_not_recorded_and_the_course_s_paragraph_ends_the_notice() -> None:
    notice = make_notice(
        2, "metadata", ["error_message", "presence"], Words(ja="目的: 授業改善", en="Purpose: teaching")
    )
    recorded, _, rest = notice.notice.en.partition("Not recorded")
    assert "that you are there" not in recorded
    assert "that you are there" in rest
    assert notice.notice.en.endswith("\nPurpose: teaching")
    assert notice.notice.ja.endswith("\n目的: 授業改善")
    assert not any("error's name" in one for one in list_recorded(notice.policy)["en"])


def test_only_what_can_be_left_out_is_left_out() -> None:
    with pytest.raises(InvalidInput, match="NB-1343") as refused:
        make_notice(1, "metadata", ["help_request", "status", "cell_focus"], Words())
    assert "help_request, status" in refused.value.title("en")
    assert "help_request" not in SWITCHES
    with pytest.raises(InvalidInput, match="NB-1344"):
        make_notice(1, "metadata", [], Words(ja="x" * 4_001))


def test_an_error_s_text_can_be_left_out_and_its_run_is_kept() -> None:
    event = make_error(uuid4(), uuid4())
    kept, dropped = strip_event(event, Policy(without=("error_message",)))
    assert kept is not None
    assert dropped == ("error_message",)
    assert kept.data == {name: value for name, value in event.data.items() if name != "error_message"}
    assert event.data["error_message"], "the event as received is not touched"


def test_the_stricter_of_two_has_the_lower_level_and_leaves_out_what_either_does() -> None:
    for one, other in itertools.product(LEVELS, repeat=2):
        stricter = take_stricter(Policy(5, one, ("tags",)), Policy(2, other, ("cell_focus",)))
        assert stricter == Policy(5, LEVELS[min(LEVELS.index(one), LEVELS.index(other))], ("cell_focus", "tags"))


def test_who_has_paused_is_shown_so_and_neither_needs_help_nor_counts_for_the_class() -> None:
    learners = [Learner(user_id=str(number), name=str(number), number=str(number)) for number in range(3)]
    classroom = Classroom("c", None, learners=learners)
    for learner in learners:
        classroom.hear(learner.user_id, 1_000, "active")
    classroom.hear("0", 2_000, "paused")
    classroom.evaluate(3_000)
    assert [row["st"] for row in classroom.snapshot()["students"]] == ["paused", "ok", "ok"]  # type: ignore[attr-defined]
    assert classroom.snapshot()["connected"] == 2
    classroom.hear("0", 4_000, "")  # something of before the pause was delivered
    classroom.evaluate(4_500)
    assert classroom.snapshot()["counts"]["paused"] == 1  # type: ignore[index]
    classroom.evaluate(4_000 + 61_000)
    assert classroom.snapshot()["counts"]["offline"] == 3  # type: ignore[index]
    classroom.hear("0", 70_000, "idle")
    classroom.evaluate(70_100)
    assert classroom.snapshot()["counts"]["ok"] == 1  # type: ignore[index]
