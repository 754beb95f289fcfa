from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nbpulse_capture.cli import main
from nbpulse_capture.membership import MembershipFile, get_outbox_file
from nbpulse_capture.messages import load_texts, say
from nbpulse_capture.outbox import Outbox
from nbpulse_capture.rows import Verdict

from .conftest import FakeApi

Read = Callable[[], tuple[str, str]]


@pytest.fixture
def joined(student: Path, api: FakeApi, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["join", api.url, "ABCD", "--name", "花子", "--student-number", "s1"]) == 0
    capsys.readouterr()
    return student


def test_joining_keeps_the_token_for_the_owner_only_and_tells_what_is_recorded(
    student: Path, api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["join", f"{api.url}/courses/c-1#x", "ABCD", "--name", "花子", "--resume-code", "R-1"]) == 0
    shown = capsys.readouterr().out
    assert "情報基礎" in shown
    assert "R-77" in shown
    assert "NOT sent: your code" in shown
    assert api.joins == [{"join_code": "ABCD", "display_name": "花子", "resume_code": "R-1"}]
    file = student / "config" / "membership.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    membership = MembershipFile().read()
    assert membership is not None
    assert (membership.url, membership.token) == (api.url, "tok-1")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["join", "ftp://x", "A", "--name", "n"], "NB-7002"),
        (["join", "http://127.0.0.1:99999", "A", "--name", "n"], "NB-7002"),
        (["join", "http://127.0.0.1:9", "A", "--name", "n"], "NB-7003"),
        (["join", "{url}", "WRONG", "--name", "n"], "NB-7004"),
        (["join", "{url}", "A", "--name", " "], "NB-7007"),
        (["leave"], "NB-7001"),
    ],
)
def test_every_refusal_has_a_code_and_says_what_to_do(
    student: Path, api: FakeApi, capsys: pytest.CaptureFixture[str], arguments: list[str], code: str
) -> None:
    assert main([a.format(url=api.url) for a in arguments]) == 1
    assert capsys.readouterr().err.startswith(f"{code}: ")
    assert MembershipFile().read() is None


def test_a_server_that_is_not_ours_is_named_as_such(
    student: Path, api: FakeApi, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from . import conftest

    monkeypatch.setattr(api, "handle", lambda request: conftest.reply(request, 200, "<html>"))
    assert main(["join", api.url, "A", "--name", "n"]) == 1
    assert "NB-7005" in capsys.readouterr().err


def test_the_servers_own_words_are_shown(student: Path, api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    main(["join", api.url, "WRONG", "--name", "n"])
    assert "NB-1202 no such join code" in capsys.readouterr().err


def test_status_counts_what_waits_and_what_was_refused(joined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    membership = MembershipFile().read()
    assert membership is not None
    outbox = Outbox(get_outbox_file())
    for n in range(3):
        outbox.put({"event_id": str(n), "event_type": "cell_execution"}, membership.account)
    outbox.settle(outbox.take_batch(membership.account, 2)[1:], [Verdict("1", "rejected", "NB-1004 too long")])
    outbox.close()
    assert main(["status", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["joined"], status["waiting"], status["set_aside"], status["dropped"]) == (True, 2, 1, 0)
    assert status["refused_events"][0]["reason"] == "NB-1004 too long"
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "NB-7013" in shown
    assert "tok-1" not in shown + json.dumps(status)


def test_status_says_so_when_nobody_has_joined(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 1
    assert "NB-7001" in capsys.readouterr().out


def test_leaving_forgets_the_token_and_erases_the_records(joined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    membership = MembershipFile().read()
    assert membership is not None
    outbox = Outbox(get_outbox_file())
    outbox.put({"event_id": "1", "event_type": "cell_execution"}, membership.account)
    assert main(["leave"]) == 0
    assert outbox.read_last_events(10) == []
    outbox.close()
    assert MembershipFile().read() is None
    assert not (joined / "config" / "membership.json").exists()


def test_what_is_recorded_is_shown_as_sent(joined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outbox = Outbox(get_outbox_file())
    outbox.put({"event_id": "1", "event_type": "cell_execution", "cell_id": "x"}, "a")
    outbox.close()
    assert main(["what-is-recorded"]) == 0
    state, event = capsys.readouterr().out.splitlines()
    assert state == "# waiting"
    assert json.loads(event) == {
        "event_id": "1",
        "event_type": "cell_execution",
        "cell_id": "x",
        "sequence": 1,
    }


def test_texts_follow_lang(student: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LANG", "ja_JP.UTF-8")
    main(["status"])
    assert "まだ授業に参加していません" in capsys.readouterr().out


def test_every_text_exists_in_both_languages_with_the_same_placeholders() -> None:
    import string

    for key, texts in load_texts().items():
        assert set(texts) == {"en", "ja"}, key
        names = [{name for _, name, _, _ in string.Formatter().parse(t) if name} for t in texts.values()]
        assert names[0] == names[1], key


def test_help_shows_examples(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "nbpulse-capture join http://" in capsys.readouterr().out


@pytest.mark.parametrize("order", ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "over\rwritten", "\x7f", "\u202egnp.exe"])
def test_what_a_server_says_gives_the_terminal_no_order(order: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(f"情報{order}\n\tA")
    say(json.dumps({"course": order}, ensure_ascii=False), sys.stderr)
    out, err = capsys.readouterr()
    assert not set(out + err) & set("\x1b\x07\x9b\r\x7f\u202e")
    assert out.startswith("情報")
    assert out.endswith("\n\tA\n")
    assert json.loads(err) == {"course": order}


def test_a_link_to_ones_own_page_is_printed_and_only_for_who_has_joined(
    joined: Path, api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["me"]) == 0
    assert f"{api.url}/me#code=nbp_link_1" in capsys.readouterr().out
    assert main(["leave"]) == 0
    assert main(["me"]) == 1
    assert "NB-7001" in capsys.readouterr().err
