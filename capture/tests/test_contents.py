"""Source and output of a run: masked, and cut so that the server takes the event."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbpulse.events import EVENT_BYTES_MAX
from nbpulse_capture.contents import EVENT_CAP_BYTES, MARK, TEXT_CAP_BYTES, OutputText, cut, fit_contents, measure

SECRET = "AKIAIOSFODNN7EXAMPLE"


def make(**data: Any) -> dict[str, Any]:
    return {"event_type": "cell_execution", "cell_id": "a", "data": {"status": "ok"} | data}


def test_a_short_text_is_kept_as_it_is_and_an_event_without_any_is_untouched() -> None:
    event = make(source="x = 1\nprint('こんにちは')", output="こんにちは\n")
    assert fit_contents(event) == event
    plain = make()
    assert fit_contents(plain) is plain


@pytest.mark.parametrize("name", ["source", "output"])
def test_what_looks_secret_is_masked(name: str) -> None:
    text = fit_contents(make(**{name: f"password = 'hunter22'\nkey = '{SECRET}'\nmail = 'a.student@school.example'"}))
    kept = text["data"][name]
    assert not any(one in kept for one in ("hunter22", SECRET, "a.student"))
    assert "[masked]" in kept


def test_a_secret_variable_s_value_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_API_TOKEN", "plain-words-here")
    assert "plain-words-here" not in fit_contents(make(output="it is plain-words-here"))["data"]["output"]


@pytest.mark.parametrize("letter", ["x", "あ", "\n", '"', "\\", "\x1f", "🎈"])
def test_texts_of_any_letters_fit_the_server_s_limit_together(letter: str) -> None:
    event = fit_contents(make(source=letter * 30_000, output=letter * 30_000, traceback="t" * 6_000))
    raw = json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()
    assert len(raw) <= EVENT_CAP_BYTES < EVENT_BYTES_MAX
    assert event["data"]["source"].endswith(MARK)
    assert len(event["data"]["source"]) > 1_000


@given(st.text(max_size=300), st.integers(20, 200))
def test_a_cut_text_is_the_beginning_and_stays_under_the_cap(text: str, cap_bytes: int) -> None:
    done = cut(text, cap_bytes)
    assert measure(done) <= cap_bytes
    assert done == text or (done.endswith(MARK) and text.startswith(done.removesuffix(MARK)))


@settings(max_examples=20)
@given(st.integers(19_900, 20_100))
def test_no_half_of_a_secret_is_left_at_the_cut(position: int) -> None:
    kept = fit_contents(make(source="#" * (position - 10) + f" {SECRET} " + "#" * 5_000))["data"]["source"]
    assert SECRET[:8] not in kept
    assert measure(kept) <= TEXT_CAP_BYTES


def test_colours_are_left_out() -> None:
    assert fit_contents(make(output="\x1b[31mred\x1b[0m"))["data"]["output"] == "red"


def test_output_is_text_of_every_kind_and_a_flood_is_taken_in_no_further() -> None:
    shown = OutputText()
    shown.take("stream", {"name": "stdout", "text": "a\n"})
    shown.take("execute_result", {"data": {"text/plain": "42", "text/html": "<b>42</b>"}})
    shown.take("display_data", {"data": {"image/png": "iVBOR"}})
    assert shown.text == "a\n42\n"
    for _ in range(100):
        shown.take("stream", {"text": "x" * 1_000})
    assert shown.is_full
    assert len(shown.text) < 42_000
