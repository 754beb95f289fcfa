"""Nothing the class says becomes markup or script in the student's own Jupyter, whoever wrote it."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path

import pytest
from playwright.async_api import Page

from nbpulse_capture.membership import Membership, write_membership
from payloads import PAYLOADS, WATCH
from student_browser import STATE, TALK, open_desk, write_notebook

from .conftest import FakeApi
from .test_front_end_talk import Teacher

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
MARKUP = "img, iframe, script, object, embed, video, audio, link, style, math, xss, picture, base, meta"


def watch(page: Page) -> Awaitable[None]:
    return page.add_init_script(WATCH)


async def test_nothing_the_class_says_runs_in_jupyter(
    installed_python: Path, student: Path, api: FakeApi, chromium_path: str
) -> None:
    write_notebook(student / "授業")
    said = Teacher(api)
    who = Membership(url=api.url, token="tok-1", user_id="u-1", course_id="c-1", course_title=PAYLOADS[0])
    write_membership(Membership(**vars(who) | {"display_name": PAYLOADS[14], "resume_code": "R-77"}))
    api.set_collection(2, "output", added=PAYLOADS[8])
    async with open_desk(installed_python, student, chromium_path, "jupyterlab", prepare=watch) as desk:
        said.show_help(coming={"name": PAYLOADS[14], "since": 0})
        said.offer(PAYLOADS[1], source=PAYLOADS[2])
        await desk.says(STATE, "new")
        await desk.page.click(STATE)
        for payloads in (PAYLOADS[:30], PAYLOADS[30:]):  # the talk keeps the last ones only
            for payload in payloads:
                said.say(payload, by=payload)
            await desk.says(f"{TALK} [role=log]", payloads[-1])
            log = await desk.page.inner_text(f"{TALK} [role=log]")
            assert [payload for payload in payloads if payload not in log] == []
        await desk.picture("payloads")
        for place in (TALK, STATE, ".nbpulse-hand", ".Toastify"):
            assert await desk.page.locator(place).locator(MARKUP).count() == 0, place
        assert "a script ran" not in await desk.page.evaluate("window.attempts")
