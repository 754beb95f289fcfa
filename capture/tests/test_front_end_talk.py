"""The talk with the class in JupyterLab and Notebook 7: messages, answers, the hand, and changes that are offered."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nbpulse_capture.membership import Membership, write_membership
from student_browser import HAND, STATE, TALK, Desk, both_front_ends, open_desk, write_notebook

from .conftest import FakeApi
from .recorded import Recorded

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

OFFERED = "values = [1, 2, 3]\nprint(values)"
SOURCE = "values = [1, 2]\nprint(values)"
ANSWER = f"{TALK} textarea"
slow = pytest.mark.slow
each_look = pytest.mark.parametrize(
    ("language", "theme"),
    [
        ("ja", "light"),
        ("en", "dark"),
        pytest.param("ja", "dark", marks=slow),
        pytest.param("en", "light", marks=slow),
    ],
)
Open = Callable[..., AbstractAsyncContextManager[Desk]]


@pytest.fixture
def open_joined(installed_python: Path, student: Path, api: FakeApi, chromium_path: str) -> Open:
    """A student of the class that `api` plays, with a notebook open."""
    write_notebook(student / "授業")

    @asynccontextmanager
    async def open_it(program: str, **given: Any) -> AsyncIterator[Desk]:
        who = Membership(url=api.url, token="tok-1", user_id="u-1", course_id="c-1", course_title="情報基礎")
        write_membership(Membership(**vars(who) | {"display_name": "佐藤 花子", "resume_code": "R-77"}))
        async with open_desk(installed_python, student, chromium_path, program, **given) as desk:
            yield desk

    return open_it


class Teacher:
    """Says things through the class's inbox."""

    def __init__(self, api: FakeApi) -> None:
        self._api = api
        self._said: list[dict[str, Any]] = []
        self.thread_id = str(uuid.uuid4())

    def say(self, text: object, kind: str = "message", *, by: str | None = "田中", **given: Any) -> str:
        message = {"id": str(uuid.uuid4()), "kind": kind, "at": round(time.time() * 1000), "from": by}
        message |= {"is_mine": False, "text": text, "thread_id": self.thread_id, "state": "sent", "offer": None} | given
        self._said.append(message)
        self._tell()
        return str(message["id"])

    def offer(self, text: str = "3も入れましょう", cell_id: str = "second", source: str = OFFERED) -> str:
        offer = {"notebook_path": "week1.ipynb", "notebook_id": None, "cell_id": cell_id, "source": source}
        return self.say(text, "offer", offer=offer)

    def show_help(self, **standing: Any) -> None:
        self._api.inbox |= {"help": {"open": True, "since": 0, "coming": None, "place": None} | standing}

    def _tell(self) -> None:
        self._api.inbox |= {"messages": list(self._said), "after": self._api.inbox["after"] + 1}

    def hears(self, method: str, **content: Any) -> bool:
        return any(one == method and content.items() <= body.items() for one, _, body in self._api.told)


@pytest.fixture
def teacher(api: FakeApi) -> Teacher:
    return Teacher(api)


async def read_cell(desk: Desk, number: int = 1) -> str:
    found = await desk.page.locator(f".jp-CodeCell >> nth={number} >> .cm-line").all_inner_texts()
    return "\n".join(found)


@both_front_ends
async def test_the_class_is_heard_and_answered_by_keyboard(
    open_joined: Open, teacher: Teacher, api: FakeApi, recorded: Recorded, program: str
) -> None:
    async with open_joined(program) as desk:
        page = desk.page
        await desk.says(STATE, "Connected")
        teacher.say('<img src=x onerror="window.hacked = 1">\n10分で終わります', "announcement", by="田中")
        await desk.says(STATE, "1 new")
        await desk.says(".Toastify", "10分で終わります")
        await page.focus(STATE)
        await page.keyboard.press("Enter")
        await desk.says(f"{TALK} [role=log]", "10分で終わります")
        await recorded.wait_until(lambda: teacher.hears("PUT", state="shown"))
        await page.wait_for_function("() => !document.querySelector('.nbpulse-state').innerText.includes('new')")
        await page.wait_for_selector(f"{ANSWER}:focus")
        assert await page.get_attribute(f"{TALK} [role=log]", "aria-live") == "polite"

        await page.keyboard.type("わかり")
        teacher.say("あと5分です")
        await desk.says(f"{TALK} [role=log]", "あと5分です")
        await page.keyboard.type("ました")  # the focus has stayed, and so has the text
        await page.keyboard.press("Enter")
        await recorded.wait_until(lambda: teacher.hears("POST", text="わかりました", thread_id=teacher.thread_id))
        await desk.says(f"{TALK} .nbpulse-mine", "わかりました")
        assert await page.input_value(ANSWER) == ""
        assert await page.evaluate("window.hacked") is None


