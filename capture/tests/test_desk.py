"""What the front end may ask of this computer: joining, the state, the raised hand, what it saw."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbpulse_capture.desk import Desk, describe_place, list_texts
from nbpulse_capture.execution import describe_event
from nbpulse_capture.membership import MembershipFile, forget_membership, get_outbox_file
from nbpulse_capture.messages import RefusedError
from nbpulse_capture.outbox import Outbox

from .conftest import FakeApi, wait_until

ASKED = {"url": "", "code": "ABCD", "name": " 花子 ", "student_number": "s1"}


class Recorder:
    """Stores what it is given as the server extension does."""

    def __init__(self) -> None:
        self.put_events: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self.presence: list[dict[str, Any]] = []
        self.faults: list[str] = []

    def put(self, event_type: str, common: dict[str, Any], data: dict[str, Any]) -> str:
        self.put_events.append((event_type, common, data))
        event = describe_event(event_type, common, data)
        if (membership := MembershipFile().read()) is not None:
            outbox = Outbox(get_outbox_file())
            outbox.put(event, membership.account)
            outbox.close()
        return str(event["event_id"])

    def note_presence(self, common: dict[str, Any], data: dict[str, Any]) -> None:
        self.presence.append(common | {"data": data})

    def note_fault(self, words: str) -> None:
        self.faults.append(words)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def desk(student: Path, recorder: Recorder) -> Iterator[Desk]:
    one = Desk(recorder)
    yield one
    one.close()


def test_joining_says_who_one_is_now_and_the_state_follows_at_once(desk: Desk, api: FakeApi) -> None:
    before = desk.wait_for_state(-1, 0)
    assert (before["joined"], before["server"]) == (False, "none")
    heard: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: heard.append(desk.wait_for_state(before["revision"], 20)))
    waiting.start()
    said = desk.join(ASKED | {"url": f"{api.url}/courses/c-1#x"})
    waiting.join(5)
    assert said == {"course": "情報基礎", "name": "花子", "resume_code": "R-77", "is_waiting": False}
    assert api.joins == [{"join_code": "ABCD", "display_name": "花子", "student_number": "s1"}]
    assert heard[0]["joined"]
    assert (heard[0]["course"], heard[0]["name"], heard[0]["address"]) == ("情報基礎", "花子", api.url)
    assert "tok-1" not in str(heard[0]), "the token is not the browser's business"


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"code": "WRONG"}, "NB-7004"),
        ({"name": "  "}, "NB-7007"),
        ({"url": ""}, "NB-7007"),
        ({"url": "ftp://x"}, "NB-7002"),
        ({"url": "http://127.0.0.1:9"}, "NB-7003"),
        ({"code": None}, "NB-7007"),
    ],
)
def test_a_refusal_says_what_to_do_and_changes_nothing(
    desk: Desk, api: FakeApi, asked: dict[str, Any], code: str
) -> None:
    with pytest.raises(RefusedError) as refused:
        desk.join(ASKED | {"url": api.url} | asked)
    assert refused.value.code == code
    assert MembershipFile().read() is None


def test_a_hand_goes_up_and_down_and_is_shown_before_the_class_has_heard_of_it(
    desk: Desk, api: FakeApi, recorder: Recorder
) -> None:
    with pytest.raises(RefusedError, match="NB-7001"):
        desk.raise_hand("week1.ipynb", "?")
    desk.join(ASKED | {"url": api.url})
    desk.raise_hand("RTC:授業/week1.ipynb", " 図が\x00出ません ")
    up = desk.wait_for_state(-1, 0)
    assert up["help"]["open"]
    assert abs(up["help"]["since"] / 1000 - time.time()) < 5
    assert up["waiting"] == 1
    desk.take_down("授業/week1.ipynb")
    down = desk.wait_for_state(-1, 0)["help"]
    assert down is None or not down["open"], "None: the desk has looked again since"
    place = {"notebook_path": "授業/week1.ipynb", "notebook_id": None}
    assert recorder.put_events == [
        ("help_request", place, {"message": "図が�出ません"}),
        ("help_cancel", place, {}),
    ]


def test_what_the_class_says_reaches_the_front_end_once(desk: Desk, api: FakeApi) -> None:
    text = {"en": "The class is over.", "ja": "授業は終わりました。"}
    api.inbox = {"messages": [{"kind": "class_ended", "at": 17, "text": text}], "help": {"open": False, "since": 9}}
    api.inbox["after"] = 17
    desk.join(ASKED | {"url": api.url})
    desk.wait_for_state(-1, 0)
    wait_until(lambda: desk.wait_for_state(-1, 0)["unread"] == 1)
    wait_until(lambda: any("after=17" in path for path in api.inbox_asked))
    (message,) = desk.list_messages()
    assert (message["id"], message["text"], message["at"]) == ("class_ended 17", text, 17)
    assert desk.wait_for_state(-1, 0)["help"] == {"open": False, "since": 9}
    revision = desk.wait_for_state(-1, 0)["talk"]
    desk.decide("class_ended 17", "shown")
    assert (desk.wait_for_state(-1, 0)["unread"], desk.wait_for_state(-1, 0)["talk"]) == (0, revision + 1)


def test_a_hand_out_is_joined_by_as_it_was_pasted(desk: Desk, api: FakeApi) -> None:
    desk.join({"name": "花子", "invitation": f"ABCD@{api.url.removeprefix('http://')}"})
    desk.join({"name": "花子", "invitation": "EFGH", "url": api.url})
    assert [one["join_code"] for one in api.joins] == ["ABCD", "EFGH"]


def test_a_fault_of_the_front_end_is_counted(desk: Desk, recorder: Recorder) -> None:
    desk.note_fault("TypeError: x\x00 is undefined" + "." * 1000)
    assert recorder.faults[0].startswith("TypeError: x")
    assert len(recorder.faults[0]) <= 300


def test_only_what_a_front_end_can_see_is_taken_from_it(desk: Desk, api: FakeApi, recorder: Recorder) -> None:
    desk.join(ASKED | {"url": api.url})
    taken = desk.observe(
        [
            {"event_type": "cell_execution", "path": "a.ipynb", "data": {"status": "ok"}},
            {"event_type": "cell_focus", "path": "a.ipynb", "cell_id": "c1", "cell_index": 3, "user_id": "somebody"},
            {"event_type": "presence", "path": "a.ipynb", "data": {"state": "active", "typing": True}},
            "nonsense",
            {"event_type": "cell_change", "path": "a.ipynb", "data": "nonsense"},
        ]
    )
    assert taken == 3
    place = {"notebook_path": "a.ipynb", "notebook_id": None}
    assert recorder.put_events == [
        ("cell_focus", place | {"cell_id": "c1", "cell_index": 3}, {}),
        ("cell_change", place, {}),
    ]
    assert recorder.presence == [place | {"data": {"state": "active", "typing": True}}]


def test_leaving_in_a_terminal_is_seen_by_the_front_end(desk: Desk, api: FakeApi) -> None:
    desk.join(ASKED | {"url": api.url})
    joined = desk.wait_for_state(-1, 0)
    forget_membership()
    assert not desk.wait_for_state(joined["revision"], 10)["joined"]


def test_every_text_of_the_front_end_is_there_in_both_languages() -> None:
    rooms = Path(__file__).resolve().parents[1] / "labextension" / "static"
    sources = [room.read_text(encoding="utf-8") for room in sorted(rooms.glob("*.js"))]
    used = {word for source in sources for word in re.findall(r"(?<![\w.])texts\.(\w+)", source)}
    assert used == list_texts("en").keys() == list_texts("ja").keys()


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/b.ipynb", "a/b.ipynb"), ("RTC:a.ipynb", "a.ipynb"), ("/a.ipynb", "a.ipynb"), (None, "unknown")],
)
def test_a_path_is_what_the_contents_service_calls_it(path: object, name: str) -> None:
    assert describe_place(path)["notebook_path"] == name


def test_who_looked_is_told_in_the_student_s_language_and_without_what_they_did_themselves(
    desk: Desk, api: FakeApi
) -> None:
    with pytest.raises(RefusedError) as nobody:
        desk.list_looks("ja")
    assert nobody.value.code == "NB-7001"
    desk.join(ASKED | {"url": api.url})
    with pytest.raises(RefusedError) as old:
        desk.list_looks("ja")
    assert old.value.code == "NB-7087"
    words = {"en": "looked at the class's work", "ja": "クラス全体の学習状況を見ました"}
    look = {"id": 2, "at": "2026-11-26T01:02:03Z", "action": "class_viewed", "text": words, "course_title": "x"}
    api.audit = [look | {"by": "田中", "is_mine": False}, look | {"by": None, "is_mine": False}]
    api.audit.append(look | {"by": "花子", "is_mine": True})
    assert desk.list_looks("ja") == [
        {"at": look["at"], "by": "田中", "text": words["ja"]},
        {"at": look["at"], "by": "", "text": words["ja"]},
    ]
    assert desk.list_looks("en")[0]["text"] == words["en"]
    api.close()
    with pytest.raises(RefusedError) as away:
        desk.list_looks("en")
    assert away.value.code == "NB-7003"


def test_the_link_to_ones_own_page_is_made_anew_each_time_and_only_for_who_has_joined(desk: Desk, api: FakeApi) -> None:
    with pytest.raises(RefusedError) as nobody:
        desk.make_own_link()
    assert nobody.value.code == "NB-7001"
    desk.join(ASKED | {"url": api.url})
    assert desk.make_own_link() == f"{api.url}/me#code=nbp_link_1"
    api.own_page_url = "https://class.example/me#code=nbp_link_1"
    assert desk.make_own_link() == api.own_page_url
    api.own_page_url = "javascript:alert(1)"
    assert desk.make_own_link() == f"{api.url}/me#code=nbp_link_1"
    api.close()
    with pytest.raises(RefusedError) as away:
        desk.make_own_link()
    assert away.value.code == "NB-7003"
