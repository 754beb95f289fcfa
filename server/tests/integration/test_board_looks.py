"""How the board looks where colours say nothing: forced ones, and grey; and as an app on a home screen."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from browsing import open_as_teacher, photograph
from nbpulse.api.pages import WEB_DIR
from stage import Stage, make_run

pytestmark = pytest.mark.browser

WAIT_MS = 20_000
STATUSES = ("help", "stuck", "idle", "behind", "ok")
GREYS = """
async ([picture, size]) => {
  const image = await createImageBitmap(await (await fetch(picture)).blob());
  const canvas = new OffscreenCanvas(size || image.width, size || image.height);
  const draw = canvas.getContext("2d");
  draw.drawImage(image, 0, 0, canvas.width, canvas.height);
  const { data } = draw.getImageData(0, 0, canvas.width, canvas.height);
  const brightness = (_, i) => 0.2126 * data[4 * i] + 0.7152 * data[4 * i + 1] + 0.0722 * data[4 * i + 2];
  return Array.from({ length: data.length / 4 }, brightness);
}
"""
"""The brightness 0..255 of a picture's pixels, scaled to a square of `size` where one is given."""


async def read_greys(page: Page, picture: bytes, size: int = 0, kind: str = "image/png") -> list[float]:
    greys: list[float] = await page.evaluate(GREYS, [f"data:{kind};base64,{base64.b64encode(picture).decode()}", size])
    return greys


async def see(blank: Page, mark: Locator, size: int = 24) -> list[float]:
    """What a reader sees of a mark, in grey."""
    return await read_greys(blank, await mark.screenshot(animations="disabled"), size)