async def test_an_answer_to_a_class_that_is_away_waits_and_says_so(
    open_joined: Open, teacher: Teacher, api: FakeApi, recorded: Recorded
) -> None:
    async with open_joined("jupyterlab") as desk:
        await desk.says(STATE, "Connected")
        api.tell_answers = [(503, {})] * 2
        await desk.page.click(STATE)
        await desk.page.fill(ANSWER, "図が出ません")
        await desk.page.keyboard.press("Enter")
        await desk.says(f"{TALK} .nbpulse-mine", "Waiting")
        await recorded.wait_until(lambda: len(api.told) == 3, 20)
        await desk.page.wait_for_function(
            "() => !document.querySelector('.nbpulse-mine').innerText.includes('Waiting')"
        )
        assert len({content["id"] for _, _, content in api.told}) == 1


async def test_a_raised_hand_says_its_place_and_who_is_coming(
    open_joined: Open,
    teacher: Teacher,
) -> None:
    async with open_joined("jupyterlab") as desk:
        now_ms = round(time.time() * 1000)
        teacher.show_help(since=now_ms, place=3)
        await desk.says(HAND, "Place 3")
        assert await desk.page.get_attribute(HAND, "aria-pressed") == "true"
        teacher.show_help(since=now_ms, coming={"name": "Tanaka", "at": now_ms})
        await desk.says(HAND, "Tanaka is coming")
        await desk.says(".Toastify", "Tanaka is coming")


@both_front_ends
async def test_an_offered_change_is_made_only_when_the_student_says_so_and_one_undo_takes_it_back(
    open_joined: Open, teacher: Teacher, recorded: Recorded, program: str
) -> None:
    async with open_joined(program) as desk:
        page = desk.page
        await desk.wait_for_kernel()
        teacher.offer()
        await desk.says(".Toastify", "offers a change")
        await page.click(STATE)
        await desk.says(f"{TALK} del", "values = [1, 2]")
        await desk.says(f"{TALK} ins", "values = [1, 2, 3]")
        assert await read_cell(desk) == SOURCE
        await page.click(f"{TALK} .nbpulse-accept")
        await desk.says(f"{TALK} .nbpulse-fate", "Accepted")
        await recorded.wait_until(lambda: teacher.hears("PUT", state="accepted"))
        assert await read_cell(desk) == OFFERED
        assert await page.evaluate("document.activeElement.classList.contains('nbpulse-message')")
        await page.click(".jp-CodeCell >> nth=1 >> .cm-content")
        await page.keyboard.press("Control+z")
        await page.wait_for_function(
            "(source) => !document.querySelector('.jp-Notebook').innerText.includes(source)", arg="[1, 2, 3]"
        )
        assert await read_cell(desk) == SOURCE


async def test_what_changed_meanwhile_is_shown_again_before_it_is_replaced(
    open_joined: Open, teacher: Teacher, recorded: Recorded
) -> None:
    async with open_joined("jupyterlab") as desk:
        page = desk.page
        teacher.offer()
        await desk.says(STATE, "1 new")
        await page.click(STATE)
        await desk.says(f"{TALK} del", "values = [1, 2]")
        await recorded.wait_until(lambda: teacher.hears("PUT", state="shown"))
        await asyncio.sleep(1)  # what the class's word changes on the page has changed
        await page.click(".jp-CodeCell >> nth=1 >> .cm-content")
        await page.keyboard.type("mine ")
        await page.click(f"{TALK} .nbpulse-accept")
        await desk.says(f"{TALK} .nbpulse-offer .nbpulse-problem", "has changed meanwhile")
        assert "mine" in await read_cell(desk)
        await page.click(f"{TALK} .nbpulse-accept")
        await desk.says(f"{TALK} .nbpulse-fate", "Accepted")
        assert await read_cell(desk) == OFFERED


