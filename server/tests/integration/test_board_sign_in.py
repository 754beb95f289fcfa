"""Signing in with a browser: the page, the account behind one's name, and the ways out."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from playwright.async_api import Browser, Page, expect

from browsing import LOOKS, find_barriers, open_page, photograph
from nbpulse.oidc import open_provider
from nbpulse.passwords import Hasher
from nbpulse.records.accounts import Accounts
from openid_provider import open_openid_server, run_openid_provider
from stage import Stage, open_stage
from stores import connect

pytestmark = pytest.mark.browser

PASSWORD = "correct horse battery staple"
SIGN_IN, FIRST, MENU = "[data-page=sign-in]", "[data-page=first-password]", "[data-page=account]"
SAVE = "[data-action=set-password]"


async def add_person(stage: Stage, display_name: str, course: str | None) -> tuple[str, str]:
    """An account without a password yet: its name, and where its first link leads."""
    name = f"p-{uuid4().hex[:8]}"
    user_id = await Accounts(stage.people, Hasher()).add(name, display_name, course, "instructor")
    return name, f"{stage.url}/#code={await stage.people.create_link(user_id)}&password"


async def test_a_new_account_sets_its_password_and_signs_in_with_the_keyboard_alone(
    stage: Stage, browser: Browser
) -> None:
    name, link = await add_person(stage, "田中 花子", stage.course.short_name)
    async with open_page(browser) as page:
        await page.goto(link)
        await page.wait_for_selector(FIRST)
        assert "code" not in page.url
        await page.focus("input[name=new]")
        await page.keyboard.type("aaaaaaaaaaaaaaaa")
        await page.keyboard.press("Enter")
        await expect(page.locator(".problem")).to_contain_text("NB-1122")
        await page.fill("input[name=new]", PASSWORD)
        await page.keyboard.press("Enter")
        await expect(page.locator(f"{FIRST} [role=status]")).to_contain_text("The password is set")
        await page.click("[data-action=go-on]")
        await page.wait_for_selector(".board")
        await page.click("[data-action=account]")
        await expect(page.locator(f"{MENU} h2")).to_have_text("Signed in as 田中 花子")
        await page.click("[data-action=sign-out]")
        await page.wait_for_selector(SIGN_IN)

        await expect(page.locator("input[name=name]")).to_be_focused()
        await page.keyboard.type(name)
        await page.keyboard.press("Tab")
        await page.keyboard.type("wrong horse battery staple")
        await page.keyboard.press("Enter")
        await expect(page.locator(".problem")).to_contain_text("NB-1120")
        await page.keyboard.type(PASSWORD)  # the wrong one is selected
        await page.keyboard.press("Enter")
        await page.wait_for_selector(".board")


async def test_who_came_for_a_class_is_in_it_after_signing_in(stage: Stage, browser: Browser) -> None:
    name, link = await add_person(stage, "Lee", stage.course.short_name)
    async with open_page(browser) as first:
        await first.goto(link)
        await first.fill("input[name=new]", PASSWORD)
        await first.click(SAVE)
        await first.wait_for_selector("[data-action=go-on]")
    async with open_page(browser) as page:
        await page.goto(f"{stage.url}/courses/{stage.course.id}")
        await page.wait_for_selector(SIGN_IN)
        await page.fill("input[name=name]", name)
        await page.fill("input[name=password]", PASSWORD)
        await page.keyboard.press("Enter")
        await page.wait_for_selector(".board")
        assert page.url == f"{stage.url}/courses/{stage.course.id}"


async def test_signing_out_everywhere_takes_the_board_from_the_other_browser(
    stage: Stage, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbpulse.api.sockets.PING_S", 0.3)
    monkeypatch.setattr("nbpulse.api.sockets.RECHECK_S", 0.3)
    async with open_page(browser) as here, open_page(browser) as there:
        for page in (here, there):
            code = await stage.people.create_link(stage.teacher_id)
            await page.goto(f"{stage.url}/courses/{stage.course.id}#code={code}")
            await page.wait_for_selector(".board")
        await here.click("[data-action=account]")
        await here.click("[data-action=sign-out-everywhere]")
        await here.wait_for_selector(SIGN_IN)
        await there.wait_for_selector(SIGN_IN, timeout=15_000)
        assert await there.locator(".board").count() == 0


async def test_changing_the_password_asks_for_the_present_one(stage: Stage, browser: Browser) -> None:
    _, link = await add_person(stage, "Lee", stage.course.short_name)
    async with open_page(browser) as page:
        await page.goto(link)
        await page.fill("input[name=new]", PASSWORD)
        await page.click(SAVE)
        await page.click("[data-action=go-on]")
        await page.click("[data-action=account]")
        await page.fill("input[name=present]", "not the one I have set")
        await page.fill("input[name=new]", "another horse battery staple")
        await page.click(SAVE)
        await expect(page.locator(".problem")).to_contain_text("NB-1123")
        await page.fill("input[name=present]", PASSWORD)
        await page.click(SAVE)
        await expect(page.locator(f"{MENU} [role=status]")).to_be_visible()
        await page.click("[data-action=go-on]")
        await expect(page.locator(MENU)).to_have_count(0)
        await page.reload()
        await page.wait_for_selector(".board")


async def test_signing_in_at_another_site_leads_back_to_the_class_that_was_wanted(
    stage_database: str, embedded_valkey: str, browser: Browser
) -> None:
    """The provider is of another site (localhost, not 127.0.0.1): what a browser keeps apart, it does here."""
    with run_openid_provider() as issuer:
        async with (
            open_openid_server(issuer) as server,
            open_provider(issuer=issuer, client_id="later", client_secret="later", label="Example School") as oidc,
            open_stage(stage_database, embedded_valkey, providers={"oidc": oidc}) as stage,
            open_page(browser) as page,
        ):
            await server.register(f"{stage.url}/api/v1/sign-in/oidc/callback")
            oidc._client_id, oidc._client_secret = server.client_id, server.client_secret
            subject = f"sub-{uuid4().hex}"
            accounts = Accounts(stage.people, Hasher())
            user_id = await accounts.enter(issuer, subject, subject, "佐藤 一郎")
            async with connect(stage.database_url) as owner:
                await owner.execute(
                    "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1, $2, 'instructor')",
                    *(user_id, stage.course.id),
                )

            async def go(path: str) -> None:
                await page.goto(f"{stage.url}{path}")
                await page.click("[data-provider=oidc]")
                await page.wait_for_url(f"{issuer}/**")

            await go(f"/courses/{stage.course.id}")
            await page.click("text=Deny")
            await expect(page.locator(".problem")).to_contain_text("NB-112")
            assert page.url == f"{stage.url}/"
            await photograph(page, "sign-in-providers")
            assert await find_barriers(page) == []
            await go(f"/courses/{stage.course.id}")
            await page.fill("input[name=sub]", subject)
            await page.keyboard.press("Enter")
            await page.wait_for_selector(".board")
            assert page.url == f"{stage.url}/courses/{stage.course.id}"
            await expect(page.locator("[data-action=account]")).to_contain_text("佐藤 一郎")
            cookies = {one["name"]: one for one in await page.context.cookies(stage.url)}
            assert cookies["nbpulse_session"]["sameSite"] == "Strict"
            assert "nbpulse_sign_in" not in cookies


@pytest.mark.parametrize("options", LOOKS)
async def test_every_page_of_signing_in_fits_and_has_no_barrier(
    stage: Stage, browser: Browser, options: dict[str, Any]
) -> None:
    _, link = await add_person(stage, "田中 花子", None)

    async def look(page: Page, name: str) -> None:
        assert await find_barriers(page) == []
        await photograph(page, name, options)

    async with open_page(browser, **options) as page:
        await page.goto(stage.url)
        await page.wait_for_selector(SIGN_IN)
        await look(page, "sign-in")
        await page.click("summary")
        await page.fill("input[name=name]", "nobody")
        await page.fill("input[name=password]", "nothing")
        await page.click("[data-action=sign-in]")
        await page.wait_for_selector(".problem")
        await look(page, "sign-in-refused")
        await page.goto(link)
        await page.wait_for_selector(SAVE)
        await look(page, "first-password")
        await page.click("[data-action=later]")
        await page.wait_for_selector("[data-page=no-course]")
        await look(page, "no-course")
        await page.click("[data-action=account]")
        await page.wait_for_selector(f"{MENU} {SAVE}")
        await look(page, "account")