def differ(one: list[float], other: list[float]) -> float:
    """How many in a hundred pixels are clearly brighter or darker, each picture measured by its own background."""
    grounds = [sorted(greys)[len(greys) // 2] for greys in (one, other)]
    pairs = zip(one, other, strict=True)
    return 100 * sum(abs((a - grounds[0]) - (b - grounds[1])) > 40 for a, b in pairs) / len(one)


async def make_class(stage: Stage) -> None:
    """A hand up, one stuck, one in error, one in whom a cell runs, and two who have done what there is."""
    students = [await stage.join(f"生徒 {n}", student_number=f"100{n}") for n in range(6)]
    tokens = [one["token"] for one in students]
    ago = datetime.now(UTC) - timedelta(seconds=240)
    for token in tokens:
        await stage.post(token, make_run(0))
    await stage.post(tokens[0], make_run(event_type="help_request", notebook_path=None, data={}))
    for n in range(4):
        await stage.post(tokens[1], make_run(1, "error", occurred_at=(ago + timedelta(seconds=50 * n)).isoformat()))
    await stage.post(tokens[2], make_run(1, "error"))
    await stage.post(tokens[3], make_run(1, event_type="cell_execution_start", data={}))
    for token in tokens[4:]:
        await stage.post(token, [make_run(1), make_run(2)])
    await stage.work()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("way", ["forced", "grey"])
async def test_statuses_are_told_apart_without_colour(stage: Stage, browser: Browser, way: str, scheme: Any) -> None:
    await make_class(stage)
    options: dict[str, Any] = {"color_scheme": scheme}
    if way == "forced":
        options["forced_colors"] = "active"
    blank = await browser.new_page()
    async with open_as_teacher(stage, browser, **options) as page:
        if way == "grey":
            session = await page.context.new_cdp_session(page)
            await session.send("Emulation.setEmulatedVisionDeficiency", {"type": "achromatopsia"})
        await page.wait_for_selector(".board[data-link=live]", timeout=WAIT_MS)
        await expect(page.locator(".row[data-st=stuck]")).to_have_count(1, timeout=WAIT_MS)
        await expect(page.locator("[data-student] [data-state='2']")).to_have_count(1)
        await page.keyboard.press("]")
        await expect(page.locator("[data-head][data-lesson=true]")).to_have_count(1)

        # Each square, as the legend explains it.
        squares = [await see(blank, page.locator(f".legend i[data-state='{n}']")) for n in range(5)]
        for n, (one, other) in enumerate(combinations(squares[2:], 2)):
            assert differ(one, other) > 3, f"signs of running, error, stuck: pair {n}"
        for sign, name in zip(squares[2:], ("running", "error", "stuck"), strict=True):
            assert max(sign) - min(sign) > 60, name
            assert differ(sign, squares[1]) > 2, name
        none, ok = (sum(square) / len(square) for square in squares[:2])
        assert abs(none - ok) > 20

        # Each status, where it is counted, in the list and in the row: a sign that can be seen, and its word.
        signs = {}
        for status in STATUSES:
            counter = page.locator(f"[data-counter={status}] .figure")
            await expect(counter).to_contain_text(read_word(status))
            signs[status] = await see(blank, counter.locator(".glyph"))
            assert max(signs[status]) - min(signs[status]) > 60, status
        for one, other in combinations(STATUSES, 2):
            assert differ(signs[one], signs[other]) > 3, (one, other)
        for status in ("help", "stuck"):
            pill = page.locator(f"[data-status={status}] .pill").first
            assert (await pill.inner_text()).strip(), status
            seen = await see(blank, pill.locator(".glyph"))
            assert max(seen) - min(seen) > 60, status
            row = page.locator(f".row[data-st={status}] .state .glyph")
            seen = await see(blank, row)
            assert max(seen) - min(seen) > 60, status
        # What is chosen, and where the class is, too.
        head = page.locator("[data-head]")
        assert differ(await see(blank, head.nth(0)), await see(blank, head.nth(1))) > 5
        await photograph(page, f"without-colour-{way}-{scheme}")
        await page.set_viewport_size({"width": 390, "height": 900})
        await page.wait_for_selector(".tabs")
        tabs = page.locator(".tabs button")
        chosen, other = await see(blank, tabs.nth(0), 64), await see(blank, tabs.nth(3), 64)
        assert differ(chosen[: 64 * 8], other[: 64 * 8]) > 5, "the tab that is shown"
        await photograph(page, f"without-colour-{way}-{scheme}-390")
    await blank.close()


def read_word(status: str) -> str:
    words: dict[str, str] = json.loads((WEB_DIR / "messages" / "en.json").read_text(encoding="utf-8"))
    return words[f"status.{status}"]


async def test_the_board_can_be_kept_as_an_app_and_its_picture_is_the_mark(stage: Stage, browser: Browser) -> None:
    async with open_as_teacher(stage, browser) as page:
        await page.wait_for_selector(".board, [data-page]", timeout=WAIT_MS)
        session = await page.context.new_cdp_session(page)
        read = await session.send("Page.getAppManifest")
        assert read["errors"] == []
        assert read["url"] == f"{stage.url}/web/nbpulse.webmanifest"
        manifest = json.loads(read["data"])
        sizes = set()
        for icon in manifest["icons"]:
            answer = await stage.http.get(icon["src"])
            assert (answer.status_code, answer.headers["content-type"]) == (200, icon["type"])
            sizes.add(icon["sizes"])
        assert sizes == {"any", "512x512"}
        assert (await stage.http.get(manifest["start_url"])).status_code == 200
    # The mark fills the square, so that systems may cut it as they like; its line keeps to the middle 80 %.
    mark = (WEB_DIR / "icon.svg").read_text(encoding="utf-8")
    rounded = 'viewBox="0 0 32 32"><rect width="32" height="32" rx="7"'
    assert rounded in mark
    whole = mark.replace(rounded, 'viewBox="-2 -2 36 36"><rect x="-2" y="-2" width="36" height="36"')
    blank = await browser.new_page(viewport={"width": 512, "height": 512})
    await blank.set_content(f'<body style="margin:0">{whole}')
    wanted = await read_greys(blank, await blank.screenshot())
    found = await read_greys(blank, (WEB_DIR / "icon-512.png").read_bytes())
    assert len(found) == 512 * 512
    assert sum(abs(a - b) > 8 for a, b in zip(wanted, found, strict=True)) < 500
    await blank.close()