async def test_an_offer_may_be_put_off_found_again_and_declined(
    open_joined: Open, teacher: Teacher, recorded: Recorded
) -> None:
    async with open_joined("jupyterlab") as desk:
        page = desk.page
        teacher.offer(cell_id="nowhere")
        await desk.says(STATE, "1 new")
        await page.click(STATE)
        await desk.says(f"{TALK} .nbpulse-offer-place", "Open week1.ipynb")
        await page.click(f"{TALK} .nbpulse-accept")
        await desk.says(f"{TALK} .nbpulse-offer .nbpulse-problem", "The cell is not open")
        await page.click(f"{TALK} .nbpulse-later")
        await desk.says(STATE, "1 for later")
        await recorded.wait_until(lambda: teacher.hears("PUT", state="later"))
        await page.click(f"{TALK} .nbpulse-never")
        await desk.says(f"{TALK} .nbpulse-fate", "Declined")
        await recorded.wait_until(lambda: teacher.hears("PUT", state="never"))
        assert not await page.is_visible(f"{TALK} .nbpulse-diff")
        assert not teacher.hears("PUT", state="accepted")
        assert await read_cell(desk) == SOURCE


@both_front_ends
@each_look
async def test_it_can_be_read_by_everybody_in_both_languages_and_themes(
    open_joined: Open, teacher: Teacher, program: str, language: str, theme: str
) -> None:
    name = f"{program}-{language}-{theme}"
    async with open_joined(program, language=language, theme=theme) as desk:
        page = desk.page
        connected = {"ja": "接続中", "en": "Connected"}[language]
        await desk.says(STATE, connected)
        await desk.wait_for_kernel()
        await page.click(HAND)
        await page.wait_for_selector(".jp-Dialog input[name=message]")
        assert await desk.examine(".jp-Dialog") == []
        await desk.picture(f"{name}-hand")
        await page.keyboard.press("Escape")
        teacher.show_help(since=round(time.time() * 1000) - 120_000, place=2)
        teacher.say({"ja": "あと10分で終わります。", "en": "Ten minutes to go."}, "announcement", by=None)
        teacher.say("どこで困っていますか?")
        teacher.offer()
        await desk.says(HAND, {"ja": "2番目", "en": "Place 2"}[language])
        await page.wait_for_selector(".Toastify__toast")
        assert await desk.examine(".Toastify") == []
        await page.click(STATE)
        await desk.says(f"{TALK} ins", "values = [1, 2, 3]")
        await page.fill(ANSWER, "グラフのところです")
        await page.keyboard.press("Enter")
        await desk.says(f"{TALK} .nbpulse-mine", "グラフのところです")
        assert await desk.examine(TALK) == []
        assert await desk.examine(".nbpulse-item") == []
        await desk.picture(f"{name}-talk")


@pytest.mark.parametrize(
    ("program", "language", "theme"),
    [
        ("jupyterlab", "en", "dark"),
        ("notebook", "ja", "light"),
        pytest.param("jupyterlab", "ja", "light", marks=slow),
        pytest.param("notebook", "en", "dark", marks=slow),
    ],
)
async def test_joining_can_be_read_by_everybody_and_the_list_of_files_has_the_item_too(  # noqa: PLR0917
    installed_python: Path, student: Path, chromium_path: str, program: str, language: str, theme: str
) -> None:
    write_notebook(student / "授業", url="http://10.0.0.5:8888", join_code="ABCD-EFGH", course="情報基礎")
    path = "" if program == "notebook" else "week1.ipynb"  # Notebook 7's list of files has no notebook's toolbar
    async with open_desk(
        installed_python, student, chromium_path, program, language=language, theme=theme, path=path
    ) as desk:
        await desk.says(STATE, {"ja": "授業に参加", "en": "Join class"}[language])
        assert await desk.examine(".nbpulse-item") == []
        await desk.page.click(STATE)
        focused = "name" if program == "jupyterlab" else "invitation"
        await desk.page.wait_for_selector(f".jp-Dialog input[name={focused}]:focus")
        assert await desk.examine(".jp-Dialog") == []
        await desk.picture(f"{program}-{language}-{theme}-join")
