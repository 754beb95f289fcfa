"""A page whose answers come from a replica that is behind says of when they are, in every look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from browsing import LOOKS, find_barriers, open_as_teacher, photograph
from meetings import begin, teach
from replicated import Pair, run_pair
from servers import make_data_dir
from stage import Replicas, Stage, open_stage
from stores import create_database
from working import until

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with make_data_dir() as directory, run_pair(directory) as running:
        yield running


@pytest.fixture(scope="module")
def database(pair: Pair) -> str:
    return asyncio.run(create_database(pair.primary.url))


@pytest.fixture
async def behind(pair: Pair, database: str, embedded_valkey: str) -> AsyncIterator[Stage]:
    """A class whose replica stands still, and may be as far behind as it likes."""
    replicas = Replicas([pair.find_replica(database)], 3_600)
    async with open_stage(database, embedded_valkey, replicas=replicas) as stage:
        try:
            yield stage
        finally:
            await pair.resume()


async def make_old(stage: Stage, pair: Pair) -> None:
    """The class is at the replica; what came since is not, for some seconds."""
    await pair.until_same()
    await pair.pause()
    await stage.join("遅れて 来た")

    async def is_behind() -> bool:
        return bool(stage.parts.history.describe()[0]["lag_s"] > 4)

    await until(is_behind)


@pytest.mark.parametrize("look", LOOKS)
async def test_a_page_that_is_behind_says_of_when_it_is(
    behind: Stage, pair: Pair, browser: Browser, look: dict[str, Any]
) -> None:
    meeting_id = await begin(behind)
    students = await teach(behind, 6)
    await make_old(behind, pair)
    text = {"en-US": "What came in since is not shown yet.", "ja-JP": "その後に届いた分はまだ表示していません。"}
    for name, path in (("report", f"/report/{meeting_id}"), ("student", f"/students/{students[0]['user_id']}")):
        async with open_as_teacher(behind, browser, path, **look) as page:
            said = page.locator("[data-as-of]")
            await expect(said).to_contain_text(text[look["locale"]])
            assert await find_barriers(page) == []
            await photograph(page, f"as-of-{name}", look)


async def test_the_word_goes_when_the_page_is_of_now_again(behind: Stage, pair: Pair, browser: Browser) -> None:
    meeting_id = await begin(behind)
    await teach(behind, 6)
    await make_old(behind, pair)
    async with open_as_teacher(behind, browser, f"/replay/{meeting_id}") as page:
        await expect(page.locator("[data-page=replay] [data-as-of]")).to_be_visible()
        await pair.resume()
        await pair.until_same()

        async def is_near() -> bool:
            return bool(behind.parts.history.describe()[0]["lag_s"] < 1)

        await until(is_near)

        async def is_of_now() -> bool:
            await page.reload()
            await expect(page.locator("[data-action=play]")).to_be_visible()
            return await page.locator("[data-as-of]").count() == 0

        await until(is_of_now)  # an answer is kept for 2 s
