"""The projector: what the server sends names nobody, one encoding serves all its screens; as it looks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from playwright.async_api import Browser, Page, expect

from browsing import LOOKS, find_barriers, open_as_teacher, photograph
from nbpulse import metrics
from stage import NOBODY, Stage, make_run

STUDENTS = [
    ("鈴木 大翔", "A-1", "red"),
    ("佐藤 陽菜", "A-2", "red"),
    ("Ana Khan", "B-1", "blue"),
    ("高橋 葵", "B-2", "blue"),
]


async def fill_class(stage: Stage, students: int = 14) -> list[dict[str, Any]]:
    """A class under way: three stuck on one error named after one of them, one hand up, the rest at it."""
    joined = []
    for i in range(students):
        name = STUDENTS[i % len(STUDENTS)][0]
        student = await stage.join(f"{name} {i}", student_number=f"S-{uuid4().hex[:6]}")
        began_at = datetime.now(UTC) - timedelta(minutes=2)
        events = [make_run(cell) for cell in range(2 + i % 6)]
        if i < 3:
            error = {"status": "error", "error_name": "NameError", "error_message": "name '鈴木 大翔 0' is not defined"}
            events += [make_run(8, data=error) for _ in range(3)]
        elif i == 3:
            events += [make_run(3, event_type="help_request", data={"message": "教えて"})]
        for number, event in enumerate(events):
            event["occurred_at"] = (began_at + timedelta(seconds=number)).isoformat()
        assert (await stage.post(student["token"], events)).status_code == 202
        joined.append(student)
    await stage.work()
    return joined


async def show(stage: Stage) -> dict[str, Any]:
    answer = await stage.http.get(f"/api/v1/courses/{stage.course.id}/projector", headers=stage.staff)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def send(stage: Stage, **message: Any) -> None:
    body = {"id": str(uuid4()), **message}
    answer = await stage.http.post(f"/api/v1/courses/{stage.course.id}/messages", headers=stage.staff, json=body)
    assert answer.status_code == 201, answer.text


async def test_screens_are_sent_the_same_frames_and_nobody_is_in_them(stage: Stage) -> None:
    joined = await fill_class(stage)
    board, first = await stage.snapshot(), await show(stage)
    assert (first["present"], first["shares"]["stuck"]) == (14, 21)
    assert first["errors"] == [{"name": "NameError", "cell": 9, "n": 3}]
    secrets = [one[part] for one in board["students"] for part in ("id", "name", "num")] + [str(stage.teacher_id)]
    secrets += [one["user_id"] for one in joined] + ["鈴木", "教えて"]
    async with AsyncExitStack() as stack:
        screens = [await stack.enter_async_context(stage.watch(first, view="projector")) for _ in range(5)]
        for screen in screens:
            hello = json.loads(await screen.recv())
            assert (hello["t"], hello["epoch"], hello["seq"]) == ("hello", first["epoch"], first["seq"])
        made = metrics.live_frames._value.get()
        await send(stage, to={"all": True}, text={"ja": "5 分休憩", "en": "A break"})
        frames = [await next_frame(screen, lambda one: bool(one["announcements"])) for screen in screens]
        assert len(set(frames)) == 1, "the very same text"
        assert metrics.live_frames._value.get() - made < 5 * len(screens)
        for text in (json.dumps(first, ensure_ascii=False), *frames):
            assert [one for one in secrets if one in text] == []
    assert json.loads(frames[0])["announcements"][0]["text"] == {"ja": "5 分休憩", "en": "A break"}


async def next_frame(screen: Any, is_wanted: Any) -> str:
    while True:
        text: str = await screen.recv()
        frame = json.loads(text)
        if frame["t"] == "d" and is_wanted(frame):
            return text


async def test_only_what_was_told_to_the_whole_class_is_shown(stage: Stage) -> None:
    joined = await fill_class(stage, 6)
    await send(stage, to={"user_ids": [one["user_id"] for one in joined[:2]]}, text="鈴木さんと佐藤さんへ")
    await send(stage, to={"user_ids": [joined[0]["user_id"]]}, text="鈴木さんへ")
    board = await stage.snapshot()
    await send(stage, to={"error_fingerprint": board["errors"][0]["fp"]}, text="セル 9 の皆さんへ")
    first = await show(stage)
    async with stage.watch(first, view="projector") as screen:
        await send(stage, to={"all": True}, text="皆さんへ")
        frame = json.loads(await next_frame(screen, lambda one: bool(one["announcements"])))
    assert [one["text"] for one in frame["announcements"]] == ["皆さんへ"]


async def test_a_screen_that_missed_frames_is_sent_the_newest(stage: Stage) -> None:
    await fill_class(stage, 6)
    first = await show(stage)
    async with stage.watch(first | {"seq": first["seq"] - 1}, view="projector") as screen:
        assert json.loads(await next_frame(screen, lambda _: True))["present"] == 6


async def test_it_is_for_staff(stage: Stage) -> None:
    student = await stage.join()
    path = f"/api/v1/courses/{stage.course.id}/projector"
    assert (await stage.http.get(path)).status_code == 401
    assert (await stage.http.get(path, headers={"Authorization": f"Bearer {student['token']}"})).status_code == 403
    elsewhere = path.replace(str(stage.course.id), str(NOBODY))
    assert (await stage.http.get(elsewhere, headers=stage.staff)).status_code == 404


@asynccontextmanager
async def look(stage: Stage, browser: Browser, **options: Any) -> AsyncIterator[Page]:
    async with open_as_teacher(stage, browser, "/projector", **options) as page:
        await page.wait_for_selector("[data-page=projector] footer")
        yield page


@pytest.mark.browser
async def test_it_opens_from_the_board_in_a_window_of_its_own_and_follows_the_class(
    stage: Stage, browser: Browser
) -> None:
    joined = await fill_class(stage, 4)
    async with open_as_teacher(stage, browser) as page:
        await page.wait_for_selector("[data-student]")
        async with page.expect_popup() as opening:
            await page.keyboard.press("p")
        screen = await opening.value
        await expect(screen.locator("[data-quiet]")).to_be_visible(timeout=20_000)
        joined += await fill_class(stage, 3)
        await expect(page.locator("[data-student]")).to_have_count(7, timeout=20_000)
        for student in joined:  # as their Jupyter does every 20 s
            await stage.post(student["token"], make_run(event_type="presence", data={"state": "active"}))
        await expect(screen.locator("[data-present='7']")).to_be_visible(timeout=20_000)
        await page.click("[data-menu=pages] summary")
        async with page.expect_popup() as opening:
            await page.click("[data-menu=pages] [data-nav=projector]")
        await (await opening.value).wait_for_selector("[data-page=projector]")


@pytest.mark.browser
@pytest.mark.parametrize("options", LOOKS)
async def test_it_is_read_from_the_last_row_everywhere(stage: Stage, browser: Browser, options: dict[str, Any]) -> None:
    await fill_class(stage)
    await send(stage, to={"all": True}, text={"ja": "次はセル 10 です。", "en": "Cell 10 is next."})
    async with look(stage, browser, **options) as page:
        await expect(page.locator("[data-announcement]")).to_be_visible(timeout=20_000)
        await expect(page.locator("[data-share=stuck]")).to_be_visible()
        assert await find_barriers(page) == []
        small = await page.evaluate(
            """() => [...document.querySelectorAll("body *")]
              .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
                && one.checkVisibility() && parseFloat(getComputedStyle(one).fontSize) < 28)
              .map((one) => one.outerHTML)"""
        )
        assert small == []
        await photograph(page, "projector", options)
