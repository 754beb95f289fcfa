"""The page of a course's people in a browser: letting in, codes, roles, invitations, the roster; as it looks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from playwright.async_api import Browser, Page, expect

from browsing import LOOKS, find_barriers, open_as_teacher, open_page, photograph
from stage import Stage

pytestmark = pytest.mark.browser

ROSTER = (
    "学籍番号,氏名,フリガナ,班,座席\n1001,山田 太郎,ヤマダ タロウ,1班,A-1\n"
    "1002,佐藤 花子,サトウ ハナコ,2班,A-2\n,名無し,,,\n"
)


@asynccontextmanager
async def look(stage: Stage, browser: Browser, **options: Any) -> AsyncIterator[Page]:
    """The page, as its instructor, signed in by a link."""
    async with open_as_teacher(stage, browser, "/people", **options) as page:
        await page.wait_for_selector("[data-part=entry]")
        yield page


async def change_entry(stage: Stage, **change: Any) -> None:
    answer = await stage.http.patch(f"/api/v1/courses/{stage.course.id}/entry", headers=stage.staff, json=change)
    assert answer.status_code == 200


async def test_newcomers_are_let_in_and_the_code_is_closed_and_renewed(stage: Stage, browser: Browser) -> None:
    await change_entry(stage, needs_approval=True)
    await stage.join("鈴木 大翔", student_number="1")
    await stage.join("高橋 葵", student_number="2")
    async with look(stage, browser) as page:
        waiting = page.locator("[data-part=waiting]")
        await expect(waiting).to_contain_text("2 people wait to be let in")
        await waiting.locator("li", has_text="鈴木").locator("[data-action=admit]").click()
        await expect(page.locator("[data-part=students]")).to_contain_text("鈴木 大翔")
        await waiting.locator("[data-action=refuse]").click()
        await expect(waiting).to_have_count(0)
        await expect(page.locator("[data-part=students] details")).to_contain_text("高橋 葵")
        await page.click("[data-action=toggle-code]")
        await expect(page.locator("[data-state=closed]")).to_contain_text("nobody new can join")
        await page.click("[data-action=renew-code]")
        await page.click("[data-action=renew-now]")
        await expect(page.locator("[data-state=open]")).to_contain_text("open until")
        await expect(page.locator("[data-join-code]")).not_to_have_text(stage.course.join_code)


async def test_fields_are_saved_with_the_keyboard_and_refusals_are_said(stage: Stage, browser: Browser) -> None:
    student = await stage.join("鈴木 大翔", student_number="1")
    async with look(stage, browser) as page:
        field = page.get_by_label("Team of 鈴木 大翔")
        await field.focus()
        await page.keyboard.type("red")
        await page.keyboard.press("Enter")
        await expect(page.locator(f"[data-member='{student['user_id']}'] .field").first).to_have_value("red")
        await page.reload()
        await expect(page.get_by_label("Team of 鈴木 大翔")).to_have_value("red")
        await page.get_by_label("Role of teacher").select_option("assistant")
        await expect(page.locator(".problem")).to_contain_text("NB-1145")
        await expect(page.get_by_label("Role of teacher")).to_have_value("instructor")
        await page.get_by_role("button", name="Take out 鈴木 大翔").click()
        await page.get_by_role("button", name="Take out now 鈴木 大翔").click()
        await expect(page.locator("[data-part=students] details")).to_contain_text("1 has left")
        await page.get_by_text("1 has left").click()
        await page.get_by_role("button", name="Bring back 鈴木 大翔").click()
        await expect(page.get_by_label("Team of 鈴木 大翔")).to_have_value("red")


async def test_a_roster_is_shown_first_and_then_taken_in(stage: Stage, browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "roster.csv"
    file.write_bytes(ROSTER.encode("cp932"))
    async with look(stage, browser, locale="ja-JP") as page:
        await page.set_input_files("[data-part=roster] input[type=file]", file)
        preview = page.locator("[data-roster=preview]")
        await expect(preview).to_contain_text("新規: 2")
        await expect(preview.locator("[data-problems]")).to_contain_text("4 行目: 学籍番号がありません。")
        await expect(page.locator("[data-part=students]")).not_to_contain_text("山田 太郎")
        await page.click("[data-action=take-roster]")
        await expect(page.locator("[data-roster=done]")).to_contain_text("取り込みました")
        await expect(page.locator("[data-part=students]")).to_contain_text("山田 太郎")
        await expect(page.locator("[data-part=students] .note-chip").first).to_have_text("未参加")


async def test_somebody_invited_becomes_staff_by_the_link(stage: Stage, browser: Browser) -> None:
    async with look(stage, browser) as page:
        await page.fill("[data-part=staff] input[name=teams]", "red, blue")
        await page.click("[data-action=invite]")
        link = await page.locator("[data-part=staff] .command code").inner_text()
        await expect(page.locator("[data-invitations]")).to_contain_text("red, blue")
    async with open_page(browser) as page:
        await page.goto(link)
        await page.wait_for_selector("[data-page=invited]")
        assert "invite" not in page.url
        await expect(page.locator("main")).to_contain_text("Assistant")
        await page.fill("input[name=username]", f"staff-{uuid4().hex[:6]}")
        await page.fill("input[name=name]", "田中 花子")
        assert await find_barriers(page) == []
        await page.click("[data-action=accept]")
        await page.wait_for_selector("[data-page=first-password]")
        await page.click("[data-action=later]")
        await page.wait_for_selector(".board")
        await page.click("[data-menu=pages] summary")
        await page.click("[data-menu=pages] [data-nav=people]")
        await expect(page.locator("[data-part=staff]")).to_contain_text("田中 花子")
        await expect(page.locator("[data-action=invite], [data-part=roster], [data-action=remove]")).to_have_count(0)
    async with open_page(browser) as page:
        await page.goto(link)
        await expect(page.locator("main")).to_contain_text("NB-1147")


@pytest.mark.parametrize("options", LOOKS)
async def test_the_page_looks_right_everywhere(stage: Stage, browser: Browser, options: dict[str, Any]) -> None:
    await take_roster(stage)
    await change_entry(stage, needs_approval=True)
    await stage.join("高橋 葵", student_number="1003")
    async with look(stage, browser, **options) as page:
        await expect(page.locator("[data-part=students]")).to_contain_text("山田 太郎")
        assert await find_barriers(page) == []
        await photograph(page, "people", options)


async def take_roster(stage: Stage) -> None:
    answer = await stage.http.post(
        f"/api/v1/courses/{stage.course.id}/roster?dry_run=false",
        headers=stage.staff | {"Content-Type": "text/csv"},
        content=ROSTER.encode(),
    )
    assert answer.status_code == 200
